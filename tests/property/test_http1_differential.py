"""HTTP/1.1 against two references, httptools (llhttp, strict) and h11.

What we accept llhttp accepts too, to the same last byte; and a message that all three accept means the same to all:
another reading of where a request ends would be request smuggling.
"""

from typing import NamedTuple

import h11
import httptools
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gateway.call import Headers
from gateway.wire.http1 import HEAD_END, Http1Error, ResponseHead, parse_request_head, parse_response_head
from gateway.wire.http1_body import BodyReader

_NEVER_SEEN = {b"connection", b"host", b"transfer-encoding", b"expect", b"te", b"trailer", b"upgrade", b"keep-alive"}
_NEVER_SEEN |= {b"proxy-connection", b"proxy-authenticate", b"proxy-authorization", b"http2-settings"}


class Message(NamedTuple):
    """One whole request. `size` is where the next one begins."""

    method: bytes
    target: bytes
    headers: Headers
    body: bytes
    size: int


class _Sink:
    def __init__(self) -> None:
        self.body = b""

    def on_body_data(self, data: bytes) -> None:
        self.body += data


def ours(raw: bytes) -> Message | None:
    """Our reading; None when it is refused or not complete."""
    end = raw.find(HEAD_END)
    if end < 0:
        return None
    sink, reader = _Sink(), BodyReader()
    try:
        h1 = parse_request_head(raw[: end + 4], 100)
        if h1.is_chunked:
            reader.begin_chunked()
        else:
            reader.begin_length(h1.head.content_length)
        size = reader.feed(raw, end + 4, sink) if not reader.is_done else end + 4
    except Http1Error:
        return None
    if not reader.is_done:
        return None
    return Message(h1.head.method, h1.head.target, h1.head.headers, sink.body, size)


class _Llhttp:
    """Callbacks of httptools, for either side."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: Headers = []
        self.body = b""
        self.messages = 0
        self.is_head_done = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.is_head_done:
            # llhttp keeps white space behind a value; it is no part of it (RFC 9112 §5.1).
            self.headers.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        self.is_head_done = True

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.messages += 1


def llhttp(raw: bytes) -> Message | None:
    """The reading of `raw`, which must be exactly one request; None when it is refused, less or more."""
    seen = _Llhttp()
    parser = httptools.HttpRequestParser(seen)
    try:
        parser.feed_data(raw)
    except httptools.HttpParserUpgrade:
        pass  # complete, and what follows would be another protocol's
    except httptools.HttpParserError:
        return None
    if seen.messages != 1:
        return None
    return Message(parser.get_method(), seen.url, seen.headers, seen.body, len(raw))


def by_h11(raw: bytes) -> Message | None:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(raw)
    request: h11.Request | None = None
    body = b""
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                return None
    except h11.RemoteProtocolError:
        return None
    assert request is not None
    size = len(raw) - len(connection.trailing_data[0])
    return Message(bytes(request.method), bytes(request.target), list(request.headers), body, size)


def check(raw: bytes) -> bool:
    """Hold one input to the promise; whether we accepted it."""
    mine = ours(raw)
    if mine is None:
        return False
    strict = llhttp(raw[: mine.size])
    assert strict is not None, "we accept what llhttp refuses, or end the message elsewhere"
    for reference in (strict, by_h11(raw)):
        if reference is not None:
            assert (mine.method, mine.body, mine.size) == (reference.method, reference.body, reference.size)
            assert reference.target.endswith(mine.target) or mine.target == b"/"
            listed = {
                token.strip().lower()
                for name, value in reference.headers
                if name == b"connection"
                for token in value.split(b",")
            }
            kept = [pair for pair in reference.headers if pair[0] not in _NEVER_SEEN | listed]
            assert mine.headers == kept
    return True


LINES = [
    b"GET / HTTP/1.1",
    b"POST /p?q=%20 HTTP/1.1",
    b"POST http://h/x HTTP/1.1",
    b"HEAD /h HTTP/1.0",
    b"OPTIONS * HTTP/1.1",
    b"PUT  / HTTP/1.1",
    b"GET /\x80 HTTP/1.1",
    b"get / HTTP/1.1",
    b"GET / HTTP/1.2",
    b"GET / HTTP/2.0",
    b"GET /",
    b"PATCH /a b HTTP/1.1",
]
FIELDS = [
    b"Host: a",
    b"Host: b",
    b"host:a",
    b"Content-Length: 5",
    b"Content-Length: 05",
    b"Content-Length: 5, 5",
    b"Content-Length: 0",
    b"Content-Length: +5",
    b"Content-Length : 5",
    b"Content-Length: 5\t",
    b"Content-Length:",
    b"Content-Length: 0x5",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: Chunked",
    b"Transfer-Encoding: chunked, chunked",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: identity",
    b"Transfer-Encoding:\tchunked ",
    b"Transfer-Encoding: xchunked",
    b"Transfer_Encoding: chunked",
    b"Connection: close",
    b"Connection: keep-alive, x-a",
    b"Connection: upgrade",
    b"Upgrade: websocket",
    b"Expect: 100-continue",
    b"X-A: 1",
    b"X-A:  spaced  value\t",
    b"X-B: caf\xc3\xa9",
    b" X-C: folded",
    b"X D: 1",
    b"X-E: a\x01b",
    b": empty",
    b"X-F:",
    b"X-G",
    b"Trailer: T",
    b"TE: trailers",
    b"Keep-Alive: timeout=5",
]
BODIES = [
    b"",
    b"hello",
    b"hello world",
    b"5\r\nhello\r\n0\r\n\r\n",
    b"5;a=b\r\nhello\r\n0\r\nT: 1\r\n\r\n",
    b"05\r\nhello\r\n00\r\n\r\n",
    b"5 \r\nhello\r\n0\r\n\r\n",
    b"5\nhello\n0\n\n",
    b"0x5\r\nhello\r\n0\r\n\r\n",
    b"5\r\nhello0\r\n\r\n",
    b"0\r\n\r\n",
    b"A\r\n0123456789\r\n0\r\n\r\n",
    b"5;\x01\r\nhello\r\n0\r\n\r\n",
    b'5;a="\r"\r\nhello\r\n0\r\n\r\n',
    b"5\r\nhello\r\n0\r\nbad trailer\r\n\r\n",
    b"0\r\nT: \x00\r\n\r\n",
    b"0\r\nContent-Length: 3\r\n\r\n",
    b"5;a b\r\nhello\r\n0\r\n\r\n",
    b"5 ;a\r\nhello\r\n0\r\n\r\n",
    b"0;\r\n\r\n",
    b"1;a=b;c\r\nx\r\n0\r\n\r\n",
]
EDITS = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 2), st.binary(max_size=3)), max_size=2)
NEXT = st.sampled_from([b"", b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n", b"\r\n", b"xyz"])
relaxed = settings(deadline=None, max_examples=600, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Requests that are nearly right: mostly a host, often one framing, sometimes a few bytes changed."""
    fields = draw(st.lists(st.sampled_from(FIELDS), max_size=4))
    if draw(st.integers(0, 3)):
        fields.insert(0, b"Host: a")
    framing = draw(st.sampled_from([None, b"Content-Length: 5", b"Transfer-Encoding: chunked"]))
    if framing is not None:
        fields.append(framing)
    line = draw(st.sampled_from(LINES[:4] * 3 + LINES))
    raw = bytearray(b"\r\n".join([line, *fields]) + HEAD_END + draw(st.sampled_from(BODIES)) + draw(NEXT))
    for place, count, new in draw(EDITS):
        at = place % (len(raw) + 1)
        raw[at : at + count] = new
    return bytes(raw)


