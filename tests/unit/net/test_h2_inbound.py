"""Inbound HTTP/2 connections: exchanges, back-pressure, time limits, drain; on fakes, without time or sockets."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from gateway.call import Data, Headers
from gateway.net.exchange import Exchange
from gateway.net.h2_inbound import H2Inbound, H2InboundLimits, H2Shared
from gateway.wire import http2_frames as frames
from gateway.wire.grpc import CONTENT_TYPE, status_trailers
from gateway.wire.header_blocks import BlockDecoder
from gateway.wire.header_memo import HeaderMemo
from gateway.wire.http2_frames import H2Code, Http2Limits
from gateway.wire.status import Grpc
from tests.unit.wire.h2_tools import GRPC, PLAIN_SETTINGS, REQUEST, data, frame, head

from .h2_fakes import CLOCK, Account, FakeLoop, FakeTransport, as_loop


class App:
    """Records; `at_head` answers at once."""

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.exchanges: list[Exchange] = []
        self.body = b""
        self.at_head: Any = None
        self.at_body: Any = None

    def names(self) -> list[str]:
        return [entry[0] for entry in self.log]

    def on_head(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)
        self.log.append(("head", exchange.head.target))
        if self.at_head is not None:
            self.at_head(exchange)

    def on_body(self, exchange: Exchange, data: Data) -> None:
        self.body += bytes(data)
        self.log.append(("body", bytes(data)))
        if self.at_body is not None:
            self.at_body(exchange)

    def on_end(self, exchange: Exchange) -> None:
        self.log.append(("end",))

    def on_abort(self, exchange: Exchange) -> None:
        self.log.append(("abort",))

    def on_writable(self, exchange: Exchange) -> None:
        self.log.append(("writable",))


class Side:
    """One connection with everything around it."""

    def __init__(self, *, is_started: bool = True, wire: dict[str, Any] | None = None, **limits: Any) -> None:
        self.app = App()
        self.loop = FakeLoop()
        self.account = Account()
        self.transport = FakeTransport()
        self.closed: list[H2Inbound] = []
        chosen = replace(H2InboundLimits(), wire=replace(Http2Limits(), **(wire or {})), **limits)
        shared = H2Shared(self.app, chosen, as_loop(self.loop), CLOCK.monotonic_ns, self.account)
        self.connection = H2Inbound(shared, self.closed.append)
        self.connection.connection_made(self.transport)
        if is_started:
            self.feed(frames.PREFACE, PLAIN_SETTINGS, frames.SETTINGS_ACK)
            self.transport.take()

    def feed(self, *parts: bytes) -> None:
        self.connection.data_received(b"".join(parts))

    @property
    def exchange(self) -> Exchange:
        return self.app.exchanges[-1]

    def sent(self) -> list[tuple[int, int, int, bytes]]:
        self.loop.turn()
        return self.transport.take_frames()

    def codes(self, kind: int) -> list[int]:
        """Error codes of RST_STREAM or GOAWAY frames since the last look."""
        at = 0 if kind == frames.RST_STREAM else 4
        return [int.from_bytes(payload[at : at + 4], "big") for found, _, _, payload in self.sent() if found == kind]

    def replies(self) -> list[Any]:
        """Decoded blocks and bodies since the last look."""
        decoder = BlockDecoder(Http2Limits(), HeaderMemo())
        found: list[Any] = []
        for kind, _, _, payload in self.sent():
            if kind == frames.HEADERS:
                found.append([pair for pair, _ in decoder.decode(payload).fields])
            elif kind == frames.DATA:
                found.append(payload)
        return found


def test_a_grpc_call_is_one_read_and_one_write() -> None:
    side = Side()

    def answer(exchange: Exchange) -> None:
        exchange.reply(200, [CONTENT_TYPE], b"reply", [(b"grpc-status", b"0")])

    side.app.at_head = None
    side.app.at_body = answer
    writes = side.transport.writes
    side.feed(head(1, GRPC), data(1, b"request", is_end=True))
    assert side.transport.writes == writes + 1
    assert side.replies() == [[(b":status", b"200"), CONTENT_TYPE], b"reply", [(b"grpc-status", b"0")]]
    assert side.app.names() == ["head", "body"]
    assert side.exchange.head.is_grpc
    assert side.exchange.is_h2
    assert side.connection.streams_open == 0


def test_replies_of_one_turn_share_a_write() -> None:
    side = Side()
    for stream_id in (1, 3, 5):
        side.feed(head(stream_id, is_end=True))
    writes = side.transport.writes
    for exchange in side.app.exchanges:
        exchange.reply(200, [], b"x")
    assert side.transport.writes == writes
    side.loop.turn()
    assert side.transport.writes == writes + 1


def test_trailers_only_reply_is_one_block() -> None:
    side = Side()
    side.feed(head(1, GRPC, is_end=True))
    side.exchange.reply(200, [CONTENT_TYPE], b"", status_trailers(Grpc.NOT_FOUND, "no"))
    sent = side.sent()
    assert [(kind, flags) for kind, flags, *_ in sent] == [
        (frames.HEADERS, frames.END_HEADERS | frames.END_STREAM),
    ]


def test_http_replies_have_no_trailers_and_head_has_no_body() -> None:
    side = Side()
    side.feed(head(1, [(b":method", b"HEAD"), *REQUEST[1:]], is_end=True))
    side.exchange.reply(200, [(b"content-length", b"4")], b"body")
    assert side.replies() == [[(b":status", b"200"), (b"content-length", b"4")]]


def test_a_streamed_reply() -> None:
    side = Side()
    side.feed(head(1, GRPC, is_end=True))
    side.exchange.send_head(200, [CONTENT_TYPE])
    side.exchange.send_body(b"a")
    side.exchange.send_body(b"")
    side.exchange.send_body(memoryview(b"b"))
    side.exchange.send_end([(b"grpc-status", b"0")])
    assert side.replies() == [[(b":status", b"200"), CONTENT_TYPE], b"a", b"b", [(b"grpc-status", b"0")]]
    side.exchange.send_head(200, [])
    side.exchange.send_body(b"late")
    side.exchange.send_end()
    side.exchange.reply(200, [], b"late")
    side.exchange.abort()
    assert side.sent() == []


def test_a_streamed_reply_without_trailers_ends_on_its_data() -> None:
    side = Side()
    side.feed(head(1, is_end=True))
    side.exchange.send_head(200, [])
    side.exchange.send_body(b"a")
    side.exchange.send_end()
    assert side.sent()[-1][:2] == (frames.DATA, frames.END_STREAM)


def test_continue_is_sent_only_when_expected() -> None:
    side = Side()
    side.feed(head(1, [*REQUEST, (b"expect", b"100-continue")]))
    side.exchange.send_continue()
    assert side.replies() == [[(b":status", b"100")]]
    side.feed(head(3))
    side.exchange.send_continue()
    assert side.replies() == []


def test_paused_bodies_wait_accounted_and_in_order() -> None:
    side = Side(wire={"stream_window_bytes": 65_535})
    side.feed(head(1), data(1, b"a"))
    side.exchange.pause()
    side.feed(data(1, b"b" * 40_000), data(1, b"c", is_end=True))
    assert side.app.body == b"a"
    assert side.account.held == 40_001
    assert not [kind for kind, *_ in side.sent() if kind == frames.WINDOW_UPDATE]
    side.exchange.resume()
    assert side.app.body == b"a" + b"b" * 40_000 + b"c"
    assert side.app.names()[-1] == "end"
    assert side.account.held == 0


def test_an_application_may_pause_again_while_it_is_served() -> None:
    side = Side()
    side.feed(head(1))
    side.exchange.pause()
    side.feed(data(1, b"a" * 5000), data(1, b"b" * 5000), data(1, b"", is_end=True))
    side.app.at_body = lambda exchange: exchange.pause()
    side.exchange.resume()
    assert side.app.body == b"a" * 5000
    side.feed(data(1, b"")[:0])
    side.exchange.resume()
    assert len(side.app.body) == 10_000
    assert "end" not in side.app.names()
    side.exchange.resume()
    assert side.app.names()[-1] == "end"
    assert side.account.held == 0


def test_a_paused_stream_that_resumes_mid_body_goes_on_directly() -> None:
    side = Side()
    side.feed(head(1))
    side.exchange.pause()
    side.exchange.resume()
    side.feed(data(1, b"x", is_end=True))
    assert side.app.names() == ["head", "body", "end"]


@pytest.mark.parametrize("how", ["reset", "abort", "reply", "lost"])
def test_held_bytes_are_freed_however_the_call_ends(how: str) -> None:
    side = Side()
    side.feed(head(1))
    side.exchange.pause()
    side.feed(data(1, b"x" * 1000))
    assert side.account.held == 1000
    if how == "reset":
        side.feed(frames.rst_stream(1, H2Code.CANCEL))
    elif how == "abort":
        side.exchange.abort(H2Code.CANCEL)
    elif how == "reply":
        side.exchange.reply(500, [], b"")
    else:
        side.connection.connection_lost(None)
    assert side.account.held == 0
    assert ("abort" in side.app.names()) == (how in ("reset", "lost"))
    side.exchange.resume()
    assert side.app.body == b""


def test_abort_resets_with_the_given_code_and_is_silent() -> None:
    side = Side()
    side.feed(head(1), head(3))
    side.app.exchanges[0].abort()
    side.app.exchanges[1].abort(H2Code.CANCEL)
    assert side.codes(frames.RST_STREAM) == [H2Code.INTERNAL_ERROR, H2Code.CANCEL]
    assert side.app.names() == ["head", "head"]


def test_replies_beyond_the_window_make_the_exchange_wait() -> None:
    side = Side(wire={"send_queue_high_bytes": 1000, "send_queue_low_bytes": 10})
    side.feed(head(1, is_end=True))
    side.exchange.send_head(200, [])
    side.exchange.send_body(b"x" * (65_535 + 1000))
    assert side.exchange.is_writable
    side.exchange.send_body(b"x")
    assert not side.exchange.is_writable
    assert side.account.held == 1001
    side.feed(frames.window_update(1, 2000), frames.window_update(0, 2000))
    assert side.exchange.is_writable
    assert side.app.names() == ["head", "end", "writable"]
    assert side.account.held == 0


def test_a_full_transport_holds_bodies_back() -> None:
    side = Side()
    side.feed(head(1, is_end=True))
    side.connection.pause_writing()
    side.exchange.send_head(200, [])
    side.exchange.send_body(b"x" * 1000)
    assert [kind for kind, *_ in side.sent()] == [frames.HEADERS]
    assert side.account.held == 1000
    side.connection.resume_writing()
    assert [kind for kind, *_ in side.sent()] == [frames.DATA]
    assert side.account.held == 0


def test_large_output_is_written_in_lines_and_pumped_until_empty() -> None:
    side = Side(wire={"flush_bytes_max": 100_000})
    side.feed(
        frames.settings([(frames.INITIAL_WINDOW_SIZE, 2**30)]), frames.window_update(0, 2**30), head(1, is_end=True)
    )
    side.transport.take()
    side.exchange.reply(200, [], b"x" * 500_000)
    assert sum(len(payload) for kind, _, _, payload in side.sent() if kind == frames.DATA) == 500_000


def test_an_early_reply_lets_a_small_rest_arrive() -> None:
    side = Side()
    side.app.at_head = lambda exchange: exchange.reply(401, [], b"no")
    side.feed(head(1))
    side.feed(data(1, b"x" * 1000, is_end=True))
    assert side.app.names() == ["head"]
    assert side.codes(frames.RST_STREAM) == []
    assert side.connection.streams_open == 0


def test_an_early_reply_resets_a_large_or_endless_rest_with_no_error() -> None:
    side = Side(drain_bytes_max=1000)
    side.app.at_head = lambda exchange: exchange.reply(401, [], b"no")
    side.feed(head(1), data(1, b"x" * 1000))
    assert side.codes(frames.RST_STREAM) == []
    side.feed(data(1, b"x"))
    assert side.codes(frames.RST_STREAM) == [H2Code.NO_ERROR]
    side.feed(head(3))
    side.loop.advance(10)
    assert side.codes(frames.RST_STREAM) == [H2Code.NO_ERROR]
    assert side.connection.streams_open == 0


@pytest.mark.parametrize("is_grpc", [True, False])
def test_too_large_heads_are_answered(is_grpc: bool) -> None:
    side = Side(wire={"header_list_bytes_max": 1000})
    side.feed(head(1, [*(GRPC if is_grpc else REQUEST), (b"x", b"v" * 1000)], is_end=True))
    replies = side.replies()
    if is_grpc:
        assert (b"grpc-status", b"8") in replies[0]
    else:
        assert replies[0][0] == (b":status", b"431")
        assert msgspec.json.decode(replies[1])["code"] == "headers_too_large"
    assert side.app.log == []
    assert side.connection.streams_open == 0


def test_connection_errors_abort_calls_say_why_and_close() -> None:
    side = Side()
    side.feed(head(1))
    side.feed(data(0, b"x"))
    assert side.app.names() == ["head", "abort"]
    assert side.codes(frames.GOAWAY) == [H2Code.PROTOCOL_ERROR]
    assert side.transport.is_closed
    side.exchange.reply(200, [], b"late")
    side.loop.turn()
    side.connection.connection_lost(None)
    assert side.closed == [side.connection]
    assert side.loop.pending == 0


def test_drain_finishes_what_is_in_flight_and_closes() -> None:
    side = Side()
    side.feed(head(1))
    side.connection.drain()
    side.connection.drain()
    assert side.codes(frames.GOAWAY) == [H2Code.NO_ERROR]
    side.feed(frame(frames.PING, frames.ACK, 0, b"tollgone"), head(3))
    assert side.codes(frames.GOAWAY) == [H2Code.NO_ERROR]
    side.feed(data(1, b"x", is_end=True))
    assert not side.transport.is_closed
    side.exchange.reply(200, [], b"done")
    assert b"done" in [payload for *_, payload in side.sent()]
    assert side.transport.is_closed
    assert len(side.app.exchanges) == 1


def test_drain_of_a_quiet_connection_closes_after_its_step() -> None:
    side = Side(drain_step_s=1.0)
    side.connection.drain()
    assert not side.transport.is_closed
    side.loop.advance(1.5)
    assert side.transport.is_closed
    side.connection.drain()
    side.connection.close()


@pytest.mark.parametrize("how", ["reset", "end after reply"])
def test_drain_ends_when_the_last_stream_does(how: str) -> None:
    side = Side()
    side.feed(head(1))
    if how == "end after reply":
        side.exchange.reply(200, [], b"early")
    side.connection.drain()
    side.feed(frame(frames.PING, frames.ACK, 0, b"tollgone"))
    assert not side.transport.is_closed
    side.feed(frames.rst_stream(1, 8) if how == "reset" else data(1, b"", is_end=True))
    side.loop.turn()
    assert side.transport.is_closed


def test_goaway_of_the_client_starts_a_drain() -> None:
    side = Side()
    side.feed(head(1, is_end=True), frames.goaway(0, 0))
    side.feed(frame(frames.PING, frames.ACK, 0, b"tollgone"))
    side.exchange.reply(200, [], b"x")
    side.loop.turn()
    assert side.transport.is_closed


def test_close_ends_all_at_once() -> None:
    side = Side()
    side.feed(head(1))
    side.connection.close()
    side.connection.close()
    assert side.app.names() == ["head", "abort"]
    assert side.codes(frames.GOAWAY) == [H2Code.NO_ERROR]
    assert side.transport.is_closed


def test_eof_and_loss_abort_calls() -> None:
    side = Side()
    side.feed(head(1))
    assert side.connection.eof_received() is False
    side.connection.connection_lost(ConnectionResetError())
    assert side.app.names() == ["head", "abort"]
    side.exchange.reply(200, [], b"late")
    side.loop.turn()


TIMEOUTS: dict[str, tuple[dict[str, Any], list[bytes], H2Code]] = {
    "preface": ({"is_started": False}, [b"PRI"], H2Code.ENHANCE_YOUR_CALM),
    "settings ack": (
        {"is_started": False, "head_s": 1000.0},
        [frames.PREFACE, PLAIN_SETTINGS],
        H2Code.SETTINGS_TIMEOUT,
    ),
    "header block": ({}, [frame(frames.HEADERS, 0, 1, b"\x82")], H2Code.ENHANCE_YOUR_CALM),
    "frame": ({}, [b"\0\0\x08\x06"], H2Code.ENHANCE_YOUR_CALM),
}


@pytest.mark.parametrize("name", TIMEOUTS)
def test_what_begins_must_end_in_time(name: str) -> None:
    options, parts, code = TIMEOUTS[name]
    side = Side(**{"head_s": 9.0, "settings_s": 10.0, **options})
    if not options:
        side.connection.h2.is_acknowledged = True
    side.feed(*parts)
    side.loop.advance(9.5)
    assert not side.transport.is_closed
    side.loop.advance(6)
    assert side.transport.is_closed
    assert side.codes(frames.GOAWAY) == [code]


def test_idle_connections_close_and_busy_ones_do_not() -> None:
    side = Side(idle_s=20.0)
    side.loop.advance(15)
    side.feed(head(1, GRPC))
    side.loop.advance(60)
    assert not side.transport.is_closed
    side.feed(data(1, b"x", is_end=True))
    side.exchange.reply(200, [], b"")
    side.loop.advance(15)
    assert not side.transport.is_closed
    side.loop.advance(10)
    assert side.transport.is_closed
    assert H2Code.NO_ERROR in side.codes(frames.GOAWAY)


def test_slow_http_bodies_are_reset_but_not_paused_or_grpc_ones() -> None:
    side = Side(body_idle_s=20.0)
    side.feed(head(1), head(3, GRPC), head(5))
    side.app.exchanges[2].pause()
    side.loop.advance(15)
    assert side.codes(frames.RST_STREAM) == []
    side.feed(data(1, b"x"))
    side.loop.advance(15)
    assert side.codes(frames.RST_STREAM) == []
    side.loop.advance(10)
    assert side.codes(frames.RST_STREAM) == [H2Code.CANCEL]
    assert side.app.names().count("abort") == 1
    assert set(side.connection.h2.streams) == {3, 5}


@pytest.mark.parametrize("how", ["window", "transport"])
def test_replies_that_are_not_read_end_the_connection(how: str) -> None:
    side = Side(send_stall_s=20.0)
    side.feed(head(1, is_end=True))
    if how == "transport":
        side.connection.pause_writing()
    side.exchange.reply(200, [], b"x" * 100_000)
    for _ in range(4):
        side.loop.advance(10)
        if how == "window":
            side.feed(frames.window_update(1, 1000), frames.window_update(0, 1000))
    if how == "window":
        assert not side.transport.is_closed
    side.loop.advance(26)
    assert side.transport.is_closed
    assert side.app.names() == ["head", "end"]


def test_a_closing_transport_that_never_drains_is_cut() -> None:
    side = Side(send_stall_s=10.0)
    side.feed(data(0, b"x"))
    assert side.transport.is_closed
    assert not side.transport.was_aborted
    side.loop.advance(15)
    assert side.transport.was_aborted


def test_equal_requests_share_their_head_and_its_memo() -> None:
    side = Side()
    block = b"\x20" + head(1, GRPC)[9:]
    side.feed(frames.headers(1, block, 16384, is_end=True), head(3, GRPC, is_end=True))
    side.app.exchanges[1].head.memo = "derived"
    side.feed(head(5, GRPC, is_end=True))
    assert side.app.exchanges[2].head.memo == "derived"


def test_headers_of_a_request_cross_without_te() -> None:
    side = Side()
    side.feed(head(1, GRPC, is_end=True))
    expected: Headers = [CONTENT_TYPE]
    assert side.exchange.head.headers == expected
