"""HOT PATH. Owns the JSON of an inference: one typed pass over a request's bytes, and the text of a reply.

The datatype of an input is the tag of a msgspec union, so that every element is checked by its type while it is
parsed: 1.5 is no INT32, true is no number, "1" is no FP32. FP16 and BF16 have no JSON form (CONTRACT.md §1).
"""

import functools
import struct
from collections.abc import Callable
from typing import Any, Final

import msgspec
import numpy as np

from gateway.call import Data
from gateway.engine.inference import InferRequest, Wanted, class_count, flag, timeout_ns, wanted_outputs
from gateway.engine.interface import Interface, Tensor
from gateway.engine.tensors import DTYPES, RANK_MAX, Array, count_elements, from_raw, invalid
from gateway.errors import Code, TollwayError

_ELEMENTS: Final[dict[str, Any]] = {
    "BOOL": bool,
    "FP32": float,
    "FP64": float,
    "BYTES": str,
    "FP16": msgspec.Raw,
    "BF16": msgspec.Raw,
}
_SUFFIX: Final = "Input"
_NO_JSON: Final = frozenset({"FP16", "BF16"})
_encode: Final = msgspec.json.Encoder().encode
#: Flat lists of so many floats go through `struct`: 1.1 us for 64; numpy takes 1.8 and its overflow guard 1.3 more.
_PACKED_MAX: Final = 1024
_PACK_LETTERS: Final = {"FP32": "f", "FP64": "d"}
_NO_PARAMETERS: Final[dict[str, Any]] = {}


@functools.lru_cache(maxsize=256)
def _packer(datatype: str, count: int) -> Callable[..., bytes]:
    return struct.Struct(f"<{count}{_PACK_LETTERS[datatype]}").pack


def _nested(element: Any) -> Any:
    """A list of elements, or of lists of them, down to the deepest rank a tensor may have."""
    nested = element
    for _ in range(RANK_MAX - 1):
        nested = element | list[nested]  # type: ignore[valid-type]
    return list[nested]  # type: ignore[valid-type]


def _input_type(datatype: str) -> Any:
    element = _ELEMENTS.get(datatype, int)
    data = element if element is msgspec.Raw else _nested(element)
    return msgspec.defstruct(
        f"{datatype}{_SUFFIX}",
        [
            ("name", str),
            ("shape", list[int]),
            ("data", data | msgspec.UnsetType, msgspec.UNSET),
            ("parameters", dict[str, Any] | None, None),
        ],
        tag_field="datatype",
        tag=datatype,
        gc=False,
    )


def _request_decoder() -> Any:
    inputs: Any = _input_type("BOOL")
    for datatype in DTYPES:
        if datatype != "BOOL":
            inputs = inputs | _input_type(datatype)
    output: Any = msgspec.defstruct("Output", [("name", str), ("parameters", dict[str, Any] | None, None)])
    request = msgspec.defstruct(
        "Request",
        [
            ("inputs", list[inputs]),
            ("id", str, ""),
            ("parameters", dict[str, Any] | None, None),
            ("outputs", list[output] | None, None),
        ],
    )
    return msgspec.json.Decoder(request)


class JsonCodec:
    """Decodes requests; one is made by the application and shared by all calls."""

    def __init__(self) -> None:
        self._decode = _request_decoder().decode

    def decode(self, interface: Interface, text: Data, blobs: Data | None) -> InferRequest:
        """A request from its JSON and, with the binary extension, the bytes that follow it.

        Raises:
            TollwayError: bad_request, invalid_tensor.
        """
        try:
            request = self._decode(text)
        except msgspec.ValidationError as error:
            code = Code.INVALID_TENSOR if "`$.inputs" in str(error) else Code.BAD_REQUEST
            raise TollwayError(code, f"malformed inference request: {error}") from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise TollwayError(Code.BAD_REQUEST, f"malformed JSON: {error}") from error
        tensors = []
        offset = 0
        for item in request.inputs:
            size = item.parameters.get("binary_data_size") if item.parameters else None
            if size is None:
                tensors.append(_from_json(item))
                continue
            tensors.append(_from_blob(item, size, blobs, offset))
            offset += size
        if blobs is not None and offset != len(blobs):
            raise TollwayError(
                Code.BAD_HEADER_LENGTH, f"{len(blobs) - offset} bytes of binary data belong to no input of the request"
            )
        parameters = request.parameters or _NO_PARAMETERS
        is_binary = flag("binary_data_output", parameters.get("binary_data_output"), default=False)
        return InferRequest(
            request.id,
            tensors,
            None if not request.outputs else _wanted(interface, request.outputs, is_binary=is_binary),
            timeout_ns(parameters.get("timeout")) if parameters else 0,
            is_binary_default=is_binary,
            parameters=parameters,
        )


