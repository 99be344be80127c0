"""Less precision: what is quantised is said and true, what costs most stays in float, none is so in name only."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters.errors import ToolFailed, UsageFault
from converters.job import NOT_OFFERED, PRECISIONS
from converters.normalise import normalise
from converters.quantise import (
    BLOCK,
    SEARCHED_NODES_MAX,
    choose_kept,
    constant_products,
    inner_outputs_max,
    pack_blocks,
)
from converters.samples import Data
from converters.selftest.models import CLEAN, mlp
from converters.selftest.more_models import gelu
from converters.variants import build_variant

LESS = [one for one in PRECISIONS if one.startswith("int") and one != "int8"]


def data_of(wide: int) -> Data:
    noise = np.random.default_rng(3)
    rows = {"x": noise.standard_normal((40, wide)).astype(np.float32)}
    return Data(calibration=rows, judged=rows, rows_calibration=40, rows_judged=40, duplicates=0, sha256="")


def build(model: Any, precision: str, folder: Path, data: Data | None, factor: float = 1.0) -> Any:
    return build_variant("onnxruntime", precision, normalise(model), folder, data, batched=True, factor=factor)


@pytest.mark.parametrize("precision", LESS)
@pytest.mark.parametrize("layer", ["gemm", "matmul"])
def test_products_are_really_quantised_and_answer_nearly_as_before(precision: str, layer: str, tmp_path: Path) -> None:
    """`Gemm` too, which the quantisers of the library pass over without a word."""
    model, wide = (mlp(64), 64) if layer == "gemm" else (CLEAN["layer_norm"](), 16)
    data = data_of(wide)
    variant = build(model, precision, tmp_path / "v", data, factor=3.0)
    operators = {node.op_type for node in variant.origin.graph.node}
    assert operators & {"MatMulInteger", "MatMulNBits"}
    assert "Gemm" not in operators
    found = variant.open(("y",), 1).run(data.judged)["y"]
    wanted = build(model, "fp32", tmp_path / "f", None).open(("y",), 1).run(data.judged)["y"]
    error = np.sqrt(np.mean((found - wanted) ** 2) / np.mean(wanted**2))
    assert 1e-6 < error < (0.25 if precision.startswith("int4") else 0.1)


@pytest.mark.parametrize("precision", LESS)
def test_a_model_without_products_is_refused_and_not_published_as_quantised(precision: str, tmp_path: Path) -> None:
    with pytest.raises(ToolFailed, match="no product"):
        build(CLEAN["convnet"](), precision, tmp_path / "v", data_of(4))


@pytest.mark.parametrize("precision", [one for one in PRECISIONS if one.startswith("int")])
def test_without_real_inputs_it_is_refused(precision: str, tmp_path: Path) -> None:
    with pytest.raises(UsageFault, match="real inputs"):
        build(gelu(), precision, tmp_path / "v", None)


def test_a_budget_that_cannot_be_met_keeps_half_in_float_and_leaves_the_verdict_to_the_gate(tmp_path: Path) -> None:
    strict = build(mlp(64), "int8_dynamic", tmp_path / "a", data_of(64), factor=1e-3)
    wide = build(mlp(64), "int8_dynamic", tmp_path / "b", data_of(64), factor=100.0)
    assert strict.method.startswith("dynamic, per channel, 2 of 3 products")
    assert wide.method.startswith("dynamic, per channel, 3 of 3 products")


def test_the_costliest_products_stay_in_float_and_no_more_than_needed() -> None:
    cost = {f"p{number}": float(number) for number in range(8)}
    asked = []

    def try_without(kept: Any) -> tuple[float, bool]:
        asked.append(list(kept))
        loss = sum(value for name, value in cost.items() if name not in kept)
        return loss, loss <= 16.0

    assert choose_kept(list(cost), try_without) == ["p7", "p6"]
    assert len(asked) <= 1 + len(cost) + 3


def test_nothing_is_searched_where_all_fit_or_there_are_too_many() -> None:
    assert choose_kept(["a", "b"], lambda kept: (0.0, True)) == []
    many = [f"p{number}" for number in range(SEARCHED_NODES_MAX + 1)]
    assert choose_kept(many, lambda kept: (1.0, False)) == []
    assert choose_kept(many[:-1], lambda kept: (1.0, False)) == many[: SEARCHED_NODES_MAX // 2]


@pytest.mark.parametrize("rows", [1, 8, 16, 24, 48, 96])
def test_calibration_holds_few_inner_tensors_and_takes_any_number_of_rows(rows: int, tmp_path: Path) -> None:
    whole = data_of(64)
    part = replace(whole, calibration={"x": np.tile(whole.calibration["x"], (3, 1))[:rows]}, rows_calibration=rows)
    variant = build(mlp(64), "int8", tmp_path / "v", part)
    assert f"over {rows} rows" in variant.method
    assert inner_outputs_max(-(-rows // 8)) <= 5


def test_only_constant_matrices_count() -> None:
    assert constant_products(CLEAN["attention"]()) == ["node_q", "node_k", "node_v"]


def test_what_openvino_is_not_offered_for_is_named() -> None:
    assert {precision for engine, precision in NOT_OFFERED if engine == "openvino"} >= set(LESS)


@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_hold_their_greatest_value_exactly_and_zeros_stay_zero(bits: int) -> None:
    matrix = np.random.default_rng(bits).standard_normal((BLOCK + 5, 3)).astype(np.float32)
    matrix[:BLOCK, 1] = 0
    packed, scales = pack_blocks(matrix, bits)
    assert packed.shape == (3, 2, BLOCK * bits // 8)
    assert scales.shape == (6,)
    codes = packed if bits == 8 else np.stack([packed & 15, packed >> 4], axis=-1).reshape(3, 2, BLOCK)
    back = ((codes.astype(np.float32) - 2 ** (bits - 1)) * scales.reshape(3, 2, 1)).reshape(3, -1)[:, : BLOCK + 5].T
    assert np.all(back[:BLOCK, 1] == 0)
    step = np.repeat(np.abs(scales).reshape(3, 2), BLOCK, axis=1)[:, : BLOCK + 5].T
    # The lowest code has no twin of the other sign: there one step more.
    assert np.all(np.abs(back - matrix) <= step * 1.001)
    for column in range(3):
        place = np.abs(matrix[:BLOCK, column]).argmax()
        assert back[place, column] == pytest.approx(matrix[place, column], rel=1e-6)
