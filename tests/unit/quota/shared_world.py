"""Several hosts, each with an owner and workers, on one real Valkey: stepped by a test, truth kept apart.

Everything is synchronous. Messages of a worker keep their order but may be delayed by any number of steps; a batch may
be lost before it is done, after it, or be done late by a connection that was given up. Truth: when each call was
admitted (as the store decided, or as a leased call was spent), which run, which were served.
"""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import redis

from gateway.errors import Refusal
from gateway.quota.owner import Parked, WorkerState
from gateway.quota.protocol import Answer, Ask, FromWorker, Return
from gateway.quota.shared_owner import Errand, SharedOwner
from gateway.quota.shelf import Lease, Shelf
from gateway.quota.store import Grant
from gateway.quota.store_link import Command, CommandFailed, Reply
from gateway.quota.store_words import LEASE_S, SessionLost, read_beat, read_registered, script_text
from gateway.snapshot import Plan, Tenant
from tests.unit.quota.plans import DAY_NS, S
from tests.unit.quota.valkey import KEY_CLOCK, StoreClock, Valkey

TENANT = Tenant(tenant="acme", plan="plan")
PREFIX = "{tollway}:"


class StoreClient:
    """The script at a real server, synchronously."""

    def __init__(self, server: Valkey) -> None:
        self.client = server.client()
        self.digest = self.client.script_load(script_text(KEY_CLOCK))
        #: What INFO would say; another value is another run of the server.
        self.run_id = "run-1"

    def run(self, host: str, session: str, epoch: str, commands: Sequence[Command]) -> list[Reply]:
        return [self._run_one(host, session, epoch, command) for command in commands]

    def _run_one(self, host: str, session: str, epoch: str, command: Command) -> Reply:
        subject = f"t:{command.tenant}" if command.tenant else f"want:{host}"
        keys = (f"{PREFIX}epoch", f"{PREFIX}hosts", PREFIX + subject)
        words: list[Any] = [command.operation, host, session, epoch, *command.arguments]
        try:
            reply: list[Any] = self.client.evalsha(self.digest, 3, *keys, *words)
        except redis.exceptions.ResponseError as error:
            return CommandFailed(str(error))
        return reply

    def fields(self, tenant: str = "acme") -> dict[str, str]:
        found: dict[bytes, bytes] = self.client.hgetall(f"{PREFIX}t:{tenant}")  # type: ignore[assignment]
        return {name.decode(): value.decode() for name, value in found.items()}

    def close(self) -> None:
        self.client.close()


@dataclass
class Flight:
    """A call that was admitted and has not ended."""

    grant: Grant
    day: int


@dataclass(eq=False)
class Worker:
    shelf: Shelf
    state: WorkerState = field(default_factory=WorkerState)
    sent: deque[FromWorker] = field(default_factory=deque)
    answers: deque[tuple[int, Answer]] = field(default_factory=deque)
    flights: list[Flight] = field(default_factory=list)


