"""Owns measuring batch size and delay of a model: an engine of its own per candidate, under full load; and the choice.

The engine is a black box behind its socket, so that what is measured is what callers will see.
"""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

#: A candidate that is this close to the fastest is as good: the smaller batch, the shorter wait is taken.
AS_GOOD: Final = 0.97
WARM_UP_S: Final = 0.3
_START_S: Final = 120.0
_ANSWER_S: Final = 60.0
_CHUNK: Final = 1 << 16


class TuningError(Exception):
    """A measurement that could not be made; the message is for people."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Candidate:
    """Batches of `rows` that wait at most `delay_us`; 0 rows: no batching."""

    rows: int
    delay_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What callers saw. `failed` counts answers other than 200."""

    candidate: Candidate
    calls_per_s: float
    p50_ms: float
    p99_ms: float
    failed: int


def sizes(rows_max: int) -> list[Candidate]:
    """No batching, then 2, 4, 8 … and `rows_max`, each without a wait."""
    rows = [0]
    size = 2
    while size < rows_max:
        rows.append(size)
        size *= 2
    return [Candidate(rows=count, delay_us=0) for count in (*rows, *([rows_max] if rows_max > 1 else []))]


def delays(rows: int, target_ms: float) -> list[Candidate]:
    """Waits of a twentieth, a fifth and a half of the target: more could not be kept."""
    return [Candidate(rows=rows, delay_us=round(1000 * target_ms * share)) for share in (0.05, 0.2, 0.5)]


def choose(measured: Sequence[Measured], target_ms: float) -> Measured | None:
    """The most calls a second whose p99 keeps the target; None where none does."""
    kept = [one for one in measured if not one.failed and one.p99_ms <= target_ms]
    if not kept:
        return None
    best = max(one.calls_per_s for one in kept)
    return min((one for one in kept if one.calls_per_s >= AS_GOOD * best), key=lambda one: one.candidate)


def tune(
    measure: Callable[[Candidate], Measured],
    rows_max: int,
    target_ms: float,
    report: Callable[[Measured, int, int], None],
) -> tuple[list[Measured], Measured | None]:
    """Measure sizes first, then waits for the best size; returns all, and the choice."""
    todo = sizes(rows_max)
    total = len(todo) + (len(delays(1, target_ms)) if rows_max > 1 else 0)
    found: list[Measured] = []

    def run(candidates: Sequence[Candidate]) -> None:
        for candidate in candidates:
            found.append(measure(candidate))
            report(found[-1], len(found), total)

    run(todo)
    best = choose(found, target_ms)
    if best is not None and best.candidate.rows:
        run(delays(best.candidate.rows, target_ms))
    return found, choose(found, target_ms)


def copy_model(folder: Path, target: Path, config: str) -> None:
    """The model's files (hard links where the file system has them) beside another configuration."""

    def link(source: str, place: str) -> None:
        try:
            os.link(source, place, follow_symlinks=False)
        except OSError:
            shutil.copyfile(source, place)

    shutil.copytree(folder, target, copy_function=link, ignore=shutil.ignore_patterns("config.pbtxt"))
    (target / "config.pbtxt").write_text(config, encoding="utf-8")


@contextmanager
def running_engine(repository: Path, extra: Sequence[str]) -> Iterator[Path]:
    """An engine over `repository`, ready to serve; gives its socket.

    Raises:
        TuningError: it does not start.
    """
    with tempfile.TemporaryDirectory(prefix="tollway-tune-") as name:
        path, log = Path(name) / "s", Path(name) / "log"
        read_fd, write_fd = os.pipe()
        command = [sys.executable, "-m", "gateway.engine", "--socket", str(path), "--ready-fd", str(write_fd)]
        command += ["--repository", str(repository), "--python-models-allowed", str(repository), *extra]
        with log.open("wb") as errors:
            process = subprocess.Popen(command, stderr=errors, stdin=subprocess.DEVNULL, pass_fds=(write_fd,))
        os.close(write_fd)
        try:
            with os.fdopen(read_fd, "rb") as ready:
                if ready.read() != b"ready\n":
                    raise TuningError(f"the engine does not start: {_last_line(log)}")
            yield path
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_START_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return lines[-1] if lines else "it said nothing"


async def fetch(path: Path, method: str, target: str, body: bytes = b"", headers: str = "") -> tuple[int, bytes]:
    """One call on a connection of its own."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(request_bytes(method, target, body, headers))
        return await read_reply(reader)
    finally:
        writer.close()


def request_bytes(method: str, target: str, body: bytes, headers: str) -> bytes:
    head = f"{method} {target} HTTP/1.1\r\nhost: engine\r\n{headers}content-length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def read_reply(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body. Raises TuningError when the engine breaks off."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        length = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
        return int(head[9:12]), await reader.readexactly(length)
    except (asyncio.IncompleteReadError, StopIteration, ValueError, ConnectionError) as error:
        raise TuningError("the engine broke the connection off") from error


async def wait_ready(path: Path, model: str) -> None:
    """Until the model is ready.

    Raises:
        TuningError: it cannot be loaded, with the reason; or not in time.
    """
    end_s = time.monotonic() + _START_S
    while (await fetch(path, "GET", f"/v2/models/{model}/ready"))[0] != 200:
        _, index = await fetch(path, "POST", "/v2/repository/index")
        if b'"UNAVAILABLE"' in index:
            raise TuningError(f"the model cannot be loaded: {index.decode(errors='replace')[:1000]}")
        if time.monotonic() > end_s:
            raise TuningError(f"the model is not ready after {_START_S:.0f} s")
        await asyncio.sleep(0.02)  # another process: nothing to await


async def load(path: Path, request: bytes, concurrency: int, seconds: float) -> tuple[list[float], float, int]:
    """Latencies (s) of the calls that ended within `seconds`, that time, and how many failed.

    `concurrency` connections send the next call as soon as the last one is answered.

    Raises:
        TuningError: the engine breaks off, or does not answer.
    """
    latencies: list[float] = []
    failed = 0
    begin_s = time.perf_counter() + WARM_UP_S
    end_s = begin_s + seconds

    async def caller() -> None:
        nonlocal failed
        reader, writer = await asyncio.open_unix_connection(path, limit=_CHUNK)
        try:
            while (sent_s := time.perf_counter()) < end_s:
                writer.write(request)
                status, _ = await asyncio.wait_for(read_reply(reader), _ANSWER_S)
                now_s = time.perf_counter()
                if begin_s <= now_s < end_s:
                    latencies.append(now_s - sent_s)
                    failed += status != 200
        finally:
            writer.close()

    try:
        async with asyncio.TaskGroup() as group:
            for number in range(concurrency):
                group.create_task(caller(), name=f"caller {number}")
    except ExceptionGroup as group_error:
        first = group_error.exceptions[0]
        if isinstance(first, TuningError | TimeoutError | OSError):
            raise TuningError(str(first) or f"no answer within {_ANSWER_S:.0f} s") from group_error
        raise
    return latencies, seconds, failed


def summarise(candidate: Candidate, latencies: Sequence[float], seconds: float, failed: int) -> Measured:
    """Raises: TuningError: not one call ended in time."""
    if not latencies:
        raise TuningError(f"no call was answered within {seconds:g} s: measure longer with --seconds")
    ordered = sorted(latencies)
    p50, p99 = (ordered[max(0, -(-len(ordered) * percent // 100) - 1)] for percent in (50, 99))
    return Measured(
        candidate=candidate,
        calls_per_s=len(ordered) / seconds,
        p50_ms=1000 * p50,
        p99_ms=1000 * p99,
        failed=failed,
    )
