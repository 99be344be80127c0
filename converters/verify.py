"""Owns the gate: a variant answers every judged case as the source does, within the budget, or it is refused."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from converters.budgets import BUDGETS, JUDGED, Difference, compare, judge_together, perturb, perturb_weights
from converters.engines import Array, Engine, Feeds, open_onnx
from converters.errors import ToolFailed, VerificationFailed
from converters.job import Job
from converters.samples import THRESHOLD, Case, Data, make_cases
from converters.signature import Signature, Tensor

_REFUSALS_SHOWN: Final = 3
MOVED_BYTES_MAX: Final = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A case with the source's answer, as it is and with inputs and weights moved by one rounding, by precision.

    `place`: of the case among all cases in their order, answered or not.
    """

    case: Case
    outputs: dict[str, Array]
    moved: dict[str, dict[str, Array]]
    place: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """`refused`: shapes that the source itself does not take."""

    known: tuple[Known, ...]
    refused: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`reason` empty: passed. `worst`: the case that failed first."""

    per_output: dict[str, dict[str, Any]]
    reason: str
    worst: Known | None
    cases_judged: int


def observe(signature: Signature, reference: Engine, job: Job) -> Signature:
    """The signature with the outputs' real ranks, and with a batch only if rows are answered one by one.

    Raises:
        VerificationFailed: the first axis is declared variable, but the source takes one row only.
    """
    sized = _with_real_outputs(signature, reference, job)
    if sized.batch_axis is None:
        return sized
    normal = [case for case in make_cases(sized, job, None) if case.kind == "normal" and case.rows in {1, 2, 3}]
    ones = [case for case in normal if case.rows == 1 and _answer(reference, case) is not None]
    if not ones:
        text = "the source answers no generated input"
        raise VerificationFailed("no_answer", text, next_step="give real inputs with --data, or sizes with --dim")
    threes = [case for case in normal if case.rows == 3 and case.sizes == ones[0].sizes]
    try:
        whole = reference.run(threes[0].feeds)
    except ToolFailed as error:
        text = f"axis '{sized.batch_axis}' is declared variable, but only one row is answered: {error}"
        raise VerificationFailed("frozen_batch", text, next_step="export with a dynamic batch of at least 2") from error
    return sized if _are_rows_apart(reference, threes[0], whole) else replace(sized, is_batched=False)


def _with_real_outputs(signature: Signature, reference: Engine, job: Job) -> Signature:
    answers = []
    for case in make_cases(signature, job, None):
        outputs = _answer(reference, case) if case.kind == "normal" and case.rows in {0, 2} else None
        if outputs is not None:
            answers.append((case, outputs))
        if len(answers) == 2:
            break
    if not answers:
        return signature
    real = tuple(_real_output(tensor, answers, signature) for tensor in signature.outputs)
    return replace(signature, outputs=real)


def _real_output(tensor: Tensor, answers: Sequence[tuple[Case, dict[str, Array]]], signature: Signature) -> Tensor:
    shapes = [outputs[tensor.name].shape for _, outputs in answers]
    if len(shapes[0]) == len(tensor.shape):
        return tensor
    first = signature.inputs[0].shape[0] if signature.inputs[0].shape else 0
    sizes: list[int | str] = []
    for place, size in enumerate(shapes[0]):
        is_fixed = all(len(shape) == len(shapes[0]) and shape[place] == size for shape in shapes)
        is_batch = place == 0 and isinstance(first, str) and size == 2
        sizes.append(first if is_batch else size if is_fixed else f"{tensor.name}.{place}")
    return replace(tensor, shape=tuple(sizes))


def _answer(engine: Engine, case: Case) -> dict[str, Array] | None:
    try:
        return engine.run(case.feeds)
    except ToolFailed:
        return None  # The shape is not one that this model takes; callers count such cases.


def _are_rows_apart(reference: Engine, case: Case, whole: dict[str, Array]) -> bool:
    """Each row of a batch is answered as it is alone."""
    if any(output.ndim == 0 or output.shape[0] != case.rows for output in whole.values()):
        return False
    budget = BUDGETS["fp32"]
    for row in range(case.rows):
        feeds = {name: array[row : row + 1] for name, array in case.feeds.items()}
        alone = reference.run(feeds)
        moved = reference.run(perturb(feeds, budget.rounding, row))
        for name, output in whole.items():
            if compare(alone[name], moved[name], output[row : row + 1], budget, 1.0).share > 1:
                return False
    return True


def open_moved(whole: Any, job: Job) -> dict[str, Engine]:
    """By precision, the source with its weights moved by one rounding; as it is where it is too large for copies."""
    found: dict[str, Engine] = {}
    for precision in dict.fromkeys(("fp32", *job.precisions)):
        rounding = BUDGETS[precision].rounding
        if rounding and whole.ByteSize() < MOVED_BYTES_MAX:
            moved = perturb_weights(whole, rounding, job.seed)
            found[precision] = open_onnx(bytes(moved.SerializeToString()), is_optimised=False)
    return found


def answer_all(
    signature: Signature,
    reference: Engine,
    moved: Mapping[str, Engine],
    job: Job,
    data: Data | None,
    *,
    extra: Sequence[Case] = (),
) -> Answers:
    """The source's answers to all cases, `extra` ones last. `moved`: as `open_moved` gives it.

    Raises:
        VerificationFailed: it answers none of them, or not all batch sizes.
    """
    known, refused = [], []
    for place, case in enumerate((*make_cases(signature, job, data), *extra)):
        outputs = _answer(reference, case)
        if outputs is None:
            refused.append(case.label)
            continue
        shifted = _answer_moved(case, outputs, reference, moved, job)
        known.append(Known(case=case, outputs=outputs, moved=shifted, place=place))
    if not known:
        step = "give real inputs with --data, or sizes with --dim"
        raise VerificationFailed("no_answer", "the source answers no generated input", next_step=step)
    check_batches(known, refused)
    return Answers(known=tuple(known), refused=tuple(refused))


def _answer_moved(
    case: Case, outputs: dict[str, Array], reference: Engine, moved: Mapping[str, Engine], job: Job
) -> dict[str, dict[str, Array]]:
    found = {}
    for precision in dict.fromkeys(("fp32", *job.precisions)):
        # At the thresholds of trees a rounding decides all: there the answer itself is asked for.
        rounding = 0.0 if case.kind == THRESHOLD else BUDGETS[precision].rounding
        feeds = _moved(case, rounding, job.seed)
        answer = _answer(moved.get(precision, reference), Case(kind=case.kind, rows=case.rows, sizes={}, feeds=feeds))
        found[precision] = outputs if answer is None or not rounding else answer
    return found


def _moved(case: Case, rounding: float, seed: int) -> Feeds:
    """Inputs moved by one rounding; denormal ones become zero, which runtimes may flush them to."""
    if case.kind == "denormal":
        return {name: np.zeros_like(array) if array.dtype.kind == "f" else array for name, array in case.feeds.items()}
    return perturb(case.feeds, rounding, seed)


def check_batches(known: Sequence[Known], refused: Sequence[str]) -> None:
    """Sizes of other axes may be refused by the source; a number of rows may not, where another is answered."""
    answered = {tuple(sorted(one.case.sizes.items())) for one in known}
    rows = {(tuple(sorted(one.case.sizes.items())), one.case.rows) for one in known if one.case.kind == "normal"}
    for sizes in answered:
        mine = {count for own, count in rows if own == sizes}
        if 1 in mine and mine != {1, 2, 3, 7, 32}:
            text = f"the source answers {sorted(mine)} rows only; refused: {'; '.join(refused[:_REFUSALS_SHOWN])}"
            raise VerificationFailed("frozen_batch", text, next_step="export with a dynamic batch of at least 2")


def verify(answers: Answers, variant: Engine, precision: str, factor: float = 1.0) -> Verdict:
    """Run every judged case and compare. Cases that do not count are run too: they must not fail to run."""
    budget = BUDGETS[precision]
    parts: dict[str, list[Difference]] = {}
    reason, worst, judged = "", None, 0
    for known in answers.known:
        try:
            found = variant.run(known.case.feeds)
        except ToolFailed as error:
            return Verdict(per_output={}, reason=f"{known.case.label}: {error}", worst=known, cases_judged=judged)
        if known.case.kind not in JUDGED[precision]:
            continue
        judged += 1
        for name, wanted in known.outputs.items():
            if name not in found:
                return Verdict(per_output={}, reason=f"output '{name}' is missing", worst=known, cases_judged=judged)
            difference = compare(wanted, known.moved[precision][name], found[name], budget, factor)
            parts.setdefault(name, []).append(difference)
            if difference.share > 1 and not reason:
                said = difference.reason or f"error {difference.max_abs:.3g}, {difference.share:.3g} times the budget"
                reason, worst = f"output '{name}', {known.case.label}: {said}", known
    if not judged:
        return Verdict(per_output={}, reason="no case could be judged", worst=None, cases_judged=0)
    per_output = {}
    for name, differences in parts.items():
        per_output[name], fault = judge_together(differences, budget, factor)
        if fault and not reason:
            reason, worst = f"output '{name}': {fault}", answers.known[-1]
    finite = {name: _plain(figures) for name, figures in per_output.items()}
    return Verdict(per_output=finite, reason=reason, worst=worst, cases_judged=judged)


def _plain(figures: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity."""
    return {key: value if np.isfinite(value) else None for key, value in figures.items()}
