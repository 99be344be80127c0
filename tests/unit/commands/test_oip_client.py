"""What `tollway call` knows of OIP: choosing an input, the binary tensor extension both ways."""

import json
import struct
from typing import Any

import numpy as np
import pytest

from gateway.commands.oip_client import (
    OipError,
    Output,
    TensorMeta,
    choose_input,
    decode_reply,
    encode_call,
    fit_shape,
    read_inputs,
)

IMAGE = TensorMeta(name="IMAGE", datatype="BYTES", shape=(1,))
CONTENT = TensorMeta(name="CONTENT", datatype="BYTES", shape=(-1,))
NUMBERS = TensorMeta(name="x", datatype="FP32", shape=(-1, 3))


def test_inputs_are_read_from_metadata() -> None:
    body = {"name": "m", "inputs": [{"name": "IMAGE", "datatype": "BYTES", "shape": [1]}], "outputs": []}
    assert read_inputs(body) == (IMAGE,)


@pytest.mark.parametrize("body", [None, [], {}, {"inputs": None}, {"inputs": [{"name": "x"}]}, {"inputs": [1]}])
def test_what_is_no_metadata_is_refused(body: Any) -> None:
    with pytest.raises(OipError, match="no model metadata"):
        read_inputs(body)


@pytest.mark.parametrize(
    ("inputs", "kind", "wanted", "name"),
    [
        ([IMAGE], "image", None, "IMAGE"),
        ([CONTENT], "image", None, "CONTENT"),
        ([CONTENT], "text", "CONTENT", "CONTENT"),
        ([IMAGE], "file", None, "IMAGE"),
    ],
)
def test_input_is_chosen_by_name_else_the_only_one(
    inputs: list[TensorMeta], kind: str, wanted: str | None, name: str
) -> None:
    assert choose_input(inputs, kind, wanted).name == name


@pytest.mark.parametrize(
    ("inputs", "kind", "wanted", "reason"),
    [
        ([IMAGE], "image", "PICTURE", r"no input 'PICTURE'; its inputs are IMAGE BYTES\[1\]"),
        ([NUMBERS], "image", "x", "takes FP32, not image: use --json"),
        ([NUMBERS], "text", None, "no input takes text"),
        ([], "text", None, "its inputs are none"),
        ([IMAGE, NUMBERS], "image", None, "needs 2 inputs"),
        ([IMAGE, CONTENT], "text", None, "name one with --input"),
    ],
)
def test_input_that_does_not_fit_is_said(inputs: list[TensorMeta], kind: str, wanted: str | None, reason: str) -> None:
    with pytest.raises(OipError, match=reason):
        choose_input(inputs, kind, wanted)


@pytest.mark.parametrize(
    ("shape", "count", "fitted"),
    [((1,), 1, (1,)), ((-1,), 3, (3,)), ((-1, 1), 2, (2, 1)), ((-1, -1), 4, (4, 1)), ((), 1, ())],
)
def test_items_take_the_first_variable_size(shape: tuple[int, ...], count: int, fitted: tuple[int, ...]) -> None:
    assert fit_shape(TensorMeta(name="x", datatype="BYTES", shape=shape), count) == fitted


@pytest.mark.parametrize(("shape", "count"), [((1,), 2), ((2,), 1), ((-1, 2), 3)])
def test_items_that_do_not_fit_are_refused(shape: tuple[int, ...], count: int) -> None:
    with pytest.raises(OipError, match="item"):
        fit_shape(TensorMeta(name="x", datatype="BYTES", shape=shape), count)


def test_call_is_a_json_head_and_length_prefixed_items() -> None:
    body, head_length = encode_call(CONTENT, [b"ab", b""])
    head = json.loads(body[:head_length])
    assert head["inputs"] == [
        {"name": "CONTENT", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": 10}}
    ]
    assert head["parameters"] == {"binary_data_output": True}
    assert body[head_length:] == b"\x02\0\0\0ab\0\0\0\0"


def reply(*tensors: tuple[str, str, list[int], bytes]) -> tuple[bytes, int]:
    outputs = [
        {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(data)}}
        for name, datatype, shape, data in tensors
    ]
    head = json.dumps({"model_name": "m", "outputs": outputs}).encode()
    return head + b"".join(data for *_, data in tensors), len(head)


@pytest.mark.parametrize(
    ("datatype", "numpy_type"),
    [
        ("BOOL", "?"),
        ("UINT8", "u1"),
        ("UINT16", "<u2"),
        ("UINT32", "<u4"),
        ("UINT64", "<u8"),
        ("INT8", "i1"),
        ("INT16", "<i2"),
        ("INT32", "<i4"),
        ("INT64", "<i8"),
        ("FP16", "<f2"),
        ("FP32", "<f4"),
        ("FP64", "<f8"),
    ],
)
def test_binary_tensors_of_every_type_are_read_as_numpy_wrote_them(datatype: str, numpy_type: str) -> None:
    array = np.array([0, 1, 1, 0, 1, 1]).astype(numpy_type)
    (output,) = decode_reply(*reply(("y", datatype, [2, 3], array.tobytes())))
    assert output == Output(name="y", datatype=datatype, shape=(2, 3), values=tuple(array.tolist()))


def test_bfloat16_is_the_upper_half_of_a_float() -> None:
    data = struct.pack("<f", 1.5)[2:] + struct.pack("<f", -2.0)[2:]
    (output,) = decode_reply(*reply(("y", "BF16", [2], data)))
    assert output.values == (1.5, -2.0)


def test_tensors_follow_one_another() -> None:
    outputs = decode_reply(*reply(("t", "BYTES", [2], b"\x01\0\0\0a\x02\0\0\0bc"), ("s", "FP32", [1], b"\0\0\x80?")))
    assert [output.values for output in outputs] == [(b"a", b"bc"), (1.0,)]


def test_json_reply_may_be_nested() -> None:
    outputs = [
        {"name": "y", "datatype": "INT32", "shape": [2, 2], "data": [[1, 2], [3, 4]]},
        {"name": "t", "datatype": "BYTES", "shape": [1], "data": ["ä"]},
    ]
    found = decode_reply(json.dumps({"outputs": outputs}).encode(), None)
    assert [output.values for output in found] == [(1, 2, 3, 4), ("ä".encode(),)]


def test_empty_outputs_are_empty() -> None:
    found = decode_reply(*reply(("t", "BYTES", [0], b""), ("b", "FP32", [0, 4, 2], b"")))
    assert [output.values for output in found] == [(), ()]


@pytest.mark.parametrize(
    ("body", "length"),
    [
        (b"", 0),
        (b"{}", None),
        (b"{}", 5),
        (b"{}", -1),
        (b"[1]", None),
        (b'{"outputs": [1]}', None),
        (b'{"outputs": [{"name": "y", "datatype": "INT8", "shape": [2], "data": [1]}]}', None),
        reply(("y", "FP32", [1], b"\0\0\0")),
        reply(("y", "FP99", [1], b"\0\0\0\0")),
        reply(("t", "BYTES", [1], b"\x09\0\0\0a")),
        reply(("t", "BYTES", [1], b"\x09\0")),
        reply(("t", "BYTES", [2], b"\x01\0\0\0a")),
    ],
)
def test_reply_that_does_not_fit_together_is_refused(body: bytes, length: int | None) -> None:
    with pytest.raises(OipError):
        decode_reply(body, length)
