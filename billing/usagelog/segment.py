"""Owns the names in an epoch's folder and the reading of one segment file."""

from pathlib import Path
from typing import Final

from billing.usagelog.disk import Disk
from billing.usagelog.framing import (
    FRAME_BYTES,
    HEADER_BYTES,
    PAYLOAD_BYTES_MAX,
    SEGMENT_BYTES_MAX,
    FrameCodec,
    Header,
    HeaderState,
    Stop,
    decode_header,
)

LOCK_NAME: Final = "lock"
_SUFFIX = ".seg"
#: One read; must hold the longest frame.
_WINDOW_BYTES = 4 * (FRAME_BYTES + PAYLOAD_BYTES_MAX)


def segment_name(index: int) -> str:
    return f"{index:08d}{_SUFFIX}"


def epoch_name(epoch: int) -> str:
    return f"{epoch:016d}"


def segment_indexes(names: list[str]) -> list[int]:
    """The indexes of the segment files among `names`, ascending."""
    stems = (name[: -len(_SUFFIX)] for name in names if name.endswith(_SUFFIX))
    return sorted(int(stem) for stem in stems if stem.isdecimal() and stem.isascii())


def read_header(disk: Disk, folder: Path, index: int) -> Header | HeaderState:
    """The header of segment `index`; NOT_BEGUN if there is no such file."""
    return decode_header(read_file(disk, folder, index, HEADER_BYTES))


def read_file(disk: Disk, folder: Path, index: int, length_bytes: int = SEGMENT_BYTES_MAX) -> bytes:
    """The first bytes of segment `index`, all of it by default; empty if there is no such file."""
    try:
        handle = disk.open(folder / segment_name(index), is_writable=False)
    except FileNotFoundError:
        return b""
    try:
        return disk.pread(handle, length_bytes, 0)
    finally:
        disk.close(handle)


class SegmentCursor:
    """A place in one begun segment; moves forward over whole frames only. Holds a handle until `close`."""

    def __init__(self, disk: Disk, folder: Path, header: Header, codec: FrameCodec) -> None:
        self._disk = disk
        self._codec = codec
        self._end = header.segment_bytes
        self.index = header.segment_index
        self.name = segment_name(header.segment_index)
        self.offset = HEADER_BYTES
        self._handle = disk.open(folder / self.name, is_writable=False)
        self._window = b""
        self._window_start = HEADER_BYTES

    def peek(self, next_seq: int, frames_max: int) -> tuple[list[tuple[int, bytes]], Stop | None]:
        """The frames from here on, at most `frames_max`; asks the disk again whenever it would return none.

        With no frames the Stop is END or BAD, as the disk says now: BAD may be a living writer's half write.
        """
        frames, stop = self._decode(next_seq, frames_max)
        if frames:
            return frames, stop
        if self._is_quiet():
            return [], Stop.END
        length = min(_WINDOW_BYTES, self._end - self.offset)
        # A file shorter than its header says reads as zeros; the proof search decides whether anything is missing.
        self._window = self._disk.pread(self._handle, length, self.offset).ljust(length, b"\0")
        self._window_start = self.offset
        return self._decode(next_seq, frames_max)

    def consume(self, frames: list[tuple[int, bytes]]) -> None:
        """Move behind `frames`, the first ones that `peek` returned."""
        self.offset += len(frames) * FRAME_BYTES + sum([len(payload) for _, payload in frames])

    def rest(self) -> bytes:
        """Everything from here to the segment's end."""
        return self._disk.pread(self._handle, max(0, self._end - self.offset), self.offset)

    def close(self) -> None:
        self._disk.close(self._handle)

    def _decode(self, next_seq: int, frames_max: int) -> tuple[list[tuple[int, bytes]], Stop | None]:
        window = self._window
        is_whole = self._window_start + len(window) >= self._end
        frames, _, stop = self._codec.decode(window, self.offset - self._window_start, is_whole, next_seq, frames_max)
        return frames, stop

    def _is_quiet(self) -> bool:
        """Whether the next frame has not been begun: one small read, the whole cost of an idle poll."""
        return not any(self._disk.pread(self._handle, min(FRAME_BYTES, self._end - self.offset), self.offset))
