"""`tollway up`: start everything on this machine and keep it running."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from gateway.core_dumps import forbid_core_dumps
from gateway.errors import SettingsError
from gateway.monitoring.exporter import MachineCollector, serve_metrics
from gateway.settings import Settings, load_settings
from gateway.supervisor import READY_FILE, Supervisor, make_folders, running_pid, stderr_say

SettingsOption = Annotated[Path | None, typer.Option("--settings", help="TOML file; see docs/settings.md.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="name=value; may be repeated.")]
DataDirOption = Annotated[Path | None, typer.Option("--data-dir", help="Where everything is kept.")]
_DETACH_S = 90.0
#: Set for a `tollway up` whose caller says it all, the admin token included.
QUIET = "TOLLWAY_QUIET"


def read_settings(file: Path | None, pairs: list[str] | None, data_dir: Path | None) -> Settings:
    """Settings as every verb reads them; a SettingsError becomes one line and exit code 2."""
    overrides: dict[str, str] = {}
    try:
        for pair in pairs or []:
            name, equals, value = pair.partition("=")
            if not equals:
                raise SettingsError(f"--set {pair!r}: write it as name=value")
            overrides[name.strip()] = value.strip()
        if data_dir is not None:
            overrides["data_dir"] = str(data_dir)
        return load_settings(file, os.environ, overrides)
    except SettingsError as error:
        stderr_say(str(error))
        raise typer.Exit(2) from None


def up(
    settings: SettingsOption = None,
    set_: SetOption = None,
    data_dir: DataDirOption = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return once ready; `tollway down` ends it.")] = False,
) -> None:
    """Start supervisor, workers, engine, control, quota and meter. Ctrl-C stops everything."""
    loaded = read_settings(settings, set_, data_dir)
    if detach:
        start_detached(loaded, settings, set_, data_dir)
        return
    raise typer.Exit(run_supervisor(loaded, on_ready=_announce))


def _announce(supervisor: Supervisor) -> None:
    if os.environ.get(QUIET):
        return
    host, settings = supervisor.settings.host, supervisor.settings
    supervisor.say(
        f"serving: http {host}:{supervisor.http_port}, grpc {host}:{supervisor.grpc_port}, "
        f"metrics {host}:{settings.metrics_port}, api {host}:{settings.api_port} (Ctrl-C stops)"
    )
    show_bootstrap_token(settings, supervisor.say)


def show_bootstrap_token(settings: Settings, say: Callable[[str], None]) -> str | None:
    """Print the first admin token once and delete its file. Returns it."""
    path = settings.run_dir / "bootstrap-token"
    try:
        token = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None
    path.unlink()
    say(f"admin token, shown once (rotate it with `tollway admin rotate-token`): {token}")
    return token


def run_supervisor(settings: Settings, on_ready: Callable[[Supervisor], None]) -> int:
    """Run until a signal; returns the exit code. What cannot start is one clear line and exit code 2."""
    forbid_core_dumps()
    supervisor = Supervisor(settings, stderr_say)
    try:
        supervisor.prepare()
    except SettingsError as error:
        stderr_say(str(error))
        supervisor.release()
        return 2
    return asyncio.run(_supervise(supervisor, on_ready))


async def _supervise(supervisor: Supervisor, on_ready: Callable[[Supervisor], None]) -> int:
    supervisor.install_stop_handlers()
    settings = supervisor.settings
    collector = MachineCollector(
        settings.run_dir,
        settings.meter_socket,
        lambda: [
            (child.role, child.restarts) for child in (*supervisor.children.values(), *supervisor.workers.values())
        ],
    )
    stop_metrics = serve_metrics(settings.host, settings.metrics_port, collector)
    try:
        await supervisor.start()
        on_ready(supervisor)
        return await supervisor.run_until_stopped()
    except SettingsError as error:
        supervisor.say(str(error))
        return 1
    except asyncio.CancelledError:
        return 0  # told to stop while starting
    finally:
        stop_metrics()
        await supervisor.stop()


def up_command(file: Path | None, pairs: list[str] | None, data_dir: Path | None) -> list[str]:
    """The argument vector of `tollway up` with the same settings, in this interpreter."""
    arguments = [sys.executable, "-m", "gateway.cli", "up"]
    for flag, value in (("--settings", file), ("--data-dir", data_dir)):
        if value is not None:
            arguments += [flag, str(value)]
    for pair in pairs or []:
        arguments += ["--set", pair]
    return arguments


def start_detached(
    settings: Settings,
    file: Path | None,
    pairs: list[str] | None,
    data_dir: Path | None,
    *,
    is_quiet: bool = False,
) -> None:
    """Start `tollway up` in a session of its own and wait until it is ready; exit code 1 with its words if not.

    `is_quiet`: the caller says where it serves, and takes the first admin token.
    """
    if running_pid(settings.data_dir) is not None:
        stderr_say(f"tollway already runs on {settings.data_dir}: stop it with `tollway down`")
        raise typer.Exit(2)
    arguments = up_command(file, pairs, data_dir)
    try:
        make_folders(settings)
    except SettingsError as error:
        stderr_say(str(error))
        raise typer.Exit(2) from None
    log_path = settings.data_dir / "log" / "supervisor.log"
    log_start = log_path.stat().st_size if log_path.exists() else 0
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, QUIET: "1"} if is_quiet else None,
        )
    if wait_ready(process, settings):
        return
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        stderr_say(f"not ready after {_DETACH_S:.0f} s; see {log_path}")
    else:
        sys.stderr.write(log_path.read_bytes()[log_start:].decode("utf-8", "replace"))
    raise typer.Exit(process.wait() or 1)


def wait_ready(process: subprocess.Popen[bytes], settings: Settings) -> bool:
    """True once the supervisor `process` says that it serves; False when it ended or takes too long."""
    ready = settings.run_dir / READY_FILE
    end_s = time.monotonic() + _DETACH_S
    while time.monotonic() < end_s and process.poll() is None:
        if ready.exists() and ready.read_text(encoding="ascii") == str(process.pid):
            return True
        time.sleep(0.02)
    return False
