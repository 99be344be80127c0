"""The KServe SDK's REST and gRPC clients, unmodified, from an environment of their own (protobuf differs from ours)."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_repo.onnx_builder import build_mlp
from tests.e2e.stage import Stage

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venvs" / "kserve" / "bin" / "python"
pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="no .venvs/kserve: `make test` makes it")


@pytest.fixture(scope="module")
def seen(stage: Stage) -> Any:
    """What both clients saw, in one run of the script: importing the SDK takes seconds."""
    script = Path(__file__).with_name("kserve_script.py")
    arguments = [str(PYTHON), str(script), stage.tollway.http_url, stage.tollway.grpc_address, stage.key]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def expected() -> list[float]:
    import onnxruntime as ort

    x = (np.arange(128, dtype=np.float32) / 128).reshape(2, 64)
    y = ort.InferenceSession(build_mlp(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    return [float(one) for one in y.ravel()]


def test_health(seen: Any) -> None:
    for protocol in ("rest", "grpc"):
        assert (seen[protocol]["live"], seen[protocol]["ready"], seen[protocol]["model_ready"]) == (True, True, True)
    assert seen["rest"]["unknown_ready"] is False


@pytest.mark.parametrize("how", ["json", "binary", "binary_both"])
def test_rest(seen: Any, expected: list[float], how: str) -> None:
    np.testing.assert_allclose(seen["rest"][how], expected, rtol=1e-5)
    assert seen["rest"][f"{how}_id"] == "own-id"


@pytest.mark.parametrize("how", ["json", "binary"])
def test_grpc(seen: Any, expected: list[float], how: str) -> None:
    np.testing.assert_allclose(seen["grpc"][how], expected, rtol=1e-5)
    assert seen["grpc"][f"{how}_id"] == "own-id"


@pytest.mark.parametrize(
    ("fault", "status", "code", "text"),
    [
        ("unknown", 404, "NOT_FOUND", "unknown model: 'nix'"),
        ("shape", 400, "INVALID_ARGUMENT", "shape"),
        ("no_key", 401, "UNAUTHENTICATED", "key"),
    ],
)
def test_errors_are_readable(seen: Any, fault: str, status: int, code: str, text: str) -> None:
    assert seen["rest"][fault][0] == status
    assert seen["grpc"][fault][0] == code
    assert text in seen["rest"][fault][1]
    assert text in seen["grpc"][fault][1]


def test_its_calls_are_in_the_ledger(stage: Stage, seen: Any) -> None:
    stage.tollway.wait_until_posted()
    for how in ("json", "binary", "binary_both"):
        call = stage.tollway.admin("GET", f"/admin/ledger/calls/{seen['rest'][f'{how}_call']}")
        assert (call["model"], call["rows"]) == ("mlp", 2)
