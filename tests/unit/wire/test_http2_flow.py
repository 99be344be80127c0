"""HTTP/2 flow control: windows both ways, queues, fairness, the transport's gate, memory accounting."""

import pytest

from gateway.wire import http2_frames as frames
from gateway.wire.http2_frames import H2Code
from gateway.wire.http2_stream import Stream, hold

from .h2_tools import PLAIN_SETTINGS, REQUEST, Peer, block, data, frame, head


class Account:
    """A budget that remembers."""

    def __init__(self) -> None:
        self.held = 0
        self.most = 0

    def add(self, size_bytes: int) -> None:
        self.held += size_bytes
        self.most = max(self.most, self.held)

    def sub(self, size_bytes: int) -> None:
        self.held -= size_bytes


def opened(peer: Peer, *stream_ids: int) -> list[Stream]:
    for stream_id in stream_ids:
        peer.feed(head(stream_id, is_end=True))
    peer.sent()
    return [peer.recorder.streams[stream_id] for stream_id in stream_ids]


def sent_data(peer: Peer) -> list[tuple[int, int]]:
    """(stream, bytes) of each DATA frame since the last call."""
    return [(stream_id, len(payload)) for kind, _, stream_id, payload in peer.sent() if kind == frames.DATA]


def updates(peer: Peer) -> list[tuple[int, int]]:
    """(stream, increment) of each WINDOW_UPDATE since the last call."""
    return [
        (stream_id, int.from_bytes(payload, "big"))
        for kind, _, stream_id, payload in peer.sent()
        if kind == frames.WINDOW_UPDATE
    ]


def test_consumed_bytes_open_both_windows_at_half() -> None:
    peer = Peer(stream_window_bytes=100, connection_window_bytes=65_535)
    peer.feed(head(1), data(1, b"x" * 49))
    assert updates(peer) == []
    peer.feed(data(1, b"x"))
    assert updates(peer) == [(1, 50)]
    for _ in range(655):
        peer.feed(data(1, b"x" * 50))
    assert (0, 32_800) in updates(peer)


def test_kept_bytes_open_no_window_until_consumed() -> None:
    peer = Peer(stream_window_bytes=100)
    peer.recorder.takes_data = False
    peer.feed(head(1), data(1, b"x" * 100))
    assert updates(peer) == []
    stream = peer.recorder.streams[1]
    assert stream.unread_bytes == 100
    peer.connection.consumed(stream, 60)
    assert updates(peer) == [(1, 60)]
    peer.feed(data(1, b"x" * 60))
    assert peer.connection.error is None
    peer.feed(data(1, b"x"))
    assert peer.resets() == [(1, H2Code.FLOW_CONTROL_ERROR)]


def test_server_withholds_the_connection_window_and_a_client_does_not() -> None:
    for is_client, expected in ((False, []), (True, [(0, 40_000)])):
        peer = Peer(is_client=is_client, stream_window_bytes=65_535, connection_window_bytes=65_535)
        peer.recorder.takes_data = False
        if is_client:
            peer.connection.open(block(REQUEST), None, is_end=True)
            peer.feed(head(1, [(b":status", b"200")]))
        else:
            peer.feed(head(1))
        peer.sent()
        peer.feed(data(1, b"x" * 40_000))
        assert updates(peer) == expected


def test_a_reset_returns_what_was_kept_to_the_connection() -> None:
    peer = Peer(stream_window_bytes=65_535, connection_window_bytes=65_535)
    peer.recorder.takes_data = False
    peer.feed(head(1), data(1, b"x" * 40_000))
    stream = peer.recorder.streams[1]
    peer.connection.reset(stream, H2Code.CANCEL)
    assert (0, 40_000) in updates(peer)
    peer.connection.consumed(stream, 40_000)
    assert updates(peer) == []


def test_connection_window_exceeded_is_a_connection_error() -> None:
    peer = Peer(connection_window_bytes=65_535, stream_window_bytes=65_535)
    peer.recorder.takes_data = False
    peer.feed(head(1), data(1, b"x" * 40_000), head(3), data(3, b"x" * 25_536))
    assert peer.error_code == H2Code.FLOW_CONTROL_ERROR


def test_late_data_on_a_reset_stream_still_returns_to_the_connection() -> None:
    peer = Peer(connection_window_bytes=65_535)
    peer.feed(head(1))
    peer.connection.reset(peer.recorder.streams[1], H2Code.CANCEL)
    peer.sent()
    peer.feed(data(1, b"x" * 40_000))
    assert updates(peer) == [(0, 40_000)]


