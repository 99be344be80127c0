"""Inbound HTTP/1.1 connections against a fake transport and application."""

import asyncio
from collections.abc import Callable

import pytest

from gateway.net.exchange import Exchange
from gateway.net.h1_inbound import H1Connection
from gateway.settings import Limits
from gateway.wire.http1 import RequestHeads
from tests.unit.net.fakes import FakeTransport, RecordingApp

POST = b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
GET = b"GET /g HTTP/1.1\r\nHost: a\r\n\r\n"


class Peer:
    """One connection under test."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.app = RecordingApp()
        self.transport = FakeTransport()
        self.registry: set[H1Connection] = set()
        self.connection = H1Connection(self.app, self.limits, RequestHeads(100), self.registry, loop)
        self.loop = loop

    def open(self, data: bytes = b"") -> None:
        self.connection.adopt(self.transport, data, self.loop.time())

    def feed(self, data: bytes) -> None:
        self.connection.data_received(data)


def with_peer(test: Callable[[Peer], None], limits: Limits | None = None) -> None:
    async def run() -> None:
        test(Peer(asyncio.get_running_loop(), limits))

    asyncio.run(run())


async def turn() -> None:
    await asyncio.sleep(0)
    await asyncio.sleep(0)


def test_a_request_cut_anywhere_is_the_same_request() -> None:
    def body(peer: Peer, cut: int) -> None:
        peer.app.reply_at_end = (200, b"ok")
        peer.open(POST[:cut])
        peer.feed(POST[cut:])
        assert peer.app.bodies == [b"abc"]
        assert peer.transport.written == b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"

    for cut in range(1, len(POST)):
        with_peer(lambda peer, cut=cut: body(peer, cut))  # type: ignore[misc]


def test_keepalive_serves_one_request_after_another() -> None:
    def body(peer: Peer) -> None:
        peer.app.reply_at_end = (200, b"")
        peer.open(POST)
        peer.feed(GET)
        assert [exchange.head.target for exchange in peer.app.exchanges] == [b"/p", b"/g"]
        assert not peer.transport.is_closing()

    with_peer(body)


def test_pipelined_requests_are_answered_in_order() -> None:
    async def run() -> None:
        peer = Peer(asyncio.get_running_loop())
        peer.open(GET + POST + GET)
        assert len(peer.app.exchanges) == 1
        peer.app.exchanges[0].reply(200, [], b"1")
        await turn()
        assert len(peer.app.exchanges) == 2
        peer.app.exchanges[1].reply(200, [], b"2")
        await turn()
        peer.app.exchanges[2].reply(200, [], b"3")
        assert peer.transport.written.replace(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n", b"") == b"123"

    asyncio.run(run())


def test_pipelining_is_bounded_by_reading_no_further() -> None:
    async def run() -> None:
        peer = Peer(asyncio.get_running_loop(), Limits(pipelined_bytes_max=len(GET)))
        peer.open(GET + GET)
        assert not peer.transport.is_read_paused
        peer.feed(b"G")
        assert peer.transport.is_read_paused
        peer.app.exchanges[0].reply(200, [], b"")
        assert not peer.transport.is_read_paused
        await turn()
        assert len(peer.app.exchanges) == 2

    asyncio.run(run())


def test_connection_close_is_said_and_done() -> None:
    def body(peer: Peer) -> None:
        peer.app.reply_at_end = (200, b"x")
        peer.open(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert peer.transport.written == b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\nconnection: close\r\n\r\nx"
        assert peer.transport.is_closing()

    with_peer(body)


def test_early_reply_drains_a_small_body_and_keeps_the_connection() -> None:
    def body(peer: Peer) -> None:
        peer.app.reply_at_head = (403, b"no")
        peer.open(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab")
        assert b"connection: close" not in peer.transport.take()
        peer.feed(b"cde" + GET)
        assert peer.app.bodies == [b"", b""]
        assert peer.app.exchanges[1].head.target == b"/g"
        assert peer.app.ended == []

    with_peer(body)


@pytest.mark.parametrize(("length", "is_kept"), [(64, True), (65, False)])
def test_drain_limit_at_its_boundary(length: int, is_kept: bool) -> None:
    def body(peer: Peer) -> None:
        peer.app.reply_at_head = (403, b"no")
        peer.open(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % length)
        assert (b"connection: close" not in peer.transport.written) is is_kept
        assert peer.transport.has_eof is not is_kept

    with_peer(body, Limits(drain_bytes_max=64))


def test_chunked_body_of_a_refused_request_is_drained_only_so_far() -> None:
    def body(peer: Peer) -> None:
        peer.app.reply_at_head = (403, b"no")
        peer.open(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        peer.feed(b"30\r\n" + b"x" * 0x30)
        assert not peer.transport.has_eof
        peer.feed(b"\r\n30\r\n" + b"x" * 0x30)
        assert peer.transport.has_eof

    with_peer(body, Limits(drain_bytes_max=64))


def test_a_malformed_body_of_a_refused_request_gets_no_second_answer() -> None:
    def body(peer: Peer) -> None:
        peer.app.reply_at_head = (403, b"no")
        peer.open(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\na\r\n")
        peer.feed(b"xxxx\r\n")
        assert peer.transport.written.count(b"HTTP/1.1 ") == 1
        assert peer.transport.is_closing() or peer.transport.has_eof

    with_peer(body)


def test_malformed_head_is_answered_400_and_closed() -> None:
    def body(peer: Peer) -> None:
        peer.open(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n" + GET)
        assert peer.transport.written.startswith(b"HTTP/1.1 400 ")
        assert b'"code":"bad_request"' in peer.transport.written
        assert peer.transport.is_closing()
        assert peer.app.exchanges == []

    with_peer(body)


def test_bare_lf_head_is_refused_without_waiting() -> None:
    def body(peer: Peer) -> None:
        peer.open(b"GET / HTTP/1.1\nHost: a\n\n")
        assert peer.transport.written.startswith(b"HTTP/1.1 400 ")

    with_peer(body)


@pytest.mark.parametrize(("size", "status"), [(200, b""), (201, b"HTTP/1.1 431 ")])
def test_head_size_at_its_boundary(size: int, status: bytes) -> None:
    def body(peer: Peer) -> None:
        start = b"GET / HTTP/1.1\r\nHost: a\r\nX: "
        peer.open(start + b"x" * (size - len(start)))
        assert peer.transport.written.startswith(status)
        assert bool(peer.transport.written) is bool(status)

    with_peer(body, Limits(head_bytes_max=200))


def test_malformed_chunk_aborts_the_call_and_closes() -> None:
    def body(peer: Peer) -> None:
        peer.open(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
        assert peer.app.aborted == peer.app.exchanges
        assert peer.transport.written.startswith(b"HTTP/1.1 400 ")

    with_peer(body)


def test_hang_up_aborts_and_later_verbs_do_nothing() -> None:
    def body(peer: Peer) -> None:
        peer.open(POST)
        exchange = peer.app.exchanges[0]
        peer.connection.connection_lost(None)
        assert peer.app.aborted == [exchange]
        exchange.reply(200, [], b"x")
        exchange.send_head(200, [])
        exchange.send_body(b"x")
        exchange.send_end()
        exchange.pause()
        exchange.resume()
        exchange.abort()
        assert peer.transport.written == b""
        assert peer.registry == set()

    with_peer(body)


def test_a_late_reply_never_reaches_the_next_request() -> None:
    """Tenant isolation: an exchange that was answered is dead, whatever its application does later."""

    def body(peer: Peer) -> None:
        peer.open(POST)
        first = peer.app.exchanges[0]
        first.reply(200, [], b"1")
        peer.feed(GET)
        peer.transport.take()
        first.reply(200, [], b"other tenant's data")
        first.send_body(b"other tenant's data")
        assert peer.transport.written == b""

    with_peer(body)


def test_streamed_reply_is_chunked_with_trailers_unless_its_length_is_known() -> None:
    def stream(exchange: Exchange, *, has_length: bool) -> None:
        exchange.send_head(200, [(b"content-length", b"4")] if has_length else [(b"a", b"b")])
        exchange.send_body(b"ab")
        exchange.send_body(memoryview(b"cd"))
        exchange.send_end([(b"t", b"1")])

    def body(peer: Peer) -> None:
        peer.open(GET)
        stream(peer.app.exchanges[0], has_length=False)
        assert peer.transport.take() == (
            b"HTTP/1.1 200 OK\r\na: b\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n2\r\ncd\r\n0\r\nt: 1\r\n\r\n"
        )
        peer.feed(GET)
        stream(peer.app.exchanges[1], has_length=True)
        assert peer.transport.take() == b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nabcd"

    with_peer(body)


def test_head_request_gets_no_body() -> None:
    def body(peer: Peer) -> None:
        peer.app.reply_at_end = (200, b"abc")
        peer.open(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert peer.transport.written == b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n"

    with_peer(body)


def test_expect_continue_is_answered_once_and_a_refusal_without_it_closes() -> None:
    raw = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n"

    def accepted(peer: Peer) -> None:
        peer.open(raw)
        peer.app.exchanges[0].send_continue()
        peer.app.exchanges[0].send_continue()
        assert peer.transport.take() == b"HTTP/1.1 100 Continue\r\n\r\n"
        peer.feed(b"x")
        assert len(peer.app.ended) == 1

    def refused(peer: Peer) -> None:
        peer.app.reply_at_head = (403, b"")
        peer.open(raw)
        assert b"connection: close" in peer.transport.written

    with_peer(accepted)
    with_peer(refused)


def test_pause_and_resume_reach_the_socket_and_slow_readers_are_told() -> None:
    def body(peer: Peer) -> None:
        peer.open(GET)
        exchange = peer.app.exchanges[0]
        exchange.pause()
        assert peer.transport.is_read_paused
        exchange.resume()
        assert not peer.transport.is_read_paused
        peer.connection.pause_writing()
        assert not exchange.is_writable
        peer.connection.resume_writing()
        assert exchange.is_writable
        assert peer.app.writable == [exchange]

    with_peer(body)


def test_abort_cuts_the_connection() -> None:
    def body(peer: Peer) -> None:
        peer.open(GET)
        peer.app.exchanges[0].abort()
        assert peer.transport.was_aborted

    with_peer(body)


def test_time_outs_of_head_body_and_idle() -> None:
    limits = Limits(head_s=5, body_idle_s=7, keepalive_idle_s=9)

    def head(peer: Peer) -> None:
        peer.open(GET[:5])
        start_s = peer.loop.time()
        peer.connection.sweep(start_s + 4)
        assert not peer.transport.written
        peer.feed(GET[5:8])  # dripping renews nothing
        peer.connection.sweep(start_s + 6)
        assert peer.transport.written.startswith(b"HTTP/1.1 408 ")

    def body(peer: Peer) -> None:
        peer.open(POST[:-1])
        peer.connection.sweep(peer.loop.time() + 6)
        assert not peer.transport.written
        peer.connection.sweep(peer.loop.time() + 8)
        assert peer.transport.written.startswith(b"HTTP/1.1 408 ")
        assert len(peer.app.aborted) == 1

    def idle(peer: Peer) -> None:
        peer.app.reply_at_end = (200, b"")
        peer.open(GET)
        peer.transport.take()
        peer.connection.sweep(peer.loop.time() + 8)
        assert not peer.transport.is_closing()
        peer.connection.sweep(peer.loop.time() + 10)
        assert peer.transport.was_aborted
        assert not peer.transport.written

    def in_flight(peer: Peer) -> None:
        peer.open(GET)
        peer.connection.sweep(peer.loop.time() + 1000)
        assert not peer.transport.is_closing()

    def stalled_reader(peer: Peer) -> None:
        peer.open(GET)
        peer.connection.pause_writing()
        peer.connection.sweep(peer.loop.time() + 8)
        assert peer.transport.was_aborted
        assert len(peer.app.aborted) == 1

    for case in (head, body, idle, in_flight, stalled_reader):
        with_peer(case, limits)


def test_drain_finishes_the_call_in_flight_then_closes() -> None:
    def body(peer: Peer) -> None:
        peer.open(GET)
        peer.connection.drain()
        assert not peer.transport.is_closing()
        peer.app.exchanges[0].reply(200, [], b"x")
        assert b"connection: close" in peer.transport.written
        assert peer.transport.is_closing()

    def idle(peer: Peer) -> None:
        peer.open()
        peer.connection.drain()
        assert peer.transport.is_closing()

    with_peer(body)
    with_peer(idle)
