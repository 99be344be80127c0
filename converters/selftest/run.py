"""Owns the self-test: `python -m converters selftest` converts each seeded fault and each honest model, in full.

A fault stands in for a wrong exporter: the source is as it should be, what the variants are made from is spoilt. It is
caught when the conversion ends in `VerificationFailed` and leaves no bundle. An honest model raises a false alarm when
the gate refuses one of its variants; a variant that is refused as too slow is none.
"""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import onnx

from converters.build import build
from converters.errors import VerificationFailed
from converters.job import Job
from converters.selftest.faults import FAULTS, Fault
from converters.selftest.models import CLEAN
from converters.selftest.more_models import MORE

HONEST: Final[Mapping[str, Callable[[], Any]]] = {**CLEAN, **MORE}
_ENGINE: Final = "onnxruntime"
_GATE: Final = "verification: "

Say = Callable[[Mapping[str, Any]], None]


def selftest(emit: Say, *, faults: Sequence[Fault] = FAULTS, honest: Sequence[str] = tuple(HONEST)) -> dict[str, Any]:
    """Runs them one after the other, a progress event each. Returns what came of each; blocks for about a minute."""
    total = len(faults) + len(honest)
    tried = []
    for place, fault in enumerate(faults):
        emit({"ev": "progress", "step": f"fault: {fault.name}", "done": place, "total": total})
        tried.append(try_fault(fault))
    passed = []
    for place, name in enumerate(honest, start=len(faults)):
        emit({"ev": "progress", "step": f"honest: {name}", "done": place, "total": total})
        passed.append(try_honest(name, HONEST[name]()))
    return {
        "faults": tried,
        "honest": passed,
        "caught": sum(one["is_caught"] for one in tried),
        "nodes_named": sum(one["is_node_named"] for one in tried),
        "false_alarms": sum(bool(one["alarms"]) for one in passed),
    }


def try_fault(fault: Fault) -> dict[str, Any]:
    """`repro_nodes` None: there is no repro."""
    source = fault.model()
    spoilt = onnx.ModelProto()
    spoilt.CopyFrom(source)
    fault.spoil(spoilt)
    with tempfile.TemporaryDirectory(prefix="selftest-") as name:
        work = Path(name)
        reason = _build(source, work, ("fp32",), lambda _: spoilt)
        (variant,) = _variants(work)
        bad = variant["bad_node"] or {}
        repro = work / "failures" / f"{_ENGINE}-fp32" / "repro.onnx"
        return {
            "name": fault.name,
            "is_caught": reason == "no_variant" and not (work / "bundle").exists(),
            "is_node_named": bad.get("node") == fault.node,
            "repro_nodes": len(onnx.load(str(repro)).graph.node) if repro.is_file() else None,
        }


def try_honest(name: str, model: Any) -> dict[str, Any]:
    """`alarms`: what the gate said against an honest variant; `judged`: variants that came to the gate."""
    with tempfile.TemporaryDirectory(prefix="selftest-") as folder:
        work = Path(folder)
        _build(model, work, ("fp32", "fp16"), None)
        variants = _variants(work)
    alarms = [f"{one['precision']}: {one['reason']}" for one in variants if one["reason"].startswith(_GATE)]
    return {"name": name, "alarms": alarms, "judged": sum(one["cases_judged"] > 0 for one in variants)}


def _build(model: Any, work: Path, precisions: tuple[str, ...], form: Callable[[Any], Any] | None) -> str:
    """The rule that the conversion failed with; empty: it succeeded."""
    path = work / "source.onnx"
    path.write_bytes(model.SerializeToString())
    job = Job(name="selftest", engines=(_ENGINE,), precisions=precisions, batch_rows_max=1, rounds=3)
    options: dict[str, Any] = {} if form is None else {"simplify": form}
    try:
        build(job, path, None, work, sha256="", progress=lambda step, done, total: None, **options)
    except VerificationFailed as error:
        return error.rule
    return ""


def _variants(work: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((work / "report.json").read_bytes())["variants"]
    return found
