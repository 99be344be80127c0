"""The whole way of a record in one simulated machine: real log, reader, pump and rules over fake disk, clock and net.

`World` has the worker, the disk and the clock. Here the meter is the real `Pump`; between it and the store (the
ledger's in-memory twin) is a link that loses questions and answers, and at which the meter dies. `check` holds the
invariants of MONEY.md §6 after every step.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from billing.books import Books
from billing.events import encode
from billing.ledger.memory import MemoryLedger
from billing.ledger.port import Batch, LedgerState, LedgerUnavailable, PostReport, Source
from billing.packed import served_of
from billing.pump import Pump
from billing.rating import PriceBook
from billing.unpacker import Unpacker
from billing.usagelog.reader import UsageReader
from tests.sim.world import INSTANCE, ROOT, Key, Violation, World
from tests.unit.billing.making import BOOK, call

MODELS = ("ocr", "file_type", "other")
#: Chances of a post: the question is lost, its answer is lost, the meter dies before the commit, after it.
FAULTS = (0.12, 0.12, 0.1, 0.1)


class MeterDied(Exception):
    """The meter's process was killed."""


class Link:
    """The `Ledger` as the meter reaches it."""

    def __init__(self, store: MemoryLedger, rng: Random) -> None:
        self.store = store
        self.is_calm = False
        self.faults = {"question lost": 0, "answer lost": 0, "died before": 0, "died after": 0}
        self._rng = rng

    def post(self, batch: Batch) -> PostReport:
        fault = "" if self.is_calm else self._draw()
        if fault:
            self.faults[fault] += 1
        if fault == "question lost":
            raise LedgerUnavailable("simulated: the question was lost")
        if fault == "died before":
            raise MeterDied
        report = self._apply(batch)
        if fault == "answer lost":
            raise LedgerUnavailable("simulated: the answer was lost")
        if fault == "died after":
            raise MeterDied
        return report

    def _apply(self, batch: Batch) -> PostReport:
        return self.store.post(batch)

    def _draw(self) -> str:
        return self._rng.choices([*self.faults, ""], [*FAULTS, 1 - sum(FAULTS)])[0]

    def state(self) -> LedgerState:
        return self.store.state()

    def prices(self, book: PriceBook | None = None) -> dict[int, PriceBook]:
        return self.store.prices(book)

    def counts(self, windows: Sequence[tuple[str, int]]) -> list[int]:
        return self.store.counts(windows)

    def close(self) -> None:
        """The store outlives the meter."""


MakeLink = Callable[[MemoryLedger, Random], Link]
MakePump = Callable[[Link, UsageReader, Books, Any], Pump]


def honest_pump(link: Link, reader: UsageReader, books: Books, clock: Any) -> Pump:
    return Pump(link, reader, books, wall_ns=clock.wall_ns, monotonic_ns=clock.monotonic_ns)


