"""One suite over every `QuotaStore`: the in-process twin, two workers at an owner behind a socket, and two workers of
one host, then of two hosts, that share a real Valkey.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from gateway.clock import FakeClock
from gateway.errors import Code, Refusal
from gateway.quota.local_store import LocalQuotaStore
from gateway.quota.memory_client import MemoryQuotaStore
from gateway.quota.owner import Owner
from gateway.quota.server import QuotaServer
from gateway.quota.shared_owner import SharedOwner
from gateway.quota.store import Decision, Grant, QuotaStore
from gateway.quota.store_keeper import StoreKeeper
from gateway.snapshot import Plan, Tenant
from tests.unit.quota.plans import ACME, DAY_NS, MS, S, plan_of
from tests.unit.quota.valkey import KEY_CLOCK, PATIENT_S, StoreClock, Valkey, link, valkey


class Bench:
    """Two workers' stores over the same limits."""

    def __init__(
        self, clock: FakeClock, owners: Sequence[Owner | SharedOwner], stores: tuple[QuotaStore, QuotaStore]
    ) -> None:
        self.clock = clock
        self.owners = owners
        self.first, self.second = stores

    def learn(self, tenant: Tenant, plan: Plan) -> None:
        for owner in self.owners:
            owner.learn(tenant, plan)

    async def admit(self, store: QuotaStore, plan: Plan) -> Decision:
        self.learn(ACME, plan)
        decided: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        is_inside = True

        def on_decision(decision: Decision) -> None:
            assert not is_inside, "decided re-entrantly"
            decided.set_result(decision)

        now = store.admit(ACME, plan, on_decision)
        is_inside = False
        return await decided if now is None else now

    async def grant(self, store: QuotaStore, plan: Plan) -> Grant:
        decision = await self.admit(store, plan)
        assert isinstance(decision, Grant), decision
        return decision

    async def refuse(self, store: QuotaStore, plan: Plan) -> Refusal:
        decision = await self.admit(store, plan)
        assert isinstance(decision, Refusal)
        return decision


Scenario = Callable[[Bench], Awaitable[None]]
Runner = Callable[[Scenario], None]


async def run_local(scenario: Scenario) -> None:
    clock = FakeClock()
    owner = Owner(clock, has_meter=False)
    stores = LocalQuotaStore(clock, owner), LocalQuotaStore(clock, owner)
    await scenario(Bench(clock, [owner], stores))
    for store in stores:
        await store.close()


async def no_news() -> None:
    """There is no snapshot to look at."""


async def run_socket(scenario: Scenario, path: Path) -> None:
    loop = asyncio.get_running_loop()
    clock = FakeClock()
    owner = Owner(clock, has_meter=False)
    async with AsyncExitStack() as stack:
        server = QuotaServer(owner, loop, no_news, None, workers_expected=2)
        await server.listen(path)
        stack.push_async_callback(server.close)
        tasks = loop.create_task(server.run())
        stack.callback(tasks.cancel)
        stores = []
        for name in ("w0", "w1"):
            store = MemoryQuotaStore(path, worker=name, clock=clock, loop=loop)
            await store.start()
            stack.push_async_callback(store.close)
            stores.append(store)
        await scenario(Bench(clock, [owner], (stores[0], stores[1])))


async def run_shared(scenario: Scenario, server: Valkey, folder: Path, hosts: int) -> None:
    """Two workers, at one host or each at its own."""
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        clock = StoreClock(server)
        stack.callback(clock.close)
        owners, stores = [], []
        for at in range(hosts):
            owner = SharedOwner(clock, has_meter=False)
            owners.append(owner)
            await share(server, owner, folder / f"{at}.sock", f"host{at}", clock, stack)
        clock.show()
        for at in range(2):
            store = MemoryQuotaStore(folder / f"{at % hosts}.sock", worker=f"w{at}", clock=clock, loop=loop)
            await store.start()
            stack.push_async_callback(store.close)
            stores.append(store)
        await scenario(Bench(clock, owners, (stores[0], stores[1])))


