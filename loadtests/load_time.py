"""Owns the load scenario: how long the engine takes to make a 100 MB model ready, against bare session creation.

Both begin with the file in the page cache and end with a model that can run. The engine's time is its own, from its
log: reading, checking, warm-up, and measuring whether batches are short.
"""

import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from loadtests.processes import BenchError, Cores, spawn, stop, wait_until

MODEL: Final = "wide"
_READY: Final = re.compile(rf"model_ready model={MODEL} load_ms=(\d+)")
_SESSION: Final = """
import sys, time
import onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = 1
options.inter_op_num_threads = 1
begin = time.perf_counter()
ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
print(1000 * (time.perf_counter() - begin))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadTimeResult:
    """Milliseconds; medians over alternating rounds, each in a process of its own."""

    file_bytes: int
    session_ms: float
    engine_ms: float
    rounds: tuple[tuple[float, float], ...]

    @property
    def ratio(self) -> float:
        return self.engine_ms / self.session_ms


def session_ms(model: Path, core: int) -> float:
    """Creation of a bare session. Raises BenchError."""
    command = ["taskset", "-c", str(core), sys.executable, "-c", _SESSION, str(model)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode != 0:
        raise BenchError(f"the bare session ended with {done.returncode}: {done.stderr[-500:]}")
    return float(done.stdout)


def engine_ms(repository: Path, workdir: Path, core: int, number: int) -> float:
    """The engine's own time to make the model ready. Raises BenchError."""
    log = workdir / f"load_time_{number}.log"
    socket = workdir / f"load_time_{number}.sock"
    command = [sys.executable, "-m", "gateway.engine", "--repository", str(repository), "--socket", str(socket)]
    process = spawn(command, core=core, log=log, cwd=Path(__file__).parent.parent)
    try:
        wait_until("the engine", lambda: "state=" in log.read_text(errors="replace"), process, log, limit_s=60.0)
        return read_load_ms(log.read_text(errors="replace"))
    finally:
        stop(process)


def read_load_ms(log: str) -> float:
    """Raises BenchError where the model did not become ready."""
    found = _READY.search(log)
    if found is None:
        raise BenchError(f"the engine did not load the model: {log[-1000:]}")
    return float(found[1])


def run_load_time(repository: Path, workdir: Path, cores: Cores, *, rounds: int) -> LoadTimeResult:
    """Alternate both; `repository` holds nothing but the model. Raises BenchError."""
    model = repository / MODEL / "1" / "model.onnx"
    model.read_bytes()
    pairs = []
    for number in range(rounds):
        pairs.append((session_ms(model, cores.server), engine_ms(repository, workdir, cores.server, number)))
        time.sleep(0.1)  # the last engine's memory is being given back
    return summarise_load_time(model.stat().st_size, pairs)


def summarise_load_time(file_bytes: int, pairs: Sequence[tuple[float, float]]) -> LoadTimeResult:
    """Medians of (session, engine) milliseconds."""
    return LoadTimeResult(
        file_bytes=file_bytes,
        session_ms=median(session for session, _ in pairs),
        engine_ms=median(engine for _, engine in pairs),
        rounds=tuple(pairs),
    )