def _wanted(interface: Interface, outputs: list[Any], *, is_binary: bool) -> list[Wanted]:
    named = [
        (
            output.name,
            flag("binary_data", (output.parameters or _NO_PARAMETERS).get("binary_data"), default=is_binary),
            class_count((output.parameters or _NO_PARAMETERS).get("classification")),
        )
        for output in outputs
    ]
    return wanted_outputs(interface, named)


def _datatype(item: Any) -> str:
    return type(item).__name__[: -len(_SUFFIX)]


def _from_json(item: Any) -> Tensor:
    datatype = _datatype(item)
    name, data = item.name, item.data
    if datatype in _NO_JSON:
        raise invalid(f"input '{name}': {datatype} has no JSON form; send it as binary data")
    if data is msgspec.UNSET:
        raise invalid(f"input '{name}' has neither data nor binary_data_size")
    shape = tuple(item.shape)
    count = count_elements(name, shape)
    if datatype == "BYTES":
        return Tensor(name, datatype, shape, _texts(name, data, count, shape))
    try:
        array = _numbers(data, datatype)
    except (OverflowError, FloatingPointError) as error:
        raise invalid(f"input '{name}': a value is out of the range of {datatype}") from error
    except (ValueError, struct.error) as error:
        raise invalid(f"input '{name}': the lists of its data have different lengths") from error
    if array.shape != shape:
        if array.ndim != 1 or array.size != count:
            raise invalid(f"input '{name}': data of shape {list(array.shape)} does not fit shape {list(shape)}")
        array = array.reshape(shape)
    return Tensor(name, datatype, shape, array)


def _numbers(data: list[Any], datatype: str) -> Array:
    if datatype in _PACK_LETTERS and 0 < len(data) <= _PACKED_MAX and not isinstance(data[0], list):
        return np.frombuffer(_packer(datatype, len(data))(*data), dtype=DTYPES[datatype])
    if datatype != "FP32":
        return np.array(data, dtype=DTYPES[datatype])
    # Without it a double beyond FP32 would quietly become infinity.
    with np.errstate(over="raise"):
        return np.array(data, dtype=np.float32)


def _texts(name: str, data: list[Any], count: int, shape: tuple[int, ...]) -> Array:
    """Nested lists of text are taken apart by the stated shape; numpy would make them fixed-width text."""
    items = data
    if items and isinstance(items[0], list):
        items = [data]
        for size in shape:
            if any(not isinstance(inner, list) or len(inner) != size for inner in items):
                raise invalid(f"input '{name}': its nested data does not fit shape {list(shape)}")
            items = [item for inner in items for item in inner]
    if len(items) != count or any(isinstance(item, list) for item in items):
        raise invalid(f"input '{name}': its data does not fit shape {list(shape)}")
    array = np.empty(count, dtype=object)
    array[:] = [item.encode() for item in items]
    return array.reshape(shape)


def _from_blob(item: Any, size: Any, blobs: Data | None, offset: int) -> Tensor:
    datatype = _datatype(item)
    name = item.name
    if type(size) is not int or size < 0:
        raise invalid(f"input '{name}': binary_data_size must be a whole number of bytes")
    if blobs is None:
        raise TollwayError(
            Code.BAD_HEADER_LENGTH,
            f"input '{name}' has binary_data_size, but inference-header-content-length is missing",
        )
    if item.data is not msgspec.UNSET:
        raise invalid(f"input '{name}' has both data and binary_data_size")
    if size > len(blobs) - offset:
        raise invalid(f"input '{name}': binary_data_size is {size}, only {len(blobs) - offset} bytes follow")
    shape = tuple(item.shape)
    return Tensor(name, datatype, shape, from_raw(name, datatype, shape, blobs[offset : offset + size]))


def json_data(name: str, datatype: str, array: Array) -> bytes:
    """The text of `data`, flat.

    Raises:
        TollwayError: bad_request, where JSON cannot carry the values.
    """
    if datatype in _NO_JSON:
        raise TollwayError(Code.BAD_REQUEST, f"output '{name}': {datatype} has no JSON form; ask for binary data")
    if datatype == "BYTES":
        return _json_texts(name, array)
    text = _encode(array.ravel().tolist())
    # Numbers have no such letter; for one letter the search is the C library's.
    if text.find(b"n") >= 0 and datatype in ("FP32", "FP64"):
        raise TollwayError(
            Code.BAD_REQUEST, f"output '{name}' holds NaN or infinity, which JSON cannot carry; ask for binary data"
        )
    return text


def _json_texts(name: str, array: Array) -> bytes:
    try:
        return _encode([item if isinstance(item, str) else bytes(item).decode() for item in array.ravel()])
    except UnicodeDecodeError as error:
        raise TollwayError(
            Code.BAD_REQUEST, f"output '{name}' holds bytes that are not UTF-8; ask for binary data"
        ) from error
