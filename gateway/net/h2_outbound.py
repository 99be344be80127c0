"""HOT PATH. Owns pools of outbound HTTP/2 connections to one endpoint: few connections, many calls on each.

Calls take the first connection with a free stream; a further connection is opened only when all are full. Calls that
find none wait, bounded. A failed connect fails all who wait (nothing was sent) and begins a jittered back-off in which
calls are refused at once.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from gateway.call import Headers
from gateway.net.exchange import POOL_FULL, UpstreamListener
from gateway.net.h2_call import H2Call
from gateway.net.h2_connection import H2Outbound
from gateway.wire.header_blocks import BlockEncoder
from gateway.wire.header_memo import HeaderMemo
from gateway.wire.http2_frames import Http2Limits
from gateway.wire.http2_stream import Budget

_TE: Final = (b"te", b"trailers")
_PREFIXES_MAX: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class H2PoolLimits:
    """Limits of one pool. Times on a connection are checked every `tick_s` and so kept to within one tick."""

    wire: Http2Limits = field(default_factory=Http2Limits)
    connections_max: int = 8
    #: Streams on one connection, if the peer allows that many.
    streams_per_connection_max: int = 256
    connect_s: float = 2.0
    #: For the peer's SETTINGS and its acknowledgement of ours.
    settings_s: float = 10.0
    #: A connection without streams closes after this.
    idle_s: float = 60.0
    #: With streams open and nothing heard for `ping_idle_s` a PING is sent; without an answer the connection is cut.
    ping_idle_s: float = 30.0
    ping_answer_s: float = 20.0
    backoff_first_s: float = 0.05
    backoff_max_s: float = 2.0
    #: Calls waiting for a connection, and body bytes one of them may bring before its producer must wait.
    waiting_max: int = 1024
    waiting_bytes_max: int = 64 * 1024
    tick_s: float = 2.5


class H2UpstreamPool:
    """See `UpstreamPool`. Endpoints: `grpc://host:port`, `unix:///path`; both without TLS (prior knowledge)."""

    def __init__(
        self,
        url: str,
        limits: H2PoolLimits,
        loop: asyncio.AbstractEventLoop,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        budget: Budget | None = None,
    ) -> None:
        self._host, self._port, self._path = parse_endpoint(url)
        self.url = url
        self.limits = limits
        self.loop = loop
        self.monotonic_ns = monotonic_ns
        self.budget = budget
        self.memo = HeaderMemo()
        self.waiting_bytes_max = limits.waiting_bytes_max
        self._authority = b"localhost" if self._path else f"{self._host}:{self._port}".encode()
        if ":" in self._host:
            self._authority = f"[{self._host}]:{self._port}".encode()
        self._encoder = BlockEncoder()
        self._prefixes: dict[tuple[bytes, bytes], bytes] = {}
        self._connections: list[H2Outbound] = []
        self._connecting: set[asyncio.Task[None]] = set()
        self._waiting: deque[H2Call] = deque()
        self._waiting_count = 0
        self._failures = 0
        self._retry_at_s = 0.0
        self._retry_timer: asyncio.TimerHandle | None = None
        self._is_closed = False

    @property
    def connection_count(self) -> int:
        return len(self._connections)

    # --- UpstreamPool ----------------------------------------------------------------------------------------------

    def request(
        self,
        method: bytes,
        target: bytes,
        headers: Headers,
        content_length: int,
        listener: UpstreamListener,
    ) -> H2Call:
        """See `UpstreamPool`. Adds `te: trailers`, and `content-length` where it is known and missing."""
        block = self._prefix(method, target) + self._encoder.encode(headers)
        if content_length >= 0 and not any(name == b"content-length" for name, _ in headers):
            block += self._encoder.encode_field(b"content-length", b"%d" % content_length)
        call = H2Call(self, block, listener, is_bodyless=method == b"HEAD")
        for connection in self._connections:
            if connection.has_room:
                call.start(connection)
                return call
        self._wait(call)
        return call

    def request_whole(
        self, method: bytes, target: bytes, fields: bytes, body: bytes, listener: UpstreamListener
    ) -> H2Call:
        """As `request` and its body and end, in one step. `fields`: the encoded headers."""
        prefix = self._prefixes.get((method, target)) or self._prefix(method, target)
        call = H2Call(self, prefix + fields, listener, is_bodyless=False)
        for connection in self._connections:
            if connection.has_room:
                call.start_whole(connection, body)
                return call
        self._wait(call)
        call.send_body(body)
        call.send_end()
        return call

    def close(self) -> None:
        """Fail all calls and close all connections. Idempotent."""
        self._is_closed = True
        if self._retry_timer is not None:
            self._retry_timer.cancel()
        for task in self._connecting:
            task.cancel()
        self._fail_waiting("the pool is closed")
        for connection in list(self._connections):
            connection.close()

    # --- Waiting ---------------------------------------------------------------------------------------------------

    def _prefix(self, method: bytes, target: bytes) -> bytes:
        key = (method, target)
        found = self._prefixes.get(key)
        if found is None:
            if len(self._prefixes) >= _PREFIXES_MAX:
                self._prefixes.clear()
            pseudo = [(b":method", method), (b":scheme", b"http"), (b":path", target), (b":authority", self._authority)]
            found = b"".join([self._encoder.encode_field(*pair) for pair in (*pseudo, _TE)])
            self._prefixes[key] = found
        return found

    def _wait(self, call: H2Call) -> None:
        reason = ""
        if self._is_closed:
            reason = "the pool is closed"
        elif self._waiting_count >= self.limits.waiting_max:
            reason = POOL_FULL
        elif not self._connections and not self._connecting and self.loop.time() < self._retry_at_s:
            reason = "backend unavailable, connecting again soon"
        if reason:
            # Never from within `request`: the caller does not hold the call yet.
            self.loop.call_soon(_fail_unsent, call, reason)
            return
        self._waiting.append(call)
        self._waiting_count += 1
        self._connect_if_needed()

    def hold(self, size_bytes: int) -> None:
        if self.budget is not None:
            if size_bytes >= 0:
                self.budget.add(size_bytes)
            else:
                self.budget.sub(-size_bytes)

    def leave(self, call: H2Call) -> None:
        # It stays in the queue, done; those are skipped when a connection serves the queue, or swept here.
        self._waiting_count -= 1
        if len(self._waiting) > 2 * self._waiting_count + 64:
            self._waiting = deque(waiting for waiting in self._waiting if not waiting.is_done)

    def _fail_waiting(self, reason: str) -> None:
        waiting, self._waiting = self._waiting, deque()
        self._waiting_count = 0
        for call in waiting:
            call.fail(reason, is_sent=False)

    def on_room(self) -> None:
        """A connection has places: serve those who wait, in order."""
        while self._waiting:
            connection = next((connection for connection in self._connections if connection.has_room), None)
            if connection is None:
                self._connect_if_needed()
                return
            call = self._waiting.popleft()
            if not call.is_done:
                self._waiting_count -= 1
                call.start(connection)

    # --- Connections -----------------------------------------------------------------------------------------------

    def _connect_if_needed(self) -> None:
        """One connect at a time, while calls wait and the pool may grow."""
        if self._is_closed or self._connecting or len(self._usable()) >= self.limits.connections_max:
            return
        delay_s = self._retry_at_s - self.loop.time()
        if delay_s > 0:
            if self._retry_timer is None:
                self._retry_timer = self.loop.call_later(delay_s, self._retry)
            return
        task = self.loop.create_task(self._connect(), name=f"h2-connect {self.url}")
        self._connecting.add(task)
        task.add_done_callback(self._on_connect_done)

    def _retry(self) -> None:
        self._retry_timer = None
        if self._waiting:
            self._connect_if_needed()

    def _on_connect_done(self, task: asyncio.Task[None]) -> None:
        self._connecting.discard(task)
        self.on_room()

    def _usable(self) -> list[H2Outbound]:
        return [connection for connection in self._connections if not connection.is_leaving]

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(self.limits.connect_s):
                if self._path:
                    await self.loop.create_unix_connection(self._make, self._path)
                else:
                    await self.loop.create_connection(self._make, self._host, self._port)
        except (OSError, TimeoutError) as error:
            self._on_connect_failed(str(error) or "timed out")

    def _make(self) -> H2Outbound:
        return H2Outbound(self)

    def _on_connect_failed(self, why: str) -> None:
        limits = self.limits
        delay_s = min(limits.backoff_max_s, limits.backoff_first_s * 2.0 ** min(self._failures, 16))
        self._failures += 1
        self._retry_at_s = self.loop.time() + delay_s * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret
        if not self._usable():
            self._fail_waiting(f"backend unavailable: {why}")

    def on_connected(self, connection: H2Outbound) -> None:
        self._connections.append(connection)
        if self._is_closed:
            connection.close()
            return
        self._failures = 0
        self._retry_at_s = 0.0
        self.on_room()

    def on_disconnected(self, connection: H2Outbound) -> None:
        if connection in self._connections:
            self._connections.remove(connection)
        if self._waiting and not self._is_closed:
            self._connect_if_needed()


def _fail_unsent(call: H2Call, reason: str) -> None:
    call.fail(reason, is_sent=False)


def parse_endpoint(url: str) -> tuple[str, int, str]:
    """(host, port, "") of `grpc://host:port`, ("", 0, path) of `unix:///path`. Raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme == "unix" and parts.path and not parts.netloc:
        return "", 0, parts.path
    if parts.scheme == "grpc" and parts.hostname and parts.port and not parts.path.strip("/"):
        return parts.hostname, parts.port, ""
    raise ValueError(f"{url!r} is not an HTTP/2 endpoint: use grpc://host:port or unix:///path")