def test_windows_of_streams_opened_before_the_acknowledgement_move_with_it() -> None:
    peer = Peer(is_started=False, stream_window_bytes=100_000)
    peer.feed(frames.PREFACE, PLAIN_SETTINGS, head(1))
    stream = peer.recorder.streams[1]
    assert stream.recv_window_bytes == 65_535
    peer.feed(frames.SETTINGS_ACK, frames.SETTINGS_ACK)
    assert stream.recv_window_bytes == 100_000
    peer.feed(head(3))
    assert peer.recorder.streams[3].recv_window_bytes == 100_000


def test_body_beyond_the_stream_window_waits_for_it() -> None:
    peer = Peer()
    (stream,) = opened(peer, 1)
    peer.connection.send.data(stream, b"x" * 70_000, is_end=True)
    assert sum(size for _, size in sent_data(peer)) == 65_535
    assert stream.backlog_bytes == 70_000 - 65_535
    peer.feed(frames.window_update(0, 100_000))
    assert sent_data(peer) == []
    peer.feed(frames.window_update(1, 1000))
    assert sent_data(peer) == [(1, 1000)]
    peer.feed(frames.window_update(1, 10_000))
    assert sent_data(peer) == [(1, 3465)]
    assert not peer.connection.streams


def test_trailers_wait_behind_the_body() -> None:
    peer = Peer()
    (stream,) = opened(peer, 1)
    peer.connection.send.reply(stream, b"\x88", b"x" * 70_000, block([(b"grpc-status", b"0")]))
    assert [kind for kind, *_ in peer.sent()].count(frames.HEADERS) == 1
    assert not stream.is_local_closed
    peer.connection.send.data(stream, b"too late")
    peer.feed(frames.window_update(0, 100_000), frames.window_update(1, 100_000))
    sent = peer.sent()
    assert [kind for kind, *_ in sent] == [frames.DATA, frames.HEADERS]
    assert sent[-1][1] & frames.END_STREAM
    assert stream.is_local_closed


def test_end_waits_behind_the_body_too() -> None:
    peer = Peer()
    (stream,) = opened(peer, 1)
    peer.connection.send.data(stream, b"x" * 70_000)
    peer.connection.send.data(stream, b"", is_end=True)
    peer.sent()
    peer.feed(frames.window_update(0, 100_000), frames.window_update(1, 100_000))
    assert peer.sent()[-1][:2] == (frames.DATA, frames.END_STREAM)


def test_streams_share_the_connection_window_frame_by_frame() -> None:
    peer = Peer()
    first, second = opened(peer, 1, 3)
    send = peer.connection.send
    send.is_gated = True
    send.data(first, b"x" * 60_000)
    send.data(second, b"y" * 60_000)
    send.is_gated = False
    send.pump()
    assert sent_data(peer) == [(1, 16384), (3, 16384), (1, 16384), (3, 16383)]
    assert send.is_backlogged


def test_a_gated_transport_takes_heads_but_no_bodies() -> None:
    peer = Peer()
    (stream,) = opened(peer, 1)
    send = peer.connection.send
    send.is_gated = True
    send.reply(stream, b"\x88", b"body", block([(b"grpc-status", b"0")]))
    assert [kind for kind, *_ in peer.sent()] == [frames.HEADERS]
    send.is_gated = False
    send.pump()
    assert [kind for kind, *_ in peer.sent()] == [frames.DATA, frames.HEADERS]


def test_output_between_flushes_is_bounded() -> None:
    peer = Peer(flush_bytes_max=20_000)
    peer.feed(frames.window_update(0, 2**30), frames.settings([(frames.INITIAL_WINDOW_SIZE, 2**30)]))
    (stream,) = opened(peer, 1)
    send = peer.connection.send
    for _ in range(10):
        send.data(stream, b"x" * 16_000)
    assert send.out_bytes < 20_000 + 16_384
    total = 0
    while send.out:
        total += sum(size for _, size in sent_data(peer))
        send.pump()
    assert total == 160_000


