"""Fuzz targets over HTTP/2 connections with their shells: what comes whole in one read means what it means in pieces.

The shells have a shortcut for calls that come in one read. One side is fed at once and takes the shortcut; the other
is fed in pieces, with an application that knows only the long way.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from gateway.call import Data, Headers
from gateway.net.exchange import Exchange, UpstreamListener
from gateway.net.h2_call import H2Call
from gateway.net.h2_connection import H2Outbound
from gateway.net.h2_inbound import H2Inbound, H2InboundLimits, H2Shared
from gateway.net.h2_outbound import H2PoolLimits
from gateway.wire import http2_frames as frames
from gateway.wire.header_memo import HeaderMemo
from gateway.wire.http2_frames import Http2Limits
from tests.fuzz.feeding import steps
from tests.fuzz.targets_http2 import CLIENT_SEEDS, SERVER_SEEDS, frames_of
from tests.unit.net.h2_fakes import CLOCK, Account, FakeLoop, FakeTransport, as_loop
from tests.unit.wire.h2_tools import GRPC, PLAIN_SETTINGS, block, parse

_WIRE = replace(Http2Limits(), header_list_bytes_max=1024, headers_max=16)


class StepApp:
    """Echoes at the end; knows heads, bodies and ends only."""

    def __init__(self) -> None:
        self.seen: list[list[object]] = []

    def on_head(self, exchange: Exchange) -> None:
        head = exchange.head
        exchange.call = [head.method, head.target, head.is_grpc, head.headers, b"", ""]
        self.seen.append(exchange.call)

    def on_body(self, exchange: Exchange, data: Data) -> None:
        exchange.call[4] += bytes(data)

    def on_end(self, exchange: Exchange) -> None:
        assert exchange.call[5] == ""
        exchange.call[5] = "ended"
        exchange.reply(200, [(b"content-type", b"application/grpc")], exchange.call[4], [(b"grpc-status", b"0")])

    def on_abort(self, exchange: Exchange) -> None:
        assert exchange.call[5] == "" or exchange.call[5] == "ended"
        exchange.call[5] += " aborted"

    def on_writable(self, exchange: Exchange) -> None: ...


class WholeApp(StepApp):
    """Takes whole requests too."""

    def on_request(self, exchange: Exchange, body: bytes) -> None:
        self.on_head(exchange)
        if body:
            self.on_body(exchange, body)
        self.on_end(exchange)


def _said(raw: bytes) -> dict[int, list[tuple[int, bytes]]]:
    """Per stream the heads, resets and GOAWAYs in order, then the data in one piece. How much went when may differ."""
    heads: dict[int, list[tuple[int, bytes]]] = {}
    bodies: dict[int, bytes] = {}
    for kind, _, stream_id, payload in parse(raw):
        if kind == frames.DATA:
            bodies[stream_id] = bodies.get(stream_id, b"") + payload
        elif kind in (frames.HEADERS, frames.RST_STREAM, frames.GOAWAY):
            heads.setdefault(stream_id, []).append((kind, payload))
    for stream_id, body in bodies.items():
        heads.setdefault(stream_id, []).append((frames.DATA, body))
    return heads


def _inbound(app: StepApp, parts: list[bytes]) -> tuple[dict[int, list[tuple[int, bytes]]], int]:
    loop, account, transport = FakeLoop(), Account(), FakeTransport()
    limits = replace(H2InboundLimits(), wire=_WIRE)
    connection = H2Inbound(H2Shared(app, limits, as_loop(loop), CLOCK.monotonic_ns, account), lambda gone: None)
    connection.connection_made(transport)
    connection.data_received(frames.PREFACE + PLAIN_SETTINGS + frames.SETTINGS_ACK)
    for part in parts:
        connection.data_received(part)
    loop.turn()
    said = _said(transport.take())
    open_streams = connection.streams_open
    connection.connection_lost(None)
    loop.turn()
    assert account.held == 0, "bytes that nobody gives back"
    return said, open_streams


def h2_inbound(data: bytes) -> None:
    """A request that comes whole is the request that comes in pieces, and gets the same answer."""
    if not data:
        return
    raw = frames_of(data[1:]) if data[0] & 1 else data[1:]
    whole, cut = WholeApp(), StepApp()
    assert _inbound(whole, [raw]) == _inbound(cut, list(steps(raw, data[0])))
    assert whole.seen == cut.seen


class StepListener:
    """Puts a reply together from its parts."""

    def __init__(self) -> None:
        self.heads: list[tuple[int, Headers]] = []
        self.body = b""
        self.end: list[object] = []

    def on_reply_head(self, status: int, headers: Headers, content_length: int) -> None:
        assert not self.heads, "two heads"
        self.heads.append((status, list(headers)))

    def on_reply_body(self, data: Data) -> None:
        assert not self.end
        self.body += bytes(data)

    def on_reply_end(self, trailers: Headers) -> None:
        self.end.append(list(trailers))

    def on_reply(self, status: int, headers: Headers, body: bytes) -> None:
        raise AssertionError("HTTP/2 says trailers")

    def on_reply_error(self, *, is_sent: bool, reason: str) -> None:
        assert not self.end
        self.end.append(is_sent)

    def on_upstream_writable(self) -> None: ...

    @property
    def told(self) -> object:
        return self.heads, self.body, self.end


class WholeListener(StepListener):
    """Takes whole replies too."""

    def on_reply_whole(self, status: int, headers: Headers, body: bytes, trailers: Headers) -> None:
        self.on_reply_head(status, headers, -1)
        self.on_reply_body(body)
        self.on_reply_end(trailers)


class OnePool:
    """What a connection and its calls ask of their pool."""

    def __init__(self) -> None:
        self.fake_loop = FakeLoop()
        self.loop = as_loop(self.fake_loop)
        self.monotonic_ns: Callable[[], int] = CLOCK.monotonic_ns
        self.memo = HeaderMemo()
        self.account = Account()
        self.budget: Any = self.account
        self.limits = H2PoolLimits(wire=_WIRE)
        self.waiting_bytes_max = self.limits.waiting_bytes_max

    def on_connected(self, connection: H2Outbound) -> None: ...

    def on_disconnected(self, connection: H2Outbound) -> None: ...

    def on_room(self) -> None: ...

    def hold(self, size_bytes: int) -> None:
        self.account.add(size_bytes)

    def leave(self, call: H2Call) -> None: ...


def _outbound(make: Callable[[], StepListener], parts: list[bytes]) -> list[object]:
    pool, transport = OnePool(), FakeTransport()
    connection = H2Outbound(pool)
    connection.connection_made(transport)
    connection.data_received(PLAIN_SETTINGS + frames.SETTINGS_ACK)
    listeners = [make() for _ in range(3)]
    for number, listener in enumerate(listeners):
        call = H2Call(pool, block(GRPC), cast("UpstreamListener", listener), is_bodyless=False)
        call.start(connection)
        if number:  # the first one's request is not complete yet
            call.send_body(b"q")
            call.send_end()
    pool.fake_loop.turn()
    for part in parts:
        if not transport.is_closed:
            connection.data_received(part)
        pool.fake_loop.turn()
    if not transport.is_closed:
        connection.connection_lost(None)
    assert all(len(listener.end) == 1 for listener in listeners), "a call without an end"
    assert pool.account.held == 0, "bytes that nobody gives back"
    # Not the connection's error: after GOAWAY and the last call it closes, and hears what comes later or not.
    return [listener.told for listener in listeners]


def h2_outbound(data: bytes) -> None:
    """A reply that comes whole is the reply that comes in pieces; every call ends exactly once."""
    if not data:
        return
    raw = frames_of(data[1:]) if data[0] & 1 else data[1:]
    assert _outbound(WholeListener, [raw]) == _outbound(StepListener, list(steps(raw, data[0])))


INBOUND_SEEDS = SERVER_SEEDS
OUTBOUND_SEEDS = CLIENT_SEEDS
