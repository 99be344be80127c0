"""Owns the framework's side of a conversion: its answers take the place of the exported graph's.

The reference of every variant is then what the framework itself answers, not what the exporter made of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from converters.budgets import BUDGETS, compare
from converters.engines import Array
from converters.errors import VerificationFailed
from converters.importers.exchange import file_of, read_arrays, read_index, write_arrays, write_index
from converters.job import Job
from converters.samples import THRESHOLD, Case, Data, make_cases
from converters.signature import Signature
from converters.verify import Answers, Known, check_batches


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """`work`: folder with `cases/`, `answers/` and `extra/`. `facts`: what is reported of the source."""

    work: Path
    facts: Mapping[str, Any]


def extra_cases(work: Path, signature: Signature) -> tuple[Case, ...]:
    """Cases that the importer gave. Raises: ToolFailed: they cannot be read."""
    folder = work / "extra"
    index = read_index(folder)
    found = []
    for place in range(int(index["count"])):
        feeds = read_arrays(file_of(folder, place), index["inputs"])
        rows = len(next(iter(feeds.values()))) if signature.batch_axis else 0
        found.append(Case(kind=THRESHOLD, rows=rows, sizes={}, feeds=feeds))
    return tuple(found)


def write_cases(signature: Signature, job: Job, data: Data | None, work: Path) -> int:
    """All cases into `work/cases`, in the order in which they are judged. Returns how many."""
    folder = work / "cases"
    folder.mkdir()
    names = [tensor.name for tensor in signature.inputs]
    labels = []
    for place, case in enumerate((*make_cases(signature, job, data), *extra_cases(work, signature))):
        write_arrays(file_of(folder, place), names, case.feeds)
        labels.append(case.label)
    write_index(folder, {"inputs": names, "labels": labels})
    return len(labels)


def anchor(answers: Answers, origin: Origin, signature: Signature) -> tuple[Answers, dict[str, Any]]:
    """The answers with the framework's in place of the exported graph's, and how the export compares with them.

    Raises:
        VerificationFailed: the exported graph answers otherwise than the framework, or refuses what that answers.
    """
    labels = read_index(origin.work / "cases")["labels"]
    index = read_index(origin.work / "answers")
    refused: dict[str, str] = index["refused"]
    wanted = {tensor.name for tensor in signature.outputs}
    if set(index["outputs"]) != wanted:
        text = f"the framework gives the outputs {sorted(index['outputs'])}, the exported graph {sorted(wanted)}"
        raise VerificationFailed("export_differs", text, next_step="report the model")
    own = {one.place: one for one in answers.known}
    known, worst = [], dict.fromkeys(sorted(wanted), 0.0)
    for place, label in enumerate(labels):
        if str(place) in refused:
            continue
        if place not in own:
            text = f"the framework answers the case {label}, which the exported graph refuses"
            raise VerificationFailed("export_refuses", text, next_step="bound variable axes with --dim")
        outputs = read_arrays(file_of(origin.work / "answers", place), index["outputs"])
        known.append(_anchored(own[place], outputs, worst))
    reasons = tuple(f"{reason} (framework)" for reason in refused.values())
    check_batches(known, reasons)
    facts = {"cases": len(known), "budget_used": {name: round(share, 6) for name, share in worst.items()}}
    return Answers(known=tuple(known), refused=reasons), facts


def _anchored(known: Known, outputs: Mapping[str, Array], worst: dict[str, float]) -> Known:
    budget = BUDGETS["fp32"]
    anchored, moved = {}, {precision: dict(one) for precision, one in known.moved.items()}
    for name, graph in known.outputs.items():
        answer = outputs[name]
        if answer.shape != graph.shape:
            text = (
                f"{known.case.label}: output '{name}' is {list(graph.shape)}, the framework gives {list(answer.shape)}"
            )
            raise VerificationFailed("export_differs", text, next_step="report the model")
        anchored[name] = _cast(answer, graph.dtype)
        for one in moved.values():
            one[name] = _shifted(anchored[name], graph, one[name])
        found = compare(anchored[name], moved["fp32"][name], graph, budget, 1.0)
        worst[name] = max(worst[name], found.share)
        if found.share > 1:
            reason = found.reason or f"off by {found.max_abs:.3g}, {found.share:.3g} times what fp32 may be"
            text = f"the export is wrong: output '{name}' in the case {known.case.label}: {reason}"
            raise VerificationFailed("export_differs", text, next_step="report the model to its exporter's makers")
    return replace(known, outputs=anchored, moved=moved)


def _cast(answer: Array, dtype: Any) -> Array:
    """Frameworks that compute in float64 are judged in the graph's type."""
    with np.errstate(over="ignore"):
        return answer.astype(dtype)


def _shifted(answer: Array, graph: Array, moved: Array) -> Array:
    """The framework's answer moved as far as the graph's own: what the input decides, without the export's error."""
    if moved.shape != graph.shape:
        return moved
    if graph.dtype.kind != "f":
        return np.where(moved == graph, answer, moved)
    with np.errstate(invalid="ignore", over="ignore"):
        return (answer.astype(np.float64) + (moved.astype(np.float64) - graph.astype(np.float64))).astype(graph.dtype)
