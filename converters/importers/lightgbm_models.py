"""Owns LightGBM models in its text files: numeric splits, written as one tree operator that is exact at each of them.

Outputs: binary and multi-class objectives `label: int64[batch]` and `probabilities: float32[batch, classes]`; others
`prediction: float32[batch, 1]`. Missing values are NaN, as the training left them.
"""

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx

from converters.errors import UsageFault
from converters.importers.ensembles import (
    LEAF,
    LEQ,
    Tree,
    build_scores,
    classify_binary,
    classify_softmax,
    floor32,
    predict,
)
from converters.importers.exchange import Array, Feeds
from converters.importers.protocol import Asked, Export
from converters.importers.thresholds import threshold_rows

INPUT: Final = "input"
_PLAIN: Final = frozenset(
    {"regression", "regression_l1", "huber", "fair", "quantile", "mape", "lambdarank", "rank_xendcg"}
)
_LOG: Final = frozenset({"poisson", "gamma", "tweedie"})
_NEXT: Final = "serve it by a Python-backend model, or train it otherwise"


def open_source(asked: Asked) -> "LightgbmSource":
    """Raises: UsageFault: an objective or kind of split that is not written."""
    import lightgbm

    return LightgbmSource(lightgbm.Booster(model_file=str(asked.source)))


class LightgbmSource:
    def __init__(self, booster: Any) -> None:
        self._booster = booster
        model: Mapping[str, Any] = booster.dump_model()
        words = str(model.get("objective", "regression")).split()
        self._objective = words[0]
        self._options = dict(word.partition(":")[::2] for word in words[1:])
        known = _PLAIN | _LOG | {"binary", "multiclass", "cross_entropy"}
        if self._objective not in known or "sqrt" in words:
            raise UsageFault("objective", f"the objective {' '.join(words)[:60]} is not written", next_step=_NEXT)
        self._features = int(model["max_feature_idx"]) + 1
        self._targets = int(model["num_tree_per_iteration"])
        count = len(model["tree_info"])
        share = self._targets / count if model.get("average_output") and count else 1.0
        self._trees = [_tree(one, place % self._targets, share) for place, one in enumerate(model["tree_info"])]

    def versions(self) -> dict[str, str]:
        return {name: importlib.metadata.version(name) for name in ("lightgbm", "onnx")}

    def export(self, path: Path) -> Export:
        trees = [_scaled(tree, float(self._options.get("sigmoid", "1"))) for tree in self._trees]
        graph = build_scores(trees, [0.0] * self._targets, self._features)
        if self._objective == "binary":
            model = classify_binary(graph)
        elif self._objective == "multiclass":
            model = classify_softmax(graph, self._targets)
        else:
            link = "Exp" if self._objective in _LOG else "Sigmoid" if self._objective == "cross_entropy" else ""
            model = predict(graph, self._targets, link)
        onnx.save_model(model, str(path))
        pairs = [
            (feature, value)
            for tree in self._trees
            for feature, mode, value in zip(tree.features, tree.modes, tree.values, strict=True)
            if mode != LEAF
        ]
        rows = threshold_rows([one[0] for one in pairs], [one[1] for one in pairs], self._features)
        return Export(method="the booster's own trees as one operator", extra=({INPUT: rows},) if len(rows) else ())

    def answer(self, feeds: Feeds) -> dict[str, Array]:
        found = np.asarray(self._booster.predict(feeds[INPUT], num_threads=1))
        if self._objective == "binary":
            return {"label": (found > 0.5).astype(np.int64), "probabilities": np.stack([1 - found, found], axis=1)}
        if self._objective == "multiclass":
            return {"label": np.argmax(found, axis=1).astype(np.int64), "probabilities": found}
        return {"prediction": found.reshape(len(feeds[INPUT]), self._targets)}


def _scaled(tree: Tree, factor: float) -> Tree:
    """Leaves times the slope of the logistic function, which is 1 unless the training said otherwise."""
    values = [value * factor if mode == LEAF else value for mode, value in zip(tree.modes, tree.values, strict=True)]
    return Tree(
        target=tree.target, features=tree.features, modes=tree.modes, values=values, left=tree.left, right=tree.right,
        missing_left=tree.missing_left,
    )  # fmt: skip


def _tree(info: Mapping[str, Any], target: int, share: float) -> Tree:
    """`share`: of each leaf, for forests that are averaged."""
    nodes: list[Mapping[str, Any]] = []
    children: list[tuple[int, int]] = []
    pending: list[tuple[Mapping[str, Any], int, str]] = [(info["tree_structure"], -1, "")]
    while pending:
        node, parent, side = pending.pop()
        place = len(nodes)
        nodes.append(node)
        children.append((0, 0))
        if parent >= 0:
            left, right = children[parent]
            children[parent] = (place, right) if side == "left" else (left, place)
        if "split_index" in node:
            _check(node)
            pending += [(node["right_child"], place, "right"), (node["left_child"], place, "left")]
        elif "leaf_const" in node:
            raise UsageFault("linear", "leaves with linear models are not written", next_step=_NEXT)
    modes = [LEQ if "split_index" in node else LEAF for node in nodes]
    return Tree(
        target=target,
        features=[int(node.get("split_feature", 0)) for node in nodes],
        modes=modes,
        values=[_value(node, share) for node in nodes],
        left=[one for one, _ in children],
        right=[other for _, other in children],
        missing_left=[_is_missing_left(node) for node in nodes],
    )


def _check(node: Mapping[str, Any]) -> None:
    if node["decision_type"] != "<=":
        raise UsageFault("categorical", "categorical splits are not written", next_step=_NEXT)
    if node["missing_type"] == "Zero":
        raise UsageFault("zero_missing", "zeros that count as missing are not written", next_step=_NEXT)


def _value(node: Mapping[str, Any], share: float) -> float:
    if "split_index" in node:
        return float(floor32(np.asarray([node["threshold"]]))[0])
    return float(node["leaf_value"]) * share


def _is_missing_left(node: Mapping[str, Any]) -> bool:
    """A tree that was trained without missing values reads NaN as 0."""
    if "split_index" not in node:
        return False
    return bool(node["default_left"]) if node["missing_type"] == "NaN" else float(node["threshold"]) >= 0.0
