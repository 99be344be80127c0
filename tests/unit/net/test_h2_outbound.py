"""Pools of outbound HTTP/2 connections: connecting, waiting, back-off, closing; against a scripted unix server."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.net.exchange import POOL_FULL
from gateway.net.h2_outbound import H2PoolLimits, H2UpstreamPool, parse_endpoint
from gateway.wire import http2_frames as frames
from gateway.wire.http2_frames import H2Code
from tests.unit.wire.h2_tools import Peer, block

from .h2_fakes import Account, RecordingListener


class Server(asyncio.Protocol):
    """A connection of the scripted server: answers every complete request with its own body, unless told not to."""

    def __init__(self, house: "House") -> None:
        self.house = house
        self.peer = Peer(is_started=False)
        self.answered: set[int] = set()
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.house.connections.append(self)
        self.house.accepted += 1
        self.house.changed.set()
        if self.house.streams_max:
            self.peer.feed()
            self.transport.write(frames.settings([(frames.MAX_CONCURRENT_STREAMS, self.house.streams_max)]))

    def data_received(self, data: bytes) -> None:
        self.peer.feed(data)
        if self.house.is_answering:
            self.answer()
        self.transport.write(self.peer.output())
        self.house.changed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.house.connections.remove(self)
        self.house.changed.set()

    def answer(self) -> None:
        for name, stream_id, *_ in [entry for entry in self.peer.recorder.log if entry[0] == "end"]:
            if name == "end" and stream_id not in self.answered:
                self.answered.add(stream_id)
                stream = self.peer.recorder.streams[stream_id]
                self.peer.connection.send.reply(stream, block([(b":status", b"200")]), b"ok", None)
        self.transport.write(self.peer.output())


class House:
    """The scripted server."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.connections: list[Server] = []
        self.accepted = 0
        self.changed = asyncio.Event()
        self.is_answering = True
        self.streams_max = 0
        self.server: asyncio.Server | None = None

    async def open(self) -> None:
        self.server = await asyncio.get_running_loop().create_unix_server(lambda: Server(self), str(self.path))

    async def close(self) -> None:
        if self.server is not None:
            self.server.close()
        for connection in list(self.connections):
            connection.transport.abort()
        await self.until(lambda: not self.connections)
        self.path.unlink(missing_ok=True)

    async def until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not is_so():
                self.changed.clear()
                await self.changed.wait()

    @property
    def requests(self) -> int:
        return sum(len(connection.peer.recorder.heads) for connection in self.connections)


