"""Owns the request bodies: one tensor `x` of FP32 in the binary extension, and as a gRPC ModelInferRequest."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

KIB: Final = 1024
SIZES: Final = {"1k": 1 * KIB, "600k": 600 * KIB}
#: What every HTTP contender is asked for; the model's name is the backend's.
HTTP_PATH: Final = "/v2/models/{model}/infer"
GRPC_PATH: Final = "/inference.GRPCInferenceService/ModelInfer"
STREAM_PATH: Final = "/inference.GRPCInferenceService/ModelStreamInfer"
GRPC_HEADERS: Final = (("content-type", "application/grpc"), ("te", "trailers"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """A request body in a file, and the headers that describe it."""

    file: Path
    headers: tuple[tuple[str, str], ...]


def _tensor_head(model_input: str, shape: tuple[int, ...]) -> bytes:
    count = 1
    for size in shape:
        count *= size
    tensor = {"name": model_input, "datatype": "FP32", "shape": shape, "parameters": {"binary_data_size": 4 * count}}
    head = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    return json.dumps(head, separators=(",", ":")).encode()


def http_body(folder: Path, name: str, shape: tuple[int, ...], *, padded_to: int = 0) -> Body:
    """Zeros of `shape` in the binary extension. Spaces in the JSON fill up to `padded_to` bytes in all."""
    head = _tensor_head("x", shape)
    count = 1
    for size in shape:
        count *= size
    head += b" " * (padded_to - len(head) - 4 * count)
    file = folder / f"{name}.http"
    file.write_bytes(head + bytes(4 * count))
    headers = (
        ("content-type", "application/octet-stream"),
        ("inference-header-content-length", str(len(head))),
    )
    return Body(file=file, headers=headers)


def http_body_of_size(folder: Path, size_name: str) -> Body:
    """A body of exactly the size named in SIZES."""
    size = SIZES[size_name]
    count = (size - len(_tensor_head("x", (1, size)))) // 4
    return http_body(folder, size_name, (1, count), padded_to=size)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def infer_request(model: str, shape: tuple[int, ...]) -> bytes:
    """ModelInferRequest{model_name 1, inputs 5 {name 1, datatype 2, shape 3}, raw_input_contents 7} of zeros."""
    count = 1
    for size in shape:
        count *= size
    dims = b"".join(_varint(size) for size in shape)
    tensor = _field(1, b"x") + _field(2, b"FP32") + _field(3, dims)
    return _field(1, model.encode()) + _field(5, tensor) + _field(7, bytes(4 * count))


def numbers_request(model: str, numbers: Mapping[str, int]) -> bytes:
    """ModelInferRequest{model_name 1, inputs 5, raw_input_contents 7} of inputs of one INT32 each."""
    tensors = [_field(1, name.encode()) + _field(2, b"INT32") + _field(3, b"\x01") for name in numbers]
    raw = [_field(7, number.to_bytes(4, "little")) for number in numbers.values()]
    return _field(1, model.encode()) + b"".join(_field(5, tensor) for tensor in tensors) + b"".join(raw)


def grpc_frame(message: bytes) -> bytes:
    """A message with its five bytes of gRPC framing, uncompressed."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def grpc_body_of_size(folder: Path, size_name: str, model: str) -> Body:
    """A framed ModelInferRequest of at most the size named in SIZES, and less than 64 bytes below it."""
    count = (SIZES[size_name] - 56) // 4
    file = folder / f"{size_name}.grpc"
    file.write_bytes(grpc_frame(infer_request(model, (1, count))))
    return Body(file=file, headers=GRPC_HEADERS)
