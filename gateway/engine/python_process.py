"""Owns one Python step's process as its parent sees it: start, one call at a time, and its end, whatever ends it.

Blocking: used from an executor's thread. The child gets a scrubbed environment, no descriptor but its socket, memory
and time limits, and where the engine is root another user, if that user can read what Python needs.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gateway
from gateway.engine.frames import FrameError, receive_frame, send_frame
from gateway.engine.interface import Interface
from gateway.engine.tensors import Array, from_raw, to_raw
from gateway.engine.work import Feeds
from gateway.errors import Code, TollwayError
from model_repo.errors import RepositoryError

_LOG: Final = logging.getLogger("tollway.engine")
_NOBODY: Final = 65534
_STOP_S: Final = 2.0
_BOOT: Final = (
    "import sys; sys.path[:0] = sys.argv[2:]; from gateway.engine.python_child import main; main(sys.argv[1:2])"
)
#: pb_utils.TritonError codes that are the caller's fault or the model's momentary state; others are backend faults.
_TRITON_CODES: Final = {2: Code.BAD_REQUEST, 3: Code.INVALID_TENSOR, 4: Code.OVERLOADED, 5: Code.NOT_IMPLEMENTED}


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonLimits:
    """`memory_bytes_max` bounds the child's address space (RLIMIT_AS), 0 does not."""

    memory_bytes_max: int = 4 << 30
    call_s: float = 30.0
    start_s: float = 60.0


DEFAULT_LIMITS: Final = PythonLimits()


