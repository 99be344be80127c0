"""HOT PATH. Owns the layout of a call's log line: names and numbers, no payload, no key, no header of the caller."""

from typing import Final

from gateway.wire.decimal import SlowNumber, decimal

#: The order of the fields in a line (docs/metrics.md).
FIELDS: Final = (
    "event",
    "t_ns",
    "call_id",
    "tenant",
    "key_id",
    "protocol",
    "model",
    "code",
    "status",
    "rows",
    "charge_nanos",
    "duration_us",
    "backend_us",
    "record_us",
    "request_bytes",
    "reply_bytes",
    "trace_id",
)


def caller_fields(tenant: str, key_id: str, protocol: str, model: str) -> bytes:
    """The part of a line that one caller of one model repeats; `CallLines.line` takes it."""
    texts = (tenant.encode(), key_id.encode(), protocol.encode(), json_safe(model))
    return b'"tenant":"%b","key_id":"%b","protocol":"%b","model":"%b"' % texts


def json_safe(text: str) -> bytes:
    """A model name as it may stand inside a JSON string; names with anything unusual are escaped."""
    if text.isascii() and '"' not in text and "\\" not in text and text.isprintable():
        return text.encode()
    return text.encode("unicode_escape").replace(b"\\", b"\\\\").replace(b'"', b'\\"')


class CallLines:
    """Formats lines; remembers the digits of the clock that seldom change."""

    __slots__ = ("_clock_text",)

    def __init__(self) -> None:
        self._clock_text = SlowNumber()

    def line(  # noqa: PLR0917 - by position: this runs once per call
        self,
        t_ns: int,
        call_id: bytes,
        caller: bytes,
        code: bytes,
        status: int,
        rows: int,
        charge_nanos: int,
        duration_ns: int,
        backend_ns: int,
        record_ns: int,
        request_bytes: int,
        reply_bytes: int,
        trace_id: bytes,
    ) -> bytes:
        """One JSON line with its line end. Durations are nanoseconds here and microseconds there."""
        return (
            b'{"event":"call","t_ns":%b,"call_id":"%b",%b,"code":"%b","status":%b,"rows":%b,"charge_nanos":%b,'
            b'"duration_us":%b,"backend_us":%b,"record_us":%b,"request_bytes":%b,"reply_bytes":%b,"trace_id":"%b"}\n'
            % (
                self._clock_text.text(t_ns),
                call_id,
                caller,
                code,
                decimal(status),
                decimal(rows),
                decimal(charge_nanos),
                decimal(duration_ns // 1000),
                decimal(backend_ns // 1000),
                decimal(record_ns // 1000),
                decimal(request_bytes),
                decimal(reply_bytes),
                trace_id,
            )
        )
