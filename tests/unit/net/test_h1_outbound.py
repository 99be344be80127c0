"""Outbound HTTP/1.1 pool against a scripted server on a unix socket."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from gateway.call import Data, Headers
from gateway.net.address import parse_address
from gateway.net.h1_outbound import H1UpstreamPool
from gateway.settings import Limits

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nA: b\r\n\r\nok"


class Listener:
    """Collects one reply; `done` is set at its end."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: Headers = []
        self.length = -9
        self.body = b""
        self.error: tuple[bool, str] | None = None
        self.done = asyncio.Event()

    def on_reply_head(self, status: int, headers: Headers, content_length: int) -> None:
        self.status, self.headers, self.length = status, headers, content_length

    def on_reply_body(self, data: Data) -> None:
        self.body += bytes(data)

    def on_reply_end(self, trailers: Headers) -> None:
        self.done.set()

    def on_reply(self, status: int, headers: Headers, body: bytes) -> None:
        self.on_reply_head(status, headers, len(body))
        self.on_reply_body(body)
        self.on_reply_end([])

    def on_reply_error(self, *, is_sent: bool, reason: str) -> None:
        self.error = (is_sent, reason)
        self.done.set()

    def on_upstream_writable(self) -> None: ...


class Script:
    """A server that keeps the raw requests and answers each with the next of `replies` (None: closes)."""

    def __init__(self, *replies: bytes | None) -> None:
        self.replies = list(replies)
        self.requests: list[bytes] = []
        self.connections = 0
        self.closed = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                body = b""
                for line in head.lower().split(b"\r\n"):
                    if line.startswith(b"content-length:"):
                        body = await reader.readexactly(int(line.split(b":")[1]))
                    elif line == b"transfer-encoding: chunked":
                        body = await reader.readuntil(b"0\r\n\r\n")
                self.requests.append(head + body)
                reply = self.replies.pop(0)
                if reply is None:
                    return
                writer.write(reply)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.closed.set()
        finally:
            writer.close()


@asynccontextmanager
async def serving(serve: Serve, limits: Limits | None = None) -> AsyncIterator[H1UpstreamPool]:
    """A pool to a unix server that runs `serve` per connection; every connection has ended when this returns."""
    ended: list[asyncio.Event] = []

    async def tracked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        event = asyncio.Event()
        ended.append(event)
        try:
            await serve(reader, writer)
            writer.close()
            await writer.wait_closed()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.transport.abort()
        finally:
            event.set()

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s"
        server = await asyncio.start_unix_server(tracked, path)
        pool = H1UpstreamPool(parse_address(f"unix://{path}"), limits or Limits(), asyncio.get_running_loop())
        try:
            async with asyncio.timeout(60):
                yield pool
        finally:
            pool.close()
            server.close()
            await asyncio.gather(*(event.wait() for event in ended))
            await asyncio.sleep(0.01)


def with_server(script_of: Callable[[], Script], test: Callable[[H1UpstreamPool, Script], Awaitable[None]]) -> None:
    async def run() -> None:
        script = script_of()
        async with serving(script.serve) as pool:
            await test(pool, script)

    asyncio.run(run())


async def post(pool: H1UpstreamPool, body: bytes, *, length: int | None = None) -> Listener:
    listener = Listener()
    request = pool.request(b"POST", b"/x", [(b"c", b"d")], len(body) if length is None else length, listener)
    request.send_body(body)
    request.send_end()
    await listener.done.wait()
    return listener


def test_requests_reuse_the_connection() -> None:
    async def body(pool: H1UpstreamPool, script: Script) -> None:
        first, second = await post(pool, b"abc"), await post(pool, b"")
        assert (first.status, first.body, first.length) == (200, b"ok", 2)
        assert (b"a", b"b") in second.headers
        assert script.connections == 1
        assert script.requests[0] == b"POST /x HTTP/1.1\r\nhost: localhost\r\nc: d\r\ncontent-length: 3\r\n\r\nabc"

    with_server(lambda: Script(OK, OK), body)


