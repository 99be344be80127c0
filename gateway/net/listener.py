"""Owns listening: sockets in, connections sorted by protocol, time-outs, drain and close.

HTTP/1.1 and HTTP/2 with prior knowledge (RFC 9113 §3.3) share every listener; the first bytes tell them apart, or ALPN
where TLS is on. After that the connection talks to its own protocol object without passing through here.
"""

import asyncio
import os
import socket
import ssl
import time
from pathlib import Path
from typing import Final, cast

from gateway.net.budget import BufferBudget
from gateway.net.exchange import Application
from gateway.net.h1_inbound import H1Connection
from gateway.net.h2_inbound import H2Inbound, H2InboundLimits, H2Shared
from gateway.settings import Limits
from gateway.wire.http1 import RequestHeads
from gateway.wire.http2_frames import Http2Limits

_PREFACE_START: Final = b"PRI"
_SWEEP_S: Final = 1.0
_DRAIN_POLL_S: Final = 0.02
_BACKLOG: Final = 2048


def h2_wire_limits_of(limits: Limits) -> Http2Limits:
    """The HTTP/2 share of the process limits; the protocol's own floods have their defaults in `Http2Limits`."""
    return Http2Limits(
        streams_max=limits.h2_streams_max,
        header_list_bytes_max=limits.head_bytes_max,
        headers_max=limits.headers_max,
        send_queue_high_bytes=limits.stream_buffer_bytes_max,
        send_queue_low_bytes=limits.stream_buffer_bytes_max // 4,
    )


def h2_limits_of(limits: Limits) -> H2InboundLimits:
    """Time-outs of inbound HTTP/2 as those of HTTP/1.1."""
    return H2InboundLimits(
        wire=h2_wire_limits_of(limits),
        head_s=limits.head_s,
        idle_s=limits.keepalive_idle_s,
        body_idle_s=limits.body_idle_s,
        send_stall_s=limits.body_idle_s,
        drain_bytes_max=limits.drain_bytes_max,
    )


