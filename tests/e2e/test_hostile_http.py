"""Malformed HTTP/1.1 of every kind against a live worker: the right answer, kept or closed as RFC 9112 says."""

from collections.abc import Iterator

import pytest

from tests.e2e.raw import Connection, infer_body, post
from tests.e2e.siege import unharmed
from tests.e2e.stage import BODY_BYTES_MAX, Stage

PATH = "/v2/models/mlp/infer"
POST = b"POST /v2/models/mlp/infer HTTP/1.1\r\nhost: gateway\r\n"
GET = b"GET /v2/health/live HTTP/1.1\r\n"
HOST = b"host: gateway\r\n"
LIVE = GET + HOST + b"\r\n"

#: Refused with 400, and the connection closed: nobody can say where the next request begins.
MALFORMED = {
    "noise": b"\x00\x01\x02\x03\r\n\r\n",
    "no version": b"GET /v2/health/live\r\n\r\n",
    "no such version": b"GET /v2/health/live HTTP/9.9\r\n" + HOST + b"\r\n",
    "lower-case version": b"GET /v2/health/live http/1.1\r\n" + HOST + b"\r\n",
    "space in the target": b"GET /v2/health /live HTTP/1.1\r\n" + HOST + b"\r\n",
    "control in the target": b"GET /v2/health/li\x01ve HTTP/1.1\r\n" + HOST + b"\r\n",
    "no host": GET + b"\r\n",
    "two hosts": GET + HOST + HOST + b"\r\n",
    "space before the colon": GET + HOST + b"x-a : 1\r\n\r\n",
    "no colon": GET + HOST + b"x-a\r\n\r\n",
    "no name": GET + HOST + b": 1\r\n\r\n",
    "a name that is no token": GET + HOST + b"x(a): 1\r\n\r\n",
    "folded line": GET + HOST + b"x-a: 1\r\n 2\r\n\r\n",
    "NUL in a value": GET + HOST + b"x-a: 1\x002\r\n\r\n",
    "CR in a value": GET + HOST + b"x-a: 1\r2\r\n\r\n",
    "bare LF": b"GET /v2/health/live HTTP/1.1\nhost: gateway\n\n",
    "bare LF in a field": GET + b"host: gateway\nx-a: 1\r\n\r\n",
    "length and chunked": POST + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked and length": POST + b"transfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\n",
    "two lengths that differ": POST + b"content-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
    "two equal lengths": POST + b"content-length: 3\r\ncontent-length: 3\r\n\r\nabc",
    "a list of lengths": POST + b"content-length: 3, 3\r\n\r\nabc",
    "negative length": POST + b"content-length: -1\r\n\r\n",
    "signed length": POST + b"content-length: +3\r\n\r\nabc",
    "hexadecimal length": POST + b"content-length: 0x3\r\n\r\nabc",
    "length beyond any": POST + b"content-length: 99999999999999999999999999\r\n\r\n",
    "chunked is not last": POST + b"transfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "chunked twice": POST + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked misspelt": POST + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked with vertical tab": POST + b"transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
}
#: Bodies whose framing breaks after a head that was fine.
BROKEN_CHUNKS = {
    "size is no number": b"zz\r\n",
    "negative size": b"-1\r\n",
    "size beyond any": b"ffffffffffffffffff\r\n",
    "no CRLF behind the data": b"3\r\nabcdef\r\n",
    "bare LF behind the size": b"3\nabc\r\n0\r\n\r\n",
    "endless extension": b"3;" + b"x" * 4096,
    "space before the size": b" 3\r\nabc\r\n0\r\n\r\n",
    "endless trailers": b"0\r\n" + b"x-a: 1\r\n" * 4096,
}


@pytest.fixture(scope="module", autouse=True)
def nothing_broke(fort: Stage) -> Iterator[None]:
    """Over this whole file: the worker lives, is no larger, and billed `GOOD_CALLS` only."""
    with unharmed(fort, billed=GOOD_CALLS):
        yield


#: Calls of this file that are answered 200; tests with such calls say how many.
GOOD_CALLS = 6


def open_connection(fort: Stage) -> Connection:
    return Connection(fort.tollway.ports["http_port"])


