"""Large bodies that go straight into the application's memory. A real unix socket, both kinds of event loop."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from gateway.net.exchange import Exchange
from gateway.net.h1_bulk import BULK_BYTES_MIN
from gateway.net.listener import Listener
from gateway.settings import Limits
from tests.unit.net.fakes import RecordingApp

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
LARGE = 5 * BULK_BYTES_MIN
LOOPS = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])


class SpaciousApp(RecordingApp):
    """Gives memory for what is left of a body, and counts what came that way."""

    def __init__(self) -> None:
        super().__init__()
        self.reply_at_end = (200, b"ok")
        self.filled = 0
        self.is_over = asyncio.Event()
        self.has_begun = asyncio.Event()
        self.refuses_space = False
        self._memory = bytearray()
        self._done = 0

    def body_space(self, exchange: Exchange) -> memoryview | None:
        self.has_begun.set()
        if self.refuses_space:
            return None
        left = exchange.head.content_length - len(self.bodies[self.exchanges.index(exchange)])
        self._memory, self._done = bytearray(left), 0
        return memoryview(self._memory)

    def on_body_filled(self, exchange: Exchange, count: int) -> None:
        index = self.exchanges.index(exchange)
        self.bodies[index] += bytes(self._memory[self._done : self._done + count])
        self._done += count
        self.filled += count

    def on_abort(self, exchange: Exchange) -> None:
        super().on_abort(exchange)
        self.is_over.set()


class Scene:
    """A listener on a unix socket, and one client of it."""

    def __init__(self, app: SpaciousApp, listener: Listener) -> None:
        self.app = app
        self.listener = listener
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()

    async def answers(self, count: int) -> None:
        assert await self.reader.readexactly(count * len(OK)) == count * OK


def scene(
    test: Callable[[Scene], Awaitable[None]], path: Path, new_loop: Callable[[], Any], limits: Limits | None = None
) -> None:
    async def run() -> None:
        app = SpaciousApp()
        listener = Listener(app, limits or Limits(), asyncio.get_running_loop())
        await listener.listen_unix(path / "s")
        own = Scene(app, listener)
        own.reader, own.writer = await asyncio.open_unix_connection(path / "s")
        try:
            async with asyncio.timeout(60):
                await test(own)
        finally:
            own.writer.close()
            await listener.drain(5)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(run())


def post(body: bytes) -> bytes:
    return b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


@LOOPS
def test_a_large_body_comes_into_the_applications_memory(tmp_path: Path, new_loop: Callable[[], Any]) -> None:
    async def test(own: Scene) -> None:
        body = noise(LARGE)
        await own.send(post(body))
        await own.answers(1)
        assert own.app.bodies == [body]
        assert own.app.filled > 0

    scene(test, tmp_path, new_loop)


@LOOPS
def test_bodies_of_every_size_follow_one_another(tmp_path: Path, new_loop: Callable[[], Any]) -> None:
    async def test(own: Scene) -> None:
        sizes = [LARGE, 0, 5, LARGE, BULK_BYTES_MIN - 1, BULK_BYTES_MIN, BULK_BYTES_MIN + 1, LARGE, LARGE, 1, LARGE]
        bodies = [noise(size, seed) for seed, size in enumerate(sizes)]
        for body in bodies:
            await own.send(post(body))
            await own.answers(1)
        assert own.app.bodies == bodies

    scene(test, tmp_path, new_loop)


@LOOPS
def test_what_is_pipelined_behind_a_large_body_is_not_taken_for_it(tmp_path: Path, new_loop: Callable[[], Any]) -> None:
    async def test(own: Scene) -> None:
        bodies = [noise(LARGE, 1), b"next", noise(LARGE, 2), noise(LARGE, 3), b""]
        stream = b"".join(post(body) for body in bodies)
        cuts = sorted(random.Random(7).sample(range(len(stream)), 40))
        pieces = [stream[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
        sending = asyncio.create_task(own.send(*pieces), name="send")
        await own.answers(len(bodies))
        await sending
        assert own.app.bodies == bodies

    scene(test, tmp_path, new_loop)


@LOOPS
def test_a_body_answered_early_is_drained_and_the_connection_goes_on(
    tmp_path: Path, new_loop: Callable[[], Any]
) -> None:
    async def test(own: Scene) -> None:
        body = noise(LARGE)
        whole = post(body)
        half = len(whole) - BULK_BYTES_MIN - 1000
        await own.send(whole[:half])
        await own.app.has_begun.wait()
        own.app.exchanges[0].reply(413, [], b"no")
        filled = own.app.filled
        assert (await own.reader.readuntil(b"no")).startswith(b"HTTP/1.1 413")
        await own.send(whole[half:], post(b"small"))
        await own.answers(1)
        assert own.app.filled == filled
        assert own.app.bodies[1:] == [b"small"]

    scene(test, tmp_path, new_loop, Limits(drain_bytes_max=10 * LARGE))


@LOOPS
def test_a_caller_that_leaves_inside_a_large_body_aborts_it(tmp_path: Path, new_loop: Callable[[], Any]) -> None:
    async def test(own: Scene) -> None:
        await own.send(post(noise(LARGE))[: LARGE // 2])
        await own.app.has_begun.wait()
        own.writer.close()
        await own.app.is_over.wait()
        assert own.app.aborted == own.app.exchanges
        assert not own.app.ended

    scene(test, tmp_path, new_loop)


@LOOPS
def test_without_space_a_large_body_comes_by_the_usual_way(tmp_path: Path, new_loop: Callable[[], Any]) -> None:
    async def test(own: Scene) -> None:
        own.app.refuses_space = True
        body = noise(LARGE)
        await own.send(post(body))
        await own.answers(1)
        assert own.app.bodies == [body]
        assert own.app.filled == 0

    scene(test, tmp_path, new_loop)


@LOOPS
def test_reading_stays_paused_while_the_application_asks_for_it(tmp_path: Path, new_loop: Callable[[], Any]) -> None:
    async def test(own: Scene) -> None:
        body = noise(LARGE)
        whole = post(body)
        await own.send(whole[: LARGE // 2])
        await own.app.has_begun.wait()
        own.app.exchanges[0].pause()
        sending = asyncio.create_task(own.send(whole[LARGE // 2 :]), name="send")
        filled = own.app.filled
        for _ in range(20):
            await asyncio.sleep(0)
        assert own.app.filled == filled
        own.app.exchanges[0].resume()
        await own.answers(1)
        await sending
        assert own.app.bodies == [body]

    scene(test, tmp_path, new_loop)


@LOOPS
def test_a_large_body_that_stops_coming_times_out(tmp_path: Path, new_loop: Callable[[], Any]) -> None:
    async def test(own: Scene) -> None:
        await own.send(post(noise(LARGE))[: LARGE // 2])
        await own.app.has_begun.wait()
        (connection,) = own.listener.h1_connections
        connection.sweep(asyncio.get_running_loop().time() + 3600)
        assert (await own.reader.read()).startswith(b"HTTP/1.1 408")
        assert own.app.aborted == own.app.exchanges

    scene(test, tmp_path, new_loop)
