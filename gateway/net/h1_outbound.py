"""HOT PATH. Owns outbound HTTP/1.1: a keep-alive pool to one endpoint, one request per connection at a time.

The newest idle connection is used first, so that a quiet pool shrinks. A connection that closed while idle is never
used; one that closes under a request reports `is_sent=True`: the caller decides, and POSTs are not repeated.
"""

import asyncio
from collections import deque
from typing import Final, cast

from gateway.call import Data, Headers
from gateway.net.address import Address, open_connection
from gateway.net.exchange import POOL_FULL, UpstreamListener
from gateway.settings import Limits
from gateway.wire.decimal import decimal
from gateway.wire.http1 import HEAD_END, NO_UNITS, Http1Error, ResponseHead, ResponseHeads, encode_fields
from gateway.wire.http1_body import BodyReader

_RESPONSE_HEAD_BYTES_MAX: Final = 64 * 1024
#: A request is gathered up to this before it is written: head and a small body leave in one syscall.
_GATHER_BYTES_MAX: Final = 64 * 1024


class H1Request:
    """One request to the endpoint; the `Upstream` that a pipeline holds. Dead once answered, failed or cancelled."""

    __slots__ = ("connection", "is_chunked", "is_ended", "is_writable", "listener", "method", "pool", "units", "unsent")

    def __init__(self, pool: "H1UpstreamPool", method: bytes, listener: UpstreamListener, *, is_chunked: bool) -> None:
        self.pool = pool
        self.method = method
        self.listener: UpstreamListener | None = listener
        self.is_chunked = is_chunked
        self.connection: _Connection | None = None
        #: What is to be sent once connected.
        self.unsent: list[bytes] = []
        self.is_ended = False
        self.is_writable = True
        #: The `tollway-*` fields of the reply's head, set before `on_reply_head`.
        self.units: Headers = []

    def send_body(self, data: Data) -> None:
        if self.listener is None:
            return
        if self.is_chunked:
            data = b"".join((b"%x\r\n" % len(data), data, b"\r\n")) if len(data) else b""
        connection = self.connection
        if connection is None:
            self.unsent.append(data if isinstance(data, bytes) else bytes(data))
            self.is_writable = sum(map(len, self.unsent)) <= self.pool.limits.stream_buffer_bytes_max
        else:
            connection.write(data)

    def send_end(self) -> None:
        if self.listener is None or self.is_ended:
            return
        self.is_ended = True
        connection = self.connection
        if connection is None:
            if self.is_chunked:
                self.unsent.append(b"0\r\n\r\n")
        else:
            if self.is_chunked:
                connection.write(b"0\r\n\r\n")
            connection.flush()

    def pause(self) -> None:
        if self.connection is not None:
            self.connection.pause()

    def resume(self) -> None:
        if self.connection is not None:
            self.connection.resume()

    def cancel(self) -> None:
        self.listener = None
        if self.connection is not None:
            self.connection.cut()
        else:
            self.pool.forget(self)

    def fail(self, *, is_sent: bool, reason: str) -> None:
        listener, self.listener = self.listener, None
        self.connection = None
        if listener is not None:
            listener.on_reply_error(is_sent=is_sent, reason=reason)