def test_unknown_length_is_sent_chunked() -> None:
    async def body(pool: H1UpstreamPool, script: Script) -> None:
        assert (await post(pool, b"abc", length=-1)).body == b"ok"
        assert script.requests[0].endswith(b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")

    with_server(lambda: Script(OK), body)


def test_interim_and_chunked_and_until_close_replies() -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\n" + OK
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n"

    async def body(pool: H1UpstreamPool, script: Script) -> None:
        assert (await post(pool, b"1")).body == b"ok"
        assert (await post(pool, b"2")).body == b"ok"
        assert script.connections == 1

    with_server(lambda: Script(interim, chunked), body)


def test_reply_until_close_ends_with_the_connection() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nall of it")
        writer.close()

    async def run() -> None:
        async with serving(serve) as pool:
            listener = await post(pool, b"")
            assert (listener.body, listener.length, listener.error) == (b"all of it", -1, None)

    asyncio.run(run())


def test_a_backend_that_closes_mid_call_is_an_error_that_was_sent() -> None:
    async def body(pool: H1UpstreamPool, script: Script) -> None:
        listener = await post(pool, b"abc")
        assert listener.error is not None
        assert listener.error[0] is True

    with_server(lambda: Script(None), body)


def test_a_truncated_reply_is_an_error() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort")
        writer.close()

    async def run() -> None:
        async with serving(serve) as pool:
            listener = await post(pool, b"")
            assert listener.error is not None

    asyncio.run(run())


def test_an_endpoint_that_is_not_there_fails_every_waiting_request_unsent() -> None:
    async def run() -> None:
        pool = H1UpstreamPool(parse_address("unix:///nonexistent/s"), Limits(), asyncio.get_running_loop())
        first, second = await asyncio.gather(post(pool, b"a"), post(pool, b"b"))
        assert first.error is not None
        assert second.error is not None
        assert not first.error[0]
        assert not second.error[0]
        pool.close()

    asyncio.run(run())


def test_cancel_closes_the_connection_and_the_listener_hears_nothing() -> None:
    async def body(pool: H1UpstreamPool, script: Script) -> None:
        listener = Listener()
        request = pool.request(b"POST", b"/x", [], 5, listener)
        request.send_body(b"ab")
        while script.connections == 0:
            await asyncio.sleep(0.001)
        request.cancel()
        await script.closed.wait()
        request.send_body(b"cde")
        request.send_end()
        assert not listener.done.is_set()

    with_server(lambda: Script(OK), body)


def test_cancel_before_the_connection_is_up_leaves_nothing_behind() -> None:
    async def body(pool: H1UpstreamPool, script: Script) -> None:
        listener = Listener()
        pool.request(b"POST", b"/x", [], 0, listener).cancel()
        assert (await post(pool, b"z")).body == b"ok"
        assert len(script.requests) == 1
        assert not listener.done.is_set()

    with_server(lambda: Script(OK), body)


def test_an_early_reply_ends_the_connection_not_the_next_request() -> None:
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await reader.read()
        writer.close()

    async def run() -> None:
        async with serving(serve) as pool:
            listener = Listener()
            request = pool.request(b"POST", b"/x", [], 200_000, listener)
            request.send_body(b"x" * 100_000)  # past what is gathered: it leaves before the request's end
            await listener.done.wait()
            request.send_end()
            assert (await post(pool, b"z")).body == b"ok"
            assert connections == 2

    asyncio.run(run())


def test_connection_limit_makes_requests_wait_their_turn() -> None:
    async def run() -> None:
        script = Script(OK, OK, OK)
        async with serving(script.serve, Limits(upstream_connections_max=1)) as pool:
            answers = await asyncio.gather(*(post(pool, b"x") for _ in range(3)))
            assert [answer.body for answer in answers] == [b"ok", b"ok", b"error"[:0]]
            assert answers[2].error == (False, "too many calls wait for a backend connection")
            assert script.connections == 1

    asyncio.run(run())


def test_malformed_reply_is_the_backends_fault_and_ends_the_connection() -> None:
    async def body(pool: H1UpstreamPool, script: Script) -> None:
        assert (await post(pool, b"x")).error is not None
        assert (await post(pool, b"y")).body == b"ok"
        assert script.connections == 2

    with_server(lambda: Script(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", OK), body)


def test_idle_connections_close_with_the_sweep() -> None:
    async def body(pool: H1UpstreamPool, script: Script) -> None:
        await post(pool, b"x")
        pool.sweep(pool.loop.time() + pool.limits.upstream_idle_s + 1)
        await script.closed.wait()
        assert (await post(pool, b"y")).body == b"ok"
        assert script.connections == 2

    with_server(lambda: Script(OK, OK), body)
