"""A real Triton Inference Server from .venvs/triton, with the harness's MLP as a Python-backend model."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import httpx

from model_repo.onnx_builder import build_mlp
from tests.e2e.harness import free_ports

VENV: Final = Path(__file__).parents[2] / ".venvs" / "triton"
_SITE: Final = VENV / "lib" / "python3.11" / "site-packages"
_HOME: Final = _SITE / "pytriton" / "tritonserver"
_START_S: Final = 120.0

CONFIG: Final = """
name: "{name}"
backend: "python"
max_batch_size: 64
input {{ name: "x" data_type: TYPE_FP32 dims: [64] }}
output {{ name: "y" data_type: TYPE_FP32 dims: [10] }}
"""
#: The same runtime as the engine's, so that equal means equal to the last bit.
MODEL: Final = """
import os

import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        path = os.path.join(args["model_repository"], args["model_version"], "model.onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        responses = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            [y] = self.session.run(None, {"x": x})
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", y)]))
        return responses
"""


def is_installed() -> bool:
    return (_HOME / "bin" / "tritonserver").exists()


class RealTriton:
    """`with RealTriton(["mlp"]) as triton`: serves on free ports; `kill` and `start` may follow each other."""

    def __init__(self, models: Sequence[str]) -> None:
        self.models = tuple(models)
        self.folder = Path(tempfile.mkdtemp(prefix="tri"))
        self.http_port, self.grpc_port, self._metrics_port = free_ports(3)
        backend = self.folder / "backends" / "python"
        backend.mkdir(parents=True)
        for file in ("libtriton_python.so", "triton_python_backend_utils.py"):
            shutil.copy(_HOME / "backends" / "python" / file, backend)
        shutil.copy(_HOME / "python_backend_stubs" / "3.11" / "triton_python_backend_stub", backend)
        for name in self.models:
            version = self.folder / "models" / name / "1"
            version.mkdir(parents=True)
            (version / "model.py").write_text(MODEL)
            (version / "model.onnx").write_bytes(build_mlp())
            (version.parent / "config.pbtxt").write_text(CONFIG.format(name=name))
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def grpc_address(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    def backend(self, *models: str) -> str:
        """The entry for Tollway's `backends` setting."""
        names = ", ".join(f'"{name}"' for name in models)
        return f'{{name="triton", http="{self.url}", grpc="grpc://{self.grpc_address}", models=[{names}]}}'

    def start(self) -> None:
        """Start it and wait until every model is ready."""
        arguments = [
            f"--model-repository={self.folder / 'models'}",
            f"--backend-directory={self.folder / 'backends'}",
            f"--cache-directory={_HOME / 'caches'}",
            "--http-address=127.0.0.1", f"--http-port={self.http_port}",
            "--grpc-address=127.0.0.1", f"--grpc-port={self.grpc_port}",
            "--metrics-address=127.0.0.1", f"--metrics-port={self._metrics_port}",
            "--model-control-mode=explicit", *(f"--load-model={name}" for name in self.models),
            "--allow-gpu-metrics=false", "--disable-auto-complete-config",
        ]  # fmt: skip
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(_SITE / "nvidia_pytriton.libs"),
            "PATH": f"{VENV / 'bin'}:{os.environ['PATH']}",
            "VIRTUAL_ENV": str(VENV),
        }
        with (self.folder / "log").open("ab") as log:
            # A group of its own: the stubs of its models end with it.
            self.process = subprocess.Popen(
                [str(_HOME / "bin" / "tritonserver"), *arguments], env=environment, stdout=log, stderr=log,
                process_group=0,
            )  # fmt: skip
        end_s = time.monotonic() + _START_S
        while not self._is_ready():
            assert self.process.poll() is None and time.monotonic() < end_s, self.log()
            time.sleep(0.02)

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/v2/health/ready", trust_env=False, timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-4000:]

    def kill(self) -> None:
        """SIGKILL to its whole group; returns when it is gone."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def __enter__(self) -> "RealTriton":
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self.folder)
