"""Owns one Python model instance's process as its parent sees it: start, frames both ways, and whatever ends it.

One thread reads; frames leave from any thread, at once where they fit into the socket's buffer, else on the model's
executor. The child gets a scrubbed environment, no descriptor but its socket, memory and time limits, and where the
engine is root another user, if that user can read what Python needs.
"""

import contextlib
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import gateway
from gateway.engine.frames import SHARED_BYTES_MIN, Blob, Frame, FrameError, receive_frame
from model_repo.errors import RepositoryError

_LOG: Final = logging.getLogger("tollway.engine")
_NOBODY: Final = 65534
_STOP_S: Final = 2.0
_BOOT: Final = (
    "import sys; sys.path[:0] = sys.argv[2:]; from gateway.engine.python_child import main; main(sys.argv[1:2])"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonLimits:
    """`memory_bytes_max` bounds the child's address space (RLIMIT_AS), 0 does not."""

    memory_bytes_max: int = 4 << 30
    call_s: float = 30.0
    start_s: float = 60.0


DEFAULT_LIMITS: Final = PythonLimits()


class Events(Protocol):
    """Who hears of a process; called on its reading thread."""

    def on_frame(self, process: "PythonProcess", head: dict[str, Any], blob: memoryview) -> None:
        """Raises: KeyError, TypeError, ValueError: the frame makes no sense; the process is ended."""

    def on_end(self, process: "PythonProcess", reason: str) -> None:
        """It is gone, once, after it had started; `reason` is safe to show."""


class PythonProcess:
    """A process. `start` blocks; afterwards all methods return at once."""

    def __init__(self, file: Path, model: str, limits: PythonLimits, events: Events, executor: Executor) -> None:
        """Start the process; it is usable after `start`. It dies with the thread that called this."""
        self._file = file
        self._model = model
        self._limits = limits
        self._events = events
        self._executor = executor
        self._lock = threading.Lock()
        self._outgoing: deque[tuple[Frame | None, dict[str, Any], Blob | None, Callable[[], object]]] = deque()
        self._is_sending = False
        self._is_closing = False
        self._is_started = False
        self._has_ended = False
        self._kill_reason = ""
        self._started: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._reader: threading.Thread | None = None
        self._sock, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = _spawn(theirs, file)
            except BaseException:
                self._sock.close()
                raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self, arguments: dict[str, Any], *, is_brief: bool = False) -> dict[str, Any]:
        """Block until the process has done what `arguments` ask for; returns its answer. `is_brief`: it then ends.

        Raises:
            RepositoryError: it raises, ends, or takes too long; the process is gone.
        """
        self._reader = threading.Thread(target=self._read, name=f"python-{self._model}", daemon=True)
        self._reader.start()
        start = {"file": str(self._file), "memory_bytes_max": self._limits.memory_bytes_max, **arguments}
        self.post(start)
        name = self._file.name
        try:
            head = self._started.get(timeout=self._limits.start_s)
        except queue.Empty as error:
            self.close(is_orderly=False)
            raise RepositoryError(f"{name}: did not start in time") from error
        if head is None:
            reason = f"ended while starting{self._status()}"
            self.close()
            raise RepositoryError(f"{name}: {reason}")
        if not head.get("ok"):
            self.close()
            _LOG.error("python_model_refused model=%s detail=%s", self._model, head.get("detail"))
            raise RepositoryError(f"{name}: raised {type_name(head)} while loading; see the engine's log")
        with self._lock:
            self._is_started = True
            has_ended = self._has_ended
        if has_ended and not is_brief:
            reason = f"ended after its start{self._status()}"
            self.close()
            raise RepositoryError(f"{name}: {reason}")
        return head

    def post(self, head: dict[str, Any], blob: Blob | None = None, on_unsent: Callable[[], object] = bool) -> None:
        """Send a frame; `on_unsent` is called, on any thread, if it is too large. Its end is told to `Events`.

        What lies in `blob` must stay unchanged until it has been answered.
        """
        with self._lock:
            frame: Frame | None = None
            if not self._outgoing and not self._is_sending and (blob is None or blob.size < SHARED_BYTES_MIN):
                try:
                    frame = Frame(head, blob)
                    if frame.write(self._sock, is_waiting=False):
                        return
                except OSError:
                    return
                except FrameError:
                    self._executor.submit(on_unsent)
                    return
            self._outgoing.append((frame, head, blob, on_unsent))
            if self._is_sending:
                return
            self._is_sending = True
        # After the end of the model there is no executor, and nobody who waits for the frame.
        with contextlib.suppress(RuntimeError):
            self._executor.submit(self._drain)

    def _drain(self) -> None:
        """Send what did not leave at once, blocking this thread."""
        while True:
            with self._lock:
                if not self._outgoing:
                    self._is_sending = False
                    return
                frame, head, blob, on_unsent = self._outgoing.popleft()
            try:
                frame = frame or Frame(head, blob)
            except (FrameError, OSError) as error:
                _LOG.error("python_frame_refused model=%s reason=%s", self._model, error)
                on_unsent()
                continue
            # A process that is gone is the reading thread's to tell.
            with contextlib.suppress(OSError), contextlib.closing(frame):
                frame.write(self._sock)

    def _read(self) -> None:
        try:
            while True:
                head, blob = receive_frame(self._sock)
                if "ok" in head and "say" not in head:
                    self._started.put(head)
                else:
                    self._events.on_frame(self, head, blob)
                # What a frame holds goes now, not when the next one comes.
                del head, blob
        except (OSError, FrameError):
            reason = "ended"
        except (KeyError, TypeError, ValueError, AttributeError):
            _LOG.exception("python_frame_senseless model=%s", self._model)
            reason = "broke the protocol"
        self._started.put(None)
        with self._lock:
            self._has_ended = True
            if self._is_closing or not self._is_started:
                return
        reason = (self._kill_reason or reason) + self._status()
        _LOG.error("python_model_ended model=%s pid=%d reason=%s", self._model, self._process.pid, reason)
        self._events.on_end(self, reason)

    def _status(self) -> str:
        """Make sure that the process is gone, and say how it ended by itself."""
        try:
            # An end by itself (crash, exit) has a status of its own worth telling.
            status = self._process.wait(0.2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return ""
        if status < 0 and not self._kill_reason:
            return f" (by {signal.Signals(-status).name})"
        return f" (exit status {status})" if status > 0 else ""

    def close(self, *, is_orderly: bool = True) -> None:
        """Hang up, wait for `finalize` if `is_orderly`, and kill what does not go. Blocks. Idempotent."""
        self._is_closing = True
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        try:
            self._process.wait(_STOP_S if is_orderly else 0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._reader is not None and self._reader is not threading.current_thread():
            self._reader.join()
        self._sock.close()
        with self._lock:
            for frame, *_ in self._outgoing:
                if frame is not None:
                    frame.close()
            self._outgoing.clear()

    def kill(self, reason: str = "was killed") -> None:
        """End the process at once, from any thread; `Events.on_end` follows with `reason`."""
        self._kill_reason = self._kill_reason or reason
        if self._process.poll() is None:
            self._process.kill()


def type_name(head: dict[str, Any]) -> str:
    """The exception's type that a frame names, if it is a name."""
    name = str(head.get("type", ""))
    return name if name.isidentifier() and len(name) <= 80 else "an error"


def _spawn(theirs: socket.socket, file: Path) -> "subprocess.Popen[bytes]":
    root = Path(gateway.__file__).parents[1]
    stub = root / "gateway" / "engine" / "pystub"
    descriptor = theirs.fileno()
    # -I: neither the working directory nor the user's site-packages nor PYTHON* settings reach the model.
    command = [sys.executable, "-I", "-c", _BOOT, str(descriptor), str(root), str(stub)]
    identity: dict[str, Any] = {}
    if os.geteuid() == 0:
        if all(_is_public(path) for path in (Path(sys.executable), Path(os.__file__), root, file)):
            identity = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []}
        else:
            _LOG.warning("python_step_keeps_user reason=python_or_model_unreadable_for_others file=%s", file)
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=2,
        pass_fds=(descriptor,),
        env={
            "PATH": "/usr/bin:/bin",
            "LANG": "C.UTF-8",
            # One core's worth each: instances are the way to use more.
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        },
        cwd="/",
        start_new_session=True,
        **identity,
    )


def _is_public(path: Path) -> bool:
    """Whether every user can reach and read `path`."""
    real = path.resolve()
    readable = os.stat(real).st_mode & 0o004
    return bool(readable) and all(os.stat(parent).st_mode & 0o001 for parent in real.parents)
