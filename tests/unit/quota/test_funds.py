"""Purses, owner and meter over sockets in one loop: leases asked for, shared, recalled, and who is away."""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from billing.funds import FundsDesk
from billing.invoices.desk import Desk
from billing.invoices.verbs import all_verbs
from billing.ledger import leases
from billing.ledger.connect import statements
from billing.ledger.schema import schema_sql
from billing.ledger.sqlite import SqlLedger
from billing.wallets.store import wallet_state
from gateway.clock import FakeClock
from gateway.errors import Code, Refusal
from gateway.quota import funds_client
from gateway.quota.funds import (
    DENIED_NS,
    LEASE_TTL_NS,
    PURSES_MAX,
    SPARE_CALLS_FIRST,
    SPARE_NANOS_MAX,
    WAITING_CALLS_MAX,
    Purse,
)
from gateway.quota.funds_client import ANSWER_NS_MAX, WAIT_NS_MAX, FundsClient
from gateway.quota.funds_protocol import Begin, FromWorker, Order, decode_from_owner, encode_frames
from gateway.quota.funds_server import CEILING_NANOS_MAX, ORDERS_MAX, FundsServer
from gateway.quota.protocol import ProtocolError

ORDER = Order("acme", "USD", 2, 0, 5, 5, 0, is_return=False)
BEGIN = Begin(1, "w9", 1)


class Meter:
    """The meter's socket, on a ledger in memory."""

    def __init__(self, path: Path) -> None:
        db = sqlite3.connect(":memory:", isolation_level=None)
        for statement in statements(schema_sql()):
            db.execute(statement)
        self.db = db
        self.ledger = SqlLedger(db)
        self.desk = Desk(self.ledger, all_verbs(), lambda: 1)
        self.funds = FundsDesk(self.ledger, lambda: 1)
        self.requests: list[dict[str, Any]] = []
        self.is_silent = False
        self.answer: bytes | None = None
        self._path = path
        self._server: asyncio.AbstractServer | None = None
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def listen(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self._path)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*self._tasks)
        self._path.unlink(missing_ok=True)

    def top_up(self, nanos: int) -> None:
        order = {"tenant": "acme", "currency": "USD", "amount_nanos": nanos, "reason": "test"}
        self.desk.run("wallet.grant", f"grant-{len(self.requests)}-{nanos}", order)

    @property
    def held(self) -> int:
        return wallet_state(self.db, "acme", "USD").held_nanos

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.append(task)
        try:
            while True:
                size = int.from_bytes(await reader.readexactly(4), "little")
                request = msgspec.msgpack.decode(await reader.readexactly(size))
                self.requests.append(request)
                if self.is_silent:
                    continue
                leases = self.funds.run(request["orders"], request["workers"])
                answer = self.answer or msgspec.msgpack.encode({"leases": leases})
                writer.write(len(answer).to_bytes(4, "little") + answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


class Rig:
    """One meter, one owner, any number of workers."""

    def __init__(self, folder: Path, stack: AsyncExitStack) -> None:
        self.folder = folder
        self.stack = stack
        self.clock = FakeClock()
        self.meter = Meter(folder / "meter.sock")
        self.owner: FundsServer | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, funds: int = 1_000) -> None:
        await self.meter.listen()
        self.stack.push_async_callback(self.meter.close)
        if funds:
            self.meter.top_up(funds)
        await self.start_owner()

    async def start_owner(self) -> FundsServer:
        loop = asyncio.get_running_loop()
        self.owner = FundsServer(loop, self.folder / "meter.sock")
        await self.owner.listen(self.folder / "funds.sock")
        self._task = loop.create_task(self.owner.run())
        self.stack.push_async_callback(self.stop_owner)
        return self.owner

    async def stop_owner(self) -> None:
        if self.owner is not None and self._task is not None:
            await self.owner.close()
            self._task.cancel()
            await asyncio.wait([self._task])
            self.owner = None

    def worker(self, name: str = "w0") -> FundsClient:
        loop = asyncio.get_running_loop()
        client = FundsClient(self.folder / "funds.sock", instance=name, epoch=1, clock=self.clock, loop=loop)
        self.stack.push_async_callback(client.close)
        return client


def run(tmp_path: Path, scenario: Callable[[Rig], Awaitable[None]]) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack, asyncio.timeout(120):
            await scenario(Rig(tmp_path, stack))
        await asyncio.sleep(0)  # closed transports let go of their sockets

    asyncio.run(main())


def purse_of(client: FundsClient) -> Purse:
    purse = client.purse("acme", "USD")
    assert purse is not None
    return purse


def ask(rig: Rig, client: FundsClient, nanos: int) -> "asyncio.Future[Refusal | None]":
    told: asyncio.Future[Refusal | None] = asyncio.get_running_loop().create_future()
    refusal = client.ask(purse_of(client), nanos, rig.clock.monotonic_ns(), told.set_result)
    assert refusal is None
    return told


def code_of(refusal: Refusal | None) -> Code:
    assert refusal is not None
    return refusal.code


async def until(is_done: Callable[[], bool]) -> None:
    while not is_done():
        await asyncio.sleep(0.001)


