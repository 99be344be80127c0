"""The batcher's promises under any queue and any order of events."""

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.clock import FakeClock
from gateway.engine.batcher import Batcher
from gateway.engine.plan import Dispatch, Idle, PlanConfig, WaitUntil, plan
from gateway.engine.queue_limits import QueueLimits
from gateway.engine.statistics import Statistics
from gateway.engine.work import shares
from gateway.errors import Code, TollwayError
from tests.unit.engine.making import EchoRunner, FakePlace, ManualExecutor, Outcome, new_work


@dataclass(frozen=True)
class Item:
    rows: int
    signature: Any
    enqueued_ns: int


@st.composite
def queues(draw: st.DrawFn) -> tuple[list[Item], PlanConfig, int]:
    rows_max = draw(st.integers(1, 12))
    items = draw(
        st.lists(
            st.builds(
                Item,
                rows=st.integers(1, rows_max),
                signature=st.sampled_from("abc"),
                enqueued_ns=st.integers(0, 100),
            ),
            max_size=20,
        )
    )
    preferred = draw(st.lists(st.integers(1, rows_max), unique=True, max_size=3))
    config = PlanConfig(
        is_batching=True,
        rows_max=rows_max,
        preferred_rows=tuple(sorted(preferred)),
        delay_ns_max=draw(st.integers(0, 60)),
    )
    return sorted(items, key=lambda item: item.enqueued_ns), config, draw(st.integers(100, 200))


@given(queues())
def test_a_batch_has_one_signature_and_no_more_rows_than_allowed(case: tuple[list[Item], PlanConfig, int]) -> None:
    queue, config, now_ns = case
    decision = plan(queue, now_ns, config)
    if isinstance(decision, Dispatch):
        batch = [queue[position] for position in decision.positions]
        assert batch
        assert len({item.signature for item in batch}) == 1
        assert sum(item.rows for item in batch) <= config.rows_max
        assert list(decision.positions) == sorted(set(decision.positions))


@given(queues())
def test_works_of_one_signature_leave_in_the_order_they_came(case: tuple[list[Item], PlanConfig, int]) -> None:
    queue, config, now_ns = case
    decision = plan(queue, now_ns, config)
    if isinstance(decision, Dispatch):
        signature = queue[decision.positions[0]].signature
        same = [position for position, item in enumerate(queue) if item.signature == signature]
        assert list(decision.positions) == same[: len(decision.positions)]


@given(queues())
def test_nothing_waits_beyond_its_delay_and_no_wait_is_in_the_past(case: tuple[list[Item], PlanConfig, int]) -> None:
    queue, config, now_ns = case
    match plan(queue, now_ns, config):
        case WaitUntil(at_ns):
            assert at_ns > now_ns
            assert at_ns == min(item.enqueued_ns for item in queue) + config.delay_ns_max
        case Idle():
            assert not queue
        case Dispatch():
            assert queue


@given(queues())
def test_a_batch_that_is_not_due_is_full_or_of_a_preferred_size(case: tuple[list[Item], PlanConfig, int]) -> None:
    queue, config, now_ns = case
    decision = plan(queue, now_ns, config)
    if isinstance(decision, Dispatch):
        first = queue[decision.positions[0]]
        if first.enqueued_ns + config.delay_ns_max <= now_ns:
            return
        rows = sum(queue[position].rows for position in decision.positions)
        same = [item for item in queue if item.signature == first.signature]
        next_does_not_fit = (
            len(same) > len(decision.positions) and rows + same[len(decision.positions)].rows > config.rows_max
        )
        assert rows in config.preferred_rows or rows == config.rows_max or next_does_not_fit


@given(queues())
def test_planning_again_and_again_serves_every_work_exactly_once(case: tuple[list[Item], PlanConfig, int]) -> None:
    queue, config, now_ns = case
    left = list(enumerate(queue))
    served: list[int] = []
    while left:
        decision = plan([item for _, item in left], now_ns, config)
        if isinstance(decision, WaitUntil):
            now_ns = decision.at_ns
            continue
        assert isinstance(decision, Dispatch)
        served += [left[position][0] for position in decision.positions]
        for position in reversed(decision.positions):
            del left[position]
    assert sorted(served) == list(range(len(queue)))


@given(st.integers(0, 10**12), st.lists(st.integers(1, 1000), min_size=1, max_size=40))
def test_shares_sum_exactly_and_are_fair_to_one_unit(total: int, rows: list[int]) -> None:
    parts = shares(total, rows)
    assert sum(parts) == total
    for part, own in zip(parts, rows, strict=True):
        assert abs(part * sum(rows) - total * own) < sum(rows)


_EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(1, 4), st.sampled_from("ab"), st.sampled_from([0, 50, 500])),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("run")),
        st.tuples(st.just("fail")),
        st.tuples(st.just("tick"), st.integers(1, 200)),
        st.tuples(st.just("down")),
        st.tuples(st.just("up")),
    ),
    max_size=60,
)


@given(_EVENTS, st.booleans(), st.integers(0, 100), st.integers(0, 4), st.integers(1, 6))
def test_every_work_is_resolved_exactly_once_or_withdrawn(
    events: list[Any], is_batching: bool, delay_ns: int, short_rows: int, requests_max: int
) -> None:
    async def main() -> None:
        clock = FakeClock()
        executor = ManualExecutor()
        runner = EchoRunner()
        place = FakePlace(executor, slots=2, short_rows=short_rows)
        batcher = Batcher(
            model="m",
            config=PlanConfig(is_batching=is_batching, rows_max=4, delay_ns_max=delay_ns),
            limits=QueueLimits(requests_max=requests_max),
            runner=runner,
            place=place,
            statistics=Statistics(),
            loop=asyncio.get_running_loop(),
            clock=clock,
        )
        works: list[tuple[Any, Outcome]] = []
        withdrawn: set[int] = set()
        for event in events:
            match event:
                case ("submit", rows, signature, deadline_ns):
                    deadline_ns = clock.monotonic_ns() + deadline_ns if deadline_ns else 0
                    work, outcome = new_work(rows, fill=len(works), signature=signature, deadline_ns=deadline_ns)
                    works.append((work, outcome))
                    batcher.submit(work)
                case ("cancel", index) if index < len(works):
                    if not works[index][1].calls:
                        withdrawn.add(index)
                    batcher.cancel(works[index][0])
                case ("run",) if executor.pending:
                    executor.run_next()
                case ("fail",):
                    runner.fault = None if runner.fault else TollwayError(Code.BACKEND_FAULT, "planned")
                case ("tick", ns):
                    clock.advance(ns)
                    batcher.wake()
                case ("down",):
                    batcher.close(lambda: TollwayError(Code.MODEL_NOT_READY, "down"))
                case ("up",):
                    batcher.open()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        batcher.open()
        for _ in range(3 * len(works) + 3):
            clock.advance(1_000)
            batcher.wake()
            while executor.pending:
                executor.run_next()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert batcher.queued == batcher.running == 0
        for index, (_, outcome) in enumerate(works):
            assert outcome.calls == (0 if index in withdrawn else 1)
            if outcome.outputs is not None:
                # Its own rows and nobody else's.
                assert (outcome.outputs[0] == index).all()
        batcher.close(lambda: TollwayError(Code.SHUTTING_DOWN, "end"))
        assert Counter(row for batch in runner.batches for row in [sum(batch)]).keys() <= {1, 2, 3, 4}

    asyncio.run(main())
