"""Owns the spare segment: made in the background before it is needed, so that the flusher never allocates."""

import queue
import threading
from collections.abc import Callable
from pathlib import Path

from billing.usagelog.disk import Disk
from billing.usagelog.segment import segment_name


class Preallocator:
    """Makes the ordered segments one at a time; tries again, for ever, on a full or failing disk.

    `on_spare(index)` and `on_trouble(error or None)` are called on this thread; None says that an earlier trouble is
    over. A failed attempt leaves no file, so an error of its fsync is not retried on unknown pages (MONEY.md R5).
    """

    def __init__(
        self,
        disk: Disk,
        folder: Path,
        segment_bytes: int,
        *,
        retry_s: float,
        on_spare: Callable[[int], object],
        on_trouble: Callable[[OSError | None], object],
    ) -> None:
        self._disk = disk
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._retry_s = retry_s
        self._on_spare = on_spare
        self._on_trouble = on_trouble
        self._orders: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._is_troubled = False

    def order(self, index: int) -> None:
        """Ask for segment `index`. Any thread; does not block."""
        self._orders.put(index)

    def stop(self) -> None:
        """End `run` at the next chance. Any thread; does not block."""
        self._stopped.set()
        self._orders.put(None)

    def run(self) -> None:
        """The thread: until `stop`."""
        while (index := self._orders.get()) is not None:
            while not self.try_make(index):
                if self._stopped.wait(self._retry_s):
                    return

    def next_order(self) -> int | None:
        """The next order, for simulations that step instead of running a thread."""
        return None if self._orders.empty() else self._orders.get()

    def try_make(self, index: int) -> bool:
        """One attempt to make segment `index`."""
        try:
            self._disk.preallocate(self._folder / segment_name(index), self._segment_bytes)
        except OSError as error:
            self._is_troubled = True
            self._on_trouble(error)
            return False
        if self._is_troubled:
            self._is_troubled = False
            self._on_trouble(None)
        self._on_spare(index)
        return True
