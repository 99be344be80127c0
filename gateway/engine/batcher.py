"""HOT PATH. Owns the works of one model version between arrival and answer: its queue, its slots, its timer.

What leaves when is decided by `gateway.engine.plan`; this shell only acts on it. Woken by events: a work arrives or
leaves, a slot becomes free, a wait or a deadline ends. Every work is resolved exactly once, or withdrawn.
"""

import asyncio
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from typing import Final, Protocol

from gateway.clock import Clock
from gateway.engine.fairness import Turns, find_room, place_of
from gateway.engine.plan import Dispatch, PlanConfig, WaitUntil, plan
from gateway.engine.queue_limits import Levels, QueueLimits, clamp, end_of_wait, rank_of
from gateway.engine.runner import Executed, Runner
from gateway.engine.statistics import Statistics
from gateway.engine.tensors import Array
from gateway.engine.threads import Done, Outcome, Task
from gateway.engine.work import STREAMING, Work, shares
from gateway.errors import Code, TollwayError

_NOBODY: Final[list[Work]] = []


class Place(Protocol):
    """Where batches run."""

    def slots(self) -> int:
        """How many batches may run at once now; 0 while nothing can run."""

    def is_short(self, rows: int) -> bool:
        """Whether a batch of `rows` may run on the loop's thread."""

    def launch(self, task: Task, done: Done) -> None:
        """Run another one on a thread; `done` is called there with its outcome."""


class Dispatcher(Protocol):
    """Who runs batches by itself instead of blocking a thread of the place, and is told of works that are given up."""

    def begin(self, batch: list[Work], done: Done) -> None:
        """Start a batch; `done` is called with its outcome, on any thread."""

    def cancel(self, work: Work) -> None:
        """Nobody waits for this work of a begun batch any more."""