class Host:
    """One machine: its owner, its workers, its meter."""

    def __init__(self, world: "World", name: str, workers: int, *, has_meter: bool) -> None:
        self.has_meter = has_meter
        self.world = world
        self.name = name
        self.served: dict[int, int] = {}
        self.session = ""
        self.sessions = 0
        self.parked: dict[WorkerState, Ask] = {}
        self.is_back = True
        self.late: list[tuple[str, str, list[Command]]] = []
        self.workers = [self._new_worker() for _ in range(workers)]
        self._new_owner()
        for worker in self.workers:
            self.owner.hello(worker.state, ())
        self.owner.settle()

    def _new_worker(self) -> Worker:
        return Worker(Shelf("acme", self.world.plan, self.world.clock.monotonic_ns()))

    def _new_owner(self) -> None:
        self.owner = SharedOwner(self.world.clock, has_meter=self.has_meter)
        self.owner.listen(
            on_decided=self._on_decided, on_news=self.retry, on_recall=self._on_recall, on_count_wanted=lambda: None
        )
        self.owner.set_policy([TENANT], [self.world.plan])
        self.parked.clear()

    def _worker(self, state: WorkerState) -> Worker:
        (worker,) = (one for one in self.workers if one.state is state)
        return worker

    # -- what the server does ------------------------------------------------------------------------------------------

    def _on_decided(self, state: WorkerState, _: str) -> None:
        if state in self.parked:
            self._try(state, is_final=False)

    def _on_recall(self, state: WorkerState, _: str) -> None:
        worker = self._worker(state)
        worker.shelf.drop_all()
        worker.sent.extend(worker.shelf.take_returns(slots_kept=0, is_all=True))

    def retry(self, *, is_final: bool = False) -> None:
        for state in list(self.parked):
            if state in self.parked:
                self._try(state, is_final=is_final)

    def _try(self, state: WorkerState, *, is_final: bool) -> None:
        outcome = self.owner.ask(state, self.parked[state], is_final=is_final)
        if isinstance(outcome, Answer):
            del self.parked[state]
            self._worker(state).answers.append((self.world.clock.monotonic_ns(), outcome))
        elif outcome is Parked.RECALL:
            for holder in self.owner.spare_holders(state, "acme"):
                self._on_recall(holder, "acme")

    def hear(self, worker: Worker) -> None:
        """The owner reads everything `worker` sent, if they are connected."""
        self.come_back()
        while worker.sent:
            message = worker.sent.popleft()
            if isinstance(message, Return):
                self.owner.give_back(worker.state, message)
                self.retry()
            elif isinstance(message, Ask):
                self.parked[worker.state] = message
                self._try(worker.state, is_final=False)

    def recount(self) -> None:
        """Reports first, the meter after."""
        self.come_back()  # a worker that says hello meanwhile is counted twice: too high, never too low
        if not self.owner.needs_recount():
            return
        sequence = self.owner.begin_recount()
        for worker in self.workers:
            while worker.answers:  # one stream: the request for a report comes behind them
                self.deliver(worker)
            self.flush(worker)
            self.hear(worker)
            self.owner.report(worker.state, sequence, [worker.shelf.holding()], is_last=True)
        counts = [self.served.get(start // DAY_NS, 0) if start else 0 for _, start in self.owner.windows_to_count()]
        self.owner.finish_recount(counts)

    # -- what the keeper does ------------------------------------------------------------------------------------------

    def register(self) -> None:
        self.sessions += 1
        self.session = f"{self.name}-{self.sessions}"
        store, clock = self.world.store, self.world.clock
        command = Command("register", "", [store.run_id])
        (reply,) = store.run(self.name, self.session, f"epoch-{self.session}", [command])
        assert not isinstance(reply, CommandFailed), reply
        registered = read_registered(reply)
        self.owner.on_registered(registered.epoch, registered.now_ns, clock.wall_ns())

    def carry(self, *, lost: str = "") -> None:
        """A registration, or else one batch and a beat. `lost`: "before" it is done, "after", or done "late"."""
        if not self.owner.is_registered:
            self.register()
            return
        batch = self.owner.take_batch()
        commands = [one.command for one in batch]
        if lost:
            if lost == "after":
                self.world.store.run(self.name, self.session, self.owner.epoch, commands)
            elif lost == "late":
                self.late.append((self.session, self.owner.epoch, commands))
            self.owner.on_lost(batch)
            return
        beat = Command("beat", "", [int(self.owner.has_told_slots), int(self.owner.is_complete)])
        replies = self.world.store.run(self.name, self.session, self.owner.epoch, [*commands, beat])
        self._apply(batch, replies)

    def _apply(self, batch: Sequence[Errand], replies: list[Reply]) -> None:
        beaten = replies.pop()
        assert not isinstance(beaten, CommandFailed), beaten
        try:
            self.owner.on_replies(batch, replies)
            self.owner.on_beat(read_beat(beaten), self.world.clock.wall_ns())
        except SessionLost:
            self.owner.on_lost([])

    def do_late(self) -> None:
        """What an old connection still had in its buffers is done now; nobody reads the replies."""
        late, self.late = self.late, []
        for session, epoch, commands in late:
            self.world.store.run(self.name, session, epoch, commands)

    # -- what workers do -----------------------------------------------------------------------------------------------

    def arrive(self, worker: Worker, count: int) -> None:
        now_ns = self.world.clock.monotonic_ns()
        for _ in range(count):
            grant = None if worker.shelf.waiters else worker.shelf.try_take(now_ns)
            if grant is not None:
                self._admit(worker, grant, now_ns)
            elif self.is_back:  # else refused: nobody to ask
                worker.shelf.waiters.append(lambda decision: None)

    def _admit(self, worker: Worker, grant: Grant, at_ns: int) -> None:
        worker.flights.append(Flight(grant, self.world.day))
        self.world.admit(at_ns)

    def flush(self, worker: Worker) -> None:
        self.come_back()
        ask = worker.shelf.take_ask(self.world.clock.monotonic_ns())
        worker.sent.extend(worker.shelf.take_returns(slots_kept=0, is_all=False))
        if ask is not None:
            worker.sent.append(ask)

    def deliver(self, worker: Worker) -> None:
        """`worker` reads its oldest answer."""
        if not worker.answers:
            return
        decided_ns, answer = worker.answers.popleft()
        now_ns, wall_ns = self.world.clock.monotonic_ns(), self.world.clock.wall_ns()
        for _, decision in worker.shelf.take_answer(answer, now_ns, wall_ns):
            if isinstance(decision, Refusal):
                self.world.refused[decision.code] += 1
            else:
                self._admit(worker, decision, decided_ns)
        while worker.shelf.waiters:
            grant = worker.shelf.try_take(now_ns)
            if grant is None:
                break
            worker.shelf.waiters.popleft()
            self._admit(worker, grant, now_ns)

    def end(self, worker: Worker, *, is_counted: bool) -> None:
        if not worker.flights:
            return
        flight = worker.flights.pop(0)
        worker.shelf.end_call()
        if is_counted:
            self.served[flight.day] = self.served.get(flight.day, 0) + 1
        else:
            self.world.counted[flight.day] -= 1
            assert isinstance(flight.grant.lease, Lease)
            if worker.shelf.is_capped:
                worker.shelf.put_back(flight.grant.lease, 1)

    # -- deaths --------------------------------------------------------------------------------------------------------

    def kill_worker(self, at: int) -> None:
        """Its calls end unserved; the owner notices."""
        self.come_back()
        dead = self.workers[at]
        self.world.forget(dead)
        self.parked.pop(dead.state, None)
        self.owner.goodbye(dead.state)
        self.workers[at] = self._new_worker()
        self.owner.hello(self.workers[at].state, ())

    def restart_owner(self) -> None:
        """It dies with all that was on its way; workers tell a new one what they hold."""
        self._new_owner()
        for worker in self.workers:
            worker.shelf.give_up()
            worker.sent.clear()
            worker.answers.clear()
            worker.state = WorkerState()
        self.is_back = False

    def come_back(self) -> None:
        """Workers have found the new owner."""
        if self.is_back:
            return
        self.is_back = True
        for worker in self.workers:
            self.owner.hello(worker.state, [worker.shelf.renew(self.world.clock.monotonic_ns())])
        self.owner.settle()

    def restart(self) -> None:
        """The whole machine: its calls end unserved, what it served is in its logs."""
        for worker in self.workers:
            self.world.forget(worker)
        self.workers = [self._new_worker() for _ in self.workers]
        self.restart_owner()
        self.come_back()


class World:
    """All hosts, and the truth."""

    def __init__(self, server: Valkey, plan: Plan, *, hosts: int = 2, workers: int = 2, has_meter: bool = True) -> None:
        self.plan = plan
        self.store = StoreClient(server)
        self.store.client.flushall()
        self.clock = StoreClock(server)
        self.admitted: list[int] = []
        self.refused: Counter[str] = Counter()
        #: Calls that count, by day: in flight or served.
        self.counted: Counter[int] = Counter()
        self.hosts = [Host(self, f"host{at}", workers, has_meter=has_meter) for at in range(hosts)]
        for host in self.hosts:
            host.register()
        self.clock.show()
        self.catch_up()

    def close(self) -> None:
        self.clock.close()
        self.store.close()

    @property
    def day(self) -> int:
        return self.clock.wall_ns() // DAY_NS

    def admit(self, at_ns: int) -> None:
        self.admitted.append(at_ns)
        self.counted[self.day] += 1

    def forget(self, worker: Worker) -> None:
        for flight in worker.flights:
            self.counted[flight.day] -= 1
        worker.flights.clear()

    def catch_up(self) -> None:
        """Every host notices what happened to the store, and counts where it must: two rounds, for each other."""
        for _ in range(4):
            for host in self.hosts:
                host.come_back()
                host.carry()
                host.recount()
                host.carry()

    def flush_store(self, *, is_restarted: bool = False) -> None:
        """The store loses everything; hosts notice when they carry the next batch."""
        if is_restarted:
            self.store.run_id += "+"
            for host in self.hosts:
                host.owner.on_lost([])
        self.store.client.flushall()
        self.clock.show()

    def pass_time(self, duration_ns: int) -> None:
        """Hosts that are up beat far more often than the store settles, workers come back far sooner."""
        for host in self.hosts:
            host.come_back()
            for _ in range(3):  # finds out, registers, tells what it holds
                host.carry()
        self.clock.advance(duration_ns)
        for host in self.hosts:
            for _ in range(3 if duration_ns >= LEASE_S * S else 1):  # else the session has ended meanwhile
                host.carry()

    def quiet(self) -> None:
        """All calls end, all leases go back, every count is taken."""
        for host in self.hosts:
            host.do_late()
        for _ in range(3):
            self.clock.advance(2 * S)
            for host in self.hosts:
                host.come_back()
                host.retry(is_final=True)
                for worker in host.workers:
                    while worker.answers:
                        host.deliver(worker)
                    if not worker.shelf.is_asking:
                        worker.shelf.waiters.clear()
                    while worker.flights:
                        host.end(worker, is_counted=True)
                    worker.shelf.drop_all()
                    worker.sent.extend(worker.shelf.take_returns(slots_kept=0, is_all=True))
                    host.hear(worker)
            self.catch_up()

    # -- truth ---------------------------------------------------------------------------------------------------------

    def in_flight(self) -> int:
        return sum(len(worker.flights) for host in self.hosts for worker in host.workers)

    def check(self) -> None:
        plan = self.plan
        if plan.concurrency is not None:
            assert self.in_flight() <= plan.concurrency
        if plan.calls_per_day is not None:
            assert self.counted[self.day] <= plan.calls_per_day

    def check_rate(self) -> None:
        """No window, however long, holds more than the plan allows."""
        if self.plan.rate_calls is None:
            return
        interval_scaled = S * self.plan.rate_window_s
        instants = sorted(self.admitted)
        lowest = None
        for at, instant_ns in enumerate(instants):
            # (calls before this one) * interval - instant, in scaled units: its least value begins the worst window.
            scaled = at * interval_scaled - instant_ns * self.plan.rate_calls
            lowest = scaled if lowest is None else min(lowest, scaled)
            following = (at + 1) * interval_scaled - instant_ns * self.plan.rate_calls
            assert following - lowest <= self.plan.burst * interval_scaled, f"call {at} at {instant_ns}"

    def check_nothing_is_stranded(self) -> None:
        """After `quiet`: no slot is held, and the store's count of the day is the truth."""
        fields = self.store.fields()
        for host in self.hosts:
            # What an earlier session left counts no more.
            assert not fields.get(f"s:{host.name}", "").startswith(f"{host.session} "), fields
        if self.plan.calls_per_day is not None and "ds" in fields and int(fields["ds"]) * 1000 // DAY_NS == self.day:
            assert int(fields["du"]) == self.counted[self.day]
