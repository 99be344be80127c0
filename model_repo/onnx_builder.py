"""Owns small ONNX models made from nothing: a protobuf writer for the few ModelProto fields a test or a bench needs.

No `onnx` package is involved. Weights are drawn from a seeded generator, so the same call gives the same bytes.
`python -m model_repo.onnx_builder {mlp,convnet,wide} (--out FILE | --repository DIR)` writes a bench model.
"""

import argparse
import random
import struct
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

#: TensorProto.DataType by our names (onnx.proto, TensorProto).
ELEMENT_TYPES: Final[dict[str, int]] = {
    "FP32": 1,
    "UINT8": 2,
    "INT8": 3,
    "UINT16": 4,
    "INT16": 5,
    "INT32": 6,
    "INT64": 7,
    "BYTES": 8,
    "BOOL": 9,
    "FP16": 10,
    "FP64": 11,
    "UINT32": 12,
    "UINT64": 13,
    "BF16": 16,
}
_IR_VERSION: Final = 8
_OPSET: Final = 17

Attribute = int | float | str | Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A graph input or output. A string in `shape` names a variable axis."""

    name: str
    datatype: str
    shape: Sequence[int | str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One operator. Attributes: int → INT, float → FLOAT, str → STRING, ints → INTS."""

    op: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """A constant; `data` holds its elements little-endian, row-major."""

    name: str
    datatype: str
    shape: Sequence[int]
    data: bytes


def encode_model(
    nodes: Iterable[Node],
    inputs: Iterable[Value],
    outputs: Iterable[Value],
    weights: Iterable[Weight] = (),
    *,
    name: str = "graph",
) -> bytes:
    """The bytes of a ModelProto (onnx.proto) with the default operator set."""
    graph = b"".join(
        (
            *(_message(1, _node(node)) for node in nodes),
            _text(2, name),
            *(_message(5, _weight(weight)) for weight in weights),
            *(_message(11, _value(value)) for value in inputs),
            *(_message(12, _value(value)) for value in outputs),
        )
    )
    opset = _text(1, "") + _int(2, _OPSET)
    return _int(1, _IR_VERSION) + _text(2, "tollway") + _message(7, graph) + _message(8, opset)


def build_mlp(inputs: int = 64, hidden: int = 64, outputs: int = 10, *, seed: int = 1) -> bytes:
    """x: float32[batch, inputs] → y: float32[batch, outputs], one hidden layer with ReLU."""
    noise = random.Random(seed)  # noqa: S311 - weights, not secrets
    weights = [
        _dense("w1", (inputs, hidden), noise),
        _dense("b1", (hidden,), noise),
        _dense("w2", (hidden, outputs), noise),
        _dense("b2", (outputs,), noise),
    ]
    nodes = [
        Node(op="Gemm", inputs=("x", "w1", "b1"), outputs=("h",)),
        Node(op="Relu", inputs=("h",), outputs=("r",)),
        Node(op="Gemm", inputs=("r", "w2", "b2"), outputs=("y",)),
    ]
    return encode_model(
        nodes,
        [Value(name="x", datatype="FP32", shape=("batch", inputs))],
        [Value(name="y", datatype="FP32", shape=("batch", outputs))],
        weights,
        name="mlp",
    )


#: (channels in, channels out, stride) of the 3x3 layers on a 64x64 image: 50.7 MFLOP an item.
_CONV_LAYERS: Final = ((3, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 2), (64, 64, 1))


def build_convnet(*, seed: int = 1) -> bytes:
    """x: float32[batch, 3, 64, 64] → y: float32[batch, 10]; about 50 MFLOP an item (DATAPATH.md "Engine")."""
    noise = random.Random(seed)  # noqa: S311 - weights, not secrets
    nodes: list[Node] = []
    weights: list[Weight] = []
    tensor = "x"
    for number, (wide_in, wide_out, stride) in enumerate(_CONV_LAYERS):
        weights.append(_dense(f"w{number}", (wide_out, wide_in, 3, 3), noise))
        weights.append(_dense(f"b{number}", (wide_out,), noise))
        attributes = {"kernel_shape": (3, 3), "strides": (stride, stride), "pads": (1, 1, 1, 1)}
        conv = Node(
            op="Conv", inputs=(tensor, f"w{number}", f"b{number}"), outputs=(f"c{number}",), attributes=attributes
        )
        nodes += [conv, Node(op="Relu", inputs=(f"c{number}",), outputs=(f"r{number}",))]
        tensor = f"r{number}"
    weights += [_dense("wf", (64, 10), noise), _dense("bf", (10,), noise)]
    nodes += [
        Node(op="GlobalAveragePool", inputs=(tensor,), outputs=("pooled",)),
        Node(op="Flatten", inputs=("pooled",), outputs=("flat",)),
        Node(op="Gemm", inputs=("flat", "wf", "bf"), outputs=("y",)),
    ]
    return encode_model(
        nodes,
        [Value(name="x", datatype="FP32", shape=("batch", 3, 64, 64))],
        [Value(name="y", datatype="FP32", shape=("batch", 10))],
        weights,
        name="convnet",
    )


