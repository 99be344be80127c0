"""Owns what a recipe may do with a file out of a package: each maker turns its bytes into those of a file to serve.

* `copy`: as it is.
* `ocr_detector`, `ocr_line_reader`: PP-OCR's networks with their arithmetic on pixels in front and, for the reader,
  the choice of the best class behind, so that neither float images nor probabilities travel between processes.
* `ocr_characters`: the reader's dictionary, which is in its metadata.
* `file_type_namer`: magika's network with its rules for turning a score into a label behind.
* `image_network`, `text_network`: EfficientNet-lite0 and MiniLM built from their published weights (their own modules).
* `class_names`: names by class number, one a line.
"""

import json
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final

from model_repo.efficientnet import image_network
from model_repo.minilm import text_network
from model_repo.onnx_builder import Attribute, Node, Value, Weight
from model_repo.onnx_graft import (
    Graft,
    GraftError,
    check_operators,
    encode_texts,
    graft_graph,
    graft_model,
    integers,
    read_ends,
    read_metadata,
    scan_model,
)

#: Rows of pixels of a line of text, as the reader wants them.
LINE_HEIGHT: Final = 48
#: The least columns the reader was trained on; shorter lines are padded up to it.
LINE_WIDTH_MIN: Final = 320
#: The reader takes a step every 8 columns; half of that gives rows that no line's steps can exceed.
_COLUMNS_PER_SLOT: Final = 4
_TURN_CHANCE_MIN: Final = 0.9
_INT64_MAX: Final = (1 << 63) - 1
#: From `Pad` and `Slice` with tensors for arguments to `Squeeze` without an attribute.
_PIXEL_OPERATORS: Final = (11, 12)
#: From `Where` and comparisons of integers to `ReduceMax` without an attribute.
_LABEL_OPERATORS: Final = (11, 17)

#: What `file_type_read` says about an item: the network decides, or one of these labels holds without it.
SPECIAL_LABELS: Final = ("", "empty", "txt", "unknown")

Maker = Callable[[Mapping[str, bytes]], bytes]


def copy(members: Mapping[str, bytes]) -> bytes:
    """The one member, unchanged."""
    (data,) = members.values()
    return data


def ocr_characters(members: Mapping[str, bytes]) -> bytes:
    """One character a line, in the order of the reader's classes 1, 2, ….

    Raises:
        GraftError: the model carries no dictionary.
    """
    (model,) = members.values()
    return read_metadata(model, "character").encode()


def ocr_detector(members: Mapping[str, bytes]) -> bytes:
    """`IMAGE: uint8[height, width, 3]` (BGR, sides multiples of 32) → `CHANCES: float32[1, 1, height, width]`.

    Raises:
        GraftError: the model has not one input and one output, or another operator set.
    """
    (model,) = members.values()
    check_operators(model, *_PIXEL_OPERATORS)
    image, chances = read_ends(model)
    return graft_model(
        model,
        Graft(
            before=[*_normalise_nodes("IMAGE", "tw_image"), _unsqueeze("tw_image", image)],
            after=[Node(op="Identity", inputs=(chances,), outputs=("CHANCES",))],
            inputs=[Value(name="IMAGE", datatype="UINT8", shape=("height", "width", 3))],
            outputs=[Value(name="CHANCES", datatype="FP32", shape=(1, 1, "height", "width"))],
            weights=_normalise_weights(),
        ),
    )


