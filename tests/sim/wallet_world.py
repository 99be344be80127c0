"""Owns a seeded world of prepaid: real purses, owner, lease rules, ledger and intake; a scheduler that breaks things.

Messages, orders on their way to the meter, usage logs and processes are lists that a step moves on, loses or kills.
What must hold after every step is in `check`; what must hold when everything has come to rest in `come_to_rest`.
"""

import random
import sqlite3
from collections import deque
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

from billing.events import Ended, Outcome, Reason, Record, Sent, Served
from billing.funds import FundsDesk
from billing.intake import Intake
from billing.invoices.desk import Desk
from billing.invoices.verbs import all_verbs
from billing.ledger.connect import statements
from billing.ledger.leases import end_log
from billing.ledger.port import Source
from billing.ledger.schema import schema_sql
from billing.ledger.sqlite import SqlLedger
from billing.ledger.verify import verify_ledger
from billing.rating import Price, PriceBook
from billing.wallets.store import wallet_state
from gateway.clock import FakeClock
from gateway.errors import Refusal
from gateway.quota.funds import Purse
from gateway.quota.funds_client import FundsClient
from gateway.quota.funds_protocol import decode_from_owner
from gateway.quota.funds_server import FundsServer, MeterAway, WorkerLink
from gateway.quota.protocol import FrameSplitter

TENANT: Final = "acme"
#: A call costs as many nanos as it has rows.
BOOK: Final = PriceBook(version=1, currency="USD", default=Price(per_row_nanos=1))
ROWS_MAX: Final = 60