class StepEnded(Exception):
    """The process is gone; `reason` says how, safe to show."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class PythonProcess:
    """A step's process. Not thread-safe but for `kill`: one call at a time."""

    def __init__(self, file: Path, arguments: dict[str, str], interface: Interface, limits: PythonLimits) -> None:
        """Start the process; the step is usable after `start`."""
        self._file = file
        self._arguments = arguments
        self._interface = interface
        self._limits = limits
        self._model = interface.model
        self._sock, theirs = socket.socketpair()
        with theirs:
            self._process = _spawn(theirs, file)

    def start(self) -> None:
        """Block until the step is initialised.

        Raises:
            RepositoryError: it raises, ends, or takes too long; the process is gone.
        """
        limits = self._limits
        start = {
            "file": str(self._file),
            "arguments": self._arguments,
            "outputs": [spec.name for spec in self._interface.outputs],
            "memory_bytes_max": limits.memory_bytes_max,
        }
        name = self._file.name
        try:
            self._sock.settimeout(limits.start_s)
            send_frame(self._sock, start, ())
            head, _ = receive_frame(self._sock)
        except (OSError, FrameError) as error:
            ended = self._end("did not start in time" if isinstance(error, TimeoutError) else "ended while starting")
            raise RepositoryError(f"{name}: {ended.reason}") from error
        if not head.get("ok"):
            self.close()
            _LOG.error("python_step_refused model=%s detail=%s", self._model, head.get("detail"))
            raise RepositoryError(f"{name}: raised {_type_name(head)} while loading; see the engine's log")
        self._sock.settimeout(limits.call_s)

    @property
    def pid(self) -> int:
        return self._process.pid

    def call(self, feeds: Sequence[Feeds], rows: Sequence[int]) -> list[list[Array] | TollwayError]:
        """One batch; a fault per request where the step or its outputs are at fault.

        Raises:
            StepEnded: the process crashed, hung, ran out of memory or broke the protocol; it is gone now.
        """
        requests = []
        blobs: list[bytes | memoryview] = []
        for own in feeds:
            described = []
            for spec in self._interface.inputs:
                if spec.name in own:
                    data = to_raw(own[spec.name])
                    described.append([spec.name, spec.datatype, list(own[spec.name].shape), len(data)])
                    blobs.append(data)
            requests.append(described)
        try:
            send_frame(self._sock, {"requests": requests}, blobs)
            head, blob = receive_frame(self._sock)
            if head.get("ok"):
                return self._results(head["responses"], blob, rows)
        except TimeoutError as error:
            raise self._end(f"did not answer within {self._limits.call_s:g} s") from error
        except (OSError, FrameError, KeyError, TypeError, ValueError) as error:
            raise self._end("ended") from error
        return self._raised(head, len(feeds))

    def _raised(self, head: dict[str, Any], count: int) -> list[list[Array] | TollwayError]:
        _LOG.error("python_step_raised model=%s detail=%s", self._model, head.get("detail"))
        if head.get("type") == "MemoryError":
            raise self._end("ran out of memory")
        message = f"model '{self._model}' raised {_type_name(head)}"
        return [TollwayError(Code.BACKEND_FAULT, message)] * count

    def _results(
        self, responses: list[dict[str, Any]], blob: memoryview, rows: Sequence[int]
    ) -> list[list[Array] | TollwayError]:
        """What the child says is checked like a caller's: sizes, types, shapes, names."""
        results: list[list[Array] | TollwayError] = []
        offset = 0
        for response, own_rows in zip(responses, rows, strict=True):
            if "error" in response:
                code = _TRITON_CODES.get(response["code"], Code.BACKEND_FAULT)
                results.append(TollwayError(code, str(response["error"])))
                continue
            arrays = {}
            for name, datatype, shape, size in response["outputs"]:
                arrays[name] = (datatype, shape, blob[offset : offset + size])
                offset += size
            results.append(self._outputs(arrays, own_rows))
        return results

    def _outputs(self, arrays: dict[str, tuple[str, list[int], memoryview]], rows: int) -> list[Array] | TollwayError:
        outputs: list[Array] = []
        for position, spec in enumerate(self._interface.outputs):
            if spec.name not in arrays:
                return self._fault(f"returned no output '{spec.name}'")
            datatype, shape, data = arrays[spec.name]
            # numpy has no BF16: steps return its bits.
            if datatype != spec.datatype and (datatype, spec.datatype) != ("UINT16", "BF16"):
                return self._fault(f"returned output '{spec.name}' as {datatype}, configured is {spec.datatype}")
            try:
                array = from_raw(spec.name, spec.datatype, tuple(shape), data)
            except TollwayError as error:
                return self._fault(error.message)
            fault = self._interface.find_output_fault(position, array, rows)
            if fault is not None:
                return self._fault(fault)
            outputs.append(array)
        return outputs

    def _fault(self, reason: str) -> TollwayError:
        return TollwayError(Code.BACKEND_FAULT, f"model '{self._model}': {reason}")

    def _end(self, reason: str) -> StepEnded:
        """Make sure that the process is gone, and say how it ended."""
        self._sock.close()
        try:
            # An end by itself (crash, exit) has a status of its own worth telling.
            status = self._process.wait(0.2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            status = 0
        if status < 0:
            reason = f"{reason} (by {signal.Signals(-status).name})"
        elif status > 0:
            reason = f"{reason} (exit status {status})"
        _LOG.error("python_step_ended model=%s pid=%d reason=%s", self._model, self._process.pid, reason)
        return StepEnded(reason)

    def close(self) -> None:
        """Hang up, wait for `finalize`, and kill what does not go. Idempotent."""
        self._sock.close()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def kill(self) -> None:
        """End the process at once, from any thread; a call under way then raises `StepEnded`."""
        if self._process.poll() is None:
            self._process.kill()


def _type_name(head: dict[str, Any]) -> str:
    name = str(head.get("type", ""))
    return name if name.isidentifier() and len(name) <= 80 else "an error"


def _spawn(theirs: socket.socket, file: Path) -> "subprocess.Popen[bytes]":
    root = Path(gateway.__file__).parents[1]
    stub = root / "gateway" / "engine" / "pystub"
    descriptor = theirs.fileno()
    # -I: neither the working directory nor the user's site-packages nor PYTHON* settings reach the step.
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
