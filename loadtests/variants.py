"""Owns timing two model files side by side, as a caller of the libraries would: not with the converter's own clock.

The measure is the CPU time of this process, one thread a run, as the machine may be shared; wall time is kept beside.
"""

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from loadtests.processes import BenchError

Feeds = Mapping[str, npt.NDArray[Any]]
Run = Callable[[], object]
Clock = Callable[[], float]
_ROUND_S: Final = 0.05
_LOG_FATAL: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Milliseconds of one run, medians of rounds; `ratio`: of CPU time, other ÷ base, the median of paired rounds."""

    base_ms: float
    other_ms: float
    ratio: float
    wall_ratio: float
    rounds: int


def open_file(path: Path, feeds: Feeds) -> Run:
    """One run of an ONNX file by ONNX Runtime, or of an IR by OpenVINO in float32, with one thread.

    Raises:
        BenchError: OpenVINO is not installed.
    """
    if path.suffix == ".xml":
        return _open_ir(path, feeds)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = _LOG_FATAL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, dict(feeds))


def _open_ir(path: Path, feeds: Feeds) -> Run:
    # Without the companion that reports its use to the maker.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino  # type: ignore[import-untyped]
    except ImportError as error:
        raise BenchError("openvino is not installed: make .venv/.bench") from error
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    request = openvino.Core().compile_model(str(path), "CPU", hints).create_infer_request()
    arrays = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
    return lambda: request.infer(arrays, share_outputs=False)


def compare(
    base: Run, other: Run, *, rounds: int, cpu_s: Clock = time.process_time, wall_s: Clock = time.perf_counter
) -> Comparison:
    """Both in each round, first one then the other by turns."""
    repeats = {run: _repeats(run, cpu_s) for run in (base, other)}
    cpu: dict[Run, list[float]] = {base: [], other: []}
    wall: dict[Run, list[float]] = {base: [], other: []}
    for number in range(rounds):
        for run in (base, other) if number % 2 else (other, base):
            started, started_cpu = wall_s(), cpu_s()
            for _ in range(repeats[run]):
                run()
            cpu[run].append((cpu_s() - started_cpu) / repeats[run])
            wall[run].append((wall_s() - started) / repeats[run])
    return Comparison(
        base_ms=statistics.median(cpu[base]) * 1e3,
        other_ms=statistics.median(cpu[other]) * 1e3,
        ratio=_paired(cpu[other], cpu[base]),
        wall_ratio=_paired(wall[other], wall[base]),
        rounds=rounds,
    )


def _paired(over: list[float], under: list[float]) -> float:
    return statistics.median(one / two for one, two in zip(over, under, strict=True))


def _repeats(run: Run, cpu_s: Clock) -> int:
    """Runs that make up a round; some before, so that both are warm."""
    run()
    run()
    started = cpu_s()
    run()
    once = max(cpu_s() - started, 1e-6)
    return max(1, min(2_000, round(_ROUND_S / once)))
