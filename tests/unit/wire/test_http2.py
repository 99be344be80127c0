"""HTTP/2 connections, server role: messages, their order, and which faults are stream or connection errors."""

import pytest

from gateway.errors import Code
from gateway.wire import http2_frames as frames
from gateway.wire.http2_frames import H2Code, Http2Error

from .h2_tools import GRPC, PLAIN_SETTINGS, REQUEST, Peer, block, data, frame, head, padded


def test_server_announces_no_header_table_and_its_limits() -> None:
    peer = Peer(is_started=False, streams_max=7)
    sent = peer.sent()
    assert sent[0][0] == frames.SETTINGS
    pairs = dict(frames.unpack_settings(sent[0][3]))
    assert pairs[frames.HEADER_TABLE_SIZE] == 0
    assert pairs[frames.MAX_CONCURRENT_STREAMS] == 7
    assert pairs[frames.INITIAL_WINDOW_SIZE] == peer.limits.stream_window_bytes
    assert sent[1] == (
        frames.WINDOW_UPDATE,
        0,
        0,
        (peer.limits.connection_window_bytes - 65_535).to_bytes(4, "big"),
    )


def test_settings_are_acknowledged() -> None:
    peer = Peer(is_started=False)
    peer.sent()
    peer.feed(frames.PREFACE, PLAIN_SETTINGS)
    assert peer.sent() == [(frames.SETTINGS, frames.ACK, 0, b"")]
    assert peer.recorder.names() == ["settings"]
    assert peer.connection.has_settings
    assert not peer.connection.is_acknowledged


def test_request_with_body_and_trailers() -> None:
    peer = Peer()
    peer.feed(head(1, GRPC), data(1, b"one"), data(1, b"two"), head(1, [(b"x-t", b"v")], is_end=True))
    assert peer.recorder.log == [
        ("request", 1, b"POST", b"/a.B/C"),
        ("data", 1, b"one"),
        ("data", 1, b"two"),
        ("end", 1, [(b"x-t", b"v")]),
    ]
    request = peer.recorder.heads[0]
    assert request.is_grpc
    assert request.headers == [(b"content-type", b"application/grpc")]
    assert request.authority == b"host"


def test_equal_heads_are_the_same_object_once_the_table_is_gone() -> None:
    peer = Peer()
    peer.feed(frames.headers(1, b"\x20" + block(GRPC), 16384, is_end=True))
    peer.feed(head(3, GRPC, is_end=True), head(5, GRPC, is_end=True))
    first, second, third = peer.recorder.heads
    assert second is third
    assert first.headers == second.headers


def test_reply_is_headers_data_trailers_and_ends_the_stream() -> None:
    peer = Peer()
    peer.feed(head(1, GRPC, is_end=True))
    stream = peer.recorder.streams[1]
    peer.connection.send.reply(stream, b"\x88", b"body", block([(b"grpc-status", b"0")]))
    kinds = [(kind, flags, stream_id) for kind, flags, stream_id, _ in peer.sent()]
    assert kinds == [
        (frames.HEADERS, frames.END_HEADERS, 1),
        (frames.DATA, 0, 1),
        (frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, 1),
    ]
    assert not peer.connection.streams


@pytest.mark.parametrize("body", [b"", b"x"])
def test_reply_without_trailers_ends_with_its_last_frame(body: bytes) -> None:
    peer = Peer()
    peer.feed(head(1, is_end=True))
    peer.connection.send.reply(peer.recorder.streams[1], b"\x88", body, None)
    sent = peer.sent()
    assert len(sent) == 1 + len(body)
    assert sent[-1][1] & frames.END_STREAM
    assert not peer.connection.streams


def test_end_after_data_rides_on_the_frame_still_in_the_output() -> None:
    peer = Peer()
    peer.feed(head(1, is_end=True), head(3, is_end=True))
    send = peer.connection.send
    first, second = peer.recorder.streams[1], peer.recorder.streams[3]
    send.data(first, b"abc")
    send.data(first, b"", is_end=True)
    assert peer.sent() == [(frames.DATA, frames.END_STREAM, 1, b"abc")]
    send.data(second, b"abc")
    peer.sent()
    send.data(second, b"", is_end=True)
    assert peer.sent() == [(frames.DATA, frames.END_STREAM, 3, b"")]
    assert not peer.connection.streams