def test_the_first_call_asks_and_the_next_ones_do_not(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.start(10_000)
        client = rig.worker()
        assert not client.try_reserve(purse_of(client), 10, rig.clock.monotonic_ns())
        assert await ask(rig, client, 10) is None
        spare = SPARE_CALLS_FIRST * 10
        assert purse_of(client).room == spare
        for _ in range(SPARE_CALLS_FIRST):
            assert client.try_reserve(purse_of(client), 10, rig.clock.monotonic_ns())
        assert len(rig.meter.requests) == 1
        client.settle(purse_of(client), 10, 4)
        assert purse_of(client).committed == SPARE_CALLS_FIRST * 10 + 4

    run(tmp_path, scenario)


def test_more_is_leased_before_it_is_needed(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.start(100_000)
        client = rig.worker()
        await ask(rig, client, 10)
        purse = purse_of(client)
        ceiling = purse.ceiling
        while purse.low:
            assert client.try_reserve(purse, 10, rig.clock.monotonic_ns())
        assert purse.room > 0
        await until(lambda: purse.ceiling > ceiling)
        assert len(rig.meter.requests) == 2

    run(tmp_path, scenario)


def test_calls_of_one_turn_are_one_order_and_are_served_in_turn(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.start(25)
        client = rig.worker()
        found = await asyncio.gather(*(ask(rig, client, 10) for _ in range(4)))
        assert [one is None for one in found] == [True, True, False, False]
        assert code_of(found[3]) is Code.INSUFFICIENT_FUNDS
        assert len(rig.meter.requests) == 1
        assert purse_of(client).room == 5

    run(tmp_path, scenario)


def test_an_empty_wallet_is_not_asked_about_again_for_a_while(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.start(0)
        client = rig.worker()
        assert code_of(await ask(rig, client, 10)) is Code.INSUFFICIENT_FUNDS
        purse = purse_of(client)
        for _ in range(3):
            refusal = client.ask(purse, 10, rig.clock.monotonic_ns(), lambda _: None)
            assert code_of(refusal) is Code.INSUFFICIENT_FUNDS
        assert len(rig.meter.requests) == 1
        # A cheaper call may be covered.
        assert code_of(await ask(rig, client, 9)) is Code.INSUFFICIENT_FUNDS
        rig.meter.top_up(10)
        rig.clock.advance(DENIED_NS)
        assert await ask(rig, client, 10) is None

    run(tmp_path, scenario)


def test_what_another_worker_does_not_need_is_recalled(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.start(100)
        first, second = rig.worker("w0"), rig.worker("w1")
        assert await ask(rig, first, 60) is None
        first.settle(purse_of(first), 60, 10)  # 50 and what was spare lie idle
        assert await ask(rig, second, 80) is None
        assert purse_of(first).room == 0
        assert rig.meter.held <= 100
        assert code_of(await ask(rig, first, 11)) is Code.INSUFFICIENT_FUNDS
        assert await ask(rig, first, 10) is None

    run(tmp_path, scenario)


def test_idle_money_goes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(funds_client, "TICK_S", 0.005)

    async def scenario(rig: Rig) -> None:
        await rig.start(1_000)
        client = rig.worker()
        await ask(rig, client, 10)
        client.settle(purse_of(client), 10, 3)
        await until(lambda: rig.meter.held == 3)
        assert purse_of(client).room == 0
        assert (purse_of(client).committed, purse_of(client).ceiling) == (3, 3)

    run(tmp_path, scenario)


def test_a_lease_is_renewed_while_it_is_used_and_not_spent_when_it_is_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(funds_client, "TICK_S", 0.005)
    monkeypatch.setattr(funds_client, "IDLE_TICKS", 10**9)

    async def scenario(rig: Rig) -> None:
        await rig.start(1_000)
        client = rig.worker()
        await ask(rig, client, 10)
        purse = purse_of(client)
        rig.clock.advance(LEASE_TTL_NS // 2 + 1)
        before = purse.expires_ns
        await until(lambda: purse.expires_ns > before)
        rig.clock.advance(LEASE_TTL_NS)
        now_ns = rig.clock.monotonic_ns()
        assert purse.room >= 1
        assert not client.try_reserve(purse, 1, now_ns)
        assert await ask(rig, client, 1) is None
        assert client.try_reserve(purse, 1, rig.clock.monotonic_ns())

    run(tmp_path, scenario)


def test_a_meter_that_is_away_is_503_and_then_found_again(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.start_owner()
        client = rig.worker()
        assert code_of(await ask(rig, client, 10)) is Code.QUOTA_UNAVAILABLE
        await rig.meter.listen()
        rig.stack.push_async_callback(rig.meter.close)
        rig.meter.top_up(10)
        assert await ask(rig, client, 10) is None

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    "answer",
    [b"\xc1", msgspec.msgpack.encode({"leases": []}), msgspec.msgpack.encode({"error": {"code": "x", "message": "y"}})],
)
def test_an_answer_that_makes_no_sense_is_as_none(tmp_path: Path, answer: bytes) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.start(100)
        rig.meter.answer = answer
        client = rig.worker()
        assert code_of(await ask(rig, client, 10)) is Code.QUOTA_UNAVAILABLE
        rig.meter.answer = None
        # Carried out though not answered: the next order tells what is held.
        assert await ask(rig, client, 100) is None

    run(tmp_path, scenario)


def test_calls_wait_for_the_next_owner_and_go_on_with_what_is_leased(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.start(10_000)
        client = rig.worker()
        await ask(rig, client, 10)
        purse = purse_of(client)
        await rig.stop_owner()
        await until(lambda: client._connection is None)
        assert client.try_reserve(purse, 10, rig.clock.monotonic_ns())
        waiting = ask(rig, client, purse.room + 1)
        await rig.start_owner()
        assert await waiting is None

    run(tmp_path, scenario)


def test_calls_do_not_wait_for_ever_for_an_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(funds_client, "TICK_S", 0.005)

    async def scenario(rig: Rig) -> None:
        client = rig.worker()
        waiting = ask(rig, client, 10)
        rig.clock.advance(WAIT_NS_MAX)
        late = ask(rig, client, 10)
        rig.clock.advance(1)
        assert code_of(await waiting) is Code.QUOTA_UNAVAILABLE
        assert not late.done()
        await client.close()
        assert code_of(await late) is Code.QUOTA_UNAVAILABLE

    run(tmp_path, scenario)


def test_an_owner_that_does_not_answer_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(funds_client, "TICK_S", 0.005)

    async def scenario(rig: Rig) -> None:
        await rig.start(100)
        rig.meter.is_silent = True
        client = rig.worker()
        waiting = ask(rig, client, 10)
        await until(lambda: bool(rig.meter.requests))
        rig.clock.advance(ANSWER_NS_MAX + 1)
        await until(lambda: "funds_owner_silent" in caplog.text)
        rig.meter.is_silent = False
        await rig.stop_owner()
        assert code_of(await waiting) is Code.QUOTA_UNAVAILABLE
        await rig.start_owner()
        assert await ask(rig, client, 10) is None

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    "frames",
    [
        [b"\xff\xff\xff\xff"],
        [b"\x01\x00\x00\x00\xc1"],
        [[ORDER]],
        [[Begin(2, "w9", 1)]],
        [[Begin(1, "", 1)]],
        [[BEGIN, BEGIN]],
        [[BEGIN, ORDER, ORDER]],
        [[BEGIN, Order("acme", "USD", 2, -1, 5, 5, 0, is_return=False)]],
        [[BEGIN, Order("acme", "USD", 2, 0, 6, 5, 0, is_return=False)]],
        [[BEGIN, Order("acme", "USD", 2, 0, 5, CEILING_NANOS_MAX + 1, 0, is_return=False)]],
        [[BEGIN, Order("", "USD", 2, 0, 5, 5, 0, is_return=False)]],
        [[BEGIN, Order("acme", "DOLLAR", 2, 0, 5, 5, 0, is_return=False)]],
    ],
)
def test_a_worker_that_breaks_the_protocol_is_cut_off_and_others_are_served(
    tmp_path: Path, frames: list[bytes | list[FromWorker]], caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.start(100)
        reader, writer = await asyncio.open_unix_connection(rig.folder / "funds.sock")
        for frame in frames:
            writer.write(frame if isinstance(frame, bytes) else encode_frames(frame))
        with suppress(ConnectionResetError):  # the same, where something was still unread
            assert await reader.read() == b""
        assert "funds_protocol_error" in caplog.text
        writer.close()
        assert await ask(rig, rig.worker(), 10) is None

    run(tmp_path, scenario)


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x91\x92\xa1?\x01", b"\x91\xc0" * 3])
def test_a_frame_that_cannot_be_read_is_a_protocol_error(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_from_owner(payload)


def test_wallets_and_waiting_calls_have_a_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if (funds_client.__file__ or "").endswith(".so"):
        pytest.skip("the constants of a compiled module cannot be replaced")
    assert (PURSES_MAX, WAITING_CALLS_MAX) == (100_000, 20_000)
    monkeypatch.setattr(funds_client, "PURSES_MAX", 3)
    monkeypatch.setattr(funds_client, "WAITING_CALLS_MAX", 3)

    async def scenario(rig: Rig) -> None:
        client = rig.worker()
        purse = purse_of(client)
        now_ns = rig.clock.monotonic_ns()
        for _ in range(3):
            assert client.ask(purse, 1, now_ns, lambda _: None) is None
        assert code_of(client.ask(purse, 1, now_ns, lambda _: None)) is Code.OVERLOADED
        assert client.purse("2", "USD") is not None
        assert client.purse("acme", "EUR") is not None
        assert client.purse("one-too-many", "USD") is None
        assert client.purse("acme", "USD") is purse

    run(tmp_path, scenario)


def test_both_sides_know_the_same_limits() -> None:
    assert (CEILING_NANOS_MAX, ORDERS_MAX) == (leases.CEILING_NANOS_MAX, leases.ORDERS_MAX)
    assert (SPARE_NANOS_MAX, LEASE_TTL_NS) == (leases.SPARE_NANOS_MAX, leases.LEASE_TTL_NS)
