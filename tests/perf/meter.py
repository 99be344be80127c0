"""Measures the meter's work alone: CPU µs per posted call (user + system), from log to sealed ledger.

    python -m tests.perf.meter [--store postgresql] [--folder DIR] [--calls 100000] [--pass-calls 1000] [--profile]

Writes `pass-calls` calls as workers do (templates, UUIDv7 ids, a Sent mark per group of 16; four tenants, three
models), lets the pump make one pass, and again. Only the passes are timed. The last line is the reader alone. On a
shared machine compare the best passes: neighbours only ever add. Compiled: `python -P` with
PYTHONPATH=$(python -m gateway.compiled --check).
"""

import argparse
import cProfile
import gc
import json
import os
import pstats
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from billing.books import Books
from billing.events import Sent, ServedTemplate, encode
from billing.pump import Pump
from billing.rating import PriceBook, compile_book
from billing.unpacker import Unpacker
from billing.usagelog.disk import LocalDisk
from billing.usagelog.framing import HEADER_BYTES, FrameCodec, encode_header
from billing.usagelog.reader import Batch, UsageReader
from billing.usagelog.segment import LOCK_NAME, epoch_name, segment_name
from tests.perf.stores import STORES, open_store
from tests.unit.billing.making import BOOK

GROUP = 16
SEGMENT_BYTES = 8 * 1024 * 1024
MODELS = ("ocr", "file_type", "other")