def test_nothing_is_sent_after_the_end() -> None:
    peer = Peer()
    peer.feed(head(1))
    send = peer.connection.send
    stream = peer.recorder.streams[1]
    send.reply(stream, b"\x88", b"", None)
    peer.sent()
    send.data(stream, b"late")
    send.headers(stream, b"\x88", is_end=True)
    send.reply(stream, b"\x88", b"late", b"\x88")
    assert peer.sent() == []


def test_empty_data_that_ends_nothing_is_not_sent() -> None:
    peer = Peer()
    peer.feed(head(1))
    peer.connection.send.data(peer.recorder.streams[1], b"")
    assert peer.sent() == []


def test_large_blocks_go_out_in_continuation_frames() -> None:
    peer = Peer()
    peer.feed(head(1, is_end=True))
    raw = block([(b"x-big", b"v" * 40_000)])
    peer.connection.send.headers(peer.recorder.streams[1], raw, is_end=True)
    sent = peer.sent()
    assert [kind for kind, *_ in sent] == [frames.HEADERS, frames.CONTINUATION, frames.CONTINUATION]
    assert [flags for _, flags, *_ in sent] == [frames.END_STREAM, 0, frames.END_HEADERS]
    assert b"".join(payload for *_, payload in sent) == raw


def test_continuation_padding_and_priority_are_understood() -> None:
    raw = block(GRPC)
    first = padded(b"\0\0\0\0\x10" + raw[:10], 3)
    peer = Peer()
    peer.feed(
        frame(frames.HEADERS, frames.PADDED | frames.HAS_PRIORITY | frames.END_STREAM, 1, first),
        frame(frames.CONTINUATION, 0, 1, raw[10:20]),
        frame(frames.CONTINUATION, frames.END_HEADERS, 1, raw[20:]),
    )
    assert peer.recorder.names() == ["request", "end"]


def test_padded_data_counts_its_padding_against_the_windows() -> None:
    peer = Peer(stream_window_bytes=200)
    peer.feed(head(1))
    stream = peer.recorder.streams[1]
    peer.feed(frame(frames.DATA, frames.PADDED, 1, padded(b"abc", 20)))
    assert peer.recorder.body == b"abc"
    assert stream.recv_credit_bytes == 24
    assert stream.recv_window_bytes == 200 - 24
    peer.feed(frame(frames.DATA, frames.PADDED | frames.END_STREAM, 1, padded(b"", 5)))
    assert peer.recorder.names() == ["request", "data", "end"]


def test_unknown_frames_and_priority_are_ignored() -> None:
    peer = Peer()
    peer.feed(frame(0x20, 0xFF, 9, b"x" * 1000), frame(0x21, 0, 0), frame(frames.PRIORITY, 0, 3, b"\0" * 5), head(1))
    assert peer.recorder.names() == ["request"]
    assert peer.connection.error is None


def test_ping_is_answered_and_answers_are_counted() -> None:
    peer = Peer()
    peer.feed(frame(frames.PING, 0, 0, b"12345678"), frame(frames.PING, frames.ACK, 0, b"abcdefgh"))
    assert peer.sent() == [(frames.PING, frames.ACK, 0, b"12345678")]
    assert peer.connection.ping_acks == 1


def test_rst_stream_reaches_the_handler_once() -> None:
    peer = Peer()
    peer.feed(head(1), frames.rst_stream(1, H2Code.CANCEL), frames.rst_stream(1, H2Code.CANCEL))
    assert peer.recorder.log[1:] == [("reset", 1, H2Code.CANCEL, True)]
    assert not peer.connection.streams
    assert peer.connection.error is None


