"""HOT PATH. Owns a request's body while it arrives, and its content coding."""

import zlib
from typing import Final

import numpy as np

from gateway.call import Data
from gateway.errors import Code, TollwayError

#: Bodies of known length above this are gathered in place: joining pieces would need the memory twice.
IN_PLACE_BYTES: Final = 64 * 1024
#: Of a cache line, and at least of every element type.
_ALIGNMENT: Final = 64
_WBITS: Final = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
#: Replies below this do not get smaller by more than the work is worth.
COMPRESS_BYTES_MIN: Final = 1024
_COMPRESS_LEVEL: Final = 1


class Body:
    """Bytes gathered up to `bytes_max`. A known length above 64 KiB is gathered in place, and only there.

    `aligned_from`: the byte of the body (end of its JSON head) that is to lie on a boundary, so that tensors behind it
    run where they are.
    """

    __slots__ = ("_bytes_max", "_parts", "_place", "size")

    def __init__(self, content_length: int, bytes_max: int, aligned_from: int = 0) -> None:
        self.size = 0
        self._bytes_max = bytes_max
        self._parts: list[bytes] = []
        self._place = _place(content_length, aligned_from) if content_length > IN_PLACE_BYTES else None

    def add(self, data: Data) -> None:
        """Raises: TollwayError: body_too_large."""
        end = self.size + len(data)
        if end > self._bytes_max:
            raise too_large(self._bytes_max)
        if self._place is None:
            self._parts.append(bytes(data))
        else:
            self._place[self.size : end] = data
        self.size = end

    def space(self) -> memoryview | None:
        """Where the rest of the body may be written instead of `add`; None where its length is not known or small."""
        return self._place[self.size :] if self._place is not None and self.size < len(self._place) else None

    def take(self) -> Data:
        """The whole body. It stays unchanged from now on."""
        if self._place is not None:
            return self._place[: self.size]
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)


def _place(size: int, aligned_from: int) -> memoryview:
    """`size` bytes of memory that is not written to before bytes arrive: a false length takes none."""
    memory = np.empty(size + _ALIGNMENT, dtype=np.uint8)
    start = -(memory.__array_interface__["data"][0] + aligned_from) % _ALIGNMENT
    return memory.data[start : start + size]


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
