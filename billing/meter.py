"""Owns the meter process: `python -m billing.meter --data-dir DATA [--prices FILE] --ready-fd N` (composition root).

Two threads: the event loop answers the socket and paces; one worker thread owns reader, ledger and pump, so that
nothing blocks the loop and nothing needs a lock. SIGTERM: post what is readable, close, exit 0.
"""

import argparse
import asyncio
import gc
import itertools
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from billing import failpoint
from billing.books import Books
from billing.clock_watch import ClockWatch
from billing.funds import FundsDesk
from billing.invoices.desk import Desk
from billing.invoices.verbs import all_verbs
from billing.ledger.opening import open_ledger
from billing.ledger.port import LedgerError, LedgerUnavailable
from billing.ledger.sqlite import SqlLedger
from billing.meter_client import SOCKET_NAME
from billing.meter_socket import MeterSocket
from billing.pricebook import load_price_book
from billing.pump import Pump
from billing.rating import PriceError
from billing.unpacker import Unpacker
from billing.usagelog.reader import UsageReader

SNAPSHOT_NAME: Final = "snapshot"
POLL_MS_DEFAULT: Final = 50
#: After passes of this many records the pause is GATHER_FACTOR times as long: what a commit and what a transaction per
#: tenant costs is shared by more calls. Whoever needs to know now asks by the socket, which pumps first.
GATHER_RECORDS: Final = 500
GATHER_FACTOR: Final = 5
#: Passes between two collections of cycles.
GC_PASSES: Final = 500

_log = logging.getLogger(__name__)


class _Parts:
    """The concrete objects of one meter; made and used on the worker thread."""

    def __init__(self, data_dir: Path, prices: Path | None) -> None:
        """Raises LedgerError, PriceError or OSError, each with a message for the operator."""
        book = load_price_book(prices) if prices is not None else None
        self.ledger = open_ledger(data_dir)
        try:
            self.books = Books(self.ledger, data_dir / SNAPSHOT_NAME)
            if book is not None:
                self.books.add(book)
            positions = {
                (source.instance, source.epoch): at.seq for source, at in self.ledger.state().positions.items()
            }
            reader = UsageReader(data_dir / "usage", positions, decode_all=Unpacker().decode_all)
            self.desk = Desk(self.ledger, all_verbs(), time.time_ns)
            self.funds = FundsDesk(self.ledger, time.time_ns)
            self.pump = Pump(
                self.ledger,
                reader,
                self.books,
                on_posted=self.funds.on_posted,
                clock=_clock_watch(data_dir, self.ledger),
            )
        except BaseException:
            self.ledger.close()
            raise


def _clock_watch(data_dir: Path, ledger: SqlLedger) -> ClockWatch | None:
    """None where the ledger has no clock but this host's. Raises OSError, ValueError."""
    if not ledger.has_clock:
        return None
    return ClockWatch(data_dir, ledger.clock_ns, wall_ns=time.time_ns, monotonic_ns=time.monotonic_ns)


async def serve(data_dir: Path, prices: Path | None, ready_fd: int | None, *, poll_ms: int = POLL_MS_DEFAULT) -> None:
    """Run until SIGTERM or SIGINT. Raises LedgerError, PriceError or OSError when it cannot begin or go on."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    with ThreadPoolExecutor(1, thread_name_prefix="meter-pump") as thread:

        async def on_pump(work: Callable[[], Any]) -> Any:
            return await loop.run_in_executor(thread, work)

        parts = await on_pump(lambda: _Parts(data_dir, prices))
        try:
            socket = MeterSocket(parts.pump, parts.books.add, on_pump, parts.desk, parts.funds)
            server = await socket.listen(data_dir / SOCKET_NAME)
            try:
                _announce_ready(ready_fd)
                await _pace(parts.pump, on_pump, stop, poll_ms / 1000)
            finally:
                server.close()
                await socket.close()
                (data_dir / SOCKET_NAME).unlink(missing_ok=True)
        finally:
            await on_pump(lambda: _finish(parts.pump))


async def _pace(pump: Pump, on_pump: Callable[[Callable[[], Any]], Any], stop: asyncio.Event, poll_s: float) -> None:
    """Pump until `stop`: at once while passes come back full, else after a pause.

    The pause also gathers: at 16,000 calls a second one commit takes four thousand of them.
    """
    records = 0
    for number in itertools.count(1):
        if stop.is_set():
            return
        if number % GC_PASSES == 0:
            await on_pump(gc.collect)
        is_full = await on_pump(pump.run_once)
        records += pump.pass_records
        if is_full:
            continue
        pause_s, records = _pause_s(records, poll_s), 0
        try:
            async with asyncio.timeout(pause_s):
                await stop.wait()
        except TimeoutError:
            continue


def _pause_s(records: int, poll_s: float) -> float:
    return poll_s * GATHER_FACTOR if records >= GATHER_RECORDS else poll_s


def _finish(pump: Pump) -> None:
    """Last pass and close. An unavailable ledger loses nothing: the logs keep it for the next meter."""
    try:
        pump.drain()
    except LedgerUnavailable as error:
        _log.warning("meter_stops_behind: %s", error)
    finally:
        pump.close()


def _announce_ready(fd: int | None) -> None:
    if fd is not None:
        os.write(fd, b"ready\n")
        os.close(fd)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse arguments and serve. Exit status: 0 stopped in order, 1 could not begin or go on (one line on stderr)."""
    parser = argparse.ArgumentParser(prog="python -m billing.meter", description="Posts usage logs to the ledger.")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--prices", type=Path, help="price book (TOML or JSON) to add to the ledger if it is new")
    parser.add_argument("--ready-fd", type=int)
    parser.add_argument("--poll-ms", type=int, default=POLL_MS_DEFAULT)
    options = parser.parse_args(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="meter %(levelname)s %(message)s")
    # Records live for one pass and hold no cycles: the collector would walk thousands of them over and over (0.5 µs a
    # call). What the rest leaves is collected between passes (_pace), without what was made by now.
    gc.freeze()
    gc.disable()
    try:
        failpoint.arm(os.environ.get("TOLLWAY_FAILPOINT", ""))
        asyncio.run(serve(options.data_dir, options.prices, options.ready_fd, poll_ms=options.poll_ms))
    except (LedgerError, PriceError, OSError, ValueError) as error:
        sys.stderr.write(f"meter: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
