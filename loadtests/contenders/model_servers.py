"""Owns other model servers as contenders, each from an environment of its own: Triton, MLServer, LitServe.

An environment is `.venvs/NAME` (`make` installs Triton's; the others are installed by hand, docs/benchmarks.md), or
`NAME` below the folder in TOLLWAY_BENCH_VENVS. A server whose environment is not there is left out and reported so.
"""

import json
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from loadtests.contenders import LOOPBACK, Contender, free_port, is_http_ready, is_listening
from loadtests.processes import BenchError, spawn, wait_until

_ROOT: Final = Path(__file__).parent.parent.parent
_CODE: Final = Path(__file__).with_name("mlp")
VENVS_VARIABLE: Final = "TOLLWAY_BENCH_VENVS"
_START_S: Final = 90.0
_TRITON_CONFIG: Final = """name: "mlp"
backend: "python"
max_batch_size: 64
input [ { name: "x" data_type: TYPE_FP32 dims: [ 64 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 10 ] } ]
"""


class NotInstalled(BenchError):
    """The server's environment is not there."""


def environment_of(name: str, root: Path = _ROOT) -> Path:
    """Raises NotInstalled."""
    for folder in (os.environ.get(VENVS_VARIABLE), str(root / ".venvs")):
        if folder and (Path(folder) / name / "bin" / "python").exists():
            return Path(folder) / name
    raise NotInstalled(f"{name} is not installed (.venvs/{name}, docs/benchmarks.md)")


def start_triton(model: Path, workdir: Path, core: int) -> Contender:
    """Triton with the MLP as a Python-backend model, direct: no gateway, no keys. Raises BenchError."""
    venv = environment_of("triton")
    site = venv / "lib" / "python3.11" / "site-packages"
    home = site / "pytriton" / "tritonserver"
    folder = workdir / "triton"
    backend, version = folder / "backends" / "python", folder / "models" / "mlp" / "1"
    backend.mkdir(parents=True)
    version.mkdir(parents=True)
    for file in ("libtriton_python.so", "triton_python_backend_utils.py"):
        shutil.copy(home / "backends" / "python" / file, backend)
    shutil.copy(home / "python_backend_stubs" / "3.11" / "triton_python_backend_stub", backend)
    shutil.copy(_CODE / "mlp_triton.py", version / "model.py")
    shutil.copy(model, version / "model.onnx")
    (version.parent / "config.pbtxt").write_text(_TRITON_CONFIG)
    http, grpc, metrics = (free_port() for _ in range(3))
    command = [str(home / "bin" / "tritonserver"), f"--model-repository={folder / 'models'}"]
    command += [f"--backend-directory={folder / 'backends'}", f"--cache-directory={home / 'caches'}"]
    for kind, port in (("http", http), ("grpc", grpc), ("metrics", metrics)):
        command += [f"--{kind}-address={LOOPBACK}", f"--{kind}-port={port}"]
    command += ["--allow-gpu-metrics=false", "--disable-auto-complete-config"]
    own = {
        "LD_LIBRARY_PATH": str(site / "nvidia_pytriton.libs"),
        "PATH": f"{venv / 'bin'}:{os.environ['PATH']}",
        "VIRTUAL_ENV": str(venv),
    }
    return _started("triton", command, workdir, core=core, port=http, note="Python backend, JSON over HTTP", own=own)


def start_mlserver(model: Path, workdir: Path, core: int) -> Contender:
    """MLServer with the MLP in its own process, no pool of workers. Raises BenchError."""
    venv = environment_of("mlserver")
    folder = workdir / "mlserver"
    folder.mkdir()
    shutil.copy(_CODE / "mlp_mlserver.py", folder)
    shutil.copy(model, folder / "model.onnx")
    http, grpc, metrics = (free_port() for _ in range(3))
    settings = {"host": LOOPBACK, "http_port": http, "grpc_port": grpc, "metrics_port": metrics, "parallel_workers": 0}
    (folder / "settings.json").write_text(json.dumps({**settings, "debug": False, "environments_dir": str(folder)}))
    own = {"name": "mlp", "implementation": "mlp_mlserver.Mlp", "parameters": {"uri": "./model.onnx"}}
    (folder / "model-settings.json").write_text(json.dumps(own))
    command = [str(venv / "bin" / "mlserver"), "start", str(folder)]
    return _started(
        "mlserver", command, workdir, core=core, port=http, note="own runtime class, JSON over HTTP", cwd=folder
    )


def start_litserve(model: Path, workdir: Path, core: int) -> Contender:
    """LitServe with one API server and one worker. Raises BenchError."""
    venv = environment_of("litserve")
    http = free_port()
    command = [str(venv / "bin" / "python"), str(_CODE / "mlp_litserve.py"), str(model), str(http)]
    return _started("litserve", command, workdir, core=core, port=http, note="one worker, its own JSON", path="/health")


STARTERS: Final[Mapping[str, Callable[[Path, Path, int], Contender]]] = {
    "triton": start_triton,
    "mlserver": start_mlserver,
    "litserve": start_litserve,
}


def _started(
    name: str,
    command: list[str],
    workdir: Path,
    *,
    core: int,
    port: int,
    note: str,
    own: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    path: str | None = None,
) -> Contender:
    log = workdir / f"{name}.log"
    try:
        process = spawn(command, core=core, log=log, cwd=cwd or workdir, env={**os.environ, **(own or {})})
    except FileNotFoundError as error:
        raise NotInstalled(f"{name}: {error.filename} is not there") from error
    base = f"http://{LOOPBACK}:{port}"

    def is_ready() -> bool:
        return is_listening(port) and (is_http_ready(base) if path is None else _answers(f"{base}{path}"))

    wait_until(name, is_ready, process, log, limit_s=_START_S)
    return Contender(name=name, http=base, process=process, note=note)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False
