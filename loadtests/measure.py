"""Owns one measurement: load on one contender, CPU of its tree before and after, the backend's own count as witness."""

import json
import time
import urllib.request
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Final

from loadtests.contenders import Contender
from loadtests.contenders.direct import MODEL
from loadtests.load import LoadResult, run_h2load, run_wrk
from loadtests.payloads import GRPC_PATH, HTTP_PATH, Body
from loadtests.plan import Scenario
from loadtests.processes import BenchError, Cores, cpu_ns_by_role, read_cpu

#: At rest: less than a tenth of a core for a while.
_REST_S: Final = 0.3
_REST_SHARE: Final = 0.1
_SETTLE_S_MAX: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One round of one contender. CPU is None for "direct", whose server is the backend itself."""

    scenario: str
    contender: str
    round: int
    calls: int
    calls_per_s: float
    p50_us: float | None
    p99_us: float | None
    cpu_us: float | None
    cpu_us_by_role: dict[str, float] = field(default_factory=dict)
    #: What makes this sample doubtful: failed calls, calls that the backend never saw.
    problems: tuple[str, ...] = ()
    #: How long the server went on working when the load had ended (posting, writing logs); counted in its CPU.
    settle_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Medians over the rounds; `cpu_us_range` says how far the rounds were apart."""

    rounds: int
    calls_per_s: float
    p50_us: float | None
    p99_us: float | None
    cpu_us: float | None
    cpu_us_range: tuple[float, float] | None
    cpu_us_by_role: dict[str, float]
    settle_s: float


def backend_counters(backend: Contender) -> dict[str, int]:
    """What the backend has answered so far: http_calls, grpc_calls, traced, body_bytes."""
    with urllib.request.urlopen(f"{backend.http}/bench/stats", timeout=5) as reply:
        counters: dict[str, int] = json.load(reply)
    return counters


def apply_load(
    contender: Contender, scenario: Scenario, body: Body, *, seconds: int, cores: Cores, workdir: Path
) -> LoadResult:
    """Run the scenario's load generator against one contender."""
    if scenario.protocol == "http":
        url = f"{contender.http}{HTTP_PATH.format(model=MODEL)}"
        return run_wrk(url, body, contender.headers, concurrency=scenario.concurrency, seconds=seconds, core=cores.load)
    return run_h2load(
        f"{contender.grpc}{GRPC_PATH}",
        body,
        contender.headers,
        concurrency=scenario.concurrency,
        seconds=seconds,
        core=cores.load,
        log=workdir / "h2load.log",
    )


def measure(
    contender: Contender,
    scenario: Scenario,
    body: Body,
    round_: int,
    *,
    backend: Contender,
    cores: Cores,
    workdir: Path,
) -> Sample:
    """One round. Raises BenchError when the load generator or the contender is gone."""
    if contender.process is None or contender.process.poll() is not None:
        raise BenchError(f"{contender.name} has ended; see {contender.name}.log in the work folder")
    is_direct = contender.process is backend.process
    counter = f"{scenario.protocol}_calls"
    seen_before = backend_counters(backend)[counter]
    before = read_cpu(contender.process.pid)
    result = apply_load(contender, scenario, body, seconds=scenario.seconds, cores=cores, workdir=workdir)
    settle_s = 0.0 if is_direct else settle(contender.process.pid)
    after = read_cpu(contender.process.pid)
    # Calls cut off by the end of the run cost CPU too, so the backend's count divides, not the generator's.
    seen = backend_counters(backend)[counter] - seen_before
    roles = {role: ns / 1000 / max(1, seen) for role, ns in cpu_ns_by_role(before, after).items()}
    return Sample(
        scenario=scenario.name,
        contender=contender.name,
        round=round_,
        calls=result.calls,
        calls_per_s=result.calls / result.seconds,
        p50_us=result.p50_us,
        p99_us=result.p99_us,
        cpu_us=None if is_direct else sum(roles.values()),
        cpu_us_by_role={} if is_direct else roles,
        problems=tuple(_problems(result, seen, settle_s)),
        settle_s=settle_s,
    )


def settle(root: int) -> float:
    """Wait until a process tree is at rest, so that work put off under load is counted; returns how long it took."""
    start = time.monotonic()
    before = read_cpu(root)
    while (waited_s := time.monotonic() - start) < _SETTLE_S_MAX:
        time.sleep(_REST_S)
        after = read_cpu(root)
        if sum(cpu_ns_by_role(before, after).values()) < _REST_SHARE * _REST_S * 1e9:
            break
        before = after
    return waited_s


def _problems(result: LoadResult, seen: int, settle_s: float) -> Iterable[str]:
    if settle_s >= _SETTLE_S_MAX:
        yield f"still busy {settle_s:.0f} s after the load"
    if result.failed:
        yield f"{result.failed} calls failed"
    if result.calls == 0:
        yield "no call was answered"
    if seen < result.calls:
        yield f"the backend saw {seen} calls, the client {result.calls}: not all were forwarded"


def summarise(samples: Sequence[Sample]) -> dict[str, dict[str, Summary]]:
    """scenario → contender → medians, in the order of appearance."""
    groups: dict[str, dict[str, list[Sample]]] = {}
    for sample in samples:
        groups.setdefault(sample.scenario, {}).setdefault(sample.contender, []).append(sample)
    return {
        scenario: {contender: _summary(group) for contender, group in by_contender.items()}
        for scenario, by_contender in groups.items()
    }


def _summary(group: Sequence[Sample]) -> Summary:
    cpu = [sample.cpu_us for sample in group if sample.cpu_us is not None]
    roles = {role for sample in group for role in sample.cpu_us_by_role}
    return Summary(
        rounds=len(group),
        calls_per_s=median(sample.calls_per_s for sample in group),
        p50_us=_median_known(sample.p50_us for sample in group),
        p99_us=_median_known(sample.p99_us for sample in group),
        cpu_us=_median_known(cpu),
        cpu_us_range=(min(cpu), max(cpu)) if cpu else None,
        settle_s=median(sample.settle_s for sample in group),
        cpu_us_by_role={
            role: median(sample.cpu_us_by_role.get(role, 0.0) for sample in group) for role in sorted(roles)
        },
    )


def _median_known(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
