"""Owns a Python model's instances: which is free, what happens when one ends, and when the model may run.

Dispatcher and place at once: a batch is sent to a free process and its end comes as an event, so no thread waits. A
process that ends takes its works with it, is started anew after a growing wait, and the model is not ready while none
is up. Frames arrive on the processes' reading threads, where tensors are read and checked; the rest is the loop's.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, Final

from gateway.clock import Clock
from gateway.engine.frames import SHARED_BYTES_MIN, Blob
from gateway.engine.interface import Interface
from gateway.engine.python_calls import Calls, FindModel
from gateway.engine.python_instance import Batch, Instance, Opened
from gateway.engine.python_process import PythonLimits, PythonProcess, type_name
from gateway.engine.python_wire import read_parts, read_response, write_request
from gateway.engine.runner import Executed
from gateway.engine.statistics import Statistics
from gateway.engine.tensors import Array
from gateway.engine.threads import Done, Task
from gateway.engine.work import STREAMING, Feeds, Work
from gateway.errors import Code, TollwayError
from model_repo.errors import RepositoryError

_LOG: Final = logging.getLogger("tollway.engine")
RESTART_FIRST_S: Final = 0.1
RESTART_MAX_S: Final = 10.0
#: Requests of a decoupled model that one process may have open.
STREAMS_MAX: Final = 1024
#: Batches up to this are written by the loop itself.
_HERE_BYTES: Final = SHARED_BYTES_MIN // 2

Spawn = Callable[["PythonModel", Executor], PythonProcess]


class PythonModel:
    """The processes of one model version. `on_change` is called on the loop's thread when the number up changes."""

    def __init__(
        self,
        spawn: Spawn,
        interface: Interface,
        instances: int,
        loop: asyncio.AbstractEventLoop,
        *,
        clock: Clock,
        statistics: Statistics,
        arguments: dict[str, Any],
        find_model: FindModel,
        limits: PythonLimits,
        is_decoupled: bool = False,
    ) -> None:
        """`arguments` are those of `PythonProcess.start`."""
        self._spawn = spawn
        self._interface = interface
        self._instances_wanted = instances
        self._loop = loop
        self._clock = clock
        self._statistics = statistics
        self._arguments = arguments
        self._find_model = find_model
        self._limits = limits
        self._is_decoupled = is_decoupled
        self._now = clock.monotonic_ns
        # Threads live as long as the model: a child dies with the thread that started it (PR_SET_PDEATHSIG).
        self._executor = ThreadPoolExecutor(instances + 1, thread_name_prefix=f"python-{interface.model}")
        self._instances: dict[PythonProcess, Instance] = {}
        self._idle: list[Instance] = []
        #: Filled by the executor's threads, so that an end does not have to wait for a start.
        self._starting: set[PythonProcess] = set()
        self._next_number = 1
        self._restarts = 0
        self._is_closed = False
        self.on_change: Callable[[], None] = _nothing

    @property
    def pids(self) -> list[int]:
        """Of the processes that are up."""
        return [instance.process.pid for instance in self._instances.values() if instance.is_up]

    @property
    def open_requests(self) -> int:
        return sum(len(instance.opened) for instance in self._instances.values())

    @property
    def retry_after_ms(self) -> int:
        """How long until a restart has probably succeeded."""
        return int(self._restart_s() * 1000) + 500

    async def start(self) -> None:
        """Start all processes.

        Raises:
            RepositoryError: one does not start; `aclose` ends those that did.
        """
        starts = [self._loop.run_in_executor(self._executor, self._start_one) for _ in range(self._instances_wanted)]
        outcomes = await asyncio.gather(*starts, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    def _start_one(self) -> PythonProcess:
        """Blocks; the instance is added on the loop before this returns. Raises RepositoryError."""
        process = self._spawn(self, self._executor)
        self._starting.add(process)
        self._loop.call_soon_threadsafe(self._add, process)
        try:
            if self._is_closed:
                process.kill()
            process.start(self._arguments)
        except BaseException:
            self._loop.call_soon_threadsafe(self._instances.pop, process, None)
            raise
        finally:
            self._starting.discard(process)
        self._loop.call_soon_threadsafe(self._on_started, process)
        return process

    def _add(self, process: PythonProcess) -> None:
        """Known from now on, since a model may call others while it initialises; idle once it has started."""
        model = self._interface.model
        call_ns_max = int(self._limits.call_s * 1e9)
        calls = Calls(self._find_model, lambda head, blob: self._reply(process, head, blob), self._clock, call_ns_max)
        self._instances[process] = Instance(
            process, calls, self._statistics, self._clock, model=model, call_s=self._limits.call_s
        )

    def _reply(self, process: PythonProcess, head: dict[str, Any], blob: Blob) -> None:
        instance = self._instances.get(process)
        if instance is not None:
            instance.reply(head, blob)

    def _on_started(self, process: PythonProcess) -> None:
        instance = self._instances.get(process)
        if instance is None:
            return
        if self._is_closed:
            self._instances.pop(process)
            self._loop.run_in_executor(None, process.close)
            return
        instance.is_up = True
        self._idle.append(instance)
        self.on_change()

    # -- Place ------------------------------------------------------------------------------------------------------

    def slots(self) -> int:
        """Processes that are idle or busy with a batch."""
        return len(self._idle) + sum(instance.batch is not None for instance in self._instances.values())

    def is_short(self, rows: int) -> bool:
        return False

    def executor(self) -> Executor:
        return self._executor

    def launch(self, task: Task, done: Done) -> None:
        """Warm-ups alone come this way; batches go by `begin`."""
        future = self._executor.submit(task)
        future.add_done_callback(lambda ended: done(ended.exception() or ended.result()))

    # -- Dispatcher -------------------------------------------------------------------------------------------------

    def begin(self, batch: list[Work], done: Done) -> None:
        """See `Dispatcher`. The batcher begins no more batches than there are `slots`, so a process is idle."""
        if not self._idle:
            message = f"model '{self._interface.model}' has no process that is up"
            refused = TollwayError(Code.MODEL_NOT_READY, message, retry_after_ms=self.retry_after_ms)
            done(Executed([refused] * len(batch), 0, 0, 0))
            return
        # The one that was freed last: its memory is warm.
        instance = self._idle.pop()
        if len(instance.opened) + len(batch) > STREAMS_MAX:
            self._idle.insert(0, instance)
            message = f"more than {STREAMS_MAX} requests are open in a process of '{self._interface.model}'"
            busy = TollwayError(Code.OVERLOADED, message, retry_after_ms=1000)
            done(Executed([busy] * len(batch), 0, 0, 0))
            return
        numbers = list(range(self._next_number, self._next_number + len(batch)))
        self._next_number += len(batch)
        own = instance.batch = Batch(batch, numbers, done, self._now())
        for number, work in zip(numbers, batch, strict=True):
            instance.open(number, work, self._loop, is_decoupled=self._is_decoupled)
        if sum(work.nbytes for work in batch) <= _HERE_BYTES:
            self._send(instance, own)
        else:
            self._executor.submit(self._send, instance, own)

    def _send(self, instance: Instance, batch: Batch) -> None:
        """On any thread."""
        blob = Blob()
        pairs = zip(batch.works, batch.numbers, strict=True)
        requests = [write_request(work, number, self._interface, blob) for work, number in pairs]
        head = {"do": "execute", "batch": batch.numbers[0], "requests": requests}
        fault = TollwayError(
            Code.INVALID_TENSOR, f"the batch is too large for the process of '{self._interface.model}'"
        )
        refused = Executed([fault] * len(batch.works), 0, 0, 0)
        instance.process.post(
            head, blob, lambda: self._loop.call_soon_threadsafe(self._on_done, instance, batch, refused)
        )

    def cancel(self, work: Work) -> None:
        """See `Dispatcher`."""
        opened = work.progress
        if isinstance(opened, Opened):
            opened.instance.cancel(opened)

    def _on_done(self, instance: Instance, batch: Batch, executed: Executed) -> None:
        if instance.batch is not batch:
            return
        self._restarts = 0
        if instance.process in self._instances and not self._is_closed:
            self._idle.append(instance)
        instance.end_batch(executed)

    # -- Events: on a process's reading thread ------------------------------------------------------------------------

    def on_frame(self, process: PythonProcess, head: dict[str, Any], blob: memoryview) -> None:
        say = head["say"]
        later = self._loop.call_soon_threadsafe
        instance = self._instances.get(process)
        if say == "call":
            # Looked up on the loop: a model may call others before its start is known there.
            later(self._on_call, process, head, blob)
        elif instance is None:
            return
        elif say == "done":
            batch = instance.batch
            if batch is None or batch.numbers[0] != head["batch"]:
                raise ValueError("a batch that was not asked for")
            executed = self._executed(process, batch, head, blob)
            if executed is not None:
                later(self._on_done, instance, batch, executed)
        elif say == "parts":
            later(instance.take_parts, read_parts(head["parts"], blob, self._interface))
        elif say == "drop":
            later(instance.calls.drop, int(head["call"]))
        else:
            raise ValueError(f"unknown frame '{say}'")

    def _on_call(self, process: PythonProcess, head: dict[str, Any], blob: memoryview) -> None:
        instance = self._instances.get(process)
        if instance is not None:
            instance.hear()
            instance.calls.begin(head, blob)

    def _executed(
        self, process: PythonProcess, batch: Batch, head: dict[str, Any], blob: memoryview
    ) -> Executed | None:
        infer_ns = self._now() - batch.begun_ns
        count = len(batch.works)
        results: list[list[Array] | TollwayError]
        if not head["ok"]:
            _LOG.error("python_model_raised model=%s detail=%s", self._interface.model, head.get("detail"))
            if head.get("type") == "MemoryError":
                process.kill("ran out of memory")
                return None
            fault = TollwayError(Code.BACKEND_FAULT, f"model '{self._interface.model}' raised {type_name(head)}")
            # A decoupled model's requests end one by one.
            results = [STREAMING] * count if self._is_decoupled else [fault] * count
        elif self._is_decoupled:
            results = [STREAMING] * count
        else:
            results = [
                read_response(response, blob, self._interface, work.rows, work.context.requested)
                for response, work in zip(head["responses"], batch.works, strict=True)
            ]
        return Executed(results, 0, infer_ns, 0)

    def on_end(self, process: PythonProcess, reason: str) -> None:
        self._loop.call_soon_threadsafe(self._on_ended, process, reason)

    # -- Life -------------------------------------------------------------------------------------------------------

    def _on_ended(self, process: PythonProcess, reason: str) -> None:
        instance = self._instances.pop(process, None)
        if instance is None:
            return
        if instance in self._idle:
            self._idle.remove(instance)
        instance.end(reason)
        self._loop.run_in_executor(None, process.close)
        if not self._is_closed:
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
            self._start_one()
        except RepositoryError as error:
            _LOG.error("python_model_restart_failed model=%s reason=%s", self._interface.model, error)
            self._loop.call_soon_threadsafe(self._schedule_restart)

    def close(self) -> None:
        """Kill what is left without waiting; `aclose` is the orderly way."""
        self._is_closed = True
        for process in (*self._instances, *self._starting):
            process.kill()

    async def aclose(self) -> None:
        """Stop idle processes in an orderly way and kill busy ones, whose batches should have been drained before."""
        self._is_closed = True
        instances = list(self._instances.values())
        self._instances, self._idle = {}, []
        for process in list(self._starting):
            process.kill()
        closing = []
        for instance in instances:
            is_idle = instance.batch is None and not instance.opened
            instance.end("was unloaded")
            if instance.process not in self._starting:
                closing.append(asyncio.to_thread(instance.process.close, is_orderly=is_idle))
        # Only then the threads: a child dies with the thread that started it, and finalize would not run.
        await asyncio.gather(*closing)
        await asyncio.to_thread(self._executor.shutdown)

    # -- Warm-up: `Runner` --------------------------------------------------------------------------------------------

    def run(self, feeds: list[Feeds], rows: list[int]) -> Executed:
        """Run a batch and wait for its end. Blocks a thread that is not the loop's."""
        begun_ns = self._now()
        results: dict[int, list[Array] | TollwayError] = {}
        ended = threading.Semaphore(0)

        def tell(work: Work, result: list[Array] | TollwayError) -> None:
            results[work.owner] = result
            ended.release()

        works = []
        for position, (own, count) in enumerate(zip(feeds, rows, strict=True)):
            on_part = (lambda work, _part: work.taken(1)) if self._is_decoupled else None
            work = Work(own, tell, tell, rows=count, on_part=on_part)
            work.owner = position
            works.append(work)

        def done(outcome: Executed | BaseException) -> None:
            assert isinstance(outcome, Executed)
            for work, result in zip(works, outcome.results, strict=True):
                if result is not STREAMING:
                    work.is_done = True
                    tell(work, result)

        self._loop.call_soon_threadsafe(self.begin, works, done)
        for _ in works:
            ended.acquire()
        return Executed([results[position] for position in range(len(works))], 0, self._now() - begun_ns, 0)


def _nothing() -> None:
    """Nobody listens yet."""