class _Connection(asyncio.Protocol):
    """One connection of the pool."""

    __slots__ = (
        "_body",
        "_buffer",
        "_head",
        "_is_paused",
        "_is_writable",
        "_outbox",
        "_outbox_bytes",
        "_pool",
        "_request",
        "_transport",
        "idle_since_s",
        "is_closed",
    )

    def __init__(self, pool: "H1UpstreamPool") -> None:
        self._pool = pool
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # set in connection_made
        self._request: H1Request | None = None
        self._head: ResponseHead | None = None
        self._body = BodyReader()
        self._buffer = b""
        self._is_writable = True
        self._is_paused = False
        self._outbox: list[bytes] = []
        self._outbox_bytes = 0
        self.is_closed = False
        self.idle_since_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # uvloop's are not derived from asyncio's
        self._transport = transport
        transport.set_write_buffer_limits(high=self._pool.limits.stream_buffer_bytes_max)

    def start(self, request: H1Request) -> None:
        """Send what `request` holds; the rest follows by its own verbs."""
        self._request = request
        self._head = None
        request.connection = self
        unsent, request.unsent = request.unsent, []
        for data in unsent:
            self.write(data)
        if request.is_ended:
            self.flush()
        if not request.is_writable:
            request.is_writable = True
            if request.listener is not None:
                request.listener.on_upstream_writable()

    def start_whole(self, request: H1Request, data: bytes) -> None:
        """Send a request that is complete."""
        self._request = request
        self._head = None
        request.connection = self
        self._transport.write(data)

    def write(self, data: Data) -> None:
        """Gather, or write once enough has come."""
        self._outbox.append(data if isinstance(data, bytes) else bytes(data))
        self._outbox_bytes += len(data)
        if self._outbox_bytes > _GATHER_BYTES_MAX:
            self.flush()

    def flush(self) -> None:
        """Write what is gathered, in one call."""
        outbox = self._outbox
        if outbox and not self.is_closed:
            self._transport.write(outbox[0] if len(outbox) == 1 else b"".join(outbox))
        self._outbox = []
        self._outbox_bytes = 0

    def pause(self) -> None:
        if not self.is_closed and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if not self.is_closed and self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()

    def cut(self) -> None:
        """Close at once: the only way to cancel an HTTP/1.1 request."""
        self._request = None
        self.is_closed = True
        self._transport.abort()

    def close(self) -> None:
        self.is_closed = True
        self._transport.close()

    # -- asyncio.Protocol --------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        request = self._request
        if request is None:
            self.close()  # a reply nobody asked for: the connection has lost its framing
            return
        if self._head is None and not self._buffer and request.is_ended and self._read_whole(data, request):
            return
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        try:
            self._read(data)
        except Http1Error as error:
            self._fail(error.message)
            if not self.is_closed:
                self.cut()

    def _read_whole(self, data: bytes, request: H1Request) -> bool:
        """The usual case in one step: head and body in one read. False: `_read` goes on from where we are."""
        heads = self._pool.heads
        head, units = heads.last, NO_UNITS
        if head is not None and data.startswith(heads.last_raw) and request.method == b"POST":
            end = len(heads.last_raw)
        else:
            end = data.find(HEAD_END) + 4
            if end < 4:
                return False
            try:
                head, units = heads.parse(data[:end], request.method)
            except Http1Error:
                return False  # `_read` meets it again and says so
        if head.length != len(data) - end or not head.is_keepalive or head.status < 200:
            return False
        listener = request.listener
        self._request = request.listener = request.connection = None
        request.units = units
        self._pool.release(self)
        if listener is not None:
            listener.on_reply(head.status, head.headers, data[end:])
        return True

    def _read(self, data: bytes) -> None:
        position = 0
        while self._head is None:
            end = data.find(HEAD_END, position)
            if end < 0:
                if len(data) - position > _RESPONSE_HEAD_BYTES_MAX:
                    self._fail("response head too large")
                    self.cut()
                    return
                self._buffer = data[position:]
                return
            position = self._read_head(data, position, end + 4)
            if self._request is None:
                return
        if position < len(data):
            position = self._body.feed(data, position, self)
        if self._body.is_done and self._request is not None:
            self._finish(has_rest=position < len(data))

    def _read_head(self, data: bytes, position: int, end: int) -> int:
        request = self._request
        assert request is not None
        head, request.units = self._pool.heads.parse(data[position:end], request.method)
        if head.status < 200:
            return end  # 100 Continue and friends: the final head follows
        self._head = head
        if head.length == ResponseHead.CHUNKED:
            self._body.begin_chunked()
        elif head.length == ResponseHead.UNTIL_CLOSE:
            self._body.begin_until_close()
        else:
            self._body.begin_length(head.length)
        if request.listener is not None:
            request.listener.on_reply_head(head.status, head.headers, max(head.length, -1))
        return end

    def on_body_data(self, data: bytes) -> None:
        request = self._request
        if request is not None and request.listener is not None:
            request.listener.on_reply_body(data)

    def _finish(self, *, has_rest: bool) -> None:
        request, self._request = self._request, None
        head = self._head
        assert request is not None and head is not None
        listener, request.listener = request.listener, None
        request.connection = None
        self.resume()  # the listener may have paused at the very last bytes: the next reply must be heard
        # An early reply leaves the request half sent: the connection cannot be used again.
        if head.is_keepalive and request.is_ended and not has_rest:
            self._pool.release(self)
        else:
            self.close()
            self._pool.drop(self)
        if listener is not None:
            listener.on_reply_end([])

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_closed = True
        self._pool.drop(self)
        if self._request is not None and self._head is not None and self._body.end_of_stream():
            self._finish(has_rest=True)
            return
        self._fail("backend closed the connection")

    def _fail(self, reason: str) -> None:
        request, self._request = self._request, None
        if request is not None:
            request.fail(is_sent=True, reason=reason)

    def pause_writing(self) -> None:
        self._is_writable = False
        if self._request is not None:
            self._request.is_writable = False

    def resume_writing(self) -> None:
        self._is_writable = True
        request = self._request
        if request is not None:
            request.is_writable = True
            if request.listener is not None:
                request.listener.on_upstream_writable()


