"""Owns the graphs that plans are compiled from: types written into them, and verified here, on the CPU.

A plan itself cannot be run where there is no GPU; what it is made of can. Its golden answers are those of the typed
graph, so that the first host with the GPU compares before it serves.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from converters.build import Outcome, Source, read_source, try_build, try_verify
from converters.bundle import PLACEHOLDER, write_golden_cases
from converters.config_text import class_output, make_config
from converters.errors import VerificationFailed
from converters.job import Job
from converters.normalise import normalise
from converters.origin import Origin
from converters.plans.recipe import Range, make_ranges
from converters.report import describe
from converters.variants import Variant

#: Below a typed graph's folder: what is published beside its plans.
BESIDE: Final = "beside"
#: Rows that kernels are tuned for, where a batch may have as many: nothing here can tell which number is best.
_ROWS_BEST: Final = 8
_CALLERS_ROWS: Final = 32
#: Of an output's RMS that a plan may be off its graph's answers: both sides round, in another order.
_TOLERANCE: Final = {"fp32": 1e-3, "fp16": 2e-2, "int8": 1e-1}
#: (step, how many are done, of how many)
Progress = Callable[[str, int, int], None]


def write_typed(
    job: Job,
    source: Path,
    data: Path | None,
    work: Path,
    *,
    sha256: str,
    progress: Progress,
    origin: Origin | None = None,
) -> dict[str, Any]:
    """Leave `work/typed-<precision>/` for each precision of plans: the graph, and its golden answers in `beside/`.

    Returns `report` (of the typed graphs, by `variants`), `ranges` of the inputs, `configs` by engine, and `golden`
    facts by precision. A precision that fails is in the report with its reason.

    Raises:
        ConvertError: the source cannot be read, or no typed graph gives its results.
    """
    total = 3 + 2 * len(job.plan_precisions)
    read = read_source(
        job,
        source,
        sha256,
        data,
        simplify=normalise,
        origin=origin,
        progress=lambda step, done: progress(step, done, total),
    )
    outcomes, golden = [], {}
    for place, precision in enumerate(job.plan_precisions):
        outcome = Outcome(engine="typed", precision=precision)
        outcomes.append(outcome)
        progress(f"type {precision}", 3 + 2 * place, total)
        variant = try_build(outcome, read, job, work)
        if variant is None:
            continue
        progress(f"verify {outcome.key}", 4 + 2 * place, total)
        if try_verify(outcome, variant, read, job, work):
            golden[precision] = _write_golden(variant, read, job)
    report = describe(read, outcomes)
    if not golden:
        (work / "report.json").write_text(json.dumps(report, indent=2) + "\n")
        text = f"no typed graph gives the source's results; {outcomes[0].key}: {outcomes[0].reason}"
        raise VerificationFailed("no_variant", text, next_step=outcomes[0].next_step)
    ranges = ranges_of(read, job)
    return {
        "report": report,
        "golden": golden,
        "ranges": [asdict(one) for one in ranges],
        "configs": {engine: _config(engine, read, job) for engine in job.plan_engines},
    }


def _write_golden(variant: Variant, source: Source, job: Job) -> dict[str, Any]:
    """Facts of the certificate; the answers lie in `beside/` of the graph's folder."""
    folder = variant.folder / BESIDE
    folder.mkdir()
    engine = variant.open(tuple(tensor.name for tensor in source.signature.outputs), job.threads)
    return write_golden_cases(folder, source, engine, _TOLERANCE[variant.precision], rows_max=_rows_max(job))


def _rows_max(job: Job) -> int:
    return job.batch_rows_max or _CALLERS_ROWS


def ranges_of(source: Source, job: Job) -> tuple[Range, ...]:
    """What was answered and verified: from the least to the greatest of each variable axis, and one row to the most.

    Kernels are tuned for the middle one of the sizes.
    """
    signature = source.signature
    seen: dict[str, list[int]] = {name: [] for name in signature.variable_axes}
    for one in source.answers.known:
        for tensor in signature.inputs:
            for name, size in zip(tensor.shape, one.case.feeds[tensor.name].shape, strict=True):
                if isinstance(name, str) and name in seen:
                    seen[name].append(int(size))
    sizes = {name: (min(found), sorted(found)[len(found) // 2], max(found)) for name, found in seen.items()}
    if signature.batch_axis is not None:
        rows = _rows_max(job)
        sizes[signature.batch_axis] = (1, min(_ROWS_BEST, rows), rows)
    return make_ranges([(tensor.name, tensor.shape) for tensor in signature.inputs], sizes)


def _config(engine: str, source: Source, job: Job) -> str:
    """Its batch is what the plans' profile has."""
    signature = source.signature
    rows_max = job.batch_rows_max if signature.batch_axis is not None else 0
    labelled = class_output(signature, job.label_output) if job.class_names else ""
    return make_config(
        PLACEHOLDER,
        engine,
        signature,
        rows_max=rows_max,
        rows_best=max(1, min(_ROWS_BEST, rows_max)),
        labelled=labelled,
        count=len(job.class_names),
    )
