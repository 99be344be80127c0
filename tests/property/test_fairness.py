"""Turns of tenants in a queue: the bound of start-time fair queueing, order within a tenant, nothing lost."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import permutations
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.clock import FakeClock
from gateway.engine.batcher import Batcher
from gateway.engine.fairness import Turns, place_of
from gateway.engine.plan import PlanConfig
from gateway.engine.queue_limits import QueueLimits
from gateway.engine.statistics import Statistics
from gateway.errors import Code
from tests.unit.engine.making import EchoRunner, FakePlace, ManualExecutor, Outcome, new_work

ROWS_MAX = 5
TENANTS = [b"a", b"b", b"c"]


@dataclass(eq=False)
class Item:
    rows: int
    tenant: bytes
    enqueued_ns: int
    rank: int = 0
    turn: int = 0
    nbytes: int = 1
    weight: int = 1


@dataclass
class Line:
    """A queue in turns, served from the front; `served` are rows by tenant."""

    turns: Turns = field(default_factory=Turns)
    queue: list[Item] = field(default_factory=list)
    served: Counter[bytes] = field(default_factory=Counter)
    now: int = 0
    weights: dict[bytes, int] = field(default_factory=dict)

    def join(self, tenant: bytes, rows: int) -> Item:
        self.now += 1
        item = Item(rows, tenant, self.now, weight=self.weights.get(tenant, 1))
        self.turns.join(item)
        self.queue.append(item)
        self.queue.sort(key=place_of)  # stable: equal turns by age
        return item

    def serve(self, count: int) -> list[Item]:
        batch, self.queue = self.queue[:count], self.queue[count:]
        if batch:
            self.turns.serve(batch)
        self.served.update({item.tenant: 0 for item in batch})
        for item in batch:
            self.served[item.tenant] += item.rows
        return batch

    def leave(self, position: int) -> None:
        if self.queue:
            self.turns.leave(self.queue.pop(position % len(self.queue)), is_served=False)

    def waiting(self) -> set[bytes]:
        return {item.tenant for item in self.queue}


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("join"), st.sampled_from(TENANTS), st.integers(1, ROWS_MAX)),
        st.tuples(st.just("serve"), st.integers(1, 4)),
    ),
    max_size=120,
)


_WEIGHTS = st.fixed_dictionaries({tenant: st.integers(1, 10) for tenant in TENANTS})


@given(st.lists(st.integers(1, ROWS_MAX), min_size=20, max_size=20), _STEPS, _WEIGHTS)
def test_of_two_tenants_that_wait_neither_gets_ahead_by_more_than_a_work_each(
    flood: list[int], steps: list[Any], weights: dict[bytes, int]
) -> None:
    """From each instant on, as long as both wait without a pause; one begins with a flood. Rows by weight."""
    line = Line(weights=weights)
    for rows in flood:
        line.join(TENANTS[0], rows)
    #: (rows served by then, who has been waiting ever since), one for each instant so far.
    since: list[tuple[Counter[bytes], set[bytes]]] = []
    for step in steps:
        if step[0] == "join":
            line.join(step[1], step[2])
            since.append((Counter(line.served), line.waiting()))
            continue
        for _ in range(step[1]):  # one after another: the bound holds at every work, so after every batch
            line.serve(1)
            for before, waiting in since:
                waiting.intersection_update(line.waiting())
                gained = {one: Fraction(line.served[one] - before[one], weights[one]) for one in waiting}
                for one, other in permutations(gained, 2):
                    bound = Fraction(ROWS_MAX, weights[one]) + Fraction(ROWS_MAX, weights[other])
                    assert gained[one] - gained[other] <= bound
    assert line.turns.waiting == len(line.waiting())


@given(_STEPS, st.lists(st.integers(0, 50), max_size=60), st.randoms(use_true_random=False))
def test_works_of_a_tenant_keep_their_order_and_nothing_is_lost(steps: list[Any], cancels: list[int], rnd: Any) -> None:
    line = Line()
    joined: list[Item] = []
    served: list[Item] = []
    left = 0
    for step in steps:
        if step[0] == "join":
            joined.append(line.join(step[1], step[2]))
        else:
            served += line.serve(step[1])
        if cancels and rnd.random() < 0.3 and line.queue:
            line.leave(cancels.pop())
            left += 1
    while line.queue:
        served += line.serve(1)
    assert len(served) + left == len(joined)
    for tenant in TENANTS:
        ages = [item.enqueued_ns for item in served if item.tenant == tenant]
        assert ages == sorted(ages)
    assert line.turns.waiting == 0
    # Nothing is kept of an empty queue.
    first = line.join(b"x", 3)
    assert first.turn == 0


@given(st.integers(1, 60), st.integers(0, 60), st.integers(1, 4))
def test_works_that_left_unserved_cost_nothing(flood: int, attempts: int, rows: int) -> None:
    """A tenant whose works time out again and again behind a flood is served next when one does not."""
    line = Line()
    for _ in range(flood + 2):
        line.join(b"a", 1)
    line.serve(1)
    for _ in range(attempts):
        line.queue.remove(own := line.join(b"b", rows))
        line.turns.leave(own, is_served=False)
    line.join(b"b", rows)
    assert [item.tenant for item in line.serve(2)].count(b"b") == 1


_EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.sampled_from(TENANTS), st.integers(1, 4), st.sampled_from([0, 50, 500])),
        st.tuples(st.just("cancel"), st.integers(0, 60)),
        st.tuples(st.just("run")),
        st.tuples(st.just("tick"), st.integers(1, 200)),
    ),
    max_size=80,
)


@settings(deadline=None)
@given(_EVENTS, st.booleans(), st.integers(0, 100), st.integers(1, 6), st.integers(8, 200))
def test_a_batcher_shared_by_tenants_resolves_every_work_once_within_its_bounds(
    events: list[Any], is_batching: bool, delay_ns: int, requests_max: int, nbytes_max: int
) -> None:
    async def main() -> None:
        clock, executor, runner = FakeClock(), ManualExecutor(), EchoRunner()
        batcher = Batcher(
            model="m",
            config=PlanConfig(is_batching=is_batching, rows_max=4, delay_ns_max=delay_ns),
            limits=QueueLimits(requests_max=requests_max, nbytes_max=nbytes_max),
            runner=runner,
            place=FakePlace(executor, slots=1, short_rows=0),
            statistics=Statistics(),
            loop=asyncio.get_running_loop(),
            clock=clock,
        )
        works: list[tuple[Any, Outcome]] = []
        withdrawn: set[int] = set()
        for event in events:
            match event:
                case ("submit", tenant, rows, deadline_ns):
                    deadline_ns = clock.monotonic_ns() + deadline_ns if deadline_ns else 0
                    work, outcome = new_work(
                        rows, fill=len(works), tenant=tenant, deadline_ns=deadline_ns, nbytes=8 * rows
                    )
                    works.append((work, outcome))
                    batcher.submit(work)
                    assert batcher.queued <= requests_max
                case ("cancel", index) if index < len(works):
                    if not works[index][1].calls:
                        withdrawn.add(index)
                    batcher.cancel(works[index][0])
                case ("run",) if executor.pending:
                    executor.run_next()
                case ("tick", ns):
                    clock.advance(ns)
                    batcher.wake()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
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
                assert (outcome.outputs[0] == index).all()
            elif outcome.error is not None:
                assert outcome.error.code in (Code.QUEUE_FULL, Code.DEADLINE_EXCEEDED)

    asyncio.run(main())