@pytest.mark.parametrize("name", MALFORMED)
def test_what_cannot_be_read_is_400_and_the_end(fort: Stage, name: str) -> None:
    with open_connection(fort) as connection:
        connection.send(MALFORMED[name])
        reply = connection.read()
        assert reply.status in (400, 501, 505), reply
        assert isinstance(reply.json()["error"], str)
        assert reply.headers["connection"] == "close"
        assert connection.is_closed()


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_behind_a_good_request(fort: Stage, name: str) -> None:
    """Pipelined: the good one is answered first, then the fault, then the end."""
    with open_connection(fort) as connection:
        connection.send(LIVE + MALFORMED[name])
        assert connection.read().status == 200
        assert connection.read().status in (400, 501, 505)
        assert connection.is_closed()


@pytest.mark.parametrize("name", BROKEN_CHUNKS)
@pytest.mark.parametrize("has_key", [True, False])
def test_a_broken_chunk_ends_call_and_connection(fort: Stage, name: str, has_key: bool) -> None:
    key = f"authorization: Bearer {fort.key}\r\n".encode() if has_key else b""
    with open_connection(fort) as connection:
        connection.send(POST + key + b"transfer-encoding: chunked\r\n\r\n" + BROKEN_CHUNKS[name])
        reply = connection.read()
        assert reply.status in ((400, 431) if has_key else (400, 401, 431)), reply
        assert connection.is_closed()


def test_heads_have_a_size(fort: Stage) -> None:
    many = b"".join(b"x-%d: 1\r\n" % number for number in range(200))
    for head in (b"x-a: " + b"a" * 40_000 + b"\r\n", many):
        with open_connection(fort) as connection:
            connection.send(GET + HOST + head + b"\r\n")
            reply = connection.read()
            assert (reply.status, reply.code) == (431, "headers_too_large")
            assert connection.is_closed()
    with open_connection(fort) as connection:
        connection.send(b"GET /" + b"a" * 40_000)
        assert connection.read().status in (414, 431)