def ocr_line_reader(members: Mapping[str, bytes]) -> bytes:
    """The recogniser as a model over ragged lines, in memory that does not grow with their number.

    As shipped, `x: float32[lines, 3, 48, width]` gives `float32[lines, width / 8, 18710]`: a dense page would need a
    gigabyte of probabilities of which one in 18,710 is wanted, and every short line costs as much as the longest. Here
    the same nodes run inside a `Scan`, a line at a time, cut to its own width and turned if need be.

    Inputs: `LINES: uint8[lines, 48, width, 3]` (BGR), each line's pixels from the left; `WIDTHS: int64[lines]`, the
    columns that hold it; `ANGLES: float32[lines, 2]`, the chances that it is upright and that it is upside down.
    Outputs: `CLASSES: int64[lines, slots]` and `CHANCES: float32[lines, slots]`, the best class of each step and its
    chance, padded with zeros to slots = max(width, 320) / 4.

    Raises:
        GraftError: the model has not one input and one output, or another operator set.
    """
    (model,) = members.values()
    check_operators(model, *_PIXEL_OPERATORS)
    scan = Node(
        op="Scan",
        inputs=("LINES", "WIDTHS", "tw_turned"),
        outputs=("CLASSES", "CHANCES"),
        attributes={"num_scan_inputs": 3},
    )
    outer = Graft(
        before=_page_nodes(),
        inputs=[
            Value(name="LINES", datatype="UINT8", shape=("lines", LINE_HEIGHT, "width", 3)),
            Value(name="WIDTHS", datatype="INT64", shape=("lines",)),
            Value(name="ANGLES", datatype="FP32", shape=("lines", 2)),
        ],
        outputs=[
            Value(name="CLASSES", datatype="INT64", shape=("lines", "slots")),
            Value(name="CHANCES", datatype="FP32", shape=("lines", "slots")),
        ],
        weights=[
            integers("tw_upside_down", (), 1),
            Weight(name="tw_sure", datatype="FP32", shape=(), data=struct.pack("<f", _TURN_CHANCE_MIN)),
            integers("tw_axis_width", (1,), 2),
            integers("tw_slot", (1,), _COLUMNS_PER_SLOT),
            integers("tw_page_min", (1,), LINE_WIDTH_MIN),
        ],
    )
    return scan_model(model, _line_graph(model), scan, outer)


def _page_nodes() -> list[Node]:
    """What is computed once for all lines: which are upside down, and how long every row of the answer is."""
    return [
        Node(op="Gather", inputs=("ANGLES", "tw_upside_down"), outputs=("tw_chance",), attributes={"axis": 1}),
        Node(op="Greater", inputs=("tw_chance", "tw_sure"), outputs=("tw_turned",)),
        Node(op="Shape", inputs=("LINES",), outputs=("tw_shape",)),
        Node(op="Gather", inputs=("tw_shape", "tw_axis_width"), outputs=("tw_shipped",), attributes={"axis": 0}),
        *_larger_nodes("tw_shipped", "tw_page_min", "tw_width"),
        Node(op="Div", inputs=("tw_width", "tw_slot"), outputs=("tw_slots",)),
    ]


def _line_graph(model: bytes) -> bytes:
    """The body of the scan: cut one line, turn it if need be, pad it, recognise it, keep each step's best class."""
    image, chances = read_ends(model)
    return graft_graph(
        model,
        Graft(
            before=[*_cut_nodes(), *_normalise_nodes("tw_upright", "tw_pixels"), *_pad_nodes(image)],
            after=_best_nodes(chances),
            inputs=[
                Value(name="tw_line", datatype="UINT8", shape=(LINE_HEIGHT, "width", 3)),
                Value(name="tw_columns", datatype="INT64", shape=()),
                Value(name="tw_is_turned", datatype="BOOL", shape=()),
            ],
            outputs=[
                Value(name="tw_classes", datatype="INT64", shape=("slots",)),
                Value(name="tw_chances", datatype="FP32", shape=("slots",)),
            ],
            weights=[*_normalise_weights(), *_line_weights()],
        ),
    )


def _cut_nodes() -> list[Node]:
    """`Slice` with a step of -1 on both image axes turns a line by 180 degrees."""
    return [
        _unsqueeze("tw_columns", "tw_end"),
        Node(op="Slice", inputs=("tw_line", "tw_zero", "tw_end", "tw_one"), outputs=("tw_cut",)),
        Node(op="Where", inputs=("tw_is_turned", "tw_from_end", "tw_from_start"), outputs=("tw_first",)),
        Node(op="Where", inputs=("tw_is_turned", "tw_to_start", "tw_to_end"), outputs=("tw_stop",)),
        Node(op="Where", inputs=("tw_is_turned", "tw_from_end", "tw_forward"), outputs=("tw_step",)),
        Node(op="Slice", inputs=("tw_cut", "tw_first", "tw_stop", "tw_axes", "tw_step"), outputs=("tw_upright",)),
    ]


def _pad_nodes(image: str) -> list[Node]:
    """The training's padding: zeros, which are grey after normalisation, on the right."""
    return [
        Node(op="Sub", inputs=("tw_width_min", "tw_end"), outputs=("tw_short",)),
        *_larger_nodes("tw_short", "tw_zero", "tw_right"),
        Node(op="Concat", inputs=("tw_no_pads", "tw_right"), outputs=("tw_image_pads",), attributes={"axis": 0}),
        Node(op="Pad", inputs=("tw_pixels", "tw_image_pads"), outputs=("tw_padded",)),
        _unsqueeze("tw_padded", image),
    ]


