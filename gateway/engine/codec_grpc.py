"""HOT PATH. Owns an inference's messages over gRPC, in and out: raw and typed contents (CONTRACT.md §4).

Large raw tensors are cut out of the message before protobuf sees it, so that they are not copied into its arena and
out again. Replies are written by hand: their fields are few, and the tensors go in as they are.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from gateway.call import Data
from gateway.engine.inference import InferRequest, Wanted, class_count, returned, timeout_ns, wanted_outputs
from gateway.engine.interface import Interface, Tensor
from gateway.engine.model import ModelVersion
from gateway.engine.tensors import DTYPES, Array, count_elements, from_raw, invalid, to_raw
from gateway.errors import Code, TollwayError
from gateway.wire.grpc import varint

#: Above it, cutting pays: below, protobuf's own copy costs less than a walk in Python.
_CUT_BYTES: Final = 256 * 1024
_RAW_TAG: Final = 7 << 3 | 2
_NO_PARAMETERS: Final[dict[str, Any]] = {}
_CONTENTS: Final[dict[str, str]] = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def parse_infer(message: Data) -> tuple[Any, list[Data]]:
    """A ModelInferRequest and its raw tensors.

    Raises:
        TollwayError: bad_request, where the bytes are no such message.
    """
    try:
        if len(message) >= _CUT_BYTES:
            rest, raw = _cut_raw(memoryview(message))
            return service_pb2.ModelInferRequest.FromString(rest), raw
        request = service_pb2.ModelInferRequest.FromString(message)
    except (DecodeError, IndexError) as error:
        raise TollwayError(Code.BAD_REQUEST, "malformed ModelInferRequest") from error
    return request, list(request.raw_input_contents)


def _cut_raw(view: memoryview) -> tuple[bytes, list[Data]]:
    """The message without its raw tensors, and those as views. Raises IndexError where a field is cut off."""
    rest: list[memoryview] = []
    raw: list[Data] = []
    position = 0
    while position < len(view):
        begin = position
        tag, position = _read_varint(view, position)
        kind = tag & 7
        if kind == 0:
            _, end = _read_varint(view, position)
        elif kind == 2:
            size, position = _read_varint(view, position)
            end = position + size
        elif kind in (1, 5):
            end = position + (8 if kind == 1 else 4)
        else:
            raise IndexError("group fields are not served")
        if end > len(view):
            raise IndexError("field cut off")
        if tag == _RAW_TAG:
            raw.append(view[position:end])
        else:
            rest.append(view[begin:end])
        position = end
    return b"".join(rest), raw


def _read_varint(view: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise IndexError("varint too long")


def decode_infer(interface: Interface, request: Any, raw: list[Data]) -> InferRequest:
    """What a ModelInferRequest asks for.

    Raises:
        TollwayError: bad_request, invalid_tensor.
    """
    inputs = request.inputs
    if raw:
        if len(raw) != len(inputs):
            raise invalid(f"{len(inputs)} inputs with {len(raw)} raw_input_contents")
        if any(item.HasField("contents") for item in inputs):
            raise invalid("contents must not be set where raw_input_contents are used")
        tensors = [_raw_tensor(item, data) for item, data in zip(inputs, raw, strict=True)]
    else:
        tensors = [_typed_tensor(item) for item in inputs]
    parameters = request.parameters
    outputs = None
    if request.outputs:
        named = [
            (output.name, True, class_count(_find(output.parameters, "classification"))) for output in request.outputs
        ]
        outputs = wanted_outputs(interface, named)
    return InferRequest(
        request.id,
        tensors,
        outputs,
        timeout_ns(_find(parameters, "timeout")) if parameters else 0,
        is_binary_default=True,
        parameters={name: _find(parameters, name) for name in parameters} if parameters else _NO_PARAMETERS,
    )


def _find(parameters: Any, name: str) -> Any:
    """The value of an InferParameter, whichever of its members is set; None if there is none."""
    if name not in parameters:
        return None
    parameter = parameters[name]
    member = parameter.WhichOneof("parameter_choice")
    return None if member is None else getattr(parameter, member)


def _raw_tensor(item: Any, data: Data) -> Tensor:
    datatype = item.datatype
    if datatype not in DTYPES:
        raise invalid(f"input '{item.name[:200]}' has unknown datatype '{datatype[:40]}'")
    shape = tuple(item.shape)
    return Tensor(item.name, datatype, shape, from_raw(item.name, datatype, shape, data))


def _typed_tensor(item: Any) -> Tensor:
    name, datatype = item.name, item.datatype
    if datatype not in DTYPES:
        raise invalid(f"input '{name[:200]}' has unknown datatype '{datatype[:40]}'")
    field = _CONTENTS.get(datatype)
    if field is None:
        raise invalid(f"input '{name}': {datatype} has no typed contents; send it in raw_input_contents")
    for other, _ in item.contents.ListFields():
        if other.name != field:
            raise invalid(f"input '{name}' of {datatype} must be in {field}, not in {other.name}")
    shape = tuple(item.shape)
    count = count_elements(name, shape)
    values = getattr(item.contents, field)
    if len(values) != count:
        raise invalid(f"input '{name}' has {len(values)} elements in {field}, its shape {list(shape)} asks for {count}")
    if datatype == "BYTES":
        array: Array = np.empty(count, dtype=object)
        array[:] = list(values)
    else:
        try:
            array = np.array(values, dtype=DTYPES[datatype])
        except OverflowError as error:
            raise invalid(f"input '{name}': a value is out of the range of {datatype}") from error
    return Tensor(name, datatype, shape, array.reshape(shape))


class GrpcReplyWriter:
    """Replies of one model version: what never changes is written once."""

    def __init__(self, version: ModelVersion) -> None:
        self._version = version
        self._head = _text(1, version.name) + _text(2, version.version)
        specs = version.interface.outputs
        self._names = [_text(1, spec.name) for spec in specs]
        self._types = [_text(2, spec.datatype) for spec in specs]
        self._bytes = _text(2, "BYTES")
        self._all = [Wanted(position, True, 0) for position in range(len(specs))]

    def write(self, request: InferRequest, outputs: list[Array]) -> bytes:
        """A ModelInferResponse, without its gRPC prefix; every output is in raw_output_contents, as Triton sends them.

        Raises:
            TollwayError: invalid_tensor, where an output cannot be classified.
        """
        return self.write_wanted(request.id, self._all if request.outputs is None else request.outputs, outputs)

    def write_wanted(self, id_: str, wanted: Sequence[Wanted], outputs: Sequence[Array | None]) -> bytes:
        """As `write`; `outputs` has those that are wanted."""
        parts: list[Data] = [self._head]
        if id_:
            parts.append(_text(3, id_))
        raw: list[Data] = []
        for item in wanted:
            _, array = returned(self._version, item, outputs)
            shape = b"".join([varint(size) for size in array.shape])
            described = b"".join(
                (
                    self._names[item.position],
                    self._bytes if item.classes else self._types[item.position],
                    b"\x1a",
                    varint(len(shape)),
                    shape,
                )
            )
            parts += (b"\x2a", varint(len(described)), described)
            blob = to_raw(array)
            raw += (b"\x32", varint(len(blob)), blob)
        return b"".join((*parts, *raw))


def _text(number: int, value: str) -> bytes:
    data = value.encode()
    return bytes((number << 3 | 2,)) + varint(len(data)) + data
