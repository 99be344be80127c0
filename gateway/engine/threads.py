"""HOT PATH. Owns the threads that run batches too long for the loop: a queue, and as few hand-overs as can be.

A `ThreadPoolExecutor` costs two semaphores, a condition and a future for each batch; all of it lies in a cache that the
model has just emptied.
"""

import queue
import threading
from collections.abc import Callable
from typing import Final

from gateway.engine.runner import Executed

#: What a batch came to: its result, or what was raised (a defect of ours).
Outcome = Executed | BaseException
Task = Callable[[], Executed]
Done = Callable[[Outcome], object]

_STOP: Final = None


class BatchThreads:
    """`count` threads, started by `start`."""

    def __init__(self, count: int) -> None:
        self._tasks: queue.SimpleQueue[tuple[Task, Done] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"engine-batch-{number}", daemon=True) for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def run(self, task: Task, done: Done) -> None:
        """Run `task` on a thread when one is free, and call `done` there with what came of it."""
        self._tasks.put((task, done))

    def _work(self) -> None:
        get = self._tasks.get
        while (item := get()) is not None:
            task, done = item
            try:
                outcome: Outcome = task()
            except Exception as error:  # noqa: BLE001 - reported on the loop, where the works get their answer
                outcome = error
            done(outcome)
            # What a batch held goes now, not when the next one comes.
            del item, task, done, outcome

    def close(self) -> None:
        """End the threads after what is queued, and wait for them. Idempotent."""
        for _ in self._threads:
            self._tasks.put(_STOP)
        for thread in self._threads:
            thread.join()
        self._threads = []
