"""HOT PATH. Owns inbound HTTP/1.1 connections: bytes → `Exchange`s → an `Application`.

One exchange at a time per connection; what a client pipelines behind it waits, bounded. Time-outs are kept by
`sweep`, called once a second by the listener over all connections: no timer is made per call.
"""

import asyncio
from typing import Any, Final

from gateway.call import Data, Headers, RequestHead
from gateway.errors import Code
from gateway.net.exchange import Application
from gateway.net.h1_bulk import BULK_BYTES_MIN, BulkReader
from gateway.settings import Limits
from gateway.wire.decimal import decimal
from gateway.wire.http1 import HEAD_END, H1Head, Http1Error, RequestHeads, encode_fields, status_line
from gateway.wire.http1_body import BodyReader
from gateway.wire.status import http_status, oip_error_body

_JSON: Final = (b"content-type", b"application/json")
_CLOSE: Final = b"connection: close\r\n"
_LAST_REPLY: Final = b"%b%bcontent-length: %d\r\nconnection: close\r\n\r\n%b"
#: After a refusal that closes, how long the peer may go on sending before we close hard.
_LINGER_S: Final = 2.0


class H1Exchange:
    """One HTTP/1.1 request and its reply. Dead (`_connection is None`) once replied or aborted."""

    __slots__ = ("_connection", "_is_chunked", "_is_continued", "call", "h1", "head", "is_request_done", "is_writable")

    @property
    def is_h2(self) -> bool:
        return False

    def __init__(self, connection: "H1Connection", h1: H1Head, *, is_writable: bool) -> None:
        self._connection: H1Connection | None = connection
        self.h1 = h1
        self.head: RequestHead = h1.head
        self.call: Any = None
        self.is_request_done = False
        self.is_writable = is_writable
        self._is_chunked = False
        self._is_continued = False

    @property
    def is_awaiting_continue(self) -> bool:
        """The caller waits for 100 Continue and has not got it."""
        return self.head.expects_continue and not self._is_continued

    def reply(self, status: int, headers: Headers, body: Data, trailers: Headers | None = None) -> None:
        if self._connection is None:
            return
        fields = headers + trailers if trailers else headers
        self.reply_lines(status, encode_fields(fields), body if isinstance(body, bytes) else bytes(body))

    def reply_lines(self, status: int, lines: bytes, body: bytes) -> None:
        """`reply` with header lines that are already encoded (each with its line end)."""
        connection = self._connection
        if connection is None:
            return
        self._connection = None
        is_kept = connection.keeps(self)
        sent = b"" if self.head.method == b"HEAD" else body
        if is_kept:
            connection.write(
                b"%b%bcontent-length: %b\r\n\r\n%b" % (status_line(status), lines, decimal(len(body)), sent)
            )
        else:
            connection.write(_LAST_REPLY % (status_line(status), lines, len(body), sent))
        connection.on_replied(self, is_kept=is_kept)

    def send_head(self, status: int, headers: Headers) -> None:
        connection = self._connection
        if connection is None:
            return
        has_length = any(name == b"content-length" for name, _ in headers)
        self._is_chunked = not has_length and self.head.method != b"HEAD"
        extra = b"transfer-encoding: chunked\r\n" if self._is_chunked else b""
        if not connection.keeps(self):
            extra += _CLOSE
        connection.write(b"".join((status_line(status), encode_fields(headers), extra, b"\r\n")))

    def send_body(self, data: Data) -> None:
        connection = self._connection
        if connection is None or not len(data) or self.head.method == b"HEAD":
            return
        if self._is_chunked:
            connection.write(b"".join((b"%x\r\n" % len(data), data, b"\r\n")))
        else:
            connection.write(data)

    def send_end(self, trailers: Headers | None = None) -> None:
        connection = self._connection
        if connection is None:
            return
        self._connection = None
        if self._is_chunked:
            connection.write(b"0\r\n" + encode_fields(trailers or ()) + b"\r\n")
        connection.on_replied(self, is_kept=connection.keeps(self))

    def send_continue(self) -> None:
        if self._connection is not None and self.is_awaiting_continue:
            self._is_continued = True
            self._connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def pause(self) -> None:
        if self._connection is not None:
            self._connection.pause_body()

    def resume(self) -> None:
        if self._connection is not None:
            self._connection.resume_body()

    def abort(self, h2_error: int = 0x2) -> None:
        connection = self._connection
        if connection is not None:
            self._connection = None
            connection.cut()

    def kill(self) -> None:
        """The connection is gone: every later verb does nothing."""
        self._connection = None


