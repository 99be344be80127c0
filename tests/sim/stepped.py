"""A usage log on a simulated disk and loop, stepped by hand: what a unit test of the log needs."""

from asyncio import AbstractEventLoop
from pathlib import Path
from random import Random
from typing import cast

from billing.packed import AnyRecord
from billing.usagelog.reader import Batch, EpochEnded, ReadResult, UsageReader
from gateway.clock import FakeClock
from gateway.metering.log import LogLimits, UsageLog
from tests.sim.disk import SimDisk
from tests.sim.loop import SimLoop

ROOT = Path("/sim/usage")


class SteppedLog:
    """`log` with its disk, loop, clock, what it called back (`acked`) and its fatal errors."""

    def __init__(self, limits: LogLimits | None = None, disk: SimDisk | None = None) -> None:
        self.disk = disk or SimDisk(Random(0))
        self.clock = FakeClock()
        self.loop = SimLoop(self.clock)
        self.acked: list[int] = []
        self.fatal: list[Exception] = []
        self.log = UsageLog(
            ROOT / "w0",
            cast(AbstractEventLoop, self.loop),
            self.clock,
            limits or LogLimits(segment_bytes=4096, mark_delay_s=0.001),
            self.fatal.append,
            disk=self.disk,
            is_stepped=True,
        )
        self.prepare()

    def append(self, payload: bytes) -> int:
        return self.log.append(payload, self.acked.append)

    def turn(self) -> None:
        """Everything that is due on the loop, without the disk."""
        self.loop.run_all()

    def flush(self) -> None:
        """One group, if anything was handed over."""
        if self.log.flusher.is_running and not self.log.flusher.inbox.empty():
            self.log.flusher.step()

    def prepare(self) -> bool | None:
        """One attempt at the spare segment; None if none was ordered."""
        index = self.log.preallocator.next_order()
        if index is None:
            return None
        is_made = self.log.preallocator.try_make(index)
        if not is_made:
            self.log.preallocator.order(index)
        return is_made

    def settle(self) -> None:
        """Let loop, flusher and preallocator run until all are idle, time included."""
        for _ in range(20):
            self.turn()
            self.flush()
            self.prepare()
            self.clock.advance(1_000_000)

    def records(self) -> list[tuple[int, AnyRecord]]:
        """What a reader sees now."""
        return records_of(read_all(UsageReader(ROOT, disk=self.disk)))


def read_all(reader: UsageReader, records_max: int = 1000) -> list[ReadResult]:
    """Every result there is now."""
    results = []
    while (result := reader.read_batch(records_max)) is not None:
        results.append(result)
    return results


def records_of(results: list[ReadResult]) -> list[tuple[int, AnyRecord]]:
    return [record for result in results if isinstance(result, Batch) for record in result.records]


def ends_of(results: list[ReadResult]) -> list[EpochEnded]:
    return [result for result in results if isinstance(result, EpochEnded)]
