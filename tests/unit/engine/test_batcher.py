"""The batcher's shell: batching across callers, deadlines, bounds, cancellation, faults."""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import pytest

from gateway.clock import FakeClock, SystemClock
from gateway.engine.batcher import Batcher
from gateway.engine.context import Context
from gateway.engine.plan import Dispatch, PlanConfig, WaitUntil, plan
from gateway.engine.queue_limits import Levels, QueueLimits, end_of_wait
from gateway.engine.runner import Executed, Runner
from gateway.engine.statistics import Statistics
from gateway.errors import Code, TollwayError
from tests.unit.engine.making import EchoRunner, FakePlace, ManualExecutor, Outcome, new_work


class Bench:
    """A batcher whose parts are at hand."""

    def __init__(
        self,
        *,
        config: PlanConfig,
        limits: QueueLimits | None = None,
        levels: Levels | None = None,
        executor: Executor | None = None,
        slots: int = 1,
        short_rows: int = 0,
        runner: Runner | None = None,
        clock: Any = None,
    ) -> None:
        self.clock = clock or FakeClock()
        self.executor = executor or ManualExecutor()
        self.echo = EchoRunner()
        self.place = FakePlace(self.executor, slots, short_rows)
        self.statistics = Statistics()
        self.batcher = Batcher(
            model="m",
            config=config,
            limits=limits or QueueLimits(),
            levels=levels,
            runner=runner or self.echo,
            place=self.place,
            statistics=self.statistics,
            loop=asyncio.get_running_loop(),
            clock=self.clock,
        )

    def submit(self, rows: int = 1, **arguments: Any) -> tuple[Any, Outcome]:
        work, outcome = new_work(rows, **arguments)
        self.batcher.submit(work)
        return work, outcome

    def run_next(self) -> None:
        assert isinstance(self.executor, ManualExecutor)
        self.executor.run_next()


ALONE = PlanConfig(is_batching=False)
TOGETHER = PlanConfig(is_batching=True, rows_max=8)


def in_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def wrapper() -> None:
        asyncio.run(test())

    wrapper.__name__ = test.__name__
    wrapper.__doc__ = test.__doc__
    return wrapper


async def turn() -> None:
    """Let everything that is due on the loop run."""
    for _ in range(4):
        await asyncio.sleep(0)


@in_loop
async def test_works_that_arrive_in_one_turn_share_a_batch() -> None:
    bench = Bench(config=TOGETHER, short_rows=8)
    outcomes = [bench.submit(rows, fill=rows)[1] for rows in (1, 2, 3)]
    assert bench.echo.batches == []
    await turn()
    assert bench.echo.batches == [[1, 2, 3]]
    assert [outcome.outputs[0].shape[0] for outcome in outcomes if outcome.outputs] == [1, 2, 3]


@in_loop
async def test_a_short_model_without_batching_answers_before_submit_returns() -> None:
    bench = Bench(config=ALONE, short_rows=1)
    _, outcome = bench.submit()
    assert outcome.outputs is not None


@in_loop
async def test_works_gather_while_the_slot_is_busy() -> None:
    bench = Bench(config=TOGETHER)
    bench.submit()
    await turn()
    later = [bench.submit()[1] for _ in range(3)]
    await turn()
    assert bench.batcher.queued == 3
    bench.run_next()
    await turn()
    bench.run_next()
    await turn()
    assert bench.echo.batches == [[1], [1, 1, 1]]
    assert all(outcome.outputs is not None for outcome in later)


@in_loop
async def test_signatures_never_mix() -> None:
    bench = Bench(config=TOGETHER, short_rows=8)
    for signature in "abab":
        bench.submit(signature=signature)
    await turn()
    assert bench.echo.batches == [[1, 1], [1, 1]]


@in_loop
async def test_a_full_batch_does_not_wait_for_its_delay() -> None:
    bench = Bench(config=PlanConfig(is_batching=True, rows_max=2, delay_ns_max=10**15), short_rows=8)
    _, first = bench.submit()
    await turn()
    assert not first.calls
    _, second = bench.submit()
    await turn()
    assert first.outputs is not None
    assert second.outputs is not None


@in_loop
async def test_a_lone_work_leaves_when_its_delay_ends() -> None:
    bench = Bench(
        config=PlanConfig(is_batching=True, rows_max=2, delay_ns_max=2_000_000), short_rows=8, clock=SystemClock()
    )
    _, outcome = bench.submit()
    await asyncio.wait_for(outcome.done.wait(), 60)
    assert outcome.outputs is not None


