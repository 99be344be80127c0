"""One simulated machine: a worker's usage log, a meter that reads it, faults, and the invariants between them.

Every action is drawn from one seeded `Random`; a failing seed replays exactly. The meter is modelled as far as the log
can tell: it reads, sometimes commits what it has read (its durable watermark), acknowledges only what it has committed,
and forgets the rest when it dies.
"""

from asyncio import AbstractEventLoop
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import cast

from billing.events import Closed, Ended, Sent, Served, encode
from billing.packed import AnyRecord
from billing.usagelog.framing import FrameCodec
from billing.usagelog.reader import Batch, Damaged, EpochEnded, UsageReader
from gateway.clock import FakeClock
from gateway.metering.log import LogLimits, UsageLog
from tests.sim.disk import Crash, SimDisk, Sync
from tests.sim.loop import SimLoop

ROOT = Path("/sim/usage")
INSTANCE = "w0"
LIMITS = LogLimits(segment_bytes=1024, unsynced_records_max=64)
Key = tuple[str, int]
CodecFor = Callable[[str, int], FrameCodec]


class Violation(AssertionError):
    """An invariant does not hold."""


def served(number: int, size: int) -> Served:
    """A record that tells its number, so that a wrong one is recognised."""
    return Served(
        call_id=number.to_bytes(16, "big"),
        tenant="t" * size,
        key_id="k",
        plan="p",
        model="m",
        model_version="1",
        price_version=1,
        t_ns=number,
        outcome=0,
        reason=0,
        rows=1,
        compute_ns=0,
        request_bytes=1,
        reply_bytes=1,
        charge_nanos=number,
        currency="EUR",
        protocol=0,
    )


