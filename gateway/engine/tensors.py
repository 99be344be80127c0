"""HOT PATH. Owns tensor types and shapes: the datatype table, size checks before any memory is taken, BYTES packing.

Arrays are numpy, C-contiguous, little-endian. BYTES are object arrays of `bytes`. BF16, which numpy lacks, is carried
as uint16 (its bit patterns); only the runtime knows better.
"""

import struct
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from gateway.call import Data
from gateway.errors import Code, TollwayError

Array = npt.NDArray[Any]

#: Datatype → (numpy type, bytes an element); BYTES elements have no fixed size.
DTYPES: Final[dict[str, "np.dtype[Any]"]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}
#: No tensor may have more elements than this; with 8-byte elements the sizes below stay far from 2**63.
ELEMENTS_MAX: Final = 1 << 31
RANK_MAX: Final = 16
_LENGTH: Final = struct.Struct("<I")


def invalid(message: str) -> TollwayError:
    """The fault of a tensor that its sender must mend."""
    return TollwayError(Code.INVALID_TENSOR, message)


def count_elements(name: str, shape: Sequence[int]) -> int:
    """The number of elements of `shape`, checked against overflow before anything is allocated.

    Raises:
        TollwayError: invalid_tensor, for a negative size, too many axes or too many elements.
    """
    if len(shape) > RANK_MAX:
        raise invalid(f"tensor '{name}' has {len(shape)} axes, more than {RANK_MAX}")
    count = whole = 1
    for size in shape:
        if size < 0:
            raise invalid(f"tensor '{name}' has a negative size in its shape {list(shape)}")
        count *= size
        whole *= size or 1
    # A product of zero may hide sizes that no array can have, each alone or together.
    if whole > ELEMENTS_MAX:
        raise invalid(f"tensor '{name}' has more than {ELEMENTS_MAX} elements")
    return count


def from_raw(name: str, datatype: str, shape: Sequence[int], data: Data) -> Array:
    """A tensor over the bytes of `data`, without a copy and perhaps not aligned; `data` must stay unchanged.

    Raises:
        TollwayError: invalid_tensor, where the bytes do not fit datatype and shape.
    """
    count = count_elements(name, shape)
    if datatype == "BYTES":
        return unpack_bytes(name, count, data).reshape(shape)
    dtype = DTYPES[datatype]
    if len(data) != count * dtype.itemsize:
        raise invalid(
            f"tensor '{name}' of {datatype}{list(shape)} needs {count * dtype.itemsize} bytes, got {len(data)}"
        )
    array = np.frombuffer(data, dtype)
    if datatype == "BOOL":
        _check_bools(name, array)
    return array.reshape(shape)


def _check_bools(name: str, array: Array) -> None:
    """A byte other than 0 and 1 is undefined behaviour in kernels that trust a bool to be one of the two."""
    if array.size and int(array.view(np.uint8).max()) > 1:
        raise invalid(f"tensor '{name}' of BOOL holds a byte other than 0 and 1")


def unpack_bytes(name: str, count: int, data: Data) -> Array:
    """Elements of 4 bytes length (little-endian) and as many bytes each, exactly `count` of them.

    Raises:
        TollwayError: invalid_tensor, where lengths and `data` disagree.
    """
    if count * 4 > len(data):
        raise invalid(f"tensor '{name}' of {count} BYTES elements needs at least {count * 4} bytes, got {len(data)}")
    array = np.empty(count, dtype=object)
    view = memoryview(data)
    end = len(view)
    offset = 0
    for index in range(count):
        if offset + 4 > end:
            raise invalid(f"tensor '{name}' of BYTES ends inside the length of element {index}")
        (length,) = _LENGTH.unpack_from(view, offset)
        offset += 4
        if length > end - offset:
            raise invalid(f"tensor '{name}' of BYTES ends inside element {index}")
        array[index] = bytes(view[offset : offset + length])
        offset += length
    if offset != end:
        raise invalid(f"tensor '{name}' of BYTES has {end - offset} bytes after its last element")
    return array


def pack_bytes(array: Array) -> bytes:
    """The inverse of `unpack_bytes`; `str` elements are written as UTF-8."""
    parts: list[bytes] = []
    for item in array.ravel():
        data = item.encode() if isinstance(item, str) else item
        parts.append(_LENGTH.pack(len(data)))
        parts.append(data)
    return b"".join(parts)


def to_raw(array: Array) -> Data:
    """The bytes of a tensor as they travel: a view of a contiguous numeric array, packed elements for BYTES."""
    if array.dtype.hasobject:
        return pack_bytes(array)
    if not array.flags.c_contiguous:
        array = np.ascontiguousarray(array)
    return array.reshape(-1).view(np.uint8).data if array.size else b""


def datatype_of(array: Array, expected: str) -> str | None:
    """`expected` if the array carries it, else the name of what it carries (None: nothing that travels)."""
    if array.dtype == DTYPES[expected]:
        return expected
    for name, dtype in DTYPES.items():
        if dtype == array.dtype:
            return name
    return None