@in_loop
async def test_shares_of_a_batch_sum_exactly_to_its_device_time() -> None:
    bench = Bench(config=TOGETHER, short_rows=8)
    bench.echo.infer_ns = 1_000_003
    works = [bench.submit(rows)[0] for rows in (3, 1, 2)]
    await turn()
    assert sum(work.compute_ns for work in works) == 1_000_003
    assert works[0].compute_ns > works[2].compute_ns > works[1].compute_ns


@in_loop
async def test_a_full_queue_refuses() -> None:
    bench = Bench(config=ALONE, limits=QueueLimits(requests_max=2))
    outcomes = [bench.submit()[1] for _ in range(4)]
    refused = outcomes[3]
    assert refused.error is not None
    assert refused.error.code is Code.QUEUE_FULL
    assert [outcome.calls for outcome in outcomes] == [0, 0, 0, 1]
    bench.batcher.close(lambda: TollwayError(Code.SHUTTING_DOWN, "end"))


@in_loop
async def test_the_queue_is_bounded_by_bytes_but_one_large_work_may_wait() -> None:
    bench = Bench(config=ALONE, limits=QueueLimits(nbytes_max=100))
    bench.submit()  # takes the slot
    _, large = bench.submit(nbytes=1000)
    _, refused = bench.submit(nbytes=1)
    assert not large.calls
    assert refused.error is not None
    assert refused.error.code is Code.QUEUE_FULL
    bench.batcher.close(lambda: TollwayError(Code.SHUTTING_DOWN, "end"))


@in_loop
async def test_an_expired_work_leaves_the_queue_and_does_not_run() -> None:
    bench = Bench(config=ALONE)
    bench.submit()
    _, late = bench.submit(deadline_ns=bench.clock.monotonic_ns() + 100, fill=7)
    bench.clock.advance(100)
    bench.batcher.wake()
    assert late.error is not None
    assert late.error.code is Code.DEADLINE_EXCEEDED
    bench.run_next()
    await turn()
    assert bench.echo.batches == [[1]]


@in_loop
async def test_a_deadline_wakes_the_queue_by_itself() -> None:
    bench = Bench(config=ALONE, clock=SystemClock())
    bench.submit()
    _, late = bench.submit(deadline_ns=bench.clock.monotonic_ns() + 3_000_000)
    await asyncio.wait_for(late.done.wait(), 60)
    assert late.error is not None
    assert late.error.code is Code.DEADLINE_EXCEEDED
    bench.batcher.close(lambda: TollwayError(Code.SHUTTING_DOWN, "end"))


@in_loop
async def test_a_deadline_holds_for_a_work_that_runs() -> None:
    bench = Bench(config=ALONE)
    work, outcome = bench.submit(deadline_ns=bench.clock.monotonic_ns() + 50)
    bench.clock.advance(60)
    bench.batcher.wake()
    assert outcome.error is not None
    assert outcome.error.code is Code.DEADLINE_EXCEEDED
    bench.run_next()
    await turn()
    assert outcome.calls == 1
    assert work.compute_ns == 1000  # what it cost is known all the same


@pytest.mark.parametrize(
    ("limits", "timeout_ns", "expected_ns"),
    [
        (QueueLimits(), 0, 0),
        (QueueLimits(), 70, 70),
        (QueueLimits(timeout_ns=50), 0, 50),
        (QueueLimits(timeout_ns=50), 70, 50),
        (QueueLimits(timeout_ns=50), 20, 20),
        (QueueLimits(timeout_ns=50, is_timeout_overridable=False), 20, 50),
    ],
)
def test_a_callers_timeout_can_only_shorten_the_queues(limits: QueueLimits, timeout_ns: int, expected_ns: int) -> None:
    async def main() -> None:
        bench = Bench(config=ALONE, limits=limits)
        bench.submit()
        now_ns = bench.clock.monotonic_ns()
        work, _ = bench.submit(timeout_ns=timeout_ns)
        assert end_of_wait(work) == (now_ns + expected_ns if expected_ns else 0)
        bench.batcher.close(lambda: TollwayError(Code.SHUTTING_DOWN, "end"))

    asyncio.run(main())


