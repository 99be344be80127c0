"""HOT PATH. Owns the bytes of the usage log: segment headers and record frames. Pure; no I/O.

    segment  := header frame* zero*                     one preallocated file, `<epoch folder>/<index>.seg`
    header   := magic[8] format u16 record_version u16 index u32 epoch u64 first_seq u64 segment_bytes u64
                instance[32] crc u32
    frame    := length u32 crc u32 seq u64 lag u32 payload[length]

All integers are little-endian. A frame's CRC covers instance and epoch (as its seed), length, seq, lag and payload:
bytes left over from another epoch, another place or another time never parse. `lag` is `seq` minus the last sequence
number that was durable when the frame was written; it tells a torn tail (nothing behind it proves that the bad record
was ever acknowledged) from damage (a later frame says that it was). See docs/usage-log.md.
"""

import struct
from enum import Enum
from typing import Final, NamedTuple
from zlib import crc32

from billing.events import RECORD_VERSION

MAGIC: Final = b"TWUSAGE\x00"
FORMAT_VERSION: Final = 1
INSTANCE_BYTES_MAX: Final = 32
#: Longest payload of one frame; a reader's window must hold a whole frame.
PAYLOAD_BYTES_MAX: Final = 64 * 1024

_HEADER = struct.Struct("<8sHHIQQQ32s")
_CRC = struct.Struct("<I")
_FRAME = struct.Struct("<IIQI")
_START = struct.Struct("<II")
_PLACE = struct.Struct("<QI")
_SEAL = struct.Struct("<IQI")
_HEAD = struct.Struct("<IIQ")
_LENGTH = struct.Struct("<I")
#: Where a frame's sequence number begins, behind length and CRC.
_SEQ_OFFSET: Final = 8
_EPOCH = struct.Struct("<Q")

HEADER_BYTES: Final = _HEADER.size + _CRC.size
FRAME_BYTES: Final = _FRAME.size
#: Smallest useful segment: a header and one small frame.
SEGMENT_BYTES_MIN: Final = 512
SEGMENT_BYTES_MAX: Final = 256 * 1024 * 1024
_ZERO_FRAME = bytes(FRAME_BYTES)
_ZERO_HEADER = bytes(HEADER_BYTES)


class Header(NamedTuple):
    """What a segment says about itself."""

    record_version: int
    segment_index: int
    epoch: int
    first_seq: int
    segment_bytes: int
    instance: str


class HeaderState(Enum):
    """Why there is no Header: the segment has not been begun, or its first bytes make no sense."""

    NOT_BEGUN = "not_begun"
    BAD = "bad"


class Stop(Enum):
    """Why decoding stopped before the requested number of frames."""

    #: Nothing (more) was written here: zeros, or too little room for a frame.
    END = "end"
    #: The given bytes end inside a frame; read on from the returned offset.
    SHORT = "short"
    #: These bytes are no frame of this epoch with the expected sequence number.
    BAD = "bad"


def encode_header(instance: str, epoch: int, index: int, first_seq: int, segment_bytes: int) -> bytes:
    """The first HEADER_BYTES of segment `index`. Raises ValueError if `instance` is too long."""
    name = instance.encode()
    if not 1 <= len(name) <= INSTANCE_BYTES_MAX:
        raise ValueError(f"instance {instance!r} must have 1 to {INSTANCE_BYTES_MAX} bytes")
    head = _HEADER.pack(MAGIC, FORMAT_VERSION, RECORD_VERSION, index, epoch, first_seq, segment_bytes, name)
    return head + _CRC.pack(crc32(head))


def decode_header(raw: bytes) -> Header | HeaderState:
    """The header in `raw`; fewer bytes than a header (a segment being preallocated) count as not begun if zero."""
    head = raw[:HEADER_BYTES]
    if head == _ZERO_HEADER[: len(head)]:
        return HeaderState.NOT_BEGUN
    if len(head) < HEADER_BYTES or crc32(head[: _HEADER.size]) != _CRC.unpack_from(head, _HEADER.size)[0]:
        return HeaderState.BAD
    magic, version, record_version, index, epoch, first_seq, segment_bytes, name = _HEADER.unpack_from(head)
    if magic != MAGIC or version != FORMAT_VERSION:
        return HeaderState.BAD
    return Header(record_version, index, epoch, first_seq, segment_bytes, name.rstrip(b"\0").decode(errors="replace"))