class World:
    """`step()` until tired, then `settle()`; both raise Violation."""

    def __init__(
        self,
        seed: int,
        *,
        sync: Sync = Sync.HONEST,
        codec_for: CodecFor = FrameCodec,
        record_size_max: int = 200,
        is_flipping: bool = False,
        is_recycling: bool = False,
    ) -> None:
        self.rng = Random(seed)
        self.disk = SimDisk(self.rng, sync=sync)
        self.disk.is_recycling = is_recycling
        self.record_size_max = record_size_max
        self.is_flipping = is_flipping
        self.clock = FakeClock()
        self.codec_for = codec_for
        self.flips = 0
        self.fatal: list[Exception] = []
        #: What was appended and what was acknowledged, by epoch and number.
        self.appended: dict[Key, dict[int, Served]] = {}
        self.acked: dict[Key, set[int]] = {}
        self.ended_marks: dict[Key, set[int]] = {}
        #: What the meter has committed: records by number, and its watermark.
        self.committed: dict[Key, dict[int, AnyRecord]] = {}
        self.watermarks: dict[Key, int] = {}
        self.ends: dict[Key, EpochEnded] = {}
        self.damages: dict[Key, Damaged] = {}
        self._count = 1000
        self._read: list[Batch] = []
        self._finished: list[EpochEnded] = []
        self.loop = SimLoop(self.clock)
        self.log: UsageLog | None = None
        self.reader = self._new_reader()

    # The machine

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()
        self.settle()

    def step(self) -> None:
        """One action of anybody; faults included."""
        if self.rng.random() < 0.02:
            self.disk.crash_in = self.rng.randrange(1, 8)
        try:
            self._act()
        except Crash:
            self._crash()

    def _act(self) -> None:
        if self.log is None:
            self._open_log()
            return
        action = self.rng.choices(
            (self._append, self._run_loop, self._flush, self._prepare, self._pass_time, self._meter, self._trouble),
            (30, 30, 25, 8, 8, 12, 2),
        )[0]
        action()

    def _open_log(self) -> None:
        self.loop = SimLoop(self.clock)
        if self.rng.random() < 0.1:
            self.clock.step_wall(-self.rng.randrange(10**15))
        try:
            self.log = UsageLog(
                ROOT / INSTANCE,
                cast(AbstractEventLoop, self.loop),
                self.clock,
                LIMITS,
                self.fatal.append,
                disk=self.disk,
                codec_for=self.codec_for,
                is_stepped=True,
            )
        except OSError:
            # A full disk: the worker cannot start, and tries again.
            self.disk.is_full = False
            return
        key = (INSTANCE, self.log.epoch.number)
        if key in self.appended:
            raise Violation(f"epoch {key} is used twice")
        self.appended[key], self.acked[key], self.ended_marks[key] = {}, set(), set()

    def _append(self) -> None:
        log = self.log
        assert log is not None
        # Calls that were let in before are recorded even now; new ones are refused.
        if not log.is_accepting and (log.is_closing or self.rng.random() < 0.9):
            return
        key = (INSTANCE, log.epoch.number)
        for _ in range(self.rng.randrange(1, 5)):
            self._count += 1
            record = served(self._count, self.rng.randrange(self.record_size_max))
            seq = log.append(encode(record), lambda seq: self._on_durable(log, key, seq))
            self.appended[key][seq] = record

    def _on_durable(self, log: UsageLog, key: Key, seq: int) -> None:
        if self.acked[key] and seq <= max(self.acked[key]):
            raise Violation(f"{seq} acknowledged out of order")
        self.acked[key].add(seq)
        if self.rng.random() < 0.05:
            log.mark_ended(seq, "client_gone", 7)
            self.ended_marks[key].add(seq)

    def _run_loop(self) -> None:
        self.loop.run_one()

    def _flush(self) -> None:
        log = self.log
        assert log is not None
        if log.flusher.is_running and not log.flusher.inbox.empty():
            log.flusher.step()
        if not log.flusher.is_running:
            self.loop.run_all()
            self.log = None

    def _prepare(self) -> None:
        log = self.log
        assert log is not None
        index = log.preallocator.next_order()
        if index is not None and not log.preallocator.try_make(index):
            log.preallocator.order(index)

    def _pass_time(self) -> None:
        self.clock.advance(self.rng.randrange(2_000_000))

    def _trouble(self) -> None:
        if self.is_flipping and self.disk.flip_bit() is not None:
            self.flips += 1
        trouble = self.rng.randrange(6)
        if trouble == 0:
            self._crash()
        elif trouble == 1:
            self.disk.is_full = not self.disk.is_full
        elif trouble == 2:
            self.disk.eio_in = self.rng.randrange(1, 5)
        elif trouble == 3 and self.log is not None:
            self.log.start_close(lambda: None)
        else:
            self._restart_meter()

    def _crash(self) -> None:
        """Everything ends at once, by a kill or by a power cut."""
        if self.rng.random() < 0.5:
            self.disk.kill()
        else:
            self.disk.power_cut()
        self.disk.is_full = False
        self.log = None
        self._restart_meter()

    # The meter

    def _new_reader(self) -> UsageReader:
        self._read, self._finished = [], []
        return UsageReader(ROOT, self.watermarks, disk=self.disk, codec_for=self.codec_for)

    def _restart_meter(self) -> None:
        self.reader = self._new_reader()

    def _meter(self) -> None:
        if self.rng.random() < 0.6:
            self._poll()
        else:
            self._commit()
            self._acknowledge()

    def _poll(self) -> bool:
        result = self.reader.read_batch(self.rng.randrange(1, 20))
        if isinstance(result, Batch):
            self._check_batch(result)
            self._read.append(result)
        elif isinstance(result, EpochEnded):
            self._finished.append(result)
        elif isinstance(result, Damaged):
            self._note_damage(result)
        return result is not None

    def _check_batch(self, batch: Batch) -> None:
        key = (batch.instance, batch.epoch)
        numbers = [seq for seq, _ in batch.records]
        if numbers != list(range(batch.first_seq, batch.last_seq + 1)):
            raise Violation(f"{key}: numbers {numbers} are not consecutive (I15)")
        before = [earlier.last_seq for earlier in self._read if (earlier.instance, earlier.epoch) == key]
        expected = (before[-1] if before else self.watermarks.get(key, 0)) + 1
        if batch.first_seq != expected:
            raise Violation(f"{key}: {batch.first_seq} delivered after {expected - 1} (I15)")
        for seq, record in batch.records:
            self._check_record(key, seq, record)

    def _check_record(self, key: Key, seq: int, record: AnyRecord) -> None:
        if key not in self.appended:
            raise Violation(f"{key} {seq}: a record of an epoch that nobody opened")
        if isinstance(record, Served) and record != self.appended[key].get(seq):
            raise Violation(f"{key} {seq}: a record that nobody wrote there")
        if isinstance(record, Sent):
            covered = {seq for seq in self.appended[key] if record.first_seq <= seq <= record.last_seq}
            if not covered <= self.acked[key]:
                raise Violation(f"{key} {seq}: marked as sent before it was durable (R8)")
        if isinstance(record, Ended) and record.served_seq not in self.ended_marks[key]:
            raise Violation(f"{key} {seq}: an Ended that nobody wrote")
        if isinstance(record, Closed) and self.appended[key].keys() - self.acked[key]:
            raise Violation(f"{key} {seq}: closed while somebody waits")

    def _note_damage(self, damage: Damaged) -> None:
        self.damages[damage.instance, damage.epoch] = damage
        if not self.flips:
            raise Violation(f"damage reported on an undamaged disk: {damage}")

    def _commit(self) -> None:
        """The ledger's transaction: records and watermark together."""
        for batch in self._read:
            key = (batch.instance, batch.epoch)
            self.committed.setdefault(key, {}).update(batch.records)
            self.watermarks[key] = batch.last_seq
        for end in self._finished:
            self.ends[end.instance, end.epoch] = end
        self._read = []

    def _acknowledge(self) -> None:
        for (instance, epoch), seq in self.watermarks.items():
            self.reader.ack(instance, epoch, seq)
        for end in self._finished:
            self.reader.ack(end.instance, end.epoch, end.last_seq)
        self._finished = []

    # The end

    def settle(self) -> None:
        """Stop everything, let the meter catch up undisturbed, and check that nothing is missing."""
        self._crash()
        while self._poll():
            self._commit()
            self._acknowledge()
        for key, acked in self.acked.items():
            self._check_epoch(key, acked)

    def _check_epoch(self, key: Key, acked: set[int]) -> None:
        if key in self.damages:
            return
        found = self.committed.get(key, {})
        missing = sorted(acked - found.keys())
        if missing and not (self.flips and self.ends[key].torn_bytes):
            raise Violation(f"{key}: acknowledged and lost: {missing}")
        if sorted(found) != list(range(1, len(found) + 1)):
            raise Violation(f"{key}: a gap in {sorted(found)} (I15)")
        if key not in self.ends:
            raise Violation(f"{key}: its end was never reported")
        left = [path for path in self.disk.files if path.parent.name.isdecimal() and int(path.parent.name) == key[1]]
        if left:
            raise Violation(f"{key}: fully posted, but not removed: {left}")
