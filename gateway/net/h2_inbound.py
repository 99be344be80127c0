"""HOT PATH. Owns inbound HTTP/2 connections: a transport on one side, an `Application` on the other, gRPC included.

A listener that has seen the preface (or negotiated h2 by ALPN) makes an `H2Inbound`, sets it as the transport's
protocol (`transport.set_protocol`) and calls `connection_made(transport)` and `data_received(first_bytes)`.
Output of one loop turn leaves in one write.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, cast

from gateway.call import Data, Headers, RequestHead
from gateway.net.exchange import Application
from gateway.net.h2_exchange import H2Exchange
from gateway.wire.grpc import status_trailers
from gateway.wire.header_blocks import BlockEncoder
from gateway.wire.header_memo import HeaderMemo
from gateway.wire.http2 import Http2Connection
from gateway.wire.http2_fields import HeadFault
from gateway.wire.http2_frames import H2Code, Http2Error, Http2Limits
from gateway.wire.http2_stream import Budget, Stream
from gateway.wire.status import grpc_status, http_status, oip_error_body

_GRPC_TYPE: Final = (b"content-type", b"application/grpc")
_JOIN_BYTES_MAX: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class H2InboundLimits:
    """Limits of inbound connections. Times are checked every `tick_s` and so kept to within one tick."""

    wire: Http2Limits = field(default_factory=Http2Limits)
    #: For a preface, frame or header block to arrive, and for our SETTINGS to be acknowledged.
    head_s: float = 10.0
    settings_s: float = 10.0
    #: Without any stream.
    idle_s: float = 75.0
    #: Between bytes of an HTTP request body (gRPC streams may pause as long as they like).
    body_idle_s: float = 30.0
    #: Without any output leaving while some waits for the peer.
    send_stall_s: float = 60.0
    #: Between the two GOAWAY frames of a drain, if the peer does not answer our PING.
    drain_step_s: float = 1.0
    #: After an early reply the rest of a request is read up to this, then the stream is reset with NO_ERROR.
    drain_bytes_max: int = 64 * 1024
    tick_s: float = 2.5


class H2Shared:
    """What all inbound connections of a process share: the application, remembered blocks, limits, accounting."""

    __slots__ = ("application", "budget", "encoder", "limits", "loop", "memo", "monotonic_ns", "on_request")

    def __init__(
        self,
        application: Application,
        limits: H2InboundLimits,
        loop: asyncio.AbstractEventLoop,
        monotonic_ns: Callable[[], int],
        budget: Budget | None = None,
    ) -> None:
        self.application = application
        self.on_request: Callable[[H2Exchange, bytes], None] | None = getattr(application, "on_request", None)
        self.limits = limits
        self.loop = loop
        self.monotonic_ns = monotonic_ns
        self.budget = budget
        self.memo = HeaderMemo()
        self.encoder = BlockEncoder()


class H2Inbound(asyncio.Protocol):
    """One inbound connection. `on_closed` is called once, when the transport is gone."""

    __slots__ = (
        "_blocked_ticks",
        "_is_closing",
        "_is_flush_scheduled",
        "_is_reading",
        "_mid_frame_ticks",
        "_on_closed",
        "_quiet_ticks",
        "_sent_frames",
        "_ticks",
        "_timer",
        "_transport",
        "application",
        "drain_bytes_max",
        "encoder",
        "h2",
        "on_request_whole",
        "shared",
    )

    def __init__(self, shared: H2Shared, on_closed: Callable[["H2Inbound"], None] | None = None) -> None:
        self.shared = shared
        self.application = shared.application
        self.encoder = shared.encoder
        self.drain_bytes_max = shared.limits.drain_bytes_max
        #: See `OnRequestWhole`; None for an application that takes requests step by step only.
        self.on_request_whole = None if shared.on_request is None else self._on_request_whole
        self.h2 = Http2Connection(self, shared.limits.wire, shared.memo, shared.monotonic_ns, budget=shared.budget)
        self._on_closed = on_closed
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_closing = False
        self._is_flush_scheduled = False
        self._is_reading = False
        self._ticks = 0
        self._quiet_ticks = 0
        self._mid_frame_ticks = 0
        self._blocked_ticks = 0
        self._sent_frames = 0

    # --- asyncio.Protocol ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not inherit from asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._timer = self.shared.loop.call_later(self.shared.limits.tick_s, self._on_tick)
        self.flush()

    def data_received(self, data: bytes) -> None:
        self._quiet_ticks = 0
        self._is_reading = True
        self.h2.feed(data)
        self._is_reading = False
        self.flush()
        if self.h2.error is not None:
            self._close()

    def eof_received(self) -> bool:
        """A half-closed HTTP/2 connection is of no use: let the transport close."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_closing = True
        if self._timer is not None:
            self._timer.cancel()
        self._abort_streams()
        self._transport = None
        if self._on_closed is not None:
            self._on_closed(self)

    def pause_writing(self) -> None:
        self.h2.send.is_gated = True
        self.h2.guard.is_peer_reading = False

    def resume_writing(self) -> None:
        self.h2.send.is_gated = False
        self.h2.guard.is_peer_reading = True
        self._blocked_ticks = 0
        self.h2.send.pump()
        self.flush()

    # --- Output ----------------------------------------------------------------------------------------------------

    def schedule_flush(self) -> None:
        """Write at the end of this loop turn, or of the read being handled."""
        if not self._is_reading and not self._is_flush_scheduled:
            self._is_flush_scheduled = True
            self.shared.loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what is ready, until the transport or the windows take no more."""
        self._is_flush_scheduled = False
        send = self.h2.send
        while send.out:
            is_small = send.out_bytes < _JOIN_BYTES_MAX
            out = send.take()
            if self._transport is None or self._transport.is_closing():
                return
            if is_small:
                self._transport.write(b"".join(out))
            else:
                self._transport.writelines(out)
            send.pump()

    def _close(self) -> None:
        """Stop reading, let the transport send what it has, then close."""
        self._is_closing = True
        self._abort_streams()
        if self._transport is not None:
            self._transport.close()

    def _abort_streams(self) -> None:
        streams = list(self.h2.streams.values())
        self.h2.streams.clear()
        for stream in streams:
            self.h2.send.drop(stream)
            if stream.owner is not None:
                stream.owner.on_gone()

    def after_end(self) -> None:
        """An exchange ended: send it, and close if it was the last one of a drain."""
        self.schedule_flush()
        if self.h2.is_draining and not self.h2.streams:
            self.shared.loop.call_soon(self._close_if_drained)

    def _close_if_drained(self) -> None:
        if self.h2.is_drained and not self._is_closing:
            self.flush()
            self._close()

    # --- Life ------------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Take no new streams, finish those in flight, then close. Idempotent."""
        if self._is_closing or self.h2.is_draining:
            return
        self.h2.begin_drain()
        self.flush()
        self.shared.loop.call_later(self.shared.limits.drain_step_s, self._finish_drain)

    def _finish_drain(self) -> None:
        if not self._is_closing:
            self.h2.finish_drain()
            self.flush()
            self._close_if_drained()

    def close(self) -> None:
        """End at once: streams in flight are aborted, the peer is told."""
        if not self._is_closing:
            self.h2.fail(Http2Error(H2Code.NO_ERROR, "shutting down"))
            self.flush()
            self._close()

    @property
    def streams_open(self) -> int:
        return len(self.h2.streams)

    def _on_tick(self) -> None:
        if self._is_closing:
            # Closing, but the peer does not read: give it one stall time, then cut.
            self._blocked_ticks += 1
            if self._is_over(self._blocked_ticks, self.shared.limits.send_stall_s) and self._transport is not None:
                self._transport.abort()
                return
        else:
            why = self._overdue()
            if why is not None:
                self.h2.fail(why)
                self.flush()
                self._close()
        self._timer = self.shared.loop.call_later(self.shared.limits.tick_s, self._on_tick)

    def _is_over(self, ticks: int, limit_s: float) -> bool:
        return ticks * self.shared.limits.tick_s > limit_s

    def _overdue(self) -> Http2Error | None:
        """What has lasted too long on this connection."""
        limits = self.shared.limits
        h2 = self.h2
        self._ticks += 1
        self._quiet_ticks += 1
        if not h2.is_acknowledged and self._is_over(self._ticks, limits.settings_s):
            return Http2Error(H2Code.SETTINGS_TIMEOUT, "SETTINGS not acknowledged")
        self._mid_frame_ticks = self._mid_frame_ticks + 1 if h2.reader.is_mid_frame else 0
        if self._is_over(self._mid_frame_ticks, limits.head_s):
            return Http2Error(H2Code.ENHANCE_YOUR_CALM, "frame or header block not completed in time")
        if not h2.streams:
            self._blocked_ticks = 0
            if self._is_over(self._quiet_ticks, limits.idle_s):
                return Http2Error(H2Code.NO_ERROR, "idle")
            return None
        self._check_stall()
        if self._is_over(self._blocked_ticks, limits.send_stall_s):
            return Http2Error(H2Code.ENHANCE_YOUR_CALM, "replies are not read")
        self._check_bodies()
        return None

    def _check_stall(self) -> None:
        """Count ticks in which replies wait and no DATA left (a closed window, or a peer that does not read)."""
        send = self.h2.send
        is_waiting = send.is_gated or any(stream.backlog for stream in self.h2.streams.values())
        is_moving = send.data_frames != self._sent_frames
        self._sent_frames = send.data_frames
        self._blocked_ticks = self._blocked_ticks + 1 if is_waiting and not is_moving else 0

    def _check_bodies(self) -> None:
        """Reset streams whose request does not go on: unread rests of early replies, slow HTTP bodies."""
        limits = self.shared.limits
        for stream in list(self.h2.streams.values()):
            exchange = stream.owner
            if stream.is_remote_closed or exchange is None:
                continue
            exchange.idle_ticks += 1
            if exchange.is_done:
                if stream.is_local_closed and exchange.idle_ticks > 1:
                    self.h2.reset(stream, H2Code.NO_ERROR)
            elif exchange.head.is_grpc or not exchange.is_awaiting_body:
                exchange.idle_ticks = 0
            elif self._is_over(exchange.idle_ticks, limits.body_idle_s):
                self.h2.reset(stream, H2Code.CANCEL)
                exchange.on_gone()
        self.flush()

    # --- Memory ----------------------------------------------------------------------------------------------------

    def keep(self, size_bytes: int) -> None:
        """Account for body bytes that a paused exchange holds."""
        if self.shared.budget is not None:
            self.shared.budget.add(size_bytes)

    def used(self, stream: Stream, size_bytes: int) -> None:
        """They are held no longer."""
        if self.shared.budget is not None:
            self.shared.budget.sub(size_bytes)
        self.h2.consumed(stream, size_bytes)

    # --- Http2Handler ----------------------------------------------------------------------------------------------

    def on_request(self, stream: Stream, head: RequestHead) -> None:
        exchange = stream.owner = H2Exchange(self, stream, head)
        self.application.on_head(exchange)

    def _on_request_whole(self, stream: Stream, head: RequestHead, body: bytes) -> None:
        exchange = stream.owner = H2Exchange(self, stream, head)
        on_request = self.shared.on_request
        assert on_request is not None
        on_request(exchange, body)

    def on_refused_head(self, stream: Stream, fault: HeadFault) -> None:
        assert fault.code is not None
        head = RequestHead(b"", b"", [], is_grpc=fault.is_grpc)
        exchange = stream.owner = H2Exchange(self, stream, head)
        if fault.is_grpc:
            exchange.reply(200, [_GRPC_TYPE], b"", status_trailers(grpc_status(fault.code), fault.message))
        else:
            body = oip_error_body(fault.code, fault.message)
            headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
            exchange.reply(http_status(fault.code), headers, body)

    def on_reply(self, stream: Stream, head: Any, *, is_end: bool) -> None:
        raise AssertionError("a server hears no replies")

    def on_data(self, stream: Stream, data: Data) -> bool:
        exchange: H2Exchange = stream.owner
        return exchange.on_data(data)

    def on_end(self, stream: Stream, trailers: Headers) -> None:
        exchange: H2Exchange = stream.owner
        exchange.on_end()
        if self.h2.is_draining:
            self.after_end()

    def on_reset(self, stream: Stream, code: int, *, is_processed: bool) -> None:
        if stream.owner is not None:
            stream.owner.on_gone()
        if self.h2.is_draining:
            self.after_end()

    def on_writable(self, stream: Stream) -> None:
        exchange: H2Exchange = stream.owner
        exchange.on_writable()

    def on_settings(self) -> None:
        pass

    def on_goaway(self) -> None:
        """The client will open no more streams: finish those in flight, then close."""
        self.drain()
