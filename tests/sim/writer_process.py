"""A real process that writes a usage log as a worker would, and tells its parent what it was told.

    python -m tests.sim.writer_process ROOT CALLS CALLERS       (failpoint in TOLLWAY_FAILPOINT)

Writes one byte line per callback, `<seq>\\n`, to stdout in one unbuffered write: what the parent read was acknowledged.
Stops cleanly after CALLS records.
"""

import asyncio
import os
import sys
from pathlib import Path

import uvloop

from billing import failpoint
from billing.events import encode
from gateway.clock import SystemClock
from gateway.metering.log import LogLimits, UsageLog
from tests.sim.world import served


async def write(root: Path, calls: int, callers: int) -> None:
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    limits = LogLimits(segment_bytes=4096)
    log = UsageLog(root / "w0", loop, SystemClock(), limits, lambda error: sys.exit(f"failed: {error}"))
    left = calls

    def append() -> None:
        nonlocal left
        if left:
            left -= 1
            # The record tells its own number, which the log's marks shift away from its sequence number.
            log.append(encode(served(left, 10)), on_durable)
        elif not done.done():
            done.set_result(None)

    def on_durable(seq: int) -> None:
        os.write(1, b"%d\n" % seq)
        append()

    for _ in range(callers):
        append()
    await done
    await log.close()


if __name__ == "__main__":
    failpoint.arm(os.environ.get("TOLLWAY_FAILPOINT", ""))
    uvloop.run(write(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
