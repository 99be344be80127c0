"""Grafts: new nodes around shipped ones, checked by running small stand-ins for the shipped models."""

import json
import struct
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from model_repo.makers import MAKERS, copy, file_type_namer, ocr_characters, ocr_detector, ocr_line_reader
from model_repo.onnx_builder import Node, Value, Weight, encode_model
from model_repo.onnx_graft import (
    MODEL_METADATA,
    GraftError,
    check_operators,
    encode_message,
    read_ends,
    read_fields,
    read_metadata,
)

OPSET_17 = b"\x42\x04\x0a\x00\x10\x11"
OPSET_11 = b"\x42\x04\x0a\x00\x10\x0b"


def old(model: bytes) -> bytes:
    """`model` under operator set 11, that of the shipped recogniser."""
    assert model.endswith(OPSET_17)
    return model.removesuffix(OPSET_17) + OPSET_11


def run(model: bytes, **feeds: Any) -> list[Any]:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    outputs: list[Any] = session.run(None, feeds)
    return outputs


def column_reader() -> bytes:
    """Stands for the recogniser: a step per 8 columns; classes 0..2 score the step's first blue, green and red."""
    nodes = [
        Node(
            op="MaxPool",
            inputs=("x",),
            outputs=("first",),
            attributes={"kernel_shape": (48, 8), "strides": (48, 8)},
        ),
        Node(op="Squeeze", inputs=("first",), outputs=("flat",), attributes={"axes": (2,)}),
        Node(op="Transpose", inputs=("flat",), outputs=("y",), attributes={"perm": (0, 2, 1)}),
    ]
    return old(
        encode_model(
            nodes,
            [Value(name="x", datatype="FP32", shape=("n", 3, 48, "w"))],
            [Value(name="y", datatype="FP32", shape=("n", "t", 3))],
        )
    )


def line(*colours: int, width: int = 400) -> Any:
    """`uint8[48, width, 3]`: 8 columns a colour channel in turn, the rest black."""
    pixels = np.zeros((48, width, 3), dtype=np.uint8)
    for step, channel in enumerate(colours):
        pixels[:, 8 * step : 8 * step + 8, channel] = 255
    return pixels


def read_lines(lines: list[Any], widths: list[int], turned: list[bool]) -> tuple[Any, Any]:
    angles = np.array([[0.02, 0.98] if flag else [0.95, 0.05] for flag in turned], dtype=np.float32)
    model = ocr_line_reader({"m": column_reader()})
    classes, chances = run(model, LINES=np.stack(lines), WIDTHS=np.array(widths, dtype=np.int64), ANGLES=angles)
    return classes, chances


def test_line_reader_keeps_the_best_class_of_each_step() -> None:
    classes, chances = read_lines([line(1, 2, 0, 2)], [400], [False])
    assert classes.shape == chances.shape == (1, 100)
    assert classes[0, :4].tolist() == [1, 2, 0, 2]
    assert np.allclose(chances[0, :4], 1.0)


def test_line_reader_turns_a_line_that_is_upside_down_within_its_own_width() -> None:
    classes, _ = read_lines([line(1, 2, 0, 2), line(1, 2, 0, 2)], [32, 32], [True, False])
    assert classes[:, :4].tolist() == [[2, 0, 2, 1], [1, 2, 0, 2]]


def test_line_reader_pads_short_lines_to_the_trained_width_with_grey() -> None:
    _, chances = read_lines([line(1, width=16)], [8], [False])
    assert chances.shape == (1, 80)
    assert chances[0, 0] == pytest.approx(1.0)
    assert not chances[0, 1:40].any(), "grey is 0 after normalisation"


def test_line_reader_does_not_see_beyond_a_lines_width() -> None:
    noisy = line(1, 2)
    noisy[:, 336:, :] = 255
    classes, chances = read_lines([noisy, line(1, 2)], [336, 336], [False, False])
    assert (classes[0] == classes[1]).all()
    assert (chances[0] == chances[1]).all()


def test_line_reader_gives_rows_of_one_length_padded_with_blanks() -> None:
    classes, chances = read_lines([line(2, 2, 2), line(1)], [400, 330], [False, False])
    assert classes.shape == (2, 100)
    assert not classes[1, 41:].any()
    assert not chances[1, 41:].any()


def test_detector_normalises_pixels_inside() -> None:
    nodes = [Node(op="Identity", inputs=("x",), outputs=("y",))]
    ends = ([Value(name="x", datatype="FP32", shape=("n", 3, "h", "w"))], [Value(name="y", datatype="FP32", shape=())])
    image = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)
    (out,) = run(ocr_detector({"m": old(encode_model(nodes, *ends))}), IMAGE=image)
    expected = (image.transpose(2, 0, 1)[None].astype(np.float32) / 255 - 0.5) / 0.5
    assert out.shape == (1, 3, 2, 4)
    assert np.allclose(out, expected, atol=1e-6)


RULES = {
    "beg_size": 1,
    "end_size": 2,
    "target_labels_space": ["python", "png", "randombytes", "crt"],
    "overwrite_map": {"randombytes": "unknown"},
    "thresholds": {"crt": 0.9},
    "medium_confidence_threshold": 0.5,
}
KINDS = {
    "python": {"is_text": True},
    "png": {"is_text": False},
    "unknown": {"is_text": False},
    "crt": {"is_text": True},
}


