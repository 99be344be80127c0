"""Owner and workers over a socket in one loop: faults of the peer, waits, and what stays behind."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest

from gateway.clock import FakeClock
from gateway.errors import Code, Refusal
from gateway.quota.memory_client import ANSWER_NS_MAX, MemoryQuotaStore
from gateway.quota.owner import Owner
from gateway.quota.protocol import Ask, FromWorker, Hello, encode_frame
from gateway.quota.server import QuotaServer
from gateway.quota.store import Decision, Grant
from tests.leaks import assert_none_left, held
from tests.unit.quota.plans import ACME, plan_of

ASK = Ask("acme", "plan", 1, 1, 1, 0, 0)


class Silent(asyncio.Protocol):
    """Accepts and never says a word."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._stack.callback(transport.close)


class Rig:
    def __init__(self, path: Path, stack: AsyncExitStack) -> None:
        self.path = path
        self.stack = stack
        self.clock = FakeClock()
        self.owner = Owner(self.clock, has_meter=False)
        self.looks = 0

    async def look(self) -> None:
        self.looks += 1

    async def serve(self) -> QuotaServer:
        loop = asyncio.get_running_loop()
        server = QuotaServer(self.owner, loop, self.look, None, workers_expected=1)
        await server.listen(self.path)
        self.stack.push_async_callback(server.close)
        self.stack.callback(loop.create_task(server.run()).cancel)
        return server

    async def store(self) -> MemoryQuotaStore:
        store = MemoryQuotaStore(self.path, worker="w0", clock=self.clock, loop=asyncio.get_running_loop())
        await store.start()
        self.stack.push_async_callback(store.close)
        return store


def run(tmp_path: Path, scenario: Callable[[Rig], Awaitable[None]]) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack, asyncio.timeout(60):
            await scenario(Rig(tmp_path / "quota.sock", stack))
        await asyncio.sleep(0)  # closed transports let go of their sockets

    asyncio.run(main())


def wait_for(store: MemoryQuotaStore, plan_fields: dict[str, int]) -> "asyncio.Future[Decision]":
    decided: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
    assert store.admit(ACME, plan_of(**plan_fields), decided.set_result) is None
    return decided


@pytest.mark.parametrize(
    "frames",
    [
        [b"\xff\xff\xff\xff"],
        [b"\x01\x00\x00\x00\xc1"],
        [[ASK]],
        [[Hello(2, "w0", [], is_last=True)]],
        [[Hello(1, "w0", [], is_last=True), Hello(1, "w0", [], is_last=True)]],
        [[Hello(1, "w0", [], is_last=True), ASK, ASK]],
        [[Hello(1, "w0", [], is_last=True), Ask("acme", "plan", 1, -1, 0, 0, 0)]],
    ],
)
def test_a_peer_that_breaks_the_protocol_is_cut_off_and_others_are_served(
    tmp_path: Path, frames: list[bytes | list[FromWorker]], caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.serve()
        reader, writer = await asyncio.open_unix_connection(rig.path)
        for frame in frames:
            writer.write(frame if isinstance(frame, bytes) else encode_frame(frame))
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()
        store = await rig.store()
        rig.owner.learn(ACME, plan_of(concurrency=1))
        assert isinstance(await wait_for(store, {"concurrency": 1}), Grant)

    with caplog.at_level(logging.CRITICAL):
        run(tmp_path, scenario)


def test_an_unknown_tenant_is_refused_after_one_look_at_the_snapshot(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.serve()
        decision = await wait_for(await rig.store(), {"concurrency": 1})
        assert isinstance(decision, Refusal)
        assert decision.code is Code.QUOTA_UNAVAILABLE
        assert rig.looks == 1

    run(tmp_path, scenario)


def test_who_waits_is_refused_when_the_store_closes_and_nothing_is_held(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.serve()
        store = await rig.store()
        rig.owner.learn(ACME, plan_of(concurrency=1))
        decided = wait_for(store, {"concurrency": 1})
        await store.close()
        decision = await decided
        assert isinstance(decision, Refusal)
        assert decision.code is Code.QUOTA_UNAVAILABLE
        again = await rig.store()
        assert isinstance(await wait_for(again, {"concurrency": 1}), Grant)

    run(tmp_path, scenario)


def test_an_owner_that_does_not_answer_is_left_and_its_callers_are_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(rig: Rig) -> None:
        silent = await asyncio.get_running_loop().create_unix_server(lambda: Silent(rig.stack), rig.path)
        rig.stack.callback(silent.close)
        store = await rig.store()
        decided = wait_for(store, {"concurrency": 1})
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        rig.clock.advance(ANSWER_NS_MAX + 1)
        decision = await decided
        assert isinstance(decision, Refusal)
        assert decision.code is Code.QUOTA_UNAVAILABLE

    with caplog.at_level(logging.CRITICAL):
        run(tmp_path, scenario)


def test_idle_leases_and_slots_go_back_to_the_owner(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.serve()
        store = await rig.store()
        fields = {"concurrency": 1000, "calls_per_day": 100_000}
        rig.owner.learn(ACME, plan_of(**fields))
        grant = await wait_for(store, fields)
        assert isinstance(grant, Grant)
        store.release(grant, is_counted=True)
        (worker,) = rig.owner.workers
        assert worker.slots["acme"] > 1
        while worker.spares:
            await asyncio.sleep(0.01)
        assert worker.slots == {}
        again = await wait_for(store, fields)
        assert isinstance(again, Grant)
        # One call is used up, one is in flight, 64 are leased anew.
        assert dict(again.headers)[b"ratelimit"].startswith(b'"concurrency";r=999, "day";r=99998;')

    run(tmp_path, scenario)


def test_connections_leave_no_descriptor_behind(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.serve()
        await (await rig.store()).close()
        before = held()
        for _ in range(20):
            await (await rig.store()).close()
        while rig.owner.workers:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert_none_left(before, 20)

    run(tmp_path, scenario)
