"""Our HTTP/2 against the references: `h2` on the other side of the wire, grpcio as client and as server."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from gateway.call import Data, Headers
from gateway.net.exchange import Exchange, Upstream
from gateway.net.h2_inbound import H2Inbound, H2InboundLimits, H2Shared
from gateway.net.h2_outbound import H2PoolLimits, H2UpstreamPool
from gateway.wire import grpc as wire_grpc
from gateway.wire.grpc import MessageReader
from gateway.wire.status import Grpc

MIB = 1024 * 1024
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
CALL_S = 60


class Relay:
    """A proxy of the smallest kind: one exchange to one upstream, back-pressure both ways."""

    def __init__(self, pool: H2UpstreamPool) -> None:
        self.pool = pool
        self.aborted = asyncio.Event()
        self.errors: list[tuple[bool, str]] = []
        self.most_held = 0

    def on_head(self, exchange: Exchange) -> None:
        head = exchange.head
        leg = _Leg(self, exchange)
        exchange.call = leg
        leg.upstream = self.pool.request(head.method, head.target, head.headers, head.content_length, leg)

    def on_body(self, exchange: Exchange, data: Data) -> None:
        exchange.call.upstream.send_body(data)
        if not exchange.call.upstream.is_writable:
            exchange.pause()

    def on_end(self, exchange: Exchange) -> None:
        exchange.call.upstream.send_end()

    def on_abort(self, exchange: Exchange) -> None:
        exchange.call.upstream.cancel()
        self.aborted.set()

    def on_writable(self, exchange: Exchange) -> None:
        exchange.call.upstream.resume()


class _Leg:
    """The listener of one relayed call."""

    upstream: Upstream

    def __init__(self, relay: Relay, exchange: Exchange) -> None:
        self.relay = relay
        self.exchange = exchange

    def on_reply_head(self, status: int, headers: Headers, content_length: int) -> None:
        self.exchange.send_head(status, headers)

    def on_reply_body(self, data: Data) -> None:
        self.exchange.send_body(data)
        if not self.exchange.is_writable:
            self.upstream.pause()

    def on_reply_end(self, trailers: Headers) -> None:
        self.exchange.send_end(trailers)

    def on_reply(self, status: int, headers: Headers, body: bytes) -> None:
        raise AssertionError("HTTP/2 tells replies in parts")

    def on_reply_error(self, *, is_sent: bool, reason: str) -> None:
        self.relay.errors.append((is_sent, reason))
        trailers = wire_grpc.status_trailers(Grpc.UNAVAILABLE, reason)
        self.exchange.reply(200, [wire_grpc.CONTENT_TYPE], b"", trailers)

    def on_upstream_writable(self) -> None:
        self.exchange.resume()


class Answers:
    """An application that answers gRPC itself: the method's name says how."""

    def __init__(self) -> None:
        self.aborted = asyncio.Event()
        self.metadata: list[Headers] = []

    def on_head(self, exchange: Exchange) -> None:
        self.metadata.append(exchange.head.headers)
        exchange.call = MessageReader(64 * MIB)
        if exchange.head.target.endswith(b"/Refuse"):
            trailers = wire_grpc.status_trailers(Grpc.RESOURCE_EXHAUSTED, "nö", retry_after_ms=1500)
            exchange.reply(200, [wire_grpc.CONTENT_TYPE], b"", trailers)
        elif not exchange.head.target.endswith(b"/Never"):
            exchange.send_head(200, [wire_grpc.CONTENT_TYPE, (b"x-bin", wire_grpc.encode_binary(b"\0\xff"))])

    def on_body(self, exchange: Exchange, data: Data) -> None:
        for _, message in exchange.call.feed(data):
            if not exchange.head.target.endswith(b"/Never"):
                exchange.send_body(wire_grpc.frame(message))

    def on_end(self, exchange: Exchange) -> None:
        if not exchange.head.target.endswith(b"/Never"):
            exchange.send_end([(b"grpc-status", b"0"), (b"x-trailer", b"t")])

    def on_abort(self, exchange: Exchange) -> None:
        self.aborted.set()

    def on_writable(self, exchange: Exchange) -> None:
        pass


