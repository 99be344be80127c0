"""Owns XGBoost models in its own JSON or UBJSON files: gbtree and dart, numeric splits, written as one tree operator.

Outputs: binary and multi-class objectives `label: int64[batch]` and `probabilities: float32[batch, classes]`; others
`prediction: float32[batch, targets]`. Missing values are NaN.
"""

import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx

from converters.errors import UsageFault
from converters.importers.ensembles import LEAF, LT, Tree, build_scores, classify_binary, classify_softmax, predict
from converters.importers.exchange import Array, Feeds
from converters.importers.protocol import Asked, Export
from converters.importers.thresholds import threshold_rows

INPUT: Final = "input"
_BINARY: Final = frozenset({"binary:logistic"})
_MULTI: Final = frozenset({"multi:softprob", "multi:softmax"})
_LOG: Final = frozenset({"count:poisson", "reg:gamma", "reg:tweedie"})
_PLAIN: Final = frozenset(
    {
        "binary:logitraw", "rank:ndcg", "rank:map", "rank:pairwise", "reg:absoluteerror", "reg:pseudohubererror",
        "reg:quantileerror", "reg:squarederror", "reg:squaredlogerror",
    }
)  # fmt: skip
_NEXT: Final = "serve it by a Python-backend model, or train it otherwise"


def open_source(asked: Asked) -> "XgboostSource":
    """Raises: UsageFault: a booster, objective or kind of split that is not written."""
    import xgboost

    booster = xgboost.Booster(model_file=str(asked.source))
    booster.set_param({"nthread": 1, "device": "cpu"})
    return XgboostSource(booster)


class XgboostSource:
    def __init__(self, booster: Any) -> None:
        self._booster = booster
        learner: Mapping[str, Any] = json.loads(bytes(booster.save_raw("json")))["learner"]
        self._objective = str(learner["objective"]["name"])
        if self._objective not in _BINARY | _MULTI | _LOG | _PLAIN | {"reg:logistic"}:
            raise UsageFault("objective", f"the objective {self._objective[:60]} is not written", next_step=_NEXT)
        if self._objective == "multi:softmax":
            # The same scores, of which the framework then gives the probabilities and not the label alone.
            booster.set_param({"objective": "multi:softprob"})
        param = learner["learner_model_param"]
        self._features = int(param["num_feature"])
        self._targets = max(1, int(param["num_class"]), int(param.get("num_target", 1)))
        self._base = _margins(str(param["base_score"]), self._objective, self._targets)
        self._trees = _read_trees(learner["gradient_booster"])

    def versions(self) -> dict[str, str]:
        return {"xgboost": importlib.metadata.version("xgboost-cpu"), "onnx": importlib.metadata.version("onnx")}

    def export(self, path: Path) -> Export:
        graph = build_scores(self._trees, self._base, self._features)
        if self._objective in _BINARY:
            model = classify_binary(graph)
        elif self._objective in _MULTI:
            model = classify_softmax(graph, self._targets)
        else:
            link = "Exp" if self._objective in _LOG else "Sigmoid" if self._objective == "reg:logistic" else ""
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
        found = np.asarray(self._booster.inplace_predict(feeds[INPUT], missing=np.nan, validate_features=False))
        if self._objective in _BINARY:
            second = found.reshape(-1)
            return {"label": (second > 0.5).astype(np.int64), "probabilities": np.stack([1 - second, second], axis=1)}
        if self._objective in _MULTI:
            return {"label": np.argmax(found, axis=1).astype(np.int64), "probabilities": found}
        return {"prediction": found.reshape(len(feeds[INPUT]), self._targets)}


def _margins(text: str, objective: str, targets: int) -> list[float]:
    """The base score in the scale of the trees' sum; the file states it in that of the answers."""
    values = [float(word) for word in text.strip("[]").split(",")]
    values = values * targets if len(values) == 1 else values
    if objective in _BINARY or objective in {"reg:logistic", "binary:logitraw"}:
        return [float(np.log(value / (1 - value))) for value in values]
    return [float(np.log(value)) for value in values] if objective in _LOG else values


def _read_trees(booster: Mapping[str, Any]) -> list[Tree]:
    kind = str(booster["name"])
    if kind not in {"gbtree", "dart"}:
        raise UsageFault("booster", f"the booster {kind[:60]} is not written", next_step=_NEXT)
    model = booster["gbtree"]["model"] if kind == "dart" else booster["model"]
    weights = booster["weight_drop"] if kind == "dart" else [1.0] * len(model["trees"])
    return [
        _tree(tree, int(target), float(weight))
        for tree, target, weight in zip(model["trees"], model["tree_info"], weights, strict=True)
    ]


def _tree(tree: Mapping[str, Any], target: int, weight: float) -> Tree:
    if any(tree.get("split_type", ())):
        raise UsageFault("categorical", "categorical splits are not written", next_step=_NEXT)
    if int(tree["tree_param"].get("size_leaf_vector", 1)) > 1:
        raise UsageFault("vector_leaf", "leaves of several targets are not written", next_step=_NEXT)
    left = tree["left_children"]
    modes = [LEAF if child < 0 else LT for child in left]
    # XGBoost holds both in float32; JSON gives them in more digits.
    conditions = np.asarray(tree["split_conditions"], np.float32)
    values = [
        float(np.float32(value) * np.float32(weight)) if mode == LEAF else float(value)
        for mode, value in zip(modes, conditions, strict=True)
    ]
    return Tree(
        target=target,
        features=tree["split_indices"],
        modes=modes,
        values=values,
        left=left,
        right=tree["right_children"],
        missing_left=[bool(way) for way in tree["default_left"]],
    )
