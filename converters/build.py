"""Owns one conversion from a source file to a finished bundle: the steps in order. Runs in the limited child process.

What it leaves in the work folder: `bundle/` (the files of a version), `config.pbtxt` (for a model called `model`),
`report.json`, and `failures/<variant>/` with a repro for each variant that answered wrongly.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from converters.bisect import find_bad_node
from converters.bundle import write_bundle
from converters.engines import Engine, Feeds, open_onnx
from converters.errors import ConvertError, VerificationFailed
from converters.fallback import choose_fallbacks
from converters.job import NOT_OFFERED, Job
from converters.measure import Speed, measure
from converters.metric import Task, make_task, score
from converters.normalise import INLINE_BYTES_MAX, load_whole, normalise, save_model
from converters.origin import Origin, anchor, extra_cases, write_cases
from converters.probe import Probe, probe_onnx
from converters.report import describe
from converters.samples import Data, make_case, read_data
from converters.select import PLAIN, Candidate, Choice, cost, is_worth_it, select
from converters.signature import Signature, read_signature
from converters.variants import Made, Variant, build_variant, take_made
from converters.verify import Answers, answer_all, observe, open_moved, verify

BATCHES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
#: Measured up to so many rows where the batch is the callers' own.
_CALLERS_ROWS: Final = 32
#: (step, how many are done, of how many)
Progress = Callable[[str, int, int], None]
Timing = Callable[..., dict[str, list[Speed]]]


@dataclass(slots=True, kw_only=True)
class Outcome:
    """Of one variant asked for, filled in step by step. `status`: accepted, refused or selected."""

    engine: str
    precision: str
    status: str = "refused"
    reason: str = ""
    next_step: str = ""
    method: str = ""
    size_bytes: int = 0
    per_output: dict[str, Any] = field(default_factory=dict)
    cases_judged: int = 0
    bad_node: dict[str, Any] | None = None
    speeds: list[dict[str, Any]] = field(default_factory=list)
    task: dict[str, Any] | None = None

    @property
    def key(self) -> str:
        return f"{self.engine}-{self.precision}"

    def to_json(self) -> dict[str, Any]:
        names = self.__dataclass_fields__
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The model as given, its normal form, and what it answers. `whole`: ONNX graph with its weights.

    `facts`: of the framework that it was exported from; empty for ONNX.
    """

    probe: Probe
    sha256: str
    whole: Any
    normal: Any
    reference: Engine
    signature: Signature
    answers: Answers
    data: Data | None
    facts: dict[str, Any]
    task: Task | None


def build(
    job: Job,
    source: Path,
    data: Path | None,
    work: Path,
    *,
    sha256: str,
    progress: Progress,
    simplify: Callable[[Any], Any] = normalise,
    origin: Origin | None = None,
    made: Mapping[str, Made] | None = None,
    timing: Timing = measure,
) -> dict[str, Any]:
    """Convert `source` and leave the results in `work`. Returns the report.

    `simplify` makes the graph that variants are built from; the self-test passes one that spoils it.
    `origin`: of a source that was exported from a framework, whose answers are then the reference.
    `made`: variants of toolchains, by key. `timing`: what measures; a test gives times of its own.

    Raises:
        ConvertError: the report so far is in `work/report.json` where variants had been built.
    """
    wanted = [(engine, precision) for engine in job.engines for precision in job.precisions]
    total = 3 + 2 * len(wanted) + len(BATCHES)
    read = read_source(
        job,
        source,
        sha256,
        data,
        simplify=simplify,
        origin=origin,
        progress=lambda step, done: progress(step, done, total),
    )
    outcomes: list[Outcome] = []
    good: list[tuple[Outcome, Variant]] = []
    for place, (engine, precision) in enumerate(wanted):
        outcome = Outcome(engine=engine, precision=precision)
        outcomes.append(outcome)
        progress(f"build {outcome.key}", 3 + 2 * place, total)
        variant = try_build(outcome, read, job, work, (made or {}).get(outcome.key))
        if variant is not None:
            progress(f"verify {outcome.key}", 4 + 2 * place, total)
            if try_verify(outcome, variant, read, job, work):
                good.append((outcome, variant))
    report = describe(read, outcomes)
    if not good:
        _write_report(work, report)
        first = next((one for one in outcomes if one.per_output or one.bad_node), outcomes[0])
        text = f"no variant gives the source's results; {first.key}: {first.reason}"
        raise VerificationFailed("no_variant", text, next_step=first.next_step)
    done = 3 + 2 * len(wanted)
    speeds = _measure(
        good,
        read,
        job,
        work,
        timing,
        on_batch=lambda rows, place: progress(f"measure {rows} rows", done + place, total),
    )
    choice = _choose(good, speeds, job)
    report["plain"] = [speed.to_json() for speed in speeds[PLAIN]]
    is_same = choice.selected == "onnxruntime-fp32" and not is_worth_it(
        speeds["onnxruntime-fp32"], speeds[PLAIN], job.optimize
    )
    given = _as_given(good, speeds[PLAIN], read, job, work) if choice.selected is None or is_same else None
    if given is not None:
        chosen, own, speedup = given, speeds[PLAIN], 1.0
    elif choice.selected is not None:
        chosen = next((outcome, variant) for outcome, variant in good if outcome.key == choice.selected)
        own, speedup = speeds[choice.selected], choice.speedup
    else:
        report["variants"] = [one.to_json() for one in outcomes]
        _write_report(work, report)
        text = "every variant was refused: " + "; ".join(f"{key}: {why}" for key, why in choice.refused.items())
        raise VerificationFailed("not_faster", text, next_step="ask for onnxruntime fp32 too")
    report.update(selected=chosen[0].key, speedup=round(speedup, 3))
    report["variants"] = [one.to_json() for one in outcomes]
    costs = {outcome.key: cost(speeds[outcome.key], job.optimize) for outcome, _ in good}
    keys = choose_fallbacks(chosen[0].key, [(one.key, one.engine, one.precision) for one, _ in good], costs)
    beside = [next(one for one in good if one[0].key == key) for key in keys]
    report["fallbacks"] = list(keys)
    write_bundle(job, read, chosen, beside, speeds=own, report=report, work=work)
    _write_report(work, report)
    progress("done", total, total)
    return report