@in_loop
async def test_a_cancelled_work_leaves_before_dispatch() -> None:
    bench = Bench(config=TOGETHER)
    bench.submit()
    await turn()
    works = [bench.submit() for _ in range(3)]
    bench.batcher.cancel(works[1][0])
    await turn()
    bench.run_next()
    await turn()
    bench.run_next()
    await turn()
    assert bench.echo.batches == [[1], [1, 1]]
    assert [outcome.calls for _, outcome in works] == [1, 0, 1]


@in_loop
async def test_a_cancelled_caller_does_not_stall_its_batch() -> None:
    bench = Bench(config=TOGETHER)
    works = [bench.submit() for _ in range(3)]
    await turn()
    bench.batcher.cancel(works[0][0])  # its batch runs already
    bench.run_next()
    await turn()
    assert [outcome.calls for _, outcome in works] == [0, 1, 1]
    assert bench.batcher.running == 0


@in_loop
async def test_cancelling_after_the_answer_does_nothing() -> None:
    bench = Bench(config=ALONE, short_rows=1)
    work, outcome = bench.submit()
    bench.batcher.cancel(work)
    assert outcome.calls == 1
    assert outcome.outputs is not None


@in_loop
async def test_a_fault_fails_its_batch_only() -> None:
    bench = Bench(config=TOGETHER, short_rows=8)
    bench.echo.fault = TollwayError(Code.BACKEND_FAULT, "planned")
    failed = [bench.submit()[1] for _ in range(2)]
    await turn()
    bench.echo.fault = None
    _, good = bench.submit()
    await turn()
    assert [outcome.error.code for outcome in failed if outcome.error] == [Code.BACKEND_FAULT] * 2
    assert good.outputs is not None


@in_loop
async def test_closing_refuses_the_queue_and_lets_running_works_finish() -> None:
    bench = Bench(config=ALONE)
    _, running = bench.submit()
    _, queued = bench.submit()
    bench.batcher.close(lambda: TollwayError(Code.MODEL_NOT_READY, "down"))
    _, refused = bench.submit()
    bench.run_next()
    await turn()
    assert running.outputs is not None
    assert queued.error is not None
    assert refused.error is not None
    assert queued.error.code is refused.error.code is Code.MODEL_NOT_READY


@in_loop
async def test_no_batch_starts_without_a_slot_and_a_new_slot_is_used() -> None:
    bench = Bench(config=ALONE, slots=0)
    _, outcome = bench.submit()
    await turn()
    assert bench.batcher.queued == 1
    bench.place.free = 1
    bench.batcher.wake()
    bench.run_next()
    await turn()
    assert outcome.outputs is not None


class _Broken:
    """A runner with a defect: it raises what no runner may raise."""

    def run(self, feeds: Any, rows: Any) -> Executed:
        raise ZeroDivisionError

    def close(self) -> None: ...


def test_a_defect_answers_internal_and_reaches_the_loops_handler() -> None:
    seen: list[Any] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context["exception"]))
        bench = Bench(config=ALONE, runner=_Broken())
        _, outcome = bench.submit()
        bench.run_next()
        await turn()
        assert outcome.error is not None
        assert outcome.error.code is Code.INTERNAL
        assert bench.batcher.running == 0

    asyncio.run(main())
    assert [type(error) for error in seen] == [ZeroDivisionError]


@in_loop
async def test_long_batches_leave_the_loop_free() -> None:
    with ThreadPoolExecutor(1) as pool:
        bench = Bench(config=ALONE, executor=pool, clock=SystemClock())
        bench.echo.gate.clear()
        _, outcome = bench.submit()
        ticks = 0
        while ticks < 3:
            await asyncio.sleep(0)
            ticks += 1
        assert not outcome.calls
        bench.echo.gate.set()
        await asyncio.wait_for(outcome.done.wait(), 60)
    assert outcome.outputs is not None


@in_loop
async def test_statistics_count_rows_batches_and_failures() -> None:
    bench = Bench(config=TOGETHER, short_rows=8)
    for rows in (1, 2):
        bench.submit(rows)
    await turn()
    bench.echo.fault = TollwayError(Code.BACKEND_FAULT, "planned")
    bench.submit()
    await turn()
    shown = bench.statistics.as_json("m", "1")
    assert shown["inference_count"] == 4
    assert shown["execution_count"] == 2
    assert shown["inference_stats"]["success"]["count"] == 2
    assert shown["inference_stats"]["fail"]["count"] == 1
    assert [batch["batch_size"] for batch in shown["batch_stats"]] == [1, 3]


