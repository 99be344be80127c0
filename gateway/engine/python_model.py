"""Owns a Python step's processes: which is free, what happens when one ends, and when the model may run.

Runner and place at once: batches block a thread of its own executor, so a stuck step holds up no other model. A
process that ends takes its one batch with it, is started anew after a growing wait, and the model is not ready while
none is up.
"""

import asyncio
import logging
import queue
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Final

from gateway.clock import Clock
from gateway.engine.interface import Interface
from gateway.engine.python_process import PythonProcess, StepEnded
from gateway.engine.runner import Executed
from gateway.engine.tensors import Array
from gateway.engine.threads import Done, Task
from gateway.engine.work import Feeds
from gateway.errors import Code, TollwayError
from model_repo.errors import RepositoryError

_LOG: Final = logging.getLogger("tollway.engine")
RESTART_FIRST_S: Final = 0.1
RESTART_MAX_S: Final = 10.0


class PythonModel:
    """The processes of one model version. `on_change` is called on the loop's thread when the number up changes."""

    def __init__(
        self,
        spawn: Callable[[], PythonProcess],
        interface: Interface,
        instances: int,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
    ) -> None:
        self._spawn = spawn
        self._interface = interface
        self._instances = instances
        self._loop = loop
        self._now = clock.monotonic_ns
        # Threads live as long as the model: a child dies with the thread that started it (PR_SET_PDEATHSIG).
        self._executor = ThreadPoolExecutor(instances, thread_name_prefix=f"python-{interface.model}")
        #: None after the end: a batch that comes too late to get a process must not wait for one.
        self._idle: queue.SimpleQueue[PythonProcess | None] = queue.SimpleQueue()
        self._processes: set[PythonProcess] = set()
        #: Filled by the executor's threads, so that an end does not have to wait for a start.
        self._starting: set[PythonProcess] = set()
        self._up = 0
        self._restarts = 0
        self._is_closed = False
        self.on_change: Callable[[], None] = _nothing

    @property
    def pids(self) -> list[int]:
        """Of the processes that are up."""
        return [process.pid for process in self._processes]

    @property
    def retry_after_ms(self) -> int:
        """How long until a restart has probably succeeded."""
        return int(self._restart_s() * 1000) + 500

    async def start(self) -> None:
        """Start all processes.

        Raises:
            RepositoryError: one does not start; `aclose` ends those that did.
        """
        starts = [self._loop.run_in_executor(self._executor, self._start_one) for _ in range(self._instances)]
        outcomes = await asyncio.gather(*starts, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, PythonProcess):
                self._add(outcome)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    def _start_one(self) -> PythonProcess:
        """Blocks. Raises RepositoryError."""
        process = self._spawn()
        self._starting.add(process)
        try:
            if self._is_closed:
                process.kill()
            process.start()
        finally:
            self._starting.discard(process)
        return process

    def _add(self, process: PythonProcess) -> None:
        self._processes.add(process)
        self._idle.put(process)
        self._up += 1

    def slots(self) -> int:
        return self._up

    def is_short(self, rows: int) -> bool:
        return False

    def executor(self) -> Executor:
        return self._executor

    def launch(self, task: Task, done: Done) -> None:
        future = self._executor.submit(task)
        future.add_done_callback(lambda ended: done(ended.exception() or ended.result()))

    def run(self, feeds: list[Feeds], rows: list[int]) -> Executed:
        """Blocks an executor's thread. The batcher starts no more batches than `slots`, so a process is idle."""
        begun_ns = self._now()
        process = self._idle.get()
        if process is None:
            closed = TollwayError(Code.MODEL_NOT_READY, f"model '{self._interface.model}' is being unloaded")
            return Executed([closed] * len(feeds), 0, 0, 0)
        try:
            results: list[list[Array] | TollwayError] = process.call(feeds, rows)
        except StepEnded as ended:
            # Told before this batch's end is, so that the loop never counts the dead process as a free slot.
            self._loop.call_soon_threadsafe(self._on_ended, process)
            fault = TollwayError(Code.BACKEND_FAULT, f"the process of model '{self._interface.model}' {ended.reason}")
            return Executed([fault] * len(feeds), 0, self._now() - begun_ns, 0)
        self._idle.put(process)
        self._restarts = 0
        return Executed(results, 0, self._now() - begun_ns, 0)

    def _on_ended(self, process: PythonProcess) -> None:
        if self._is_closed:
            return
        self._processes.discard(process)
        self._up -= 1
        self._schedule_restart()
        self.on_change()

    def _restart_s(self) -> float:
        return min(RESTART_FIRST_S * 2.0 ** min(self._restarts, 16), RESTART_MAX_S)

    def _schedule_restart(self) -> None:
        if not self._is_closed:
            self._loop.call_later(self._restart_s(), self._restart)
            self._restarts += 1

    def _restart(self) -> None:
        if not self._is_closed:
            self._executor.submit(self._restart_blocking)

    def _restart_blocking(self) -> None:
        try:
            process = self._start_one()
        except RepositoryError as error:
            _LOG.error("python_step_restart_failed model=%s reason=%s", self._interface.model, error)
            self._loop.call_soon_threadsafe(self._schedule_restart)
            return
        self._loop.call_soon_threadsafe(self._on_restarted, process)

    def _on_restarted(self, process: PythonProcess) -> None:
        if self._is_closed:
            process.close()
            return
        self._add(process)
        self.on_change()

    def close(self) -> None:
        """Kill what is left without waiting; `aclose` is the orderly way."""
        self._is_closed = True
        for process in (*self._processes, *self._starting):
            process.kill()

    async def aclose(self) -> None:
        """Stop idle processes in an orderly way and kill busy ones; whose batches should have been drained before."""
        self._is_closed = True
        busy, self._processes = self._processes, set()
        self._up = 0
        closing = []
        while not self._idle.empty():
            process = self._idle.get()
            if process is not None:
                busy.discard(process)
                closing.append(self._loop.run_in_executor(None, process.close))
        for _ in range(self._instances):
            self._idle.put(None)
        for process in (*busy, *self._starting):
            process.kill()
        # Only then the threads: a child dies with the thread that started it, and finalize would not run.
        await asyncio.gather(*closing)
        await self._loop.run_in_executor(None, self._executor.shutdown)


def _nothing() -> None:
    """Nobody listens yet."""
