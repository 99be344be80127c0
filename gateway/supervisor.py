"""Owns the processes of one machine: `tollway up` opens the sockets, starts, watches and stops everything.

The listening sockets are bound here, one per worker (SO_REUSEPORT), and handed to workers and their replacements, so a
restart loses no queued connection. SIGHUP replaces the workers one after the other; SIGTERM drains; SIGINT is quick.
"""

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

import msgspec

from billing.ledger.opening import set_ledger_url
from billing.ledger.port import LedgerError
from gateway.children import Child, python_module
from gateway.compiled import find_compiled
from gateway.errors import SettingsError
from gateway.net.tls import tls_context
from gateway.quota_address import check_quota_library
from gateway.settings import Settings, dump_settings

_QUICK_S: Final = 2.0
_PATIENT_EXTRA_S: Final = 5.0
_START_S: Final = 60.0
_BACKLOG: Final = 2048
_SOCKET_PATH_BYTES_MAX: Final = 107
LOCK_FILE: Final = "supervisor.lock"
READY_FILE: Final = "ready"


class AlreadyRunning(SettingsError):
    """Another supervisor holds the data directory."""


def bind_socket(host: str, port: int, name: str) -> socket.socket:
    """A listening TCP socket with SO_REUSEPORT. Raises SettingsError when the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise SettingsError(
            f"{name} = {port}: cannot listen on {host}:{port} ({error.strerror}); "
            f"stop what uses it, or set another port (--set {name}=…)"
        ) from None
    sock.listen(_BACKLOG)
    return sock


def check_port_free(host: str, port: int, name: str) -> None:
    """SO_REUSEPORT would share a port with a stranger of our own user: refuse one that somebody listens on."""
    if port == 0:
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise SettingsError(
                f"{name} = {port}: {host}:{port} is in use ({error.strerror}); "
                f"stop what uses it, or set another port (--set {name}=…)"
            ) from None


class Supervisor:
    """Everything `tollway up` runs."""

    def __init__(self, settings: Settings, say: Callable[[str], None]) -> None:
        self.settings = settings
        self.say = say
        self.children: dict[str, Child] = {}
        self.workers: dict[int, Child] = {}
        self.http_sockets: list[socket.socket] = []
        self.grpc_sockets: list[socket.socket] = []
        self._generations: dict[int, int] = {}
        self._stop: asyncio.Future[int] | None = None
        self._compiled: Path | None = None
        self._lock_fd = -1
        self._reloading: asyncio.Task[None] | None = None
        self._is_reload_due = False
        #: A replacement that is not ready yet.
        self._incoming: Child | None = None
        self._log: IO[bytes] | None = None

    # -- start ---------------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Directories, lock, sockets, settings file. Raises SettingsError with the remedy; starts nothing."""
        settings = self.settings
        make_folders(settings)
        self._take_lock()
        tls_context(settings.tls_certificate, settings.tls_key)
        try:
            set_ledger_url(settings.data_dir, settings.ledger)
        except LedgerError as error:
            raise SettingsError(str(error)) from error
        check_quota_library(settings.quota_store)
        for name in ("http_port", "grpc_port", "metrics_port", "api_port"):
            check_port_free(settings.host, getattr(settings, name), name)
        if settings.engine:
            check_models(settings)
        self._open_sockets()
        self._log = (settings.data_dir / "log" / "tollway.log").open("ab", buffering=0)
        ports = {
            "http": self.http_port,
            "grpc": self.grpc_port,
            "api": settings.api_port,
            "metrics": settings.metrics_port,
        }
        (settings.run_dir / "ports.json").write_bytes(msgspec.json.encode(ports))
        path = settings.run_dir / "settings.json"
        path.write_bytes(dump_settings(settings))
        path.chmod(0o600)
        (settings.run_dir / READY_FILE).unlink(missing_ok=True)

    def _take_lock(self) -> None:
        path = self.settings.run_dir / LOCK_FILE
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(fd, 32).decode().strip()
            os.close(fd)
            raise AlreadyRunning(
                f"tollway already runs on {self.settings.data_dir} (pid {pid}): stop it with `tollway down`, "
                "or give another --data-dir"
            ) from None
        os.ftruncate(fd, 0)
        os.write(fd, str(os.getpid()).encode())
        self._lock_fd = fd

    def _open_sockets(self) -> None:
        """One socket per worker and port; port 0 picks a free one that the others then share."""
        settings = self.settings
        http_port, grpc_port = settings.http_port, settings.grpc_port
        for _ in range(settings.workers):
            http = bind_socket(settings.host, http_port, "http_port")
            grpc = bind_socket(settings.host, grpc_port, "grpc_port")
            http_port, grpc_port = http.getsockname()[1], grpc.getsockname()[1]
            self.http_sockets.append(http)
            self.grpc_sockets.append(grpc)

    @property
    def http_port(self) -> int:
        return int(self.http_sockets[0].getsockname()[1])

    @property
    def grpc_port(self) -> int:
        return int(self.grpc_sockets[0].getsockname()[1])

    def _child(
        self,
        role: str,
        command: Callable[[int], list[str]],
        fds: tuple[int, ...] = (),
        compiled: Path | None = None,
    ) -> Child:
        return Child(role, command, fds=fds, log=self._log, say=self.say, compiled=compiled)

    def _look_for_compiled(self) -> None:
        """At each start and reload anew: the sources may have changed, and a stale build is never used."""
        self._compiled = find_compiled() if self.settings.compiled == "auto" else None
        for role in ("meter", "engine"):
            if role in self.children:
                self.children[role].compiled = self._compiled  # for its next start: a reload does not touch these
        self.say(f"compiled hot modules: {'yes' if self._compiled else 'no'}")

    def _meter(self) -> Child:
        settings = self.settings
        arguments = ["--data-dir", str(settings.data_dir)]
        if settings.price_book:
            arguments += ["--prices", str(settings.price_book)]
        return self._child(
            "meter",
            lambda fd: python_module("billing.meter", *arguments, "--ready-fd", str(fd)),
            compiled=self._compiled,
        )

    def _start_children(self) -> None:
        settings = self.settings
        settings_file = str(settings.run_dir / "settings.json")
        data_dir = str(settings.data_dir)
        self.children["control"] = self._child(
            "control",
            lambda fd: python_module("gateway.control", "--settings", settings_file, "--ready-fd", str(fd)),
        )
        if settings.metering:
            self.children["meter"] = self._meter()
        if settings.require_key:
            meter_socket = ["--meter-socket", str(settings.meter_socket)] if settings.metering else []
            self.children["quota"] = self._child(
                "quota",
                lambda fd: python_module(
                    "gateway.quota",
                    "--socket", str(settings.quota_socket),
                    *meter_socket,
                    "--data-dir", data_dir,
                    "--workers", str(settings.workers),
                    "--settings", settings_file,
                    "--status-socket", str(settings.quota_status_socket),
                    "--ready-fd", str(fd),
                ),
            )  # fmt: skip
        if settings.engine:
            self.children["engine"] = self._engine()
        for child in self.children.values():
            child.start()

    def _engine(self) -> Child:
        return self._child("engine", self._engine_command, compiled=self._compiled)

    def _engine_command(self, ready_fd: int) -> list[str]:
        settings = self.settings
        arguments = ["--socket", str(settings.engine_socket), "--ready-fd", str(ready_fd)]
        for repository in settings.model_repositories:
            arguments += ["--repository", str(repository.resolve())]
        for allowed in settings.python_models_allowed:
            arguments += ["--python-models-allowed", str(allowed.resolve())]
        if settings.engine_threads:
            arguments += ["--threads", str(settings.engine_threads)]
        if settings.engine_model_memory_bytes:
            arguments += ["--model-memory-bytes", str(settings.engine_model_memory_bytes)]
        if settings.engine_model_idle_s:
            arguments += ["--model-idle-s", str(settings.engine_model_idle_s)]
        for key in settings.trusted_model_keys:
            arguments += ["--trusted-model-key", key]
        if settings.approval_required:
            arguments += ["--approval-required"]
        if settings.model_store:
            mirror = (settings.data_dir / "models").resolve()
            arguments += ["--model-store", settings.model_store, "--mirror", str(mirror)]
            arguments += ["--model-store-poll-s", str(settings.model_store_poll_s)]
        arguments += ["--golden-check-s", str(settings.engine_golden_check_s)]
        arguments += ["--release-poll-s", str(settings.engine_release_poll_s)]
        return python_module("gateway.engine", *arguments)

    def _start_worker(self, index: int) -> Child:
        generation = self._generations[index] = self._generations.get(index, -1) + 1
        fds = (self.http_sockets[index].fileno(), self.grpc_sockets[index].fileno())
        arguments = ["--settings", str(self.settings.run_dir / "settings.json")]
        arguments += ["--index", str(index), "--generation", str(generation)]
        for fd in fds:
            arguments += ["--fd", str(fd)]
        child = self._child(
            f"worker-{index}",
            lambda fd: python_module("gateway.worker", *arguments, "--ready-fd", str(fd)),
            fds,
            compiled=self._compiled,
        )
        child.start()
        return child

    async def start(self) -> None:
        """Start every child and wait until all serve. Raises SettingsError when one does not come up."""
        for fd_owner in (*self.http_sockets, *self.grpc_sockets):
            fd_owner.set_inheritable(True)
        self._look_for_compiled()
        self._start_children()
        for index in range(self.settings.workers):
            self.workers[index] = self._start_worker(index)
        waiting = {child.role: child for child in (*self.children.values(), *self.workers.values())}
        try:
            async with asyncio.timeout(_START_S):
                await asyncio.gather(*(child.is_ready.wait() for child in waiting.values()))
        except TimeoutError:
            late = ", ".join(role for role, child in waiting.items() if not child.is_ready.is_set())
            log = self.settings.data_dir / "log" / "tollway.log"
            raise SettingsError(
                f"not ready after {_START_S:.0f} s: {late}; see {log} or run `tollway doctor`"
            ) from None
        (self.settings.run_dir / READY_FILE).write_text(str(os.getpid()), encoding="ascii")

    # -- run and stop --------------------------------------------------------------------------------------------------

    async def run_until_stopped(self) -> int:
        """Wait for a signal; SIGHUP reloads meanwhile. Returns the exit code."""
        loop = asyncio.get_running_loop()
        self._stop = loop.create_future()
        loop.add_signal_handler(signal.SIGHUP, self._on_hup)
        return await self._stop

    def install_stop_handlers(self) -> None:
        """From here on SIGINT and SIGTERM stop in order, even while starting."""
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_stop, number, task)

    def _on_stop(self, number: int, task: "asyncio.Task[int] | None") -> None:
        self.stop_signal = number
        if self._stop is None:
            if task is not None:
                task.cancel()
        elif not self._stop.done():
            self._stop.set_result(0)

    stop_signal: int = signal.SIGTERM

    def _on_hup(self) -> None:
        """One reload at a time: a signal that comes meanwhile starts another after it."""
        if self._reloading is not None and not self._reloading.done():
            self._is_reload_due = True
            return
        self._reloading = asyncio.get_running_loop().create_task(self._reload_until_done(), name="reload")

    async def _reload_until_done(self) -> None:
        await self.reload()
        while self._is_reload_due:
            self._is_reload_due = False
            await self.reload()

    async def reload(self) -> None:
        """Replace workers one by one: the new one serves the same sockets before the old one stops accepting."""
        self._look_for_compiled()
        for index in sorted(self.workers):
            old = self.workers[index]
            new = self._incoming = self._start_worker(index)
            try:
                async with asyncio.timeout(_START_S):
                    await new.is_ready.wait()
            except TimeoutError:
                self.say(f"reload: the new worker-{index} did not become ready; the old one goes on")
                await new.stop(signal.SIGTERM, _QUICK_S)
                return
            self.workers[index] = new
            self._incoming = None
            await old.stop(signal.SIGTERM, self.settings.limits.drain_s + _PATIENT_EXTRA_S)
        self.say("reload: every worker was replaced")

    async def stop(self) -> None:
        """Workers first (they flush their usage), then engine and quota, then the meter (it posts what was flushed)."""
        is_quick = self.stop_signal == signal.SIGINT
        number = signal.SIGINT if is_quick else signal.SIGTERM
        worker_s = _QUICK_S if is_quick else self.settings.limits.drain_s + _PATIENT_EXTRA_S
        if self._reloading is not None:
            self._reloading.cancel()
        workers = [*self.workers.values(), *([self._incoming] if self._incoming is not None else [])]
        await asyncio.gather(*(worker.stop(number, worker_s) for worker in workers))
        rest_s = 0.9 if is_quick else 10.0
        for roles in (
            (("engine", "quota", "control", "meter"),) if is_quick else (("engine", "quota"), ("meter", "control"))
        ):
            await asyncio.gather(
                *(self.children[role].stop(signal.SIGTERM, rest_s) for role in roles if role in self.children)
            )
        self.release()

    def release(self) -> None:
        """Close sockets and files; give the lock back."""
        for sock in (*self.http_sockets, *self.grpc_sockets):
            sock.close()
        if self._lock_fd >= 0:  # else it is another supervisor's
            with contextlib.suppress(FileNotFoundError):
                (self.settings.run_dir / READY_FILE).unlink()
        if self._log is not None:
            self._log.close()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1


