"""HOT PATH. Owns the smallest shared values of a call: its head, its id, header and data types."""

import os
import time
from typing import Any

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


class CallIds:
    """Mints UUIDv7 call ids (RFC 9562 §5.7): 48 bits of UTC milliseconds, then randomness.

    Random bytes are drawn in blocks: one `os.urandom` serves 256 calls. Not thread-safe: one per event loop.
    """

    __slots__ = ("_block", "_offset")

    _BLOCK_CALLS = 256

    def __init__(self) -> None:
        self._block = b""
        self._offset = 0

    def mint(self) -> bytes:
        """The 16 bytes of a new id."""
        offset = self._offset
        if offset >= len(self._block):
            self._block = os.urandom(10 * self._BLOCK_CALLS)
            offset = 0
        self._offset = offset + 10
        noise = int.from_bytes(self._block[offset : offset + 10], "big")
        # version 7 in bits 76-79, variant 0b10 in bits 62-63.
        noise = (noise & 0x0FFF_3FFF_FFFF_FFFF_FFFF) | 0x7000_8000_0000_0000_0000
        return (((time.time_ns() // 1_000_000) << 80) | noise).to_bytes(16, "big")


def format_call_id(call_id: bytes) -> str:
    """The usual 8-4-4-4-12 text of 16 bytes."""
    text = call_id.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
