"""HTTP/2 under hypothesis: nothing escapes `feed`, splits change nothing, conversations equal those of `h2`."""

from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.call import Headers
from gateway.wire import http2_frames as frames
from gateway.wire.header_blocks import BlockDecoder, BlockEncoder
from gateway.wire.header_memo import HeaderMemo
from gateway.wire.http2_frames import Http2Error, Http2Limits
from tests.unit.wire.h2_tools import GRPC, PLAIN_SETTINGS, REQUEST, Peer, block, data, frame, head

NAMES = st.sampled_from([b"x-a", b"x-b", b"grpc-timeout", b"traceparent", b"user-agent", b"accept", b"x-c-bin"])
VALUES = st.binary(max_size=40).map(lambda raw: raw.hex().encode())
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=8)

FRAMES = st.builds(
    frame,
    st.integers(0, 11),
    st.integers(0, 0xFF),
    st.integers(0, 9),
    st.one_of(st.binary(max_size=40), st.sampled_from([block(GRPC), b"\0" * 8, b"\0" * 4, b"\0\0\0\1"])),
)
PIECES = st.lists(
    st.one_of(FRAMES, st.sampled_from([head(1), head(3, GRPC), data(1, b"abc"), PLAIN_SETTINGS])), max_size=20
)


@given(st.binary(max_size=300), st.booleans(), st.booleans())
def test_random_bytes_never_raise(raw: bytes, is_client: bool, is_started: bool) -> None:
    peer = Peer(is_client=is_client, is_started=is_started)
    peer.feed(raw)
    peer.feed(raw)
    peer.sent()


@given(PIECES, st.booleans())
def test_random_frames_never_raise_and_what_is_sent_is_well_formed(pieces: list[bytes], is_client: bool) -> None:
    peer = Peer(is_client=is_client)
    if is_client:
        peer.connection.open(block(REQUEST), None, is_end=False)
        peer.connection.open(block(REQUEST), None, is_end=True)
    peer.feed(*pieces)
    kinds = [kind for kind, *_ in peer.sent()]
    assert (frames.GOAWAY in kinds) == (peer.connection.error is not None)


@given(PIECES, st.lists(st.integers(1, 30), max_size=60), st.booleans())
def test_splits_change_nothing(pieces: list[bytes], steps: list[int], is_client: bool) -> None:
    raw = b"".join(pieces)
    whole, split = Peer(is_client=is_client), Peer(is_client=is_client)
    for peer in (whole, split):
        if is_client:
            peer.connection.open(block(REQUEST), None, is_end=False)
    whole.feed(raw)
    position = 0
    for step in steps:
        split.feed(raw[position : position + step])
        position += step
    split.feed(raw[position:])
    assert split.recorder.body == whole.recorder.body
    assert _without_data(split) == _without_data(whole)
    assert split.error_code == whole.error_code
    assert set(split.connection.streams) == set(whole.connection.streams)


def _without_data(peer: Peer) -> list[tuple[Any, ...]]:
    return [entry for entry in peer.recorder.log if entry[0] != "data"]


@given(st.binary(max_size=80), st.booleans())
def test_random_header_blocks_decode_or_are_refused(raw: bytes, is_stateless: bool) -> None:
    decoder = BlockDecoder(Http2Limits(), HeaderMemo())
    if is_stateless:
        decoder.on_acknowledged()
        decoder.decode(b"\x20")
    try:
        first = decoder.decode(raw)
    except Http2Error:
        return
    if is_stateless:
        assert decoder.decode(raw) is first


@given(st.lists(FIELDS, min_size=1, max_size=6))
def test_encoded_blocks_come_back(lists: list[Headers]) -> None:
    encoder = BlockEncoder()
    memo = HeaderMemo(blocks_max=2, fields_max=4)
    decoder = BlockDecoder(Http2Limits(), memo)
    decoder.on_acknowledged()
    decoder.decode(b"\x20")
    for headers in lists:
        assert [pair for pair, _ in decoder.decode(encoder.encode(headers)).fields] == headers
        assert [pair for pair, _ in decoder.decode(encoder.encode(tuple(headers))).fields] == headers


CALLS = st.lists(
    st.tuples(
        FIELDS, st.lists(st.integers(0, 40_000), max_size=3), st.lists(st.integers(0, 40_000), max_size=3), FIELDS
    ),
    min_size=1,
    max_size=5,
)


