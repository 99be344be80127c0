"""Owns the figure of prepaid: CPU that it adds to a worker's call, measured in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from loadtests.processes import BenchError

_ROOT: Final = Path(__file__).parents[2]
_RUN_S_MAX: Final = 300
CALLS: Final = 20_000
ROUNDS: Final = 9


def measure_prepaid_us() -> float:
    """µs of CPU per call, the larger of HTTP (priced by the call) and gRPC (by rows). Raises BenchError.

    With compiled hot modules where they are built, as workers run them.
    """
    figures = run_prepaid(CALLS, ROUNDS)
    return max(figures["flat"], figures["grpc"])


def run_prepaid(calls: int, rounds: int) -> dict[str, float]:
    """What `tests.perf.prepaid` measured. Raises BenchError with what it said."""
    environment, path = dict(os.environ), _compiled()
    if path:
        environment["PYTHONPATH"] = f"{path}{os.pathsep}{_ROOT}"
    command = [sys.executable, *(["-P"] if path else []), "-m", "tests.perf.prepaid", "--json"]
    command += ["--calls", str(calls), "--rounds", str(rounds)]
    done = _run(command, environment)
    if done.returncode != 0:
        raise BenchError(f"measuring prepaid failed: {done.stderr.strip()[-500:]}")
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def _compiled() -> str:
    """The folder of the compiled hot modules of these sources; "" without."""
    done = _run([sys.executable, "-m", "gateway.compiled", "--check"], dict(os.environ))
    return done.stdout.strip() if done.returncode == 0 else ""


def _run(command: list[str], environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            command, cwd=_ROOT, env=environment, capture_output=True, text=True, check=False, timeout=_RUN_S_MAX
        )
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"measuring prepaid took more than {_RUN_S_MAX} s") from error