def test_bodies_have_a_size(fort: Stage) -> None:
    """Declared: refused at the head, before a byte of it. Chunked: as soon as it is passed."""
    with open_connection(fort) as connection:
        connection.send(post(PATH, fort.key, b"").replace(b"content-length: 0", b"content-length: 999999999"))
        reply = connection.read()
        assert (reply.status, reply.code) == (413, "body_too_large")
        assert connection.is_closed()
    with open_connection(fort) as connection:
        chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
        connection.send(POST + f"authorization: Bearer {fort.key}\r\n".encode() + b"transfer-encoding: chunked\r\n\r\n")
        try:
            for _ in range(BODY_BYTES_MAX // 0x100000 + 1):
                connection.send(chunk)
        except ConnectionError:
            pass  # refused and closed while we were still sending
        reply = connection.read()
        assert (reply.status, reply.code) == (413, "body_too_large")


def test_a_small_refused_body_keeps_the_connection_a_large_one_does_not(fort: Stage) -> None:
    with open_connection(fort) as connection:
        connection.send(post(PATH, "", b" " * 1000))
        assert connection.read().status == 401
        connection.send(LIVE)
        assert connection.read().status == 200
    with open_connection(fort) as connection:
        connection.send(post(PATH, "", b"").replace(b"content-length: 0", b"content-length: 5000000"))
        assert connection.read().status == 401
        assert connection.is_closed()


def test_a_head_that_dawdles_is_408(fort: Stage) -> None:
    with open_connection(fort) as connection:
        connection.send(GET)
        reply = connection.read()
        assert (reply.status, reply.code) == (408, "request_timeout")
        assert connection.is_closed()


def test_a_body_that_dawdles_is_408(fort: Stage) -> None:
    with open_connection(fort) as connection:
        connection.send(post(PATH, fort.key, b"").replace(b"content-length: 0", b"content-length: 100"))
        reply = connection.read()
        assert (reply.status, reply.code) == (408, "request_timeout")
        assert connection.is_closed()


def test_expect_100_continue(fort: Stage) -> None:
    """One billed call. A refusal comes at once, without an invitation to send."""
    body = infer_body()
    with open_connection(fort) as connection:
        head = post(PATH, fort.key, body, "expect: 100-continue")[: -len(body)]
        connection.send(head)
        assert connection.read_head()[0] == 100
        connection.send(body)
        assert connection.read().status == 200
    with open_connection(fort) as connection:
        connection.send(post(PATH, "", body, "expect: 100-continue")[: -len(body)])
        status, _ = connection.read_head()
        assert status == 401


def test_tls_and_broken_http2_on_a_plain_port_are_shown_the_door(fort: Stage) -> None:
    hello = bytes.fromhex("1603010200010001fc0303") + b"\0" * 64
    with open_connection(fort) as connection:
        connection.send(hello)
        assert connection.read().status in (400, 408), "no line ends in it: it may be waited for"
        assert connection.is_closed()
    with open_connection(fort) as connection:
        # `PRI` is how HTTP/2 begins (RFC 9113 §3.4): GOAWAY, in frames.
        connection.send(b"PRI /v2/health/live HTTP/1.1\r\n" + HOST + b"\r\n")
        with pytest.raises(ConnectionError, match="preface"):
            connection.read()


def test_chunked_and_byte_by_byte(fort: Stage) -> None:
    """Two billed calls."""
    body = infer_body()
    chunks = b"".join(b"%x;own=1\r\n%b\r\n" % (len(part), part) for part in (body[:7], body[7:]))
    request = POST + f"authorization: Bearer {fort.key}\r\n".encode()
    request += b"transfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\nx-trailer: 1\r\n\r\n"
    with open_connection(fort) as connection:
        connection.send(request)
        assert connection.read().status == 200
        for index in range(0, len(request), 3):
            connection.send(request[index : index + 3])
        assert connection.read().status == 200


def test_pipelined_calls_are_answered_in_order(fort: Stage) -> None:
    """Three billed calls among faults that keep the connection."""
    good = [post(PATH, fort.key, infer_body(), f"x-request-id: id-{number}") for number in range(3)]
    bad = [post("/v2/models/nix/infer", fort.key, b"{}"), post(PATH, fort.key, b"{"), post(PATH, "", b"{}")]
    with open_connection(fort) as connection:
        connection.send(b"".join(part for pair in zip(good, bad, strict=True) for part in pair))
        replies = [connection.read() for _ in range(6)]
        assert [reply.status for reply in replies] == [200, 404, 200, 400, 200, 401]
        assert [reply.headers["x-request-id"] for reply in replies[::2]] == ["id-0", "id-1", "id-2"]


def test_close_is_honoured_and_http_1_0_closes(fort: Stage) -> None:
    for request in (
        GET + HOST + b"connection: close\r\n\r\n",
        GET + HOST + b"connection: x-a, Close\r\n\r\n",
        b"GET /v2/health/live HTTP/1.0\r\n\r\n",
    ):
        with open_connection(fort) as connection:
            connection.send(request)
            reply = connection.read()
            assert (reply.status, reply.headers["connection"]) == (200, "close")
            assert connection.is_closed()


def test_head_has_no_body(fort: Stage) -> None:
    """RFC 9110 §9.3.2: whatever the answer to HEAD, no body follows; the next reply begins right behind the head."""
    with open_connection(fort) as connection:
        connection.send(b"HEAD /v2/health/live HTTP/1.1\r\n" + HOST + b"\r\n" + LIVE)
        assert connection.read_head()[0] in (200, 405)
        reply = connection.read()
        assert (reply.status, reply.json()) == (200, {"live": True})


@pytest.mark.parametrize("method", ["OPTIONS", "TRACE", "PATCH", "BREW"])
def test_other_verbs(fort: Stage, method: str) -> None:
    with open_connection(fort) as connection:
        connection.send(f"{method} /v2/health/live HTTP/1.1\r\n".encode() + HOST + b"\r\n")
        assert connection.read().status in (400, 405, 501)


def test_absolute_form_is_understood(fort: Stage) -> None:
    """RFC 9112 §3.2.2: a server must accept it."""
    with open_connection(fort) as connection:
        connection.send(b"GET http://gateway/v2/health/live HTTP/1.1\r\n" + HOST + b"\r\n")
        assert connection.read().status == 200
