"""Owns adding nodes before and after the nodes of a shipped ONNX model, whose own nodes and weights stay untouched.

No `onnx` package is involved: a model's fields are taken apart and put together as protobuf's wire format has them, and
new nodes are encoded by `model_repo.onnx_builder`. They run under the operator set of the shipped model.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from model_repo.onnx_builder import Node, Value, Weight, encode_model

#: Field numbers of onnx.proto: ModelProto, GraphProto, NodeProto, AttributeProto, TensorProto, StringStringEntryProto.
MODEL_GRAPH: Final = 7
MODEL_OPSET: Final = 8
MODEL_METADATA: Final = 14
GRAPH_NODE: Final = 1
GRAPH_NAME: Final = 2
GRAPH_WEIGHT: Final = 5
GRAPH_INPUT: Final = 11
GRAPH_OUTPUT: Final = 12
_NODE_ATTRIBUTE: Final = 5
_ATTRIBUTE_NAME: Final = 1
_ATTRIBUTE_GRAPH: Final = 6
_ATTRIBUTE_TYPE: Final = 20
_TYPE_GRAPH: Final = 5
_TENSOR_DIMS: Final = 1
_TENSOR_TYPE: Final = 2
_TENSOR_STRING: Final = 6
_TENSOR_NAME: Final = 8
_TYPE_STRING: Final = 8

_VARINT: Final = 0
_BYTES: Final = 2
_FIXED: Final = {1: 8, 5: 4}
_VARINT_BITS_MAX: Final = 64


class GraftError(Exception):
    """The bytes are not the ONNX model that the graft was written for."""


@dataclass(frozen=True, slots=True)
class Field:
    """One protobuf field: its number, its value if it is of the length-delimited kind, and all its bytes."""

    number: int
    value: bytes
    encoded: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Graft:
    """What is added to a model: nodes around its own, the new inputs and outputs, encoded constants.

    `before` must make the tensor named as the model's input, `after` may use the one named as its output.
    """

    before: Sequence[Node] = ()
    after: Sequence[Node] = ()
    inputs: Sequence[Value]
    outputs: Sequence[Value]
    weights: Sequence[Weight] = ()
    texts: Sequence[bytes] = ()


def read_fields(data: bytes) -> Iterator[Field]:
    """The fields of one message, in order (protobuf encoding: key, then varint, fixed or length-delimited value).

    Raises:
        GraftError: the bytes end inside a field, or use a wire type that ONNX does not.
    """
    offset = 0
    while offset < len(data):
        start = offset
        key, offset = _read_varint(data, offset)
        value = b""
        if key & 7 == _VARINT:
            _, offset = _read_varint(data, offset)
        elif key & 7 == _BYTES:
            size, offset = _read_varint(data, offset)
            value = data[offset : offset + size]
            offset += size
        elif key & 7 in _FIXED:
            offset += _FIXED[key & 7]
        else:
            raise GraftError(f"wire type {key & 7} is not used by ONNX")
        if offset > len(data):
            raise GraftError("the bytes end inside a field")
        yield Field(key >> 3, value, data[start:offset])


def read_metadata(model: bytes, key: str) -> str:
    """The text of entry `key` of the model's metadata.

    Raises:
        GraftError: there is none.
    """
    for field in read_fields(model):
        if field.number == MODEL_METADATA:
            entry = {part.number: part.value for part in read_fields(field.value)}
            if entry.get(1) == key.encode():
                return entry.get(2, b"").decode()
    raise GraftError(f"the model's metadata has no '{key}'")


def check_operators(model: bytes, least: int, most: int) -> None:
    """Refuse a model whose operator set is not one that a graft's nodes are written for.

    Raises:
        GraftError: it is older or newer, or the model names none.
    """
    for field in read_fields(model):
        if field.number == MODEL_OPSET:
            parts = {part.number: part for part in read_fields(field.value)}
            if 2 in parts and (1 not in parts or not parts[1].value):
                version, _ = _read_varint(parts[2].encoded, 1)
                if least <= version <= most:
                    return
                raise GraftError(f"operator set {version} is outside {least}..{most}")
    raise GraftError("no ONNX model: it names no operator set")


def read_ends(model: bytes) -> tuple[str, str]:
    """The names of the one input and the one output of a model.

    Raises:
        GraftError: it has none or more than one of either.
    """
    fields = list(read_fields(_graph_of(model)))
    weights = {_name_of(field, _TENSOR_NAME) for field in fields if field.number == GRAPH_WEIGHT}
    inputs = [_name_of(field, 1) for field in fields if field.number == GRAPH_INPUT]
    inputs = [name for name in inputs if name not in weights]  # Old models list their weights as inputs too.
    outputs = [_name_of(field, 1) for field in fields if field.number == GRAPH_OUTPUT]
    if len(inputs) != 1 or len(outputs) != 1:
        raise GraftError(f"{len(inputs)} inputs and {len(outputs)} outputs where one of each is expected")
    return inputs[0], outputs[0]


def graft_model(model: bytes, graft: Graft) -> bytes:
    """`model` with the nodes of `graft` around its own, as a model of the new inputs and outputs.

    Raises:
        GraftError: `model` is no ONNX model.
    """
    return _with_graph(model, graft_graph(model, graft))


def graft_graph(model: bytes, graft: Graft) -> bytes:
    """The GraphProto of `graft_model`, for use as the body of a `Scan`.

    Raises:
        GraftError: `model` is no ONNX model.
    """
    own = [
        field.encoded
        for field in read_fields(_graph_of(model))
        if field.number in {GRAPH_NODE, GRAPH_WEIGHT, GRAPH_NAME}
    ]
    before = _encode_nodes(graft.before)
    after = _encode_nodes(graft.after)
    ends = _encode_ends(graft.inputs, graft.outputs, graft.weights)
    texts = [encode_message(GRAPH_WEIGHT, text) for text in graft.texts]
    return b"".join((*before, *own, *after, *ends, *texts))


def scan_model(model: bytes, body: bytes, scan: Node, graft: Graft) -> bytes:
    """A model under the operator set of `model` that runs `graft.before`, then `scan` over `body`.

    Raises:
        GraftError: `model` is no ONNX model.
    """
    attribute = b"".join(
        (
            encode_message(_ATTRIBUTE_NAME, b"body"),
            encode_message(_ATTRIBUTE_GRAPH, body),
            _encode_int(_ATTRIBUTE_TYPE, _TYPE_GRAPH),
        )
    )
    (encoded,) = (field.value for field in _graph_fields(encode_model([scan], (), ())) if field.number == GRAPH_NODE)
    node = encode_message(GRAPH_NODE, encoded + encode_message(_NODE_ATTRIBUTE, attribute))
    ends = _encode_ends(graft.inputs, graft.outputs, graft.weights)
    return _with_graph(model, b"".join((*_encode_nodes(graft.before), node, *ends)))


def encode_texts(name: str, texts: Sequence[str]) -> bytes:
    """A TensorProto of strings, which the builder's raw data cannot hold."""
    head = _encode_int(_TENSOR_DIMS, len(texts)) + _encode_int(_TENSOR_TYPE, _TYPE_STRING)
    items = b"".join(encode_message(_TENSOR_STRING, text.encode()) for text in texts)
    return head + items + encode_message(_TENSOR_NAME, name.encode())