def call_id(t_ns: int) -> bytes:
    """The bytes of a UUIDv7."""
    raw = bytearray((t_ns // 1_000_000).to_bytes(6, "big") + os.urandom(10))
    raw[6], raw[8] = raw[6] & 0x0F | 0x70, raw[8] & 0x3F | 0x80
    return bytes(raw)


def groups(book: PriceBook) -> Iterator[list[bytes]]:
    """Payloads for ever: each item is the calls of one group; the mark is the writer's."""
    rater = compile_book(book)
    templates = [
        (
            model,
            ServedTemplate(
                tenant=f"tenant-{tenant}",
                key_id=f"key{tenant}",
                plan="pay-per-call",
                model=model,
                model_version="1",
                price_version=book.version,
                currency=book.currency,
                protocol=0,
            ),
        )
        for tenant in range(4)
        for model in MODELS
    ]
    number, t_ns = 0, time.time_ns()
    while True:
        payloads = []
        for _ in range(GROUP):
            number += 1
            model, template = templates[number % len(templates)]
            # 20,000 calls a second: ids grow as they do at work, and the ledger's index is written in their order.
            t_ns += 50_000
            rows, compute_ns = 1 + number % 4, 300_000 + 1_009 * (number % 977)
            charge, reason = rater.charge(model, "priced", 0, rows, compute_ns)
            payloads.append(template.encode(call_id(t_ns), t_ns, 0, reason, rows, compute_ns, 1_100, 620, charge))
        yield payloads


class Writer:
    """A live epoch of worker w0."""

    def __init__(self, root: Path) -> None:
        self._folder, self._codec = root / "w0" / epoch_name(1), FrameCodec("w0", 1)
        self._disk, self._index, self._seq, self._offset = LocalDisk(), 0, 0, 0
        self._disk.make_folder(self._folder)
        self._lock = self._disk.lock(self._folder / LOCK_NAME)
        self._payloads = groups(BOOK)
        self._begin()

    def write(self, calls: int) -> int:
        """At least `calls` calls, each group with its mark; returns how many."""
        payloads: list[bytes] = []
        count = 0
        while count < calls:
            group, first = next(self._payloads), self._seq + len(payloads) + 1
            payloads += [*group, encode(Sent(first_seq=first, last_seq=first + len(group) - 1))]
            count += len(group)
        start = 0
        while start < len(payloads):
            room = SEGMENT_BYTES - self._offset
            parts, taken, length = self._codec.encode(payloads, start, self._seq + 1, self._seq, room)
            self._disk.pwrite(self._handle, b"".join(parts), self._offset)
            self._offset, self._seq, start = self._offset + length, self._seq + taken, start + taken
            if start < len(payloads):
                os.close(self._handle)
                self._begin()
        return count

    def _begin(self) -> None:
        self._index += 1
        path = self._folder / segment_name(self._index)
        self._disk.preallocate(path, SEGMENT_BYTES)
        self._handle = self._disk.open(path, is_writable=True)
        self._disk.pwrite(self._handle, encode_header("w0", 1, self._index, self._seq + 1, SEGMENT_BYTES), 0)
        self._offset = HEADER_BYTES


class Figures(NamedTuple):
    """What a run cost per call; `server_us` is the database server's CPU, `best_us` the meter's cheapest pass."""

    store: str
    calls: int
    pass_calls: int
    meter_us: float
    server_us: float
    best_us: float
    wall_us: float
    idle_pass_us: float
    ledger_bytes_per_call: float
    #: Resident memory of the measured part's end over its beginning, the warm-up's excluded.
    resident_growth_kib: float

    @property
    def events_per_core_s(self) -> float:
        """Events a second if meter and server shared one core."""
        return 1e6 / (self.meter_us + self.server_us)


def measure_pump(
    store_name: str, folder: Path, calls: int, pass_calls: int, profile: cProfile.Profile | None = None
) -> Figures:
    """Post `calls` calls after a fifth as many to warm up; growth is that of the measured part."""
    writer = Writer(folder / "usage")
    with open_store(store_name, folder) as store:
        books = Books(store.ledger, folder / "snapshot")
        books.add(BOOK)
        reader = UsageReader(folder / "usage", decode_all=Unpacker().decode_all)
        pump = Pump(store.ledger, reader, books)
        try:
            warmed = _passes(pump, writer, calls // 5, pass_calls, None)
            size, server, resident = store.size_bytes(), store.server_cpu_s(), _resident_kib()
            done = _passes(pump, writer, calls, pass_calls, profile)
            server, size = store.server_cpu_s() - server, store.size_bytes() - size
            resident = _resident_kib() - resident
            posted = store.ledger.state().posted
            assert posted == warmed.calls + done.calls, (posted, warmed.calls + done.calls)
            idle = time.process_time()
            for _ in range(1000):
                pump.run_once()
            idle = time.process_time() - idle
        finally:
            pump.close()
    us = 1e6 / done.calls
    return Figures(
        store=store_name,
        calls=done.calls,
        pass_calls=pass_calls,
        meter_us=done.cpu_s * us,
        server_us=server * us,
        best_us=done.best_s * 1e6,
        wall_us=done.wall_s * us,
        idle_pass_us=idle * 1e3,
        ledger_bytes_per_call=size / done.calls,
        resident_growth_kib=resident,
    )


def _resident_kib() -> float:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGESIZE") / 1024


class _Done(NamedTuple):
    calls: int
    cpu_s: float
    wall_s: float
    best_s: float


def _passes(pump: Pump, writer: Writer, calls: int, pass_calls: int, profile: cProfile.Profile | None) -> _Done:
    """Write and post until `calls` are; only the posting is timed. `best_s` is per call of the cheapest pass."""
    count, cpu_s, wall_s, best_s = 0, 0.0, 0.0, float("inf")
    while count < calls:
        written = writer.write(pass_calls)
        count += written
        cpu, wall = time.process_time(), time.perf_counter()
        if profile is not None:
            profile.enable()
        while pump.run_once():
            pass
        if profile is not None:
            profile.disable()
        spent = time.process_time() - cpu
        wall_s += time.perf_counter() - wall
        cpu_s, best_s = cpu_s + spent, min(best_s, spent / written)
    return _Done(count, cpu_s, wall_s, best_s)


def text_of(figures: Figures) -> str:
    server = f" + {figures.server_us:.2f} of the server" if figures.server_us else ""
    return (
        f"pump    {figures.meter_us:6.2f} CPU µs/call{server}, best pass {figures.best_us:.2f} "
        f"({figures.calls} calls in {figures.pass_calls}s, {figures.ledger_bytes_per_call:.0f} ledger bytes/call), "
        f"idle pass {figures.idle_pass_us:.1f} CPU µs"
    )


def measure_reader(folder: Path, calls: int) -> str:
    count = Writer(folder / "alone").write(calls)
    reader, records = UsageReader(folder / "alone", decode_all=Unpacker().decode_all), 0
    cpu = time.process_time()
    while (result := reader.read_batch(1000)) is not None:
        assert isinstance(result, Batch)
        records += result.last_seq - result.first_seq + 1
    cpu = time.process_time() - cpu
    reader.close()
    return f"reader  {cpu / count * 1e6:6.2f} CPU µs/call ({records} records, marks included)"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, default=None, help="where to write; the file system decides the figures")
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--pass-calls", type=int, default=1_000)
    parser.add_argument("--store", choices=STORES, default="sqlite")
    parser.add_argument("--json", action="store_true", help="the pump's figures as one JSON object, nothing else")
    parser.add_argument("--profile", action="store_true", help="slower: print where the time goes")
    arguments = parser.parse_args()
    gc.disable()  # as the meter does
    profile = cProfile.Profile() if arguments.profile else None
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        figures = measure_pump(arguments.store, folder, arguments.calls, arguments.pass_calls, profile)
        if arguments.json:
            print(json.dumps(figures._asdict() | {"events_per_core_s": figures.events_per_core_s}))
        else:
            print(text_of(figures))
            print(measure_reader(folder, arguments.calls))
    finally:
        shutil.rmtree(folder)
    if profile is not None:
        pstats.Stats(profile, stream=sys.stdout).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
