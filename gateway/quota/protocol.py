"""Owns what workers and the quota owner say to each other: messages, frames, limits.

A frame is a u32-LE length and a msgpack array of messages; one frame carries all of one loop turn. The stream is
ordered both ways, and a worker has at most one unanswered `Ask` per tenant. Both sides ship together, so fields are
positional and there is one version: a worker that speaks another is refused at `Hello`.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

VERSION: Final = 1
FRAME_BYTES_MAX: Final = 4 * 1024 * 1024
#: A hello or report is split so that a frame stays far below its limit.
HOLDINGS_PER_MESSAGE: Final = 5_000
WORKERS_MAX: Final = 256
TENANTS_MAX: Final = 100_000
#: Calls of one worker that may wait for the owner at once.
PENDING_CALLS_MAX: Final = 20_000
NEED_MAX: Final = PENDING_CALLS_MAX
_LENGTH_BYTES: Final = 4


class ProtocolError(Exception):
    """The peer sent what no peer of ours sends; the connection is closed."""


class Holding(msgspec.Struct, frozen=True, array_like=True):
    """What a worker holds of one tenant's limits. `finished`: calls counted while no owner was connected."""

    tenant: str
    in_flight: int
    unspent: int
    finished: int
    slots: int


class Hello(msgspec.Struct, frozen=True, array_like=True, tag="H"):
    """First from a worker, in parts; nothing else counts before the last part."""

    version: int
    worker: str
    holdings: list[Holding]
    is_last: bool


class Ask(msgspec.Struct, frozen=True, array_like=True, tag="A"):
    """Decide about `need` calls (`slots_need` lack a slot); spares are wishes. The plan is the worker's view."""

    tenant: str
    plan: str
    plan_version: int
    need: int
    slots_need: int
    spare: int
    spare_slots: int


class Return(msgspec.Struct, frozen=True, array_like=True, tag="R"):
    """Calls of the windows with these starts that will not be made, and free slots. `is_all`: no spare is left here."""

    tenant: str
    calls: int
    day_start_ns: int
    month_start_ns: int
    slots: int
    is_all: bool


class Declare(msgspec.Struct, frozen=True, array_like=True, tag="D"):
    """The slots this worker holds, absolutely: sent when a plan change made the two views differ."""

    tenant: str
    slots: int


class Report(msgspec.Struct, frozen=True, array_like=True, tag="P"):
    """Answer to `ReportPlease`, in parts: everything this worker holds of capped tenants."""

    sequence: int
    holdings: list[Holding]
    is_last: bool


class Answer(msgspec.Struct, frozen=True, array_like=True, tag="a"):
    """`calls` of the asked need are admitted; `spare` more may be admitted until `expires_ns` (monotonic).

    When fewer calls than needed are admitted, `code` (an error code) and `retry_after_ms` say why. `*_left` is what
    remains with the owner. Window bounds are 0 where the plan has no such cap.
    """

    tenant: str
    calls: int
    spare: int
    slots: int
    expires_ns: int
    day_start_ns: int
    day_end_ns: int
    month_start_ns: int
    month_end_ns: int
    rate_left: int
    day_left: int
    month_left: int
    slots_left: int
    code: str | None
    retry_after_ms: int


class Recall(msgspec.Struct, frozen=True, array_like=True, tag="r"):
    """Somebody else needs it: send a `Return` with everything unspent, `is_all` set."""

    tenant: str


class ReportPlease(msgspec.Struct, frozen=True, array_like=True, tag="p"):
    sequence: int


FromWorker = Hello | Ask | Return | Declare | Report
FromOwner = Answer | Recall | ReportPlease

_encoder: Final = msgspec.msgpack.Encoder()
_from_worker: Final = msgspec.msgpack.Decoder(list[FromWorker])
_from_owner: Final = msgspec.msgpack.Decoder(list[FromOwner])


def encode_frame(messages: Sequence[FromWorker] | Sequence[FromOwner]) -> bytes:
    payload = _encoder.encode(messages)
    assert len(payload) <= FRAME_BYTES_MAX
    return len(payload).to_bytes(_LENGTH_BYTES, "little") + payload


def decode_from_worker(payload: bytes) -> list[FromWorker]:
    """Raises ProtocolError."""
    try:
        return _from_worker.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError("a worker's frame cannot be read") from error


def decode_from_owner(payload: bytes) -> list[FromOwner]:
    """Raises ProtocolError."""
    try:
        return _from_owner.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError("an owner's frame cannot be read") from error


class FrameSplitter:
    """Cuts a byte stream into payloads; buffers at most one frame."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads completed by `data`. Raises ProtocolError for a frame beyond the limit."""
        buffer = self._buffer
        buffer += data
        payloads = []
        start = 0
        while len(buffer) - start >= _LENGTH_BYTES:
            size = int.from_bytes(buffer[start : start + _LENGTH_BYTES], "little")
            if size > FRAME_BYTES_MAX:
                raise ProtocolError(f"a frame of {size} bytes is over the limit of {FRAME_BYTES_MAX}")
            end = start + _LENGTH_BYTES + size
            if len(buffer) < end:
                break
            payloads.append(bytes(buffer[start + _LENGTH_BYTES : end]))
            start = end
        del buffer[:start]
        return payloads
