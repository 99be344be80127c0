"""Fuzz targets over the engine's border: model configurations and inference bodies in all three forms."""

import functools
import json
from typing import Any

from gateway.engine.body import inflate
from gateway.engine.codec_grpc import decode_infer, parse_infer
from gateway.engine.codec_http import decode_body
from gateway.engine.codec_json import JsonCodec
from gateway.engine.inference import InferRequest
from gateway.engine.interface import Interface
from gateway.errors import Code, TollwayError
from model_repo.config import ModelConfig, format_config, parse_config
from model_repo.errors import ConfigError
from tests.fuzz.targets_calls import infer_request
from tests.unit.engine.making import config_text

_FAULTS = {
    Code.BAD_REQUEST,
    Code.INVALID_TENSOR,
    Code.BAD_HEADER_LENGTH,
    Code.UNSUPPORTED_ENCODING,
    Code.BODY_TOO_LARGE,
}
_INFLATED_BYTES_MAX = 1 << 16
_TYPES = ("FP32", "INT32", "UINT64", "BYTES", "BOOL", "FP16")


def config(data: bytes) -> None:
    """Any text is a checked configuration that survives being written and read, or a ConfigError."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return
    try:
        parsed = parse_config(text, name="m")
    except ConfigError:
        return
    again = parse_config(format_config(parsed), name="m")
    for field in ModelConfig.__dataclass_fields__:
        if field != "message":
            assert getattr(again, field) == getattr(parsed, field), field


@functools.cache
def _interface(kind: int) -> Interface:
    datatype = _TYPES[(kind & 7) % len(_TYPES)]
    rows_max = 8 if kind & 8 else 0
    inputs = [("x", datatype, (-1, 2))] if kind & 16 else [("x", datatype, (2,)), ("z", "BYTES", (1,))]
    text = config_text("m", inputs, [("y", "FP32", (2,))], rows_max=rows_max)
    return Interface(parse_config(text, name="m"))


@functools.cache
def _codec() -> JsonCodec:
    return JsonCodec()


def _check(interface: Interface, request: InferRequest) -> None:
    """A decoded request is one that the model can be given, or its tensors are refused."""
    for tensor in request.tensors:
        assert tensor.array.shape == tensor.shape, "an array of another shape than its tensor's"
    accepted = interface.accept(request.tensors)
    assert accepted.rows >= 1
    assert set(accepted.feeds) <= {spec.name for spec in interface.inputs}
    for item in request.outputs or ():
        assert 0 <= item.position < len(interface.outputs)
    assert request.timeout_ns >= 0
    request.id.encode()


def _expect(error: TollwayError) -> None:
    assert error.code in _FAULTS
    error.message.encode()


def infer_http(data: bytes) -> None:
    """A REST body, all JSON, all raw or both, decodes to what its model takes, or is the caller's fault."""
    if len(data) < 2:
        return
    interface = _interface(data[0])
    header_bytes = -1 if data[1] == 255 else data[1] * 2
    try:
        _check(interface, decode_body(_codec(), interface, data[2:], header_bytes))
    except TollwayError as error:
        _expect(error)


def infer_grpc(data: bytes) -> None:
    """The same of a ModelInferRequest."""
    if not data:
        return
    interface = _interface(data[0])
    try:
        request, raw = parse_infer(data[1:])
        _check(interface, decode_infer(interface, request, raw))
    except TollwayError as error:
        _expect(error)


def inflating(data: bytes) -> None:
    """A compressed body is inflated whole and bounded, or refused."""
    if not data:
        return
    try:
        assert len(inflate(data[1:], ("gzip", "deflate")[data[0] & 1], _INFLATED_BYTES_MAX)) <= _INFLATED_BYTES_MAX
    except TollwayError as error:
        _expect(error)


def _json_body(**changes: Any) -> bytes:
    item: dict[str, Any] = {"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3.5, 4]}
    item.update(changes)
    return json.dumps({"id": "1", "inputs": [item], "outputs": [{"name": "y"}], "parameters": {"timeout": 3}}).encode()


def _binary_body() -> bytes:
    item = {"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}
    head = json.dumps({"inputs": [item], "parameters": {"binary_data_output": True}}).encode()
    head += b" " * (len(head) % 2)
    return bytes((len(head) // 2,)) + head + b"\0" * 8


CONFIG_SEEDS = [
    config_text("m", [("x", "FP32", (2,))], [("y", "BYTES", (-1,))], rows_max=8, extra=extra).encode()
    for extra in (
        "dynamic_batching { preferred_batch_size: [4] max_queue_delay_microseconds: 100 }",
        "instance_group { count: 2 kind: KIND_CPU } version_policy { specific { versions: [1, 2] } }",
        'model_warmup { name: "w" batch_size: 1'
        ' inputs { key: "x" value { data_type: TYPE_FP32 dims: 2 zero_data: true } } }',
        'parameters { key: "a" value { string_value: "b" } } default_model_filename: "f.onnx"',
    )
] + [
    b'platform: "ensemble" input { name: "a" data_type: TYPE_FP32 dims: 1 }'
    b' output { name: "b" data_type: TYPE_FP32 dims: 1 }'
    b' ensemble_scheduling { step { model_name: "s" model_version: -1 input_map { key: "x" value: "a" }'
    b' output_map { key: "y" value: "b" } } }'
]
HTTP_SEEDS = [
    b"\x10\xff" + _json_body(),
    b"\x13\xff" + _json_body(datatype="BYTES", data=[["a", "b"], ["c", "d"]]),
    b"\x14\xff" + _json_body(datatype="BOOL", data=[True, False, True, True]),
    b"\x10" + _binary_body(),
    b"\x10\x00" + b"\0" * 16,
    b"\x13\x00abc",
    b'\x10\xff{"inputs":[],"deep":' + b"[" * 1500,
]
INFER_GRPC_SEEDS = [b"\x10" + infer_request("m"), b"\x18" + infer_request("m", "")]
INFLATE_SEEDS = [
    b"\x01x\x9cKLJ\x06\x00\x02M\x01'",
    b"\x00\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03KLJ\x06\x00\xc2A$5\x03\x00\x00\x00",
]