async def share(
    server: Valkey, owner: SharedOwner, path: Path, host: str, clock: FakeClock, stack: AsyncExitStack
) -> None:
    """One host's owner behind a socket, with its session at the store."""
    loop = asyncio.get_running_loop()
    quota = QuotaServer(owner, loop, no_news, None, settle_s=0, park_s=PATIENT_S)
    quota.speak_for(owner)
    await quota.listen(path)
    stack.push_async_callback(quota.close)
    keeper = StoreKeeper(owner, lambda: link(server, host, clock=KEY_CLOCK), clock=clock, loop=loop, away_s=PATIENT_S)
    for job in (quota.run(), keeper.run()):
        task = loop.create_task(job)
        stack.push_async_callback(asyncio.wait, [task])
        stack.callback(task.cancel)
    await keeper.registered.wait()


@pytest.fixture(scope="module")
def server() -> Iterator[Valkey]:
    with valkey() as one:
        yield one


@pytest.fixture(params=["local", "socket", "valkey", "valkey-two-hosts"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Runner:
    if request.param == "local":
        return lambda scenario: asyncio.run(run_local(scenario))
    if request.param == "socket":
        return lambda scenario: asyncio.run(run_socket(scenario, tmp_path / "quota.sock"))
    server: Valkey = request.getfixturevalue("server")
    with server.client() as client:
        client.flushall()
    hosts = 1 if request.param == "valkey" else 2
    return lambda scenario: asyncio.run(run_shared(scenario, server, tmp_path, hosts))


def test_an_unlimited_plan_is_granted_without_headers(run: Runner) -> None:
    async def scenario(bench: Bench) -> None:
        for store in (bench.first, bench.second):
            grant = await bench.grant(store, plan_of())
            assert grant.headers == []
            assert grant.tenant == "acme"
            store.release(grant, is_counted=True)

    run(scenario)


def test_concurrency_is_one_limit_over_both_workers(run: Runner) -> None:
    async def scenario(bench: Bench) -> None:
        plan = plan_of(concurrency=2)
        held = await bench.grant(bench.first, plan)
        await bench.grant(bench.second, plan)
        for store in (bench.first, bench.second):
            refusal = await bench.refuse(store, plan)
            assert refusal.code is Code.CONCURRENCY_EXCEEDED
            assert refusal.retry_after_ms == 1000
        bench.first.release(held, is_counted=True)
        await asyncio.sleep(0)
        await settled(bench)
        await bench.grant(bench.second, plan)

    run(scenario)


def test_a_rate_is_one_limit_over_both_workers_and_says_when_to_come_back(run: Runner) -> None:
    async def scenario(bench: Bench) -> None:
        plan = plan_of(rate_calls=5, burst=2)
        await bench.grant(bench.first, plan)
        await bench.grant(bench.second, plan)
        refusal = await bench.refuse(bench.first, plan)
        assert (refusal.code, refusal.retry_after_ms) == (Code.RATE_EXCEEDED, 200)
        assert dict(refusal.headers)[b"ratelimit"] == b'"burst";r=0;t=1'
        bench.clock.advance(200 * MS)
        await bench.grant(bench.second, plan)
        assert (await bench.refuse(bench.first, plan)).code is Code.RATE_EXCEEDED

    run(scenario)


def test_a_daily_cap_is_exact_over_both_workers_and_ends_with_the_day(run: Runner) -> None:
    async def scenario(bench: Bench) -> None:
        plan = plan_of(calls_per_day=7)
        for at in range(7):
            store = (bench.first, bench.second)[at % 2]
            grant = await bench.grant(store, plan)
            assert dict(grant.headers)[b"ratelimit"] == b'"day";r=%d;t=86400' % (6 - at)
            store.release(grant, is_counted=True)
        refusal = await bench.refuse(bench.first, plan)
        assert (refusal.code, refusal.retry_after_ms) == (Code.DAILY_CAP_EXCEEDED, DAY_NS // MS)
        bench.clock.advance(DAY_NS)
        await bench.grant(bench.first, plan)

    run(scenario)


def test_a_call_that_is_not_counted_gives_the_caps_back(run: Runner) -> None:
    async def scenario(bench: Bench) -> None:
        plan = plan_of(calls_per_day=1, calls_per_month=1)
        grant = await bench.grant(bench.first, plan)
        bench.first.release(grant, is_counted=False)
        await settled(bench)
        again = await bench.grant(bench.second, plan)
        bench.second.release(again, is_counted=True)
        await settled(bench)
        assert (await bench.refuse(bench.second, plan)).code is Code.DAILY_CAP_EXCEEDED

    run(scenario)


def test_a_second_release_of_one_grant_changes_nothing(run: Runner) -> None:
    async def scenario(bench: Bench) -> None:
        plan = plan_of(concurrency=2, calls_per_day=2)
        first = await bench.grant(bench.first, plan)
        await bench.grant(bench.first, plan)
        bench.first.release(first, is_counted=True)
        bench.first.release(first, is_counted=False)
        await settled(bench)
        assert (await bench.refuse(bench.first, plan)).code is Code.DAILY_CAP_EXCEEDED

    run(scenario)


def test_a_refused_call_changes_no_counter(run: Runner) -> None:
    async def scenario(bench: Bench) -> None:
        plan = plan_of(concurrency=1, rate_calls=5, burst=3, calls_per_day=3)
        held = await bench.grant(bench.first, plan)
        for _ in range(5):
            assert (await bench.refuse(bench.second, plan)).code is Code.CONCURRENCY_EXCEEDED
        bench.first.release(held, is_counted=True)
        await settled(bench)
        for left in (1, 0):
            grant = await bench.grant(bench.second, plan)
            assert b'"day";r=%d;' % left in dict(grant.headers)[b"ratelimit"]
            bench.second.release(grant, is_counted=True)
            await settled(bench)

    run(scenario)


def test_a_plan_change_holds_for_the_next_call(run: Runner) -> None:
    async def scenario(bench: Bench) -> None:
        wide, narrow = plan_of(concurrency=3), plan_of(version=2, concurrency=1)
        held = [await bench.grant(bench.first, wide), await bench.grant(bench.first, wide)]
        assert (await bench.refuse(bench.first, narrow)).code is Code.CONCURRENCY_EXCEEDED
        bench.first.release(held.pop(), is_counted=True)
        assert (await bench.refuse(bench.first, narrow)).code is Code.CONCURRENCY_EXCEEDED
        bench.first.release(held.pop(), is_counted=True)
        await settled(bench)
        await bench.grant(bench.first, narrow)

    run(scenario)


def test_a_large_plan_keeps_its_limits_too(run: Runner) -> None:
    """The leased case: many calls at once over both workers, none beyond the cap."""

    async def scenario(bench: Bench) -> None:
        plan = plan_of(rate_calls=100_000, burst=100_000, concurrency=1000, calls_per_day=5000)
        granted = 0
        for at in range(6000):
            store = (bench.first, bench.second)[at // 16 % 2]
            decision = await bench.admit(store, plan)
            if isinstance(decision, Grant):
                granted += 1
                store.release(decision, is_counted=True)
            else:
                assert decision.code is Code.DAILY_CAP_EXCEEDED
        assert granted == 5000

    run(scenario)


async def settled(bench: Bench) -> None:
    """What was sent before this has been heard: an ask of another tenant travels behind it."""
    for store in (bench.first, bench.second):
        decided = asyncio.get_running_loop().create_future()
        probe = plan_of(name="probe", rate_calls=1, rate_window_s=1, burst=1)
        tenant = type(ACME)(tenant=f"probe-{id(decided)}", plan="probe")
        bench.learn(tenant, probe)
        if store.admit(tenant, probe, decided.set_result) is None:
            await decided


def test_seconds_in_headers_follow_the_wall_clock(run: Runner) -> None:
    async def scenario(bench: Bench) -> None:
        plan = plan_of(calls_per_day=10)
        bench.clock.advance(DAY_NS - 90 * S)
        grant = await bench.grant(bench.first, plan)
        assert dict(grant.headers)[b"ratelimit"] == b'"day";r=9;t=90'
        bench.clock.advance(30 * S)
        grant = await bench.grant(bench.first, plan)
        assert dict(grant.headers)[b"ratelimit"] == b'"day";r=8;t=60'

    run(scenario)