class Listener:
    """All inbound connections of one process, over any number of sockets, for one application."""

    def __init__(
        self,
        app: Application,
        limits: Limits,
        loop: asyncio.AbstractEventLoop,
        *,
        tls: ssl.SSLContext | None = None,
        budget: BufferBudget | None = None,
        ignored_fields: tuple[bytes, ...] = (),
    ) -> None:
        self.app = app
        self.limits = limits
        self.loop = loop
        self.tls = tls
        budget = budget or BufferBudget(limits.worker_buffer_bytes_max)
        self.h2_shared = H2Shared(app, h2_limits_of(limits), loop, time.monotonic_ns, budget)
        self.heads = RequestHeads(limits.headers_max, ignored=ignored_fields)
        self.h1_connections: set[H1Connection] = set()
        self.h2_connections: set[H2Inbound] = set()
        self.new_connections: set[_Sniffer] = set()
        self._servers: list[asyncio.Server] = []
        self._is_draining = False
        self._sweeper = loop.call_later(_SWEEP_S, self._sweep)

    @property
    def connection_count(self) -> int:
        return len(self.h1_connections) + len(self.h2_connections) + len(self.new_connections)

    async def listen_socket(self, sock: socket.socket) -> None:
        """Accept on a socket that is already bound; TLS applies."""
        self._servers.append(
            await self.loop.create_server(
                lambda: _Sniffer(self),
                sock=sock,
                ssl=self.tls,
                ssl_handshake_timeout=self.limits.head_s if self.tls is not None else None,
                backlog=_BACKLOG,
            )
        )

    async def listen_unix(self, path: Path) -> None:
        """Accept on a unix socket of mode 600; a stale file is replaced. TLS does not apply."""
        sock = _bind_unix(path)
        self._servers.append(await self.loop.create_unix_server(lambda: _Sniffer(self), sock=sock, backlog=_BACKLOG))

    def close_sockets(self) -> None:
        """Stop accepting. Connections already accepted go on."""
        for server in self._servers:
            server.close()
        self._servers.clear()

    async def wind_down(self, grace_s: float) -> None:
        """Stop accepting and send peers elsewhere, but serve what was on its way: a reload then loses no call.

        HTTP/1.1 replies say `connection: close`, HTTP/2 peers get GOAWAY. Closing an idle connection at once would
        meet the request that its peer is just sending. Ends when nobody is left, or after `grace_s`.
        """
        self._is_draining = True
        self.close_sockets()
        for h1 in list(self.h1_connections):
            h1.mark_draining()
        for h2 in list(self.h2_connections):
            h2.drain()
        end_s = self.loop.time() + grace_s
        while self.connection_count and self.loop.time() < end_s:
            await asyncio.sleep(_DRAIN_POLL_S)

    async def drain(self, drain_s: float) -> None:
        """Stop accepting, tell peers, wait for calls in flight up to `drain_s`, then cut what is left."""
        self._is_draining = True
        self.close_sockets()
        for h1 in list(self.h1_connections):
            h1.drain()
        for h2 in list(self.h2_connections):
            h2.drain()
        end_s = self.loop.time() + drain_s
        # Polled: an end of drain has no event of its own, and nothing else runs in this process by then.
        while (self.h1_connections or self.h2_connections) and self.loop.time() < end_s:
            await asyncio.sleep(_DRAIN_POLL_S)
        self.cut_all()

    def cut_all(self) -> None:
        """Close every connection at once."""
        self._sweeper.cancel()
        self.close_sockets()
        for sniffer in list(self.new_connections):
            sniffer.cut()
        for h1 in list(self.h1_connections):
            h1.cut()
        for h2 in list(self.h2_connections):
            h2.close()

    def _sweep(self) -> None:
        now_s = self.loop.time()
        for sniffer in list(self.new_connections):
            sniffer.sweep(now_s)
        for connection in list(self.h1_connections):
            connection.sweep(now_s)
        self._sweeper = self.loop.call_later(_SWEEP_S, self._sweep)

    def adopt(self, transport: asyncio.Transport, data: bytes, *, is_h2: bool) -> None:
        """Give a sniffed connection to its protocol."""
        if is_h2:
            h2 = H2Inbound(self.h2_shared, self.h2_connections.discard)
            self.h2_connections.add(h2)
            transport.set_protocol(h2)
            h2.connection_made(transport)
            if data:
                h2.data_received(data)
            if self._is_draining:
                h2.drain()
            return
        h1 = H1Connection(self.app, self.limits, self.heads, self.h1_connections, self.loop)
        if self._is_draining:
            h1.mark_draining()
        h1.adopt(transport, data, self.loop.time())


def _bind_unix(path: Path) -> socket.socket:
    """A listening unix socket of mode 600 at `path`, replacing a stale one."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Bound under a name of its own and renamed, so that nobody connects before the mode is right.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    sock.bind(str(temporary))
    temporary.chmod(0o600)
    sock.setblocking(False)
    sock.listen(_BACKLOG)
    temporary.rename(path)
    return sock


class _Sniffer(asyncio.Protocol):
    """A connection that has not yet said what it speaks."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._transport: asyncio.Transport | None = None
        self._data = b""
        self._since_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # uvloop's are not derived from asyncio's
        listener = self._listener
        if listener.connection_count >= listener.limits.connections_max:
            transport.abort()
            return
        self._transport = transport
        self._since_s = listener.loop.time()
        listener.new_connections.add(self)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() == "h2":
            self._hand_over(b"", is_h2=True)

    def data_received(self, data: bytes) -> None:
        if self._transport is None:
            return
        self._data += data
        if not self._data.startswith(_PREFACE_START):
            if _PREFACE_START.startswith(self._data):
                return  # "P" or "PR": POST, PUT, PATCH or PRI, the next bytes tell
            self._hand_over(self._data, is_h2=False)
        else:
            self._hand_over(self._data, is_h2=True)

    def connection_lost(self, exc: Exception | None) -> None:
        self._listener.new_connections.discard(self)

    def sweep(self, now_s: float) -> None:
        if now_s - self._since_s > self._listener.limits.head_s:
            self.cut()

    def cut(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _hand_over(self, data: bytes, *, is_h2: bool) -> None:
        transport, self._transport = self._transport, None
        self._listener.new_connections.discard(self)
        assert transport is not None
        self._listener.adopt(transport, data, is_h2=is_h2)
