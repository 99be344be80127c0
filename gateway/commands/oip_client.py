"""Owns what `tollway call` knows of OIP: a model's metadata, the binary tensor extension, replies as plain values.

Bytes in, values out; no I/O, and no numpy, which the command line does not need otherwise (CONTRACT.md §2).
"""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

Scalar = bool | int | float | bytes

HEADER_LENGTH: Final = "inference-header-content-length"
#: struct's letter for each datatype of fixed size; BF16 is the upper half of an FP32.
_FORMATS: Final[Mapping[str, str]] = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP16": "e",
    "BF16": "H",
    "FP32": "f",
    "FP64": "d",
}
_LENGTH: Final = struct.Struct("<I")
#: What an input is usually called that takes what the caller gives; the first that the model has is taken.
_USUAL_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "image": ("IMAGE", "image"),
    "audio": ("AUDIO", "audio"),
    "text": ("TEXT", "text", "PROMPT", "prompt", "text_input"),
    "file": ("CONTENT", "content", "FILE", "file"),
}


class OipError(Exception):
    """What was asked does not fit the model, or a reply is not OIP's; the message is for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorMeta:
    """An input or output as the model's metadata names it; -1 in `shape` is a variable size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """A tensor of a reply: its elements row by row. Elements of BYTES are bytes."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: tuple[Scalar, ...]


def read_inputs(metadata: Any) -> tuple[TensorMeta, ...]:
    """The inputs in the body of `GET /v2/models/{model}`.

    Raises:
        OipError: it is no model metadata.
    """
    try:
        return tuple(
            TensorMeta(name=str(item["name"]), datatype=str(item["datatype"]), shape=tuple(map(int, item["shape"])))
            for item in metadata["inputs"]
        )
    except (KeyError, TypeError, ValueError) as error:
        raise OipError("the answer is no model metadata: is that an OIP server?") from error


def choose_input(inputs: Sequence[TensorMeta], kind: str, wanted: str | None) -> TensorMeta:
    """The input for an image, audio, text or file: the one called `wanted`, else by its usual name, else the only one.

    Raises:
        OipError: the model has no such input, or needs more than one.
    """
    known = ", ".join(f"{item.name} {item.datatype}{list(item.shape)}" for item in inputs) or "none"
    if wanted is not None:
        found = [item for item in inputs if item.name == wanted]
        if not found:
            raise OipError(f"the model has no input '{wanted}'; its inputs are {known}")
    else:
        of_bytes = {item.name: item for item in inputs if item.datatype == "BYTES"}
        found = [of_bytes[name] for name in _USUAL_NAMES[kind] if name in of_bytes] or list(of_bytes.values())
        if not found or (len(found) > 1 and found[0].name not in _USUAL_NAMES[kind]):
            raise OipError(f"no input takes {kind} for certain (name one with --input); its inputs are {known}")
    if found[0].datatype != "BYTES":
        raise OipError(f"input '{found[0].name}' takes {found[0].datatype}, not {kind}: use --json")
    if len(inputs) > 1:
        raise OipError(f"the model needs {len(inputs)} inputs ({known}): use --json")
    return found[0]


def fit_shape(meta: TensorMeta, count: int) -> tuple[int, ...]:
    """The shape that holds `count` items: the first variable size takes them, the others are 1.

    Raises:
        OipError: the input takes another number.
    """
    shape = list(meta.shape)
    if -1 in shape:
        shape[shape.index(-1)] = count
    shape = [1 if size == -1 else size for size in shape]
    if math.prod(shape) != count:
        raise OipError(f"input '{meta.name}' takes {math.prod(shape)} item(s) a call, not {count}")
    return tuple(shape)


def encode_call(meta: TensorMeta, items: Sequence[bytes]) -> tuple[bytes, int]:
    """The body of an infer call with one BYTES input, and the length of its JSON part.

    Raises:
        OipError: as `fit_shape`.
    """
    blob = b"".join(_LENGTH.pack(len(item)) + item for item in items)
    tensor = {
        "name": meta.name,
        "datatype": meta.datatype,
        "shape": fit_shape(meta, len(items)),
        "parameters": {"binary_data_size": len(blob)},
    }
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return head + blob, len(head)


def decode_reply(body: bytes, header_length: int | None) -> tuple[Output, ...]:
    """The outputs of an infer reply; `header_length` is the reply's header of that name, None for plain JSON.

    Raises:
        OipError: head and tensors do not fit together.
    """
    cut = len(body) if header_length is None else header_length
    if not 0 <= cut <= len(body):
        raise OipError("the reply is shorter than its header says")
    try:
        head = json.loads(body[:cut])
        outputs = []
        offset = cut
        for item in head["outputs"]:
            size = item.get("parameters", {}).get("binary_data_size")
            name, datatype, shape = str(item["name"]), str(item["datatype"]), tuple(map(int, item["shape"]))
            if size is None:
                values = _flatten(item["data"], datatype)
            else:
                values = _unpack(datatype, body[offset : offset + int(size)])
                offset += int(size)
            if len(values) != math.prod(shape):
                raise OipError(f"output '{name}' has {len(values)} elements, its shape {list(shape)} says otherwise")
            outputs.append(Output(name=name, datatype=datatype, shape=shape, values=values))
    except (KeyError, TypeError, ValueError, AttributeError, struct.error) as error:
        raise OipError("the reply is not OIP's: its head and its tensors do not fit together") from error
    return tuple(outputs)


def _flatten(data: Any, datatype: str) -> tuple[Scalar, ...]:
    """JSON data may be nested or flat."""
    if isinstance(data, list):
        return tuple(value for item in data for value in _flatten(item, datatype))
    return (data.encode() if datatype == "BYTES" else data,)


def _unpack(datatype: str, data: bytes) -> tuple[Scalar, ...]:
    if datatype == "BYTES":
        return _unpack_bytes(data)
    letter = _FORMATS[datatype]
    count, rest = divmod(len(data), struct.calcsize(f"<{letter}"))
    if rest:
        raise ValueError(f"{len(data)} bytes of {datatype}")
    values: tuple[Scalar, ...] = struct.unpack(f"<{count}{letter}", data)
    if datatype == "BF16":
        values = struct.unpack(f"<{count}f", b"".join(b"\0\0" + data[2 * i : 2 * i + 2] for i in range(count)))
    return values


def _unpack_bytes(data: bytes) -> tuple[bytes, ...]:
    items = []
    offset = 0
    while offset < len(data):
        (size,) = _LENGTH.unpack_from(data, offset)
        offset += _LENGTH.size
        if size > len(data) - offset:
            raise ValueError("an element is longer than its tensor")
        items.append(data[offset : offset + size])
        offset += size
    return tuple(items)