def _best_nodes(chances: str) -> list[Node]:
    """Best class and chance of each step, as rows of equal length: class 0 is CTC's blank, which padding may be."""
    axis: dict[str, Attribute] = {"axis": 2, "keepdims": 0}
    axes: dict[str, Attribute] = {"axes": (2,), "keepdims": 0}
    first: dict[str, Attribute] = {"axes": (0,)}
    return [
        Node(op="ArgMax", inputs=(chances,), outputs=("tw_best",), attributes=axis),
        Node(op="ReduceMax", inputs=(chances,), outputs=("tw_best_chance",), attributes=axes),
        Node(op="Squeeze", inputs=("tw_best",), outputs=("tw_steps",), attributes=first),
        Node(op="Squeeze", inputs=("tw_best_chance",), outputs=("tw_step_chances",), attributes=first),
        Node(op="Shape", inputs=("tw_steps",), outputs=("tw_count",)),
        Node(op="Sub", inputs=("tw_slots", "tw_count"), outputs=("tw_missing",)),
        Node(op="Concat", inputs=("tw_zero", "tw_missing"), outputs=("tw_pads",), attributes={"axis": 0}),
        Node(op="Pad", inputs=("tw_steps", "tw_pads"), outputs=("tw_classes",)),
        Node(op="Pad", inputs=("tw_step_chances", "tw_pads"), outputs=("tw_chances",)),
    ]


def _line_weights() -> list[Weight]:
    return [
        integers("tw_zero", (1,), 0),
        integers("tw_one", (1,), 1),
        integers("tw_from_start", (2,), 0, 0),
        integers("tw_from_end", (2,), -1, -1),
        integers("tw_to_end", (2,), _INT64_MAX, _INT64_MAX),
        integers("tw_to_start", (2,), -_INT64_MAX, -_INT64_MAX),
        integers("tw_forward", (2,), 1, 1),
        integers("tw_axes", (2,), 0, 1),
        integers("tw_width_min", (1,), LINE_WIDTH_MIN),
        integers("tw_no_pads", (5,), 0, 0, 0, 0, 0),
    ]


def _normalise_nodes(source: str, target: str) -> list[Node]:
    """`uint8[height, width, 3]` → `float32[3, height, width]` in -1..1."""
    planes: dict[str, Attribute] = {"perm": (2, 0, 1)}
    return [
        Node(op="Transpose", inputs=(source,), outputs=(f"{target}_planes",), attributes=planes),
        Node(op="Cast", inputs=(f"{target}_planes",), outputs=(f"{target}_float",), attributes={"to": 1}),
        Node(op="Div", inputs=(f"{target}_float", "tw_white"), outputs=(f"{target}_unit",)),
        Node(op="Sub", inputs=(f"{target}_unit", "tw_half"), outputs=(f"{target}_centred",)),
        Node(op="Div", inputs=(f"{target}_centred", "tw_half"), outputs=(target,)),
    ]


def _normalise_weights() -> list[Weight]:
    return [
        Weight(name="tw_white", datatype="FP32", shape=(), data=struct.pack("<f", 255.0)),
        Weight(name="tw_half", datatype="FP32", shape=(), data=struct.pack("<f", 0.5)),
    ]


def _larger_nodes(one: str, other: str, target: str) -> list[Node]:
    """The larger of two integers; `Max` takes none before operator set 12."""
    return [
        Node(op="Greater", inputs=(one, other), outputs=(f"{target}_is_first",)),
        Node(op="Where", inputs=(f"{target}_is_first", one, other), outputs=(target,)),
    ]


def _unsqueeze(source: str, target: str) -> Node:
    """A new first axis, as operator sets before 13 have it."""
    return Node(op="Unsqueeze", inputs=(source,), outputs=(target,), attributes={"axes": (0,)})


