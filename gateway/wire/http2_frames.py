"""HOT PATH. Owns HTTP/2 frames: numbers of RFC 9113 §6, §7 and §11, the limits of a connection, and frame encoding."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA: Final = 0x0
HEADERS: Final = 0x1
PRIORITY: Final = 0x2
RST_STREAM: Final = 0x3
SETTINGS: Final = 0x4
PUSH_PROMISE: Final = 0x5
PING: Final = 0x6
GOAWAY: Final = 0x7
WINDOW_UPDATE: Final = 0x8
CONTINUATION: Final = 0x9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
HAS_PRIORITY: Final = 0x20

HEADER_TABLE_SIZE: Final = 0x1
ENABLE_PUSH: Final = 0x2
MAX_CONCURRENT_STREAMS: Final = 0x3
INITIAL_WINDOW_SIZE: Final = 0x4
MAX_FRAME_SIZE: Final = 0x5
MAX_HEADER_LIST_SIZE: Final = 0x6

WINDOW_BYTES_MAX: Final = 2**31 - 1
WINDOW_BYTES_DEFAULT: Final = 65_535
FRAME_BYTES_DEFAULT: Final = 16_384
FRAME_BYTES_MAX: Final = 2**24 - 1
STREAM_ID_MAX: Final = 2**31 - 1
FRAME_HEAD_BYTES: Final = 9


class H2Code(IntEnum):
    """Error codes (RFC 9113 §7)."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


class Http2Error(Exception):
    """A connection error (RFC 9113 §5.4.1): GOAWAY with `code`, then the connection closes."""

    def __init__(self, code: H2Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True, kw_only=True)
class Http2Limits:
    """What one connection may grow to or be asked for. Bursts refill with time at their `_per_s_max`."""

    #: Concurrent streams the peer may open; announced. Streams beyond are refused.
    streams_max: int = 256
    #: Receive windows; memory for unread bodies is bounded by the connection's (server) or streams' (client).
    stream_window_bytes: int = 1 * MIB
    connection_window_bytes: int = 4 * MIB
    #: DATA frames this large are accepted; they are handed on in parts, never collected.
    frame_bytes_max: int = 256 * KIB
    #: One header block on the wire, and the number of CONTINUATION frames it may come in.
    header_block_bytes_max: int = 64 * KIB
    continuation_frames_max: int = 16
    #: Decoded list by RFC 9113 §6.5.2; announced. Larger requests are answered 431; beyond twice this the block is a
    #: bomb and ends the connection.
    header_list_bytes_max: int = 32 * KIB
    headers_max: int = 128
    settings_entries_max: int = 32
    #: GOAWAY and other frames that must be held whole.
    control_frame_bytes_max: int = 16 * KIB
    #: Streams the peer made us give up: its resets before the reply's end, refused and malformed requests.
    resets_burst_max: int = 1000
    resets_per_s_max: int = 200
    #: PING, SETTINGS, PRIORITY, unknown and empty frames.
    control_frames_burst_max: int = 1000
    control_frames_per_s_max: int = 200
    #: The same while the peer does not read what we answer.
    unsent_replies_max: int = 1000
    #: WINDOW_UPDATE frames beyond those that our own DATA frames explain.
    window_updates_burst_max: int = 2000
    window_updates_per_s_max: int = 500
    window_updates_per_data_frame: int = 10
    #: DATA that the peer's windows cut below this size is a window game and draws on `control_frames_*`.
    fragment_bytes_min: int = 256
    #: Closed streams remembered, to tell late frames from wrong ones.
    closed_streams_max: int = 1024
    #: Bytes queued on one stream before its producer is told to wait, and when it may go on.
    send_queue_high_bytes: int = 256 * KIB
    send_queue_low_bytes: int = 64 * KIB
    #: Bytes moved into the output between two flushes.
    flush_bytes_max: int = 1 * MIB


_head = Struct(">BHBBL")
_window = Struct(">BHBBLL")
_setting = Struct(">HL")
unpack_head = _head.unpack_from
#: (length below 2**16, kind << 8 | flags, stream id): the head of an ordinary frame, cheaper than `frame_head`.
pack_short = Struct(">xHHL").pack
unpack_u32 = Struct(">L").unpack_from
unpack_settings = _setting.iter_unpack
pack_u32 = Struct(">L").pack


def frame_head(length_bytes: int, kind: int, flags: int, stream_id: int) -> bytes:
    """The nine bytes before a payload."""
    return _head.pack(length_bytes >> 16, length_bytes & 0xFFFF, kind, flags, stream_id)


def rst_stream(stream_id: int, code: int) -> bytes:
    return _window.pack(0, 4, RST_STREAM, 0, stream_id, code)


def window_update(stream_id: int, increment_bytes: int) -> bytes:
    return _window.pack(0, 4, WINDOW_UPDATE, 0, stream_id, increment_bytes)


def ping(payload: bytes, *, is_ack: bool) -> bytes:
    return frame_head(8, PING, ACK if is_ack else 0, 0) + payload


def goaway(last_stream_id: int, code: int, debug: bytes = b"") -> bytes:
    return frame_head(8 + len(debug), GOAWAY, 0, 0) + pack_u32(last_stream_id) + pack_u32(code) + debug


def settings(pairs: Iterable[tuple[int, int]]) -> bytes:
    payload = b"".join([_setting.pack(name, value) for name, value in pairs])
    return frame_head(len(payload), SETTINGS, 0, 0) + payload


SETTINGS_ACK: Final = frame_head(0, SETTINGS, ACK, 0)


def headers(stream_id: int, block: bytes, frame_bytes_max: int, *, is_end: bool) -> bytes:
    """HEADERS, continued as far as `frame_bytes_max` demands (RFC 9113 §6.10)."""
    flags = END_STREAM if is_end else 0
    if len(block) <= frame_bytes_max:
        return _head.pack(len(block) >> 16, len(block) & 0xFFFF, HEADERS, flags | END_HEADERS, stream_id) + block
    parts = [frame_head(frame_bytes_max, HEADERS, flags, stream_id), block[:frame_bytes_max]]
    for start in range(frame_bytes_max, len(block), frame_bytes_max):
        part = block[start : start + frame_bytes_max]
        is_last = start + frame_bytes_max >= len(block)
        parts.append(frame_head(len(part), CONTINUATION, END_HEADERS if is_last else 0, stream_id))
        parts.append(part)
    return b"".join(parts)
