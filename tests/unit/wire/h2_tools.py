"""Tools for HTTP/2 tests: a handler that records, connections of either role, frames by hand."""

from dataclasses import replace
from typing import Any

from gateway.call import Data, Headers, RequestHead
from gateway.clock import FakeClock
from gateway.wire import http2_frames as frames
from gateway.wire.header_blocks import BlockEncoder
from gateway.wire.header_memo import HeaderMemo
from gateway.wire.http2 import Http2Connection
from gateway.wire.http2_fields import HeadFault, ReplyHead
from gateway.wire.http2_frames import H2Code, Http2Limits
from gateway.wire.http2_stream import Stream

ENCODER = BlockEncoder()
REQUEST: Headers = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/a.B/C"),
    (b":authority", b"host"),
]
GRPC: Headers = [*REQUEST, (b"te", b"trailers"), (b"content-type", b"application/grpc")]
PLAIN_SETTINGS = frames.settings([])


class Recorder:
    """Writes down what the connection says, in order."""

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.streams: dict[int, Stream] = {}
        self.heads: list[RequestHead] = []
        self.body = b""
        #: Whether body bytes are taken at once.
        self.takes_data = True

    def names(self) -> list[str]:
        return [entry[0] for entry in self.log]

    def on_request(self, stream: Stream, head: RequestHead) -> None:
        self.streams[stream.id] = stream
        self.heads.append(head)
        self.log.append(("request", stream.id, head.method, head.target))

    def on_refused_head(self, stream: Stream, fault: HeadFault) -> None:
        self.streams[stream.id] = stream
        self.log.append(("refused", stream.id, fault.code, fault.is_grpc))

    def on_reply(self, stream: Stream, head: ReplyHead, *, is_end: bool) -> None:
        self.log.append(("reply", stream.id, head.status, head.headers, is_end))

    def on_data(self, stream: Stream, data: Data) -> bool:
        assert len(data)
        self.body += bytes(data)
        self.log.append(("data", stream.id, bytes(data)))
        return self.takes_data

    def on_end(self, stream: Stream, trailers: Headers) -> None:
        self.log.append(("end", stream.id, trailers))

    def on_reset(self, stream: Stream, code: int, *, is_processed: bool) -> None:
        self.log.append(("reset", stream.id, code, is_processed))

    def on_writable(self, stream: Stream) -> None:
        self.log.append(("writable", stream.id))

    def on_settings(self) -> None:
        self.log.append(("settings",))

    def on_goaway(self) -> None:
        self.log.append(("goaway",))


class Peer:
    """A connection under test with its recorder and clock; `feed` takes frames, `sent` gives what came out, parsed."""

    def __init__(self, *, is_client: bool = False, is_started: bool = True, budget: Any = None, **limits: Any) -> None:
        self.recorder = Recorder()
        self.clock = FakeClock()
        self.memo = HeaderMemo()
        self.limits = replace(Http2Limits(), **limits)
        self.connection = Http2Connection(
            self.recorder, self.limits, self.memo, self.clock.monotonic_ns, is_client=is_client, budget=budget
        )
        if is_started:
            self.feed(b"" if is_client else frames.PREFACE, PLAIN_SETTINGS, frames.SETTINGS_ACK)
            self.sent()
            self.recorder.log.clear()

    def feed(self, *parts: bytes) -> None:
        self.connection.feed(b"".join(parts))

    def output(self) -> bytes:
        return b"".join(bytes(part) for part in self.connection.send.take())

    def sent(self) -> list[tuple[int, int, int, bytes]]:
        """(kind, flags, stream id, payload) of each frame since the last call."""
        raw = self.output()
        if raw.startswith(frames.PREFACE):
            raw = raw[len(frames.PREFACE) :]
        return parse(raw)

    @property
    def error_code(self) -> H2Code | None:
        error = self.connection.error
        return None if error is None else error.code

    def resets(self) -> list[tuple[int, int]]:
        """(stream id, code) of the RST_STREAM frames since the last call."""
        return [
            (stream_id, int.from_bytes(payload, "big"))
            for kind, _, stream_id, payload in self.sent()
            if kind == frames.RST_STREAM
        ]

    def goaways(self) -> list[tuple[int, int]]:
        """(last stream id, code) of the GOAWAY frames since the last call."""
        return [
            (int.from_bytes(payload[:4], "big"), int.from_bytes(payload[4:8], "big"))
            for kind, _, _, payload in self.sent()
            if kind == frames.GOAWAY
        ]


def parse(raw: bytes) -> list[tuple[int, int, int, bytes]]:
    """Frames of complete output."""
    found = []
    position = 0
    while position < len(raw):
        high, low, kind, flags, stream_id = frames.unpack_head(raw, position)
        end = position + 9 + (high << 16 | low)
        assert end <= len(raw)
        found.append((kind, flags, stream_id, raw[position + 9 : end]))
        position = end
    return found


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    return frames.frame_head(len(payload), kind, flags, stream_id) + payload


def block(headers: Headers) -> bytes:
    return ENCODER.encode(headers)


def head(stream_id: int, headers: Headers = REQUEST, *, is_end: bool = False) -> bytes:
    return frames.headers(stream_id, block(headers), 16384, is_end=is_end)


def data(stream_id: int, payload: bytes, *, is_end: bool = False) -> bytes:
    return frame(frames.DATA, frames.END_STREAM if is_end else 0, stream_id, payload)


def padded(payload: bytes, padding: int) -> bytes:
    return bytes((padding,)) + payload + b"\0" * padding