class Listener(RecordingListener):
    """A recorder that can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.done = asyncio.Event()

    def on_reply_end(self, trailers: Any) -> None:
        super().on_reply_end(trailers)
        self.done.set()

    def on_reply_error(self, *, is_sent: bool, reason: str) -> None:
        super().on_reply_error(is_sent=is_sent, reason=reason)
        self.done.set()


def run(path: Path, case: Callable[[House, H2UpstreamPool], Awaitable[None]], **limits: Any) -> None:
    async def main() -> None:
        house = House(path / "s.sock")
        account = Account()
        pool = H2UpstreamPool(
            f"unix://{house.path}", H2PoolLimits(**limits), asyncio.get_running_loop(), budget=account
        )
        try:
            async with asyncio.timeout(60):
                await house.open()
                await case(house, pool)
        finally:
            pool.close()
            while pool.connection_count:
                await asyncio.sleep(0)
            await house.close()
            assert account.held == 0

    asyncio.run(main())


def begin(pool: H2UpstreamPool, **changes: Any) -> tuple[Any, Listener]:
    listener = Listener()
    call = pool.request(
        changes.get("method", b"POST"), b"/a", changes.get("headers", []), changes.get("length", -1), listener
    )
    return call, listener


async def ask(pool: H2UpstreamPool, **changes: Any) -> Listener:
    call, listener = begin(pool, **changes)
    call.send_body(b"hello")
    call.send_end()
    await listener.done.wait()
    return listener


def test_calls_share_one_connection(tmp_path: Path) -> None:
    async def case(house: House, pool: H2UpstreamPool) -> None:
        found = await asyncio.gather(*[ask(pool) for _ in range(20)])
        assert all(listener.body == b"ok" for listener in found)
        assert len(house.connections) == 1

    run(tmp_path, case)


def test_heads_are_complete(tmp_path: Path) -> None:
    async def case(house: House, pool: H2UpstreamPool) -> None:
        await ask(pool, headers=[(b"x", b"y")], length=5)
        await ask(pool, headers=[(b"content-length", b"5")], length=5)
        await ask(pool)
        first, second, third = house.connections[0].peer.recorder.heads
        assert (first.method, first.target, first.authority) == (b"POST", b"/a", b"localhost")
        assert first.headers == [(b"x", b"y"), (b"content-length", b"5")]
        assert second.headers == [(b"content-length", b"5")]
        assert third.headers == []

    run(tmp_path, case)


def test_a_further_connection_opens_only_when_all_are_full(tmp_path: Path) -> None:
    async def case(house: House, pool: H2UpstreamPool) -> None:
        house.is_answering = False
        pending = [begin(pool) for _ in range(5)]
        for call, _ in pending:
            call.send_end()
        await house.until(lambda: house.requests == 4)
        assert len(house.connections) == 2
        house.is_answering = True
        for connection in house.connections:
            connection.answer()
        for _, listener in pending:
            await listener.done.wait()
            assert listener.names()[-1] == "end"

    run(tmp_path, case, connections_max=2, streams_per_connection_max=2)


def test_the_peers_stream_limit_is_obeyed(tmp_path: Path) -> None:
    async def case(house: House, pool: H2UpstreamPool) -> None:
        house.streams_max = 1
        found = await asyncio.gather(*[ask(pool) for _ in range(5)])
        assert all(listener.names()[-1] == "end" for listener in found)

    run(tmp_path, case, connections_max=1)


def test_waiting_calls_are_bounded_and_told_later(tmp_path: Path) -> None:
    async def case(house: House, pool: H2UpstreamPool) -> None:
        kept = [begin(pool) for _ in range(3)]
        _, refused = begin(pool)
        assert refused.log == []
        await refused.done.wait()
        assert refused.log == [("error", False, POOL_FULL)]
        for call, listener in kept:
            call.send_end()
            await listener.done.wait()
            assert listener.body == b"ok"

    run(tmp_path, case, waiting_max=3)


def test_cancelled_waiting_calls_are_never_sent_and_free_their_place(tmp_path: Path) -> None:
    async def case(house: House, pool: H2UpstreamPool) -> None:
        for _ in range(500):
            call, _ = begin(pool)
            call.send_body(b"x")
            call.cancel()
        assert len(pool._waiting) < 200
        assert (await ask(pool)).body == b"ok"
        assert house.requests == 1

    run(tmp_path, case, waiting_max=3)


def test_a_failed_connect_fails_all_waiting_and_backs_off(tmp_path: Path) -> None:
    async def case(house: House, pool: H2UpstreamPool) -> None:
        await house.close()
        found = await asyncio.gather(ask(pool), ask(pool))
        for listener in found:
            assert listener.log[0][:2] == ("error", False)
            assert listener.log[0][2].startswith("backend unavailable")
        _, refused = begin(pool)
        await refused.done.wait()
        assert refused.log == [("error", False, "backend unavailable, connecting again soon")]
        pool._retry_at_s = 0.0
        await house.open()
        assert (await ask(pool)).body == b"ok"

    run(tmp_path, case, backoff_first_s=100.0, backoff_max_s=100.0)


def test_backoff_grows_to_its_limit_with_jitter(tmp_path: Path) -> None:
    async def case(house: House, pool: H2UpstreamPool) -> None:
        loop = asyncio.get_running_loop()
        for expected_s in (1.0, 2.0, 4.0, 5.0, 5.0):
            before_s = loop.time()
            pool._on_connect_failed("test")
            assert before_s + expected_s * 0.5 <= pool._retry_at_s <= loop.time() + expected_s

    run(tmp_path, case, backoff_first_s=1.0, backoff_max_s=5.0)


def test_while_one_connection_works_a_failed_further_one_is_tried_again(tmp_path: Path) -> None:
    async def case(house: House, pool: H2UpstreamPool) -> None:
        house.is_answering = False
        first, first_listener = begin(pool)
        first.send_end()
        await house.until(lambda: house.requests == 1)
        pool._on_connect_failed("test")
        second, second_listener = begin(pool)
        second.send_end()
        assert pool._retry_timer is not None
        await house.until(lambda: house.requests == 2)
        assert len(house.connections) == 2
        for connection in house.connections:
            connection.answer()
        await first_listener.done.wait()
        await second_listener.done.wait()

    run(tmp_path, case, streams_per_connection_max=1, backoff_first_s=0.01)


def test_a_lost_connection_fails_its_calls_and_the_next_call_connects_anew(tmp_path: Path) -> None:
    async def case(house: House, pool: H2UpstreamPool) -> None:
        house.is_answering = False
        call, listener = begin(pool)
        call.send_end()
        await house.until(lambda: house.requests == 1)
        house.connections[0].transport.abort()
        await listener.done.wait()
        assert listener.log[0][:2] == ("error", True)
        house.is_answering = True
        assert (await ask(pool)).body == b"ok"

    run(tmp_path, case)


def test_goaway_moves_calls_to_a_new_connection(tmp_path: Path) -> None:
    async def case(house: House, pool: H2UpstreamPool) -> None:
        await ask(pool)
        old = house.connections[0]
        house.is_answering = False
        call, listener = begin(pool)
        call.send_end()
        await house.until(lambda: house.requests == 2)
        old.transport.write(frames.goaway(3, H2Code.NO_ERROR))
        house.is_answering = True
        while not pool._connections[0].is_leaving:
            await asyncio.sleep(0)
        assert (await ask(pool)).body == b"ok"
        old.answer()
        await listener.done.wait()
        assert listener.body == b"ok"
        await house.until(lambda: old not in house.connections)

    run(tmp_path, case)


def test_waiting_calls_follow_when_the_only_connection_leaves(tmp_path: Path) -> None:
    async def case(house: House, pool: H2UpstreamPool) -> None:
        house.is_answering = False
        first, first_listener = begin(pool)
        first.send_end()
        await house.until(lambda: house.requests == 1)
        second, second_listener = begin(pool)
        second.send_end()
        house.is_answering = True
        house.connections[0].transport.abort()
        await second_listener.done.wait()
        assert first_listener.names() == ["error"]
        assert second_listener.body == b"ok"

    run(tmp_path, case, connections_max=1, streams_per_connection_max=1)


def test_a_closed_pool_refuses_and_fails_what_waits(tmp_path: Path) -> None:
    async def case(house: House, pool: H2UpstreamPool) -> None:
        _, waiting = begin(pool)
        pool.close()
        assert waiting.log == [("error", False, "the pool is closed")]
        _, late = begin(pool)
        await late.done.wait()
        assert late.log == [("error", False, "the pool is closed")]

    run(tmp_path, case)


def test_a_connection_made_after_close_is_closed_at_once(tmp_path: Path) -> None:
    async def case(house: House, pool: H2UpstreamPool) -> None:
        pool.close()
        _, made = await asyncio.get_running_loop().create_unix_connection(pool._make, str(house.path))
        assert not made.has_room
        await house.until(lambda: house.accepted == 1)

    run(tmp_path, case)


def test_connecting_is_limited_in_time() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        listening = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        pool = H2UpstreamPool(f"grpc://127.0.0.1:{port}", H2PoolLimits(connect_s=0.0), loop)
        listener = await ask(pool)
        assert listener.log == [("error", False, "backend unavailable: timed out")]
        pool.close()
        listening.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("grpc://127.0.0.1:8001", ("127.0.0.1", 8001, "")),
        ("grpc://[::1]:8001/", ("::1", 8001, "")),
        ("unix:///run/x.sock", ("", 0, "/run/x.sock")),
    ],
)
def test_endpoints(url: str, expected: tuple[str, int, str]) -> None:
    assert parse_endpoint(url) == expected


@pytest.mark.parametrize("url", ["", "grpc://host", "http://host:1", "unix://host/x", "unix://", "grpc://h:1/path"])
def test_what_is_no_endpoint(url: str) -> None:
    with pytest.raises(ValueError, match="HTTP/2 endpoint"):
        parse_endpoint(url)


def test_the_authority_of_an_ipv6_endpoint_has_brackets() -> None:
    loop = asyncio.new_event_loop()
    pool = H2UpstreamPool("grpc://[::1]:8001", H2PoolLimits(), loop)
    assert pool._authority == b"[::1]:8001"
    pool.close()
    loop.close()


def test_the_prefix_memory_is_bounded() -> None:
    loop = asyncio.new_event_loop()
    pool = H2UpstreamPool("unix:///x", H2PoolLimits(), loop)
    for index in range(2000):
        pool._prefix(b"GET", b"/%d" % index)
    assert len(pool._prefixes) <= 1024
    loop.close()