class Batcher:
    """The queue of one model version. All methods belong to the loop's thread."""

    def __init__(
        self,
        *,
        model: str,
        config: PlanConfig,
        limits: QueueLimits,
        runner: Runner,
        place: Place,
        statistics: Statistics,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        dispatcher: Dispatcher | None = None,
        levels: Levels | None = None,
    ) -> None:
        self._model = model
        self._dispatcher = dispatcher
        self._config = config
        self._limits = limits
        self._levels = levels
        self._runner = runner
        self._place = place
        self._statistics = statistics
        self._loop = loop
        self._clock = clock
        self._now = clock.monotonic_ns
        #: In the order in which works shall leave: by rank, then in turns of tenants, then by age.
        self._queue: list[Work] = []
        self._turns = Turns()
        self._nbytes = 0
        self._running: list[list[Work]] = []
        self._refusal: Callable[[], TollwayError] | None = None
        self._is_pump_due = False
        self._is_pumping = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns = 0
        #: Not later than any deadline in the queue or under way; 0: there is none. Worked out anew only when reached,
        #: so that a queue of thousands is not searched for each work.
        self._deadline_ns = 0

    @property
    def queued(self) -> int:
        return len(self._queue)

    @property
    def running(self) -> int:
        """Batches under way, those off the loop included."""
        return len(self._running)

    def submit(self, work: Work) -> None:
        """Take a work; its fault (queue full, not ready, out of time) arrives by `work.fail`."""
        now_ns = work.enqueued_ns = self._now()
        if self._refusal is not None:
            self._fail(work, self._refusal())
            return
        limits = self._limits
        if self._levels is not None:
            level = self._levels.of(work)
            work.rank = 2 * level
            limits = self._levels.limits.get(level, limits)
        if work.timeout_ns or limits.timeout_ns:
            clamp(work, limits, now_ns)
        if not self._queue and not self._config.is_batching and self._place.is_short(work.rows):
            self._run_here([work], now_ns)
            return
        is_tight = len(self._queue) >= limits.requests_max or self._nbytes + work.nbytes > self._limits.nbytes_max
        pushed_out = self._make_room(work, limits) if is_tight else _NOBODY
        if pushed_out is None:
            self._fail(work, self._full())
            return
        self._enqueue(work)
        self._nbytes += work.nbytes
        end_ns = end_of_wait(work)
        if end_ns:
            self._deadline_ns = min(self._deadline_ns or end_ns, end_ns)
        if self._config.is_batching:
            self._pump_soon()
        else:
            self._pump()
        # Last, as who hears of it may ask for something here.
        for other in pushed_out:
            self._fail(other, self._full())

    def cancel(self, work: Work) -> None:
        """Withdraw a work: it leaves the queue at once, or its result is dropped."""
        if work.is_done:
            return
        work.withdraw()
        if work in self._queue:
            self._withdraw(work)
            # A group may have lost what made it full; the next look decides with what is left.
            self._pump_soon()
        elif self._dispatcher is not None:
            self._dispatcher.cancel(work)

    def close(self, refusal: Callable[[], TollwayError]) -> None:
        """Refuse new works and those queued with `refusal()`; works that run finish."""
        self._refusal = refusal
        queue, self._queue = self._queue, []
        self._nbytes = 0
        self._turns = Turns()
        for work in queue:
            self._fail(work, refusal())
        self._disarm()

    def open(self) -> None:
        """Take works again after `close`."""
        self._refusal = None

    def wake(self) -> None:
        """The place has changed: slots may have become free."""
        self._pump()

    def _enqueue(self, work: Work) -> None:
        """Behind all of its rank and turn."""
        self._turns.join(work)
        queue = self._queue
        last = queue[-1] if queue else work
        if last.rank < work.rank or (last.rank == work.rank and last.turn <= work.turn):
            queue.append(work)
        else:
            queue.insert(bisect_right(queue, place_of(work), key=place_of), work)

    def _withdraw(self, work: Work) -> None:
        """Out of the queue, unserved."""
        self._queue.remove(work)
        self._nbytes -= work.nbytes
        self._turns.leave(work, is_served=False)

    def _full(self) -> TollwayError:
        return TollwayError(Code.QUEUE_FULL, f"the queue of model '{self._model}' is full")

    def _make_room(self, work: Work, limits: QueueLimits) -> list[Work] | None:
        """Works that were pushed out for `work`, else one tenant's flood would refuse everybody; None: no room."""
        nbytes_max = self._limits.nbytes_max
        leaving = find_room(
            self._turns,
            self._queue,
            self._level_of(work),
            work,
            requests_max=limits.requests_max,
            nbytes_max=nbytes_max,
            over=self._nbytes + work.nbytes - nbytes_max,
        )
        for one in leaving or ():
            self._withdraw(one)
        return leaving

    def _level_of(self, work: Work) -> range:
        """Where the queue holds works of the same level; the rank after it is of its delayed ones."""
        queue = self._queue
        if self._levels is None:
            return range(len(queue))
        begin = bisect_left(queue, work.rank, key=rank_of)
        return range(begin, bisect_right(queue, work.rank + 1, key=rank_of))

    def _pump_soon(self) -> None:
        """Look after this turn of the loop, so that works that arrive in one turn share a batch."""
        if not self._is_pump_due:
            self._is_pump_due = True
            self._loop.call_soon(self._pump_due)

    def _pump_due(self) -> None:
        self._is_pump_due = False
        self._pump()

    def _pump(self) -> None:
        # Callbacks of a work that ran here may submit or cancel others: they find the loop below still running.
        if self._is_pumping:
            return
        self._is_pumping = True
        try:
            wake_ns = self._dispatch()
        finally:
            self._is_pumping = False
        deadline_ns = self._deadline_ns if self._queue or self._running else 0
        self._arm(min(wake_ns or deadline_ns, deadline_ns or wake_ns))

    def _dispatch(self) -> int:
        """Start all that can start; returns the instant of the next look, 0 if only an event can change anything."""
        while True:
            now_ns = self._now()
            if 0 < self._deadline_ns <= now_ns:
                self._expire(now_ns)
            if len(self._running) >= self._place.slots():
                return 0
            decision = plan(self._queue, now_ns, self._config, is_by_age=self._turns.waiting < 2)
            if isinstance(decision, Dispatch):
                self._start(self._take(decision.positions), now_ns)
            elif isinstance(decision, WaitUntil):
                return decision.at_ns
            else:
                return 0

    def _take(self, positions: tuple[int, ...]) -> list[Work]:
        queue = self._queue
        batch = [queue[position] for position in positions]
        if positions[-1] == len(positions) - 1:
            del queue[: len(positions)]
        else:
            for position in reversed(positions):
                del queue[position]
        for work in batch:
            self._nbytes -= work.nbytes
        self._turns.serve(batch)
        return batch

    def _start(self, batch: list[Work], now_ns: int) -> None:
        rows = sum(work.rows for work in batch)
        if self._place.is_short(rows):
            self._run_here(batch, now_ns)
            return
        for work in batch:
            work.queue_ns = now_ns - work.enqueued_ns
        self._running.append(batch)
        if self._dispatcher is not None:
            self._dispatcher.begin(batch, lambda outcome: self._loop.call_soon_threadsafe(self._on_ran, batch, outcome))
            return
        feeds = [work.feeds for work in batch]
        counts = [work.rows for work in batch]
        self._place.launch(
            lambda: self._runner.run(feeds, counts),
            lambda outcome: self._loop.call_soon_threadsafe(self._on_ran, batch, outcome),
        )

    def _run_here(self, batch: list[Work], now_ns: int) -> None:
        if len(batch) == 1:
            work = batch[0]
            work.queue_ns = now_ns - work.enqueued_ns
            self._settle_one(work, self._runner.run([work.feeds], [work.rows]))
            return
        for work in batch:
            work.queue_ns = now_ns - work.enqueued_ns
        self._settle(batch, self._runner.run([work.feeds for work in batch], [work.rows for work in batch]))

    def _on_ran(self, batch: list[Work], outcome: Outcome) -> None:
        self._running.remove(batch)
        if self._config.is_batching and len(self._queue) < self._config.rows_max:
            # What has arrived meanwhile is read first, and shares the next batch.
            self._pump_soon()
        else:
            self._pump()
        if isinstance(outcome, Executed):
            self._settle(batch, outcome)
            return
        # A defect of ours: the works get their answer before the loop's handler reports it.
        for work in batch:
            self._fail(work, TollwayError(Code.INTERNAL, "internal error"))
        raise outcome

    def _settle(self, batch: list[Work], executed: Executed) -> None:
        """Give each work its result and its exact share of the device's time."""
        if len(batch) == 1:
            self._settle_one(batch[0], executed)
            return
        rows = [work.rows for work in batch]
        statistics = self._statistics
        statistics.on_batch(sum(rows), executed.input_ns, executed.infer_ns, executed.output_ns)
        now_ns = self._now()
        statistics.last_wall_ms = self._clock.wall_ns() // 1_000_000
        for work, result, share_ns in zip(batch, executed.results, shares(executed.infer_ns, rows), strict=True):
            work.compute_ns += share_ns
            self._tell(work, result, now_ns)

    def _settle_one(self, work: Work, executed: Executed) -> None:
        """As `_settle`, for the batch of one that every model without batching runs."""
        statistics = self._statistics
        statistics.on_batch(work.rows, executed.input_ns, executed.infer_ns, executed.output_ns)
        statistics.last_wall_ms = self._clock.wall_ns() // 1_000_000
        work.compute_ns += executed.infer_ns
        self._tell(work, executed.results[0], self._now())

    def _tell(self, work: Work, result: list[Array] | TollwayError, now_ns: int) -> None:
        if work.is_done or result is STREAMING:
            return
        if isinstance(result, TollwayError):
            self._statistics.on_fail(now_ns - work.enqueued_ns)
            work.fail(result)
        else:
            self._statistics.on_success(now_ns - work.enqueued_ns, work.queue_ns)
            work.resolve(result)

    def _expire(self, now_ns: int) -> None:
        """Fail what is out of time; a batch that runs goes on for the others, and drops this work's result."""
        queue, self._queue = self._queue, []
        expired: list[Work] = []
        delayed: list[Work] = []
        for work in queue:
            if 0 < work.deadline_ns <= now_ns:
                expired.append(work)
            elif 0 < work.expires_ns <= now_ns:
                (delayed if self._is_delaying(work) else expired).append(work)
            else:
                self._queue.append(work)
        for work in (*expired, *delayed):
            self._turns.leave(work, is_served=False)
        for work in delayed:
            work.rank |= 1
            work.expires_ns = 0
            self._enqueue(work)
        self._nbytes -= sum(work.nbytes for work in expired)
        running = [work for batch in self._running for work in batch if not work.is_done]
        expired += [work for work in running if 0 < work.deadline_ns <= now_ns]
        ends = [end_of_wait(work) for work in self._queue] + [work.deadline_ns for work in running]
        self._deadline_ns = min((end for end in ends if end > now_ns), default=0)
        for work in expired:
            if self._dispatcher is not None:
                self._dispatcher.cancel(work)
            self._fail(work, TollwayError(Code.DEADLINE_EXCEEDED, f"out of time at model '{self._model}'"))

    def _is_delaying(self, work: Work) -> bool:
        levels = self._levels
        limits = self._limits if levels is None else levels.limits.get(work.rank // 2, self._limits)
        return limits.is_delaying

    def _fail(self, work: Work, error: TollwayError) -> None:
        if not work.is_done:
            self._statistics.on_fail(self._now() - work.enqueued_ns)
            work.fail(error)

    def _arm(self, at_ns: int) -> None:
        if at_ns == self._timer_ns and at_ns:
            return
        self._disarm()
        if at_ns:
            self._timer_ns = at_ns
            delay_s = max(at_ns - self._now(), 0) / 1e9
            self._timer = self._loop.call_later(delay_s, self._on_timer)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_ns = 0

    def _on_timer(self) -> None:
        self._timer = None
        self._timer_ns = 0
        self._pump()