@relaxed
@given(requests())
@example(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;\x01\r\nhello\r\n0\r\n\r\n")
@example(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nbad trailer\r\n\r\n")
def test_what_we_accept_means_the_same_to_the_references(raw: bytes) -> None:
    check(raw)


@pytest.mark.parametrize("line", LINES)
def test_every_line_with_every_field_or_two(line: bytes) -> None:
    for fields in [[one] for one in FIELDS] + [[one, two] for one in FIELDS for two in FIELDS]:
        check(b"\r\n".join([line, *fields]) + HEAD_END + b"hello")


@pytest.mark.parametrize("body", BODIES)
def test_every_body_in_both_framings(body: bytes) -> None:
    for framing in (b"Content-Length: 5", b"Transfer-Encoding: chunked"):
        check(b"POST / HTTP/1.1\r\nHost: a\r\n" + framing + HEAD_END + body + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")


def test_ordinary_requests_are_accepted_by_all_three() -> None:
    for raw in (
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
        b"POST /p HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nT: 1\r\n\r\n",
        b"HEAD / HTTP/1.0\r\n\r\n",
    ):
        assert check(raw)
        assert by_h11(raw) is not None


STATUS_LINES = [
    b"HTTP/1.1 200 OK",
    b"HTTP/1.1 204 No Content",
    b"HTTP/1.0 200 OK",
    b"HTTP/1.1 304 Not Modified",
    b"HTTP/1.1 404",
    b"HTTP/1.1 500 ",
]
REPLY_FIELDS = [field for field in FIELDS if not field.startswith((b"Host", b"host", b"Expect", b"Upgrade"))]


@relaxed
@given(st.sampled_from(STATUS_LINES), st.lists(st.sampled_from(REPLY_FIELDS), max_size=4), EDITS)
def test_a_reply_that_we_accept_is_framed_alike_by_h11(
    line: bytes, fields: list[bytes], edits: list[tuple[int, int, bytes]]
) -> None:
    raw = bytearray(b"\r\n".join([line, *fields]))
    for place, count, new in edits:
        at = place % (len(raw) + 1)
        raw[at : at + count] = new
    whole = bytes(raw) + HEAD_END
    if whole.find(HEAD_END) != len(whole) - 4:
        return
    try:
        mine = parse_response_head(whole, b"POST")
    except Http1Error:
        return
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="POST", target="/", headers=[("host", "a")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(whole)
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError:
        return
    if not isinstance(event, h11.Response):
        return  # informational or incomplete
    assert event.status_code == mine.status
    connection.receive_data(b"1\r\nx\r\n0\r\n\r\n")
    chunked_body = _reply_body(connection)
    if mine.length == ResponseHead.CHUNKED:
        assert chunked_body in (b"x", None)
    elif mine.length >= 0:
        assert chunked_body == b"1\r\nx\r\n0\r\n\r\n"[: mine.length] or len(chunked_body or b"") < mine.length
    else:
        assert chunked_body == b"1\r\nx\r\n0\r\n\r\n"


def _reply_body(connection: h11.Connection) -> bytes | None:
    """What h11 takes as body from the bytes it holds; None if it finds them malformed."""
    body = b""
    try:
        while True:
            event = connection.next_event()
            if not isinstance(event, h11.Data):
                return body
            body += event.data
    except h11.RemoteProtocolError:
        return None
