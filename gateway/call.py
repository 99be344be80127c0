"""HOT PATH. Owns the smallest shared values of a call: its head, its id, header and data types."""

import os
import time
from typing import Any, Final

Headers = list[tuple[bytes, bytes]]
Data = bytes | memoryview
_COUNTER_MASK: Final = (1 << 48) - 1


class RequestHead:
    """An inbound request head, validated by the wire. May be shared between calls whose head bytes are equal.

    `target` is the raw request target without scheme and authority, query included. `content_length` is -1 when
    unknown (chunked or HTTP/2 without the header). `memo` belongs to the application: derived facts that depend on
    these bytes alone (never on keys, plans or time) may be kept there.
    """

    __slots__ = ("authority", "content_length", "expects_continue", "headers", "is_grpc", "memo", "method", "target")

    def __init__(
        self,
        method: bytes,
        target: bytes,
        headers: Headers,
        authority: bytes = b"",
        content_length: int = -1,
        *,
        is_grpc: bool = False,
        expects_continue: bool = False,
    ) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.authority = authority
        self.content_length = content_length
        self.is_grpc = is_grpc
        self.expects_continue = expects_continue
        self.memo: Any = None


class CallIds:
    """Mints UUIDv7 call ids (RFC 9562 §5.7, with the counter of §6.2 method 2) as text.

    48 bits of UTC milliseconds; 26 random bits and a 48-bit counter with a random start, both drawn anew every
    millisecond that mints. Not thread-safe: one per event loop.
    """

    __slots__ = ("_counter", "_ms", "_prefix")

    def __init__(self) -> None:
        self._ms = -1
        self._prefix = b""
        self._counter = 0

    def mint(self) -> bytes:
        """The 36 characters of a new id, 8-4-4-4-12, lower case."""
        ms = time.time_ns() // 1_000_000
        if ms != self._ms:
            self._renew(ms)
        self._counter = counter = (self._counter + 1) & _COUNTER_MASK
        return b"%b%012x" % (self._prefix, counter)

    def _renew(self, ms: int) -> None:
        noise = int.from_bytes(os.urandom(10), "big")
        self._ms = ms
        self._counter = noise & _COUNTER_MASK
        self._prefix = b"%08x-%04x-7%03x-%04x-" % (
            ms >> 16,
            ms & 0xFFFF,
            noise >> 48 & 0xFFF,
            0x8000 | (noise >> 60 & 0x3FFF),
        )


def call_id_bytes(call_id: bytes) -> bytes:
    """The 16 bytes of an id's text, as the usage log and the ledger keep it."""
    return bytes.fromhex(call_id.replace(b"-", b"").decode())


def format_call_id(call_id: bytes) -> str:
    """The usual 8-4-4-4-12 text of 16 bytes."""
    text = call_id.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