def namer(**changes: Any) -> bytes:
    """Its stand-in network scores the four classes by features and constants given in `table`."""
    table = np.array([[0.9, 0.1, 0, 0], [0.2, 0.4, 0, 0], [0, 0, 0.6, 0.1], [0, 0, 0, 0.89], [0, 0, 0, 0.9]], "<f4")
    nodes = [
        Node(op="Cast", inputs=("bytes",), outputs=("wide",), attributes={"to": 7}),
        Node(op="Gather", inputs=("wide", "column"), outputs=("row",), attributes={"axis": 1}),
        Node(op="Gather", inputs=("table", "row"), outputs=("chances",), attributes={"axis": 0}),
    ]
    model = encode_model(
        nodes,
        [Value(name="bytes", datatype="INT32", shape=("n", 3))],
        [Value(name="chances", datatype="FP32", shape=("n", 4))],
        [
            Weight(name="table", datatype="FP32", shape=table.shape, data=table.tobytes()),
            Weight(name="column", datatype="INT64", shape=(), data=struct.pack("<q", 0)),
        ],
    )
    members = {
        "a/model.onnx": model,
        "a/config.min.json": json.dumps({**RULES, **changes}).encode(),
        "b/content_types_kb.min.json": json.dumps(KINDS).encode(),
    }
    return file_type_namer(members)


def names(rows: list[int], kinds: list[int]) -> tuple[list[str], list[float]]:
    features = np.array([[row, 0, 0] for row in rows], dtype=np.int32)
    labels, scores = run(namer(), FEATURES=features, KINDS=np.array(kinds, dtype=np.int64))
    return labels.tolist(), [round(float(score), 4) for score in scores]


def test_namer_gives_the_label_where_the_score_suffices() -> None:
    assert names([0], [0]) == (["python"], [0.9])


def test_namer_gives_a_generic_label_where_not() -> None:
    assert names([1, 3], [0, 0]) == (["unknown", "txt"], [0.4, 0.89])


def test_namer_applies_the_overwrite_map() -> None:
    assert names([2], [0]) == (["unknown"], [0.6])


def test_namer_compares_as_doubles() -> None:
    """The float32 next to 0.9 is below the double 0.9, so magika does not trust it."""
    assert names([4], [0]) == (["txt"], [0.9])


def test_namer_leaves_special_kinds_alone() -> None:
    assert names([0, 0, 0, 0], [0, 1, 2, 3]) == (["python", "empty", "txt", "unknown"], [0.9, 1.0, 1.0, 1.0])


def test_namer_names_a_missing_member() -> None:
    with pytest.raises(GraftError, match=r"takes no config\.min\.json"):
        file_type_namer({"a/model.onnx": old(encode_model((), (), ()))})


def test_characters_come_from_the_metadata() -> None:
    entry = encode_message(1, b"character") + encode_message(2, "a\nß\n字".encode())
    other = encode_message(1, b"else") + encode_message(2, b"x")
    model = column_reader() + encode_message(MODEL_METADATA, other) + encode_message(MODEL_METADATA, entry)
    assert ocr_characters({"m": model}) == "a\nß\n字".encode()
    with pytest.raises(GraftError, match="no 'character'"):
        read_metadata(column_reader(), "character")


def test_copy_is_the_member_itself() -> None:
    assert copy({"m": b"abc"}) == b"abc"


def test_fields_put_together_again_are_the_message() -> None:
    model = column_reader()
    assert b"".join(field.encoded for field in read_fields(model)) == model


@pytest.mark.parametrize("cut", [1, 2, 10, 50, 200])
def test_cut_message_is_refused(cut: int) -> None:
    with pytest.raises(GraftError):
        list(read_fields(column_reader()[:-cut]))


@pytest.mark.parametrize("data", [b"\x0b", b"\xff" * 12, b"\x08" + b"\xff" * 11])
def test_what_is_no_protobuf_is_refused(data: bytes) -> None:
    with pytest.raises(GraftError):
        list(read_fields(data))


def test_weights_listed_as_inputs_are_no_ends() -> None:
    value = Value(name="w", datatype="FP32", shape=(1,))
    weight = Weight(name="w", datatype="FP32", shape=(1,), data=b"\0" * 4)
    x, y = (Value(name=name, datatype="FP32", shape=(1,)) for name in "xy")
    nodes = [Node(op="Add", inputs=("x", "w"), outputs=("y",))]
    assert read_ends(encode_model(nodes, [x, value], [y], [weight])) == ("x", "y")
    with pytest.raises(GraftError, match="2 inputs"):
        read_ends(encode_model(nodes, [x, value], [y]))


@pytest.mark.parametrize("name", ["ocr_detector", "ocr_line_reader"])
def test_model_under_an_operator_set_not_written_for_is_refused(name: str) -> None:
    newer = column_reader().removesuffix(OPSET_11) + OPSET_17
    with pytest.raises(GraftError, match=r"operator set 17 is outside 11\.\.12"):
        MAKERS[name]({"m": newer})


@pytest.mark.parametrize("name", sorted(set(MAKERS) - {"copy", "file_type_namer"}))
@pytest.mark.parametrize("data", [b"", b"no model", b"\x3a\x00"])
def test_what_is_no_model_is_refused(name: str, data: bytes) -> None:
    with pytest.raises(GraftError):
        MAKERS[name]({"m": data})


def test_operator_set_of_another_domain_does_not_count() -> None:
    with pytest.raises(GraftError, match="names no operator set"):
        check_operators(b"\x42\x06\x0a\x02ml\x10\x0b", 11, 12)
