"""Owns trees as one ONNX operator: exact at every split, missing values included.

A split in a framework that computes in float64 is `x <= t` with t: float64. For x: float32 that is the same as
`x <= t32` with t32 the greatest float32 not above t; rounding to the nearest would send what is between the wrong way.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from converters.importers.exchange import Array

INPUT: Final = "input"
OPSET: Final = 18
OPSET_ML: Final = 3
LEQ: Final = "BRANCH_LEQ"
LT: Final = "BRANCH_LT"
EQ: Final = "BRANCH_EQ"
LEAF: Final = "LEAF"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """Nodes by place, the root first. Of a leaf `modes` is LEAF and `values` what it adds to output `target`.

    `left` is taken where the condition holds, or where the value is missing and `missing_left`.
    """

    target: int
    features: Sequence[int]
    modes: Sequence[str]
    values: Sequence[float]
    left: Sequence[int]
    right: Sequence[int]
    missing_left: Sequence[bool]


def floor32(values: Array) -> Array:
    """float32[n] of float64[n]: the greatest float32 that is not above each."""
    wide = np.asarray(values, np.float64)
    with np.errstate(over="ignore"):
        near = wide.astype(np.float32)
        below = np.nextafter(near, np.float32(-np.inf))
    return np.where(near.astype(np.float64) > wide, below, near)


def build_scores(trees: Sequence[Tree], base: Sequence[float], features: int) -> "Graph":
    """A graph with `scores: float32[batch, len(base)]`, the sum of the trees and `base`; nothing comes after it yet."""
    graph = Graph(features)
    attributes: dict[str, list[Any]] = {name: [] for name in _NODES + _LEAVES}
    for place, tree in enumerate(trees):
        _add(attributes, place, tree)
    graph.add(
        "TreeEnsembleRegressor",
        [INPUT],
        "scores",
        domain="ai.onnx.ml",
        n_targets=len(base),
        base_values=[float(value) for value in base],
        post_transform="NONE",
        aggregate_function="SUM",
        **attributes,
    )
    return graph


_NODES: Final = (
    "nodes_treeids",
    "nodes_nodeids",
    "nodes_featureids",
    "nodes_modes",
    "nodes_values",
    "nodes_truenodeids",
    "nodes_falsenodeids",
    "nodes_missing_value_tracks_true",
)
_LEAVES: Final = ("target_treeids", "target_nodeids", "target_ids", "target_weights")


def _add(attributes: dict[str, list[Any]], place: int, tree: Tree) -> None:
    for node, mode in enumerate(tree.modes):
        is_leaf = mode == LEAF
        attributes["nodes_treeids"].append(place)
        attributes["nodes_nodeids"].append(node)
        attributes["nodes_featureids"].append(0 if is_leaf else int(tree.features[node]))
        attributes["nodes_modes"].append(mode)
        attributes["nodes_values"].append(0.0 if is_leaf else float(tree.values[node]))
        attributes["nodes_truenodeids"].append(0 if is_leaf else int(tree.left[node]))
        attributes["nodes_falsenodeids"].append(0 if is_leaf else int(tree.right[node]))
        attributes["nodes_missing_value_tracks_true"].append(0 if is_leaf else int(tree.missing_left[node]))
        if is_leaf:
            attributes["target_treeids"].append(place)
            attributes["target_nodeids"].append(node)
            attributes["target_ids"].append(tree.target)
            attributes["target_weights"].append(float(tree.values[node]))


class Graph:
    """Nodes one after the other; `input: float32[batch, features]`."""

    def __init__(self, features: int) -> None:
        self._features = features
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def add(self, kind: str, inputs: Sequence[str], output: str, *, domain: str = "", **attributes: Any) -> str:
        self._nodes.append(helper.make_node(kind, list(inputs), [output], domain=domain, **attributes))
        return output

    def constant(self, name: str, value: Array) -> str:
        self._constants.append(numpy_helper.from_array(value, name))
        return name

    def finish(self, outputs: Sequence[tuple[str, int, Sequence[int | str]]]) -> Any:
        """The model; outputs as (name, ONNX element type, shape). Raises: onnx.checker.ValidationError."""
        graph = helper.make_graph(
            self._nodes,
            "trees",
            [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", self._features])],
            [helper.make_tensor_value_info(name, kind, list(shape)) for name, kind, shape in outputs],
            self._constants,
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", OPSET_ML)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9, producer_name="tollway")
        onnx.checker.check_model(model)
        return model


def classify_binary(graph: Graph, classes: Array | None = None) -> Any:
    """From one score a row: probabilities [1 − σ, σ] and the label, 1 where σ > 0.5 (or the classes' numbers)."""
    graph.add("Sigmoid", ["scores"], "second")
    graph.add("Sub", [graph.constant("one", np.ones((1, 1), np.float32)), "second"], "first")
    graph.add("Concat", ["first", "second"], "probabilities", axis=1)
    graph.add("Greater", ["second", graph.constant("half", np.full((1, 1), 0.5, np.float32))], "is_second")
    graph.add("Squeeze", ["is_second", graph.constant("axis", np.asarray([1], np.int64))], "flat")
    graph.add("Cast", ["flat"], "place", to=TensorProto.INT64)
    return _labelled(graph, 2, classes)


def classify_softmax(graph: Graph, count: int, classes: Array | None = None) -> Any:
    """From a score for each class: probabilities by softmax, the label of the greatest score."""
    graph.add("Softmax", ["scores"], "probabilities", axis=1)
    graph.add("ArgMax", ["scores"], "place", axis=1, keepdims=0)
    return _labelled(graph, count, classes)


def _labelled(graph: Graph, count: int, classes: Array | None) -> Any:
    if classes is None:
        graph.add("Identity", ["place"], "label")
    else:
        graph.add("Gather", [graph.constant("classes", classes.astype(np.int64)), "place"], "label", axis=0)
    label = ("label", TensorProto.INT64, ["batch"])
    return graph.finish([label, ("probabilities", TensorProto.FLOAT, ["batch", count])])


def predict(graph: Graph, targets: int, link: str = "") -> Any:
    """`prediction: float32[batch, targets]`; `link`: an operator after the sum, such as Exp or Sigmoid; empty: none."""
    graph.add(link or "Identity", ["scores"], "prediction")
    return graph.finish([("prediction", TensorProto.FLOAT, ["batch", targets])])
