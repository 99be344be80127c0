"""Owns what skl2onnx does not say of scikit-learn's trees: the way of missing values, and histogram trees exactly."""

from typing import Any, Final

import numpy as np
from onnx import helper

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
from converters.importers.exchange import Array

_TRACKS: Final = "nodes_missing_value_tracks_true"
#: Losses whose answer is the exponential of the trees' sum.
_LOG: Final = frozenset({"poisson", "gamma"})


def splits(model: Any) -> tuple[list[int], list[float]]:
    """Features and values of the splits of a tree, a forest or histogram trees that see the input as it is."""
    features: list[int] = []
    thresholds: list[float] = []
    for nodes in _histograms(model):
        is_split = nodes["is_leaf"] == 0
        features += nodes["feature_idx"][is_split].tolist()
        thresholds += floor32(nodes["num_threshold"][is_split]).tolist()
    for tree in _trees(model):
        is_split = tree.feature >= 0
        features += tree.feature[is_split].tolist()
        thresholds += tree.threshold[is_split].tolist()
    return features, thresholds


def _trees(model: Any) -> list[Any]:
    own = [model] if hasattr(model, "tree_") else list(np.ravel(getattr(model, "estimators_", [])))
    return [one.tree_ for one in own if hasattr(one, "tree_")]


def _histograms(model: Any) -> list[Array]:
    return [one.nodes for stage in getattr(model, "_predictors", []) for one in stage]


def follow_missing(made: Any, model: Any) -> tuple[str, ...]:
    """Let missing values go the way that scikit-learn's trees send them; skl2onnx sends them all to the right."""
    trees = _trees(model)
    ways = [int(way) for tree in trees for way in np.asarray(tree.missing_go_to_left)]
    if not any(ways):
        return ()
    for node in made.graph.node:
        attributes = {one.name: one for one in node.attribute}
        if not node.op_type.startswith("TreeEnsemble") or len(attributes["nodes_nodeids"].ints) != len(ways):
            continue
        order = list(zip(attributes["nodes_treeids"].ints, attributes["nodes_nodeids"].ints, strict=True))
        by_node = {
            (place, inner): int(way)
            for place, tree in enumerate(trees)
            for inner, way in enumerate(np.asarray(tree.missing_go_to_left))
        }
        if _TRACKS in attributes:
            node.attribute.remove(attributes[_TRACKS])
        node.attribute.append(helper.make_attribute(_TRACKS, [by_node[pair] for pair in order]))
        return ("missing values follow scikit-learn's trees",)
    return ()


def histogram_model(model: Any, kind: str, width: int, classes: Array | None) -> Any:
    """The ONNX model of HistGradientBoosting. `classes`: labels, whole numbers or not; None of a regressor.

    Raises:
        UsageFault: categorical features.
    """
    if getattr(model, "_preprocessor", None) is not None or any(
        one["is_categorical"].any() for one in _histograms(model)
    ):
        text = "histogram trees with categorical features are not written"
        raise UsageFault("categorical", text, next_step="encode the categories in a step before, by numbers")
    base = np.ravel(model._baseline_prediction).astype(np.float64).tolist()
    trees = [_tree(one.nodes, target) for stage in model._predictors for target, one in enumerate(stage)]
    graph = build_scores(trees, base, width)
    if kind == "regressor":
        return predict(graph, len(base), "Exp" if model.loss in _LOG else "")
    numbers = classes if classes is not None and classes.dtype.kind in "iu" else None
    if len(base) == 1:
        return classify_binary(graph, numbers)
    return classify_softmax(graph, len(base), numbers)


def _tree(nodes: Array, target: int) -> Tree:
    is_leaf = nodes["is_leaf"].astype(bool)
    return Tree(
        target=target,
        features=nodes["feature_idx"].tolist(),
        modes=[LEAF if leaf else LEQ for leaf in is_leaf],
        values=np.where(is_leaf, nodes["value"], floor32(nodes["num_threshold"])).tolist(),
        left=nodes["left"].tolist(),
        right=nodes["right"].tolist(),
        missing_left=nodes["missing_go_to_left"].astype(bool).tolist(),
    )
