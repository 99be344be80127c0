"""Measures the usage log alone: CPU µs per record appended, made durable and called back, over the whole process.

    python -m tests.perf.usage_log --folder DIR [--records 50000] [--mark-delay-ms 1] [--gap-us 0]

`c` callers each append their next record when the last one is durable, at once or `gap-us` later; between records the
loop does nothing else, so group sizes are those of an otherwise idle worker. Figures: CPU µs per record (user + system,
all threads), records/s, records per group, and the wait from append to callback (p50, p99).
"""

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from billing.events import Served, encode
from billing.usagelog.reader import UsageReader
from gateway.clock import SystemClock
from gateway.metering.log import LogLimits, UsageLog


def sample_record() -> bytes:
    """A record of ordinary size."""
    return encode(
        Served(
            call_id=bytes(range(16)),
            tenant="acme",
            key_id="k1234567",
            plan="pay-per-call",
            model="file_type",
            model_version="1",
            price_version=3,
            t_ns=time.time_ns(),
            outcome=0,
            reason=0,
            rows=1,
            compute_ns=1_234_567,
            request_bytes=1_024,
            reply_bytes=512,
            charge_nanos=1_000_000,
            currency="EUR",
            protocol=0,
        )
    )


class Caller:
    """Appends `count` records, each when the last is durable."""

    def __init__(
        self, log: UsageLog, count: int, waits_ns: list[int], *, gap_s: float, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._log, self._payload, self._left = log, sample_record(), count
        self._waits_ns, self._gap_s, self._loop = waits_ns, gap_s, loop
        self.done = asyncio.Event()
        self._start_ns = 0
        self._send()

    def _send(self) -> None:
        self._start_ns = time.perf_counter_ns()
        self._log.append(self._payload, self._on_durable)

    def _on_durable(self, _seq: int) -> None:
        self._waits_ns.append(time.perf_counter_ns() - self._start_ns)
        self._left -= 1
        if not self._left:
            self.done.set()
        elif self._gap_s:
            self._loop.call_later(self._gap_s, self._send)
        else:
            self._send()


async def measure(folder: Path, concurrency: int, records: int, *, mark_delay_s: float, gap_s: float) -> str:
    limits = LogLimits(mark_delay_s=mark_delay_s)
    loop = asyncio.get_running_loop()
    log = UsageLog(folder / "w0", loop, SystemClock(), limits, _fail)
    for count in (records // 10, records):
        waits_ns: list[int] = []
        groups, wall, cpu = log.groups, time.perf_counter(), time.process_time()
        each = max(1, count // concurrency)
        for caller in [Caller(log, each, waits_ns, gap_s=gap_s, loop=loop) for _ in range(concurrency)]:
            await caller.done.wait()
        wall, cpu, groups = time.perf_counter() - wall, time.process_time() - cpu, log.groups - groups
    reading = measure_reading(folder)
    await log.close()
    waits_ns.sort()
    done = len(waits_ns)
    return (
        f"c={concurrency:<3d} {cpu / done * 1e6:7.2f} CPU µs/record  {done / wall:9.0f} records/s  "
        f"{done / groups:6.1f} records/group  wait p50 {waits_ns[done // 2] / 1e3:8.1f} µs  "
        f"p99 {waits_ns[done * 99 // 100] / 1e3:8.1f} µs\n      {reading}"
    )


def measure_reading(root: Path) -> str:
    reader = UsageReader(root)
    cpu, count = time.process_time(), 0
    while (result := reader.read_batch(1000)) is not None:
        count += len(getattr(result, "records", ()))
    cpu = time.process_time() - cpu
    polls = 1000
    idle = time.process_time()
    for _ in range(polls):
        reader.read_batch(1000)
    idle = time.process_time() - idle
    reader.close()
    return (
        f"reading {cpu / count * 1e6:.2f} CPU µs/record ({count} records, marks included), "
        f"idle poll {idle / polls * 1e6:.1f} CPU µs"
    )


def _fail(error: Exception) -> None:
    sys.exit(f"the log failed: {error}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, default=None, help="where to write; the file system decides the figures")
    parser.add_argument("--records", type=int, default=50_000)
    parser.add_argument("--mark-delay-ms", type=float, default=1.0)
    parser.add_argument("--gap-us", type=float, default=0.0)
    arguments = parser.parse_args()
    for concurrency in (1, 64):
        root = Path(tempfile.mkdtemp(dir=arguments.folder))
        records = arguments.records if concurrency > 1 else arguments.records // 10
        try:
            mark_delay_s, gap_s = arguments.mark_delay_ms / 1e3, arguments.gap_us / 1e6
            print(uvloop.run(measure(root, concurrency, records, mark_delay_s=mark_delay_s, gap_s=gap_s)))
        finally:
            shutil.rmtree(root)


if __name__ == "__main__":
    main()
