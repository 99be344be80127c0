"""A shared quota store in trouble: lost, emptied, read-only, full, silent, locked. Real Valkey, owner, clock."""

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from gateway.clock import SystemClock
from gateway.errors import Code, Refusal
from gateway.quota.link_redis import RedisLink
from gateway.quota.memory_client import MemoryQuotaStore
from gateway.quota.server import QuotaServer
from gateway.quota.shared_owner import SharedOwner
from gateway.quota.store import Decision, Grant
from gateway.quota.store_keeper import StoreKeeper
from gateway.quota.store_link import Command, CommandFailed, StoreUnavailable
from gateway.quota_address import parse_quota_address
from gateway.snapshot import Plan
from tests.e2e.harness import free_ports
from tests.unit.quota.plans import ACME, plan_of
from tests.unit.quota.valkey import Valkey, valkey

WAIT_S = 60.0
RATED = plan_of(rate_calls=1000, burst=10)


class Rig:
    """A worker's store, its owner, and the owner's session at a server."""

    def __init__(self, url: str, folder: Path, stack: AsyncExitStack) -> None:
        self._url = url
        self._folder = folder
        self._stack = stack
        self.hosts = 0

    async def host(self, plan: Plan) -> "Member":
        loop, clock = asyncio.get_running_loop(), SystemClock()
        name, self.hosts = f"host{self.hosts}", self.hosts + 1
        address = parse_quota_address(self._url)
        assert address is not None
        owner = SharedOwner(clock, has_meter=False)
        server = QuotaServer(owner, loop, no_news, None, settle_s=0)
        server.speak_for(owner)
        owner.learn(ACME, plan)
        path = self._folder / f"{name}.sock"
        await server.listen(path)
        self._stack.push_async_callback(server.close)
        keeper = StoreKeeper(owner, lambda: RedisLink(address, name, reply_s=1.0), clock=clock, loop=loop, away_s=0.05)
        for job in (server.run(), keeper.run()):
            task = loop.create_task(job)
            self._stack.push_async_callback(asyncio.wait, [task])
            self._stack.callback(task.cancel)
        store = MemoryQuotaStore(path, worker="w0", clock=clock, loop=loop)
        await store.start()
        self._stack.push_async_callback(store.close)
        return Member(owner, keeper, store, plan)


class Member:
    """One host as a caller meets it."""

    def __init__(self, owner: SharedOwner, keeper: StoreKeeper, store: MemoryQuotaStore, plan: Plan) -> None:
        self.owner = owner
        self.keeper = keeper
        self.store = store
        self.plan = plan

    async def admit(self) -> Decision:
        decided: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        now = self.store.admit(ACME, self.plan, decided.set_result)
        return await decided if now is None else now

    async def until(self, wanted: Code | None) -> Decision:
        """The first decision of this kind (None: a grant); others may come before it."""
        while True:
            decision = await self.admit()
            code = decision.code if isinstance(decision, Refusal) else None
            if code is wanted:
                return decision
            if isinstance(decision, Grant):
                self.store.release(decision, is_counted=True)
            await asyncio.sleep(0.01)


async def no_news() -> None:
    """There is no snapshot to look at."""


def run(url: str, folder: Path, scenario: Callable[[Rig], Awaitable[None]]) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack, asyncio.timeout(WAIT_S):
            await scenario(Rig(url, folder, stack))
        await asyncio.sleep(0)  # closed transports let go of their sockets

    asyncio.run(main())


@pytest.fixture
def server() -> Iterator[Valkey]:
    with valkey() as one:
        yield one


def read_only(server: Valkey) -> Callable[[], None]:
    with server.client() as client:
        client.execute_command("REPLICAOF", "127.0.0.1", "1")

    def heal() -> None:
        with server.client() as client:
            client.execute_command("REPLICAOF", "NO", "ONE")

    return heal


def full(server: Valkey) -> Callable[[], None]:
    with server.client() as client:
        client.config_set("maxmemory", 1)

    def heal() -> None:
        with server.client() as client:
            client.config_set("maxmemory", 0)

    return heal


def silent(server: Valkey) -> Callable[[], None]:
    os.kill(server.pid, signal.SIGSTOP)
    return lambda: os.kill(server.pid, signal.SIGCONT)


def killed(server: Valkey) -> Callable[[], None]:
    server.kill()
    return server.start