class Reference:
    """The `h2` package on the other end: keeps what it heard, acknowledges all data."""

    def __init__(self, *, is_client: bool) -> None:
        config = h2.config.H2Configuration(client_side=is_client, header_encoding=None)
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        self.heads: dict[int, Headers] = {}
        self.bodies: dict[int, bytes] = {}
        self.trailers: dict[int, Headers] = {}
        self.ended: list[int] = []
        self.unsent: dict[int, tuple[bytes, Headers]] = {}

    def feed(self, raw: bytes) -> None:
        for event in self.h2.receive_data(raw):
            if isinstance(event, h2.events.RequestReceived | h2.events.ResponseReceived):
                self.heads[event.stream_id] = [(name, value) for name, value in event.headers]
                self.bodies[event.stream_id] = b""
            elif isinstance(event, h2.events.DataReceived):
                self.bodies[event.stream_id] += event.data
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.TrailersReceived):
                self.trailers[event.stream_id] = [(name, value) for name, value in event.headers]
            elif isinstance(event, h2.events.StreamEnded):
                self.ended.append(event.stream_id)
        for stream_id in list(self.unsent):
            self.send(stream_id, *self.unsent.pop(stream_id))

    def send(self, stream_id: int, body: bytes, trailers: Headers) -> None:
        """As much as the windows allow; the rest is tried again after the next bytes."""
        while body:
            room = min(self.h2.local_flow_control_window(stream_id), self.h2.max_outbound_frame_size, len(body))
            if room <= 0:
                self.unsent[stream_id] = (body, trailers)
                return
            self.h2.send_data(stream_id, body[:room])
            body = body[room:]
        if trailers:
            self.h2.send_headers(stream_id, trailers, end_stream=True)
        else:
            self.h2.end_stream(stream_id)


def exchange(peer: Peer, reference: Reference) -> None:
    """Carry bytes both ways until both are silent."""
    while True:
        incoming = reference.h2.data_to_send()
        peer.feed(incoming)
        outgoing = peer.output()
        reference.feed(outgoing)
        peer.connection.send.pump()
        if not incoming and not outgoing:
            return


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(CALLS, st.booleans())
def test_our_server_understands_h2_and_is_understood(calls: list[Any], is_small: bool) -> None:
    limits: dict[str, Any] = {"stream_window_bytes": 20_000} if is_small else {}
    peer = Peer(is_started=False, **limits)
    reference = Reference(is_client=True)
    for headers, request_sizes, reply_sizes, trailers in calls:
        stream_id = reference.h2.get_next_available_stream_id()
        reference.h2.send_headers(stream_id, REQUEST + headers)
        body = b"".join(b"q" * size for size in request_sizes)
        reference.send(stream_id, body, [])
        exchange(peer, reference)
        assert peer.connection.error is None
        assert peer.recorder.log[-1][:2] == ("end", stream_id)
        assert peer.recorder.heads[-1].headers == headers
        assert peer.recorder.body == body
        peer.recorder.body = b""
        stream = peer.recorder.streams[stream_id]
        peer.connection.send.headers(stream, block([(b":status", b"200"), *headers]))
        for size in reply_sizes:
            peer.connection.send.data(stream, b"r" * size)
        peer.connection.send.headers(stream, block([*trailers, (b"grpc-status", b"0")]), is_end=True)
        exchange(peer, reference)
        assert reference.heads[stream_id] == [(b":status", b"200"), *headers]
        assert reference.bodies[stream_id] == b"r" * sum(reply_sizes)
        assert reference.trailers[stream_id] == [*trailers, (b"grpc-status", b"0")]
        assert reference.ended[-1] == stream_id
    assert not peer.connection.streams


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(CALLS)
def test_our_client_understands_h2_and_is_understood(calls: list[Any]) -> None:
    peer = Peer(is_client=True, is_started=False)
    reference = Reference(is_client=False)
    exchange(peer, reference)
    for headers, request_sizes, reply_sizes, trailers in calls:
        stream = peer.connection.open(block(REQUEST + headers), None, is_end=False)
        for size in request_sizes:
            peer.connection.send.data(stream, b"q" * size)
        peer.connection.send.data(stream, b"", is_end=True)
        exchange(peer, reference)
        assert reference.heads[stream.id] == REQUEST + headers
        assert reference.bodies[stream.id] == b"q" * sum(request_sizes)
        assert reference.ended[-1] == stream.id
        reference.h2.send_headers(stream.id, [(b":status", b"200"), *headers])
        reference.send(stream.id, b"r" * sum(reply_sizes), trailers)
        peer.recorder.body = b""
        exchange(peer, reference)
        assert peer.connection.error is None
        assert peer.recorder.body == b"r" * sum(reply_sizes)
        assert peer.recorder.log[-1] == ("end", stream.id, trailers)
    assert not peer.connection.streams


def test_a_conversation_split_at_every_byte() -> None:
    reference = Reference(is_client=True)
    reference.h2.send_headers(1, GRPC)
    reference.h2.send_data(1, b"hello", pad_length=3)
    reference.h2.send_headers(1, [(b"x-t", b"v")], end_stream=True)
    raw = reference.h2.data_to_send()
    for cut in range(len(raw) + 1):
        peer = Peer(is_started=False)
        peer.feed(raw[:cut])
        peer.feed(raw[cut:])
        assert peer.connection.error is None
        assert _without_data(peer) == [
            ("settings",),
            ("request", 1, b"POST", b"/a.B/C"),
            ("end", 1, [(b"x-t", b"v")]),
        ]
        assert peer.recorder.body == b"hello"
