"""Fuzz targets over HTTP/1.1: connections, response heads."""

import asyncio
from collections.abc import Callable
from typing import cast

from gateway.call import Data
from gateway.net.exchange import Exchange
from gateway.net.h1_inbound import H1Connection
from gateway.settings import Limits
from gateway.wire.http1 import Http1Error, RequestHeads, ResponseHead, ResponseHeads, parse_response_head
from tests.fuzz.feeding import steps
from tests.unit.net.fakes import FakeTransport

#: Small, so that inputs of a few hundred bytes reach every limit; but no input reaches the one whose verdict rightly
#: depends on cuts (a body beyond it that is there already costs nothing to throw away).
LIMITS = Limits(head_bytes_max=512, headers_max=8, drain_bytes_max=4096, pipelined_bytes_max=64)
_REPLY_START = b"HTTP/1.1 "


class StillLoop:
    """The two things that a connection asks of its loop."""

    def __init__(self) -> None:
        self.due: list[Callable[[], None]] = []

    def time(self) -> float:
        return 0.0

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.due.append(callback)

    def run(self) -> None:
        while self.due:
            self.due.pop(0)()


class EchoApp:
    """Answers at the end with the request's body, or at the head with 403 where the target begins with /no."""

    def __init__(self) -> None:
        self.seen: list[tuple[bytes, bytes, int]] = []
        self.bodies: dict[int, bytearray] = {}
        self.ended: list[bytes] = []

    def on_head(self, exchange: Exchange) -> None:
        head = exchange.head
        self.seen.append((head.method, head.target, head.content_length))
        assert head.method.isalpha()
        for name, value in head.headers:
            assert name == name.lower()
            assert name not in (b"connection", b"transfer-encoding", b"host")
            assert not set(b"\r\n\0") & set(name + value), "a header could split a head"
        self.bodies[id(exchange)] = bytearray()
        exchange.call = self  # keeps the id from being given again
        if head.expects_continue:
            exchange.send_continue()
        if head.target.startswith(b"/no"):
            exchange.reply(403, [], b"no")

    def on_body(self, exchange: Exchange, data: Data) -> None:
        self.bodies[id(exchange)] += data

    def on_end(self, exchange: Exchange) -> None:
        body = bytes(self.bodies.pop(id(exchange)))
        length = exchange.head.content_length
        assert length in (-1, len(body)), "a body of another length than announced"
        self.ended.append(body)
        exchange.reply(200, [], body)

    def on_abort(self, exchange: Exchange) -> None:
        del self.bodies[id(exchange)]

    def on_writable(self, exchange: Exchange) -> None:
        raise AssertionError("nobody paused writing")


class H1Run:
    """One connection fed with some parts; what came of it."""

    def __init__(self, parts: list[bytes]) -> None:
        self.app = EchoApp()
        self.transport = FakeTransport()
        self.loop = StillLoop()
        self.registry: set[H1Connection] = set()
        heads = RequestHeads(LIMITS.headers_max, memo_max=2)
        loop = cast("asyncio.AbstractEventLoop", self.loop)
        self.connection = H1Connection(self.app, LIMITS, heads, self.registry, loop)
        self.connection.adopt(self.transport, b"", 0.0)
        for part in parts:
            if self.transport.is_read_paused:
                self.loop.run()
            self.connection.data_received(part)
            self.loop.run()
        self.written = self.transport.written
        assert self.written == b"" or self.written.startswith(_REPLY_START)
        self.connection.connection_lost(None)
        assert not self.registry

    @property
    def statuses(self) -> list[bytes]:
        """The statuses of replies that are not 100 Continue; echoed bodies may hold more, in all runs alike.

        A head that is too long and malformed is refused as the one or the other, whichever its first parts show.
        """
        found = [part[:3] for part in self.written.split(_REPLY_START)[1:] if part[:3] != b"100"]
        return [b"400" if status == b"431" else status for status in found]


def http1_connection(data: bytes) -> None:
    """Any bytes, cut in any way, are the same requests and get the same answers."""
    if not data:
        return
    whole = H1Run([data[1:]])
    cut = H1Run(list(steps(data[1:], data[0])))
    assert cut.app.seen == whole.app.seen
    assert cut.app.ended == whole.app.ended
    assert cut.statuses == whole.statuses


def _told(head: ResponseHead) -> tuple[int, int, list[tuple[bytes, bytes]]]:
    """What counts; a length that has been acted on need not be listed."""
    kept = [pair for pair in head.headers if pair[0] != b"content-length" and not pair[0].startswith(b"tollway-")]
    return head.status, head.length, kept


def http1_response(data: bytes) -> None:
    """A response head says the same remembered, taken apart by hand, and parsed whole; never more than parsed whole."""
    raw = data[1:] + b"\r\n\r\n"
    if raw.find(b"\r\n\r\n") != len(raw) - 4:
        return
    method = (b"POST", b"GET", b"HEAD")[data[0] % 3] if data else b"POST"
    heads = ResponseHeads(memo_max=4)
    try:
        first, units = heads.parse(raw, method)
    except Http1Error:
        return
    again, units_again = heads.parse(raw, method)
    assert (_told(again), units_again) == (_told(first), units)
    whole = parse_response_head(raw, method)
    assert _told(whole) == _told(first)
    # Units in an unusual spelling stay among the headers, where the pipeline finds them too.
    found = [pair for pair in (*first.headers, *units) if pair[0].startswith(b"tollway-")]
    assert [pair for pair in whole.headers if pair[0].startswith(b"tollway-")] == found
    assert whole.is_keepalive == first.is_keepalive


POST = b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
GET = b"GET /g?x HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n\r\n"
CHUNKED = (
    b"POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1;x=y\r\nd\r\n0\r\nT: u\r\n\r\n"
)
HTTP1_SEEDS = [
    b"\x05" + POST + GET + POST,
    b"\x11" + CHUNKED + GET,
    b"\x01POST /no HTTP/1.1\r\nHost: a\r\nContent-Length: 40\r\nExpect: 100-continue\r\n\r\n" + b"x" * 40,
    b"\x02\r\n\r\nHEAD http://b/x HTTP/1.1\r\nhost: b\r\nConnection: close, x-y\r\nX-Y: 1\r\n\r\n" + GET,
    b"\x03OPTIONS * HTTP/1.0\r\nConnection: keep-alive\r\nUpgrade: h2c\r\n\r\n" + GET,
]
RESPONSE_SEEDS = [
    b"\0HTTP/1.1 200 OK\r\ncontent-type: a\r\ntollway-rows: 3\r\ntollway-compute-ns: 12\r\ncontent-length: 5",
    b"\0HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\ntollway-rows: 1",
    b"\1HTTP/1.0 304 Not Modified\r\nContent-Length: 3\r\nConnection: keep-alive",
    b"\2HTTP/1.1 200 OK\r\nContent-Length: 3",
]
