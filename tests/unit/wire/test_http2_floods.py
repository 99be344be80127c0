"""Every flood meets its limit at the exact boundary, with the right code; honest peers over long times do not."""

from collections.abc import Callable
from typing import Any

import pytest

from gateway.wire import http2_frames as frames
from gateway.wire.http2_frames import H2Code

from .h2_tools import REQUEST, Peer, block, data, frame, head


def resets(count: int) -> list[bytes]:
    return [head(1 + 2 * i) + frames.rst_stream(1 + 2 * i, H2Code.CANCEL) for i in range(count)]


def malformed(count: int) -> list[bytes]:
    return [head(1 + 2 * i, [(b":method", b"GET")]) for i in range(count)]


def opened_then(parts: Callable[[int], list[bytes]]) -> Callable[[int], list[bytes]]:
    return lambda count: [head(1), *parts(count)]


#: name → (frames for a count of events, the limits that allow exactly ten)
FLOODS: dict[str, tuple[Callable[[int], list[bytes]], dict[str, Any]]] = {
    "rapid reset": (resets, {"resets_burst_max": 10}),
    "malformed requests": (malformed, {"resets_burst_max": 10}),
    "ping": (lambda n: [frame(frames.PING, 0, 0, b"\0" * 8)] * n, {"control_frames_burst_max": 12}),
    "settings": (lambda n: [frames.settings([])] * n, {"control_frames_burst_max": 12}),
    "settings acks": (lambda n: [frames.SETTINGS_ACK] * n, {"control_frames_burst_max": 12}),
    "priority": (lambda n: [frame(frames.PRIORITY, 0, 1, b"\0" * 5)] * n, {"control_frames_burst_max": 12}),
    "unknown": (lambda n: [frame(0x77, 0, 1, b"x")] * n, {"control_frames_burst_max": 12}),
    "goaway": (lambda n: [frames.goaway(0, 0)] * n, {"control_frames_burst_max": 12}),
    "empty data": (opened_then(lambda n: [data(1, b"")] * n), {"control_frames_burst_max": 12}),
    "empty padded data": (
        opened_then(lambda n: [frame(frames.DATA, frames.PADDED, 1, b"\0")] * n),
        {"control_frames_burst_max": 12},
    ),
    "window updates": (lambda n: [frames.window_update(0, 1)] * n, {"window_updates_burst_max": 10}),
    "late resets": (
        lambda n: [head(1), frames.rst_stream(1, 0), *[frames.rst_stream(1, 0)] * n],
        {"control_frames_burst_max": 12},
    ),
    "data after reset": (
        lambda n: [head(1), frames.rst_stream(1, 0), *[data(1, b"x")] * (n - 1)],
        {"resets_burst_max": 10},
    ),
    "continuation": (
        lambda n: [frame(frames.HEADERS, 0, 1), *[frame(frames.CONTINUATION, 0, 1)] * n],
        {"continuation_frames_max": 10},
    ),
    "refused streams": (
        lambda n: [head(1), *[head(3 + 2 * i) for i in range(n)]],
        {"streams_max": 1, "resets_burst_max": 10},
    ),
}


@pytest.mark.parametrize("name", FLOODS)
def test_flood_is_refused_just_past_its_limit(name: str) -> None:
    parts, limits = FLOODS[name]
    peer = Peer(**limits)
    peer.feed(*parts(10))
    assert peer.connection.error is None
    peer = Peer(**limits)
    peer.feed(*parts(11))
    assert peer.error_code == H2Code.ENHANCE_YOUR_CALM
    assert [code for _, code in peer.goaways()] == [H2Code.ENHANCE_YOUR_CALM]


@pytest.mark.parametrize(
    ("field", "part"),
    [("control_frames", frame(frames.PING, 0, 0, b"\0" * 8)), ("window_updates", frames.window_update(0, 1))],
)
def test_honest_rates_never_add_up(field: str, part: bytes) -> None:
    limits: dict[str, Any] = {f"{field}_burst_max": 10, f"{field}_per_s_max": 2}
    peer = Peer(**limits)
    for _ in range(100):
        peer.feed(part)
        peer.clock.advance(500_000_000)
    assert peer.connection.error is None
    peer.feed(part * 13)
    assert peer.error_code == H2Code.ENHANCE_YOUR_CALM


def test_resets_refill_with_time() -> None:
    peer = Peer(resets_burst_max=10, resets_per_s_max=10)
    raw = resets(30)
    peer.feed(*raw[:10])
    peer.clock.advance(1_000_000_000)
    peer.feed(*raw[10:20])
    assert peer.connection.error is None
    peer.feed(*raw[20:])
    assert peer.error_code == H2Code.ENHANCE_YOUR_CALM


def test_resets_after_a_complete_reply_are_no_rapid_reset() -> None:
    peer = Peer(resets_burst_max=1)
    for stream_id in range(1, 41, 2):
        peer.feed(head(stream_id))
        peer.connection.send.reply(peer.recorder.streams[stream_id], b"\x88", b"", None)
        peer.feed(frames.rst_stream(stream_id, H2Code.NO_ERROR))
    assert peer.connection.error is None


