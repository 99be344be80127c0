"""HOT PATH. Owns the smallest shared values of a call: its head, its id, header and data types."""

import os
from typing import Any, Final

Headers = list[tuple[bytes, bytes]]
Data = bytes | memoryview
_COUNTER_MASK: Final = (1 << 48) - 1
_NOISE_BYTES: Final = 10
#: Every byte, and its two digits: cut out of one text, which costs the processor's caches less than a list.
_BYTES: Final = bytes(range(256))
_HEX: Final = bytes(range(256)).hex().encode()


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
    """Mints UUIDv7 call ids (RFC 9562 §5.7, with the counter of §6.2 method 2), as text, as digits and as bytes.

    48 bits of UTC milliseconds; 26 random bits and a 48-bit counter with a random start, both drawn anew every
    millisecond that mints. Everything but the last byte is formatted once for up to 256 ids. Not thread-safe: one per
    event loop.
    """

    __slots__ = ("_counter", "_hex_head", "_ms", "_noise", "_raw_head", "_text_head", "_top", "hex", "raw")

    def __init__(self) -> None:
        self._ms = -1
        self._noise = b""
        self._counter = 0
        #: The 80 bits before the counter.
        self._top = 0
        self._raw_head = b""
        self._hex_head = b""
        self._text_head = b""
        #: Of the id minted last: the 16 bytes that the usage log keeps, and its 32 digits.
        self.raw = b""
        self.hex = b""

    def mint(self, wall_ns: int) -> bytes:
        """The 36 characters of a new id at `wall_ns` (UTC), 8-4-4-4-12, lower case."""
        ms = wall_ns // 1_000_000
        counter = (self._counter + 1) & _COUNTER_MASK
        if ms != self._ms:
            counter = self._renew(ms)
        elif not counter & 0xFF:
            self._format(counter)
        self._counter = counter
        last = counter & 0xFF
        digits = _HEX[2 * last : 2 * last + 2]
        self.raw = self._raw_head + _BYTES[last : last + 1]
        self.hex = self._hex_head + digits
        return self._text_head + digits

    def _renew(self, ms: int) -> int:
        """Draw noise for another millisecond; returns the counter's start."""
        if len(self._noise) < _NOISE_BYTES:
            self._noise = os.urandom(256 * _NOISE_BYTES)  # one system call for many milliseconds
        drawn, self._noise = self._noise[:_NOISE_BYTES], self._noise[_NOISE_BYTES:]
        noise = int.from_bytes(drawn, "big")
        self._ms = ms
        version, variant = 0x7000 | (noise >> 48 & 0xFFF), 0x8000 | (noise >> 60 & 0x3FFF)
        self._top = (ms & _COUNTER_MASK) << 32 | version << 16 | variant
        counter = noise & _COUNTER_MASK
        self._format(counter)
        return counter

    def _format(self, counter: int) -> None:
        """Format what ids share until the counter's last byte is through."""
        raw = self._top.to_bytes(10, "big") + counter.to_bytes(6, "big")
        digits = raw.hex().encode()
        self._raw_head, self._hex_head = raw[:15], digits[:30]
        self._text_head = b"-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:30]))


def format_call_id(call_id: bytes) -> str:
    """The usual 8-4-4-4-12 text of 16 bytes."""
    text = call_id.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