def file_type_namer(members: Mapping[str, bytes]) -> bytes:
    """magika's network and, behind it, its `HIGH_CONFIDENCE` rules.

    Inputs: `FEATURES: int32[items, 2048]`; `KINDS: int64[items]`, an index of `SPECIAL_LABELS`, 0 where the network
    decides. Outputs: `LABEL: string[items]`, `SCORE: float32[items]`; the score is the network's also where its label
    is replaced, and 1 where it had no say.

    Raises:
        GraftError: the members are not a network, its config.min.json and the list of content types.
    """
    model = _member(members, "model.onnx")
    rules = json.loads(_member(members, "config.min.json"))
    kinds = json.loads(_member(members, "content_types_kb.min.json"))
    check_operators(model, *_LABEL_OPERATORS)
    features, chances = read_ends(model)
    sure, unsure, thresholds = _label_rules(rules, kinds)
    return graft_model(
        model,
        Graft(
            before=[Node(op="Identity", inputs=("FEATURES",), outputs=(features,))],
            after=_name_nodes(chances),
            inputs=[
                Value(name="FEATURES", datatype="INT32", shape=("items", rules["beg_size"] + rules["end_size"])),
                Value(name="KINDS", datatype="INT64", shape=("items",)),
            ],
            outputs=[
                Value(name="LABEL", datatype="BYTES", shape=("items",)),
                Value(name="SCORE", datatype="FP32", shape=("items",)),
            ],
            weights=[
                Weight(name="tw_thresholds", datatype="FP64", shape=(len(sure),), data=thresholds),
                Weight(name="tw_certain", datatype="FP32", shape=(), data=struct.pack("<f", 1.0)),
                integers("tw_network", (), 0),
            ],
            texts=[
                encode_texts("tw_sure_labels", sure),
                encode_texts("tw_unsure_labels", unsure),
                encode_texts("tw_special_labels", SPECIAL_LABELS),
            ],
        ),
    )


def _member(members: Mapping[str, bytes], name: str) -> bytes:
    for path, data in members.items():
        if path.rsplit("/", 1)[-1] == name:
            return data
    raise GraftError(f"the recipe takes no {name}")


def _label_rules(rules: Any, kinds: Any) -> tuple[list[str], list[str], bytes]:
    """For each class: the label where the score suffices, the one where not, and the least score that suffices."""
    space: list[str] = rules["target_labels_space"]
    sure = [rules["overwrite_map"].get(label, label) for label in space]
    unsure = ["txt" if kinds[label]["is_text"] else "unknown" for label in sure]
    least = [rules["thresholds"].get(label, rules["medium_confidence_threshold"]) for label in space]
    return sure, unsure, struct.pack(f"<{len(least)}d", *least)


def _name_nodes(chances: str) -> list[Node]:
    """Scores are compared as doubles, as magika does: 0.9 is no float32."""
    axis: dict[str, Attribute] = {"axis": 1, "keepdims": 0}
    axes: dict[str, Attribute] = {"axes": (1,), "keepdims": 0}
    return [
        Node(op="ArgMax", inputs=(chances,), outputs=("tw_class",), attributes=axis),
        Node(op="ReduceMax", inputs=(chances,), outputs=("tw_score",), attributes=axes),
        Node(op="Gather", inputs=("tw_thresholds", "tw_class"), outputs=("tw_least",)),
        Node(op="Cast", inputs=("tw_score",), outputs=("tw_score_double",), attributes={"to": 11}),
        Node(op="Less", inputs=("tw_score_double", "tw_least"), outputs=("tw_is_unsure",)),
        Node(op="Gather", inputs=("tw_sure_labels", "tw_class"), outputs=("tw_sure_label",)),
        Node(op="Gather", inputs=("tw_unsure_labels", "tw_class"), outputs=("tw_unsure_label",)),
        Node(op="Where", inputs=("tw_is_unsure", "tw_unsure_label", "tw_sure_label"), outputs=("tw_label",)),
        Node(op="Gather", inputs=("tw_special_labels", "KINDS"), outputs=("tw_special_label",)),
        Node(op="Equal", inputs=("KINDS", "tw_network"), outputs=("tw_is_judged",)),
        Node(op="Where", inputs=("tw_is_judged", "tw_label", "tw_special_label"), outputs=("LABEL",)),
        Node(op="Where", inputs=("tw_is_judged", "tw_score", "tw_certain"), outputs=("SCORE",)),
    ]


def class_names(members: Mapping[str, bytes]) -> bytes:
    """A JSON object of names by class number → the first name of each, one a line, in the order of the classes.

    Raises:
        GraftError: the member is no such object, or a class is missing.
    """
    (data,) = members.values()
    try:
        names = json.loads(data)
        firsts = [names[str(number)].split(",")[0].strip() for number in range(len(names))]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise GraftError("the class names are no object of names by class number") from error
    if not all(name and name.isprintable() for name in firsts):
        raise GraftError("a class has no name, or one that cannot be printed")
    return "".join(f"{name}\n" for name in firsts).encode()


MAKERS: Final[Mapping[str, Maker]] = {
    "class_names": class_names,
    "image_network": image_network,
    "text_network": text_network,
    "copy": copy,
    "ocr_characters": ocr_characters,
    "ocr_detector": ocr_detector,
    "ocr_line_reader": ocr_line_reader,
    "file_type_namer": file_type_namer,
}