#: (rows, columns) of each of the wide model's layers: 4 of 25 MiB.
_WIDE: Final = (2560, 2560)
_WIDE_LAYERS: Final = 4


def build_wide(*, seed: int = 1) -> bytes:
    """x: float32[batch, 2560] → y: float32[batch, 2560]; 100 MiB of weights, for the time that a load takes."""
    (pattern,) = (_dense("pattern", (_WIDE[1],), random.Random(seed)),)  # noqa: S311 - weights, not secrets
    names = [f"w{number}" for number in range(_WIDE_LAYERS)]
    tensors = ["x", *(f"t{number}" for number in range(1, _WIDE_LAYERS)), "y"]
    return encode_model(
        [
            Node(op="MatMul", inputs=(tensors[number], name), outputs=(tensors[number + 1],))
            for number, name in enumerate(names)
        ],
        [Value(name="x", datatype="FP32", shape=("batch", _WIDE[0]))],
        [Value(name="y", datatype="FP32", shape=("batch", _WIDE[1]))],
        [Weight(name=name, datatype="FP32", shape=_WIDE, data=pattern.data * _WIDE[0]) for name in names],
        name="wide",
    )


CONFIGS: Final[dict[str, str]] = {
    "mlp": """name: "mlp"
platform: "onnxruntime_onnx"
max_batch_size: 64
input [ { name: "x" data_type: TYPE_FP32 dims: [ 64 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 10 ] } ]
""",
    # Batches of up to 8: the items gain nothing, but joining and answering them costs less each (DATAPATH.md "Engine").
    "convnet": """name: "convnet"
platform: "onnxruntime_onnx"
max_batch_size: 8
dynamic_batching { }
input [ { name: "x" data_type: TYPE_FP32 dims: [ 3, 64, 64 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 10 ] } ]
""",
    "wide": """name: "wide"
platform: "onnxruntime_onnx"
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 2560 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 2560 ] } ]
""",
}
_BUILDERS: Final = {"mlp": build_mlp, "convnet": build_convnet, "wide": build_wide}


def write_model(repository: Path, name: str) -> Path:
    """Write bench model `name` in Triton's layout below `repository`; returns the model's folder."""
    folder = repository / name
    (folder / "1").mkdir(parents=True, exist_ok=True)
    (folder / "config.pbtxt").write_text(CONFIGS[name], encoding="utf-8")
    (folder / "1" / "model.onnx").write_bytes(_BUILDERS[name]())
    return folder


def _dense(name: str, shape: Sequence[int], noise: random.Random) -> Weight:
    count = 1
    for size in shape:
        count *= size
    fan_in = count // shape[0] if len(shape) == 4 else shape[0]
    bound = (3.0 / fan_in) ** 0.5
    data = array("f", (noise.uniform(-bound, bound) for _ in range(count)))
    if sys.byteorder == "big":
        data.byteswap()
    return Weight(name=name, datatype="FP32", shape=shape, data=data.tobytes())


def _node(node: Node) -> bytes:
    parts = [_text(1, name) for name in node.inputs]
    parts += [_text(2, name) for name in node.outputs]
    parts.append(_text(4, node.op))
    parts += [_message(5, _attribute(name, value)) for name, value in node.attributes.items()]
    return b"".join(parts)


def _attribute(name: str, value: Attribute) -> bytes:
    """AttributeProto: the value's field and its `type` (field 20) belong together."""
    head = _text(1, name)
    if isinstance(value, int):
        return head + _int(3, value) + _int(20, 2)
    if isinstance(value, float):
        return head + _varint(2 << 3 | 5) + struct.pack("<f", value) + _int(20, 1)
    if isinstance(value, str):
        return head + _text(4, value) + _int(20, 3)
    return head + b"".join(_int(8, item) for item in value) + _int(20, 7)


def _weight(weight: Weight) -> bytes:
    dims = b"".join(_int(1, size) for size in weight.shape)
    return dims + _int(2, ELEMENT_TYPES[weight.datatype]) + _text(8, weight.name) + _message(9, weight.data)


def _value(value: Value) -> bytes:
    dims = b"".join(_message(1, _text(2, size) if isinstance(size, str) else _int(1, size)) for size in value.shape)
    tensor = _int(1, ELEMENT_TYPES[value.datatype]) + _message(2, dims)
    return _text(1, value.name) + _message(2, _message(1, tensor))


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _int(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _message(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _text(number: int, value: str) -> bytes:
    return _message(number, value.encode())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m model_repo.onnx_builder", description="Write a bench model.")
    parser.add_argument("model", choices=sorted(CONFIGS))
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--out", type=Path, help="write the .onnx file here")
    place.add_argument("--repository", type=Path, help="write MODEL/config.pbtxt and MODEL/1/model.onnx below this")
    options = parser.parse_args(arguments)
    if options.repository is not None:
        write_model(options.repository, options.model)
    else:
        options.out.write_bytes(_BUILDERS[options.model]())


if __name__ == "__main__":
    main()
