"""Owns the figure of quota leases: commands to a real Valkey per call that needs no refill, heartbeats aside."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

from loadtests.processes import BenchError

_ROOT: Final = Path(__file__).parents[2]
_RUN_S_MAX: Final = 300
CALLS: Final = 20_000


def measure_lease_refill_commands() -> float:
    """What `tests.perf.leases` counted. Raises BenchError with what it said."""
    return run_leases(CALLS)["commands_per_free_call"]


def run_leases(calls: int) -> dict[str, float]:
    """Counts of a run over `calls` calls, in a process of its own. Raises BenchError."""
    command = [sys.executable, "-m", "tests.perf.leases", "--json", "--calls", str(calls)]
    try:
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False, timeout=_RUN_S_MAX)
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"counting the commands of leases took more than {_RUN_S_MAX} s") from error
    if done.returncode != 0:
        raise BenchError(f"counting the commands of leases failed: {done.stderr.strip()[-500:]}")
    figures: dict[str, float] = json.loads(done.stdout)
    return figures
