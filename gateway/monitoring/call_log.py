"""HOT PATH. Owns the call log: one JSON line per call, written by a thread so that a slow disk never stops a call.

Lines (`call_line`) are gathered and handed over 4 times a second; when the writer cannot keep up, lines are dropped and
counted, never calls.
"""

import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

_FLUSH_S: Final = 0.25
_BATCHES_MAX: Final = 64
_LINES_MAX: Final = 4096


class CallLog:
    """Appends to one file per worker (`calls-w0.jsonl`). `schedule(delay_s, callback)` is the loop's call_later."""

    __slots__ = ("_file", "_lines", "_queue", "_schedule", "_writer", "dropped_lines")

    def __init__(self, path: Path, schedule: Callable[[float, Callable[[], None]], object]) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
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
        """Flush and end the thread; blocks until it is done."""
        self.flush()
        self._queue.put(None)
        self._writer.join(timeout=5)
        os.close(self._file)

    def _run(self) -> None:
        while (lines := self._queue.get()) is not None:
            try:
                os.write(self._file, b"".join(lines))
            except OSError:
                # The disk is full or gone: usage records have their own guard, a log line is not worth a call.
                self.dropped_lines += len(lines)
