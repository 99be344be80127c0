"""HOT PATH. Owns the smallest shared values of a call: its head, its id, header and data types."""

import os
import time
from typing import Any, Final

Headers = list[tuple[bytes, bytes]]
Data = bytes | memoryview


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


#: A random hex digit → the first digit of the variant field, 0b10xx.
_VARIANT: Final = dict(zip(b"0123456789abcdef", (b"8", b"9", b"a", b"b") * 4, strict=True))


class CallIds:
    """Mints UUIDv7 call ids (RFC 9562 §5.7) as text: 48 bits of UTC milliseconds, then randomness.

    Random digits are drawn in blocks: one `os.urandom` serves 256 calls. Not thread-safe: one per event loop.
    """

    __slots__ = ("_block", "_ms", "_offset", "_time_text")

    _BLOCK_CALLS = 256

    def __init__(self) -> None:
        self._block = b""
        self._offset = 0
        self._ms = -1
        self._time_text = b""

    def mint(self) -> bytes:
        """The 36 characters of a new id, 8-4-4-4-12, lower case."""
        offset = self._offset
        if offset >= len(self._block):
            self._block = os.urandom(10 * self._BLOCK_CALLS).hex().encode()
            offset = 0
        self._offset = offset + 20
        digits = self._block[offset : offset + 20]
        ms = time.time_ns() // 1_000_000
        if ms != self._ms:
            self._ms = ms
            text = b"%012x" % ms
            self._time_text = b"%b-%b-7" % (text[:8], text[8:])
        return b"%b%b-%b%b-%b" % (
            self._time_text,
            digits[:3],
            _VARIANT[digits[3]],
            digits[4:7],
            digits[8:],
        )


def call_id_bytes(call_id: bytes) -> bytes:
    """The 16 bytes of an id's text, as the usage log and the ledger keep it."""
    return bytes.fromhex(call_id.replace(b"-", b"").decode())


def format_call_id(call_id: bytes) -> str:
    """The usual 8-4-4-4-12 text of 16 bytes."""
    text = call_id.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
