"""Trees as one operator answer as the trees do: at every split and its neighbours, and for missing values."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from converters.importers.ensembles import (
    INPUT,
    LEAF,
    LEQ,
    LT,
    Tree,
    build_scores,
    classify_binary,
    classify_softmax,
    floor32,
    predict,
)
from converters.importers.exchange import EXTRA_ROWS_MAX, Array
from converters.importers.thresholds import threshold_rows

FEATURES = 4


def random_tree(seed: int, mode: str, target: int = 0, depth: int = 4) -> Tree:
    """A full tree in breadth-first order; thresholds that float32 does not hold."""
    noise = np.random.default_rng(seed)
    inner, leaves = 2**depth - 1, 2**depth
    thresholds = noise.standard_normal(inner) * (1 + 1e-9)
    return Tree(
        target=target,
        features=[*noise.integers(0, FEATURES, inner).tolist(), *[0] * leaves],
        modes=[mode] * inner + [LEAF] * leaves,
        values=[*thresholds.tolist(), *noise.standard_normal(leaves).tolist()],
        left=[2 * n + 1 for n in range(inner)] + [0] * leaves,
        right=[2 * n + 2 for n in range(inner)] + [0] * leaves,
        missing_left=[*(noise.random(inner) < 0.5).tolist(), *[False] * leaves],
    )


def exact(tree: Tree) -> Tree:
    """As an importer gives it: thresholds in float32 that decide as the wide ones."""
    wide = np.asarray(tree.values)
    is_split = np.asarray([mode != LEAF for mode in tree.modes])
    return replace(tree, values=np.where(is_split, floor32(wide), wide).tolist())


def walk(tree: Tree, row: Array) -> float:
    """The plain reading of a tree, in float64."""
    node = 0
    while tree.modes[node] != LEAF:
        value = float(row[tree.features[node]])
        holds = value <= tree.values[node] if tree.modes[node] == LEQ else value < tree.values[node]
        is_left = tree.missing_left[node] if np.isnan(value) else holds
        node = tree.left[node] if is_left else tree.right[node]
    return float(tree.values[node])


def run(model: Any, rows: Array) -> dict[str, Array]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {INPUT: rows}), strict=True))


def rows_of(trees: list[Tree]) -> Array:
    """Noise, missing values, and three rows at each split."""
    pairs = [
        (feature, value)
        for tree in trees
        for feature, mode, value in zip(tree.features, tree.modes, tree.values, strict=True)
        if mode != LEAF
    ]
    near = threshold_rows([one for one, _ in pairs], [float(floor32(np.asarray(two))) for _, two in pairs], FEATURES)
    noise = np.random.default_rng(7).standard_normal((300, FEATURES)).astype(np.float32)
    noise[np.random.default_rng(8).random(noise.shape) < 0.2] = np.nan
    return np.concatenate([near, noise])


@pytest.mark.parametrize("seed", range(5))
def test_wide_thresholds_decide_as_in_float64(seed: int) -> None:
    trees = [random_tree(10 * seed + n, LEQ) for n in range(3)]
    rows = rows_of(trees)
    model = predict(build_scores([exact(tree) for tree in trees], [0.25], FEATURES), 1)
    wanted = [0.25 + sum(walk(tree, row) for tree in trees) for row in rows]
    np.testing.assert_allclose(run(model, rows)["prediction"][:, 0], wanted, rtol=1e-5, atol=1e-5)


def test_rounding_to_nearest_would_be_wrong_and_is_seen() -> None:
    """The test above can fail: nearest float32 thresholds send some of the same rows the other way."""
    trees = [random_tree(n, LEQ) for n in range(15)]
    rows = rows_of(trees)
    model = predict(build_scores(trees, [0.0], FEATURES), 1)
    wanted = np.asarray([sum(walk(tree, row) for tree in trees) for row in rows])
    assert np.abs(run(model, rows)["prediction"][:, 0] - wanted).max() > 0.01


def test_strict_splits_keep_their_own_side() -> None:
    tree = random_tree(3, LT)
    narrow = replace(tree, values=np.asarray(tree.values, np.float32).tolist())
    rows = rows_of([narrow])
    found = run(predict(build_scores([narrow], [0.0], FEATURES), 1), rows)["prediction"][:, 0]
    np.testing.assert_allclose(found, [walk(narrow, row) for row in rows], rtol=1e-6)


@given(st.floats(allow_nan=False, allow_infinity=False))
@example(-3.402823364973241e38)
@example(3.4028234663852886e38)
@example(-1e300)
@example(1e-46)
def test_the_floor_is_the_greatest_float32_that_is_not_above(value: float) -> None:
    found = floor32(np.asarray([value]))[0]
    assert float(found) <= value
    with np.errstate(over="ignore"):
        above = np.nextafter(found, np.float32(np.inf))
    assert float(above) > value or not np.isfinite(above)


@pytest.mark.parametrize("classes", [None, np.asarray([3, 8])])
def test_binary_labels_follow_the_probability(classes: Array | None) -> None:
    tree = exact(random_tree(1, LEQ))
    rows = rows_of([tree])
    found = run(classify_binary(build_scores([tree], [0.1], FEATURES), classes), rows)
    scores = np.asarray([0.1 + walk(tree, row) for row in rows])
    second = 1 / (1 + np.exp(-scores))
    np.testing.assert_allclose(found["probabilities"], np.stack([1 - second, second], 1), atol=1e-6)
    numbers = np.asarray([0, 1]) if classes is None else classes
    assert (found["label"] == numbers[(second > 0.5).astype(int)]).all()
    assert found["label"].dtype == np.int64


def test_each_class_has_its_own_trees() -> None:
    trees = [exact(random_tree(n, LEQ, target=n % 3)) for n in range(6)]
    rows = rows_of(trees[:2])
    found = run(classify_softmax(build_scores(trees, [0.0, 0.5, -0.5], FEATURES), 3), rows)
    scores = np.asarray([[sum(walk(t, row) for t in trees if t.target == k) for k in range(3)] for row in rows])
    scores += [0.0, 0.5, -0.5]
    shares = np.exp(scores - scores.max(1, keepdims=True))
    np.testing.assert_allclose(found["probabilities"], shares / shares.sum(1, keepdims=True), atol=1e-5)
    assert (found["label"] == scores.argmax(1)).all()


@pytest.mark.parametrize(
    ("link", "function"), [("", lambda x: x), ("Exp", np.exp), ("Sigmoid", lambda x: 1 / (1 + np.exp(-x)))]
)
def test_a_link_comes_after_the_sum(link: str, function: Callable[[Array], Array]) -> None:
    tree = exact(random_tree(2, LEQ))
    rows = rows_of([tree])
    found = run(predict(build_scores([tree], [0.0], FEATURES), 1, link), rows)["prediction"][:, 0]
    np.testing.assert_allclose(found, function(np.asarray([walk(tree, row) for row in rows])), rtol=1e-5)


def test_a_tree_of_one_leaf_is_a_constant() -> None:
    leaf = Tree(target=0, features=[0], modes=[LEAF], values=[1.5], left=[0], right=[0], missing_left=[False])
    found = run(predict(build_scores([leaf], [1.0], FEATURES), 1), np.zeros((2, FEATURES), np.float32))
    assert found["prediction"].tolist() == [[2.5], [2.5]]


def test_rows_at_thresholds_are_bounded_and_the_same_each_time() -> None:
    few = threshold_rows([0, 1], [0.5, np.inf], 3)
    assert few.shape == (3, 3)
    assert few[:, 0].tolist() == [
        np.nextafter(np.float32(0.5), np.float32(0)),
        0.5,
        np.nextafter(np.float32(0.5), np.float32(1)),
    ]
    many = threshold_rows([0] * 5000, np.linspace(0, 1, 5000).tolist(), 3)
    assert EXTRA_ROWS_MAX - 3 < len(many) <= EXTRA_ROWS_MAX
    assert (many == threshold_rows([0] * 5000, np.linspace(0, 1, 5000).tolist(), 3)).all()
    assert threshold_rows([], [], 3).shape == (0, 3)