def integers(name: str, shape: tuple[int, ...], *values: int) -> Weight:
    """A constant of INT64 elements."""
    data = b"".join(value.to_bytes(8, "little", signed=True) for value in values)
    return Weight(name=name, datatype="INT64", shape=shape, data=data)


def encode_message(number: int, data: bytes) -> bytes:
    """One length-delimited field."""
    return _encode_varint(number << 3 | _BYTES) + _encode_varint(len(data)) + data


def _with_graph(model: bytes, graph: bytes) -> bytes:
    """`model` with another graph; its metadata, which describes the shipped one, is left out."""
    return b"".join(
        encode_message(MODEL_GRAPH, graph) if field.number == MODEL_GRAPH else field.encoded
        for field in read_fields(model)
        if field.number != MODEL_METADATA
    )


def _graph_of(model: bytes) -> bytes:
    graphs = [field.value for field in read_fields(model) if field.number == MODEL_GRAPH]
    if len(graphs) != 1:
        raise GraftError("no ONNX model: it has not one graph")
    return graphs[0]


def _graph_fields(model: bytes) -> list[Field]:
    return list(read_fields(_graph_of(model)))


def _encode_nodes(nodes: Iterable[Node]) -> list[bytes]:
    return [field.encoded for field in _graph_fields(encode_model(nodes, (), ())) if field.number == GRAPH_NODE]


def _encode_ends(inputs: Iterable[Value], outputs: Iterable[Value], weights: Iterable[Weight]) -> list[bytes]:
    wanted = {GRAPH_INPUT, GRAPH_OUTPUT, GRAPH_WEIGHT}
    return [
        field.encoded for field in _graph_fields(encode_model((), inputs, outputs, weights)) if field.number in wanted
    ]


def _name_of(field: Field, number: int) -> str:
    return next(part.value for part in read_fields(field.value) if part.number == number).decode()


def _read_varint(data: bytes, offset: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, _VARINT_BITS_MAX + 6, 7):
        if offset >= len(data):
            raise GraftError("the bytes end inside a number")
        byte = data[offset]
        offset += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, offset
    raise GraftError("a number is longer than 64 bits")


def _encode_int(number: int, value: int) -> bytes:
    return _encode_varint(number << 3 | _VARINT) + _encode_varint(value)


def _encode_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
