"""Owns the load generators: wrk for HTTP/1.1, h2load for gRPC and for exact counts; their output becomes one value."""

import json
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loadtests.payloads import Body
from loadtests.processes import BenchError

_POST: Final = Path(__file__).with_name("post.lua")
#: (connections, streams each) for a concurrency over HTTP/2: few connections, many streams, as gRPC clients do.
H2_SHAPES: Final = {1: (1, 1), 8: (1, 8), 16: (2, 8), 64: (8, 8), 256: (16, 16)}
_MARGIN_S: Final = 30.0
_UNITS_S: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """What a load generator saw. `calls` were answered with status 200; latencies are the client's."""

    calls: int
    seconds: float
    failed: int
    p50_us: float | None
    p99_us: float | None


def _run(command: Sequence[str], core: int, limit_s: float) -> str:
    done = subprocess.run(
        ["taskset", "-c", str(core), *command], capture_output=True, text=True, timeout=limit_s, check=False
    )
    if done.returncode != 0:
        raise BenchError(f"{command[0]} ended with {done.returncode}: {done.stderr[-500:] or done.stdout[-500:]}")
    return done.stdout


def run_wrk(
    url: str, body: Body, headers: Sequence[tuple[str, str]], *, concurrency: int, seconds: float, core: int
) -> LoadResult:
    """HTTP/1.1 POSTs over `concurrency` connections for `seconds` (whole seconds, at least 1)."""
    command = ["wrk", "-t1", f"-c{concurrency}", f"-d{max(1, round(seconds))}s", "--timeout", "10s", "-s", str(_POST)]
    fields = [f"{name}: {value}" for name, value in (*body.headers, *headers)]
    return parse_wrk(_run([*command, url, "--", str(body.file), *fields], core, seconds + _MARGIN_S))


def parse_wrk(output: str) -> LoadResult:
    """Read the line that post.lua printed. Raises BenchError without one."""
    line = next((line for line in output.splitlines() if line.startswith("BENCH ")), None)
    if line is None:
        raise BenchError(f"wrk printed no figures: {output[-500:]}")
    figures = json.loads(line[6:])
    failed = figures["not_ok"] + figures["broken"]
    return LoadResult(
        calls=figures["calls"] - figures["not_ok"],
        seconds=figures["duration_us"] / 1e6,
        failed=failed,
        p50_us=float(figures["p50_us"]),
        p99_us=float(figures["p99_us"]),
    )


def _h2load(
    url: str, body: Body, headers: Sequence[tuple[str, str]], shape: tuple[int, int], flags: Sequence[str]
) -> list[str]:
    command = ["h2load", f"-c{shape[0]}", f"-m{shape[1]}", "-d", str(body.file), *flags]
    for name, value in (*body.headers, *headers):
        command += ["-H", f"{name}: {value}"]
    return [*command, url]


def run_h2load(
    url: str,
    body: Body,
    headers: Sequence[tuple[str, str]],
    *,
    concurrency: int,
    seconds: float,
    core: int,
    log: Path,
) -> LoadResult:
    """gRPC calls over HTTP/2 for `seconds`. `log` holds a line per call afterwards, for the percentiles."""
    log.unlink(missing_ok=True)
    flags = ["-D", str(max(1, round(seconds))), f"--log-file={log}"]
    command = _h2load(url, body, headers, H2_SHAPES[concurrency], flags)
    output = _run(command, core, seconds + _MARGIN_S)
    return parse_h2load(output, log.read_text())


def run_h2load_text(
    url: str, body: Body, headers: Sequence[tuple[str, str]], *, concurrency: int, calls: int, core: int
) -> str:
    """Exactly `calls` gRPC calls; what h2load printed."""
    command = _h2load(url, body, headers, H2_SHAPES[concurrency], ["-n", str(calls)])
    return _run(command, core, 600.0)


def run_count(
    url: str, body: Body, headers: Sequence[tuple[str, str]], *, calls: int, is_grpc: bool, core: int
) -> LoadResult:
    """Exactly `calls` calls at concurrency 64, HTTP/1.1 or gRPC; no percentiles."""
    shape, flags = (H2_SHAPES[64], []) if is_grpc else ((64, 1), ["--h1"])
    command = _h2load(url, body, headers, shape, [*flags, "-n", str(calls)])
    return parse_h2load(_run(command, core, 600.0), "")


def parse_h2load(output: str, log: str) -> LoadResult:
    """Read h2load's summary and its log lines (start µs, status, duration µs). Raises BenchError."""
    finished = re.search(r"finished in ([\d.]+)(us|ms|s),", output)
    requests = re.search(r"requests: (\d+) total, \d+ started, (\d+) done, (\d+) succeeded, (\d+) failed", output)
    if finished is None or requests is None:
        raise BenchError(f"h2load printed no figures: {output[-500:]}")
    durations = sorted(int(line.rsplit("\t", 1)[1]) for line in log.splitlines())
    return LoadResult(
        calls=int(requests[3]),
        seconds=float(finished[1]) * _UNITS_S[finished[2]],
        failed=int(requests[4]),
        p50_us=percentile(durations, 50),
        p99_us=percentile(durations, 99),
    )


def percentile(ordered: Sequence[int], percent: int) -> float | None:
    """The nearest-rank percentile of ordered values; None of nothing."""
    if not ordered:
        return None
    return float(ordered[max(0, -(-len(ordered) * percent // 100) - 1)])