def test_reset_by_us_is_sent_once_and_late_frames_are_ignored() -> None:
    peer = Peer()
    peer.feed(head(1))
    stream = peer.recorder.streams[1]
    peer.connection.reset(stream, H2Code.CANCEL)
    peer.connection.reset(stream, H2Code.CANCEL)
    assert peer.resets() == [(1, H2Code.CANCEL)]
    peer.feed(data(1, b"late"), head(1, [(b"t", b"v")], is_end=True), frames.window_update(1, 5))
    assert peer.recorder.names() == ["request"]
    assert peer.connection.error is None
    assert peer.sent() == []


def test_frames_after_the_peers_reset_are_stream_errors() -> None:
    peer = Peer()
    peer.feed(head(1), frames.rst_stream(1, H2Code.CANCEL), data(1, b"late"))
    assert peer.resets() == [(1, H2Code.STREAM_CLOSED)]
    assert peer.connection.error is None


def test_refused_stream_was_not_processed() -> None:
    peer = Peer(is_client=True)
    peer.connection.open(block(REQUEST), None, is_end=True)
    peer.feed(frames.rst_stream(1, H2Code.REFUSED_STREAM))
    assert peer.recorder.log == [("reset", 1, H2Code.REFUSED_STREAM, False)]


BAD_REQUESTS = {
    "content-length larger than the body": [
        head(1, [*REQUEST, (b"content-length", b"5")]),
        data(1, b"abc", is_end=True),
    ],
    "content-length smaller than the body": [head(1, [*REQUEST, (b"content-length", b"2")]), data(1, b"abc")],
    "content-length without a body": [head(1, [*REQUEST, (b"content-length", b"2")], is_end=True)],
    "trailers before the promised length": [
        head(1, [*REQUEST, (b"content-length", b"2")]),
        head(1, [(b"t", b"v")], is_end=True),
    ],
    "trailers that do not end the stream": [head(1), head(1, [(b"t", b"v")])],
    "pseudo-header in trailers": [head(1), head(1, [(b":path", b"/")], is_end=True)],
    "upper case name": [head(1, [*REQUEST, (b"X-A", b"v")])],
    "window update of 0": [head(1), frames.window_update(1, 0)],
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_malformed_messages_reset_their_stream_with_protocol_error(name: str) -> None:
    peer = Peer()
    peer.feed(*BAD_REQUESTS[name])
    assert peer.resets() == [(1, H2Code.PROTOCOL_ERROR)]
    assert peer.connection.error is None
    peer.feed(head(3, is_end=True))
    assert peer.recorder.names()[-2:] == ["request", "end"]


STREAM_ERRORS = {
    "data after the end": ([head(1, is_end=True), data(1, b"x")], H2Code.STREAM_CLOSED),
    "headers after the end": ([head(1, is_end=True), head(1)], H2Code.STREAM_CLOSED),
    "stream window overflow": ([head(1), frames.window_update(1, 2**31 - 1)], H2Code.FLOW_CONTROL_ERROR),
    "stream window exceeded": ([head(1), data(1, b"x" * 101)], H2Code.FLOW_CONTROL_ERROR),
}


@pytest.mark.parametrize("name", STREAM_ERRORS)
def test_other_stream_errors(name: str) -> None:
    parts, code = STREAM_ERRORS[name]
    peer = Peer(stream_window_bytes=100)
    peer.feed(*parts)
    assert peer.resets() == [(1, code)]
    assert peer.connection.error is None
    assert peer.recorder.log[-1] == ("reset", 1, code, True)


CONNECTION_ERRORS = {
    "data on stream 0": ([data(0, b"x")], H2Code.PROTOCOL_ERROR),
    "headers on stream 0": ([head(0)], H2Code.PROTOCOL_ERROR),
    "rst on stream 0": ([frames.rst_stream(0, 0)], H2Code.PROTOCOL_ERROR),
    "priority on stream 0": ([frame(frames.PRIORITY, 0, 0, b"\0" * 5)], H2Code.PROTOCOL_ERROR),
    "settings on a stream": ([frame(frames.SETTINGS, 0, 1)], H2Code.PROTOCOL_ERROR),
    "ping on a stream": ([frame(frames.PING, 0, 1, b"\0" * 8)], H2Code.PROTOCOL_ERROR),
    "goaway on a stream": ([frame(frames.GOAWAY, 0, 1, b"\0" * 8)], H2Code.PROTOCOL_ERROR),
    "data on an idle stream": ([data(1, b"x")], H2Code.PROTOCOL_ERROR),
    "rst on an idle stream": ([frames.rst_stream(1, 0)], H2Code.PROTOCOL_ERROR),
    "window update on an idle stream": ([frames.window_update(1, 1)], H2Code.PROTOCOL_ERROR),
    "even stream id": ([head(2)], H2Code.PROTOCOL_ERROR),
    "stream id going back": ([head(5, is_end=True), head(3)], H2Code.STREAM_CLOSED),
    "push promise": ([frame(frames.PUSH_PROMISE, 0, 1, b"\0" * 4)], H2Code.PROTOCOL_ERROR),
    "continuation without headers": ([frame(frames.CONTINUATION, 4, 1)], H2Code.PROTOCOL_ERROR),
    "block interrupted by data": (
        [frame(frames.HEADERS, 0, 1, block(REQUEST)), data(1, b"x")],
        H2Code.PROTOCOL_ERROR,
    ),
    "block interrupted by another stream": (
        [frame(frames.HEADERS, 0, 1, block(REQUEST)), frame(frames.CONTINUATION, 4, 3)],
        H2Code.PROTOCOL_ERROR,
    ),
    "padding longer than data": ([head(1), frame(frames.DATA, frames.PADDED, 1, b"\x05abcd")], H2Code.PROTOCOL_ERROR),
    "padded data without a length": ([head(1), frame(frames.DATA, frames.PADDED, 1)], H2Code.PROTOCOL_ERROR),
    "padding longer than headers": (
        [frame(frames.HEADERS, frames.PADDED | 4, 1, b"\x05abcd")],
        H2Code.PROTOCOL_ERROR,
    ),
    "padded headers without a length": ([frame(frames.HEADERS, frames.PADDED | 4, 1)], H2Code.FRAME_SIZE_ERROR),
    "headers too short for priority": (
        [frame(frames.HEADERS, frames.HAS_PRIORITY | 4, 1, b"\0\0")],
        H2Code.FRAME_SIZE_ERROR,
    ),
    "short ping": ([frame(frames.PING, 0, 0, b"\0" * 7)], H2Code.FRAME_SIZE_ERROR),
    "short rst": ([frame(frames.RST_STREAM, 0, 1, b"\0" * 3)], H2Code.FRAME_SIZE_ERROR),
    "short window update": ([frame(frames.WINDOW_UPDATE, 0, 0, b"\0" * 3)], H2Code.FRAME_SIZE_ERROR),
    "long priority": ([frame(frames.PRIORITY, 0, 1, b"\0" * 6)], H2Code.FRAME_SIZE_ERROR),
    "ragged settings": ([frame(frames.SETTINGS, 0, 0, b"\0" * 5)], H2Code.FRAME_SIZE_ERROR),
    "settings ack with a payload": ([frame(frames.SETTINGS, 1, 0, b"\0" * 6)], H2Code.FRAME_SIZE_ERROR),
    "short goaway": ([frame(frames.GOAWAY, 0, 0, b"\0" * 7)], H2Code.FRAME_SIZE_ERROR),
    "frame too large": ([frames.frame_head(256 * 1024 + 1, 0, 0, 1)], H2Code.FRAME_SIZE_ERROR),
    "push setting": ([frames.settings([(frames.ENABLE_PUSH, 2)])], H2Code.PROTOCOL_ERROR),
    "window setting": ([frames.settings([(frames.INITIAL_WINDOW_SIZE, 2**31)])], H2Code.FLOW_CONTROL_ERROR),
    "frame size setting small": ([frames.settings([(frames.MAX_FRAME_SIZE, 16_383)])], H2Code.PROTOCOL_ERROR),
    "frame size setting large": ([frames.settings([(frames.MAX_FRAME_SIZE, 2**24)])], H2Code.PROTOCOL_ERROR),
    "connection window update of 0": ([frames.window_update(0, 0)], H2Code.PROTOCOL_ERROR),
    "connection window overflow": ([frames.window_update(0, 2**31 - 1)], H2Code.FLOW_CONTROL_ERROR),
    "window overflow by setting": (
        [
            head(1),
            frames.window_update(1, 2**31 - 1 - 65_535),
            frames.settings([(frames.INITIAL_WINDOW_SIZE, 65_536)]),
        ],
        H2Code.FLOW_CONTROL_ERROR,
    ),
    "broken header block": ([frame(frames.HEADERS, 4, 1, b"\x80")], H2Code.COMPRESSION_ERROR),
}


@pytest.mark.parametrize("name", CONNECTION_ERRORS)
def test_connection_errors_say_goaway_and_end_all(name: str) -> None:
    parts, code = CONNECTION_ERRORS[name]
    peer = Peer()
    peer.feed(*parts)
    assert peer.error_code == code
    goaways = peer.goaways()
    assert [sent for _, sent in goaways] == [code]
    count = len(peer.recorder.log)
    peer.feed(head(9, is_end=True))
    assert len(peer.recorder.log) == count
    assert peer.sent() == []


def test_data_on_a_stream_that_both_sides_closed_is_a_connection_error() -> None:
    peer = Peer()
    peer.feed(head(1, is_end=True))
    peer.connection.send.reply(peer.recorder.streams[1], b"\x88", b"", None)
    peer.feed(data(1, b"x"))
    assert peer.error_code == H2Code.STREAM_CLOSED


@pytest.mark.parametrize("raw", [b"GET / HTTP/1.1\r\n", b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"])
def test_wrong_preface_is_refused(raw: bytes) -> None:
    peer = Peer(is_started=False)
    peer.feed(raw)
    assert peer.error_code == H2Code.PROTOCOL_ERROR


@pytest.mark.parametrize("first", [frames.SETTINGS_ACK, frame(frames.PING, 0, 0, b"\0" * 8), head(1)])
def test_first_frame_must_be_settings(first: bytes) -> None:
    peer = Peer(is_started=False)
    peer.feed(frames.PREFACE, first)
    assert peer.error_code == H2Code.PROTOCOL_ERROR


def test_goaway_names_the_last_stream_begun() -> None:
    peer = Peer()
    peer.feed(head(1), head(7))
    peer.sent()
    peer.feed(data(0, b""))
    assert peer.goaways() == [(7, H2Code.PROTOCOL_ERROR)]


def test_everything_may_arrive_byte_by_byte() -> None:
    peer = Peer(is_started=False)
    raw = frames.PREFACE + PLAIN_SETTINGS + frames.SETTINGS_ACK + head(1, GRPC)
    raw += frame(frames.DATA, frames.PADDED, 1, padded(b"abc", 4)) + frame(0x33, 0, 0, b"skip")
    raw += data(1, b"def", is_end=True)
    for index in range(len(raw)):
        peer.feed(raw[index : index + 1])
    assert peer.recorder.body == b"abcdef"
    assert peer.recorder.names()[-1] == "end"
    assert not peer.connection.reader.is_mid_frame


def test_mid_frame_is_known() -> None:
    peer = Peer(is_started=False)
    assert peer.connection.reader.is_mid_frame
    peer.feed(frames.PREFACE, PLAIN_SETTINGS)
    assert not peer.connection.reader.is_mid_frame
    peer.feed(b"\0")
    assert peer.connection.reader.is_mid_frame
    peer = Peer()
    peer.feed(frame(frames.HEADERS, 0, 1, block(REQUEST)))
    assert peer.connection.reader.is_mid_frame


def test_large_data_frame_is_handed_on_as_it_comes() -> None:
    peer = Peer()
    payload = bytes(range(256)) * 400
    peer.feed(head(1))
    raw = data(1, payload, is_end=True)
    peer.feed(raw[:20_000])
    assert peer.recorder.body == payload[: 20_000 - 9]
    peer.feed(raw[20_000:])
    assert peer.recorder.body == payload
    assert peer.recorder.names()[-1] == "end"


def test_reset_in_the_middle_of_a_data_frame_ignores_the_rest() -> None:
    peer = Peer()
    peer.feed(head(1), data(1, b"x" * 100, is_end=True)[:50])
    peer.connection.reset(peer.recorder.streams[1], H2Code.CANCEL)
    peer.feed(b"x" * 59, head(3, is_end=True))
    assert peer.connection.error is None
    assert peer.recorder.names() == ["request", "data", "request", "end"]


def test_too_large_header_lists_are_left_to_the_handler() -> None:
    peer = Peer(header_list_bytes_max=1000)
    peer.feed(head(1, [*GRPC, (b"x-big", b"v" * 1000)], is_end=True))
    assert peer.recorder.log == [("refused", 1, Code.HEADERS_TOO_LARGE, True), ("end", 1, [])]


def test_connect_is_not_supported_but_answered() -> None:
    peer = Peer()
    peer.feed(head(1, [(b":method", b"CONNECT"), (b":authority", b"host:1")]))
    assert peer.recorder.log == [("refused", 1, Code.METHOD_NOT_ALLOWED, False)]


def test_drain_announces_then_names_the_last_stream() -> None:
    peer = Peer()
    peer.feed(head(1))
    peer.connection.begin_drain()
    peer.connection.begin_drain()
    assert peer.goaways() == [(2**31 - 1, H2Code.NO_ERROR)]
    peer.feed(head(3))
    assert 3 in peer.recorder.streams
    peer.feed(frame(frames.PING, frames.ACK, 0, b"tollgone"))
    assert peer.goaways() == [(3, H2Code.NO_ERROR)]
    peer.connection.finish_drain()
    assert peer.goaways() == []
    peer.feed(head(5), data(5, b"x"))
    assert 5 not in peer.recorder.streams
    assert peer.connection.error is None
    assert not peer.connection.is_drained
    for stream_id in (1, 3):
        peer.connection.reset(peer.recorder.streams[stream_id], H2Code.CANCEL)
    assert peer.connection.is_drained


def test_goaway_of_a_client_is_told_and_its_streams_go_on() -> None:
    peer = Peer()
    peer.feed(head(1), frames.goaway(0, 0, b"bye"), data(1, b"x", is_end=True))
    assert peer.recorder.names() == ["request", "goaway", "data", "end"]
    assert peer.connection.is_peer_going


def test_handler_may_reset_from_within_a_callback() -> None:
    peer = Peer()
    recorder = peer.recorder

    def reset_at_data(stream: object, _: object) -> bool:
        peer.connection.reset(recorder.streams[1], H2Code.CANCEL)
        return False

    recorder.on_data = reset_at_data  # type: ignore[method-assign,assignment]
    peer.feed(head(1), data(1, b"x" * 10, is_end=True))
    assert recorder.names() == ["request"]
    assert peer.resets() == [(1, H2Code.CANCEL)]
    assert peer.connection._recv_credit_bytes == 10


def test_only_the_first_failure_is_told() -> None:
    peer = Peer()
    peer.connection.fail(Http2Error(H2Code.NO_ERROR, "first"))
    peer.connection.fail(Http2Error(H2Code.INTERNAL_ERROR, "second"))
    assert peer.goaways() == [(0, H2Code.NO_ERROR)]
    peer.connection.begin_drain()
    assert not peer.connection.is_draining


def test_equal_trailers_are_read_once() -> None:
    peer = Peer()
    peer.feed(frames.headers(1, b"\x20" + block(GRPC), 16384, is_end=False))
    for stream_id in (1, 3):
        if stream_id == 3:
            peer.feed(head(3, GRPC))
        peer.feed(head(stream_id, [(b"x-t", b"v")], is_end=True))
    assert peer.recorder.log[1][2] is peer.recorder.log[3][2]
