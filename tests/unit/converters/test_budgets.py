"""What counts as the same answer, at the edges."""

from typing import Any

import numpy as np
import pytest

from converters.budgets import BUDGETS, Budget, compare, judge_together, perturb, perturb_weights
from converters.selftest.models import resized

FP32, FP16, INT8 = BUDGETS["fp32"], BUDGETS["fp16"], BUDGETS["int8"]
ONES = np.ones(100, np.float32)


def reason(wanted: Any, found: Any, budget: Budget = FP32, factor: float = 1.0, moved: Any = None) -> str:
    difference = compare(wanted, wanted if moved is None else moved, found, budget, factor)
    return judge_together([difference], budget, factor)[1]


def test_an_error_just_within_the_budget_passes_and_just_beyond_fails() -> None:
    allowed = FP32.atol + FP32.rtol
    assert reason(ONES, ONES + np.float32(allowed * 0.99)) == ""
    assert "times what is allowed" in reason(ONES, ONES + np.float32(allowed * 1.02))
    assert reason(ONES, ONES + np.float32(allowed * 1.9), factor=2.0) == ""


def test_an_input_that_one_rounding_moves_far_allows_as_much() -> None:
    assert reason(ONES, ONES * np.float32(1.07), moved=ONES * np.float32(1.01)) == ""
    assert reason(ONES, ONES * np.float32(1.09), moved=ONES * np.float32(1.01))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_fails_where_the_source_is_finite(value: float) -> None:
    wrong = ONES.copy()
    wrong[3] = value
    assert reason(ONES, wrong) == "not finite where the source is"
    assert reason(wrong, ONES) == ""


def test_other_shapes_and_types_fail() -> None:
    assert "shape [100, 1]" in reason(ONES, ONES[:, None])
    assert "type float64" in reason(ONES, ONES.astype(np.float64))


def test_integers_are_equal_but_where_the_source_itself_is_on_edge() -> None:
    labels = np.arange(100)
    wrong = labels.copy()
    wrong[7] = 0
    assert "1.00% of elements differ" in reason(labels, wrong)
    assert reason(labels, wrong, moved=wrong) == ""


def test_a_share_of_integers_is_counted_over_all_cases() -> None:
    one, all_right = np.asarray([1]), np.arange(99)
    parts = [compare(one, one, one + 1, FP16, 1.0), compare(all_right, all_right, all_right, FP16, 1.0)]
    assert judge_together(parts, FP16, 1.0)[1] == ""
    parts.append(compare(one, one, one + 1, FP16, 1.0))
    assert judge_together(parts, FP16, 1.0)[1] == "2 of 101 elements differ, more than 1%"


def test_a_quantised_answer_is_judged_by_its_whole_error() -> None:
    noise = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    wanted = np.random.default_rng(1).standard_normal(10_000).astype(np.float32)
    assert reason(wanted, wanted + noise * np.float32(0.07), INT8) == ""
    assert "relative RMS error" in reason(wanted, wanted + noise * np.float32(0.09), INT8)


def test_nothing_to_compare_is_no_failure_of_one_case() -> None:
    empty = np.empty(0, np.float32)
    assert reason(empty, empty) == ""
    assert reason(np.empty(0, np.int64), np.empty(0, np.int64)) == ""


def test_perturbation_is_seeded_and_leaves_integers_and_small_weights() -> None:
    feeds: dict[str, Any] = {"x": ONES, "ids": np.arange(3)}
    moved = perturb(feeds, 2**-11, 5)
    assert np.array_equal(moved["x"], perturb(feeds, 2**-11, 5)["x"])
    assert set(np.unique(moved["x"])) == {np.float32(1 - 2**-11), np.float32(1 + 2**-11)}
    assert moved["ids"] is feeds["ids"]
    before, after = resized(), perturb_weights(resized(), 2**-11, 0)
    pairs = zip(before.graph.initializer, after.graph.initializer, strict=True)
    assert {one.name for one, other in pairs if one != other} == {"w"}
