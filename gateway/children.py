"""Owns one supervised child process: start, readiness, restart with backoff, stop.

Children die with the supervisor (PR_SET_PDEATHSIG) and sit in their own process group, so that Ctrl-C in a terminal
reaches the supervisor alone, which ends them in order.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Final

from gateway.core_dumps import forbid_core_dumps

_PR_SET_PDEATHSIG: Final = 1
_BACKOFF_FIRST_S: Final = 0.1
_BACKOFF_MAX_S: Final = 5.0
#: A child that lived this long starts again without delay.
_STABLE_S: Final = 10.0
#: How a process dies of wrong machine code. One that runs compiled modules then goes back to their sources.
_FAULT_SIGNALS: Final = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT})
#: Crash suites only: a folder in which the file `<role>` orders a failpoint for the next process of that role.
FAILPOINT_DIR_VARIABLE: Final = "TOLLWAY_FAILPOINT_DIR"


def _before_exec() -> None:
    """Runs in the child between fork and exec: it dies with its parent, and leaves no core file."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    forbid_core_dumps()


class Child:
    """A process that should run. `command(ready_fd)` gives its argument vector; `fds` are inherited.

    `compiled` is a folder of compiled modules that go before the sources (`gateway.compiled`). It is given up, and that
    is said, when the process ends before it is ready or by a fault: a bad build costs speed, never service.
    """

    def __init__(
        self,
        role: str,
        command: Callable[[int], Sequence[str]],
        *,
        fds: Sequence[int] = (),
        log: IO[bytes] | None = None,
        say: Callable[[str], None],
        compiled: Path | None = None,
    ) -> None:
        self.role = role
        self.compiled = compiled
        self.restarts = 0
        self.is_ready = asyncio.Event()
        self.process: asyncio.subprocess.Process | None = None
        self._command = command
        self._fds = tuple(fds)
        self._log = log
        self._say = say
        self._is_wanted = True
        self._task: asyncio.Task[None] | None = None
        self._ready_fd: int | None = None

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process is not None and self.process.returncode is None else None

    def start(self) -> None:
        """Run and keep running."""
        self._task = asyncio.get_running_loop().create_task(self._keep_running(), name=f"child {self.role}")

    async def _keep_running(self) -> None:
        loop = asyncio.get_running_loop()
        backoff_s = _BACKOFF_FIRST_S
        while self._is_wanted:
            begun_s = loop.time()
            try:
                code = await self._run_once()
            except OSError as error:
                # No process or descriptor to be had: as a run that failed at once, tried again with backoff.
                self._say(f"{self.role} cannot be started ({error.strerror})")
                code = 1
            was_ready = self.is_ready.is_set()
            self.is_ready.clear()
            if not self._is_wanted:
                return
            self.restarts += 1
            if self.compiled is not None and (not was_ready or -code in _FAULT_SIGNALS):
                self.compiled = None
                self._say(f"{self.role}: the compiled modules do not run here; it uses their sources from now on")
            backoff_s = _BACKOFF_FIRST_S if loop.time() - begun_s > _STABLE_S else min(backoff_s * 2, _BACKOFF_MAX_S)
            self._say(f"{self.role} ended ({_describe(code)}); starting it again in {backoff_s:.1f} s")
            await asyncio.sleep(backoff_s)

    async def _run_once(self) -> int:
        """Start, note readiness, wait for the end; returns the exit code."""
        read_fd, write_fd = os.pipe()
        command = self._command(write_fd)
        try:
            self.process = await asyncio.create_subprocess_exec(
                *(command if self.compiled is None else (command[0], "-P", *command[1:])),
                pass_fds=(*self._fds, write_fd),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                process_group=0,
                preexec_fn=_before_exec,
                env=_environment(self.role, self.compiled),
            )
        except BaseException:
            os.close(read_fd)
            raise
        finally:
            os.close(write_fd)
        if not self._is_wanted:
            self.signal(signal.SIGTERM)  # stopped while it was being started
        self._ready_fd = read_fd
        asyncio.get_running_loop().add_reader(read_fd, self._on_ready, read_fd)
        try:
            return await self.process.wait()
        finally:
            self._close_ready_fd()

    def _on_ready(self, fd: int) -> None:
        if os.read(fd, 64):
            self.is_ready.set()
        self._close_ready_fd()

    def _close_ready_fd(self) -> None:
        """Once only: a closed number soon belongs to another child's pipe, which must not be closed in its stead."""
        fd, self._ready_fd = self._ready_fd, None
        if fd is not None:
            asyncio.get_running_loop().remove_reader(fd)
            os.close(fd)

    def signal(self, number: int) -> None:
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)

    async def stop(self, number: int, limit_s: float) -> bool:
        """Send `number`, wait up to `limit_s`, then SIGKILL. True if the child ended by itself."""
        self._is_wanted = False
        if self._task is None:
            return True
        self.signal(number)
        done, _ = await asyncio.wait({self._task}, timeout=limit_s)
        if done:
            return True
        self._say(f"{self.role} did not stop within {limit_s:.1f} s; killing it")
        self.signal(signal.SIGKILL)
        self._task.cancel()
        if self.process is not None:
            await self.process.wait()
        return False


def _environment(role: str, compiled: Path | None) -> dict[str, str]:
    """What the next process of `role` inherits. A failpoint order is taken, so it kills once."""
    environment = dict(os.environ)
    if compiled is not None:
        # Before what else is on the path; -P keeps the working directory, which may hold the sources, from being first.
        known = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{compiled}{os.pathsep}{known}" if known else str(compiled)
    folder = environment.get(FAILPOINT_DIR_VARIABLE)
    if not folder:
        return environment
    order = Path(folder) / role
    try:
        environment["TOLLWAY_FAILPOINT"] = order.read_text(encoding="ascii")
    except FileNotFoundError:
        return environment
    order.unlink()
    return environment


def _describe(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def python_module(module: str, *arguments: str) -> list[str]:
    """The argument vector of one of our modules, in this very interpreter. -I is not used: the tree may be the cwd."""
    return [sys.executable, "-m", module, *arguments]