class MoneyWorld(World):
    """`run(steps)` raises Violation. `make_link` and `make_pump` plant bugs."""

    def __init__(
        self,
        seed: int,
        *,
        make_link: MakeLink = Link,
        make_pump: MakePump = honest_pump,
        is_high_water: bool = False,
        **options: Any,
    ) -> None:
        self.store = MemoryLedger()
        self.store.prices(BOOK)
        self.link = make_link(self.store, Random(seed + 1))
        self._make_pump = make_pump
        self._is_high_water = is_high_water
        self._checked_tx = self._checked_calls = 0
        #: Epochs whose log was closed in order: nothing of them may be void.
        self.closed: set[Key] = set()
        super().__init__(seed, **options)

    def step(self) -> None:
        super().step()
        self.check()

    # The worker

    def _append(self) -> None:
        log = self.log
        assert log is not None
        if not log.is_accepting and (log.is_closing or self.rng.random() < 0.9):
            return
        key = (INSTANCE, log.epoch.number)
        for _ in range(self.rng.randrange(1, 5)):
            self._count += 1
            record = call(
                self._count,
                tenant=f"tenant-{self.rng.randrange(3)}",
                model=self.rng.choice(MODELS),
                rows=self.rng.randrange(1, 4),
            )
            seq = log.append(encode(record), lambda seq: self._on_durable(log, key, seq))
            self.appended[key][seq] = record

    def _flush(self) -> None:
        log = self.log
        super()._flush()
        if log is not None and self.log is None and log.is_closing and not self.fatal:
            self.closed.add((INSTANCE, log.epoch.number))
        if self.log is None:
            self.fatal.clear()

    # The meter

    def _new_reader(self) -> UsageReader:
        positions = {(at.instance, at.epoch): place.seq for at, place in self.store.state().positions.items()}
        if self._is_high_water and hasattr(self, "reader"):
            positions |= self.reader.delivered()
        reader = UsageReader(
            ROOT, positions, disk=self.disk, codec_for=self.codec_for, decode_all=Unpacker().decode_all
        )
        self.pump = self._make_pump(self.link, reader, Books(self.link, Path("/sim/snapshot")), self.clock)
        return reader

    def _meter(self) -> None:
        try:
            self.pump.run_once()
        except MeterDied:
            self._restart_meter()

    # The invariants

    def check(self) -> None:
        """I2, I3, I5, I7, I14 as far as they can be told now; only what is new is looked at again."""
        store = self.store
        for tx in store.transactions[self._checked_tx :]:
            if sum(line.amount_nanos for line in tx.lines):
                raise Violation(f"tx {tx.tx_id} does not sum to zero (I7)")
        self._checked_tx = len(store.transactions)
        if store.quarantined:
            raise Violation(f"an honest record is quarantined: {store.quarantined} (I5)")
        for source, seq, served in list(store.events.values())[self._checked_calls :]:
            key = (source.instance, source.epoch)
            if served_of(served) != self.appended.get(key, {}).get(seq):
                raise Violation(f"{key} {seq}: posted, and nobody recorded it (I2)")
            if seq not in self.acked[key]:
                raise Violation(f"{key} {seq}: posted, and its answer was never let go (I2)")
        self._checked_calls = len(store.events)
        if sum(tx.event_count for tx in store.transactions) != len(store.events):
            raise Violation("transactions and events differ in number (I3)")
        places = {(source, seq) for source, seq, _ in store.events.values()}
        if len(places) != len(store.events) or places & (store.voided.keys() | store.duplicates.keys()):
            raise Violation("a record has two fates (I3, I14)")

    def settle(self) -> None:
        """Stop, let the meter catch up undisturbed, and look for what is missing."""
        self._crash()
        self.link.is_calm = True
        self.pump.drain()
        self.check()
        status = self.pump.status()
        if status["pending"] or status["unposted"] or status["trouble"]:
            raise Violation(f"something is left at rest: {status} (I14)")
        for key, acked in self.acked.items():
            self._check_fates(key, acked)

    def _check_fates(self, key: Key, acked: set[int]) -> None:
        source = Source(*key)
        posted = {seq for at, seq, _ in self.store.events.values() if at == source}
        voided = {seq for at, seq in self.store.voided if at == source}
        missing = acked - posted - voided
        if missing:
            raise Violation(f"{key}: answered and neither posted nor void: {sorted(missing)} (I1)")
        if key in self.closed and voided:
            raise Violation(f"{key}: closed in order, and {sorted(voided)} are void (I1)")
        position = self.store.state().positions.get(source)
        if self.appended[key] and acked and (position is None or not position.is_ended):
            raise Violation(f"{key}: its end is not in the books (I15)")
        left = [path for path in self.disk.files if path.parent.name.isdecimal() and int(path.parent.name) == key[1]]
        if left and acked:
            raise Violation(f"{key}: fully posted, but not removed: {left} (I15)")
