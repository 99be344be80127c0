"""Malformed HTTP/2 and its floods against a live worker: stream error, connection error or answer as RFC 9113 says."""

import struct
from collections.abc import Iterator

import pytest

from tests.e2e import frames
from tests.e2e.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    H2,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    WITH_PRIORITY,
    block,
    frame,
    request,
)
from tests.e2e.siege import unharmed
from tests.e2e.stage import BODY_BYTES_MAX, Stage

WHOLE = END_STREAM | END_HEADERS
LIVE = frame(HEADERS, WHOLE, 1, request())
INFER = "/v2/models/mlp/infer"


def setting(name: int, value: int) -> bytes:
    return struct.pack(">HI", name, value)


#: Connection errors: bytes behind preface and SETTINGS → the code of GOAWAY.
FATAL = {
    "DATA on stream 0": (frame(DATA, 0, 0, b"x"), frames.PROTOCOL_ERROR),
    "HEADERS on stream 0": (frame(HEADERS, WHOLE, 0, request()), frames.PROTOCOL_ERROR),
    "an even stream": (frame(HEADERS, WHOLE, 2, request()), frames.PROTOCOL_ERROR),
    "a stream that goes back": (
        frame(HEADERS, WHOLE, 5, request()) + frame(HEADERS, WHOLE, 3, request()), frames.STREAM_CLOSED,
    ),
    "DATA on an idle stream": (frame(DATA, 0, 7, b"x"), frames.PROTOCOL_ERROR),
    "RST_STREAM on an idle stream": (frame(RST_STREAM, 0, 7, b"\0\0\0\0"), frames.PROTOCOL_ERROR),
    "WINDOW_UPDATE on an idle stream": (frame(WINDOW_UPDATE, 0, 7, b"\0\0\0\1"), frames.PROTOCOL_ERROR),
    "RST_STREAM on stream 0": (frame(RST_STREAM, 0, 0, b"\0\0\0\0"), frames.PROTOCOL_ERROR),
    "RST_STREAM of 3 bytes": (LIVE + frame(RST_STREAM, 0, 1, b"\0\0\0"), frames.FRAME_SIZE_ERROR),
    "PUSH_PROMISE from a client": (
        frame(PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\2" + request()), frames.PROTOCOL_ERROR,
    ),
    "CONTINUATION out of nowhere": (frame(CONTINUATION, END_HEADERS, 1, request()), frames.PROTOCOL_ERROR),
    "a frame between HEADERS and CONTINUATION": (
        frame(HEADERS, END_STREAM, 1, request()[:9]) + frame(PING, 0, 0, bytes(8)), frames.PROTOCOL_ERROR,
    ),
    "CONTINUATION of another stream": (
        frame(HEADERS, END_STREAM, 1, request()[:9]) + frame(CONTINUATION, END_HEADERS, 3, b""),
        frames.PROTOCOL_ERROR,
    ),
    "a frame beyond any size": (frame(DATA, 0, 1, b"", length=(1 << 24) - 1), frames.FRAME_SIZE_ERROR),
    "PING of 7 bytes": (frame(PING, 0, 0, bytes(7)), frames.FRAME_SIZE_ERROR),
    "PING on a stream": (frame(PING, 0, 1, bytes(8)), frames.PROTOCOL_ERROR),
    "SETTINGS of 5 bytes": (frame(SETTINGS, 0, 0, bytes(5)), frames.FRAME_SIZE_ERROR),
    "SETTINGS on a stream": (frame(SETTINGS, 0, 1), frames.PROTOCOL_ERROR),
    "an acknowledgement with a payload": (frame(SETTINGS, frames.ACK, 0, setting(4, 1)), frames.FRAME_SIZE_ERROR),
    "a window beyond 2^31": (frame(SETTINGS, 0, 0, setting(4, 1 << 31)), frames.FLOW_CONTROL_ERROR),
    "a frame size below 2^14": (frame(SETTINGS, 0, 0, setting(5, 1000)), frames.PROTOCOL_ERROR),
    "push that is neither on nor off": (frame(SETTINGS, 0, 0, setting(2, 2)), frames.PROTOCOL_ERROR),
    "WINDOW_UPDATE by nothing": (frame(WINDOW_UPDATE, 0, 0, bytes(4)), frames.PROTOCOL_ERROR),
    "WINDOW_UPDATE of 3 bytes": (frame(WINDOW_UPDATE, 0, 0, bytes(3)), frames.FRAME_SIZE_ERROR),
    "a connection window past its end": (
        frame(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff") * 2, frames.FLOW_CONTROL_ERROR,
    ),
    "GOAWAY on a stream": (frame(GOAWAY, 0, 1, bytes(8)), frames.PROTOCOL_ERROR),
    "more padding than frame": (frame(HEADERS, WHOLE | PADDED, 1, b"\xff" + request()), frames.PROTOCOL_ERROR),
    "a block that is no HPACK": (frame(HEADERS, WHOLE, 1, b"\xff" * 40), frames.COMPRESSION_ERROR),
    "an index beyond the table": (frame(HEADERS, WHOLE, 1, b"\xff\x80\x01"), frames.COMPRESSION_ERROR),
    "a cut literal": (frame(HEADERS, WHOLE, 1, b"\0\x7f\x80\x80\x80\x80\x80\x80"), frames.COMPRESSION_ERROR),
    "a table beyond the agreed": (frame(HEADERS, WHOLE, 1, b"\x3f\xe1\xff\x03" + request()), frames.COMPRESSION_ERROR),
}  # fmt: skip
#: Malformed requests: the stream is reset with PROTOCOL_ERROR, the connection goes on (§8.1.1).
MALFORMED = {
    "upper-case name": request("/v2/health/live", ("X-Upper", "1")),
    "no path": block((":method", "GET"), (":scheme", "http"), (":authority", "g")),
    "empty path": request(""),
    "no method": block((":scheme", "http"), (":path", "/v2"), (":authority", "g")),
    "two paths": request("/v2/health/live", (":path", "/v2")),
    "pseudo-field behind a field": request("/v2/health/live", ("x-a", "1"), (":path", "/v2")),
    "unknown pseudo-field": block((":own", "1")) + request(),
    "a status in a request": block((":status", "200")) + request(),
    "connection": request("/v2/health/live", ("connection", "close")),
    "transfer-encoding": request("/v2/health/live", ("transfer-encoding", "chunked")),
    "te other than trailers": request("/v2/health/live", ("te", "gzip")),
    "line break in a value": request("/v2/health/live", ("x-a", "1\r\nx-b: 2")),
    "NUL in a value": request("/v2/health/live", ("x-a", "\0")),
    "space in a name": request("/v2/health/live", ("x a", "1")),
    "no name": request("/v2/health/live", ("", "1")),
    "space in the path": request("/v2/health /live"),
    "length that is no number": request("/v2/health/live", ("content-length", "x")),
    "two lengths": request("/v2/health/live", ("content-length", "0"), ("content-length", "1")),
    "a length and no body": request(INFER, ("content-length", "5"), method="POST"),
}


@pytest.fixture(scope="module", autouse=True)
def nothing_broke(fort: Stage) -> Iterator[None]:
    with unharmed(fort):
        yield


@pytest.fixture(params=["http_port", "grpc_port"])
def port(request: pytest.FixtureRequest, fort: Stage) -> int:
    return fort.tollway.ports[str(request.param)]


@pytest.mark.parametrize("name", FATAL)
def test_connection_errors(fort: Stage, name: str) -> None:
    data, code = FATAL[name]
    with H2(fort.tollway.ports["http_port"]) as connection:
        connection.try_send(data)
        assert connection.goaway() == code


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_requests_end_their_stream_only(port: int, name: str) -> None:
    with H2(port) as connection:
        connection.send(frame(HEADERS, WHOLE, 1, MALFORMED[name]))
        assert connection.outcome(1) in [("reset", frames.PROTOCOL_ERROR), ("answered", 400)]
        connection.send(frame(HEADERS, WHOLE, 3, request()))
        assert connection.outcome(3) == ("answered", 200)


@pytest.mark.parametrize(
    "preface",
    [
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n" + frame(SETTINGS, 0, 0),
        PREFACE + frame(PING, 0, 0, bytes(8)),
        PREFACE + b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" + bytes(100),
    ],
)
def test_a_preface_that_is_none(port: int, preface: bytes) -> None:
    with H2(port, preface=preface) as connection:
        assert connection.goaway() in (frames.PROTOCOL_ERROR, frames.FRAME_SIZE_ERROR, None)
        assert not [one for one in connection.frames if one[0] == HEADERS]


def test_what_must_be_ignored_is(port: int) -> None:
    """Unknown frames and settings, PRIORITY even of idle streams, padding, unknown flags (§4.1, §5.5, §6.3)."""
    with H2(port) as connection:
        connection.send(
            frame(0x77, 0xFF, 0, b"own")
            + frame(SETTINGS, 0, 0, setting(0x7777, 7))
            + frame(PRIORITY, 0, 9, b"\0\0\0\0\x10")
            + frame(HEADERS, WHOLE | PADDED | WITH_PRIORITY | 0x40, 1, b"\3\0\0\0\0\x10" + request() + bytes(3))
        )
        assert connection.outcome(1) == ("answered", 200)
        assert connection.is_alive()


def test_a_block_may_come_in_pieces(port: int) -> None:
    whole = request()
    with H2(port) as connection:
        pieces = [whole[index : index + 7] for index in range(0, len(whole), 7)]
        connection.send(frame(HEADERS, END_STREAM, 1, pieces[0]))
        for piece in pieces[1:-1]:
            connection.send(frame(CONTINUATION, 0, 1, piece))
        connection.send(frame(CONTINUATION, END_HEADERS, 1, pieces[-1]))
        assert connection.outcome(1) == ("answered", 200)


def test_a_stream_that_depends_on_itself(port: int) -> None:
    """RFC 9113 §5.3.1 deprecates priorities: ignored, or the stream error of RFC 7540."""
    with H2(port) as connection:
        connection.send(frame(HEADERS, WHOLE | WITH_PRIORITY, 1, b"\0\0\0\1\x10" + request()))
        assert connection.outcome(1) in [("answered", 200), ("reset", frames.PROTOCOL_ERROR)]


FLOODS = {
    "PING": frame(PING, 0, 0, bytes(8)) * 20_000,
    "SETTINGS": frame(SETTINGS, 0, 0, setting(3, 100)) * 20_000,
    "many settings in one": frame(SETTINGS, 0, 0, setting(3, 100) * 2_700),
    "empty DATA": frame(HEADERS, END_HEADERS, 1, request(INFER, method="POST")) + frame(DATA, 0, 1) * 20_000,
    "CONTINUATION without end": (
        frame(HEADERS, 0, 1, request()) + frame(CONTINUATION, 0, 1, block(("x-a", "1"))) * 20_000
    ),
    "empty CONTINUATION": frame(HEADERS, 0, 1, request()) + frame(CONTINUATION, 0, 1) * 20_000,
    "PRIORITY": frame(PRIORITY, 0, 9, b"\0\0\0\0\x10") * 20_000,
    "WINDOW_UPDATE": frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\1") * 20_000,
    "rapid reset": b"".join(
        frame(HEADERS, END_HEADERS, stream, request(INFER, method="POST")) + frame(RST_STREAM, 0, stream, b"\0\0\0\x08")
        for stream in range(1, 20_001, 2)
    ),
    "unknown frames": frame(0x77, 0, 0, b"x") * 50_000,
}  # fmt: skip


@pytest.mark.parametrize("name", FLOODS)
def test_floods_are_calmed(fort: Stage, name: str) -> None:
    """The peer is told to calm down, if it still listens, and the connection ends."""
    with H2(fort.tollway.ports["http_port"]) as connection:
        connection.try_send(FLOODS[name])
        code = connection.goaway()
    assert code in (frames.ENHANCE_YOUR_CALM, frames.PROTOCOL_ERROR, None), code
    assert fort.tollway.is_live()


def test_rapid_reset_of_calls_under_way_leaks_none(fort: Stage) -> None:
    """With a key the calls are begun: each must be ended when the connection is, the one that broke the camel too."""
    head = request(INFER, ("authorization", f"Bearer {fort.key}"), ("content-length", "9"), method="POST")
    with H2(fort.tollway.ports["http_port"]) as connection:
        for stream in range(1, 10_001, 2):
            call = frame(HEADERS, END_HEADERS, stream, head) + frame(DATA, 0, stream, b"abc")
            connection.try_send(call + frame(RST_STREAM, 0, stream, b"\0\0\0\x08"))
        assert connection.goaway() in (frames.ENHANCE_YOUR_CALM, None)
    fort.tollway.wait(lambda: fort.gauge("tollway_calls_in_flight") == 0, "calls to end")


def test_a_header_bomb(port: int) -> None:
    """A head whose decoded fields are far larger than its block: refused as too large, not stored."""
    pad = "a" * 3000
    many = b"".join(block((f"x-{number}", pad)) for number in range(5))
    with H2(port) as connection:
        connection.send(frame(HEADERS, END_STREAM, 1, request()))
        for _ in range(4):
            connection.try_send(frame(CONTINUATION, 0, 1, many))
        connection.try_send(frame(CONTINUATION, END_HEADERS, 1, b""))
        assert connection.outcome(1) in [
            ("answered", 431),
            ("goaway", frames.ENHANCE_YOUR_CALM),
            ("reset", frames.PROTOCOL_ERROR),
            ("goaway", frames.PROTOCOL_ERROR),
        ]


def test_more_streams_than_allowed_are_refused(fort: Stage) -> None:
    """Uploads that never end: 256 wait, the next is refused, the connection lives."""
    authorization = ("authorization", f"Bearer {fort.key}")
    with H2(fort.tollway.ports["http_port"]) as connection:
        for stream in range(1, 2 * 257, 2):
            connection.send(frame(HEADERS, END_HEADERS, stream, request(INFER, authorization, method="POST")))
        assert connection.outcome(2 * 256 + 1) == ("reset", frames.REFUSED_STREAM)
        assert connection.is_alive()


def test_a_body_longer_than_its_length(port: int, fort: Stage) -> None:
    head = request(INFER, ("authorization", f"Bearer {fort.key}"), ("content-length", "3"), method="POST")
    with H2(port) as connection:
        connection.send(frame(HEADERS, END_HEADERS, 1, head) + frame(DATA, END_STREAM, 1, b"abcdef"))
        assert connection.outcome(1) in [("reset", frames.PROTOCOL_ERROR), ("answered", 400)]
        connection.send(frame(HEADERS, WHOLE, 3, request()))
        assert connection.outcome(3) == ("answered", 200)


def test_a_body_that_is_too_large_is_told_at_its_head(port: int, fort: Stage) -> None:
    fields = ("authorization", f"Bearer {fort.key}"), ("content-length", str(BODY_BYTES_MAX + 1))
    with H2(port) as connection:
        connection.send(frame(HEADERS, END_HEADERS, 1, request(INFER, *fields, method="POST")))
        assert connection.outcome(1) == ("answered", 413)
        assert connection.is_alive()


def test_data_past_the_window_is_an_error(fort: Stage) -> None:
    """The window of a stream is announced; a body beyond it that nobody read is FLOW_CONTROL_ERROR, not memory."""
    head = request(INFER, ("authorization", f"Bearer {fort.key}"), method="POST")
    piece = frame(DATA, 0, 1, bytes(16_384))
    with H2(fort.tollway.ports["http_port"]) as connection:
        connection.send(frame(HEADERS, END_HEADERS, 1, head))
        connection.try_send(piece * (4 * BODY_BYTES_MAX // 16_384))
        kind, code = connection.outcome(1)
        assert (kind, code) in [
            ("answered", 413),
            ("answered", 400),
            ("reset", frames.FLOW_CONTROL_ERROR),
            ("goaway", frames.FLOW_CONTROL_ERROR),
            ("goaway", frames.ENHANCE_YOUR_CALM),
        ]
