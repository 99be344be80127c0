"""HOT PATH. Owns what Tollway itself says in replies: refusals on both protocols, and the headers of every answer."""

from typing import Final, cast

from billing.events import Reason
from gateway.call import Headers
from gateway.errors import Code, Refusal
from gateway.net.exchange import Exchange
from gateway.wire.field_list import FieldList
from gateway.wire.grpc import status_trailers
from gateway.wire.http1 import encode_fields
from gateway.wire.status import STATUS, oip_error_body

JSON_TYPE: Final = (b"content-type", b"application/json")
GRPC_TYPE: Final = (b"content-type", b"application/grpc")
_REASON_NAMES: Final = {reason.value: reason.name.lower().encode() for reason in Reason}
_NANOS: Final = 1_000_000_000
_MEMO_MAX: Final = 4096
_TABLE_US: Final = 10_000
_TABLE_NS: Final = _TABLE_US * 1000
#: Microseconds → milliseconds with three decimals.
_MS_TEXTS: Final = tuple(b"%d.%03d" % divmod(us, 1000) for us in range(_TABLE_US))


def refuse(exchange: Exchange, refusal: Refusal, identity: Headers, call_id: str) -> int:
    """Answer with `refusal` in the exchange's own protocol. Returns the HTTP status (gRPC: 200)."""
    status, grpc_status = STATUS[refusal.code]
    extra = list(refusal.headers) + identity
    if exchange.head.is_grpc:
        extra.append((b"tollway-code", refusal.code.value.encode()))
        trailers = status_trailers(grpc_status, refusal.message, extra, retry_after_ms=refusal.retry_after_ms)
        exchange.reply(200, [GRPC_TYPE], b"", trailers)
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


class ChargeTexts:
    """Formats `tollway-charge`: `0.00002 USD; reason=priced; price=3`. Memoised: prices repeat."""

    __slots__ = ("_memo",)

    def __init__(self) -> None:
        self._memo: dict[tuple[int, int, int, str], bytes] = {}

    def text(self, nanos: int, reason: int, price_version: int, currency: str) -> bytes:
        key = (nanos, reason, price_version, currency)
        text = self._memo.get(key)
        if text is None:
            if len(self._memo) >= _MEMO_MAX:
                self._memo.clear()
            text = self._memo[key] = _charge_text(nanos, reason, price_version, currency)
        return text


def _charge_text(nanos: int, reason: int, price_version: int, currency: str) -> bytes:
    whole, fraction = divmod(nanos, _NANOS)
    digits = f"{fraction:09d}".rstrip("0")
    amount = f"{whole}.{digits}" if digits else str(whole)
    return b"%b %b; reason=%b; price=%d" % (amount.encode(), currency.encode(), _REASON_NAMES[reason], price_version)


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
    if max(gateway_ns, queue_ns, backend_ns, record_ns) < _TABLE_NS:
        # Formatting four floats costs more than a microsecond; most durations are short and stand in a table.
        texts = _MS_TEXTS
        return b"gateway;dur=%b, queue;dur=%b, backend;dur=%b, record;dur=%b" % (
            texts[gateway_ns // 1000],
            texts[queue_ns // 1000],
            texts[backend_ns // 1000],
            texts[record_ns // 1000],
        )
    return b"gateway;dur=%.3f, queue;dur=%.3f, backend;dur=%.3f, record;dur=%.3f" % (
        gateway_ns / 1e6,
        queue_ns / 1e6,
        backend_ns / 1e6,
        record_ns / 1e6,
    )
