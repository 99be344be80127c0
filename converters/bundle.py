"""Owns the finished bundle: the selected variant's files, golden answers, certificate, manifest and configuration."""

import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from converters.config_text import class_output, make_config
from converters.engines import Array, Engine
from converters.host import host_facts, isa, tool_versions
from converters.job import Job
from converters.measure import Speed
from converters.select import best_batch
from converters.variants import Variant
from model_repo.certificate import CERTIFICATE, GOLDEN_BYTES_MAX, Certificate, Tensors, write_golden
from model_repo.manifest import MANIFEST, VARIANTS, Manifest, describe_files
from model_repo.manifest import Variant as ManifestVariant
from model_repo.target import Target

if TYPE_CHECKING:
    from converters.build import Outcome, Source

#: The name in the configuration as built; publishing puts the real one in its place.
PLACEHOLDER: Final = "model"
_GOLDEN_KINDS: Final = ("data", "normal", "positive", "zeros")
_GOLDEN_CASES_MAX: Final = 8
#: Another CPU sums in another order: so much of an output's RMS may a golden answer differ there.
_TOLERANCE: Final = {"fp32": 1e-4, "fp16": 4e-3}
#: Of all precisions that compute in integers.
_TOLERANCE_INTEGER: Final = 5e-2
#: Sets whose absence changes what integer kernels compute (saturation), not only how fast.
_INTEGER_ISA: Final = frozenset({"avx512_vnni", "avx_vnni", "i8mm", "avx2"})


def write_bundle(
    job: Job,
    source: "Source",
    chosen: "tuple[Outcome, Variant]",
    fallbacks: "Sequence[tuple[Outcome, Variant]]",
    *,
    speeds: Sequence[Speed],
    report: dict[str, Any],
    work: Path,
) -> None:
    """Make `work/bundle` and `work/config.pbtxt` from the selected variant; `fallbacks` lie in its `variants/`."""
    outcome, _ = chosen
    bundle = work / "bundle"
    engine = _write_build(bundle, job, source, chosen, report)
    for other in fallbacks:
        (bundle / VARIANTS).mkdir(exist_ok=True)
        _write_build(bundle / VARIANTS / other[0].key, job, source, other, report)
    manifest = Manifest(
        engine=outcome.engine,
        precision=outcome.precision,
        method=outcome.method,
        files=describe_files(bundle),
        target=_target(outcome.engine, outcome.precision),
        variants=tuple(
            ManifestVariant(
                name=one.key,
                engine=one.engine,
                precision=one.precision,
                method=one.method,
                target=_target(one.engine, one.precision),
            )
            for one, _ in fallbacks
        ),
    )
    (bundle / MANIFEST).write_bytes(manifest.to_bytes())
    is_batched = source.signature.batch_axis is not None
    rows_max = job.batch_rows_max if is_batched else 0
    signature = source.signature.narrowed(engine.output_shapes())
    labelled = class_output(signature, job.label_output) if job.class_names else ""
    text = make_config(
        PLACEHOLDER,
        outcome.engine,
        signature,
        rows_max=rows_max,
        rows_best=max(1, best_batch(speeds)),
        labelled=labelled,
        count=len(job.class_names),
    )
    (work / "config.pbtxt").write_text(text)


def _write_build(
    folder: Path, job: Job, source: "Source", build: "tuple[Outcome, Variant]", report: dict[str, Any]
) -> Engine:
    """The files of one variant in the new `folder`, with golden answers and certificate of its own."""
    outcome, variant = build
    shutil.copytree(variant.folder, folder)
    engine = variant.open(tuple(tensor.name for tensor in source.signature.outputs), job.threads)
    golden = write_golden_cases(folder, source, engine, _TOLERANCE.get(outcome.precision, _TOLERANCE_INTEGER))
    certificate = Certificate(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        source=report["source"],
        tools={**tool_versions(), **variant.tools},
        host=host_facts(),
        variant={"engine": outcome.engine, "precision": outcome.precision, "method": outcome.method},
        calibration=report["evidence"] if outcome.precision not in _TOLERANCE else None,
        evidence=report["evidence"]["kind"],
        parity={"cases": outcome.cases_judged, "per_output": outcome.per_output, "task": outcome.task},
        speed={"selected": outcome.speeds, "plain": report["plain"], "speedup": _speedup(outcome, report)},
        golden=golden,
    )
    (folder / CERTIFICATE).write_bytes(certificate.to_bytes())
    return engine


def _speedup(outcome: "Outcome", report: dict[str, Any]) -> float:
    """Over the plain source; of a fallback at the least batch."""
    if outcome.key == report["selected"]:
        return float(report["speedup"])
    return round(float(report["plain"][0]["median_ns"]) / float(outcome.speeds[0]["median_ns"]), 3)


def _target(engine: str, precision: str) -> Target:
    own = tuple(name for name in isa() if name in _INTEGER_ISA) if precision not in _TOLERANCE else ()
    return Target(
        arch=str(host_facts()["arch"]), isa=own, runtime=engine, runtime_version=tool_versions().get(engine, "0")
    )


def write_golden_cases(
    bundle: Path, source: "Source", engine: Engine, share: float, *, rows_max: int = 0
) -> dict[str, Any]:
    """Some judged inputs with the variant's own answers, as many as the limit holds; the least case always.

    `share`: of an output's RMS that it may be off by elsewhere. `rows_max`: of a case; 0: any.
    """
    names = tuple(tensor.name for tensor in source.signature.outputs)
    known = [one.case for one in source.answers.known if one.case.kind in _GOLDEN_KINDS]
    cases = [case for case in known if not rows_max or case.rows <= rows_max]
    cases.sort(key=lambda case: (sum(array.nbytes for array in case.feeds.values()), case.label))
    kept: list[tuple[Tensors, Tensors]] = []
    size, squares = 0, dict.fromkeys(names, 0.0)
    for case in cases[:_GOLDEN_CASES_MAX]:
        outputs = engine.run(case.feeds)
        size += sum(array.nbytes for array in (*case.feeds.values(), *outputs.values()))
        if size > GOLDEN_BYTES_MAX - (1 << 20):
            break
        kept.append((case.feeds, outputs))
        for name in names:
            squares[name] = max(squares[name], _rms(outputs[name]))
    write_golden(bundle, kept)
    tolerance = {name: share * square + 1e-6 if square else 1e-6 for name, square in squares.items()}
    return {"cases": len(kept), "tolerance": tolerance}


def _rms(array: Array) -> float:
    if array.dtype.kind != "f":
        return 0.0
    finite = array[np.isfinite(array)].astype(np.float64)
    return float(np.sqrt(np.mean(finite**2))) if finite.size else 0.0
