"""Owns the posting scenario: rating and posting on each store, every run in a process of its own."""

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from loadtests.processes import BenchError

STORES: Final = ("sqlite", "postgresql")
#: Records that the meter posts at once under load.
PASS_CALLS: Final = 4_000
_RUN_S_MAX: Final = 600

Figures = Mapping[str, float]


def run_posting(root: Path, folder: Path, store: str, calls: int) -> Figures:
    """One run of `tests.perf.meter` on an empty ledger below `folder`. Raises BenchError with what it said."""
    command = [sys.executable, "-m", "tests.perf.meter", "--json", "--store", store]
    command += ["--calls", str(calls), "--pass-calls", str(PASS_CALLS), "--folder", str(folder)]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=_RUN_S_MAX)
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"posting on {store} took more than {_RUN_S_MAX} s") from error
    if done.returncode != 0:
        raise BenchError(f"posting on {store} failed: {done.stderr.strip()[-500:]}")
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def median_of(rounds: Sequence[Figures]) -> dict[str, float]:
    """The median of every number over `rounds`, and the lowest and highest rate."""
    if not rounds:
        raise BenchError("no round was measured")
    numbers = [key for key, value in rounds[0].items() if isinstance(value, int | float)]
    medians = {key: statistics.median(one[key] for one in rounds) for key in numbers}
    rates = [one["events_per_core_s"] for one in rounds]
    return medians | {"events_per_core_s_min": min(rates), "events_per_core_s_max": max(rates), "rounds": len(rounds)}
