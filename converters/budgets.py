"""Owns when two outputs are the same: error budgets by precision, made relative to what the input itself decides.

Each element may differ by  factor · (atol · rms(reference) + rtol · |reference|) + 8 · sensitivity, where sensitivity
is the greatest change of that output when inputs and weights change by one rounding of the precision.
So ill-conditioned inputs raise no alarm, and well-conditioned ones hide nothing.
Quantised variants are judged over all rows together.
"""

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx

from converters.engines import Array, Feeds

#: Kinds of cases that count, by precision: fp16 ends at 65504, and int8 is only for what calibration saw.
JUDGED: Final = {
    "fp32": frozenset(
        {"normal", "positive", "small", "large", "zeros", "extreme", "denormal", "nan", "data", "threshold"}
    ),
    "fp16": frozenset({"normal", "positive", "small", "large", "zeros", "nan", "data"}),
    "int8": frozenset({"data"}),
    "int8_dynamic": frozenset({"data"}),
    "int8_weights": frozenset({"data"}),
    "int4_weights": frozenset({"data"}),
}
_SENSITIVITY_FACTOR: Final = 8.0
_FLOOR: Final = 1e-7
_WEIGHT_ELEMENTS_MIN: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """`rounding`: of an input, for the sensitivity. `mismatch_share`: of integer elements. `rms_share` 0: not asked."""

    atol: float
    rtol: float
    rounding: float
    mismatch_share: float
    rms_share: float
    cosine_min: float


