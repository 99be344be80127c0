"""HTTP/1.1 heads: what is accepted, what is refused, and why."""

import pytest

from gateway.errors import Code
from gateway.wire.http1 import Http1Error, RequestHeads, ResponseHead, parse_request_head, parse_response_head


def head(*lines: bytes) -> bytes:
    return b"\r\n".join(lines) + b"\r\n\r\n"


def refused(raw: bytes, headers_max: int = 100) -> Code:
    with pytest.raises(Http1Error) as caught:
        parse_request_head(raw, headers_max)
    return caught.value.code


def test_plain_post() -> None:
    h1 = parse_request_head(head(b"POST /v2 HTTP/1.1", b"Host: a", b"Content-Length: 12", b"X-Api-Key: k"), 100)
    assert (h1.head.method, h1.head.target, h1.head.authority) == (b"POST", b"/v2", b"a")
    assert h1.head.content_length == 12
    assert h1.head.headers == [(b"content-length", b"12"), (b"x-api-key", b"k")]
    assert h1.is_keepalive
    assert not h1.is_chunked


def test_no_length_is_length_zero() -> None:
    assert parse_request_head(head(b"GET / HTTP/1.1", b"Host: a"), 100).head.content_length == 0


def test_chunked_has_no_length() -> None:
    h1 = parse_request_head(head(b"POST / HTTP/1.1", b"Host: a", b"Transfer-Encoding: Chunked"), 100)
    assert h1.is_chunked
    assert h1.head.content_length == -1


@pytest.mark.parametrize(
    ("lines", "is_kept"),
    [
        ((b"GET / HTTP/1.1", b"Host: a"), True),
        ((b"GET / HTTP/1.1", b"Host: a", b"Connection: close"), False),
        ((b"GET / HTTP/1.1", b"Host: a", b"Connection: foo, Close"), False),
        ((b"GET / HTTP/1.0",), False),
        ((b"GET / HTTP/1.0", b"Connection: keep-alive"), True),
    ],
)
def test_keepalive(lines: tuple[bytes, ...], is_kept: bool) -> None:
    assert parse_request_head(head(*lines), 100).is_keepalive is is_kept


def test_hop_by_hop_fields_and_those_named_by_connection_are_dropped() -> None:
    lines = (b"GET / HTTP/1.1", b"Host: a", b"Connection: x-secret", b"X-Secret: 1", b"Upgrade: h2c", b"TE: gzip")
    assert parse_request_head(head(*lines, b"X-Kept: 2"), 100).head.headers == [(b"x-kept", b"2")]


def test_absolute_form_target_gives_its_authority() -> None:
    h1 = parse_request_head(head(b"GET http://b:80/x?y HTTP/1.1", b"Host: a"), 100)
    assert (h1.head.target, h1.head.authority) == (b"/x?y", b"b:80")


def test_expect_continue_is_noted() -> None:
    lines = (b"POST / HTTP/1.1", b"Host: a", b"Content-Length: 1", b"Expect: 100-Continue")
    assert parse_request_head(head(*lines), 100).head.expects_continue


