"""What header fields mean in HTTP/2: heads, trailers, and every way to be malformed."""

import pytest

from gateway.call import Headers, RequestHead
from gateway.errors import Code
from gateway.wire.http2_fields import (
    HeadFault,
    ReplyHead,
    field,
    is_grpc_block,
    is_grpc_type,
    reply_head,
    request_head,
    trailer_fields,
)

GET: Headers = [(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/v2?x=1"), (b":authority", b"h:1")]


def request(headers: Headers) -> RequestHead | HeadFault:
    return request_head([field(name, value) for name, value in headers])


def good(headers: Headers) -> RequestHead:
    made = request(headers)
    assert isinstance(made, RequestHead)
    return made


def without(name: bytes) -> Headers:
    return [pair for pair in GET if pair[0] != name]


def test_a_request_head() -> None:
    made = good([*GET, (b"a", b"1"), (b"content-length", b"12"), (b"te", b"Trailers"), (b"expect", b"100-Continue")])
    assert (made.method, made.target, made.authority) == (b"GET", b"/v2?x=1", b"h:1")
    assert made.headers == [(b"a", b"1"), (b"content-length", b"12")]
    assert made.content_length == 12
    assert made.expects_continue
    assert not made.is_grpc


def test_hop_fields_never_cross() -> None:
    hop = [(b"trailer", b"x"), (b"proxy-authorization", b"x"), (b"http2-settings", b"x"), (b"proxy-authenticate", b"x")]
    assert good([*GET, *hop, (b"te", b"trailers"), (b"host", b"h:1")]).headers == []


def test_host_stands_in_for_authority() -> None:
    assert good([*without(b":authority"), (b"host", b"h")]).authority == b"h"
    assert good(without(b":authority")).authority == b""


def test_cookie_crumbs_are_joined() -> None:
    made = good([*GET, (b"cookie", b"a=1"), (b"x", b"y"), (b"cookie", b"b=2"), (b"cookie", b"c=3")])
    assert made.headers == [(b"cookie", b"a=1; b=2; c=3"), (b"x", b"y")]


def test_options_asterisk() -> None:
    made = good([(b":method", b"OPTIONS"), (b":scheme", b"http"), (b":path", b"*")])
    assert made.target == b"*"


MALFORMED: dict[str, Headers] = {
    "no method": without(b":method"),
    "no scheme": without(b":scheme"),
    "no path": without(b":path"),
    "empty path": [*without(b":path"), (b":path", b"")],
    "path without slash": [*without(b":path"), (b":path", b"v2")],
    "path with space": [*without(b":path"), (b":path", b"/a b")],
    "path with fragment": [*without(b":path"), (b":path", b"/a#b")],
    "path with raw utf-8": [*without(b":path"), (b":path", b"/\xc3\xa4")],
    "asterisk for get": [*without(b":path"), (b":path", b"*")],
    "bad method": [*without(b":method"), (b":method", b"GE T")],
    "bad scheme": [*without(b":scheme"), (b":scheme", b"ht tp")],
    "authority with user": [*without(b":authority"), (b":authority", b"u@h")],
    "host differs": [*GET, (b"host", b"other")],
    "status in a request": [*GET, (b":status", b"200")],
    "unknown pseudo": [*GET, (b":protocol", b"x")],
    "repeated pseudo": [*GET, (b":path", b"/")],
    "late pseudo": [*without(b":path"), (b"a", b"b"), (b":path", b"/")],
    "late pseudo after a special field": [*without(b":path"), (b"te", b"trailers"), (b":path", b"/")],
    "late pseudo after a dropped field": [*without(b":path"), (b"trailer", b"x"), (b":path", b"/")],
    "upper case": [*GET, (b"Accept", b"x")],
    "empty name": [*GET, (b"", b"x")],
    "space in name": [*GET, (b"a b", b"x")],
    "colon in name": [*GET, (b"a:b", b"x")],
    "nul in value": [*GET, (b"a", b"x\0y")],
    "cr in value": [*GET, (b"a", b"x\ry")],
    "lf in value": [*GET, (b"a", b"x\n")],
    "leading space": [*GET, (b"a", b" x")],
    "trailing tab": [*GET, (b"a", b"x\t")],
    "connection": [*GET, (b"connection", b"close")],
    "transfer-encoding": [*GET, (b"transfer-encoding", b"chunked")],
    "upgrade": [*GET, (b"upgrade", b"h2c")],
    "keep-alive": [*GET, (b"keep-alive", b"1")],
    "proxy-connection": [*GET, (b"proxy-connection", b"1")],
    "te": [*GET, (b"te", b"gzip")],
    "bad length": [*GET, (b"content-length", b"+1")],
    "empty length": [*GET, (b"content-length", b"")],
    "long length": [*GET, (b"content-length", b"1" * 19)],
    "two lengths": [*GET, (b"content-length", b"1"), (b"content-length", b"1")],
    "two hosts": [*GET, (b"host", b"h:1"), (b"host", b"h:1")],
    "two content types": [*GET, (b"content-type", b"a"), (b"content-type", b"b")],
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_requests_have_no_answer(name: str) -> None:
    made = request(MALFORMED[name])
    assert isinstance(made, HeadFault)
    assert made.code is None


def test_expectations_other_than_continue_are_answered() -> None:
    made = request([*GET, (b"content-type", b"application/grpc"), (b"expect", b"miracle")])
    assert isinstance(made, HeadFault)
    assert made.code == Code.BAD_REQUEST
    assert made.is_grpc


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        (b"application/grpc", True),
        (b"application/grpc+proto", True),
        (b"application/grpc; charset=utf-8", True),
        (b"application/grpc-web", False),
        (b"application/grpcish", False),
        (b"application/json", False),
        (b"", False),
    ],
)
def test_grpc_content_types(content_type: bytes, expected: bool) -> None:
    assert is_grpc_type(content_type) is expected
    assert is_grpc_block([field(b"a", b"b"), field(b"content-type", content_type)]) is expected


def reply(headers: Headers) -> ReplyHead | HeadFault:
    return reply_head([field(name, value) for name, value in headers])


def test_a_reply_head() -> None:
    made = reply([(b":status", b"201"), (b"content-length", b"5"), (b"a", b"b"), (b"trailer", b"x")])
    assert isinstance(made, ReplyHead)
    assert (made.status, made.content_length) == (201, 5)
    assert made.headers == [(b"content-length", b"5"), (b"a", b"b")]


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"a", b"b")],
        [(b"a", b"b"), (b":status", b"200")],
        [(b":status", b"200"), (b":status", b"200")],
        [(b":status", b"2000")],
        [(b":status", b"099")],
        [(b":path", b"/")],
        [(b":status", b"200"), (b"connection", b"close")],
        [(b":status", b"200"), (b"content-length", b"x")],
        [(b":status", b"200"), (b"content-length", b"1"), (b"content-length", b"1")],
    ],
)
def test_malformed_replies(headers: Headers) -> None:
    assert isinstance(reply(headers), HeadFault)


def test_trailers() -> None:
    assert trailer_fields([field(b"grpc-status", b"0"), field(b"trailer", b"x")]) == [(b"grpc-status", b"0")]
    assert isinstance(trailer_fields([field(b":status", b"200")]), HeadFault)
    assert isinstance(trailer_fields([field(b"Bad", b"x")]), HeadFault)
