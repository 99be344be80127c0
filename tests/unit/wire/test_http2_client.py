"""HTTP/2 connections, client role."""

import pytest

from gateway.call import Headers
from gateway.wire import http2_frames as frames
from gateway.wire.http2_frames import H2Code
from gateway.wire.http2_stream import Stream

from .h2_tools import PLAIN_SETTINGS, REQUEST, Peer, block, data, frame, head

OK: Headers = [(b":status", b"200")]


def opened(peer: Peer, count: int = 1, *, is_bodyless: bool = False) -> list[Stream]:
    streams = [peer.connection.open(block(REQUEST), None, is_end=True, is_bodyless=is_bodyless) for _ in range(count)]
    peer.sent()
    return streams


def test_client_begins_with_preface_and_settings_without_push() -> None:
    peer = Peer(is_client=True, is_started=False)
    raw = peer.output()
    assert raw.startswith(frames.PREFACE)
    pairs = dict(frames.unpack_settings(raw[24 + 9 : 24 + 9 + 30]))
    assert pairs[frames.ENABLE_PUSH] == 0
    assert pairs[frames.HEADER_TABLE_SIZE] == 0
    assert not peer.connection.reader.is_mid_frame


def test_request_and_reply_with_trailers() -> None:
    peer = Peer(is_client=True)
    stream = peer.connection.open(block(REQUEST), "owner", is_end=False)
    peer.connection.send.data(stream, b"body", is_end=True)
    assert [(kind, stream_id) for kind, _, stream_id, _ in peer.sent()] == [(frames.HEADERS, 1), (frames.DATA, 1)]
    peer.feed(head(1, [*OK, (b"a", b"b")]), data(1, b"reply"), head(1, [(b"grpc-status", b"0")], is_end=True))
    assert peer.recorder.log == [
        ("reply", 1, 200, [(b"a", b"b")], False),
        ("data", 1, b"reply"),
        ("end", 1, [(b"grpc-status", b"0")]),
    ]
    assert stream.owner == "owner"
    assert not peer.connection.streams


def test_reply_of_one_block() -> None:
    peer = Peer(is_client=True)
    opened(peer)
    peer.feed(head(1, [*OK, (b"grpc-status", b"5")], is_end=True))
    assert peer.recorder.log == [("reply", 1, 200, [(b"grpc-status", b"5")], True), ("end", 1, [])]


def test_informational_replies_are_skipped() -> None:
    peer = Peer(is_client=True)
    opened(peer)
    peer.feed(
        head(1, [(b":status", b"100")]), head(1, [(b":status", b"103"), (b"link", b"x")]), head(1, OK, is_end=True)
    )
    assert peer.recorder.names() == ["reply", "end"]


@pytest.mark.parametrize(
    "parts",
    [
        [head(1, [(b":status", b"100")], is_end=True)],
        [head(1, [(b":status", b"101")])],
        [head(1, [(b":status", b"99")])],
        [head(1, [(b"a", b"b")])],
        [data(1, b"body first")],
        [head(1, [*OK, (b"content-length", b"3")]), data(1, b"abcd")],
        [head(1, [*OK, (b"content-length", b"3")]), data(1, b"ab", is_end=True)],
        [head(1, [*OK, (b"content-length", b"3")], is_end=True)],
        [head(1, [(b":status", b"204")]), data(1, b"x")],
        [head(1, OK), head(1, [(b":status", b"200")], is_end=True)],
    ],
)
def test_malformed_replies_reset_their_stream(parts: list[bytes]) -> None:
    peer = Peer(is_client=True)
    opened(peer)
    peer.feed(*parts)
    assert peer.recorder.log[-1] == ("reset", 1, H2Code.PROTOCOL_ERROR, True)
    assert peer.resets() == [(1, H2Code.PROTOCOL_ERROR)]
    assert peer.connection.error is None


def test_reply_to_head_has_a_length_but_no_body() -> None:
    peer = Peer(is_client=True)
    opened(peer, is_bodyless=True)
    peer.feed(head(1, [*OK, (b"content-length", b"30")], is_end=True))
    assert peer.recorder.names() == ["reply", "end"]


@pytest.mark.parametrize(
    "raw",
    [head(2, OK), head(9, OK), data(2, b"x"), frame(frames.PUSH_PROMISE, 4, 1, b"\0\0\0\2"), frames.rst_stream(9, 0)],
)
def test_streams_that_the_client_did_not_open_are_connection_errors(raw: bytes) -> None:
    peer = Peer(is_client=True)
    opened(peer)
    peer.feed(raw)
    assert peer.error_code == H2Code.PROTOCOL_ERROR


def test_server_may_not_enable_push() -> None:
    peer = Peer(is_client=True)
    peer.feed(frames.settings([(frames.ENABLE_PUSH, 1)]))
    assert peer.error_code == H2Code.PROTOCOL_ERROR


def test_goaway_fails_streams_above_its_last_id_as_unprocessed() -> None:
    peer = Peer(is_client=True)
    opened(peer, 3)
    peer.feed(frames.goaway(1, 0))
    assert peer.recorder.log == [
        ("reset", 3, H2Code.REFUSED_STREAM, False),
        ("reset", 5, H2Code.REFUSED_STREAM, False),
        ("goaway",),
    ]
    assert not peer.connection.can_open
    peer.feed(head(1, OK, is_end=True))
    assert peer.recorder.names()[-2:] == ["reply", "end"]


def test_peers_stream_limit_is_obeyed() -> None:
    peer = Peer(is_client=True)
    assert peer.connection.can_open
    peer.feed(frames.settings([(frames.MAX_CONCURRENT_STREAMS, 2)]))
    opened(peer, 2)
    assert not peer.connection.can_open
    peer.feed(head(1, OK, is_end=True))
    assert peer.connection.can_open


def test_stream_ids_run_out() -> None:
    peer = Peer(is_client=True)
    peer.connection.next_id = 2**31 - 1
    assert not peer.connection.can_open


def test_first_frame_of_a_server_must_be_settings() -> None:
    peer = Peer(is_client=True, is_started=False)
    peer.feed(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    assert peer.error_code is not None
    peer = Peer(is_client=True, is_started=False)
    peer.feed(frame(frames.PING, 0, 0, b"\0" * 8))
    assert peer.error_code == H2Code.PROTOCOL_ERROR
    peer = Peer(is_client=True, is_started=False)
    peer.feed(PLAIN_SETTINGS)
    assert peer.error_code is None


def test_ping_can_be_sent() -> None:
    peer = Peer(is_client=True)
    peer.connection.ping(b"12345678")
    assert peer.sent() == [(frames.PING, 0, 0, b"12345678")]


def test_drain_does_not_follow_a_failure() -> None:
    peer = Peer(is_client=True)
    peer.feed(data(0, b""))
    peer.sent()
    peer.connection.begin_drain()
    peer.connection.finish_drain()
    assert peer.sent() == []
    assert not peer.connection.is_drained
