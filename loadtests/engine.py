"""Owns the engine scenario: items per second of a convnet through the gateway, against a raw loop on the same core.

Both sides get their best batch: the raw loop is swept over batch sizes, the gateway is offered 1, 4 or 8 items a call.
"""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from loadtests.contenders import Contender
from loadtests.contenders.tollway import start_tollway
from loadtests.load import LoadResult, run_wrk
from loadtests.payloads import HTTP_PATH, Body, http_body
from loadtests.plan import Plan
from loadtests.processes import (
    BenchError,
    Cores,
    cpu_ns_by_role,
    find_role,
    pin_all_threads,
    read_cpu,
    stop,
    stray_threads,
)

_MODEL: Final = "convnet"
_SHAPE: Final = (3, 64, 64)
_CONCURRENCY: Final = 16
_SWEEP_S: Final = 1
#: More than the ceiling is noise up to this, and beyond it no figure.
_RATIO_MAX: Final = 1.05


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineResult:
    """Items per second. `served` maps items per call to the median; `ratio` is best served ÷ raw at its best batch."""

    raw_by_batch: dict[int, float]
    raw_batch: int
    raw: float
    served: dict[int, float]
    served_p50_us: dict[int, float | None]
    rounds: list[dict[str, float]]
    ratio: float
    #: The same per second of CPU time (raw loop's process, engine's process): steady on a machine that is not quiet,
    #: but blind to an engine that is left waiting for work.
    raw_per_cpu_s: float
    served_per_cpu_s: dict[int, float]
    cpu_ratio: float
    problems: tuple[str, ...]


def build_model(repository: Path) -> Path:
    """Write the convnet in Triton's layout, by the model package's own command. Returns the ONNX file."""
    command = [sys.executable, "-m", "model_repo.onnx_builder", _MODEL, "--repository", str(repository)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent, timeout=120
    )
    if done.returncode != 0:
        raise BenchError(f"the convnet was not built: {done.stderr[-500:]}")
    return repository / _MODEL / "1" / "model.onnx"


def raw_loop(model: Path, batches: tuple[int, ...], seconds: int, core: int) -> dict[int, tuple[float, float]]:
    """(items per second, items per second of CPU) by batch size, in a process of its own on `core`."""
    command = ["taskset", "-c", str(core), sys.executable, str(Path(__file__).with_name("raw_loop.py"))]
    command += [str(model), str(seconds), *(str(batch) for batch in batches)]
    limit_s = 60 + 3 * seconds * len(batches)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit_s)
    if done.returncode != 0:
        raise BenchError(f"the raw loop ended with {done.returncode}: {done.stderr[-500:]}")
    return {int(batch): (rate, per_cpu_s) for batch, (rate, per_cpu_s) in json.loads(done.stdout).items()}


def _check_reply(contender: Contender, body: Body, items: int) -> None:
    """One call whose answer must have one row of ten scores per item. Raises BenchError."""
    url = f"{contender.http}{HTTP_PATH.format(model=_MODEL)}"
    request = urllib.request.Request(
        url, data=body.file.read_bytes(), headers=dict((*body.headers, *contender.headers)), method="POST"
    )
    with urllib.request.urlopen(request, timeout=30) as reply:
        data = reply.read()
        head = json.loads(data[: int(reply.headers.get("inference-header-content-length", len(data)))])
    if head["outputs"][0]["shape"] != [items, 10]:
        raise BenchError(f"convnet answered {head['outputs'][0]['shape']} to {items} items")


def _serve(contender: Contender, body: Body, seconds: int, core: int) -> LoadResult:
    url = f"{contender.http}{HTTP_PATH.format(model=_MODEL)}"
    return run_wrk(url, body, contender.headers, concurrency=_CONCURRENCY, seconds=seconds, core=core)


def run_engine(plan: Plan, workdir: Path, cores: Cores) -> EngineResult:
    """Start Tollway with its engine on a core of its own and measure both sides in alternating rounds."""
    model = build_model(workdir / "models")
    sweep = raw_loop(model, plan.raw_batches, _SWEEP_S, cores.engine)
    best = max(sweep, key=lambda batch: sweep[batch][0])
    bodies = {items: http_body(workdir, f"conv{items}", (items, *_SHAPE)) for items in plan.engine_items}
    tollway = start_tollway(
        "all", None, workdir, core=cores.engine_load, name="tollway_engine", models=workdir / "models"
    )
    assert tollway.process is not None
    raw_rounds: list[tuple[float, float]] = []
    results: dict[int, list[tuple[LoadResult, int]]] = {items: [] for items in bodies}
    try:
        engine = find_role(tollway.process.pid, "engine")
        pin_all_threads(engine, cores.engine)
        for items, body in bodies.items():
            _check_reply(tollway, body, items)
            _serve(tollway, body, 1, cores.engine_load)
        for _ in range(plan.engine_rounds):
            raw_rounds.append(raw_loop(model, (best,), plan.engine_s, cores.engine)[best])
            for items, body in bodies.items():
                before = read_cpu(engine)
                served = _serve(tollway, body, plan.engine_s, cores.engine_load)
                cpu_ns = sum(cpu_ns_by_role(before, read_cpu(engine)).values())
                results[items].append((served, cpu_ns))
        strays = stray_threads(engine, cores.engine)
    finally:
        stop(tollway.process)
    return _result(sweep, best, raw_rounds, results, strays)


def _result(
    sweep: dict[int, tuple[float, float]],
    best: int,
    raw_rounds: list[tuple[float, float]],
    results: dict[int, list[tuple[LoadResult, int]]],
    strays: int,
) -> EngineResult:
    rates = {items: [items * r.calls / r.seconds for r, _ in group] for items, group in results.items()}
    served = {items: median(group) for items, group in rates.items()}
    per_cpu_s = {
        items: median(items * r.calls / (cpu_ns / 1e9) for r, cpu_ns in group) for items, group in results.items()
    }
    rounds = [
        {"raw": raw, **{f"served_{items}": group[number] for items, group in rates.items()}}
        for number, (raw, _) in enumerate(raw_rounds)
    ]
    raw, raw_per_cpu_s = (median(column) for column in zip(*raw_rounds, strict=True))
    ratio = max(served.values()) / raw
    failed = sum(r.failed for group in results.values() for r, _ in group)
    return EngineResult(
        raw_by_batch={batch: rate for batch, (rate, _) in sweep.items()},
        raw_batch=best,
        raw=raw,
        served=served,
        served_p50_us={
            items: median([r.p50_us for r, _ in group if r.p50_us is not None]) for items, group in results.items()
        },
        rounds=rounds,
        ratio=ratio,
        raw_per_cpu_s=raw_per_cpu_s,
        served_per_cpu_s=per_cpu_s,
        cpu_ratio=max(per_cpu_s.values()) / raw_per_cpu_s,
        problems=tuple(_problems(failed, strays, ratio)),
    )


def _problems(failed: int, strays: int, ratio: float) -> Iterator[str]:
    if failed:
        yield f"{failed} calls failed"
    if strays:
        yield f"{strays} threads of the engine may leave its core"
    if ratio > _RATIO_MAX:
        yield f"{ratio:.2f} of the raw loop's rate: the ceiling was measured too low, the machine was not quiet"
