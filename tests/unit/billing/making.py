"""Owns what the billing tests are made of: calls, price books, usage logs on disk, and a running meter process."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from billing.events import Outcome, Reason, Record, Sent, Served, encode
from billing.ledger.port import Item, Source
from billing.meter_client import SOCKET_NAME, ask_meter
from billing.rating import PRICING_BY_REASON, Price, PriceBook, compile_book
from billing.usagelog.disk import LocalDisk
from billing.usagelog.framing import HEADER_BYTES, FrameCodec, encode_header
from billing.usagelog.segment import LOCK_NAME, epoch_name, segment_name

T0_NS = 1_767_225_600_000_000_000
BOOK = PriceBook(
    version=1,
    currency="USD",
    default=Price(per_call_nanos=100_000),
    models={
        "ocr": Price(per_call_nanos=1_500_000),
        "file_type": Price(per_call_nanos=20_000, per_row_nanos=50_000, per_compute_ms_nanos=7),
    },
)
RATER = compile_book(BOOK)
W0 = Source("w0", 1)
SEGMENT_BYTES = 64 * 1024


def call(number: int, **changes: Any) -> Served:
    """A correctly charged call; `changes` replace fields, and the charge follows unless it is given."""
    served = Served(
        call_id=number.to_bytes(16, "big"),
        tenant="acme",
        key_id="key_1",
        plan="pay-per-call",
        model="ocr",
        model_version="1",
        price_version=1,
        t_ns=T0_NS + number * 1_000_000,
        outcome=Outcome.OK,
        reason=Reason.PRICED,
        rows=1,
        compute_ns=2_500_000,
        request_bytes=1024,
        reply_bytes=256,
        charge_nanos=0,
        currency="USD",
        protocol=0,
    )
    served = msgspec.structs.replace(served, **changes)
    if "charge_nanos" in changes:
        return served
    pricing = PRICING_BY_REASON.get(Reason(served.reason), "priced")
    amount, reason = RATER.charge(served.model, pricing, served.outcome, served.rows, served.compute_ns)
    return msgspec.structs.replace(served, charge_nanos=amount, reason=reason)


def items(numbers: Sequence[int], source: Source = W0, **changes: Any) -> list[Item]:
    """Calls at places of one log: sequence number = call number."""
    return [(source, number, call(number, **changes)) for number in numbers]


def marked(calls: Sequence[Served]) -> list[Record]:
    """The calls and one Sent mark over all of them, as a log that begins with sequence number 1."""
    return [*calls, Sent(first_seq=1, last_seq=len(calls))]


class Epoch:
    """A usage log written by hand. It lives (holds its lock) until `die`."""

    def __init__(self, root: Path, instance: str = "w0", epoch: int = 1) -> None:
        published = root / instance / epoch_name(epoch)
        # Built under a name that readers pass over, as the real writer does: without its lock it would look dead.
        self.folder = published.with_name(f".new-{published.name}")
        self.source = Source(instance, epoch)
        self._disk = LocalDisk()
        self._codec = FrameCodec(instance, epoch)
        self._disk.make_folder(self.folder)
        self._lock: int | None = self._disk.lock(self.folder / LOCK_NAME)
        self.seq = 0
        self._index = 0
        self._offset = 0
        self._begin()
        self.folder = self.folder.rename(published)

    def append(self, records: Sequence[Record]) -> None:
        """Write records behind the last one; rolls to a new segment when one is full."""
        payloads, start = [encode(record) for record in records], 0
        while start < len(payloads):
            room = SEGMENT_BYTES - self._offset
            parts, taken, length = self._codec.encode(payloads, start, self.seq + 1, self.seq, room)
            with self._path().open("r+b") as file:
                file.seek(self._offset)
                file.write(b"".join(parts))
            self._offset, self.seq, start = self._offset + length, self.seq + taken, start + taken
            if start < len(payloads):
                self._begin()

    def die(self) -> None:
        """Let go of the lock, as the end of the worker's process does."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _begin(self) -> None:
        self._index += 1
        self._disk.preallocate(self._path(), SEGMENT_BYTES)
        header = encode_header(*self.source, self._index, self.seq + 1, SEGMENT_BYTES)
        with self._path().open("r+b") as file:
            file.write(header)
        self._offset = HEADER_BYTES

    def _path(self) -> Path:
        return self.folder / segment_name(self._index)


def write_dead_epoch(root: Path, records: Sequence[Record], instance: str = "w0", epoch: int = 1) -> None:
    """A whole log whose worker is gone."""
    written = Epoch(root, instance, epoch)
    written.append(records)
    written.die()


class MeterProcess:
    """A real `python -m billing.meter` on a data directory. Use as a context manager: it never outlives the block."""

    def __init__(self, data_dir: Path, *arguments: str, failpoint: str = "") -> None:
        self.socket = data_dir / SOCKET_NAME
        self._ready_fd, child_fd = os.pipe()
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "billing.meter",
                "--data-dir",
                str(data_dir),
                "--ready-fd",
                str(child_fd),
                "--poll-ms",
                "5",
                *arguments,
            ],
            pass_fds=[child_fd],
            env={**os.environ, "TOLLWAY_FAILPOINT": failpoint},
            stderr=subprocess.PIPE,
        )
        os.close(child_fd)

    def wait_ready(self) -> bool:
        """True once it serves, False if it ended first."""
        return os.read(self._ready_fd, 16) == b"ready\n"

    def ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        return ask_meter(self.socket, {"op": op, **arguments})

    def stop(self) -> int:
        """SIGTERM, and its exit status."""
        self.process.terminate()
        return self.process.wait(60)

    def stderr(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()

    def __enter__(self) -> "MeterProcess":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(60)
        if self.process.stderr is not None:
            self.process.stderr.close()
        os.close(self._ready_fd)
