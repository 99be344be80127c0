"""The owner as a process: readiness, kill -9 at `lease_granted`, restart with hello and recount, declared outages."""

import asyncio
import os
import signal
import stat
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec

from billing.rating import Price, PriceBook
from gateway.clock import SystemClock
from gateway.errors import Code, Refusal
from gateway.quota.memory_client import MemoryQuotaStore
from gateway.quota.store import Decision, Grant
from gateway.snapshot import Plan, Snapshot, Tenant, write_snapshot
from tests.unit.quota.plans import plan_of

WAIT_S = 60.0


class Meter:
    """Answers `counts` with what the test says was served, and remembers what it was asked."""

    def __init__(self) -> None:
        self.served: dict[str, int] = {}
        self.asked: list[list[Any]] = []

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = int.from_bytes(await reader.readexactly(4), "little")
        question = msgspec.msgpack.decode(await reader.readexactly(size))
        assert question["op"] == "counts"
        self.asked += question["windows"]
        payload = msgspec.msgpack.encode({"counts": [self.served.get(name, 0) for name, _ in question["windows"]]})
        writer.write(len(payload).to_bytes(4, "little") + payload)
        await writer.drain()
        writer.close()


class Machine:
    """A data directory, a meter, and owner processes over it."""

    def __init__(self, data_dir: Path, stack: AsyncExitStack) -> None:
        self.data_dir = data_dir
        self.socket = data_dir / "quota.sock"
        self.meter = Meter()
        self._stack = stack
        self._version = 0

    def publish(self, *plans: Plan) -> None:
        """Each plan has one tenant of the same name."""
        self._version += 1
        snapshot = Snapshot(
            version=self._version,
            created_ns=0,
            keys=(),
            tenants=tuple(Tenant(tenant=plan.name, plan=plan.name) for plan in plans),
            plans=plans,
            backends=(),
            prices=PriceBook(version=1, currency="USD", default=Price()),
            peppers={},
        )
        write_snapshot(self.data_dir, snapshot)

    async def start_meter(self) -> None:
        server = await asyncio.start_unix_server(self.meter.answer, self.data_dir / "meter.sock")
        self._stack.callback(server.close)

    async def start_owner(self, failpoint: str = "", *, workers: int = 1) -> asyncio.subprocess.Process:
        ready, told = os.pipe()
        command = [sys.executable, "-m", "gateway.quota", "--socket", str(self.socket)]
        command += ["--data-dir", str(self.data_dir), "--meter-socket", str(self.data_dir / "meter.sock")]
        command += ["--workers", str(workers), "--ready-fd", str(told)]
        environ = {**os.environ, "TOLLWAY_FAILPOINT": failpoint}
        process = await asyncio.create_subprocess_exec(*command, pass_fds=[told], env=environ)
        self._stack.push_async_callback(_end, process)
        os.close(told)
        loop = asyncio.get_running_loop()
        try:
            assert await loop.run_in_executor(None, os.read, ready, 6) == b"ready\n"
        finally:
            os.close(ready)
        return process

    async def start_store(self, name: str = "w0") -> MemoryQuotaStore:
        store = MemoryQuotaStore(self.socket, worker=name, clock=SystemClock(), loop=asyncio.get_running_loop())
        await store.start()
        self._stack.push_async_callback(store.close)
        return store


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()


def run(data_dir: Path, scenario: Callable[[Machine], Awaitable[None]]) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack, asyncio.timeout(WAIT_S):
            await scenario(Machine(data_dir, stack))

    asyncio.run(main())


async def admit(store: MemoryQuotaStore, plan: Plan) -> Decision:
    decided: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
    now = store.admit(Tenant(tenant=plan.name, plan=plan.name), plan, decided.set_result)
    return await decided if now is None else now


async def grant(store: MemoryQuotaStore, plan: Plan) -> Grant:
    """A grant, as a caller gets it who comes again while limits cannot be decided."""
    while isinstance(decision := await admit(store, plan), Refusal):
        assert decision.code is Code.QUOTA_UNAVAILABLE, decision
        await asyncio.sleep(0.01)
    return decision


async def refusal_code(store: MemoryQuotaStore, plan: Plan) -> Code:
    """Why a call is refused, once limits can be decided."""
    while True:
        decision = await admit(store, plan)
        assert isinstance(decision, Refusal), "granted"
        if decision.code is not Code.QUOTA_UNAVAILABLE:
            return decision.code
        await asyncio.sleep(0.01)


def test_it_serves_when_it_says_so_and_stops_on_sigterm(tmp_path: Path) -> None:
    async def scenario(machine: Machine) -> None:
        plan = plan_of(concurrency=1)
        machine.publish(plan)
        owner = await machine.start_owner()
        assert stat.S_IMODE(machine.socket.stat().st_mode) == 0o600
        store = await machine.start_store()
        await grant(store, plan)
        assert await refusal_code(store, plan) is Code.CONCURRENCY_EXCEEDED
        owner.send_signal(signal.SIGTERM)
        assert await owner.wait() == 0
        assert not machine.socket.exists()

    run(tmp_path, scenario)