class H1UpstreamPool:
    """Connections to one HTTP endpoint: `http://host:port` or `unix:///path`.

    At most `limits.upstream_connections_max` connections; as many requests again may wait for one, the next is refused
    by `on_reply_error(is_sent=False)`.
    """

    __slots__ = (
        "_authority",
        "_connections",
        "_idle",
        "_is_closed",
        "_opening",
        "_tasks",
        "_waiting",
        "address",
        "heads",
        "limits",
        "loop",
    )

    def __init__(self, address: Address, limits: Limits, loop: asyncio.AbstractEventLoop) -> None:
        self.address = address
        self.limits = limits
        self.loop = loop
        self.heads = ResponseHeads()
        self._authority = b"host: %b\r\n" % address.authority
        self._idle: list[_Connection] = []
        self._connections: set[_Connection] = set()
        self._waiting: deque[H1Request] = deque()
        self._opening = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False

    def request(
        self,
        method: bytes,
        target: bytes,
        headers: Headers,
        content_length: int,
        listener: UpstreamListener,
    ) -> H1Request:
        """Begin a request; see `gateway.net.exchange.UpstreamPool`."""
        return self.request_raw(method, target, encode_fields(headers), content_length, listener)

    def request_raw(
        self,
        method: bytes,
        target: bytes,
        fields: bytes,
        content_length: int,
        listener: UpstreamListener,
    ) -> H1Request:
        """As `request`, with header lines that are already encoded."""
        request = H1Request(self, method, listener, is_chunked=content_length < 0)
        if content_length < 0:
            framing = b"transfer-encoding: chunked\r\n\r\n"
        elif content_length or method == b"POST":
            framing = b"content-length: %d\r\n\r\n" % content_length
        else:
            framing = b"\r\n"
        request.unsent.append(b"%b %b HTTP/1.1\r\n%b%b%b" % (method, target, self._authority, fields, framing))
        self._begin(request)
        return request

    def request_whole(
        self, method: bytes, target: bytes, fields: bytes, body: bytes, listener: UpstreamListener
    ) -> H1Request:
        """As `request_raw` and its body and end, in one write."""
        request = H1Request(self, method, listener, is_chunked=False)
        request.is_ended = True
        data = b"%b %b HTTP/1.1\r\n%b%bcontent-length: %b\r\n\r\n%b" % (
            method,
            target,
            self._authority,
            fields,
            decimal(len(body)),
            body,
        )
        if self._idle:
            connection = self._idle.pop()
            if not connection.is_closed:
                connection.start_whole(request, data)
                return request
        request.unsent.append(data)
        self._begin(request)
        return request

    def _begin(self, request: H1Request) -> None:
        """Start on the newest idle connection, or wait for one."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed:
                connection.start(request)
                return
        self._wait_for_connection(request)

    def _wait_for_connection(self, request: H1Request) -> None:
        limit = self.limits.upstream_connections_max
        if self._is_closed or len(self._waiting) >= 2 * limit:
            reason = "pool is closed" if self._is_closed else POOL_FULL
            self.loop.call_soon(lambda: request.fail(is_sent=False, reason=reason))
            return
        self._waiting.append(request)
        if self._opening < len(self._waiting) and len(self._connections) + self._opening < limit:
            self._opening += 1
            task = self.loop.create_task(self._open(), name=f"connect {self.address.text}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _open(self) -> None:
        try:
            async with asyncio.timeout(self.limits.upstream_connect_s):
                _, connection = await open_connection(self.loop, self.address, lambda: _Connection(self))
        except (OSError, TimeoutError) as error:
            self._opening -= 1
            reason = "connect timed out" if isinstance(error, TimeoutError) else (error.strerror or "connect failed")
            self._fail_waiting(reason)
            return
        except BaseException:
            self._opening -= 1
            raise
        self._opening -= 1
        self._connections.add(connection)
        self._dispatch(connection)

    def _fail_waiting(self, reason: str) -> None:
        """The endpoint cannot be reached: all that wait fail now, since each would wait for the same answer."""
        waiting, self._waiting = self._waiting, deque()
        for request in waiting:
            request.fail(is_sent=False, reason=reason)

    def _dispatch(self, connection: _Connection) -> None:
        if self._is_closed:
            connection.close()
        elif self._waiting:
            connection.start(self._waiting.popleft())
        else:
            connection.idle_since_s = self.loop.time()
            self._idle.append(connection)

    def release(self, connection: _Connection) -> None:
        """A connection finished its request and can take another."""
        self._dispatch(connection)

    def drop(self, connection: _Connection) -> None:
        """A connection is gone. One that waits may need a new one."""
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if self._waiting and not self._is_closed:
            self._wait_for_connection(self._waiting.popleft())

    def forget(self, request: H1Request) -> None:
        """A waiting request was cancelled."""
        if request in self._waiting:
            self._waiting.remove(request)

    def sweep(self, now_s: float) -> None:
        """Close connections that idled longer than `limits.upstream_idle_s`."""
        oldest_s = now_s - self.limits.upstream_idle_s
        for connection in [one for one in self._idle if one.idle_since_s < oldest_s]:
            connection.close()

    def close(self) -> None:
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        for connection in list(self._connections):
            connection.close()
        self._fail_waiting("pool is closed")
