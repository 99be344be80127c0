"""I12 and I13 over the whole of quotas: several workers' shelves, one owner, delayed answers, restarts, deaths.

The world is driven by hypothesis; truth is kept apart (admitted instants, calls in flight, served calls) and compared
with the limits after every step. Messages of a worker keep their order but may be delayed by any number of steps.
"""

import random
from collections import Counter, deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.clock import FakeClock
from gateway.errors import Refusal
from gateway.quota.owner import Owner, Parked, WorkerState
from gateway.quota.protocol import Answer, Ask, FromWorker, Return
from gateway.quota.shelf import Shelf
from gateway.quota.store import Grant
from gateway.snapshot import Plan, Tenant
from tests.unit.quota.plans import S

TENANT = Tenant(tenant="acme", plan="plan")
MS = 1_000_000


@dataclass
class Flight:
    """A call that was admitted and has not ended."""

    grant: Grant
    day: int


@dataclass
class Worker:
    shelf: Shelf
    state: WorkerState = field(default_factory=WorkerState)
    sent: deque[FromWorker] = field(default_factory=deque)
    answers: deque[tuple[int, Answer]] = field(default_factory=deque)
    flights: list[Flight] = field(default_factory=list)


class World:
    def __init__(self, plan: Plan, workers: int) -> None:
        self.plan = plan
        self.clock = FakeClock()
        self.admitted: list[int] = []
        self.refused = 0
        #: Calls that count, by day: in flight or served.
        self.counted: dict[int, int] = {}
        self.served: dict[int, int] = {}
        self.owner = self.new_owner()
        self.finish_start()
        self.workers = [self.new_worker() for _ in range(workers)]

    def new_owner(self) -> Owner:
        owner = Owner(self.clock, has_meter=True)
        owner.set_policy([TENANT], [self.plan])
        return owner

    def new_worker(self) -> Worker:
        worker = Worker(Shelf("acme", self.plan, self.clock.monotonic_ns()))
        self.owner.hello(worker.state, ())
        return worker

    @property
    def day(self) -> int:
        return self.clock.wall_ns() // (86_400 * S)

    # -- steps ---------------------------------------------------------------------------------------------------------

    def arrive(self, worker: Worker, count: int) -> None:
        for _ in range(count):
            grant = None if worker.shelf.waiters else worker.shelf.try_take(self.clock.monotonic_ns())
            if grant is not None:
                self.admit(worker, grant, self.clock.monotonic_ns())
            else:
                worker.shelf.waiters.append(lambda decision: None)

    def admit(self, worker: Worker, grant: Grant, at_ns: int) -> None:
        worker.flights.append(Flight(grant, self.day))
        self.admitted.append(at_ns)
        self.counted[self.day] = self.counted.get(self.day, 0) + 1

    def flush(self, worker: Worker) -> None:
        ask = worker.shelf.take_ask(self.clock.monotonic_ns())
        worker.sent.extend(worker.shelf.take_returns(slots_kept=0, is_all=False))
        if ask is not None:
            worker.sent.append(ask)

    def hear(self, worker: Worker) -> None:
        """The owner reads everything `worker` sent."""
        while worker.sent:
            message = worker.sent.popleft()
            if isinstance(message, Return):
                self.owner.give_back(worker.state, message)
            elif isinstance(message, Ask):
                answer = self.owner.ask(worker.state, message, is_final=True)
                assert not isinstance(answer, Parked)
                worker.answers.append((self.clock.monotonic_ns(), answer))

    def deliver(self, worker: Worker) -> None:
        """`worker` reads its oldest answer."""
        if not worker.answers:
            return
        decided_ns, answer = worker.answers.popleft()
        now_ns, wall_ns = self.clock.monotonic_ns(), self.clock.wall_ns()
        for _, decision in worker.shelf.take_answer(answer, now_ns, wall_ns):
            if isinstance(decision, Refusal):
                self.refused += 1
            else:
                self.admit(worker, decision, decided_ns)
        while worker.shelf.waiters:
            grant = worker.shelf.try_take(now_ns)
            if grant is None:
                break
            worker.shelf.waiters.popleft()
            self.admit(worker, grant, now_ns)

    def end(self, worker: Worker, *, is_counted: bool) -> None:
        if not worker.flights:
            return
        flight = worker.flights.pop(0)
        lease = flight.grant.lease
        worker.shelf.end_call()
        if is_counted:
            self.served[flight.day] = self.served.get(flight.day, 0) + 1
        else:
            self.counted[flight.day] -= 1
            if worker.shelf.is_capped:
                worker.shelf.put_back(lease, 1)  # type: ignore[arg-type]

    def kill(self, at: int) -> None:
        """A worker dies: its calls end unserved; the owner notices, and later counts anew."""
        dead = self.workers[at]
        for flight in dead.flights:
            self.counted[flight.day] -= 1
        self.owner.goodbye(dead.state)
        self.workers[at] = self.new_worker()

    def restart(self) -> None:
        """The owner dies with all that was on its way; workers tell a new one what they hold."""
        self.owner = self.new_owner()
        for worker in self.workers:
            worker.shelf.give_up()
            worker.sent.clear()
            worker.answers.clear()
            worker.state = WorkerState()
            self.owner.hello(worker.state, [worker.shelf.renew(self.clock.monotonic_ns())])
        self.finish_start()

    def finish_start(self) -> None:
        self.owner.settle()
        self.recount()

    def recount(self) -> None:
        if not self.owner.needs_recount():
            return
        sequence = self.owner.begin_recount()
        for worker in self.workers if hasattr(self, "workers") else []:
            self.flush(worker)
            self.hear(worker)
            self.owner.report(worker.state, sequence, [worker.shelf.holding()], is_last=True)
        counts = [self.served.get(start // (86_400 * S), 0) for _, start in self.owner.windows_to_count()]
        self.owner.finish_recount(counts)

    # -- truth ---------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        plan = self.plan
        in_flight = sum(len(worker.flights) for worker in self.workers)
        if plan.concurrency is not None:
            assert in_flight <= plan.concurrency
        if plan.calls_per_day is not None:
            assert self.counted.get(self.day, 0) <= plan.calls_per_day
        for worker in self.workers:
            assert worker.shelf.in_flight == len(worker.flights)

    def check_rate(self) -> None:
        if self.plan.rate_calls is not None:
            by_instant = sorted(Counter(self.admitted).items())
            for first in range(len(by_instant)):
                total = 0
                for at_ns, count in by_instant[first:]:
                    total += count
                    assert (total - self.plan.burst) * S <= (at_ns - by_instant[first][0]) * self.plan.rate_calls


plans = st.builds(
    lambda rate, concurrency, day: Plan(
        name="plan",
        version=1,
        pricing="free",
        rate_calls=rate[0],
        burst=rate[1],
        concurrency=concurrency,
        calls_per_day=day,
        store_down="lease" if day is not None and day % 2 else "closed",
    ),
    st.sampled_from([(None, 1), (5, 3), (100, 80), (1000, 90), (20_000, 2000)]),
    st.sampled_from([None, 1, 5, 70, 200]),
    st.sampled_from([None, 1, 20, 1101, 5000]),
)
steps = st.lists(
    st.tuples(
        st.sampled_from("aaaafffhhhddddeexttkrc"),
        st.integers(0, 2),
        st.integers(1, 40),
    ),
    max_size=80,
)


def run(plan: Plan, script: list[tuple[str, int, int]]) -> World:
    world = World(plan, workers=3)
    for verb, at, count in script:
        worker = world.workers[at]
        match verb:
            case "a":
                world.arrive(worker, count)
            case "f":
                world.flush(worker)
            case "h":
                world.hear(worker)
            case "d":
                world.deliver(worker)
            case "e" | "x":
                for _ in range(count):
                    world.end(worker, is_counted=verb == "e")
            case "t":
                world.clock.advance(count * count * MS)
            case "k":
                world.kill(at)
            case "r":
                world.restart()
            case "c":
                world.recount()
        world.check()
    world.check_rate()
    return world


@settings(max_examples=150, deadline=None)
@given(plans, steps)
def test_no_limit_is_ever_passed_whatever_happens(plan: Plan, script: list[tuple[str, int, int]]) -> None:
    run(plan, script)


def test_the_world_can_reach_every_limit() -> None:
    """The property above would hold vacuously in a world that admits nothing."""
    plan = Plan(name="plan", version=1, pricing="free", concurrency=70, calls_per_day=1101)
    rounds = [("a", at, 40) for at in (0, 1, 2)] + [(verb, at, 40) for verb in "fhdefhd" for at in (0, 1, 2)]
    world = run(plan, rounds * 40)
    # What a worker leased and did not spend goes back; then the cap is reached to the last call.
    for worker in world.workers:
        worker.shelf.drop_all()
        world.flush(worker)
        world.hear(worker)
    for worker in world.workers:
        world.arrive(worker, 40)
        world.flush(worker)
        world.hear(worker)
        world.deliver(worker)
    assert world.counted[world.day] == 1101
    assert world.refused > 0


@pytest.mark.parametrize("seed", range(40))
def test_no_limit_is_passed_in_long_runs_under_load(seed: int) -> None:
    """Longer than hypothesis goes, with demand always above the limits; the seed names the run."""
    rng = random.Random(seed)
    rate, burst = rng.choice([(None, 1), (100, 80), (1000, 90), (2000, 500)])
    plan = Plan(
        name="plan",
        version=1,
        pricing="free",
        rate_calls=rate,
        burst=burst,
        concurrency=rng.choice([None, 5, 70, 200]) if rate is None else None,
        calls_per_day=rng.choice([1101, 2000]) if rate is None else None,
        store_down=rng.choice(["lease", "closed"]),
    )
    script = []
    for _ in range(250):
        verb = rng.choices("afhdextkrc", weights=(8, 6, 6, 8, 3, 1, 4, 0.3, 0.3, 0.3))[0]
        script.append((verb, rng.randrange(3), rng.randint(1, 40 if verb != "t" else 12)))
    run(plan, script)