_INT8: Final = Budget(atol=0.5, rtol=0.5, rounding=0.0, mismatch_share=0.03, rms_share=0.08, cosine_min=0.995)
BUDGETS: Final = {
    "fp32": Budget(atol=2e-5, rtol=1e-4, rounding=2**-23, mismatch_share=0.0, rms_share=0.0, cosine_min=0.0),
    "fp16": Budget(atol=4e-3, rtol=4e-3, rounding=2**-11, mismatch_share=0.01, rms_share=0.0, cosine_min=0.0),
    "int8": _INT8,
    "int8_dynamic": _INT8,
    "int8_weights": _INT8,
    "int4_weights": Budget(atol=1.0, rtol=1.0, rounding=0.0, mismatch_share=0.05, rms_share=0.15, cosine_min=0.985),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Of one output in one case. `share`: greatest error as a share of what is allowed; above 1 is a failure."""

    max_abs: float
    max_rel: float
    share: float
    reason: str = ""
    error_square: float = 0.0
    square: float = 0.0
    dot: float = 0.0
    own_square: float = 0.0
    mismatches: int = 0
    elements: int = 0


def perturb(feeds: Feeds, rounding: float, seed: int) -> dict[str, Array]:
    """Float inputs times (1 ± rounding), seeded."""
    noise = np.random.default_rng(seed)
    moved = {}
    for name, array in feeds.items():
        if array.dtype.kind == "f" and rounding:
            signs = noise.integers(0, 2, array.shape) * 2.0 - 1.0
            moved[name] = (array.astype(np.float64) * (1 + signs * rounding)).astype(array.dtype)
        else:
            moved[name] = array
    return moved


def perturb_weights(model: Any, rounding: float, seed: int) -> Any:
    """A copy of an ONNX graph with its float weights times (1 ± rounding), seeded.

    Tensors of few elements are left: they may be scales of a Resize, where a rounding changes the shape.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for place, tensor in enumerate(copy.graph.initializer):
        if tensor.data_type == onnx.TensorProto.FLOAT and math.prod(tensor.dims) >= _WEIGHT_ELEMENTS_MIN:
            moved = perturb({"w": onnx.numpy_helper.to_array(tensor)}, rounding, seed + place)["w"]
            tensor.CopyFrom(onnx.numpy_helper.from_array(moved, tensor.name))
    return copy


def compare(reference: Array, moved: Array, found: Array, budget: Budget, factor: float) -> Difference:
    """`moved`: the perturbed reference's answer to perturbed inputs. Only elements where both are finite count."""
    if reference.shape != found.shape:
        return _fault(f"shape {list(found.shape)}, the source gives {list(reference.shape)}")
    if reference.dtype != found.dtype and not reference.dtype.kind == found.dtype.kind == "U":
        return _fault(f"type {found.dtype}, the source gives {reference.dtype}")
    if reference.dtype.kind != "f":
        return _compare_exact(reference, moved, found, budget)
    wanted, real = reference.astype(np.float64), found.astype(np.float64)
    is_judged = np.isfinite(wanted)
    if moved.shape == reference.shape:
        is_judged &= np.isfinite(moved)
    if not np.isfinite(real[is_judged]).all():
        return _fault("not finite where the source is")
    wanted, real = wanted[is_judged], real[is_judged]
    if not wanted.size:
        return Difference(max_abs=0.0, max_rel=0.0, share=0.0)
    errors = np.abs(real - wanted)
    shift = 0.0
    if moved.shape == reference.shape:
        shifts = np.abs(moved.astype(np.float64)[is_judged] - wanted)
        shift = float(np.max(shifts, initial=0.0))
    scale = float(np.sqrt(np.mean(wanted**2)))
    allowed = factor * (budget.atol * scale + budget.rtol * np.abs(wanted)) + _SENSITIVITY_FACTOR * shift + _FLOOR
    return Difference(
        max_abs=float(errors.max()),
        max_rel=float(np.max(errors / np.maximum(np.abs(wanted), max(scale * 1e-3, _FLOOR)))),
        share=float(np.max(errors / allowed)),
        error_square=float(np.sum(errors**2)),
        square=float(np.sum(wanted**2)),
        dot=float(np.sum(wanted * real)),
        own_square=float(np.sum(real**2)),
    )


def _compare_exact(reference: Array, moved: Array, found: Array, budget: Budget) -> Difference:
    """Integers, truth values and texts: equal, but where one rounding of the input changes the source's own answer."""
    is_stable = reference == moved if moved.shape == reference.shape else np.ones(reference.shape, bool)
    wrong = (reference != found) & is_stable
    share = float(np.mean(wrong)) if wrong.size else 0.0
    is_text = reference.dtype.kind == "U"
    errors = wrong if is_text else np.abs(reference.astype(np.float64) - found.astype(np.float64))
    greatest = float(np.max(errors, initial=0.0))
    if share > 0 and not budget.mismatch_share:
        return Difference(max_abs=greatest, max_rel=share, share=np.inf, reason=f"{share:.2%} of elements differ")
    # A share of one case would make one near tie among few elements a failure: `judge_together` counts over all.
    return Difference(
        max_abs=greatest, max_rel=share, share=0.0, mismatches=int(np.sum(wrong)), elements=int(wrong.size)
    )


def _fault(reason: str) -> Difference:
    return Difference(max_abs=np.inf, max_rel=np.inf, share=np.inf, reason=reason)


def judge_together(parts: list[Difference], budget: Budget, factor: float) -> tuple[dict[str, Any], str]:
    """Figures over all judged cases of one output, and the reason why they are too far off (empty: they are not)."""
    square, error = sum(part.square for part in parts), sum(part.error_square for part in parts)
    own, dot = sum(part.own_square for part in parts), sum(part.dot for part in parts)
    rms = float(np.sqrt(error / square)) if square else 0.0
    cosine = float(dot / np.sqrt(square * own)) if square and own else 1.0
    worst = max(parts, key=lambda part: part.share)
    figures = {
        "cases": len(parts),
        "max_abs": max(part.max_abs for part in parts),
        "max_rel": max(part.max_rel for part in parts),
        "rms_rel": rms,
        "cosine": cosine,
        "budget_used": worst.share,
    }
    if worst.share > 1:
        return figures, worst.reason or f"error {worst.max_abs:.3g} is {worst.share:.3g} times what is allowed"
    elements, mismatches = sum(part.elements for part in parts), sum(part.mismatches for part in parts)
    if mismatches > elements * budget.mismatch_share:
        return figures, f"{mismatches} of {elements} elements differ, more than {budget.mismatch_share:.0%}"
    if budget.rms_share and rms > budget.rms_share * factor:
        return figures, f"relative RMS error {rms:.3g}, more than {budget.rms_share * factor:.3g}"
    if budget.cosine_min and cosine < 1 - (1 - budget.cosine_min) * factor:
        return figures, f"cosine {cosine:.5f}, less than {1 - (1 - budget.cosine_min) * factor:.5f}"
    return figures, ""