def test_after_a_kill_caps_are_read_from_the_meter_and_slots_from_the_workers(tmp_path: Path) -> None:
    async def scenario(machine: Machine) -> None:
        plan = plan_of(concurrency=2, calls_per_day=10)
        machine.publish(plan)
        await machine.start_meter()
        owner = await machine.start_owner("lease_granted:4")
        store = await machine.start_store()
        held = await grant(store, plan)
        for _ in range(2):
            store.release(await grant(store, plan), is_counted=True)
        # The fourth decision dies with the owner: nobody is told yes.
        lost = await admit(store, plan)
        assert isinstance(lost, Refusal)
        assert lost.code is Code.QUOTA_UNAVAILABLE
        assert lost.retry_after_ms == 1000
        assert await owner.wait() == -signal.SIGKILL
        # Eight were served all in all, and one is in flight: one is left, and one slot.
        machine.meter.served["plan"] = 8
        await machine.start_owner()
        last = await grant(store, plan)
        assert await refusal_code(store, plan) is Code.CONCURRENCY_EXCEEDED
        store.release(last, is_counted=True)
        store.release(held, is_counted=True)
        assert await refusal_code(store, plan) is Code.DAILY_CAP_EXCEEDED
        assert {name for name, _ in machine.meter.asked} == {"plan"}

    run(tmp_path, scenario)


def test_without_a_meter_capped_tenants_are_refused_and_others_served(tmp_path: Path) -> None:
    async def scenario(machine: Machine) -> None:
        capped, other = plan_of(name="capped", calls_per_day=10), plan_of(name="other", concurrency=1)
        machine.publish(capped, other)
        await machine.start_owner()
        store = await machine.start_store()
        await grant(store, other)
        refusal = await admit(store, capped)
        assert isinstance(refusal, Refusal)
        assert (refusal.code, refusal.retry_after_ms) == (Code.QUOTA_UNAVAILABLE, 1000)
        await machine.start_meter()
        await grant(store, capped)

    run(tmp_path, scenario)


def test_while_the_owner_is_away_plans_do_as_they_declare(tmp_path: Path) -> None:
    async def scenario(machine: Machine) -> None:
        lease = plan_of(name="lease", concurrency=1000, calls_per_month=1_000_000, store_down="lease")
        closed = plan_of(name="closed", concurrency=1000, calls_per_month=1_000_000)
        free = plan_of(name="free")
        machine.publish(lease, closed, free)
        await machine.start_meter()
        owner = await machine.start_owner()
        store = await machine.start_store()
        for plan in (lease, closed):
            store.release(await grant(store, plan), is_counted=True)
        owner.kill()
        await owner.wait()
        while store.is_connected:
            await asyncio.sleep(0.001)
        served = 0
        while isinstance(decision := await admit(store, lease), Grant):
            served += 1
            store.release(decision, is_counted=True)
        assert decision.code is Code.QUOTA_UNAVAILABLE
        assert served == 64
        assert isinstance(await admit(store, closed), Refusal)
        assert isinstance(await admit(store, free), Grant)
        # What went on meanwhile is told to the next owner; the meter here has not seen it.
        await machine.start_owner()
        assert b'"month";r=' in dict((await grant(store, lease)).headers)[b"ratelimit"]

    run(tmp_path, scenario)


def test_a_dead_workers_slots_are_free_at_once_and_its_leased_calls_after_a_recount(tmp_path: Path) -> None:
    async def scenario(machine: Machine) -> None:
        plan = plan_of(concurrency=1, calls_per_day=2)
        machine.publish(plan)
        await machine.start_meter()
        await machine.start_owner(workers=2)
        dying, living = await machine.start_store("w0"), await machine.start_store("w1")
        await grant(dying, plan)
        assert await refusal_code(living, plan) is Code.CONCURRENCY_EXCEEDED
        # Its call never reached the log: the meter knows of none, so both calls of the day are still to be had.
        await dying.close()
        for _ in range(2):
            while not isinstance(decision := await admit(living, plan), Grant):
                await asyncio.sleep(0.01)
            living.release(decision, is_counted=True)
        assert await refusal_code(living, plan) is Code.DAILY_CAP_EXCEEDED

    run(tmp_path, scenario)


def test_a_new_plan_in_the_snapshot_holds_for_the_next_call(tmp_path: Path) -> None:
    async def scenario(machine: Machine) -> None:
        machine.publish(plan_of(concurrency=1))
        await machine.start_owner()
        store = await machine.start_store()
        await grant(store, plan_of(concurrency=1))
        wider = plan_of(version=2, concurrency=2)
        machine.publish(wider)
        # The worker saw the snapshot first: the owner looks before it decides.
        assert isinstance(await admit(store, wider), Grant)
        assert await refusal_code(store, wider) is Code.CONCURRENCY_EXCEEDED

    run(tmp_path, scenario)


def test_a_grant_for_a_caller_that_left_is_released_uncounted(tmp_path: Path) -> None:
    async def scenario(machine: Machine) -> None:
        plan = plan_of(concurrency=1, calls_per_day=1)
        machine.publish(plan)
        await machine.start_meter()
        await machine.start_owner()
        store = await machine.start_store()
        gone = asyncio.get_running_loop().create_future()

        def too_late(decision: Decision) -> None:
            assert isinstance(decision, Grant)
            store.release(decision, is_counted=False)
            gone.set_result(None)

        assert store.admit(Tenant(tenant="plan", plan="plan"), plan, too_late) is None
        await gone
        assert isinstance(await admit(store, plan), Grant)

    run(tmp_path, scenario)