class H1Connection(asyncio.Protocol):
    """One inbound connection. Created by the listener, which hands over the transport and the first bytes."""

    __slots__ = (
        "_app",
        "_body",
        "_body_space",
        "_bulk",
        "_drain_left",
        "_exchange",
        "_heads",
        "_is_body_paused",
        "_is_closing",
        "_is_draining",
        "_is_processing",
        "_is_reading",
        "_is_writable",
        "_last",
        "_last_raw",
        "_limits",
        "_loop",
        "_on_body_filled",
        "_on_request",
        "_pending",
        "_registry",
        "_since_s",
        "_transport",
    )

    def __init__(
        self,
        app: Application,
        limits: Limits,
        heads: RequestHeads,
        registry: "set[H1Connection]",
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._app = app
        self._on_request = getattr(app, "on_request", None)
        self._body_space = getattr(app, "body_space", None)
        self._on_body_filled = getattr(app, "on_body_filled", None)
        self._bulk: BulkReader | None = None
        self._limits = limits
        self._heads = heads
        self._registry = registry
        self._loop = loop
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # set by adopt before any use
        self._exchange: H1Exchange | None = None
        self._body = BodyReader()
        #: The head that came last, if it is remembered, and its bytes: a client mostly repeats itself.
        self._last: H1Head | None = None
        self._last_raw = b""
        self._pending = b""
        #: >= 0 while the rest of a refused request's body is thrown away: how much more is tolerated.
        self._drain_left = -1
        self._is_body_paused = False
        self._is_reading = True
        self._is_writable = True
        self._is_closing = False
        self._is_draining = False
        self._is_processing = False
        self._since_s = 0.0

    # -- from the listener -------------------------------------------------------------------------------------------

    def adopt(self, transport: asyncio.Transport, data: bytes, now_s: float) -> None:
        """Take over a connection whose first bytes are `data`."""
        self._transport = transport
        self._since_s = now_s
        transport.set_write_buffer_limits(high=self._limits.stream_buffer_bytes_max)
        transport.set_protocol(self)
        self._registry.add(self)
        if data:
            self.data_received(data)

    def drain(self) -> None:
        """Finish the call in flight, then close; close now if there is none."""
        self._is_draining = True
        if self._exchange is None and not self._pending:
            self._close()

    def mark_draining(self) -> None:
        """One more call is answered, or the one in flight, and then the connection closes."""
        self._is_draining = True

    def sweep(self, now_s: float) -> None:
        """Close what exceeds its time; called once a second."""
        if self._is_closing:
            if now_s - self._since_s > _LINGER_S:
                self.cut()
            return
        limits = self._limits
        exchange = self._exchange
        if not self._is_writable:
            limit_s = limits.body_idle_s
        elif exchange is None:
            limit_s = limits.head_s if self._pending else limits.keepalive_idle_s
            if self._drain_left >= 0:
                limit_s = limits.body_idle_s
        elif not exchange.is_request_done and not self._is_body_paused:
            limit_s = limits.body_idle_s
        else:
            self._since_s = now_s
            return
        if now_s - self._since_s > limit_s:
            self._time_out(exchange)

    def _time_out(self, exchange: H1Exchange | None) -> None:
        is_head = exchange is None and bool(self._pending)
        is_body = exchange is not None and not exchange.is_request_done and self._is_writable
        if exchange is not None:
            self._abort_exchange()
        if is_head or is_body:
            part = "head" if is_head else "body"
            self._refuse(Code.REQUEST_TIMEOUT, f"the request {part} did not arrive in time")
        else:
            self.cut()

    # -- asyncio.Protocol --------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._is_closing:
            return
        if self._exchange is None and not self._pending and self._drain_left < 0 and self._on_request is not None:
            # The usual case in one step: a head seen before, and its whole body with it.
            h1 = self._last
            if h1 is not None and data.startswith(self._last_raw):
                end = len(self._last_raw)
            else:
                end = data.find(HEAD_END) + 4
                raw = data[:end]
                h1 = self._last = self._heads.find(raw)
                self._last_raw = raw if h1 is not None else b""
            if h1 is not None and h1.head.content_length == len(data) - end:
                exchange = H1Exchange(self, h1, is_writable=self._is_writable)
                exchange.is_request_done = True
                self._exchange = exchange
                self._on_request(exchange, data[end:])
                return
        # Anything arriving renews a body's time, but not a head's: a head dripped byte by byte must still end.
        if self._exchange is not None:
            self._since_s = self._loop.time()
        if self._pending:
            data = self._pending + data
            self._pending = b""
        self._process(data)

    def eof_received(self) -> bool:
        """The peer closed its side: as nginx does, that ends a call in flight (a hang-up cannot be told apart)."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_closing = True
        self._registry.discard(self)
        self._abort_exchange()

    def pause_writing(self) -> None:
        self._is_writable = False
        self._since_s = self._loop.time()
        if self._exchange is not None:
            self._exchange.is_writable = False

    def resume_writing(self) -> None:
        self._is_writable = True
        self._since_s = self._loop.time()
        exchange = self._exchange
        if exchange is not None:
            exchange.is_writable = True
            self._app.on_writable(exchange)

    # -- reading -----------------------------------------------------------------------------------------------------

    def _process(self, data: bytes) -> None:
        """Consume `data`: heads, bodies, what is pipelined. Not re-entrant: replies inside it continue the loop."""
        self._is_processing = True
        position = 0
        try:
            while not self._is_closing and position < len(data):
                exchange = self._exchange
                if exchange is None:
                    if self._drain_left >= 0:
                        position = self._discard(data, position)
                        continue
                    position = self._read_head(data, position)
                elif exchange.is_request_done:
                    self._park(data[position:])
                    break
                else:
                    position = self._body.feed(data, position, self)
                    if self._body.is_done:
                        self._finish_request()
            if self._body_space is not None:
                self._choose_reader()
        except Http1Error as error:
            if self._drain_left >= 0:
                self._drain_left = -1
                self._close()  # it was answered already: a second reply would be taken for the next request's
            else:
                self._abort_exchange()
                self._refuse(error.code, error.message)
        finally:
            self._is_processing = False

    def _read_head(self, data: bytes, position: int) -> int:
        """Begin an exchange if a whole head is there; else keep the bytes. Returns the new position."""
        while data.startswith(b"\r\n", position):  # RFC 9112 §2.2: empty lines before a request line
            position += 2
        if position >= len(data):
            return position
        end = data.find(HEAD_END, position)
        size = (len(data) if end < 0 else end) - position
        if size > self._limits.head_bytes_max:
            raise Http1Error(Code.HEADERS_TOO_LARGE, f"request head larger than {self._limits.head_bytes_max} bytes")
        if end < 0:
            rest = data[position:]
            if b"\n\n" in rest or rest.startswith(b"\n"):
                raise Http1Error(Code.BAD_REQUEST, "malformed HTTP request: bare LF in the head")
            if not self._pending:
                self._since_s = self._loop.time()
            self._pending = rest
            return len(data)
        end += 4
        h1 = self._heads.parse(data if position == 0 and end == len(data) else data[position:end])
        self._begin(h1)
        return end

    def _begin(self, h1: H1Head) -> None:
        head = h1.head
        exchange = H1Exchange(self, h1, is_writable=self._is_writable)
        self._exchange = exchange
        if h1.is_chunked:
            self._body.begin_chunked()
        else:
            self._body.begin_length(head.content_length)
        self._app.on_head(exchange)
        # The application may have replied (refused) already; then the body is drained, not delivered.
        if self._body.is_done:
            self._finish_request()

    def _finish_request(self) -> None:
        exchange = self._exchange
        if exchange is not None and not exchange.is_request_done:
            exchange.is_request_done = True
            self._app.on_end(exchange)

    def on_body_data(self, data: bytes) -> None:
        """BodySink: deliver, or count what is thrown away after an early reply."""
        exchange = self._exchange
        if exchange is not None:
            self._app.on_body(exchange, data)

    def _choose_reader(self) -> None:
        """The rest of a large body goes into memory of the application's; a connection without any reads as usual."""
        exchange, bulk = self._exchange, self._bulk
        is_begun = exchange is not None and not exchange.is_request_done and not self._is_closing
        if is_begun and self._body.remaining_bytes() >= BULK_BYTES_MIN:
            space = self._body_space(exchange) if self._body_space is not None else None
            if space is not None:
                if bulk is None:
                    bulk = self._bulk = BulkReader(self, self._transport)
                bulk.enter(space)
        elif bulk is not None and bulk.is_active and self._body.is_done and not self._transport.is_closing():
            bulk.leave(self)

    def on_filled(self, count: int) -> None:
        """From the bulk reader: `count` bytes of the body lie in the application's memory."""
        exchange = self._exchange
        if exchange is None or self._is_closing or self._on_body_filled is None:
            return
        self._since_s = self._loop.time()
        self._body.advance(count)
        self._on_body_filled(exchange, count)
        if self._body.is_done:
            self._finish_request()

    def _discard(self, data: bytes, position: int) -> int:
        """Throw away the rest of a body that was answered early; close when it is more than agreed."""
        end = self._body.feed(data, position, self)
        self._drain_left -= end - position
        if self._body.is_done:
            self._drain_left = -1
            if self._is_draining:
                self._close()
        elif self._drain_left < 0:
            self._close()
        return end

    def _park(self, data: bytes) -> None:
        """Pipelined bytes wait; past the limit we stop reading."""
        self._pending = data
        if len(data) > self._limits.pipelined_bytes_max:
            self._set_reading(is_reading=False)

    def pause_body(self) -> None:
        self._is_body_paused = True
        self._set_reading(is_reading=False)

    def resume_body(self) -> None:
        self._is_body_paused = False
        self._since_s = self._loop.time()
        self._set_reading(is_reading=True)

    def _set_reading(self, *, is_reading: bool) -> None:
        if is_reading != self._is_reading and not self._transport.is_closing():
            self._is_reading = is_reading
            if is_reading:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    # -- writing -----------------------------------------------------------------------------------------------------

    def write(self, data: Data) -> None:
        self._transport.write(data)

    def keeps(self, exchange: H1Exchange) -> bool:
        """Whether the connection outlives this exchange's reply."""
        if self._is_draining or not exchange.h1.is_keepalive:
            return False
        if exchange.is_request_done or self._body.is_done:
            return True
        if exchange.is_awaiting_continue:
            return False  # the body may come or not: no common view of where the next request begins
        remaining = self._body.remaining_bytes()
        return -1 <= remaining <= self._limits.drain_bytes_max

    def on_replied(self, exchange: H1Exchange, *, is_kept: bool) -> None:
        """The reply is with the transport: go on with the next request, or drain, or close."""
        self._exchange = None
        self._is_body_paused = False
        self._since_s = self._loop.time()
        if self._bulk is not None:
            self._bulk.space = None
        if not is_kept:
            self._close()
            return
        if not self._body.is_done:
            self._drain_left = self._limits.drain_bytes_max
        if not self._is_reading:
            self._set_reading(is_reading=True)
        if self._pending and not self._is_processing:
            # A new turn of the loop: a client that pipelines does not starve others, and the stack does not grow.
            self._loop.call_soon(self._resume_pending)

    def _resume_pending(self) -> None:
        if self._exchange is None and self._pending and not self._is_closing:
            data, self._pending = self._pending, b""
            self._process(data)

    def _refuse(self, code: Code, message: str) -> None:
        """Answer a request that never became an exchange, then close."""
        if self._is_closing or self._transport.is_closing():
            return
        body = oip_error_body(code, message)
        fields = encode_fields((_JSON,))
        head = b"".join(
            (status_line(http_status(code)), fields, b"content-length: %d\r\n" % len(body), _CLOSE, b"\r\n")
        )
        self.write(head + body)
        self._close()

    def _close(self) -> None:
        """Close after what is written; linger so that unread request bytes do not reset the reply away."""
        if self._is_closing:
            return
        self._is_closing = True
        self._since_s = self._loop.time()
        self._pending = b""
        if self._body.is_done and self._drain_left < 0:
            self._transport.close()
        elif self._transport.can_write_eof():
            self._set_reading(is_reading=True)
            self._transport.write_eof()
        else:
            self._transport.close()

    def cut(self) -> None:
        """Close at once; unsent bytes are lost."""
        self._is_closing = True
        self._transport.abort()

    def _abort_exchange(self) -> None:
        exchange, self._exchange = self._exchange, None
        if self._bulk is not None:
            self._bulk.space = None
        if exchange is not None:
            exchange.kill()
            self._app.on_abort(exchange)