RANKED = PlanConfig(is_batching=True, rows_max=2, has_ranks=True)
LEVELS = Levels(count=3, default=2, limits={3: QueueLimits(requests_max=1, timeout_ns=50)})


def with_priority(priority: int) -> dict[str, Any]:
    return {"context": Context(priority=priority)}


async def occupy(bench: Bench) -> None:
    """Fill the one slot, so that what comes next queues."""
    bench.submit(2)
    await turn()
    assert (bench.batcher.running, bench.batcher.queued) == (1, 0)


async def leave_in_turn(bench: Bench, count: int) -> list[float]:
    """The fill of each work's tensor in the order in which `count` batches run."""
    seen: list[float] = []
    for _ in range(count):
        bench.run_next()
        await turn()
        seen += [float(own["x"][0, 0]) for batch in bench.batcher._running for own in [one.feeds for one in batch]]
    return seen


@in_loop
async def test_works_leave_by_priority_then_by_age() -> None:
    bench = Bench(config=RANKED, levels=LEVELS)
    await occupy(bench)
    # 0 and 9 are no levels: they have the default, 2.
    for fill, priority in ((1.0, 3), (2.0, 0), (3.0, 1), (4.0, 9), (5.0, 1)):
        bench.submit(2, fill=fill, **with_priority(priority))
    await turn()
    assert await leave_in_turn(bench, 5) == [3.0, 5.0, 2.0, 4.0, 1.0]
    bench.run_next()


@in_loop
async def test_a_level_has_its_own_bounds() -> None:
    bench = Bench(config=RANKED, levels=LEVELS)
    await occupy(bench)
    _, first = bench.submit(2, **with_priority(3))
    _, second = bench.submit(2, **with_priority(3))
    _, other = bench.submit(2, **with_priority(2))
    assert second.error is not None
    assert second.error.code is Code.QUEUE_FULL
    bench.clock.advance(50)
    bench.batcher.wake()
    assert first.error is not None
    assert first.error.code is Code.DEADLINE_EXCEEDED
    assert other.error is None
    bench.batcher.close(lambda: TollwayError(Code.SHUTTING_DOWN, "end"))
    bench.run_next()
    await turn()


@in_loop
async def test_a_queues_timeout_does_not_end_what_runs() -> None:
    bench = Bench(config=ALONE, limits=QueueLimits(timeout_ns=50))
    _, outcome = bench.submit()
    bench.clock.advance(60)
    bench.batcher.wake()
    assert outcome.error is None
    bench.run_next()
    await turn()
    assert outcome.outputs is not None


@in_loop
async def test_delayed_works_go_behind_their_level_and_are_served_in_the_end() -> None:
    bench = Bench(config=RANKED, limits=QueueLimits(timeout_ns=50, is_delaying=True))
    await occupy(bench)
    bench.submit(2, fill=1.0)
    bench.clock.advance(30)
    bench.submit(2, fill=2.0)
    bench.clock.advance(20)
    bench.batcher.wake()
    bench.submit(2, fill=3.0)
    await turn()
    assert await leave_in_turn(bench, 3) == [2.0, 3.0, 1.0]
    bench.run_next()
    await turn()
    assert bench.statistics.fail_count == 0


@in_loop
async def test_a_delayed_work_still_has_its_callers_deadline() -> None:
    bench = Bench(config=RANKED, limits=QueueLimits(timeout_ns=50, is_delaying=True))
    await occupy(bench)
    _, outcome = bench.submit(2, deadline_ns=bench.clock.monotonic_ns() + 80)
    bench.clock.advance(60)
    bench.batcher.wake()
    assert outcome.error is None
    bench.clock.advance(20)
    bench.batcher.wake()
    assert outcome.error is not None
    assert outcome.error.code is Code.DEADLINE_EXCEEDED
    bench.run_next()
    await turn()


def test_a_work_of_low_priority_does_not_wait_anew_for_each_that_passes_it() -> None:
    """Its own delay is over: the batch leaves now, with the better one in front."""
    old, _ = new_work()
    old.rank, old.enqueued_ns = 4, 0
    new, _ = new_work()
    new.rank, new.enqueued_ns = 2, 90
    config = PlanConfig(is_batching=True, rows_max=8, delay_ns_max=100, has_ranks=True)
    assert plan([new, old], 99, config) == WaitUntil(100)
    assert plan([new, old], 100, config) == Dispatch((0, 1))
