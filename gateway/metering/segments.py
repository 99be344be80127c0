"""HOT PATH. Owns the writing of frames into preallocated segments, and when a segment gives way to the next.

Used by the group commit only, one thread. Crash windows: a segment is synced before its successor is begun, so whatever
a successor holds proves that all records before it were durable; a header goes out in one write with its first frames.
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
        self.handle = disk.open(self._path(1), is_writable=True)
        self._spare = 0
        self.next_seq = 1
        #: Everything up to here is on the disk.
        self.durable_seq = 0

    def add_spare(self, index: int) -> None:
        """Segment `index` is preallocated."""
        assert index == self._index + 1
        self._spare = index

    def write(self, payloads: list[bytes]) -> int:
        """Write the first n of `payloads`, without a sync; returns n.

        n < len(payloads): a spare segment is needed and not there (the index it must have is `wanted_index`), or it is
        there and this one must be synced first.
        """
        done = self._write_here(payloads, 0)
        # A power cut could keep a successor and lose what was not synced here, marks included: a gap.
        while done < len(payloads) and self._spare and not self.has_unsynced:
            self._roll()
            done += self._write_here(payloads, done)
        return done

    def sync(self) -> None:
        """Make everything written durable; `note_synced` follows."""
        self._disk.fdatasync(self.handle)

    def note_synced(self) -> None:
        """`handle` was synced, and nothing was written since that began."""
        self.durable_seq = self.next_seq - 1

    @property
    def has_unsynced(self) -> bool:
        return self.durable_seq < self.next_seq - 1

    @property
    def wanted_index(self) -> int | None:
        """The spare to preallocate now, if there is none."""
        return None if self._spare else self._index + 1

    def close(self) -> None:
        self._disk.close(self.handle)

    def _write_here(self, payloads: list[bytes], start: int) -> int:
        parts, count, length = self._codec.encode(
            payloads, start, self.next_seq, self.durable_seq, self._segment_bytes - self._offset
        )
        if count:
            if self._offset == HEADER_BYTES and self._index > 1:
                parts.insert(0, self._header())
                self._disk.pwrite(self.handle, b"".join(parts), 0)
            else:
                self._disk.pwrite(self.handle, b"".join(parts), self._offset)
            self._offset += length
            self.next_seq += count
        return count

    def _header(self) -> bytes:
        epoch = self._epoch
        return encode_header(epoch.instance, epoch.number, self._index, self.next_seq, self._segment_bytes)

    def _roll(self) -> None:
        successor = self._disk.open(self._path(self._spare), is_writable=True)
        self._disk.close(self.handle)
        self.handle, self._index, self._spare, self._offset = successor, self._spare, 0, HEADER_BYTES

    def _path(self, index: int) -> Path:
        return self._epoch.folder / segment_name(index)