def test_producer_waits_above_the_high_mark_and_is_woken_below_the_low_one() -> None:
    peer = Peer(send_queue_high_bytes=1000, send_queue_low_bytes=100)
    (stream,) = opened(peer, 1)
    send = peer.connection.send
    send.data(stream, b"x" * 65_535 + b"y" * 1000)
    assert not stream.is_waiting
    send.data(stream, b"z")
    assert stream.is_waiting
    peer.feed(frames.window_update(0, 2000))
    peer.feed(frames.window_update(1, 900))
    assert peer.recorder.names() == ["request", "end"]
    peer.feed(frames.window_update(1, 1))
    assert peer.recorder.log[-1] == ("writable", 1)
    peer.feed(frames.window_update(1, 1000))
    assert peer.recorder.names().count("writable") == 1


def test_queued_bytes_are_accounted_and_released() -> None:
    account = Account()
    peer = Peer(budget=account)
    first, second = opened(peer, 1, 3)
    peer.connection.send.data(first, b"x" * 100_000)
    peer.connection.send.data(second, b"y" * 50_000)
    assert account.held == 150_000 - 65_535
    peer.connection.reset(second, H2Code.CANCEL)
    assert account.held == 100_000 - 65_535
    peer.feed(frames.window_update(0, 100_000), frames.window_update(1, 100_000))
    assert account.held == 0


def test_a_reset_stream_leaves_the_ring() -> None:
    peer = Peer()
    first, second = opened(peer, 1, 3)
    send = peer.connection.send
    send.is_gated = True
    send.data(first, b"x" * 1000)
    send.data(second, b"y" * 1000)
    peer.feed(frames.rst_stream(1, H2Code.CANCEL))
    send.is_gated = False
    send.pump()
    assert sent_data(peer) == [(3, 1000)]
    assert not send.is_backlogged


def test_initial_window_setting_moves_open_streams_even_below_zero() -> None:
    peer = Peer()
    (stream,) = opened(peer, 1)
    send = peer.connection.send
    send.data(stream, b"x" * 10_000)
    peer.feed(frames.settings([(frames.INITIAL_WINDOW_SIZE, 5000)]))
    assert stream.send_window_bytes == -5000
    peer.sent()
    send.data(stream, b"y" * 10)
    assert sent_data(peer) == []
    peer.feed(frames.settings([(frames.INITIAL_WINDOW_SIZE, 10_005)]))
    assert sent_data(peer) == [(1, 5)]


@pytest.mark.parametrize(("announced", "used"), [(16_384, 16_384), (40_000, 40_000), (2**24 - 1, 256 * 1024)])
def test_peers_frame_size_is_used_up_to_our_own(announced: int, used: int) -> None:
    peer = Peer()
    peer.feed(frames.settings([(frames.MAX_FRAME_SIZE, announced)]))
    assert peer.connection.send.frame_bytes_max == used


def test_a_reduced_header_table_is_obeyed_with_one_update() -> None:
    peer = Peer()
    peer.feed(frames.settings([(frames.HEADER_TABLE_SIZE, 0)]), frames.settings([(frames.HEADER_TABLE_SIZE, 100)]))
    first, second = opened(peer, 1, 3)
    peer.connection.send.reply(first, b"\x88", b"x", b"\x88")
    peer.connection.send.reply(second, b"\x88", b"x", b"\x88")
    blocks = [payload for kind, _, _, payload in peer.sent() if kind == frames.HEADERS]
    assert blocks == [b"\x20\x88", b"\x88", b"\x88", b"\x88"]


def test_small_pieces_in_a_backlog_are_merged() -> None:
    peer = Peer()
    (stream,) = opened(peer, 1)
    send = peer.connection.send
    send.is_gated = True
    for _ in range(10_000):
        send.data(stream, b"abc")
    assert stream.backlog is not None
    assert len(stream.backlog) == 2
    send.is_gated = False
    send.pump()
    assert sum(size for _, size in sent_data(peer)) == 30_000


def test_held_views_outlive_their_buffer() -> None:
    mutable = bytearray(b"x" * 20_000)
    copied = hold(memoryview(mutable))
    mutable[:] = b"y" * 20_000
    assert copied == b"x" * 20_000
    immutable = b"x" * 20_000
    assert isinstance(hold(memoryview(immutable)), memoryview)
    assert isinstance(hold(memoryview(immutable)[:100]), bytes)


def test_window_update_for_a_finished_stream_is_ignored() -> None:
    peer = Peer()
    (stream,) = opened(peer, 1)
    peer.connection.send.reply(stream, b"\x88", b"", None)
    peer.sent()
    peer.feed(frames.window_update(1, 10), frame(frames.RST_STREAM, 0, 1, b"\0\0\0\0"))
    assert peer.connection.error is None
    assert peer.sent() == []
