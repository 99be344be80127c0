"""One outbound HTTP/2 connection and its calls, on fakes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from gateway.net.h2_call import H2Call
from gateway.net.h2_connection import H2Outbound
from gateway.net.h2_outbound import H2PoolLimits
from gateway.wire import http2_frames as frames
from gateway.wire.header_memo import HeaderMemo
from gateway.wire.http2_frames import H2Code, Http2Limits
from gateway.wire.http2_stream import Budget
from tests.unit.wire.h2_tools import GRPC, PLAIN_SETTINGS, block, data, frame, head

from .h2_fakes import CLOCK, Account, FakeLoop, FakeTransport, RecordingListener, as_loop

OK = [(b":status", b"200")]


class FakePool:
    """What a connection and its calls need of a pool."""

    def __init__(self, limits: H2PoolLimits) -> None:
        self.fake_loop = FakeLoop()
        self.loop = as_loop(self.fake_loop)
        self.monotonic_ns: Callable[[], int] = CLOCK.monotonic_ns
        self.memo = HeaderMemo()
        self.account = Account()
        self.budget: Budget | None = self.account
        self._limits = limits
        self.waiting_bytes_max = limits.waiting_bytes_max
        self.log: list[str] = []

    @property
    def limits(self) -> H2PoolLimits:
        return self._limits

    def on_connected(self, connection: H2Outbound) -> None:
        self.log.append("connected")

    def on_disconnected(self, connection: H2Outbound) -> None:
        self.log.append("disconnected")

    def on_room(self) -> None:
        self.log.append("room")

    def hold(self, size_bytes: int) -> None:
        if size_bytes >= 0:
            self.account.add(size_bytes)
        else:
            self.account.sub(-size_bytes)

    def leave(self, call: H2Call) -> None:
        self.log.append("left")


class Side:
    """A connection, its pool and transport."""

    def __init__(self, *, wire: dict[str, Any] | None = None, **limits: Any) -> None:
        chosen = replace(H2PoolLimits(), wire=replace(Http2Limits(), **(wire or {})), **limits)
        self.pool = FakePool(chosen)
        self.account = self.pool.account
        self.transport = FakeTransport()
        self.connection = H2Outbound(self.pool)
        self.connection.connection_made(self.transport)
        self.feed(PLAIN_SETTINGS, frames.SETTINGS_ACK)
        self.transport.take()
        self.pool.log.clear()

    def feed(self, *parts: bytes) -> None:
        self.connection.data_received(b"".join(parts))

    def make(self, *, is_bodyless: bool = False) -> tuple[H2Call, RecordingListener]:
        listener = RecordingListener()
        return H2Call(self.pool, block(GRPC), listener, is_bodyless=is_bodyless), listener

    def start(self) -> tuple[H2Call, RecordingListener]:
        call, listener = self.make()
        call.start(self.connection)
        return call, listener

    def sent(self) -> list[tuple[int, int, int, bytes]]:
        self.pool.fake_loop.turn()
        return self.transport.take_frames()

    def resets(self) -> list[int]:
        return [int.from_bytes(payload, "big") for kind, _, _, payload in self.sent() if kind == frames.RST_STREAM]


def test_a_call_is_one_write_of_two_frames() -> None:
    side = Side()
    writes = side.transport.writes
    call, listener = side.start()
    call.send_body(b"request")
    call.send_end()
    sent = side.sent()
    assert side.transport.writes == writes + 1
    assert [(kind, flags) for kind, flags, *_ in sent] == [
        (frames.HEADERS, frames.END_HEADERS),
        (frames.DATA, frames.END_STREAM),
    ]
    side.feed(
        head(1, [*OK, (b"content-length", b"5")]), data(1, b"reply"), head(1, [(b"grpc-status", b"0")], is_end=True)
    )
    assert listener.log == [
        ("head", 200, [(b"content-length", b"5")], 5),
        ("body", b"reply"),
        ("end", [(b"grpc-status", b"0")]),
    ]
    assert call.is_done
    assert side.pool.log == ["room"]
    call.send_body(b"late")
    call.send_end()
    call.cancel()
    assert side.sent() == []


def test_a_trailers_only_reply_is_head_and_trailers_of_the_same_headers() -> None:
    side = Side()
    call, listener = side.start()
    call.send_end()
    fields = [(b"content-type", b"application/grpc"), (b"grpc-status", b"7")]
    side.feed(head(1, OK + fields, is_end=True))
    assert listener.log == [("head", 200, fields, -1), ("end", fields)]


def test_an_http_reply_without_body_has_no_trailers() -> None:
    side = Side()
    call, listener = side.start()
    call.send_end()
    side.feed(head(1, [(b":status", b"204"), (b"a", b"b")], is_end=True))
    assert listener.log == [("head", 204, [(b"a", b"b")], -1), ("end", [])]


def test_what_came_before_the_connection_is_sent_first() -> None:
    side = Side(waiting_bytes_max=100)
    call, listener = side.make()
    call.send_body(b"a" * 100)
    assert call.is_writable
    call.send_body(b"b")
    assert not call.is_writable
    assert side.account.held == 101
    call.send_end()
    call.start(side.connection)
    assert side.account.held == 0
    assert listener.log == [("writable",)]
    assert call.is_writable
    sent = side.sent()
    assert b"".join(payload for kind, _, _, payload in sent if kind == frames.DATA) == b"a" * 100 + b"b"
    assert sent[-1][1] & frames.END_STREAM


def test_a_call_that_ended_without_body_is_one_frame() -> None:
    side = Side()
    call, _ = side.make()
    call.send_end()
    call.start(side.connection)
    assert [(kind, flags) for kind, flags, *_ in side.sent()] == [
        (frames.HEADERS, frames.END_HEADERS | frames.END_STREAM)
    ]


def test_a_waiting_call_may_be_cancelled_or_fail() -> None:
    side = Side()
    call, listener = side.make()
    call.send_body(b"abc")
    call.cancel()
    call.cancel()
    assert side.pool.log == ["left"]
    assert side.account.held == 0
    assert listener.log == []
    call, listener = side.make()
    call.send_body(b"abc")
    call.resume()
    call.fail("no", is_sent=False)
    call.fail("no", is_sent=False)
    assert listener.log == [("error", False, "no")]
    assert side.account.held == 0


def test_cancel_resets_with_cancel_and_is_silent() -> None:
    side = Side()
    call, listener = side.start()
    side.sent()
    call.cancel()
    assert side.resets() == [H2Code.CANCEL]
    side.feed(head(1, OK), data(1, b"late"))
    assert listener.log == []
    assert side.pool.log == ["room"]


def test_paused_replies_wait_accounted_and_in_order() -> None:
    side = Side()
    call, listener = side.start()
    side.feed(head(1, OK), data(1, b"a"))
    call.pause()
    side.feed(data(1, b"b" * 1000), head(1, [(b"t", b"v")], is_end=True))
    assert listener.names() == ["head", "body"]
    assert side.account.held == 1000
    call.resume()
    assert listener.names() == ["head", "body", "body", "end"]
    assert listener.log[-1] == ("end", [(b"t", b"v")])
    assert side.account.held == 0
    assert call.is_done


def test_a_listener_may_pause_again_while_it_is_served() -> None:
    side = Side()
    call, listener = side.start()
    side.feed(head(1, OK))
    call.pause()
    side.feed(data(1, b"a" * 5000), data(1, b"b" * 5000, is_end=True))
    taken = listener.on_reply_body

    def take_and_pause(data: bytes | memoryview) -> None:
        taken(data)
        call.pause()

    listener.on_reply_body = take_and_pause  # type: ignore[method-assign]
    call.resume()
    assert len(listener.body) == 5000
    call.resume()
    assert len(listener.body) == 10_000
    assert listener.names()[-1] == "body"
    call.resume()
    assert listener.names()[-1] == "end"


@pytest.mark.parametrize("how", ["cancel", "reset", "lost"])
def test_held_bytes_are_freed_however_the_call_ends(how: str) -> None:
    side = Side()
    call, listener = side.start()
    call.pause()
    side.feed(head(1, OK), data(1, b"x" * 1000))
    assert side.account.held == 1000
    if how == "cancel":
        call.cancel()
    elif how == "reset":
        side.feed(frames.rst_stream(1, H2Code.INTERNAL_ERROR))
    else:
        side.connection.connection_lost(OSError("gone"))
    assert side.account.held == 0
    expected = {
        "cancel": [],
        "reset": [("error", True, "stream reset: INTERNAL_ERROR")],
        "lost": [("error", True, "connection lost: gone")],
    }
    assert listener.log[1:] == expected[how]


def test_requests_beyond_the_window_make_the_producer_wait() -> None:
    side = Side(wire={"send_queue_high_bytes": 1000, "send_queue_low_bytes": 10})
    call, listener = side.start()
    call.send_body(b"x" * (65_535 + 1001))
    assert not call.is_writable
    side.feed(frames.window_update(0, 5000), frames.window_update(1, 5000))
    assert call.is_writable
    assert listener.log == [("writable",)]
    assert side.account.held == 0


def test_an_early_reply_resets_the_unfinished_request() -> None:
    side = Side()
    call, listener = side.start()
    call.send_body(b"part")
    side.sent()
    side.feed(head(1, [*OK, (b"grpc-status", b"8")], is_end=True))
    assert listener.names() == ["head", "end"]
    assert side.resets() == [H2Code.CANCEL]
    assert not side.connection.h2.streams


def test_refused_streams_and_goaway_were_not_sent() -> None:
    side = Side()
    _, first = side.start()
    _, second = side.start()
    side.feed(frames.rst_stream(1, H2Code.REFUSED_STREAM), frames.goaway(1, 0))
    assert first.log == [("error", False, "stream reset: REFUSED_STREAM")]
    assert second.log == [("error", False, "stream reset: REFUSED_STREAM")]
    assert side.connection.is_leaving
    assert not side.connection.has_room
    assert side.transport.is_closed


def test_unknown_reset_codes_are_told_by_number() -> None:
    side = Side()
    _, listener = side.start()
    side.feed(frames.rst_stream(1, 0x99))
    assert listener.log == [("error", True, "stream reset: 153")]


def test_a_leaving_backend_finishes_its_streams_first() -> None:
    side = Side()
    call, listener = side.start()
    call.send_end()
    side.feed(frames.goaway(1, 0))
    assert not side.transport.is_closed
    side.feed(head(1, OK, is_end=True))
    assert listener.names() == ["head", "end"]
    assert side.transport.is_closed


def test_a_leaving_backend_is_left_when_its_last_call_is_cancelled() -> None:
    side = Side()
    call, _ = side.start()
    side.feed(frames.goaway(1, 0))
    call.cancel()
    assert side.transport.is_closed


def test_protocol_errors_fail_calls_and_close() -> None:
    side = Side()
    _, listener = side.start()
    side.feed(data(0, b"x"))
    assert listener.log[0][:2] == ("error", True)
    assert side.transport.is_closed
    assert not side.connection.has_room
    side.connection.connection_lost(None)
    assert side.pool.log == ["disconnected"]


def test_close_fails_calls() -> None:
    side = Side()
    _, listener = side.start()
    side.connection.close()
    side.connection.close()
    assert listener.log == [("error", True, "the connection was closed")]
    assert side.transport.is_closed


def test_places_are_limited_by_ourselves_and_the_peer() -> None:
    side = Side(streams_per_connection_max=2)
    side.start()
    assert side.connection.has_room
    side.start()
    assert not side.connection.has_room
    side = Side()
    side.feed(frames.settings([(frames.MAX_CONCURRENT_STREAMS, 1)]))
    assert side.pool.log == ["room"]
    side.start()
    assert not side.connection.has_room


def test_a_full_transport_holds_bodies_back() -> None:
    side = Side()
    side.connection.pause_writing()
    call, _ = side.start()
    call.send_body(b"x" * 100)
    assert [kind for kind, *_ in side.sent()] == [frames.HEADERS]
    side.connection.resume_writing()
    assert [kind for kind, *_ in side.sent()] == [frames.DATA]


def test_large_bodies_are_written_until_done() -> None:
    side = Side()
    side.feed(frames.settings([(frames.INITIAL_WINDOW_SIZE, 2**30)]), frames.window_update(0, 2**30))
    call, _ = side.start()
    call.send_body(b"x" * 3_000_000)
    side.sent()
    assert side.account.held == 0


def test_settings_must_be_acknowledged_in_time() -> None:
    side = Side(settings_s=10.0)
    side.connection.h2.is_acknowledged = False
    side.pool.fake_loop.advance(9)
    assert not side.transport.is_closed
    side.pool.fake_loop.advance(5)
    assert side.transport.is_closed


def test_idle_connections_close() -> None:
    side = Side(idle_s=20.0)
    side.pool.fake_loop.advance(19)
    assert not side.transport.is_closed
    side.pool.fake_loop.advance(5)
    assert side.transport.is_closed
    side.pool.fake_loop.advance(5)
    assert side.transport.was_aborted


def test_quiet_calls_are_kept_alive_by_ping_and_cut_without_an_answer() -> None:
    side = Side(ping_idle_s=20.0, ping_answer_s=10.0, tick_s=1.0)
    _, listener = side.start()
    side.sent()
    side.pool.fake_loop.advance(22)
    assert [kind for kind, *_ in side.sent()] == [frames.PING]
    side.feed(frame(frames.PING, frames.ACK, 0, b"tollping"))
    side.pool.fake_loop.advance(22)
    assert [kind for kind, *_ in side.sent()] == [frames.PING]
    assert listener.log == []
    side.pool.fake_loop.advance(12)
    assert listener.log == [("error", True, "the backend does not answer PING")]
    assert side.transport.is_closed


def test_output_after_the_end_of_the_transport_is_dropped() -> None:
    side = Side()
    call, _ = side.start()
    side.transport.close()
    call.send_body(b"x")
    side.pool.fake_loop.turn()
    assert side.transport.written == b""
