"""HOT PATH. Owns what Tollway itself says in replies: refusals on both protocols, and the headers of every answer."""

from typing import Final, cast

from gateway.call import Headers
from gateway.errors import Code, Refusal
from gateway.heads import LIVE
from gateway.net.exchange import Exchange
from gateway.quota.store import Grant
from gateway.wire.decimal import decimal, padded
from gateway.wire.field_list import FieldList
from gateway.wire.grpc import status_trailers
from gateway.wire.http1 import encode_fields
from gateway.wire.status import STATUS, oip_error_body

JSON_TYPE: Final = (b"content-type", b"application/json")
GRPC_TYPE: Final = (b"content-type", b"application/grpc")


def refuse(exchange: Exchange, refusal: Refusal, identity: Headers, call_id: str) -> int:
    """Answer with `refusal` in the exchange's own protocol. Returns the HTTP status (gRPC: 200)."""
    status = STATUS[refusal.code][0]
    extra = list(refusal.headers) + identity
    if exchange.head.is_grpc:
        exchange.reply(200, [GRPC_TYPE], b"", refusal_trailers(refusal, identity))
        return 200
    if refusal.retry_after_ms is not None:
        # Whole seconds, rounded up: never earlier than the limit's own reset.
        extra.append((b"retry-after", b"%d" % -(-refusal.retry_after_ms // 1000)))
    if refusal.code in (Code.UNAUTHENTICATED, Code.KEY_EXPIRED, Code.KEY_REVOKED):
        extra.append((b"www-authenticate", b'Bearer realm="tollway"'))
    elif refusal.code is Code.UNSUPPORTED_ENCODING:
        extra.append((b"accept-encoding", b"gzip, deflate"))
    exchange.reply(status, [JSON_TYPE, *extra], oip_error_body(refusal.code, refusal.message, call_id))
    return status


def refusal_trailers(refusal: Refusal, identity: Headers) -> Headers:
    """Trailers that end a gRPC call with `refusal`."""
    extra = [*refusal.headers, *identity, (b"tollway-code", refusal.code.value.encode())]
    return status_trailers(STATUS[refusal.code][1], refusal.message, extra, retry_after_ms=refusal.retry_after_ms)


def answer_health(exchange: Exchange, kind: int, *, is_good: bool) -> int:
    """Answer a probe (`heads.LIVE` or `READY`). Returns the HTTP status."""
    if exchange.head.is_grpc:
        # Live/ReadyResponse{true} is 08 01; false is empty.
        message = b"\x08\x01" if is_good else b""
        body = b"\0\0\0\0%c" % len(message) + message
        exchange.reply(200, [GRPC_TYPE], body, [(b"grpc-status", b"0")])
        return 200
    status = 200 if is_good else 503
    name = b"live" if kind == LIVE else b"ready"
    exchange.reply(status, [JSON_TYPE], b'{"%b": %b}' % (name, b"true" if is_good else b"false"))
    return status


def kept_of(headers: Headers) -> tuple[Headers, Headers]:
    """(what is passed on to the caller, `tollway-*` units) of a backend's reply head; do not change either.

    Remembered on heads that the wire shares between equal replies.
    """
    if isinstance(headers, FieldList):
        if headers.memo is None:
            headers.memo = _split(headers)
        return cast("tuple[Headers, Headers]", headers.memo)
    return _split(headers)


def lines_of(kept: Headers) -> bytes:
    """`kept` as HTTP/1.1 lines; encoded once where it is shared."""
    if isinstance(kept, FieldList):
        if kept.memo is None:
            kept.memo = encode_fields(kept)
        return cast("bytes", kept.memo)
    return encode_fields(kept)


def _split(headers: Headers) -> tuple[Headers, Headers]:
    kept = FieldList([])
    units: Headers = []
    for pair in headers:
        name = pair[0]
        if name.startswith(b"tollway-"):
            units.append(pair)
        elif name not in (b"content-length", b"x-request-id"):
            kept.append(pair)
    return kept, units


def server_timing(gateway_ns: int, queue_ns: int, backend_ns: int, record_ns: int) -> bytes:
    """`Server-Timing` (W3C), durations in milliseconds with three decimals."""
    if gateway_ns < 0 or queue_ns < 0 or backend_ns < 0 or record_ns < 0:  # a clock that stepped
        return b"gateway;dur=%.3f, queue;dur=%.3f, backend;dur=%.3f, record;dur=%.3f" % (
            gateway_ns / 1e6,
            queue_ns / 1e6,
            backend_ns / 1e6,
            record_ns / 1e6,
        )
    return b"gateway;dur=%b.%b, queue;dur=%b.%b, backend;dur=%b.%b, record;dur=%b.%b" % (
        decimal(gateway_ns // 1_000_000),
        padded(gateway_ns // 1000 % 1000),
        decimal(queue_ns // 1_000_000),
        padded(queue_ns // 1000 % 1000),
        decimal(backend_ns // 1_000_000),
        padded(backend_ns // 1000 % 1000),
        decimal(record_ns // 1_000_000),
        padded(record_ns // 1000 % 1000),
    )


def inference_lines(  # noqa: PLR0917 - by position: this runs once per call
    kept: bytes, grant: Grant | None, call_id: bytes, request_id: bytes, charge: bytes, timing: bytes
) -> bytes:
    """Header lines of an answered inference over HTTP/1.1, in one step; `kept` are the backend's (CONTRACT.md §6)."""
    if grant is None or not grant.policy:
        return b"%btollway-call-id: %b\r\nx-request-id: %b\r\ntollway-charge: %b\r\nserver-timing: %b\r\n" % (
            kept,
            call_id,
            request_id,
            charge,
            timing,
        )
    return (
        b"%bratelimit-policy: %b\r\nratelimit: %b\r\n"
        b"tollway-call-id: %b\r\nx-request-id: %b\r\ntollway-charge: %b\r\nserver-timing: %b\r\n"
        % (kept, grant.policy, grant.left, call_id, request_id, charge, timing)
    )
