"""Owns a whole Tollway for tests: `tollway up` as a process of its own, in a temporary folder, on free ports.

    with Tollway() as tollway:
        tollway.create_tenant("acme", "internal")
        key = tollway.create_key("acme")
        httpx.post(f"{tollway.http_url}/v2/models/mlp/infer", headers={"authorization": f"Bearer {key}"}, …)

Models: `mlp` (x: float32[batch, 64] → y: float32[batch, 10]) and `echo` (x: float32[batch, -1] → y, unchanged).
Everything here blocks; nothing outlives the block.
"""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import httpx

from billing.meter_client import MeterError, ask_meter
from model_repo.onnx_builder import write_model
from tests.unit.engine.making import write_identity

WAIT_S: Final = 120.0
#: Set it to keep a run's data directory, logs and truth file.
KEEP_VARIABLE: Final = "TOLLWAY_KEEP"
POLL_S: Final = 0.01
ROLES: Final = ("worker-0", "meter", "quota", "engine", "control")
PRICES: Final = """
version = 1
currency = "USD"
[default]
per_call = "0.0001"
[models.mlp]
per_call = "0.00002"
per_row = "0.000003"
"""
_MODULES: Final = {
    "billing.meter": "meter",
    "gateway.quota": "quota",
    "gateway.engine": "engine",
    "gateway.control": "control",
}


