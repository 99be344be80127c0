"""Owns the limited child: its entry, and how the parent starts it, follows it and ends it.

The parent writes one JSON request to the child's standard input; the child answers in JSON lines on standard output:
`{"ev": "progress", "step", "done", "total"}`, `{"ev": "log", "text"}`, and at last one `{"ev": "result", "value"}` or
`{"ev": "error", "rule", "message", "next_step", "exit_code"}`. No object but JSON crosses the border.
"""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from converters.errors import BY_EXIT_CODE, ConvertError, ToolFailed
from converters.sandbox import die_with, restrict

EVENT_BYTES_MAX: Final = 16 << 20
_STDERR_SHOWN: Final = 600
Event = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of one child. `time_s_max` is wall time, and bounds its CPU time per core."""

    memory_bytes_max: int = 8 << 30
    time_s_max: int = 1_800
    file_bytes_max: int = 64 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What a child runs if it is not ours. `environment`: beside the little that every child has.

    `read_paths`: all that it may read, beside its work folder. `devices`: files of devices that it may use.
    """

    command: tuple[str, ...]
    environment: Mapping[str, str]
    read_paths: tuple[Path, ...]
    devices: tuple[Path, ...] = ()


def run_child(
    request: Mapping[str, Any],
    work: Path,
    limits: Limits,
    on_event: Callable[[Event], None],
    program: Program | None = None,
) -> Any:
    """Run `request` in a child that may write below `work` only. Returns its result. Blocks.

    Raises:
        ConvertError: what the child reported; ToolFailed: it died, ran out of a limit, or broke the protocol.
    """
    full = {
        **request,
        "work": str(work.absolute()),
        "parent_pid": os.getpid(),
        "memory_bytes_max": limits.memory_bytes_max,
        "cpu_s_max": limits.time_s_max * (os.cpu_count() or 1),
        "file_bytes_max": limits.file_bytes_max,
        "read_paths": [str(path) for path in program.read_paths] if program else [],
        "devices": [str(path) for path in program.devices] if program else [],
    }
    log = work / "child.log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            program.command if program else (sys.executable, "-m", "converters", "child"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env={**_environment(work.absolute()), **(program.environment if program else {})},
            cwd=work if program else Path(__file__).parents[1],
            start_new_session=True,
        )
        timer = threading.Timer(limits.time_s_max, _kill, (process,))
        timer.start()
        try:
            return _follow(process, full, limits, log=log, timer=timer, on_event=on_event)
        finally:
            timer.cancel()
            _kill(process)
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()
            timer.join()