def test_window_updates_explained_by_our_data_are_free() -> None:
    peer = Peer(window_updates_burst_max=5, window_updates_per_data_frame=2)
    peer.feed(head(1, is_end=True))
    stream = peer.recorder.streams[1]
    for _ in range(100):
        peer.connection.send.data(stream, b"x")
        peer.feed(frames.window_update(0, 1), frames.window_update(1, 1))
    assert peer.connection.error is None


def test_tiny_window_updates_while_replies_wait_are_a_game() -> None:
    peer = Peer(control_frames_burst_max=12, fragment_bytes_min=100)
    peer.feed(head(1, is_end=True))
    peer.connection.send.data(peer.recorder.streams[1], b"x" * 70_000)
    peer.feed(frames.window_update(0, 100_000))
    peer.feed(*[frames.window_update(1, 100)] * 12)
    assert peer.connection.error is None
    peer.feed(*[frames.window_update(1, 99)] * 10)
    assert peer.connection.error is None
    peer.feed(frames.window_update(1, 99))
    assert peer.error_code == H2Code.ENHANCE_YOUR_CALM


def test_tiny_connection_updates_while_replies_wait_are_a_game() -> None:
    peer = Peer(control_frames_burst_max=12, fragment_bytes_min=100)
    peer.feed(head(1, is_end=True), frames.window_update(1, 100_000))
    peer.connection.send.data(peer.recorder.streams[1], b"x" * 70_000)
    peer.feed(*[frames.window_update(0, 99)] * 10)
    assert peer.connection.error is None
    peer.feed(frames.window_update(0, 99))
    assert peer.error_code == H2Code.ENHANCE_YOUR_CALM


def test_answers_that_are_not_read_are_bounded() -> None:
    ping = frame(frames.PING, 0, 0, b"\0" * 8)
    peer = Peer(unsent_replies_max=5)
    peer.feed(ping * 100)
    assert peer.connection.error is None
    peer.connection.guard.is_peer_reading = False
    peer.feed(ping * 5)
    assert peer.connection.error is None
    peer.connection.guard.is_peer_reading = True
    peer.feed(ping)
    peer.connection.guard.is_peer_reading = False
    peer.feed(ping * 5)
    assert peer.connection.error is None
    peer.feed(ping)
    assert peer.error_code == H2Code.ENHANCE_YOUR_CALM


def test_streams_beyond_the_limit_are_refused_and_the_rest_goes_on() -> None:
    peer = Peer(streams_max=2)
    peer.feed(head(1), head(3), head(5), data(5, b"ignored"))
    assert peer.resets() == [(5, H2Code.REFUSED_STREAM)]
    peer.feed(data(1, b"x", is_end=True))
    peer.connection.send.reply(peer.recorder.streams[1], b"\x88", b"", None)
    peer.feed(head(7))
    assert peer.resets() == []
    assert set(peer.connection.streams) == {3, 7}


@pytest.mark.parametrize(
    ("parts", "limits"),
    [
        ([frames.frame_head(101, frames.HEADERS, 4, 1)], {"header_block_bytes_max": 100}),
        (
            [frames.frame_head(60, frames.HEADERS, 0, 1), b"x" * 60, frames.frame_head(41, frames.CONTINUATION, 4, 1)],
            {"header_block_bytes_max": 100},
        ),
        ([frames.frame_head(101, frames.GOAWAY, 0, 0)], {"control_frame_bytes_max": 100}),
        ([frames.settings([(0x99, 0)] * 6)], {"settings_entries_max": 5}),
    ],
)
def test_too_large_frames_are_refused_by_their_head(parts: list[bytes], limits: dict[str, Any]) -> None:
    peer = Peer(**limits)
    peer.feed(*parts)
    assert peer.error_code == H2Code.ENHANCE_YOUR_CALM


def test_frames_at_their_largest_are_taken() -> None:
    raw = block([*REQUEST, (b"x", b"v" * 50)])
    peer = Peer(header_block_bytes_max=len(raw), settings_entries_max=5, control_frame_bytes_max=108)
    peer.feed(
        frame(frames.HEADERS, 0, 1, raw[:50]),
        frame(frames.CONTINUATION, frames.END_HEADERS, 1, raw[50:]),
        frames.settings([(0x99, 0)] * 5),
        frames.goaway(0, 0, b"d" * 100),
    )
    assert peer.connection.error is None
    assert peer.recorder.names() == ["request", "settings", "goaway"]


def test_closed_streams_remembered_are_bounded() -> None:
    peer = Peer(closed_streams_max=3)
    for stream_id in range(1, 21, 2):
        peer.feed(head(stream_id), frames.rst_stream(stream_id, H2Code.CANCEL))
    assert set(peer.connection.closed) == {15, 17, 19}
