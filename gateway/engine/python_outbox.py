"""Owns what a Python model's process sends: frame by frame, small responses of decoupled models gathered.

Runs in the child only, on the standard library.

A response that comes long enough after the last frame leaves at once. Those that follow within the time to gather wait
for the rest of it and share a frame: one write, one read, one turn of the engine's loop for all instead of each.
The more requests are open, the longer that time may be, for each of them is answered the more rarely. No response waits
longer, whatever else happens: a thread sees to that, and sleeps while none waits.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from gateway.engine.frames import Blob

#: The time to gather, for up to 16 open requests: far below what a reader of text notices, and many times what a frame
#: costs. Above, what each of them adds, and the most.
GATHER_S: Final = 0.002
GATHER_EACH_S: Final = 0.000125
GATHER_S_MAX: Final = 0.008
#: Responses with more bytes leave at once and alone: copying them would cost more than a frame.
SMALL_BYTES_MAX: Final = 4096
#: Of one frame.
PARTS_MAX: Final = 256


class Gone(Exception):
    """The engine has hung up: whatever waits for it ends."""


#: Writes a frame; may block. Raises Gone.
Write = Callable[[dict[str, Any], Blob | None], None]
#: `[number of the request, response or None, is_final]`.
Part = list[Any]


def gather_s_of(open_count: int) -> float:
    """The time to gather while so many requests are open."""
    return min(max(GATHER_S, open_count * GATHER_EACH_S), GATHER_S_MAX)


class Outbox:
    """Thread-safe. What `write` raises is raised by the call that wrote; `Gone` ends the own thread."""

    def __init__(self, write: Write, now_s: Callable[[], float] = time.monotonic, gather_s: float = GATHER_S) -> None:
        self._write = write
        self._now = now_s
        #: See `gather_s_of`; may be set at any time, and counts from the next response on.
        self.gather_s = gather_s
        self._parts: list[Part] = []
        self._blob = Blob()
        self._written_s = -gather_s
        # Held while a frame is written, so that frames leave whole and in order. Reentrant: `leave` may be called by
        # the garbage collector in the middle of anything below.
        self._changed = threading.Condition(threading.RLock())
        self._thread: threading.Thread | None = None
        self._is_asleep = False

    def send(self, head: dict[str, Any], blob: Blob | None = None) -> None:
        """Write a frame, behind all responses that wait."""
        with self._changed:
            self._flush()
            self._write(head, blob)

    def add(self, part: Part, blob: Blob) -> None:
        """Take a response; the memory that `blob` shows is free again on return."""
        with self._changed:
            if blob.size > SMALL_BYTES_MAX:
                self._flush()
                self._send([part], blob)
                return
            _rebase(part, self._blob.add(b"".join(blob.parts)) if blob.size else 0)
            self._parts.append(part)
            if self._now() - self._written_s >= self.gather_s or len(self._parts) >= PARTS_MAX:
                self._flush()
            elif len(self._parts) == 1:
                self._see_to_it()

    def leave(self, part: Part) -> None:
        """Take a response without tensors, and never write it here: for destructors."""
        with self._changed:
            self._parts.append(part)
            self._see_to_it()

    def _flush(self) -> None:
        """Write what waits."""
        if self._parts:
            parts, self._parts = self._parts, []
            blob, self._blob = self._blob, Blob()
            self._send(parts, blob)

    def _send(self, parts: list[Part], blob: Blob) -> None:
        self._write({"say": "parts", "parts": parts}, blob)
        self._written_s = self._now()

    def _see_to_it(self) -> None:
        """Wake the thread if it sleeps, or start it with the first response that ever waits. The lock is held."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="engine-outbox", daemon=True)
            self._thread.start()
        elif self._is_asleep:
            self._is_asleep = False
            self._changed.notify()

    def _watch(self) -> None:
        """While responses flow, whoever brings one writes those that are due; what is left over is written here."""
        with self._changed, contextlib.suppress(Gone):
            while True:
                while not self._parts:
                    self._is_asleep = True
                    self._changed.wait()
                left_s = self._written_s + 2 * self.gather_s - self._now()
                if left_s > 0:
                    self._changed.wait(left_s)
                else:
                    self._flush()


def _rebase(part: Part, begin: int) -> None:
    """Its tensors lie `begin` bytes further on, behind those of others."""
    response = part[1]
    if begin and response is not None:
        for tensor in response.get("outputs", ()):
            tensor[3] += begin
