"""HOT PATH. Owns the call log: one JSON line per call, written by a thread so that a slow disk never stops a call.

Lines (`call_line`) are gathered and handed over 4 times a second; when the writer cannot keep up, lines are dropped and
counted, never calls. A file that has grown to `FILE_BYTES_MAX` is put aside as `.1` (the one before it as `.2` …) and a
new one begun; `FILES_KEPT` are kept.
"""

import contextlib
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

_FLUSH_S: Final = 0.25
_BATCHES_MAX: Final = 64
_LINES_MAX: Final = 4096
FILE_BYTES_MAX: Final = 256 * 1024 * 1024
FILES_KEPT: Final = 3
_CLOSE_S: Final = 5.0


class CallLog:
    """Appends to one file per worker (`calls-w0.jsonl`). `schedule(delay_s, callback)` is the loop's call_later."""

    __slots__ = ("_file", "_file_bytes_max", "_lines", "_path", "_queue", "_schedule", "_writer", "dropped_lines")

    def __init__(
        self,
        path: Path,
        schedule: Callable[[float, Callable[[], None]], object],
        *,
        file_bytes_max: int = FILE_BYTES_MAX,
    ) -> None:
        self._path = path
        self._file_bytes_max = file_bytes_max
        self._file = _open(path)
        self._lines: list[bytes] = []
        self._queue: queue.Queue[list[bytes] | None] = queue.Queue(_BATCHES_MAX)
        self._schedule = schedule
        self.dropped_lines = 0
        self._writer = threading.Thread(target=self._run, name="call-log", daemon=True)
        self._writer.start()

    def write(self, line: bytes) -> None:
        """Take one whole line."""
        lines = self._lines
        if not lines:
            self._schedule(_FLUSH_S, self.flush)
        lines.append(line)
        if len(lines) >= _LINES_MAX:
            self.flush()

    def flush(self) -> None:
        """Hand what is gathered to the writer."""
        lines, self._lines = self._lines, []
        if not lines:
            return
        try:
            self._queue.put_nowait(lines)
        except queue.Full:
            self.dropped_lines += len(lines)

    def close(self) -> None:
        """Flush and end the thread; blocks until it is done, or for 10 seconds where the disk hangs."""
        self.flush()
        with contextlib.suppress(queue.Full):  # the disk hangs: shutting down does not wait for it
            self._queue.put(None, timeout=_CLOSE_S)
        self._writer.join(timeout=_CLOSE_S)
        if not self._writer.is_alive():
            os.close(self._file)

    def _run(self) -> None:
        while (lines := self._queue.get()) is not None:
            try:
                _write_all(self._file, b"".join(lines))
            except OSError:
                # The disk is full or gone: usage records have their own guard, a log line is not worth a call.
                self.dropped_lines += len(lines)
            # If it cannot be put aside it grows on, and is tried again with the next lines.
            with contextlib.suppress(OSError):
                if os.fstat(self._file).st_size >= self._file_bytes_max:
                    self._rotate()

    def _rotate(self) -> None:
        """Put the file aside and begin a new one."""
        for number in range(FILES_KEPT - 1, 0, -1):
            older = self._aside(number)
            if older.exists():
                older.replace(self._aside(number + 1))
        self._path.replace(self._aside(1))
        begun = _open(self._path)
        os.close(self._file)
        self._file = begun

    def _aside(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        # Two statements: compiled, a call inside a slice's bounds is made twice (docs/compiled.md).
        written = os.write(file, view)
        view = view[written:]


def _open(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