def read_source(
    job: Job,
    path: Path,
    sha256: str,
    data: Path | None,
    *,
    simplify: Callable[[Any], Any],
    origin: Origin | None,
    progress: Callable[[str, int], None],
) -> Source:
    """The model, looked at, simplified, and answered by the source itself. Raises: ConvertError."""
    progress("probe", 0)
    probe = probe_onnx(path)
    whole = load_whole(probe, path.parent)
    progress("normalise", 1)
    normal = simplify(whole)
    progress("reference", 2)
    reference = open_reference(whole, path)
    signature = observe(read_signature(whole), reference, job)
    rows = None if data is None else read_data(data, signature, job.seed, labels=job.labels)
    labels = None if rows is None else rows.labels
    task = None if labels is None else make_task(labels, signature, job.label_output, job.metric_drop)
    extra = extra_cases(origin.work, signature) if origin is not None else ()
    answers = answer_all(signature, reference, open_moved(whole, job), job, rows, extra=extra)
    facts: dict[str, Any] = {}
    if origin is not None:
        answers, parity = anchor(answers, origin, signature)
        facts = {**origin.facts, "export": parity}
    return Source(
        probe=probe,
        sha256=sha256,
        whole=whole,
        normal=normal,
        reference=reference,
        signature=signature,
        answers=answers,
        data=rows,
        facts=facts,
        task=task,
    )


def write_source_cases(job: Job, path: Path, data: Path | None, work: Path) -> int:
    """The cases on which `build` will judge, into `work/cases`, for a framework to answer. Returns how many.

    Raises:
        ConvertError: as `build`.
    """
    whole = load_whole(probe_onnx(path), path.parent)
    signature = observe(read_signature(whole), open_reference(whole, path), job)
    return write_cases(signature, job, None if data is None else read_data(data, signature, job.seed), work)


def open_reference(whole: Any, path: Path) -> Engine:
    """The source as it is, unoptimised; from its own file where one message could not hold it."""
    is_large = whole.ByteSize() >= INLINE_BYTES_MAX
    return open_onnx(path if is_large else bytes(whole.SerializeToString()), is_optimised=False)


def try_build(outcome: Outcome, source: Source, job: Job, work: Path, made: Made | None = None) -> Variant | None:
    """None: it cannot be built; `outcome` says why. `made`: by a toolchain, before."""
    reason = NOT_OFFERED.get((outcome.engine, outcome.precision))
    if reason is not None:
        outcome.reason, outcome.next_step = f"not offered: {reason}", "leave it out"
        return None
    folder = work / outcome.key
    try:
        variant = (
            take_made(outcome.engine, outcome.precision, made, source.normal, folder)
            if made is not None
            else _build_here(outcome, source, job, folder)
        )
    except ConvertError as error:
        outcome.reason, outcome.next_step = str(error), error.next_step
        return None
    outcome.method, outcome.size_bytes = variant.method, variant.size_bytes
    return variant


def _build_here(outcome: Outcome, source: Source, job: Job, folder: Path) -> Variant:
    return build_variant(
        outcome.engine,
        outcome.precision,
        source.normal,
        folder,
        source.data,
        batched=source.signature.batch_axis is not None,
        factor=job.budgets.get(outcome.precision, 1.0),
    )


