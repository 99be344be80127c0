"""Owns body bytes held while their consumer pauses; small pieces are merged, so that tiny frames cost no memory."""

from collections import deque

from gateway.call import Data
from gateway.wire.http2_stream import append_held


class HeldBody:
    """A queue of body bytes and whether the body ended behind them. Truthy while it holds bytes."""

    __slots__ = ("_chunks", "is_ended", "size_bytes")

    def __init__(self) -> None:
        self._chunks: deque[Data | bytearray] = deque()
        self.size_bytes = 0
        self.is_ended = False

    def __bool__(self) -> bool:
        return bool(self._chunks)

    def append(self, data: Data) -> None:
        append_held(self._chunks, data)
        self.size_bytes += len(data)

    def pop(self) -> Data:
        """The oldest bytes."""
        chunk = self._chunks.popleft()
        self.size_bytes -= len(chunk)
        return bytes(chunk) if isinstance(chunk, bytearray) else chunk

    def clear(self) -> int:
        """Forget all; returns how many bytes that were."""
        size_bytes = self.size_bytes
        self._chunks.clear()
        self.size_bytes = 0
        return size_bytes
