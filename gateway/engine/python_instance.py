"""Owns what one Python model process is doing: its batch, its open requests, its calls, and when it counts as stuck.

Lives on the loop's thread; a process that ends takes its works with it.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from gateway.clock import Clock
from gateway.engine.frames import Blob
from gateway.engine.python_calls import Calls
from gateway.engine.python_process import PythonProcess
from gateway.engine.python_wire import Part
from gateway.engine.runner import Executed
from gateway.engine.statistics import Statistics
from gateway.engine.tensors import Array
from gateway.engine.threads import Done
from gateway.engine.work import STREAMING, Work
from gateway.errors import Code, TollwayError

#: Responses of one request that may be on their way to a caller who is slow; then the model's `send` waits.
WINDOW: Final = 64
_CREDIT_STEP: Final = WINDOW // 2


class Opened:
    """One request in a process. `unsent`: responses that the model may still send without waiting."""

    __slots__ = ("begun_ns", "credit", "deadline", "heard_ns", "instance", "number", "owed", "work")

    def __init__(self, instance: "Instance", number: int, work: Work, begun_ns: int) -> None:
        self.instance = instance
        self.number = number
        self.work = work
        self.begun_ns = self.heard_ns = begun_ns
        self.credit = WINDOW
        #: Taken on by the caller, not yet told to the process.
        self.owed = 0
        self.deadline: asyncio.TimerHandle | None = None

    def taken(self, count: int) -> None:
        """See `Work.taken`."""
        self.owed += count
        if self.owed >= _CREDIT_STEP:
            self.instance.process.post({"do": "credit", "n": self.number, "count": self.owed})
            self.credit += self.owed
            self.owed = 0
            self.heard_ns = self.instance.now()


class Batch:
    """What a process executes now."""

    __slots__ = ("begun_ns", "done", "numbers", "works")

    def __init__(self, works: list[Work], numbers: list[int], done: Done, begun_ns: int) -> None:
        self.works = works
        self.numbers = numbers
        self.done = done
        self.begun_ns = begun_ns


class Instance:
    """One process that is up."""

    def __init__(
        self, process: PythonProcess, calls: Calls, statistics: Statistics, clock: Clock, *, model: str, call_s: float
    ) -> None:
        self.process = process
        self.calls = calls
        self.is_up = False
        self.batch: Batch | None = None
        self.opened: dict[int, Opened] = {}
        self.now = clock.monotonic_ns
        self._clock = clock
        self._statistics = statistics
        self._model = model
        self._call_s = call_s
        self._heard_ns = 0
        self._watch: asyncio.TimerHandle | None = None

    def hear(self) -> None:
        """The process has shown that it lives."""
        self._heard_ns = self.now()

    def open(self, number: int, work: Work, loop: asyncio.AbstractEventLoop, *, is_decoupled: bool) -> None:
        """A request goes to the process."""
        now_ns = self.now()
        opened = self.opened[number] = Opened(self, number, work, now_ns)
        work.progress = opened
        if is_decoupled and work.deadline_ns:
            delay_s = max(work.deadline_ns - now_ns, 0) / 1e9
            opened.deadline = loop.call_later(delay_s, self._on_deadline, number)
        self.watch(loop)

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Look now and then while something is under way."""
        if self._watch is None:
            self._watch = loop.call_later(self._call_s, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._watch = None
        now_ns = self.now()
        bound_ns = int(self._call_s * 1e9)
        batch = self.batch
        waits_for_caller = any(opened.credit <= 0 for opened in self.opened.values())
        wait_s = self._call_s
        if batch is not None and not waits_for_caller:
            silent_ns = now_ns - max(batch.begun_ns, self._heard_ns)
            if silent_ns >= bound_ns:
                self.process.kill(f"did not answer within {self._call_s:g} s")
                return
            wait_s = min(wait_s, (bound_ns - silent_ns) / 1e9)
        for opened in [one for one in self.opened.values() if one.work.on_part is not None and one.credit > 0]:
            silent_ns = now_ns - opened.heard_ns
            if silent_ns >= bound_ns and batch is None:
                message = f"model '{self._model}' gave no response within {self._call_s:g} s"
                self.fail(opened.number, TollwayError(Code.BACKEND_FAULT, message))
            else:
                wait_s = min(wait_s, max(bound_ns - silent_ns, 0) / 1e9)
        if self.batch is not None or self.opened:
            self._watch = loop.call_later(max(wait_s, 0.001), self._look, loop)

    def take_parts(self, parts: Sequence[Part]) -> None:
        """Responses that came in one frame, in order."""
        for number, part, is_final in parts:
            self.take_part(number, part, is_final=is_final)

    def take_part(self, number: int, part: list[Array | None] | TollwayError | None, *, is_final: bool) -> None:
        """A response of a decoupled model, its end, or both."""
        self.hear()
        opened = self.opened.get(number)
        if opened is None:
            return
        opened.heard_ns = self._heard_ns
        work = opened.work
        if part is not None and not work.is_done:
            opened.credit -= 1
            assert work.on_part is not None
            work.on_part(work, part)
        if is_final:
            self._finish(opened)

    def _finish(self, opened: Opened) -> None:
        self._forget(opened)
        work = opened.work
        now_ns = self.now()
        work.compute_ns = now_ns - opened.begun_ns
        if not work.is_done:
            self._statistics.on_success(now_ns - work.enqueued_ns, work.queue_ns)
            self._statistics.last_wall_ms = self._clock.wall_ns() // 1_000_000
            work.resolve([])

    def end_batch(self, executed: Executed) -> None:
        """The batch has been executed; requests of a decoupled model stay open."""
        batch, self.batch = self.batch, None
        assert batch is not None
        if executed.results[0] is not STREAMING:
            for number in batch.numbers:
                opened = self.opened.get(number)
                if opened is not None:
                    self._forget(opened)
        batch.done(executed)

    def cancel(self, opened: Opened) -> None:
        """Nobody waits for the request any more; the model may ask whether that is so."""
        if self.opened.get(opened.number) is opened:
            self._forget(opened)
            self.process.post({"do": "cancel", "n": opened.number})

    def fail(self, number: int, error: TollwayError) -> None:
        """End a decoupled request with a fault of ours."""
        opened = self.opened.get(number)
        if opened is None:
            return
        self.cancel(opened)
        work = opened.work
        if not work.is_done:
            work.compute_ns = self.now() - opened.begun_ns
            self._statistics.on_fail(self.now() - work.enqueued_ns)
            work.fail(error)

    def _on_deadline(self, number: int) -> None:
        self.fail(number, TollwayError(Code.DEADLINE_EXCEEDED, f"out of time at model '{self._model}'"))

    def _forget(self, opened: Opened) -> None:
        self.opened.pop(opened.number, None)
        if opened.deadline is not None:
            opened.deadline.cancel()

    def end(self, reason: str) -> None:
        """The process is gone: everything that it had fails."""
        fault = TollwayError(Code.BACKEND_FAULT, f"the process of model '{self._model}' {reason}")
        self.calls.close()
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        batch = self.batch
        streams = [opened.number for opened in self.opened.values() if opened.work.on_part is not None]
        for number in streams:
            self.fail(number, fault)
        if batch is not None:
            self.end_batch(Executed([fault] * len(batch.works), 0, self.now() - batch.begun_ns, 0))

    def reply(self, head: dict[str, Any], blob: Blob) -> None:
        """Post an answer to a call of the model; one too large becomes a fault."""
        self.hear()
        refused = {"do": "reply", "call": head["call"], "error": "the answer is too large", "code": 1, "final": True}
        self.process.post(head, blob, lambda: self.process.post(refused))