def try_verify(outcome: Outcome, variant: Variant, source: Source, job: Job, work: Path) -> bool:
    """Whether it answers as the source does; `outcome` says how well, or why not, and where it is first wrong."""
    names = tuple(tensor.name for tensor in source.signature.outputs)
    precision = outcome.precision
    try:
        engine = variant.open(names, job.threads)
    except ConvertError as error:
        outcome.reason, outcome.next_step = str(error), error.next_step
        return False
    verdict = verify(source.answers, engine, precision, job.budgets.get(precision, 1.0))
    outcome.per_output, outcome.cases_judged = verdict.per_output, verdict.cases_judged
    if not verdict.reason:
        return _try_task(outcome, engine, source)
    outcome.reason = f"verification: {verdict.reason}"
    outcome.next_step = (
        f"look at the inner tensors, leave {precision} out, bound variable axes with --dim, "
        f"or widen --budget {precision}=FACTOR"
    )
    if verdict.worst is not None:
        folder = work / "failures" / outcome.key
        bad = find_bad_node(source.whole, variant.origin, verdict.worst.case.feeds, precision, folder)
        if bad is not None:
            outcome.bad_node = {"node": bad.node, "op": bad.op, "tensor": bad.tensor, "reason": bad.reason}
            outcome.reason += f"; first wrong at node '{bad.node}' ({bad.op})"
            if bad.repro is not None:
                outcome.next_step = f"run failures/{outcome.key}/repro.py; " + outcome.next_step
    return False


def _try_task(outcome: Outcome, engine: Engine, source: Source) -> bool:
    """Accepted, unless labels say that too much of the task is lost."""
    if source.task is not None:
        known = [one for one in source.answers.known if one.case.kind == "data"]
        name, join = source.task.output, np.concatenate if source.signature.batch_axis else np.stack
        own = join([one.outputs[name] for one in known])
        found = score(source.task, own, join([engine.run(one.case.feeds)[name] for one in known]))
        outcome.task = found.to_json(source.task)
        if found.reason:
            outcome.status, outcome.reason = "refused", f"task: {found.reason}"
            outcome.next_step = "give more labelled rows, allow a greater --metric-drop, or leave it out"
            return False
    outcome.status = "accepted"
    return True


def _measure(
    good: list[tuple[Outcome, Variant]],
    source: Source,
    job: Job,
    work: Path,
    timing: Timing,
    *,
    on_batch: Callable[[int, int], None],
) -> dict[str, list[Speed]]:
    """The verified variants and the plain source, side by side."""
    names = tuple(tensor.name for tensor in source.signature.outputs)
    plain = work / "plain"
    plain.mkdir()
    save_model(source.whole, plain / "model.onnx")
    engines = {outcome.key: variant.open(names, job.threads) for outcome, variant in good}
    engines[PLAIN] = open_onnx(plain / "model.onnx", threads=job.threads)
    is_batched = source.signature.batch_axis is not None
    rows_max = job.batch_rows_max or _CALLERS_ROWS
    batches = tuple(rows for rows in BATCHES if rows <= rows_max) if is_batched else (0,)
    # One thread: its CPU time is its time, and a busy machine does not disturb it.
    clock = time.process_time_ns if job.threads == 1 else time.perf_counter_ns
    speeds = timing(
        engines,
        lambda rows: _feeds_of(source, job, rows),
        batches=batches,
        rounds=job.rounds,
        seed=job.seed,
        on_batch=lambda rows: on_batch(rows, batches.index(rows)),
        clock_ns=clock,
    )
    shutil.rmtree(plain)
    for outcome, _ in good:
        outcome.speeds = [speed.to_json() for speed in speeds[outcome.key]]
    return speeds


def _feeds_of(source: Source, job: Job, rows: int) -> Feeds:
    """Inputs to measure with: the middle of the sizes that the source answers."""
    sizes = [one.case.sizes for one in source.answers.known if one.case.kind == "normal"]
    middle = sizes[len(sizes) // 2] if sizes else {}
    return make_case("normal", rows, middle, source.signature, job).feeds


def _choose(good: list[tuple[Outcome, Variant]], speeds: dict[str, list[Speed]], job: Job) -> Choice:
    candidates = [
        Candidate(key=one.key, engine=one.engine, precision=one.precision, speeds=speeds[one.key]) for one, _ in good
    ]
    choice = select(candidates, speeds[PLAIN], job.optimize)
    for outcome, _ in good:
        if outcome.key == choice.selected:
            outcome.status = "selected"
        elif outcome.key in choice.refused:
            outcome.status, outcome.reason = "refused", choice.refused[outcome.key]
            outcome.next_step = "nothing: another variant is better on this machine"
    return choice


def _as_given(
    good: list[tuple[Outcome, Variant]], plain: list[Speed], source: Source, job: Job, work: Path
) -> tuple[Outcome, Variant] | None:
    """The source as it is, in the place of ONNX Runtime's fp32 variant: where nothing is faster, nothing is changed."""
    outcome = next((one for one, _ in good if one.key == "onnxruntime-fp32"), None)
    if outcome is None:
        return None
    folder = work / "as-given"
    folder.mkdir()
    save_model(source.whole, folder / "model.onnx")
    method = "the source as it is, as no variant is faster"
    variant = Variant(engine="onnxruntime", precision="fp32", folder=folder, origin=source.whole, method=method)
    outcome.reason = outcome.next_step = ""
    outcome.method, outcome.size_bytes = method, variant.size_bytes
    outcome.speeds = [speed.to_json() for speed in plain]
    if not try_verify(outcome, variant, source, job, work):
        outcome.status = "refused"
        return None
    outcome.status = "selected"
    return outcome, variant


def _write_report(work: Path, report: dict[str, Any]) -> None:
    (work / "report.json").write_text(json.dumps(report, indent=2) + "\n")
