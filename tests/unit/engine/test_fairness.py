"""Tenants share the queue of a model: a flood by one delays and refuses its own works, not the others'."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from gateway.call import RequestHead
from gateway.clock import FakeClock
from gateway.engine.context import Context
from gateway.engine.fairness import SHARES_MAX, Turns, find_room
from gateway.engine.heads import HeadFacts, facts_of
from gateway.engine.plan import Dispatch, PlanConfig, WaitUntil, plan
from gateway.engine.queue_limits import Levels, QueueLimits
from gateway.errors import Code
from tests.unit.engine.making import Outcome, new_work
from tests.unit.engine.test_batcher import ALONE, TOGETHER, Bench, in_loop, turn

FLOOD, OTHER = b"flood", b"other"


async def drain(bench: Bench) -> None:
    """Run all batches, one after another."""
    await turn()
    while bench.batcher.running:
        bench.run_next()
        await turn()


@pytest.mark.parametrize("config", [ALONE, TOGETHER], ids=["alone", "together"])
def test_a_flood_by_one_tenant_does_not_starve_another(config: PlanConfig) -> None:
    """Of 200 works that wait, a newcomer's single one is in the next batch but one that leaves."""

    async def main() -> None:
        bench = Bench(config=config)
        flood = [bench.submit(tenant=FLOOD)[1] for _ in range(200)]
        await turn()
        _, outcome = bench.submit(tenant=OTHER)
        for _ in range(2):  # the batch that runs, and the next
            bench.run_next()
            await turn()
        bench.run_next()
        await turn()
        assert outcome.outputs is not None
        assert sum(one.outputs is None for one in flood) >= 200 - 3 * config.rows_max
        await drain(bench)
        assert all(one.outputs is not None for one in flood)

    asyncio.run(main())


@in_loop
async def test_rows_are_shared_not_requests() -> None:
    """Works of 8 rows beside works of 1: in any stretch both get the same rows, not the same number of works."""
    bench = Bench(config=TOGETHER)
    bench.submit(tenant=b"first")
    await turn()
    works: dict[bytes, list[Outcome]] = {FLOOD: [], OTHER: []}
    for _ in range(10):
        works[FLOOD].append(bench.submit(8, tenant=FLOOD)[1])
    for _ in range(40):
        works[OTHER].append(bench.submit(1, tenant=OTHER)[1])
    bench.run_next()
    await turn()
    for _ in range(8):
        bench.run_next()
        await turn()
    rows = {FLOOD: 8 * sum(one.outputs is not None for one in works[FLOOD])}
    rows[OTHER] = sum(one.outputs is not None for one in works[OTHER])
    assert abs(rows[FLOOD] - rows[OTHER]) <= 8 + 8
    assert min(rows.values()) >= 24


@in_loop
async def test_works_of_one_tenant_leave_in_the_order_they_came() -> None:
    bench = Bench(config=ALONE)
    names = [(b"abc"[number % 3 : number % 3 + 1], number) for number in range(30)]
    seen: list[tuple[bytes, int]] = []
    for tenant, number in names:
        work, _ = new_work(1, tenant=tenant)
        work.on_result = lambda _work, _outputs, name=(tenant, number): seen.append(name)  # type: ignore[misc]
        bench.batcher.submit(work)
    await drain(bench)
    assert len(seen) == 30
    for tenant in (b"a", b"b", b"c"):
        own = [number for name, number in seen if name == tenant]
        assert own == sorted(own)


@in_loop
async def test_priorities_go_before_fairness() -> None:
    """A tenant's flood of the first level leaves before another's work of the second, and fairness is within levels."""
    levels = Levels(count=2, default=2, limits={})
    bench = Bench(config=PlanConfig(is_batching=True, rows_max=1, has_ranks=True), levels=levels)
    seen: list[bytes] = []

    def submit(name: bytes, tenant: bytes, priority: int) -> None:
        work, _ = new_work(1, tenant=tenant, context=Context(priority=priority))
        work.on_result = lambda _work, _outputs: seen.append(name)
        bench.batcher.submit(work)

    submit(b"running", b"x", 1)
    await turn()
    submit(b"low", OTHER, 2)
    for _ in range(4):
        submit(b"flood", FLOOD, 1)
    submit(b"high", OTHER, 1)
    await drain(bench)
    assert seen == [b"running", b"flood", b"high", b"flood", b"flood", b"flood", b"low"]


@in_loop
async def test_who_comes_late_is_not_ahead_for_what_it_did_not_ask() -> None:
    """100 rows served to one tenant alone give the next no claim to 100 rows before it."""
    bench = Bench(config=ALONE)
    for _ in range(100):
        bench.submit(tenant=FLOOD)
    await turn()
    for _ in range(50):
        bench.run_next()
        await turn()
    other = [bench.submit(tenant=OTHER)[1] for _ in range(20)]
    for _ in range(20):
        bench.run_next()
        await turn()
    assert 8 <= sum(one.outputs is not None for one in other) <= 12


# -- full queues ------------------------------------------------------------------------------------------------------