class FrameCodec:
    """Frames of one epoch: (instance, epoch) seed every CRC."""

    __slots__ = ("_seed", "_starts")

    def __init__(self, instance: str, epoch: int) -> None:
        self._seed = crc32(instance.encode(), crc32(_EPOCH.pack(epoch)))
        #: Payload length → CRC of seed and length.
        self._starts: dict[int, int] = {}

    def encode(
        self, payloads: list[bytes], start: int, first_seq: int, durable_seq: int, room_bytes: int
    ) -> tuple[list[bytes], int, int]:
        """Frame `payloads[start:]`, the first of which has number `first_seq`, while they fit into `room_bytes`.

        Returns the parts to join, how many payloads they hold, and their length. Payloads must be 1 to
        PAYLOAD_BYTES_MAX bytes; `durable_seq` is the last number known to be on the disk.
        """
        parts: list[bytes] = []
        start_of, place_of, starts = _START.pack, _PLACE.pack, self._starts
        seq, used, index = first_seq, 0, start
        for index in range(start, len(payloads)):
            payload = payloads[index]
            length = len(payload)
            if used + FRAME_BYTES + length > room_bytes:
                return parts, index - start, used
            # One CRC over seq, lag and payload, begun with that of the length, as `decode` does.
            sealed = place_of(seq, seq - durable_seq) + payload
            parts.append(start_of(length, crc32(sealed, starts.get(length) or self._start(length))))
            parts.append(sealed)
            used += FRAME_BYTES + length
            seq += 1
        return parts, len(payloads) - start, used

    def decode(
        self, raw: bytes | memoryview, offset: int, is_whole: bool, next_seq: int, frames_max: int
    ) -> tuple[list[tuple[int, bytes]], int, Stop | None]:
        """Up to `frames_max` frames from `raw[offset:]`, numbered from `next_seq` without a gap.

        `is_whole` says that `raw` reaches the segment's end. Returns (seq, payload) pairs, the offset behind the last
        of them, and why it stopped (None: `frames_max` reached). What it costs per frame is a third of a record's way
        to the meter: bytes are sliced, not viewed, and the CRC's part over the length is looked up.
        """
        raw = bytes(raw)  # Not a copy of what is bytes.
        frames: list[tuple[int, bytes]] = []
        add, head, starts = frames.append, _HEAD.unpack_from, self._starts
        end = len(raw)
        for wanted_seq in range(next_seq, next_seq + frames_max):
            start = offset + FRAME_BYTES
            if start > end:
                return frames, offset, _rest(raw, offset, is_whole)
            length, crc, seq = head(raw, offset)
            if length == 0 and raw[offset:start] == _ZERO_FRAME:
                return frames, offset, Stop.END
            if seq != wanted_seq or not 0 < length <= PAYLOAD_BYTES_MAX:
                return frames, offset, Stop.BAD
            stop = start + length
            if stop > end:
                return frames, offset, Stop.BAD if is_whole else Stop.SHORT
            # seq, lag and payload lie one behind the other: one CRC over all three, begun with that of the length.
            if crc32(raw[offset + _SEQ_OFFSET : stop], starts.get(length) or self._start(length)) != crc:
                return frames, offset, Stop.BAD
            add((seq, raw[start:stop]))
            offset = stop
        return frames, offset, None

    def _start(self, length: int) -> int:
        """The CRC of seed and `length`; remembered, for at most PAYLOAD_BYTES_MAX lengths."""
        start = self._starts[length] = crc32(_LENGTH.pack(length), self._seed)
        return start

    def find_proof(self, raw: bytes, offset: int, seq: int) -> int | None:
        """Offset of a valid frame behind `offset` which proves that `seq` had been durable, or None.

        Only such a frame makes a bad record damage: groups are written one after the other, so frames of the one group
        that was in flight at a power cut say `durable < seq` and may survive in any combination.
        """
        end = len(raw.rstrip(b"\0"))
        view = memoryview(raw)
        # A frame begins with a length, so never in the zeros at the end; but it may end in zeros of its own.
        for place in range(offset, min(end, len(raw) - FRAME_BYTES + 1)):
            length, crc, found, lag = _FRAME.unpack_from(raw, place)
            if found <= seq or found - lag < seq or not 0 < length <= PAYLOAD_BYTES_MAX:
                continue
            start = place + FRAME_BYTES
            if start + length > len(raw):
                continue
            if crc32(view[start : start + length], crc32(_SEAL.pack(length, found, lag), self._seed)) == crc:
                return place
        return None


def _rest(raw: bytes, offset: int, is_whole: bool) -> Stop:
    """What the last bytes of a window mean, too few for a frame's head."""
    if not is_whole:
        return Stop.SHORT
    return Stop.END if not any(raw[offset:]) else Stop.BAD