def _environment(work: Path) -> dict[str, str]:
    """Nothing of ours but where programs are: no keys, no proxies, no home."""
    kept = {key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH", "LANG") if key in os.environ}
    return {**kept, "HOME": str(work), "TMPDIR": str(work), "PYTHONDONTWRITEBYTECODE": "1"}


def _kill(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _follow(
    process: "subprocess.Popen[bytes]",
    request: Mapping[str, Any],
    limits: Limits,
    *,
    log: Path,
    timer: threading.Timer,
    on_event: Callable[[Event], None],
) -> Any:
    if process.stdin is None or process.stdout is None:
        raise ToolFailed("child", "the child has no pipes", next_step="report this")
    with contextlib.suppress(BrokenPipeError):
        # A child that dies at once is told by its exit code below.
        process.stdin.write(json.dumps(request).encode())
        process.stdin.close()
    for event in _events(process.stdout):
        if event["ev"] == "result":
            return event["value"]
        if event["ev"] == "error":
            kind = BY_EXIT_CODE.get(event["exit_code"], ToolFailed)
            raise kind(event["rule"], event["message"], next_step=event["next_step"])
        on_event(event)
    code = process.wait()
    if timer.finished.is_set():
        text = f"the conversion took longer than {limits.time_s_max} s"
        raise ToolFailed("time", text, next_step="raise --time-s, or convert a smaller model")
    said = log.read_text(errors="replace")[-_STDERR_SHOWN:].strip().replace("\n", " | ")
    text = f"the child ended with {code} and no result: {said or 'it said nothing'}"
    step = f"it may have needed more than {limits.memory_bytes_max} bytes of memory: raise --memory-bytes"
    raise ToolFailed("child", text, next_step=step)


def _events(stream: IO[bytes]) -> Iterator[dict[str, Any]]:
    while line := stream.readline(EVENT_BYTES_MAX):
        try:
            event = json.loads(line)
            is_event = isinstance(event, dict) and isinstance(event.get("ev"), str)
        except ValueError:
            is_event = False
        if not is_event:
            raise ToolFailed("protocol", "the child broke the protocol", next_step="report this")
        yield event


def main_child(do: "Callable[[Event, list[str], Callable[[Event], None]], Any] | None" = None) -> int:
    """Entry of a child: read the request, put on the limits, do it, answer. `do`: of a program that is not ours."""
    events = os.fdopen(os.dup(1), "w", buffering=1)
    # What libraries print must not meet the protocol.
    os.dup2(2, 1)
    request = json.loads(sys.stdin.buffer.read())
    die_with(request["parent_pid"])
    logging.basicConfig(level=logging.ERROR)

    def emit(event: Event) -> None:
        events.write(json.dumps(event) + "\n")

    try:
        gaps = restrict(
            write_folders=[Path(request["work"]), *(Path(path) for path in request["devices"])],
            memory_bytes_max=request["memory_bytes_max"],
            cpu_s_max=request["cpu_s_max"],
            file_bytes_max=request["file_bytes_max"],
            read_paths=[Path(path) for path in request["read_paths"]],
        )
        for gap in gaps:
            emit({"ev": "log", "text": f"sandbox: {gap}"})
        emit({"ev": "result", "value": (do or _do)(request, gaps, emit)})
    except ConvertError as error:
        emit(_error(error))
    except MemoryError:
        step = "raise --memory-bytes, or convert a smaller model"
        emit(_error(ToolFailed("memory", "the model needs more memory than it is given", next_step=step)))
    return 0


def _error(error: ConvertError) -> Event:
    return {
        "ev": "error",
        "rule": error.rule,
        "message": str(error)[:4_000],
        "next_step": error.next_step,
        "exit_code": error.exit_code,
    }


def _do(request: Mapping[str, Any], gaps: list[str], emit: Callable[[Event], None]) -> Any:
    # Imported behind the limits: these load the libraries that read models.
    source = Path(request["source"])
    if request["verb"] == "probe":
        from converters.probe import probe_onnx

        return {"external": list(probe_onnx(source).external)}
    from converters.build import build
    from converters.job import Job
    from converters.origin import Origin

    def progress(step: str, done: int, total: int) -> None:
        emit({"ev": "progress", "step": step, "done": done, "total": total})

    data = Path(request["data"]) if request["data"] else None
    job = Job.from_json(request["job"])
    work = Path(request["work"])
    if request["verb"] == "cases":
        from converters.build import write_source_cases

        return {"cases": write_source_cases(job, source, data, work)}
    if request["verb"] == "given":
        from converters.nncf.given import write_given

        if data is None:
            raise ToolFailed("data", "a quantiser is given no data", next_step="report this")
        return write_given(job, source, data, work)
    facts = request.get("facts")
    origin = Origin(work=work, facts=facts) if facts else None
    if request["verb"] == "typed":
        from converters.plans.typed import write_typed

        found = write_typed(job, source, data, work, sha256=request["sha256"], progress=progress, origin=origin)
        return {**found, "sandbox_gaps": gaps}
    from converters.variants import Made

    made = {key: Made.from_json(value) for key, value in request.get("made", {}).items()}
    report = build(job, source, data, work, sha256=request["sha256"], progress=progress, origin=origin, made=made)
    return {"report": report, "sandbox_gaps": gaps}