class Tollway:
    """One installation. `command` replaces `-m gateway.cli up` (planted bugs); `settings` are `--set` pairs."""

    def __init__(
        self,
        *,
        settings: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
        command: Sequence[str] = ("-m", "gateway.cli", "up"),
        data_dir: Path | None = None,
    ) -> None:
        # Not pytest's folder: its long names do not fit into the address of a unix socket.
        self.folder = Path(tempfile.mkdtemp(prefix="tw"))
        self.data_dir = data_dir or self.folder / "d"
        self.failpoints = self.folder / "failpoints"
        self.failpoints.mkdir()
        self.repository = self.folder / "models"
        write_model(self.repository, "mlp")
        write_identity(self.repository, "echo", "FP32", [-1])
        prices = self.folder / "prices.toml"
        prices.write_text(PRICES)
        self.ports = dict(zip(("http_port", "grpc_port", "metrics_port", "api_port"), free_ports(4), strict=True))
        self.settings = {
            **{name: str(port) for name, port in self.ports.items()},
            "model_repositories": f'["{self.repository}"]',
            "python_models_allowed": "[]",
            "price_book": str(prices),
            "engine_threads": "1",
            **(settings or {}),
        }
        self._environment = dict(environment or {})
        self._command = tuple(command)
        self.process: subprocess.Popen[bytes] | None = None
        self._says = self.folder / "up.log"

    # -- life ----------------------------------------------------------------------------------------------------------

    def launch(self, *, clear_ready: bool = True) -> subprocess.Popen[bytes]:
        """Start `tollway up` without waiting for anything."""
        arguments = [sys.executable, *self._command, "--data-dir", str(self.data_dir)]
        for name, value in self.settings.items():
            arguments += ["--set", f"{name}={value}"]
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("TOLLWAY_")},
            "TOLLWAY_FAILPOINT_DIR": str(self.failpoints),
            **self._environment,
        }
        if clear_ready:
            # What an earlier supervisor that was killed left behind.
            (self.data_dir / "run" / "ready").unlink(missing_ok=True)
        with self._says.open("ab") as says:
            self.process = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=says, stderr=says, env=environment, process_group=0
            )
        return self.process

    def start(self) -> None:
        """Start and wait until every process says that it serves, and the models do."""
        process = self.launch()
        ready = self.data_dir / "run" / "ready"
        self.wait(lambda: process.poll() is not None or _text(ready) == str(process.pid), "tollway up")
        assert process.poll() is None, f"tollway up ended with {process.returncode}:\n{self.says()}"
        self.wait(self.is_serving, "models")

    def is_serving(self) -> bool:
        try:
            return httpx.get(f"{self.http_url}/v2/health/ready", trust_env=False, timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def stop(self, number: int = signal.SIGTERM, limit_s: float = 120.0) -> int:
        """Send a signal to the supervisor and wait for its end. Returns the exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(limit_s)

    def kill_supervisor(self) -> None:
        """`kill -9` of the supervisor; returns when its children, who die with it, are gone."""
        assert self.process is not None
        pids = children_of(self.process.pid)
        self.process.kill()
        self.process.wait()
        self.wait(lambda: not any(is_running(pid) for pid in pids), "the end of the children")

    def __enter__(self) -> "Tollway":
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End whatever still runs and remove everything."""
        if self.process is not None and self.process.poll() is None:
            self.kill_supervisor()
        if KEEP_VARIABLE in os.environ:
            sys.stderr.write(f"kept: {self.folder}\n")
        else:
            shutil.rmtree(self.folder)

    # -- what runs -----------------------------------------------------------------------------------------------------

    def pids(self) -> dict[str, int]:
        """The supervisor's living children by role: worker-0 …, meter, quota, engine, control."""
        assert self.process is not None
        found: dict[str, int] = {}
        for pid in children_of(self.process.pid):
            role = _role_of(pid)
            if role is not None:
                found[role] = pid
        return found

    def pid_of(self, role: str) -> int:
        """Its pid; waits for the process when it is just being started again."""
        self.wait(lambda: role in self.pids(), role)
        return self.pids()[role]

    def kill(self, role: str, number: int = signal.SIGKILL) -> int:
        """Signal one child; returns the pid that was hit."""
        pid = self.pid_of(role)
        os.kill(pid, number)
        return pid

    def wait_for_next(self, role: str, dead_pid: int) -> int:
        """Wait until another process of `role` serves. Returns its pid."""
        self.wait(lambda: self.pids().get(role, dead_pid) != dead_pid, f"a new {role}")
        self.wait(lambda: self.does_answer(role), f"{role} to serve")
        return self.pid_of(role)

    def does_answer(self, role: str) -> bool:
        """Whether that process does its work: asked at its own door."""
        if role.startswith("worker"):
            return self.is_live()
        if role == "meter":
            return self.meter_status() is not None
        return _does_accept(self.data_dir / "run" / f"{role}.sock")

    def is_live(self) -> bool:
        try:
            return httpx.get(f"{self.http_url}/v2/health/live", trust_env=False, timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def order_failpoint(self, role: str, spec: str) -> None:
        """The next process of `role`, and only that one, is killed at this failpoint."""
        (self.failpoints / role).write_text(spec, encoding="ascii")

    def says(self) -> str:
        """What the supervisor wrote to the terminal, and the end of the children's log."""
        log = self.data_dir / "log" / "tollway.log"
        return (_text(self._says) or "") + (_text(log) or "")[-4000:]

    def wait(self, is_done: Callable[[], bool], what: str, limit_s: float = WAIT_S) -> None:
        """Poll for something that another process does; fails loudly with what it said."""
        end_s = time.monotonic() + limit_s
        while not is_done():
            assert time.monotonic() < end_s, f"waited {limit_s:.0f} s for {what}:\n{self.says()}"
            time.sleep(POLL_S)

    # -- addresses and doors -------------------------------------------------------------------------------------------

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['http_port']}"

    @property
    def grpc_address(self) -> str:
        return f"127.0.0.1:{self.ports['grpc_port']}"

    def admin(self, method: str, path: str, body: object = None) -> Any:
        """One question to control's unix socket; its answer. Fails on a refusal."""
        transport = httpx.HTTPTransport(uds=str(self.data_dir / "run" / "control.sock"))
        with httpx.Client(transport=transport, base_url="http://control", trust_env=False, timeout=60) as client:
            response = client.request(method, path, json=body)
        assert response.is_success, f"{method} {path}: {response.status_code} {response.text}"
        return response.json()

    def create_plan(self, name: str, pricing: str = "priced", **limits: int | str) -> None:
        self.admin("POST", "/admin/plans", {"name": name, "pricing": pricing, **limits})

    def create_tenant(self, tenant: str, plan: str = "internal") -> None:
        self.admin("POST", "/admin/tenants", {"tenant": tenant, "plan": plan})

    def create_key(self, tenant: str, **fields: object) -> str:
        """The key's text. Workers know it within a second: see `wait_for_key`."""
        return str(self.create_key_whole(tenant, **fields)["key"])

    def create_key_whole(self, tenant: str, **fields: object) -> dict[str, Any]:
        answer: dict[str, Any] = self.admin("POST", "/admin/keys", {"tenant": tenant, **fields})
        return answer

    def wait_for_key(self, key: str) -> None:
        """Until every worker knows `key`: connections meet them by chance, each learns of it on its own."""
        tries = 1 if self.settings.get("workers", "1") == "1" else 20
        self.wait(lambda: all(self.read_models(key) != 401 for _ in range(tries)), "the key to reach the workers")

    def read_models(self, key: str) -> int:
        """Status of a read with `key`; free of charge and limits."""
        headers = {"authorization": f"Bearer {key}"}
        return httpx.get(f"{self.http_url}/v2", headers=headers, trust_env=False, timeout=60).status_code

    def infer(self, key: str, *, rows: int = 1) -> httpx.Response:
        """One call of `mlp`."""
        inputs = [{"name": "x", "shape": [rows, 64], "datatype": "FP32", "data": [0.5] * (64 * rows)}]
        return httpx.post(
            f"{self.http_url}/v2/models/mlp/infer",
            headers={"authorization": f"Bearer {key}"},
            json={"inputs": inputs},
            trust_env=False,
            timeout=60,
        )

    def meter_status(self) -> dict[str, Any] | None:
        """The meter's figures, or None while it does not answer."""
        try:
            return ask_meter(self.data_dir / "run" / "meter.sock", {"op": "status"}, timeout_s=10)
        except MeterError:
            return None

    def wait_until_posted(self) -> None:
        """Until every record has its fate (MONEY.md I14: nothing pending at rest)."""

        def is_at_rest() -> bool:
            try:
                ask_meter(self.data_dir / "run" / "meter.sock", {"op": "flush"}, timeout_s=30)
            except MeterError:
                return False
            status = self.meter_status()
            return status is not None and status["pending"] == 0 and status["unposted"] == 0

        self.wait(is_at_rest, "everything to be posted")

    def tollway(self, *words: str) -> subprocess.CompletedProcess[str]:
        """One verb of the command line, as people type it."""
        return subprocess.run(
            [sys.executable, "-m", "gateway.cli", *words, "--data-dir", str(self.data_dir)],
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )


def free_ports(count: int) -> list[int]:
    """Ports that nobody holds, below the range from which outgoing connections take theirs."""
    found: list[int] = []
    choice = random.SystemRandom()
    while len(found) < count:
        port = choice.randrange(12_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found


def children_of(pid: int) -> list[int]:
    """Its direct children (Linux)."""
    text = _text(Path(f"/proc/{pid}/task/{pid}/children"))
    return [int(child) for child in (text or "").split()]


def is_running(pid: int) -> bool:
    """Whether a process with that id exists and is no zombie."""
    text = _text(Path(f"/proc/{pid}/stat"))
    return text is not None and text.rpartition(")")[2].split()[0] not in "ZX"


def _role_of(pid: int) -> str | None:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return None
    if "gateway.worker" in words:
        return f"worker-{words[words.index('--index') + 1]}"
    return next((role for module, role in _MODULES.items() if module in words), None)


def _does_accept(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(5)
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
