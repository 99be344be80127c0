"""Models within a memory budget in a real engine process, and real memory that comes back."""

import json
import re
import struct
import time
from pathlib import Path

import pytest

from gateway.engine.memory import resident_bytes
from gateway.engine.residency import Bounds, Residency
from gateway.engine.runtimes import load_runtime
from model_repo.config import parse_config
from model_repo.onnx_builder import Node, Value, Weight, encode_model
from tests.integration.engine_process import EngineProcess, running_process

MIB = 1 << 20
WIDTH = 1024
CONFIG = """
platform: "onnxruntime_onnx"
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: 1024 }
output { name: "y" data_type: TYPE_FP32 dims: %d }
"""


def heavy_onnx(mib: int) -> bytes:
    """y = x · W, where W of ones takes `mib` MiB."""
    columns = mib * MIB // (4 * WIDTH)
    weight = Weight(name="w", datatype="FP32", shape=(WIDTH, columns), data=struct.pack("<f", 1.0) * (WIDTH * columns))
    return encode_model(
        [Node(op="MatMul", inputs=("x", "w"), outputs=("y",))],
        [Value(name="x", datatype="FP32", shape=("batch", WIDTH))],
        [Value(name="y", datatype="FP32", shape=("batch", columns))],
        [weight],
    )


def write_heavy(root: Path, name: str, mib: int) -> None:
    folder = root / name / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(heavy_onnx(mib))
    (root / name / "config.pbtxt").write_text(CONFIG % (mib * MIB // (4 * WIDTH)))


def ask(engine: EngineProcess, model: str) -> int:
    """One call of ones; every output is the width of the input."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, WIDTH], "data": [1.0] * WIDTH}
    body = json.dumps({"inputs": [tensor]}).encode()
    status, reply = engine.get(f"/v2/models/{model}/infer", method="POST", body=body)
    if status == 200:
        assert set(json.loads(reply)["outputs"][0]["data"]) == {float(WIDTH)}
    return status


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name in ("first", "second", "third"):
        write_heavy(tmp_path / "models", name, 24)
    return tmp_path / "models"


def unloads(engine: EngineProcess) -> list[tuple[str, str, int, int]]:
    """(model, reason, bytes held, bytes returned to the system) of each so far."""
    pattern = r"model_unloaded model=(\S+) reason=(\S+) nbytes=(\d+) returned=(-?\d+)"
    return [(name, why, int(held), int(back)) for name, why, held, back in re.findall(pattern, engine.log)]


def rss(engine: EngineProcess) -> int:
    status = Path(f"/proc/{engine.process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def test_models_share_a_budget_and_come_back_on_demand(repository: Path, tmp_path: Path) -> None:
    # A loaded model takes two to three times its file.
    extra = ["--model-memory-bytes", str(100 * MIB), "--threads", "1"]
    with running_process(tmp_path, repository, extra=extra) as engine:
        assert engine.get("/v2/health/ready")[0] == 200
        assert len(unloads(engine)) >= 1, "three do not fit"
        full = rss(engine)
        for _ in range(3):
            for name in ("first", "second", "third"):
                assert ask(engine, name) == 200
        found = unloads(engine)
        assert {name for name, *_ in found} == {"first", "second", "third"}
        assert all(why == "budget" and held >= 24 * MIB for _, why, held, _ in found)
        # Not each alone: a piece may stay until the next one goes.
        assert sum(back for *_, back in found) > 0.5 * sum(held for _, _, held, _ in found)
        assert rss(engine) < full + 48 * MIB
        assert engine.stop() == 0
        assert "Traceback" not in engine.log


def test_idle_models_leave_and_are_back_when_asked(repository: Path, tmp_path: Path) -> None:
    with running_process(tmp_path, repository, extra=["--model-idle-s", "0.2"]) as engine:
        while {name for name, *_ in unloads(engine)} != {"first", "second", "third"}:
            assert engine.process.poll() is None
            time.sleep(0.05)  # another process: nothing to await
        found = unloads(engine)
        assert all(why == "idle" for _, why, *_ in found)
        # By the engine's own account: it may have begun before a test can look.
        assert sum(back for *_, back in found) > 0
        assert engine.get("/v2/models/second/ready")[0] == 200
        assert ask(engine, "second") == 200
        assert engine.stop() == 0


def test_a_model_that_no_budget_can_hold_is_refused_with_the_reason(repository: Path, tmp_path: Path) -> None:
    write_heavy(repository, "giant", 104)
    with running_process(tmp_path, repository, extra=["--model-memory-bytes", str(100 * MIB)]) as engine:
        index = json.loads(engine.get("/v2/repository/index", method="POST")[1])
        (giant,) = (row for row in index if row["name"] == "giant")
        assert giant["state"] == "UNAVAILABLE"
        assert "more than the budget of all models" in giant["reason"]
        assert ask(engine, "first") == 200


@pytest.mark.parametrize("cycles", [20, pytest.param(1000, marks=pytest.mark.long)])
def test_cycles_of_load_and_unload_do_not_grow(tmp_path: Path, cycles: int) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(heavy_onnx(8))
    config = parse_config(f'name: "m" {CONFIG % (8 * MIB // (4 * WIDTH))}', name="m")
    clock = iter(range(1 << 62))
    residency = Residency(Bounds(idle_ns=1), lambda: next(clock))
    model = residency.add("m", lambda: load_runtime(path, config, threads=1), 8 * MIB)
    sizes = []
    for _ in range(cycles):
        model.load_now()
        next(clock)
        residency.sweep()
        assert model.loaded is None
        sizes.append(resident_bytes())
    # One model left behind by each cycle would be 8 MiB each; other threads of this process take a little, too.
    assert max(sizes[len(sizes) // 2 :]) - sizes[4] < 24 * MIB


def held(engine: EngineProcess) -> tuple[int, int]:
    """(descriptors, threads) of the process."""
    folder = Path(f"/proc/{engine.process.pid}")
    return len(list((folder / "fd").iterdir())), len(list((folder / "task").iterdir()))


@pytest.mark.parametrize("cycles", [12, pytest.param(1000, marks=pytest.mark.long)])
def test_loads_and_unloads_by_calls_do_not_grow_the_engine(tmp_path: Path, cycles: int) -> None:
    """Load, an inference, unload: memory, descriptors and threads of the process stay what they were."""
    write_heavy(tmp_path / "models", "m", 8)
    with running_process(tmp_path, tmp_path / "models", extra=["--threads", "1"]) as engine:
        sizes = []
        kept = []
        for _ in range(cycles):
            assert engine.get("/v2/repository/models/m/unload", method="POST", body=b"{}")[0] == 200
            sizes.append(rss(engine))
            kept.append(held(engine))
            assert engine.get("/v2/repository/models/m/load", method="POST", body=b"{}")[0] == 200
            assert ask(engine, "m") == 200
        warm = cycles // 4
        # The size has two levels, as pieces of one load's buffers may stay until the next; it does not climb.
        assert max(sizes) - sizes[0] < 48 * MIB, sizes
        if cycles >= 100:
            assert max(sizes[3 * warm :]) - max(sizes[warm : 2 * warm]) < 4 * MIB, sizes
        # A call's connection may still be closing, and the pool of threads still filling: neither goes on.
        assert max(fds for fds, _ in kept[warm:]) < kept[warm][0] + cycles // 2
        assert max(threads for _, threads in kept[warm:]) < kept[warm][1] + cycles // 2
        print(f"{cycles} cycles: {sizes[0] / MIB:.1f} MiB after the first, {sizes[-1] / MIB:.1f} after the last")
        assert engine.stop() == 0