class Loop:
    """The part of an event loop that purses and owner use: what is due next, and timers by the world's clock."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self._soon: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self.timers: list[tuple[int, Callable[..., Any], tuple[Any, ...]]] = []

    def call_soon(self, callback: Callable[..., Any], *arguments: Any) -> None:
        self._soon.append((callback, arguments))

    def call_later(self, delay_s: float, callback: Callable[..., Any], *arguments: Any) -> "Loop":
        self.timers.append((self._clock.monotonic_ns() + int(delay_s * 1e9), callback, arguments))
        return self

    def cancel(self) -> None:
        """A timer's; those of the dead are dropped with their loop."""

    def create_task(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        """Connections are the world's to make."""
        coroutine.close()

    def run(self) -> None:
        while self._soon:
            callback, arguments = self._soon.popleft()
            callback(*arguments)

    def fire(self) -> None:
        now_ns = self._clock.monotonic_ns()
        due = [one for one in self.timers if one[0] <= now_ns]
        self.timers = [one for one in self.timers if one[0] > now_ns]
        for _, callback, arguments in due:
            callback(*arguments)


class Pipe:
    """A transport whose bytes wait until the world delivers them."""

    def __init__(self) -> None:
        self.sent: deque[bytes] = deque()
        self.is_cut = False

    def write(self, data: bytes) -> None:
        self.sent.append(data)

    def is_closing(self) -> bool:
        return self.is_cut

    def get_write_buffer_size(self) -> int:
        return 0

    def abort(self) -> None:
        """An owner that is silent for long is cut off; the world connects again."""
        self.is_cut = True


class OwnersPipe(Pipe):
    """The owner cuts off only who breaks the protocol."""

    def abort(self) -> None:
        raise AssertionError("a worker broke the protocol")


class Side:
    """A worker's end of a connection, as its client sees it."""

    def __init__(self) -> None:
        self.transport = Pipe()
        self.frames = FrameSplitter()


class Call:
    """A call that waits for money, or runs."""

    def __init__(self, worker: "Worker", nanos: int) -> None:
        self.worker = worker
        self.nanos = nanos
        self.is_reserved = False
        self.refusal: Refusal | None = None

    def on_funds(self, refusal: Refusal | None) -> None:
        self.refusal, self.is_reserved = refusal, refusal is None


class Worker:
    """One life of a worker: its purse, its usage log, its connection."""

    def __init__(self, world: "World", instance: str, epoch: int) -> None:
        self.world = world
        self.source = Source(instance, epoch)
        self.loop = Loop(world.clock)
        self.client = FundsClient(
            Path("nowhere"),
            instance=instance,
            epoch=epoch,
            clock=world.clock,
            loop=self.loop,  # type: ignore[arg-type]
        )
        purse = self.client.purse(TENANT, "USD")
        assert purse is not None
        self.purse: Purse = purse
        self.log: list[Record] = []
        self.is_dead = False
        self.calls: list[Call] = []
        self.side: Side | None = None
        self.link: WorkerLink | None = None

    def connect(self, owner: FundsServer) -> None:
        self.side, self.link = Side(), WorkerLink(owner)
        self.link.connection_made(OwnersPipe())  # type: ignore[arg-type]
        self.client.on_connected(self.side)  # type: ignore[arg-type]

    def disconnect(self) -> None:
        if self.link is not None:
            self.link.transport.is_cut = True  # type: ignore[attr-defined]
            self.link.connection_lost(None)
        if self.side is not None and not self.is_dead:
            self.client.on_disconnected()
        self.side = self.link = None

    def begin(self, nanos: int) -> None:
        call = Call(self, nanos)
        now_ns = self.world.clock.monotonic_ns()
        if self.client.try_reserve(self.purse, nanos, now_ns):
            call.is_reserved = True
        else:
            call.refusal = self.client.ask(self.purse, nanos, now_ns, call.on_funds)
        self.calls.append(call)

    def end(self, call: Call, rng: random.Random) -> None:
        """Answered well, failed, or the caller left at the wrong moment."""
        self.calls.remove(call)
        if not call.is_reserved:
            return
        kind = rng.choice(("ok", "ok", "ok", "failed", "gone"))
        cost = 0 if kind == "failed" else rng.randint(0, call.nanos)
        if kind != "failed":
            self.log.append(self.world.served(cost))
        if kind == "gone":
            self.log.append(Ended(served_seq=len(self.log), cause="gone_before_durable", bytes_sent=0))
        self.client.settle(self.purse, call.nanos, cost)

    def mark(self) -> None:
        if self.log:
            self.log.append(Sent(first_seq=1, last_seq=len(self.log)))


class Meter:
    """Reads logs and carries out orders, on the world's ledger; `crash` loses all that is not committed."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.desk = FundsDesk(world.ledger, world.clock.wall_ns)
        self.crash()

    def crash(self) -> None:
        positions = self._world.ledger.state().positions
        self._read = {source: position.seq for source, position in positions.items()}
        self._ended = {source for source, position in positions.items() if position.is_ended}
        self._intake = Intake(positions)

    def run(self, rng: random.Random | None = None) -> None:
        """Read on, some or all of it, and post; with chance the crash comes between the two."""
        for worker in self._world.workers:
            source, at = worker.source, self._read.get(worker.source, 0)
            upto = len(worker.log) if rng is None else rng.randint(at, len(worker.log))
            if upto > at:
                self._intake.feed(source, [(seq + 1, worker.log[seq]) for seq in range(at, upto)])
                self._read[source] = upto
            if worker.is_dead and upto == len(worker.log) and source not in self._ended:
                self._intake.end(source, upto)
                self._ended.add(source)
        for batch in self._intake.take_batches(lambda _: None, self._world.clock.wall_ns()):
            if rng is not None and rng.random() < 0.1:
                self.crash()
                return
            self._world.ledger.post(batch)
        if rng is not None and rng.random() < 0.1:
            self.crash()


class MeterLink:
    """The owner's way to the meter: questions may be lost, answers as well, and both may come late."""

    def __init__(self, world: "World") -> None:
        self._world = world

    async def ask(self, request: dict[str, Any]) -> list[tuple[int, int, bool]]:
        rng = self._world.rng
        fate = "" if rng is None else rng.choices(("", "lost", "late", "unanswered"), (80, 3, 3, 3))[0]
        if fate == "late":
            self._world.late.append(request)
        if fate in {"lost", "late"}:
            raise MeterAway(fate)
        answer = self._world.meter.desk.run(request["orders"], request["workers"])
        if fate == "unanswered":
            raise MeterAway(fate)
        return answer

    def close(self) -> None:
        """Nothing is open."""


class World:
    """Everything, and the steps. `rng` None: nothing breaks any more."""

    def __init__(self, seed: int, *, workers: int = 3, frees_early: bool = False) -> None:
        self.rng: random.Random | None = random.Random(seed)
        self.frees_early = frees_early
        self.clock = FakeClock()
        self.ledger = _new_ledger()
        Desk(self.ledger, all_verbs(), self.clock.wall_ns)
        self.ledger.prices(BOOK)
        self._numbers = 0
        self.funded = 0
        self.late: list[dict[str, Any]] = []
        self.workers: list[Worker] = []
        self.meter = Meter(self)
        self.owner_loop = Loop(self.clock)
        self.owner = self._new_owner()
        for index in range(workers):
            self._new_worker(f"w{index}", 1)

    # -- parts ---------------------------------------------------------------------------------------------------------

    def _new_owner(self) -> FundsServer:
        self.owner_loop = Loop(self.clock)
        owner = FundsServer(self.owner_loop, Path("nowhere"))  # type: ignore[arg-type]
        owner._meter = MeterLink(self)  # type: ignore[assignment]
        return owner

    def _new_worker(self, instance: str, epoch: int) -> None:
        worker = Worker(self, instance, epoch)
        self.workers.append(worker)
        worker.connect(self.owner)

    @property
    def living(self) -> list[Worker]:
        return [worker for worker in self.workers if not worker.is_dead]

    def served(self, cost: int) -> Served:
        self._numbers += 1
        return Served(
            call_id=self._numbers.to_bytes(16, "big"),
            tenant=TENANT,
            key_id="key",
            plan="wallet",
            model="m",
            model_version="1",
            price_version=1,
            t_ns=self.clock.wall_ns(),
            outcome=int(Outcome.OK),
            reason=int(Reason.PREPAID),
            rows=cost,
            compute_ns=0,
            request_bytes=1,
            reply_bytes=1,
            charge_nanos=cost,
            currency="USD",
            protocol=0,
        )

    # -- steps ---------------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """One thing happens somewhere, most likely something ordinary."""
        rng = self.rng
        assert rng is not None
        worker = rng.choice(self.living)
        what = rng.choices(
            ("call", "end", "mark", "talk", "meter", "tick", "top_up", "worker", "owner", "crash", "late"),
            (30, 25, 8, 30, 8, 6, 2, 1, 1, 1, 2),
        )[0]
        if what == "call":
            worker.begin(rng.randint(1, ROWS_MAX))
        elif what == "end":
            ready = [call for call in worker.calls if call.is_reserved or call.refusal is not None]
            if ready:
                worker.end(rng.choice(ready), rng)
        elif what == "mark":
            worker.mark()
        elif what == "talk":
            self.talk(rng)
        elif what == "meter":
            self.meter.run(rng)
        elif what == "tick":
            self.tick(rng.choice((50, 250, 250, 1_000, 61_000)))
        elif what == "top_up":
            self.top_up(rng.randint(1, 400))
        elif what == "worker":
            self.kill_worker(worker)
        elif what == "owner":
            self.kill_owner()
        elif what == "crash":
            self.meter.crash()
        elif self.late:
            request = self.late.pop(rng.randrange(len(self.late)))
            self.meter.desk.run(request["orders"], request["workers"])

    def top_up(self, nanos: int) -> None:
        self.funded += nanos
        order = {"tenant": TENANT, "currency": "USD", "amount_nanos": nanos, "reason": "test"}
        Desk(self.ledger, all_verbs(), self.clock.wall_ns).run("wallet.grant", f"grant-{self.funded}", order)

    def kill_worker(self, worker: Worker) -> None:
        worker.is_dead = True
        worker.disconnect()
        if self.frees_early:  # the planted bug: the lease goes back before its log was read to the end
            with self.ledger.journal() as journal:
                end_log(journal, journal.names.log(worker.source), self.clock.wall_ns())
        self._new_worker(worker.source.instance, worker.source.epoch + 1)

    def kill_owner(self) -> None:
        """Its orders may be on their way to the meter: they arrive later, when somebody else speaks."""
        orders = [one for one in self.owner._queue if self.rng is not None and self.rng.random() < 0.5]
        if orders:
            saved, self.rng = self.rng, _AlwaysLate()  # type: ignore[assignment]
            _finish(self.owner._carry_out(orders))
            self.rng = saved
        for worker in self.living:
            worker.disconnect()
        self.owner = self._new_owner()
        for worker in self.living:
            worker.connect(self.owner)

    def talk(self, rng: random.Random | None = None) -> None:
        """Bytes move one way or the other; with `rng` of some connections only."""
        for worker in self.living:
            worker.loop.run()
            side, link = worker.side, worker.link
            assert side is not None
            assert link is not None
            while side.transport.sent and (rng is None or rng.random() < 0.7):
                link.data_received(side.transport.sent.popleft())
            inbox = link.transport.sent  # type: ignore[attr-defined]
            while inbox and (rng is None or rng.random() < 0.7):
                for payload in side.frames.feed(inbox.popleft()):
                    for message in decode_from_owner(payload):
                        worker.client.on_message(message)
            worker.loop.run()
        if rng is None or rng.random() < 0.7:
            while self.owner._queue:
                asked, self.owner._queue = self.owner._queue, []
                _finish(self.owner._carry_out(asked))

    def tick(self, ms: int) -> None:
        self.clock.advance(ms * 1_000_000)
        self.owner_loop.fire()
        for worker in self.living:
            worker.loop.fire()
            if worker.side is not None and worker.side.transport.is_cut:
                worker.disconnect()
                worker.connect(self.owner)

    # -- what must hold ------------------------------------------------------------------------------------------------

    @property
    def db(self) -> sqlite3.Connection:
        return self.ledger._db

    def check(self) -> None:
        """I10 after every step: nothing below zero, and nobody may spend what the ledger does not hold for him."""
        state = wallet_state(self.db, TENANT, "USD")
        assert state.balance_nanos >= 0
        assert state.held_nanos >= 0
        assert state.available_nanos >= 0
        (spent,) = self.db.execute("SELECT COALESCE(SUM(charge_nanos), 0) FROM usage_event").fetchone()
        assert state.balance_nanos == self.funded - spent
        assert self.db.execute("SELECT reason FROM quarantine").fetchall() == []
        rows = self.db.execute("SELECT instance, epoch, ceiling_nanos FROM fund_lease JOIN log USING (log_id)")
        ceilings = {(instance, epoch): ceiling for instance, epoch, ceiling in rows}
        for worker in self.living:
            purse = worker.purse
            assert purse.room >= 0
            assert purse.ceiling <= ceilings.get(worker.source, 0)

    def come_to_rest(self) -> None:
        """All calls end, everything is read and returned: I11, and nothing is stranded."""
        self.rng = None
        rng = random.Random(0)
        for _ in range(40):
            for worker in self.living:
                for call in [one for one in worker.calls if one.is_reserved or one.refusal is not None]:
                    worker.end(call, rng)
            self.tick(250)
            self.talk()
        assert not any(worker.calls for worker in self.living), "a call waits for ever"
        for worker in self.living:
            worker.mark()
        for _ in range(3):
            self.meter.run()
            self.check()
        state = wallet_state(self.db, TENANT, "USD")
        assert (state.held_nanos, state.available_nanos) == (0, state.balance_nanos)
        assert self.db.execute("SELECT COUNT(*) FROM transfer_open").fetchone() == (0,)
        ends = self.db.execute(
            "SELECT p.transfer_id, COUNT(e.transfer_id) FROM transfer p LEFT JOIN transfer e"
            " ON e.pending_id = p.transfer_id WHERE p.phase = 'pending' GROUP BY p.transfer_id"
        ).fetchall()
        assert {count for _, count in ends} <= {1}
        assert verify_ledger(self.db).problems == ()
        if state.balance_nanos:
            worker = self.living[0]
            self.tick(250)
            worker.begin(state.balance_nanos)
            for _ in range(8):
                self.talk()
                self.tick(50)
            (call,) = worker.calls
            assert call.is_reserved, "money that is there cannot be spent"


class _AlwaysLate:
    """Fate of the orders that an owner sent before it was killed."""

    def choices(self, *_: object) -> list[str]:
        return ["late"]


def _finish(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run what awaits nothing that waits."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise AssertionError("it waits for something real")


def _new_ledger() -> SqlLedger:
    db = sqlite3.connect(":memory:", isolation_level=None)
    for statement in statements(schema_sql()):
        db.execute(statement)
    return SqlLedger(db)