@in_loop
async def test_a_full_queue_gives_places_to_tenants_with_less_than_their_share() -> None:
    bench = Bench(config=ALONE, limits=QueueLimits(requests_max=8))
    bench.submit(tenant=FLOOD)  # runs
    flood = [bench.submit(tenant=FLOOD)[1] for _ in range(10)]
    assert [one.error is not None for one in flood] == [False] * 8 + [True] * 2
    others = [bench.submit(tenant=OTHER)[1] for _ in range(6)]
    assert bench.batcher.queued == 8
    assert [one.error is not None for one in others] == [False] * 4 + [True] * 2
    # The newest of the flood have left, refused as if they had come too late.
    assert [one.error is not None for one in flood] == [False] * 4 + [True] * 6
    assert {one.error.code for one in (*flood, *others) if one.error is not None} == {Code.QUEUE_FULL}
    await drain(bench)
    assert sum(one.outputs is not None for one in (*flood, *others)) == 8


@in_loop
async def test_a_full_queue_of_one_tenant_refuses_the_newcomer_of_the_same() -> None:
    bench = Bench(config=ALONE, limits=QueueLimits(requests_max=2))
    outcomes = [bench.submit(tenant=FLOOD)[1] for _ in range(5)]
    assert [one.error is not None for one in outcomes] == [False] * 3 + [True] * 2


@in_loop
async def test_bytes_are_shared_too() -> None:
    bench = Bench(config=ALONE, limits=QueueLimits(nbytes_max=100))
    bench.submit(tenant=FLOOD)
    flood = [bench.submit(tenant=FLOOD, nbytes=25)[1] for _ in range(5)]
    assert [one.error is not None for one in flood] == [False] * 4 + [True]
    _, large = bench.submit(tenant=OTHER, nbytes=51)
    assert large.error is not None, "more than half of it is more than its share"
    _, fitting = bench.submit(tenant=OTHER, nbytes=50)
    assert fitting.error is None
    assert [one.error is not None for one in flood] == [False] * 2 + [True] * 3
    await drain(bench)


@in_loop
async def test_a_lower_level_pushes_nobody_out_of_a_better_one() -> None:
    levels = Levels(count=2, default=2, limits={1: QueueLimits(requests_max=9), 2: QueueLimits(requests_max=9)})
    config = PlanConfig(is_batching=True, rows_max=1, has_ranks=True)
    bench = Bench(config=config, levels=levels, limits=QueueLimits(nbytes_max=100))
    high, low = Context(priority=1), Context(priority=2)
    bench.submit(tenant=FLOOD, context=high)
    await turn()
    flood = [bench.submit(tenant=FLOOD, nbytes=25, context=high)[1] for _ in range(4)]
    _, refused = bench.submit(tenant=OTHER, nbytes=25, context=low)
    assert refused.error is not None
    _, taken = bench.submit(tenant=OTHER, nbytes=25, context=high)
    assert taken.error is None
    assert [one.error is not None for one in flood] == [False] * 3 + [True]
    await drain(bench)


@in_loop
async def test_who_is_pushed_out_may_ask_again_at_once() -> None:
    """His fault is told last, when the queue is whole again."""
    bench = Bench(config=ALONE, limits=QueueLimits(requests_max=2))
    bench.submit(tenant=FLOOD)
    bench.submit(tenant=FLOOD)
    again: list[Outcome] = []
    work, _ = new_work(1, tenant=FLOOD)
    work.on_error = lambda _work, _error: again.append(bench.submit(tenant=FLOOD)[1])
    bench.batcher.submit(work)
    _, other = bench.submit(tenant=OTHER)
    assert [one.error.code for one in again if one.error] == [Code.QUEUE_FULL]
    await drain(bench)
    assert other.outputs is not None


def test_room_is_not_made_by_who_has_no_better_claim() -> None:
    turns = Turns()
    queue: list[Any] = []
    for tenant in (b"a", b"b", b"c") * 2:
        work, _ = new_work(1, tenant=tenant, nbytes=10)
        turns.join(work)
        queue.append(work)
    newcomer, _ = new_work(1, tenant=b"a", nbytes=10)
    bounds: dict[str, Any] = {"requests_max": 6, "nbytes_max": 1000, "over": -1}
    assert find_room(turns, queue, range(6), newcomer, **bounds) is None
    stranger, _ = new_work(1, tenant=b"d", nbytes=10)
    found = find_room(turns, queue, range(6), stranger, **bounds)
    assert found is not None
    assert len(found) == 1


# -- the plan ---------------------------------------------------------------------------------------------------------


def test_a_delay_counts_from_the_oldest_also_where_it_is_not_first() -> None:
    config = PlanConfig(is_batching=True, rows_max=8, delay_ns_max=50)
    queue = [new_work(1)[0] for _ in range(2)]
    queue[0].enqueued_ns, queue[1].enqueued_ns = 100, 90
    assert plan(queue, 120, config, is_by_age=False) == WaitUntil(140)
    assert plan(queue, 140, config, is_by_age=False) == Dispatch((0, 1))
    assert plan(queue, 140, config) == WaitUntil(150)