@pytest.mark.parametrize(
    "raw",
    [
        head(b"POST / HTTP/1.1", b"Host: a", b"Content-Length: 1", b"Transfer-Encoding: chunked"),
        head(b"POST / HTTP/1.1", b"Host: a", b"Content-Length: 1", b"Content-Length: 1"),
        head(b"POST / HTTP/1.1", b"Host: a", b"Content-Length: 1, 1"),
        head(b"POST / HTTP/1.1", b"Host: a", b"Content-Length: +1"),
        head(b"POST / HTTP/1.1", b"Host: a", b"Content-Length: 1 1"),
        head(b"POST / HTTP/1.1", b"Host: a", b"Content-Length: -1"),
        head(b"POST / HTTP/1.1", b"Host: a", b"Content-Length: 99999999999999999999"),
        head(b"POST / HTTP/1.0", b"Transfer-Encoding: chunked"),
        head(b"GET / HTTP/1.1"),
        head(b"GET / HTTP/1.1", b"Host: a", b"Host: b"),
        head(b"GET / HTTP/1.1", b"Host: a", b"X: 1", b" folded"),
        head(b"GET / HTTP/1.1", b"Host: a", b"X : 1"),
        head(b"GET / HTTP/1.1", b"Host: a", b"X: a\0b"),
        head(b"GET / HTTP/1.1", b"Host: a", b"X: a\nY: b"),
        head(b"GET / HTTP/1.1", b"Host: a", b"X: a\rb"),
        head(b"GET /a b HTTP/1.1", b"Host: a"),
        head(b"GET /\xff HTTP/1.1", b"Host: a"),
        head(b"GET /#frag HTTP/1.1", b"Host: a"),
        head(b"GET x HTTP/1.1", b"Host: a"),
        head(b"GET http://u@h/ HTTP/1.1", b"Host: a"),
        head(b"GET / HTTP/2.0", b"Host: a"),
        head(b"GET / HTTP/1.1", b"Host: a", b"Expect: magic"),
        head(b"\x16\x03\x01"),
        head(b"GET / HTTP/1.1", b"Host: a", b": nameless"),
    ],
)
def test_ambiguous_or_malformed_heads_are_refused(raw: bytes) -> None:
    assert refused(raw) is Code.BAD_REQUEST


def test_other_transfer_codings_are_not_implemented() -> None:
    raw = head(b"POST / HTTP/1.1", b"Host: a", b"Transfer-Encoding: gzip, chunked")
    assert refused(raw) in (Code.NOT_IMPLEMENTED, Code.BAD_REQUEST)


def test_unknown_method_is_refused() -> None:
    assert refused(head(b"TRACE / HTTP/1.1", b"Host: a")) is Code.METHOD_NOT_ALLOWED


def test_header_count_boundary() -> None:
    lines = [b"X-%d: 1" % number for number in range(9)]
    parse_request_head(head(b"GET / HTTP/1.1", b"Host: a", *lines), 10)
    assert refused(head(b"GET / HTTP/1.1", b"Host: a", *lines, b"X: 1"), 10) is Code.HEADERS_TOO_LARGE


def test_equal_heads_share_one_object_and_the_memo_is_bounded() -> None:
    heads = RequestHeads(headers_max=10, memo_max=2)
    raw = head(b"GET /1 HTTP/1.1", b"Host: a")
    first = heads.parse(raw)
    assert heads.parse(bytes(bytearray(raw))) is first
    heads.parse(head(b"GET /2 HTTP/1.1", b"Host: a"))
    heads.parse(head(b"GET /3 HTTP/1.1", b"Host: a"))
    assert heads.parse(raw) is not first


def response(raw: bytes, method: bytes = b"POST") -> ResponseHead:
    return parse_response_head(raw, method)


def test_response_framing() -> None:
    assert response(head(b"HTTP/1.1 200 OK", b"Content-Length: 3")).length == 3
    chunked = response(head(b"HTTP/1.1 200 OK", b"Transfer-Encoding: chunked", b"A: b"))
    assert chunked.length == ResponseHead.CHUNKED
    assert chunked.headers == [(b"a", b"b")]
    until_close = response(head(b"HTTP/1.1 200 OK"))
    assert until_close.length == ResponseHead.UNTIL_CLOSE
    assert not until_close.is_keepalive
    assert response(head(b"HTTP/1.1 204 No Content")).length == 0
    assert response(head(b"HTTP/1.1 200 OK", b"Content-Length: 3"), b"HEAD").length == 0
    assert response(head(b"HTTP/1.1 100 Continue")).status == 100
    assert not response(head(b"HTTP/1.1 200 OK", b"Content-Length: 3", b"Connection: close")).is_keepalive
    assert response(head(b"HTTP/1.0 200 OK", b"Content-Length: 3", b"Connection: keep-alive")).is_keepalive


@pytest.mark.parametrize(
    "raw",
    [
        head(b"HTTP/1.1 200 OK", b"Content-Length: 3", b"Transfer-Encoding: chunked"),
        head(b"HTTP/1.1 200 OK", b"Content-Length: 3", b"Content-Length: 4"),
        head(b"HTTP/1.1 200 OK", b"Content-Length: x"),
        head(b"HTTP/1.1 200 OK", b"Transfer-Encoding: gzip"),
        head(b"HTTP/1.1 abc"),
        head(b"NOPE"),
    ],
)
def test_untrustworthy_responses_are_the_backends_fault(raw: bytes) -> None:
    with pytest.raises(Http1Error) as caught:
        response(raw)
    assert caught.value.code is Code.BACKEND_PROTOCOL


