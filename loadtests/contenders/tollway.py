"""Owns Tollway as a contender: a settings file, `tollway up`, and over the admin API a plan, a tenant and a key.

Modes: "bare" forwards only; "policy" adds key and quota; "all" adds the durable record, its posting and the call log.
"""

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from loadtests.contenders import LOOPBACK, Contender, free_port, is_http_ready
from loadtests.processes import BenchError, spawn, stop, wait_until

_ROOT: Final = Path(__file__).parent.parent.parent
#: Which switches of the settings file a mode turns off.
_SWITCHED_OFF: Final = {
    "bare": ("require_key", "metering", "call_log"),
    "policy": ("metering", "call_log"),
    "all": (),
}
NOTES: Final = {
    "bare": "forwards only: no key, no quota, no record, no log line",
    "policy": "key and quota (rate, concurrency, day and month caps)",
    "all": "all on: key, quota, durable record and its posting, log line, histograms, trace, limit and charge headers",
}
#: Every kind of limit is checked on every call, and none is ever reached.
_PLAN: Final = {
    "name": "bench",
    "pricing": "priced",
    "rate_calls": 1_000_000,
    "burst": 1_000_000,
    "concurrency": 100_000,
    "calls_per_day": 10**11,
    "calls_per_month": 10**12,
}
#: A tenant whose plan refuses its eleventh call of a second: it proves that quotas are in force.
_SMALL_PLAN: Final = "free"
_TOKEN: Final = re.compile(r"admin token, shown once[^:]*: (\S+)")


def settings_text(
    mode: str,
    data_dir: Path,
    ports: dict[str, int],
    backend: str | None,
    *,
    models: Path | None = None,
    runs_python: bool = False,
) -> str:
    """The settings file (TOML). `backend` is host:port; `models` is a repository for the embedded engine.

    `runs_python`: the repository's Python models may run.
    """
    lines = [
        f"data_dir = {json.dumps(str(data_dir))}",
        *(f"{name} = {port}" for name, port in ports.items()),
        *(f"{name} = false" for name in _SWITCHED_OFF[mode]),
        f"engine = {'true' if models else 'false'}",
    ]
    if models is not None:
        repository = json.dumps(str(models))
        lines += [f"model_repositories = [{repository}]"]
        lines += [f"python_models_allowed = [{repository if runs_python else ''}]"]
        lines += ["engine_threads = 1"]
    if backend is not None:
        lines += ["[[backends]]", 'name = "bench"', f'http = "http://{backend}"', f'grpc = "grpc://{backend}"']
    return "\n".join(lines) + "\n"


def start_tollway(
    mode: str,
    backend: str | None,
    workdir: Path,
    *,
    core: int,
    name: str | None = None,
    models: Path | None = None,
    runs_python: bool = False,
    usage_dir: Path | None = None,
) -> Contender:
    """Start `tollway up` in a mode and make its key. Raises BenchError with the end of its log.

    `usage_dir` is an existing folder, perhaps on another file system, that holds the usage log.
    """
    name = name or f"tollway_{mode}"
    folder = workdir / name
    folder.mkdir(mode=0o700)
    if usage_dir is not None:
        # The log's place is fixed within the data folder; where that leads is the operator's affair.
        (folder / "data").mkdir(mode=0o700)
        (folder / "data" / "usage").symlink_to(usage_dir)
    ports = {port: free_port() for port in ("http_port", "grpc_port", "metrics_port", "api_port")}
    settings = folder / "settings.toml"
    settings.write_text(settings_text(mode, folder / "data", ports, backend, models=models, runs_python=runs_python))
    log = workdir / f"{name}.log"
    # Settings may come from TOLLWAY_ variables, too: here only from the file.
    env = {key: value for key, value in os.environ.items() if not key.startswith("TOLLWAY_")}
    command = [sys.executable, "-m", "gateway.cli", "up", "--settings", str(settings)]
    process = spawn(command, core=core, log=log, cwd=_ROOT, env=env)
    base = f"http://{LOOPBACK}:{ports['http_port']}"
    try:
        wait_until(name, lambda: is_http_ready(base), process, log, limit_s=60.0)
        extras = {
            "metrics": f"http://{LOOPBACK}:{ports['metrics_port']}/metrics",
            "data": str(folder / "data"),
            "usage": str(usage_dir or folder / "data" / "usage"),
        }
        headers: Sequence[tuple[str, str]] = ()
        if mode != "bare":
            admin = _Admin(f"http://{LOOPBACK}:{ports['api_port']}", _read_token(name, process, log))
            headers = (("x-api-key", admin.new_key("bench", _PLAN)),)
            extras["small_key"] = admin.new_key("bench-small", _SMALL_PLAN)
            _wait_for_key(name, base, headers, process, log)
    except BaseException:
        stop(process)
        raise
    return Contender(
        name=name,
        http=base,
        grpc=f"http://{LOOPBACK}:{ports['grpc_port']}",
        headers=headers,
        process=process,
        note=NOTES[mode] + ("; usage log on tmpfs" if usage_dir else ""),
        extras=extras,
    )


def _read_token(name: str, process: subprocess.Popen[bytes], log: Path) -> str:
    """The bootstrap token that `up` prints once it serves."""
    wait_until(
        f"{name}'s admin token", lambda: _TOKEN.search(log.read_text(errors="replace")) is not None, process, log
    )
    found = _TOKEN.search(log.read_text(errors="replace"))
    assert found is not None
    return found[1]


class _Admin:
    """The few admin calls a bench needs."""

    def __init__(self, base: str, token: str) -> None:
        self._base = base
        self._token = token

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Raises BenchError with the API's own words."""
        request = urllib.request.Request(
            f"{self._base}/admin/{path}",
            data=json.dumps(body).encode(),
            headers={"authorization": f"Bearer {self._token}", "content-type": "application/json"},
            method="POST",
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as reply:
                answer: dict[str, Any] = json.load(reply)
        except urllib.error.HTTPError as error:
            raise BenchError(f"POST /admin/{path}: {error.code} {error.read()[:500]!r}") from error
        return answer

    def new_key(self, tenant: str, plan: "dict[str, Any] | str") -> str:
        """A tenant on `plan` (a known name, or a plan to add) and a key of it."""
        if isinstance(plan, dict):
            self.post("plans", plan)
        self.post("tenants", {"tenant": tenant, "plan": plan if isinstance(plan, str) else plan["name"]})
        return str(self.post("keys", {"tenant": tenant})["key"])


def _wait_for_key(
    name: str, base: str, headers: Sequence[tuple[str, str]], process: subprocess.Popen[bytes], log: Path
) -> None:
    """Policy reaches a worker with the next snapshot: ask for what needs the key until it is let in."""

    def is_known() -> bool:
        request = urllib.request.Request(f"{base}/v2", headers=dict(headers))
        try:
            with urllib.request.urlopen(request, timeout=5) as reply:
                return bool(reply.status == 200)
        except urllib.error.HTTPError as error:
            if error.code in (401, 503):
                return False
            raise BenchError(f"{name}: GET /v2 answered {error.code} {error.read()[:300]!r}") from error

    wait_until(f"{name}'s key", is_known, process, log)
