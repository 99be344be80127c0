"""HOT PATH. Owns the writing of frames into preallocated segments, and when a segment gives way to the next.

Used by the flusher only, one thread. Crash windows: a segment is synced before its successor is begun, so whatever a
successor holds proves that all records before it were durable; a header goes out in the same write as its first frames.
"""

from pathlib import Path

from billing.usagelog.disk import Disk
from billing.usagelog.framing import HEADER_BYTES, FrameCodec, encode_header
from billing.usagelog.segment import segment_name
from gateway.metering.epoch import Epoch


class SegmentWriter:
    """Appends frames in sequence. Any OSError of `write` or `sync` is final (MONEY.md R5): do not call it again."""

    def __init__(self, disk: Disk, epoch: Epoch, segment_bytes: int, codec: FrameCodec) -> None:
        self._disk = disk
        self._epoch = epoch
        self._segment_bytes = segment_bytes
        self._codec = codec
        self._index = 1
        self._offset = HEADER_BYTES
        self._handle = disk.open(self._path(1), is_writable=True)
        self._spare = 0
        self.next_seq = 1
        #: Everything up to here is on the disk.
        self.durable_seq = 0

    def add_spare(self, index: int) -> None:
        """Segment `index` is preallocated."""
        assert index == self._index + 1
        self._spare = index

    def write(self, payloads: list[bytes]) -> int:
        """Write the first n of `payloads`, without a sync but when it changes segments; returns n.

        n < len(payloads): a spare segment is needed and not there. The index it must have is `wanted_index`.
        """
        done = self._write_here(payloads, 0)
        while done < len(payloads) and self._spare:
            self._roll()
            done += self._write_here(payloads, done)
        return done

    def sync(self) -> None:
        """Make everything written durable."""
        self._disk.fdatasync(self._handle)
        self.durable_seq = self.next_seq - 1

    def sync_rest(self) -> None:
        """Make what is not durable yet durable, if there is any."""
        if self.durable_seq < self.next_seq - 1:
            self.sync()

    @property
    def wanted_index(self) -> int | None:
        """The spare to preallocate now, if there is none."""
        return None if self._spare else self._index + 1

    def close(self) -> None:
        self._disk.close(self._handle)

    def _write_here(self, payloads: list[bytes], start: int) -> int:
        parts, count, length = self._codec.encode(
            payloads, start, self.next_seq, self.durable_seq, self._segment_bytes - self._offset
        )
        if count:
            if self._offset == HEADER_BYTES and self._index > 1:
                parts.insert(0, self._header())
                self._disk.pwrite(self._handle, b"".join(parts), 0)
            else:
                self._disk.pwrite(self._handle, b"".join(parts), self._offset)
            self._offset += length
            self.next_seq += count
        return count

    def _header(self) -> bytes:
        epoch = self._epoch
        return encode_header(epoch.instance, epoch.number, self._index, self.next_seq, self._segment_bytes)

    def _roll(self) -> None:
        # Marks may be unsynced here; without this sync a power cut could keep the successor and lose them: a gap.
        self.sync_rest()
        successor = self._disk.open(self._path(self._spare), is_writable=True)
        self._disk.close(self._handle)
        self._handle, self._index, self._spare, self._offset = successor, self._spare, 0, HEADER_BYTES

    def _path(self, index: int) -> Path:
        return self._epoch.folder / segment_name(index)