@pytest.mark.parametrize("break_it", [read_only, full, silent, killed])
def test_closed_plans_are_refused_until_the_store_is_well_again(
    server: Valkey, tmp_path: Path, break_it: Callable[[Valkey], Callable[[], None]], caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(rig: Rig) -> None:
        host = await rig.host(RATED)
        await host.until(None)
        heal = break_it(server)
        refusal = await host.until(Code.QUOTA_UNAVAILABLE)
        assert isinstance(refusal, Refusal)
        assert refusal.retry_after_ms == 1000
        assert not host.keeper.figures.is_up
        heal()
        await host.until(None)
        assert host.keeper.figures.losses >= 1

    with caplog.at_level(logging.CRITICAL):
        run(server.url, tmp_path, scenario)


@pytest.mark.parametrize("how", ["flushed", "killed"])
def test_slots_in_use_are_known_again_after_the_store_forgot_them(server: Valkey, tmp_path: Path, how: str) -> None:
    async def scenario(rig: Rig) -> None:
        plan = plan_of(concurrency=2)
        first, second = await rig.host(plan), await rig.host(plan)
        held = await first.until(None)
        if how == "flushed":
            with server.client() as client:
                client.flushall()
        else:
            server.kill()
            server.start()
        epoch = first.owner.epoch
        while first.owner.epoch == epoch or second.owner.epoch != first.owner.epoch:
            await asyncio.sleep(0.01)
        await second.until(None)
        await second.until(Code.CONCURRENCY_EXCEEDED)
        assert isinstance(held, Grant)
        first.store.release(held, is_counted=True)
        await second.until(None)

    run(server.url, tmp_path, scenario)


def test_a_script_that_was_flushed_is_loaded_again_unnoticed(server: Valkey, tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        host = await rig.host(RATED)
        await host.until(None)
        with server.client() as client:
            client.script_flush()
        while host.keeper.figures.losses == 0:
            await asyncio.sleep(0.01)
        await host.until(None)

    run(server.url, tmp_path, scenario)


def test_by_lease_a_plan_goes_on_with_what_is_leased(server: Valkey, tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        host = await rig.host(plan_of(calls_per_month=1_000_000, store_down="lease"))
        first = await host.until(None)
        server.kill()
        while not host.owner.is_away:
            await asyncio.sleep(0.01)
        leased = host.store._shelves["acme"].holding().unspent
        served = 0
        while isinstance(await host.admit(), Grant):
            served += 1
        assert served == leased >= 64
        assert isinstance(first, Grant)

    run(server.url, tmp_path, scenario)


def test_two_hosts_with_one_name_do_not_both_decide(server: Valkey, tmp_path: Path) -> None:
    """A data directory that was copied: each fences the other off, and together they never pass the limit."""

    async def scenario(rig: Rig) -> None:
        plan = plan_of(concurrency=1)
        first = await rig.host(plan)
        rig.hosts = 0
        (tmp_path / "host0.sock").rename(tmp_path / "moved.sock")
        second = await rig.host(plan)
        while not (first.keeper.figures.losses and second.keeper.figures.losses):
            await asyncio.sleep(0.01)

    run(server.url, tmp_path, scenario)


def test_round_trips_are_shared_by_calls_and_absent_where_calls_are_leased(server: Valkey, tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        host = await rig.host(plan_of(calls_per_month=1_000_000_000, rate_calls=100_000, burst=100_000))
        while not host.store._shelves or host.store._shelves["acme"].lease.calls < 1000:
            await host.until(None)
        before = host.keeper.figures.commands
        shelf = host.store._shelves["acme"]
        for _ in range(shelf.lease.calls // 4):
            assert isinstance(host.store.admit(ACME, host.plan, lambda _: None), Grant)
        assert host.keeper.figures.commands == before

    run(server.url, tmp_path, scenario)


async def one_run(url: str) -> object:
    address = parse_quota_address(url)
    assert address is not None
    link = RedisLink(address, "host0", reply_s=30.0)
    try:
        run_id = await link.open()
        (reply,) = await link.run("session", "epoch", [Command("register", "", [run_id])])
        return reply if isinstance(reply, CommandFailed) else reply[0]
    finally:
        await link.close()


def test_it_speaks_tcp_with_user_password_and_database() -> None:
    (port,) = free_ports(1)
    with valkey(
        "--port", str(port), "--bind", "127.0.0.1", *["--user", "tollway", "on", ">s#cret", "~{a}:*", "+@all"]
    ) as one:
        assert asyncio.run(one_run(f"redis://tollway:s%23cret@127.0.0.1:{port}/3?space=a")) == b"OK"
        with one.client(db=3) as client:
            assert client.exists("{a}:hosts")
        with pytest.raises(StoreUnavailable, match="password"):
            asyncio.run(one_run(f"redis://tollway:wrong@127.0.0.1:{port}/3?space=a"))
        with pytest.raises(StoreUnavailable):
            asyncio.run(one_run(f"rediss://127.0.0.1:{port}"))  # it does not speak TLS


def test_a_password_that_is_missing_or_wrong_is_said_and_not_told() -> None:
    with valkey("--requirepass", "hidden") as one:
        assert asyncio.run(one_run(f"redis+unix://:hidden@{one.socket}")) == b"OK"
        for url in (one.url, f"redis+unix://:secret@{one.socket}"):
            with pytest.raises(StoreUnavailable) as caught:
                asyncio.run(one_run(url))
            assert "password" in str(caught.value) or "Authentication" in str(caught.value)
            assert "secret" not in str(caught.value)


def test_a_key_of_another_type_where_hosts_are_kept_is_a_failed_command() -> None:
    with valkey() as one, one.client() as client:
        client.set("{tollway}:hosts", "not ours")
        client.hset("{tollway}:epoch", mapping={"id": "e", "run": client.info("server")["run_id"], "start": 1})
        reply = asyncio.run(one_run(one.url))
    assert isinstance(reply, CommandFailed)
    assert "WRONGTYPE" in reply.text


def test_nobody_listens_there() -> None:
    (port,) = free_ports(1)
    with pytest.raises(StoreUnavailable):
        asyncio.run(one_run(f"redis://127.0.0.1:{port}"))
