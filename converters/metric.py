"""Owns the task metric: how often, or how far, a variant is wrong on labelled rows, beside the source on the same rows.

The labels lie beside the inputs in `--data`, one a row; only judged rows count, which calibration never saw. A variant
may lose at most `metric_drop`, and that must be sure: the bound is that of a one-sided interval of 95 %.
"""

import math
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from converters.engines import Array
from converters.errors import UsageFault
from converters.signature import Signature

#: One-sided 95 % of the normal distribution.
_SURE: Final = 1.6449
TOP1: Final = "top1"
MAE: Final = "mean_absolute_error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """`labels`: of the judged rows; int64[rows] classes for `top1`, else what the output should be.

    `drop`: of `top1` as a share of the rows; of the error as a share of the source's own.
    """

    metric: Literal["top1", "mean_absolute_error"]
    output: str
    labels: Array
    drop: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """`loss_bound`: what the loss is below, by 95 %. `reason` empty: within the budget."""

    source: float
    variant: float
    loss: float
    loss_bound: float
    rows: int
    reason: str

    def to_json(self, task: Task) -> dict[str, Any]:
        return {
            "metric": task.metric,
            "output": task.output,
            "rows": self.rows,
            "source": self.source,
            "variant": self.variant,
            "loss": self.loss,
            "loss_bound_95": self.loss_bound,
            "loss_max": task.drop,
        }


def make_task(labels: Array, signature: Signature, output: str, drop: float) -> Task:
    """`labels`: of the judged rows. `output` empty: the first that fits them.

    Raises:
        UsageFault: no output fits, or the labels are of another form.
    """
    if labels.dtype.kind not in "iuf":
        raise UsageFault("labels", f"labels of type {labels.dtype} are no numbers", next_step="give numbers")
    known = {tensor.name: tensor for tensor in signature.outputs}
    if output and output not in known:
        names = ", ".join(known)
        raise UsageFault("labels", f"--label-output '{output[:80]}' is none of {names}", next_step="name one of them")
    is_class = labels.dtype.kind in "iu" and labels.ndim == 1
    for tensor in [known[output]] if output else list(known.values()):
        if _fits(tensor.datatype, tensor.shape[bool(signature.batch_axis) :], labels, is_class=is_class):
            metric: Literal["top1", "mean_absolute_error"] = "top1" if is_class else "mean_absolute_error"
            wanted = labels.astype(np.int64) if is_class else labels.astype(np.float64)
            return Task(metric=metric, output=tensor.name, labels=wanted, drop=drop)
    shape = list(labels.shape)
    text = f"labels {labels.dtype}{shape} fit no output: classes go with scores, numbers with outputs of their shape"
    raise UsageFault("labels", text, next_step="name the output with --label-output, or give other labels")


def _fits(datatype: str, rest: tuple[int | str, ...], labels: Array, *, is_class: bool) -> bool:
    """`rest`: the axes of one row of the output."""
    if is_class:
        is_scores = datatype.startswith("FP") and len(rest) == 1
        is_chosen = datatype.startswith(("INT", "UINT")) and not rest
        return is_scores or is_chosen
    return len(rest) == labels.ndim - 1 and all(
        isinstance(size, str) or size == own for size, own in zip(rest, labels.shape[1:], strict=True)
    )


def score(task: Task, source: Array, variant: Array) -> Score:
    """`source`, `variant`: the output over all judged rows."""
    if task.metric == "top1":
        return _score_classes(task, source, variant)
    return _score_errors(task, source, variant)


def _score_classes(task: Task, source: Array, variant: Array) -> Score:
    own, other = _classes(source) == task.labels, _classes(variant) == task.labels
    lost, won, rows = int(np.sum(own & ~other)), int(np.sum(~own & other)), len(task.labels)
    # Half a row on either side (Agresti and Min): with few rows and no difference nothing is sure yet.
    difference, count = lost - won, lost + won + 1
    spread = math.sqrt(max(count - difference**2 / (rows + 1), 0.0))
    bound = (difference + _SURE * spread) / (rows + 1)
    loss = difference / rows
    reason = ""
    if bound > task.drop:
        reason = f"top-1 {other.mean():.2%} instead of {own.mean():.2%} on {rows} rows: up to {bound:.2%} may be lost"
    return Score(
        source=float(own.mean()), variant=float(other.mean()), loss=loss, loss_bound=bound, rows=rows, reason=reason
    )


def _classes(output: Array) -> Array:
    return output if output.dtype.kind in "iu" else output.argmax(axis=1)


def _score_errors(task: Task, source: Array, variant: Array) -> Score:
    axes = tuple(range(1, task.labels.ndim))
    own = np.abs(source.astype(np.float64) - task.labels).mean(axis=axes)
    other = np.abs(variant.astype(np.float64) - task.labels).mean(axis=axes)
    base = float(own.mean())
    spread = float((other - own).std(ddof=1)) / math.sqrt(len(own)) if len(own) > 1 else math.inf
    scale = max(base, np.finfo(np.float64).tiny)
    loss, bound = float((other - own).mean()) / scale, (float((other - own).mean()) + _SURE * spread) / scale
    reason = ""
    if not bound <= task.drop:
        reason = f"mean absolute error {other.mean():.4g} instead of {base:.4g}: up to {bound:.2%} worse"
    return Score(source=base, variant=float(other.mean()), loss=loss, loss_bound=bound, rows=len(own), reason=reason)