class Reference(grpc.GenericRpcHandler):  # type: ignore[misc]
    """grpcio's own server behind our pool: methods of all four kinds over raw bytes."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()
        self.started = asyncio.Event()

    def service(self, details: Any) -> Any:
        return {
            "/t.T/Echo": grpc.unary_unary_rpc_method_handler(self.echo),
            "/t.T/Join": grpc.stream_unary_rpc_method_handler(self.join),
            "/t.T/Split": grpc.unary_stream_rpc_method_handler(self.split),
            "/t.T/Chat": grpc.stream_stream_rpc_method_handler(self.chat),
            "/t.T/Fail": grpc.unary_unary_rpc_method_handler(self.fail),
            "/t.T/Never": grpc.unary_unary_rpc_method_handler(self.never),
            "/t.T/Meta": grpc.unary_unary_rpc_method_handler(self.meta),
        }.get(details.method)

    async def echo(self, request: bytes, _: Any) -> bytes:
        return request

    async def join(self, requests: AsyncIterator[bytes], _: Any) -> bytes:
        return b"".join([request async for request in requests])

    async def split(self, request: bytes, _: Any) -> AsyncIterator[bytes]:
        for byte in request:
            yield bytes((byte,)) * 1000

    async def chat(self, requests: AsyncIterator[bytes], _: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request[::-1]

    async def fail(self, _: bytes, context: Any) -> bytes:
        await context.abort(grpc.StatusCode.NOT_FOUND, "nothing hére", (("x-why", "because"),))
        raise AssertionError("abort returns never")

    async def never(self, _: bytes, context: Any) -> bytes:
        self.started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return b""

    async def meta(self, _: bytes, context: Any) -> bytes:
        found = dict(context.invocation_metadata())
        context.set_trailing_metadata((("x-back-bin", found["x-there-bin"]),))
        return f"{found['x-text']} {context.time_remaining() is not None}".encode()


class World:
    """What a test has: a channel to our inbound shell and what stands behind it."""

    def __init__(self, channel: aio.Channel, application: Any, reference: Reference, pool: H2UpstreamPool) -> None:
        self.channel = channel
        self.application = application
        self.reference = reference
        self.pool = pool

    def unary(self, method: str) -> Any:
        return self.channel.unary_unary(f"/t.T/{method}")


class Inbounds:
    """The connections of one listener."""

    def __init__(self, shared: H2Shared) -> None:
        self.shared = shared
        self.open: set[H2Inbound] = set()

    def make(self) -> H2Inbound:
        made = H2Inbound(self.shared, self.open.discard)
        self.open.add(made)
        return made

    async def close(self) -> None:
        for connection in list(self.open):
            connection.close()
        while self.open:
            await asyncio.sleep(0)


async def close_pool(pool: H2UpstreamPool) -> None:
    pool.close()
    while pool.connection_count:
        await asyncio.sleep(0)


@asynccontextmanager
async def world(
    *,
    is_relay: bool = True,
    inbound: H2InboundLimits | None = None,
    outbound: H2PoolLimits | None = None,
    channel_options: list[tuple[str, Any]] | None = None,
    folder: Path | None = None,
    **channel: Any,
) -> AsyncIterator[World]:
    """grpcio client → our inbound → (our pool → grpcio server | Answers); everything is closed at the end."""
    loop = asyncio.get_running_loop()
    reference = Reference()
    server = aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers((reference,))
    if folder is None:
        address = f"grpc://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    else:
        server.add_insecure_port(f"unix:{folder / 'engine.sock'}")
        address = f"unix://{folder / 'engine.sock'}"
    await server.start()
    pool = H2UpstreamPool(address, outbound or H2PoolLimits(), loop)
    application: Any = Relay(pool) if is_relay else Answers()
    shared = H2Shared(application, inbound or H2InboundLimits(), loop, time.monotonic_ns)
    inbounds = Inbounds(shared)
    listener = await loop.create_server(inbounds.make, "127.0.0.1", 0)
    target = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        async with aio.insecure_channel(target, options=[*OPTIONS, *(channel_options or [])], **channel) as made:
            yield World(made, application, reference, pool)
    finally:
        listener.close()
        await inbounds.close()
        await close_pool(pool)
        await server.stop(None)


def run(case: Callable[[World], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        async with asyncio.timeout(60), world(**options) as made:
            await case(made)

    asyncio.run(main())


async def numbers(count: int, size: int = 1) -> AsyncIterator[bytes]:
    for index in range(count):
        yield b"%d" % index * size


@pytest.mark.parametrize("is_relay", [True, False])
def test_unary_calls(is_relay: bool) -> None:
    async def case(made: World) -> None:
        call = made.unary("Echo")
        for size in (0, 1, 1000, 100_000, 16 * MIB):
            body = random.Random(size).randbytes(size)
            assert await call(body, timeout=CALL_S) == body

    run(case, is_relay=is_relay)


def test_unary_calls_over_a_unix_socket(tmp_path: Path) -> None:
    async def case(made: World) -> None:
        assert await made.unary("Echo")(b"x" * MIB, timeout=CALL_S) == b"x" * MIB

    run(case, folder=tmp_path)


def test_concurrent_calls_keep_apart() -> None:
    async def case(made: World) -> None:
        call = made.unary("Echo")
        bodies = [b"%d" % index * (1 + index % 50) for index in range(300)]
        assert await asyncio.gather(*[call(body, timeout=CALL_S) for body in bodies]) == bodies

    run(case)


def test_calls_beyond_the_stream_limits_wait_for_their_turn() -> None:
    async def case(made: World) -> None:
        call = made.unary("Echo")
        bodies = [b"%d" % index for index in range(100)]
        assert await asyncio.gather(*[call(body, timeout=CALL_S) for body in bodies]) == bodies

    run(case, outbound=H2PoolLimits(connections_max=2, streams_per_connection_max=3))


@pytest.mark.parametrize("is_relay", [True, False])
def test_streams_of_all_kinds(is_relay: bool) -> None:
    async def case(made: World) -> None:
        chat = made.channel.stream_stream("/t.T/Chat")(numbers(20), timeout=CALL_S)
        found = [message async for message in chat]
        assert found == [(b"%d" % i)[::-1] if is_relay else b"%d" % i for i in range(20)]
        if is_relay:
            joined = await made.channel.stream_unary("/t.T/Join")(numbers(100, 1000), timeout=CALL_S)
            assert len(joined) == (10 + 90 * 2) * 1000
            split = made.channel.unary_stream("/t.T/Split")(bytes(200), timeout=CALL_S)
            assert [len(message) async for message in split] == [1000] * 200

    run(case, is_relay=is_relay)


def test_a_conversation_alternates() -> None:
    async def case(made: World) -> None:
        call = made.channel.stream_stream("/t.T/Chat")(timeout=CALL_S)
        for index in range(10):
            await call.write(b"ab%d" % index)
            assert await call.read() == b"%dba" % index
        await call.done_writing()
        assert await call.read() == aio.EOF
        assert await call.code() == grpc.StatusCode.OK

    run(case)


def test_errors_keep_code_message_and_trailers() -> None:
    async def case(made: World) -> None:
        with pytest.raises(aio.AioRpcError) as caught:
            await made.unary("Fail")(b"", timeout=CALL_S)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        assert caught.value.details() == "nothing hére"
        assert ("x-why", "because") in list(caught.value.trailing_metadata())

    run(case)


def test_unknown_methods_are_unimplemented_by_the_backend() -> None:
    async def case(made: World) -> None:
        with pytest.raises(aio.AioRpcError) as caught:
            await made.unary("Nothing")(b"", timeout=CALL_S)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED

    run(case)


def test_trailers_only_refusal_with_a_wait() -> None:
    async def case(made: World) -> None:
        for body in (b"", b"x" * MIB):
            with pytest.raises(aio.AioRpcError) as caught:
                await made.unary("Refuse")(body, timeout=CALL_S)
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert caught.value.details() == "nö"
            trailers = dict(list(caught.value.trailing_metadata()))
            assert trailers["retry-after"] == "2"
            assert trailers["grpc-status-details-bin"].startswith(b"\x08\x08")
        assert await made.unary("Echo")(b"goes on", timeout=CALL_S) == b"goes on"

    run(case, is_relay=False)


def test_metadata_travels_both_ways() -> None:
    async def case(made: World) -> None:
        call = made.unary("Meta")(
            b"", timeout=CALL_S, metadata=(("x-there-bin", b"\0\xff\x01"), ("x-text", "a b,c"), ("x-text2", "v" * 5000))
        )
        assert await call == b"a b,c True"
        assert dict(list(await call.trailing_metadata()))["x-back-bin"] == b"\0\xff\x01"

    run(case)


def test_initial_metadata_and_trailers_of_ours() -> None:
    async def case(made: World) -> None:
        call = made.unary("Echo")(b"", timeout=CALL_S)
        assert dict(list(await call.initial_metadata()))["x-bin"] == b"\0\xff"
        assert dict(list(await call.trailing_metadata()))["x-trailer"] == "t"

    run(case, is_relay=False)


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_messages_pass(compression: Any) -> None:
    async def case(made: World) -> None:
        body = b"compressible " * 100_000
        assert await made.unary("Echo")(body, timeout=CALL_S) == body

    run(case, compression=compression)


@pytest.mark.parametrize("is_relay", [True, False])
def test_deadline_and_cancellation_reach_the_other_side(is_relay: bool) -> None:
    async def case(made: World) -> None:
        with pytest.raises(aio.AioRpcError) as caught:
            # Long enough to be on its way on a busy machine: a call that never left has no other side to reach.
            await made.unary("Never")(b"", timeout=2)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        if not is_relay:
            await made.application.aborted.wait()
            return
        # The reference server knows the deadline too and may answer before the client resets.
        # Its handler ends either way.
        await made.reference.cancelled.wait()
        made.reference.started.clear()
        made.reference.cancelled.clear()
        made.application.aborted.clear()
        call = made.unary("Never")(b"", timeout=CALL_S)
        await made.reference.started.wait()
        call.cancel()
        await made.reference.cancelled.wait()
        assert made.application.aborted.is_set()

    run(case, is_relay=is_relay)


def test_large_messages_pass_tiny_windows() -> None:
    wire = replace(H2InboundLimits().wire, stream_window_bytes=20_000, connection_window_bytes=65_535)

    async def case(made: World) -> None:
        body = random.Random(1).randbytes(2 * MIB)
        assert await made.unary("Echo")(body, timeout=CALL_S) == body

    run(case, inbound=H2InboundLimits(wire=wire), outbound=H2PoolLimits(wire=wire))


def test_keepalive_pings_of_a_client_are_answered() -> None:
    async def case(made: World) -> None:
        call = made.channel.stream_stream("/t.T/Chat")(timeout=CALL_S)
        await call.write(b"a")
        assert await call.read() == b"a"
        await asyncio.sleep(1.6)  # grpcio sends its pings by its own clock only
        await call.write(b"b")
        assert await call.read() == b"b"
        await call.done_writing()
        assert await call.code() == grpc.StatusCode.OK

    keepalive = [
        ("grpc.keepalive_time_ms", 300),
        ("grpc.keepalive_timeout_ms", 1200),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    run(case, is_relay=False, channel_options=keepalive)


def test_a_backend_that_is_gone_is_an_error_not_a_hang() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        pool = H2UpstreamPool("grpc://127.0.0.1:9", H2PoolLimits(), loop)
        relay = Relay(pool)
        shared = H2Shared(relay, H2InboundLimits(), loop, time.monotonic_ns)
        inbounds = Inbounds(shared)
        listener = await loop.create_server(inbounds.make, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            for _ in range(2):
                with pytest.raises(aio.AioRpcError) as caught:
                    await channel.unary_unary("/t.T/Echo")(b"", timeout=CALL_S)
                assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert [is_sent for is_sent, _ in relay.errors] == [False, False]
        await close_pool(pool)
        listener.close()
        await inbounds.close()

    asyncio.run(main())


def test_a_backend_may_be_restarted_between_calls(tmp_path: Path) -> None:
    async def start() -> aio.Server:
        server = aio.server()
        server.add_generic_rpc_handlers((Reference(),))
        server.add_insecure_port(f"unix:{tmp_path / 's.sock'}")
        await server.start()
        return server

    async def call(pool: H2UpstreamPool) -> tuple[bytes, list[Any]]:
        done = asyncio.get_running_loop().create_future()
        listener = Collect(done)
        upstream = pool.request(b"POST", b"/t.T/Echo", [wire_grpc.CONTENT_TYPE], -1, listener)
        upstream.send_body(wire_grpc.frame(b"hi"))
        upstream.send_end()
        await done
        return listener.body, listener.errors

    async def main() -> None:
        pool = H2UpstreamPool(f"unix://{tmp_path / 's.sock'}", H2PoolLimits(), asyncio.get_running_loop())
        for _ in range(2):
            server = await start()
            assert await call(pool) == (wire_grpc.frame(b"hi"), [])
            await server.stop(None)
        await close_pool(pool)

    asyncio.run(main())


class Collect:
    """A listener that waits for the end."""

    def __init__(self, done: "asyncio.Future[None]") -> None:
        self.done = done
        self.body = b""
        self.errors: list[Any] = []
        self.trailers: Headers = []

    def on_reply_head(self, status: int, headers: Headers, content_length: int) -> None:
        assert status == 200

    def on_reply_body(self, data: Data) -> None:
        self.body += bytes(data)

    def on_reply_end(self, trailers: Headers) -> None:
        self.trailers = trailers
        self.done.set_result(None)

    def on_reply(self, status: int, headers: Headers, body: bytes) -> None:
        raise AssertionError("HTTP/2 tells replies in parts")

    def on_reply_error(self, *, is_sent: bool, reason: str) -> None:
        self.errors.append((is_sent, reason))
        self.done.set_result(None)

    def on_upstream_writable(self) -> None:
        pass
