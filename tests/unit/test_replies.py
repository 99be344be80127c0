"""What Tollway itself says in replies."""

import json
from typing import Any, cast

import pytest

from gateway.call import Data, Headers, RequestHead
from gateway.errors import Code, Refusal
from gateway.net.exchange import Exchange
from gateway.quota.store import Grant
from gateway.replies import inference_lines, kept_of, lines_of, refuse, server_timing
from gateway.wire.field_list import FieldList
from gateway.wire.http1 import encode_fields
from gateway.wire.status import STATUS


class OneReply:
    """An exchange that takes a whole reply."""

    def __init__(self, *, is_grpc: bool) -> None:
        self.head = RequestHead(b"POST", b"/", [], is_grpc=is_grpc)
        self.said: tuple[int, dict[bytes, bytes], bytes, dict[bytes, bytes]] | None = None

    def reply(self, status: int, headers: Headers, body: Data, trailers: Headers | None = None) -> None:
        assert self.said is None
        self.said = (status, dict(headers), bytes(body), dict(trailers or []))


def said(refusal: Refusal, *, is_grpc: bool = False) -> tuple[int, dict[bytes, bytes], Any, dict[bytes, bytes]]:
    exchange = OneReply(is_grpc=is_grpc)
    status = refuse(cast("Exchange", exchange), refusal, [(b"tollway-call-id", b"id")], "id")
    assert exchange.said is not None
    assert status == exchange.said[0]
    return exchange.said


@pytest.mark.parametrize("code", Code)
def test_a_refusal_on_http_has_status_code_text_and_call(code: Code) -> None:
    status, headers, body, trailers = said(Refusal(code=code, message="why", headers=((b"x-extra", b"1"),)))
    assert status == STATUS[code][0]
    assert json.loads(body) == {"error": "why", "code": code.value, "call_id": "id"}
    assert headers[b"content-type"] == b"application/json"
    assert headers[b"x-extra"] == b"1"
    assert headers[b"tollway-call-id"] == b"id"
    assert b"retry-after" not in headers
    assert not trailers


@pytest.mark.parametrize("code", Code)
def test_a_refusal_on_grpc_is_trailers_only(code: Code) -> None:
    status, headers, body, trailers = said(
        Refusal(code=code, message="why", headers=((b"x-extra", b"1"),)), is_grpc=True
    )
    assert (status, headers, body) == (200, {b"content-type": b"application/grpc"}, b"")
    assert trailers[b"grpc-status"] == b"%d" % STATUS[code][1]
    assert trailers[b"grpc-message"] == b"why"
    assert trailers[b"tollway-code"] == code.value.encode()
    assert trailers[b"tollway-call-id"] == b"id"
    assert trailers[b"x-extra"] == b"1"


@pytest.mark.parametrize(
    ("wait_ms", "seconds"), [(0, b"0"), (1, b"1"), (1000, b"1"), (1001, b"2"), (86_400_000, b"86400")]
)
def test_waits_are_whole_seconds_and_never_too_short(wait_ms: int, seconds: bytes) -> None:
    refusal = Refusal(code=Code.RATE_EXCEEDED, message="slow", retry_after_ms=wait_ms)
    assert said(refusal)[1][b"retry-after"] == seconds
    assert said(refusal, is_grpc=True)[3][b"retry-after"] == seconds


@pytest.mark.parametrize("code", [Code.UNAUTHENTICATED, Code.KEY_EXPIRED, Code.KEY_REVOKED])
def test_a_401_says_how_to_authenticate(code: Code) -> None:
    assert said(Refusal(code=code, message="no"))[1][b"www-authenticate"] == b'Bearer realm="tollway"'


def test_an_unsupported_coding_names_the_supported_ones() -> None:
    assert said(Refusal(code=Code.UNSUPPORTED_ENCODING, message="no"))[1][b"accept-encoding"] == b"gzip, deflate"


def test_a_refusals_own_headers_are_not_changed() -> None:
    refusal = Refusal(code=Code.KEY_EXPIRED, message="no", retry_after_ms=1, headers=((b"a", b"b"),))
    said(refusal)
    assert refusal.headers == ((b"a", b"b"),)


def test_a_backends_head_is_split_into_what_is_passed_on_and_its_units() -> None:
    headers = FieldList(
        [
            (b"content-type", b"a"),
            (b"tollway-rows", b"3"),
            (b"content-length", b"9"),
            (b"x-request-id", b"theirs"),
            (b"b", b"c"),
        ]
    )
    kept, units = kept_of(headers)
    assert kept == [(b"content-type", b"a"), (b"b", b"c")]
    assert units == [(b"tollway-rows", b"3")]
    assert kept_of(headers)[0] is kept
    assert lines_of(kept) == b"content-type: a\r\nb: c\r\n"
    assert lines_of(kept) is lines_of(kept)


def test_a_plain_list_is_split_anew_each_time() -> None:
    headers = [(b"tollway-rows", b"3"), (b"b", b"c")]
    assert kept_of(headers) == ([(b"b", b"c")], [(b"tollway-rows", b"3")])
    assert kept_of(headers)[0] is not kept_of(headers)[0]
    assert lines_of([(b"b", b"c")]) == b"b: c\r\n"


@pytest.mark.parametrize(
    ("durations_ns", "text"),
    [
        ((0, 0, 0, 0), b"gateway;dur=0.000, queue;dur=0.000, backend;dur=0.000, record;dur=0.000"),
        ((999, 1000, 1_234_567, 9_999_999), b"gateway;dur=0.000, queue;dur=0.001, backend;dur=1.234, record;dur=9.999"),
        (
            (10_000_000, 0, 1_500_000_000, 1),
            b"gateway;dur=10.000, queue;dur=0.000, backend;dur=1500.000, record;dur=0.000",
        ),
    ],
)
def test_timings_are_milliseconds(durations_ns: tuple[int, int, int, int], text: bytes) -> None:
    assert server_timing(*durations_ns) == text


def test_the_lines_of_an_inference_are_those_of_the_fields() -> None:
    fields = [(b"tollway-call-id", b"i"), (b"x-request-id", b"r"), (b"tollway-charge", b"c"), (b"server-timing", b"t")]
    kept = encode_fields([(b"content-type", b"a")])
    ours = (b"i", b"r", b"c", b"t")
    for grant in (None, Grant("acme", b"", b"")):
        assert inference_lines(kept, grant, *ours) == kept + encode_fields(fields)
    grant = Grant("acme", b"p", b"l")
    assert inference_lines(kept, grant, *ours) == kept + encode_fields([*grant.headers, *fields])