IGNORED = (b"x-request-id", b"traceparent")


def test_heads_that_differ_in_ignored_fields_only_are_parsed_once() -> None:
    heads = RequestHeads(100, ignored=IGNORED)
    first, second = (
        heads.parse(
            b"POST /p HTTP/1.1\r\nHost: a\r\nX-Request-Id: %d\r\ntraceparent:\t00-%d-1\r\nb: c\r\n"
            b"content-length: 3\r\n\r\n" % (call, call)
        )
        for call in (1, 2)
    )
    assert first is second
    assert first.head.headers == [(b"b", b"c"), (b"content-length", b"3")]
    assert first.head.content_length == 3
    assert len(heads.memo) == 1


def test_no_other_field_is_taken_for_an_ignored_one() -> None:
    raw = (
        b"GET /x-request-id HTTP/1.1\r\nHost: a\r\nx-request-idea: 1\r\nb: x-request-id: 2\r\nmy-traceparent: 3\r\n\r\n"
    )
    found = RequestHeads(100, ignored=IGNORED).parse(raw).head
    assert found.headers == [(b"x-request-idea", b"1"), (b"b", b"x-request-id: 2"), (b"my-traceparent", b"3")]


@pytest.mark.parametrize(
    "line",
    [
        b"x-request-id: 1\r\n folded",
        b"x-request-id: 1\n2",
        b"x-request-id: \x00",
        b"x-request-id : 1",
        b"x-request-id: 1\r\n\tcontent-length: 3",
    ],
)
def test_an_ignored_field_hides_nothing_that_is_malformed(line: bytes) -> None:
    with pytest.raises(Http1Error):
        RequestHeads(100, ignored=IGNORED).parse(b"GET / HTTP/1.1\r\nHost: a\r\n%b\r\n\r\n" % line)


def test_an_ignored_field_never_joins_its_neighbours() -> None:
    raw = b"POST / HTTP/1.1\r\nHost: a\r\nx-request-id: content-length:5\r\ncontent-length: 3\r\n\r\n"
    assert RequestHeads(100, ignored=IGNORED).parse(raw).head.content_length == 3


def gateways(number: int, *, name: bytes = b"x-request-id") -> bytes:
    """A head as the gateway writes it: the ignored fields one behind another."""
    return head(
        b"POST /p HTTP/1.1", b"host: a", b"b: c", b"%b: %d" % (name, number), b"traceparent: 00-%d-1" % number,
        b"content-length: 3",
    )  # fmt: skip


def test_a_head_of_the_gateway_is_found_without_being_read() -> None:
    heads = RequestHeads(100, ignored=IGNORED)
    assert heads.find(gateways(1)) is None
    parsed = heads.parse(gateways(1))
    assert heads.find(gateways(2)) is parsed
    assert heads.find(gateways(2).replace(b"b: c", b"b: d")) is None
    assert heads.find(gateways(2).replace(b": 3", b": 4")) is None


@pytest.mark.parametrize(
    "raw",
    [
        gateways(2, name=b"X-Request-Id"),
        gateways(2).replace(b"x-request-id: 2", b"x-request-id: 2 3"),
        gateways(2).replace(b"b: c", b"b: c\r\nx-request-id: 9\r\nd: e"),
        gateways(2).replace(b"x-request-id: 2", b"x-request-id: 2\n"),
        gateways(2)[:-2],
        b"",
    ],
)
def test_what_is_not_plainly_a_known_head_is_not_found(raw: bytes) -> None:
    heads = RequestHeads(100, ignored=IGNORED)
    heads.parse(gateways(1))
    assert heads.find(raw) is None


def test_without_ignored_fields_a_head_is_found_by_its_bytes() -> None:
    heads = RequestHeads(100)
    parsed = heads.parse(gateways(1))
    assert heads.find(gateways(1)) is parsed
    assert heads.find(gateways(2)) is None
