"""Owns reading weights out of published files without the framework that wrote them: PyTorch's old form, safetensors.

PyTorch's form is a pickle. It is read by an unpickler that knows five names and refuses all others, so that nothing of
the file's choosing is ever called; what it yields are descriptions of tensors, whose bytes lie behind the pickles.
"""

import io
import json
import pickle
import struct
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from model_repo.onnx_graft import GraftError

Array = npt.NDArray[Any]

_MAGIC: Final = 0x1950A86A20F9469CFC6C
_PROTOCOL: Final = 1001
_PICKLES_BYTES_MAX: Final = 1 << 20
TENSORS_MAX: Final = 10_000
_HEADER_BYTES_MAX: Final = 1 << 20
_STORAGES: Final[dict[str, np.dtype[Any]]] = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}
_SAFE_DTYPES: Final[dict[str, np.dtype[Any]]] = {"F32": np.dtype("<f4"), "I64": np.dtype("<i8")}


class CheckpointError(GraftError):
    """A file that holds no weights of a known form; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Storage:
    key: str
    dtype: np.dtype[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild(storage: object, offset: object, shape: object, strides: object, *_rest: object) -> _View:
    """In the place of PyTorch's own function."""
    sizes, steps = _sizes(shape), _sizes(strides)
    if not isinstance(storage, _Storage) or len(sizes) != len(steps):
        raise CheckpointError("a tensor is not described by a storage, a shape and strides")
    return _View(storage=storage, offset=_sizes((offset,))[0], shape=sizes, strides=steps)


def _sizes(value: object) -> tuple[int, ...]:
    if isinstance(value, tuple) and all(isinstance(size, int) and size >= 0 for size in value):
        return value
    raise CheckpointError("a shape is not made of numbers")


class _Unpickler(pickle.Unpickler):
    """Calls nothing but the five names below."""

    def find_class(self, module: str, name: str) -> Any:
        known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
            **{("torch", storage): storage for storage in _STORAGES},
        }
        try:
            return known[module, name]
        except KeyError as error:
            raise CheckpointError(f"the file names {module[:60]}.{name[:60]}, which weights do not need") from error

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage, key = pid[:3]
        if kind != "storage" or storage not in _STORAGES or not isinstance(key, str):
            raise CheckpointError("the file refers to something that is no storage")
        return _Storage(key=key, dtype=_STORAGES[storage])


def read_torch(data: bytes) -> dict[str, Array]:
    """The tensors of a state dictionary in PyTorch's form before 1.6, by name: float32 or int64.

    Raises:
        CheckpointError: another form, names beyond those of tensors, or bytes that are missing.
    """
    stream = io.BytesIO(data)
    try:
        heads = [_Unpickler(stream).load() for _ in range(3)]
        if heads[0] != _MAGIC or heads[1] != _PROTOCOL or not heads[2].get("little_endian"):
            raise CheckpointError("no weights of PyTorch's old form")
        views, keys = _Unpickler(stream).load(), _Unpickler(stream).load()
        if stream.tell() > _PICKLES_BYTES_MAX or not isinstance(views, dict) or len(views) > TENSORS_MAX:
            raise CheckpointError(f"no dictionary of at most {TENSORS_MAX} tensors")
        return _read_storages(data, stream.tell(), views, keys)
    except CheckpointError:
        raise
    except Exception as error:
        # A malformed pickle raises whatever its opcodes meet.
        raise CheckpointError(f"no weights of PyTorch's old form ({type(error).__name__})") from error


def _read_storages(data: bytes, place: int, views: Mapping[str, Any], keys: Sequence[Any]) -> dict[str, Array]:
    """Behind the pickles lie, for each key, the number of elements (int64) and the elements."""
    if not all(isinstance(view, _View) for view in views.values()):
        raise CheckpointError("the dictionary holds something that is no tensor")
    dtypes = {view.storage.key: view.storage.dtype for view in views.values()}
    storages: dict[str, Array] = {}
    for key in keys:
        (count,) = struct.unpack_from("<q", data, place)
        dtype = dtypes[key]
        storages[key] = np.frombuffer(data, dtype, count, place + 8)
        place += 8 + count * dtype.itemsize
    return {name: _cut(storages[view.storage.key], view) for name, view in views.items()}


def _cut(storage: Array, view: _View) -> Array:
    """The tensor as a view; strides of the file count elements, and must stay within its storage."""
    last = view.offset + sum((size - 1) * step for size, step in zip(view.shape, view.strides, strict=True))
    if 0 in view.shape or last >= len(storage):
        raise CheckpointError("a tensor is empty, or reaches beyond its storage")
    steps = tuple(step * storage.itemsize for step in view.strides)
    return np.lib.stride_tricks.as_strided(storage[view.offset :], view.shape, steps, writeable=False)


def read_safetensors(data: bytes) -> dict[str, Array]:
    """The tensors of a safetensors file, by name: float32 or int64.

    Raises:
        CheckpointError: the header is malformed, or a tensor is not within the file.
    """
    try:
        (length,) = struct.unpack_from("<Q", data)
        if not 2 <= length <= _HEADER_BYTES_MAX:
            raise CheckpointError(f"a safetensors header of {length} bytes")
        header: dict[str, Any] = json.loads(data[8 : 8 + length])
        header.pop("__metadata__", None)
        return {name: _safe_tensor(data, 8 + length, entry) for name, entry in header.items()}
    except CheckpointError:
        raise
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"no safetensors file ({type(error).__name__}: {str(error)[:80]})") from error


def _safe_tensor(data: bytes, base: int, entry: Mapping[str, Any]) -> Array:
    dtype, shape = _SAFE_DTYPES[entry["dtype"]], tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    size = int(np.prod(shape, dtype=np.int64))
    if begin < 0 or end - begin != size * dtype.itemsize or base + end > len(data):
        raise CheckpointError("a tensor reaches beyond its file, or has another size than it says")
    return np.frombuffer(data, dtype, size, base + begin).reshape(shape)