def test_equal_floods_end_with_equal_shares() -> None:
    """Three tenants that always wait, works of 1 to 4 rows in seeded order: after 300 works, within a work each."""

    async def main() -> None:
        bench = Bench(config=PlanConfig(is_batching=True, rows_max=4), clock=FakeClock())
        rows: Counter[bytes] = Counter()

        def submit(tenant: bytes, count: int) -> None:
            work, _ = new_work(count, tenant=tenant)

            def on_result(_work: Any, _outputs: Any) -> None:
                rows[tenant] += count

            work.on_result = on_result
            bench.batcher.submit(work)

        for number in range(100):
            for tenant in (b"a", b"b", b"c"):
                submit(tenant, 1 + (number * 7 + tenant[0]) % 4)
        await turn()
        for _ in range(120):
            bench.run_next()
            await turn()
        assert bench.batcher.queued
        assert max(rows.values()) - min(rows.values()) <= 8
        await drain(bench)

    asyncio.run(main())


def test_tenants_that_have_left_are_forgotten_in_time() -> None:
    """Each is remembered as long as it is ahead, and only so many: a queue that never empties does not grow."""
    turns = Turns()
    stays, _ = new_work(1, tenant=b"stays")
    turns.join(stays)
    for number in range(SHARES_MAX + 10):
        work, _ = new_work(1, tenant=b"%d" % number)
        turns.join(work)
        turns.serve([work])
        assert turns.remembered <= SHARES_MAX
        if number == SHARES_MAX - 2:
            assert turns.remembered == SHARES_MAX
    assert (turns.remembered, turns.waiting) == (11 + 1, 1)
    again, _ = new_work(1, tenant=b"stays")
    turns.join(again)
    assert again.turn > stays.turn, "who waits is never forgotten"


# -- what plans say ----------------------------------------------------------------------------------------------------


@in_loop
async def test_tenants_are_served_by_the_weights_of_their_plans() -> None:
    bench = Bench(config=ALONE)
    bench.submit(tenant=b"first")
    light = [bench.submit(tenant=OTHER)[1] for _ in range(40)]
    heavy = [bench.submit(tenant=FLOOD, weight=3)[1] for _ in range(40)]
    await turn()
    for _ in range(1 + 40):
        bench.run_next()
        await turn()
    assert sum(one.outputs is not None for one in heavy) == 30
    assert sum(one.outputs is not None for one in light) == 10
    await drain(bench)


@pytest.mark.parametrize(("weight", "is_let_in"), [(1, False), (2, True)])
def test_places_of_a_full_queue_are_shared_by_weight(weight: int, is_let_in: bool) -> None:
    """Three works of one tenant and two of another wait; the other asks for a third place."""
    turns = Turns()
    queue = [new_work(tenant=FLOOD)[0] for _ in range(3)]
    queue += [new_work(tenant=OTHER, weight=weight)[0] for _ in range(2)]
    for work in queue:
        turns.join(work)
    asks = new_work(tenant=OTHER, weight=weight)[0]
    assert (turns.find_hoarder(asks) == FLOOD) is is_let_in


@pytest.mark.parametrize(
    ("asked", "best", "level"),
    [(1, 0, 1), (1, 1, 1), (1, 2, 2), (3, 2, 3), (0, 0, 2), (0, 3, 3), (1, 9, 4), (7, 3, 3)],
)
def test_a_callers_priority_is_bounded_by_its_plan(asked: int, best: int, level: int) -> None:
    """`asked` 0: none; 2 is the model's default of its 4 levels."""
    work, _ = new_work(context=Context(priority=asked), priority_best=best)
    assert Levels(count=4, default=2, limits={}).of(work) == level


def facts(value: bytes, *, is_grpc: bool = False) -> HeadFacts:
    target = b"/inference.GRPCInferenceService/ModelInfer" if is_grpc else b"/v2/models/m/infer"
    head = RequestHead(b"POST", target, [(b"tollway-tenant", value)], content_length=0, is_grpc=is_grpc)
    return facts_of(head)


@pytest.mark.parametrize("is_grpc", [False, True])
@pytest.mark.parametrize(
    ("value", "weight", "best"),
    [
        (b"acme", 1, 0),
        (b"acme;weight=5", 5, 0),
        (b"acme;priority=2", 1, 2),
        (b"acme;weight=100;priority=64", 100, 64),
        (b"acme;weight=0", 1, 0),
    ],
)
def test_the_gateway_says_with_the_tenant_what_its_plan_says(
    value: bytes, weight: int, best: int, is_grpc: bool
) -> None:
    found = facts(value, is_grpc=is_grpc)
    assert (found.tenant, found.weight, found.priority_best, found.fault) == (b"acme", weight, best, None)


@pytest.mark.parametrize("value", [b"acme;weight=", b"acme;weight=x", b"acme;other=1", b"acme;weight=10000", b"acme;"])
def test_a_malformed_plan_of_a_tenant_is_refused(value: bytes) -> None:
    fault = facts(value).fault
    assert fault is not None
    assert fault.code is Code.BAD_REQUEST
