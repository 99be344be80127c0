"""HOT PATH. Owns a request's body while it arrives, and its content coding."""

import zlib
from typing import Final

from gateway.call import Data
from gateway.errors import Code, TollwayError

#: Bodies of known length above this are gathered in place: joining pieces would need the memory twice.
_IN_PLACE_BYTES: Final = 64 * 1024
_WBITS: Final = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
#: Replies below this do not get smaller by more than the work is worth.
COMPRESS_BYTES_MIN: Final = 1024
_COMPRESS_LEVEL: Final = 1


class Body:
    """Bytes gathered up to `bytes_max`."""

    __slots__ = ("_buffer", "_bytes_max", "_parts", "size")

    def __init__(self, content_length: int, bytes_max: int) -> None:
        self.size = 0
        self._bytes_max = bytes_max
        self._parts: list[bytes] = []
        # Untouched pages of the buffer cost nothing until bytes arrive, so a false length takes no memory.
        self._buffer = bytearray(content_length) if content_length > _IN_PLACE_BYTES else None

    def add(self, data: Data) -> None:
        """Raises: TollwayError: body_too_large."""
        end = self.size + len(data)
        if end > self._bytes_max:
            raise too_large(self._bytes_max)
        if self._buffer is not None and end <= len(self._buffer):
            self._buffer[self.size : end] = data
        else:
            self._parts.append(bytes(data))
        self.size = end

    def take(self) -> Data:
        """The whole body. It stays unchanged from now on."""
        if self._buffer is not None and not self._parts:
            return memoryview(self._buffer)[: self.size]
        if self._buffer is not None:
            self._parts.insert(0, bytes(self._buffer))
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)


def too_large(bytes_max: int) -> TollwayError:
    return TollwayError(Code.BODY_TOO_LARGE, f"the body is larger than {bytes_max} bytes")


def inflate(data: Data, coding: str, bytes_max: int) -> bytes:
    """The body under a `content-encoding` of gzip or deflate; nothing beyond `bytes_max` is ever made.

    Raises:
        TollwayError: body_too_large; bad_request, where the data is damaged or something follows it.
    """
    inflater = zlib.decompressobj(_WBITS[coding])
    try:
        plain = inflater.decompress(data, bytes_max + 1)
    except zlib.error as error:
        raise TollwayError(Code.BAD_REQUEST, f"the body is no {coding} data") from error
    if len(plain) > bytes_max:
        raise too_large(bytes_max)
    if not inflater.eof or inflater.unused_data:
        raise TollwayError(Code.BAD_REQUEST, f"the body is not one whole stream of {coding} data")
    return plain


def deflate(data: Data, coding: str) -> bytes:
    """The inverse of `inflate`, fast rather than small."""
    deflater = zlib.compressobj(_COMPRESS_LEVEL, zlib.DEFLATED, _WBITS[coding])
    return deflater.compress(data) + deflater.flush()