def make_folders(settings: Settings) -> None:
    """The data directory and what lies in it, mode 700. Raises SettingsError when it cannot be."""
    # The longest socket name there; the kernel takes 107 bytes of path (unix(7)).
    longest = settings.run_dir.resolve() / "worker-99-99999.sock"
    if len(os.fsencode(longest)) > _SOCKET_PATH_BYTES_MAX:
        raise SettingsError(
            f"data_dir {settings.data_dir} has too long a path for its sockets "
            f"({len(os.fsencode(longest))} bytes, {_SOCKET_PATH_BYTES_MAX} fit): choose a shorter one"
        )
    try:
        for folder in (settings.data_dir, settings.run_dir, settings.data_dir / "log", settings.usage_root):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(
            f"data_dir {settings.data_dir} cannot be made ({error.strerror}): choose a folder you may write"
        ) from None


def check_models(settings: Settings) -> None:
    """At least one model folder in some repository, or a store that may have one. Raises SettingsError."""
    for repository in settings.model_repositories:
        if not repository.is_dir():
            raise SettingsError(
                f"model repository {repository} does not exist: run `make models`, or set model_repositories"
            )
    if settings.model_store:
        return
    if not any(found for repository in settings.model_repositories for found in repository.glob("*/config.pbtxt")):
        names = ", ".join(str(repository) for repository in settings.model_repositories)
        raise SettingsError(f"no model in {names}: run `make models` to build the showcases, or add your own")


def stderr_say(text: str) -> None:
    """One line for the person at the terminal."""
    sys.stderr.write(f"tollway: {text}\n")
    sys.stderr.flush()


def running_pid(data_dir: Path) -> int | None:
    """The pid of the supervisor that holds `data_dir`, or None."""
    path = data_dir / "run" / LOCK_FILE
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.read(fd, 32).decode().strip()
        return int(text) if text.isdigit() else None
    else:
        return None
    finally:
        os.close(fd)
