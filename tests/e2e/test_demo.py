"""What `make run ARGS=--detach` does, as a script would use it: `tollway demo --detach`, demo.env, `tollway down`."""

import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx
import pytest

from gateway.commands.call import read_env_file
from tests.e2e.harness import free_ports

MODELS = Path(__file__).parents[2] / "model_repo" / "models"
WANTED = {"TOLLWAY_HTTP", "TOLLWAY_GRPC", "TOLLWAY_API", "TOLLWAY_KEY", "TOLLWAY_ADMIN_TOKEN"}


def _run(*arguments: str) -> str:
    command = [sys.executable, "-m", "gateway.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _demo(folder: Path) -> str:
    names = ("http_port", "grpc_port", "metrics_port", "api_port")
    ports = [f"{name}={port}" for name, port in zip(names, free_ports(len(names)), strict=True)]
    pairs = [*ports, f'model_repositories=["{MODELS}"]', f'python_models_allowed=["{MODELS}"]']
    return _run("demo", "--detach", "--data-dir", str(folder), *(word for pair in pairs for word in ("--set", pair)))


def test_a_detached_demo_leaves_working_credentials_and_keeps_them() -> None:
    if not (MODELS / "file_type").is_dir():
        pytest.skip("the showcase models are not built: make models")
    # Not pytest's folder: its long names do not fit into the address of a unix socket.
    with tempfile.TemporaryDirectory(prefix="tw") as made:
        _demo_twice(Path(made) / "d")


def _demo_twice(folder: Path) -> None:
    tokens = []
    for _ in range(2):
        said = _demo(folder)
        try:
            assert "charge" in said
            path = folder / "demo.env"
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            env = read_env_file(path)
            assert {name for name, value in env.items() if value} == WANTED
            bearer = {"authorization": f"Bearer {env['TOLLWAY_ADMIN_TOKEN']}"}
            assert httpx.get(f"{env['TOLLWAY_API']}/admin/tenants", headers=bearer, timeout=60).status_code == 200
            bearer = {"authorization": f"Bearer {env['TOLLWAY_KEY']}"}
            assert (
                httpx.get(f"{env['TOLLWAY_HTTP']}/v2/models/file_type", headers=bearer, timeout=60).status_code == 200
            )
            tokens.append(env["TOLLWAY_ADMIN_TOKEN"])
        finally:
            _run("down", "--data-dir", str(folder))
    assert tokens[0] == tokens[1]
    # Told to one alone: not in a log that others may read.
    assert tokens[0] not in (folder / "log" / "supervisor.log").read_text()
