"""HOT PATH. Owns one outbound HTTP/2 connection: its transport, its calls, keep-alive and time limits."""

import asyncio
from collections.abc import Callable
from typing import Final, Protocol, cast

from gateway.call import Data, Headers, RequestHead
from gateway.net.h2_call import H2Call
from gateway.wire.header_memo import HeaderMemo
from gateway.wire.http2 import Http2Connection
from gateway.wire.http2_fields import HeadFault, ReplyHead
from gateway.wire.http2_frames import STREAM_ID_MAX, H2Code, Http2Error, Http2Limits
from gateway.wire.http2_stream import Budget, Stream

_JOIN_BYTES_MAX: Final = 64 * 1024
_KEEPALIVE_PING: Final = b"tollping"


class ConnectionLimits(Protocol):
    """What a connection takes from its pool's limits."""

    @property
    def wire(self) -> Http2Limits: ...
    @property
    def streams_per_connection_max(self) -> int: ...
    @property
    def settings_s(self) -> float: ...
    @property
    def idle_s(self) -> float: ...
    @property
    def ping_idle_s(self) -> float: ...
    @property
    def ping_answer_s(self) -> float: ...
    @property
    def tick_s(self) -> float: ...


class Pool(Protocol):
    """The pool, as its connections see it."""

    loop: asyncio.AbstractEventLoop
    monotonic_ns: Callable[[], int]
    memo: HeaderMemo
    budget: Budget | None

    @property
    def limits(self) -> ConnectionLimits: ...

    def on_connected(self, connection: "H2Outbound") -> None: ...

    def on_disconnected(self, connection: "H2Outbound") -> None: ...

    def on_room(self) -> None: ...


class H2Outbound(asyncio.Protocol):
    """One connection of a pool."""

    __slots__ = (
        "_is_closing",
        "_is_flush_scheduled",
        "_is_reading",
        "_pings_sent",
        "_pool",
        "_quiet_ticks",
        "_streams_max",
        "_ticks",
        "_timer",
        "_transport",
        "h2",
    )

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.h2 = Http2Connection(
            self, pool.limits.wire, pool.memo, pool.monotonic_ns, is_client=True, budget=pool.budget
        )
        self._streams_max = pool.limits.streams_per_connection_max
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_closing = False
        self._is_flush_scheduled = False
        self._is_reading = False
        self._ticks = 0
        self._quiet_ticks = 0
        self._pings_sent = 0

    @property
    def has_room(self) -> bool:
        """Whether a call may start here now."""
        h2 = self.h2
        return (
            len(h2.streams) < self._streams_max
            and len(h2.streams) < h2.peer_streams_max
            and not h2.is_peer_going
            and h2.error is None
            and h2.next_id < STREAM_ID_MAX
            and not self._is_closing
        )

    @property
    def is_leaving(self) -> bool:
        """Whether it will take no further calls, ever."""
        return self._is_closing or self.h2.is_peer_going or self.h2.error is not None

    # --- asyncio.Protocol ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not inherit from asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._timer = self._pool.loop.call_later(self._pool.limits.tick_s, self._on_tick)
        self._pool.on_connected(self)
        self.flush()

    def data_received(self, data: bytes) -> None:
        self._quiet_ticks = 0
        self._is_reading = True
        self.h2.feed(data)
        self._is_reading = False
        self.flush()
        if self.h2.error is not None:
            self._end(f"HTTP/2 error: {self.h2.error.message}")
        elif self.h2.is_peer_going and not self.h2.streams:
            self._end("the backend is going away")

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_closing = True
        if self._timer is not None:
            self._timer.cancel()
        self._transport = None
        self._fail_calls("connection lost" if exc is None else f"connection lost: {exc}")
        self._pool.on_disconnected(self)

    def pause_writing(self) -> None:
        self.h2.send.is_gated = True
        self.h2.guard.is_peer_reading = False

    def resume_writing(self) -> None:
        self.h2.send.is_gated = False
        self.h2.guard.is_peer_reading = True
        self.h2.send.pump()
        self.flush()

    # --- Output ----------------------------------------------------------------------------------------------------

    def schedule_flush(self) -> None:
        """Write at the end of this loop turn, or of the read being handled."""
        if not self._is_reading and not self._is_flush_scheduled:
            self._is_flush_scheduled = True
            self._pool.loop.call_soon(self.flush)

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

    def after_end(self) -> None:
        self.schedule_flush()
        if self.h2.is_peer_going and not self.h2.streams and not self._is_reading:
            self._end("the backend is going away")
        else:
            self._pool.on_room()

    # --- Life ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End at once; calls in flight fail."""
        if not self._is_closing:
            self.h2.fail(Http2Error(H2Code.NO_ERROR, "closing"))
            self.flush()
            self._end("the connection was closed")

    def _end(self, reason: str) -> None:
        if not self._is_closing:
            self._is_closing = True
            self._fail_calls(reason)
            if self._transport is not None:
                self._transport.close()

    def _fail_calls(self, reason: str) -> None:
        """Requests may have reached the backend: only it could say otherwise (GOAWAY, REFUSED_STREAM)."""
        streams = list(self.h2.streams.values())
        self.h2.streams.clear()
        for stream in streams:
            self.h2.send.drop(stream)
            call: H2Call = stream.owner
            call.fail(reason, is_sent=True)

    def _is_over(self, ticks: int, limit_s: float) -> bool:
        return ticks * self._pool.limits.tick_s > limit_s

    def _on_tick(self) -> None:
        limits = self._pool.limits
        self._ticks += 1
        self._quiet_ticks += 1
        if self._is_closing:
            # The peer does not read what is left to send.
            if self._transport is not None:
                self._transport.abort()
            return
        if not self.h2.is_acknowledged and self._is_over(self._ticks, limits.settings_s):
            self._cut(H2Code.SETTINGS_TIMEOUT, "the backend did not acknowledge SETTINGS")
        elif not self.h2.streams:
            if self._is_over(self._quiet_ticks, limits.idle_s):
                self._cut(H2Code.NO_ERROR, "idle")
        elif self._is_over(self._quiet_ticks, limits.ping_idle_s + limits.ping_answer_s):
            self._cut(H2Code.NO_ERROR, "the backend does not answer PING")
        elif self._is_over(self._quiet_ticks, limits.ping_idle_s) and self._pings_sent <= self.h2.ping_acks:
            self._pings_sent = self.h2.ping_acks + 1
            self.h2.ping(_KEEPALIVE_PING)
            self.flush()
        self._timer = self._pool.loop.call_later(limits.tick_s, self._on_tick)

    def _cut(self, code: H2Code, reason: str) -> None:
        self.h2.fail(Http2Error(code, reason))
        self.flush()
        self._end(reason)

    # --- Memory ----------------------------------------------------------------------------------------------------

    def keep(self, size_bytes: int) -> None:
        if self._pool.budget is not None:
            self._pool.budget.add(size_bytes)

    def used(self, stream: Stream, size_bytes: int) -> None:
        if self._pool.budget is not None:
            self._pool.budget.sub(size_bytes)
        self.h2.consumed(stream, size_bytes)

    # --- Http2Handler ----------------------------------------------------------------------------------------------

    def on_request(self, stream: Stream, head: RequestHead) -> None:
        raise AssertionError("a client hears no requests")

    def on_refused_head(self, stream: Stream, fault: HeadFault) -> None:
        raise AssertionError("a client hears no requests")

    def on_reply(self, stream: Stream, head: ReplyHead, *, is_end: bool) -> None:
        call: H2Call = stream.owner
        call.on_reply(head, is_end=is_end)

    def on_reply_whole(self, stream: Stream, head: ReplyHead, body: bytes, trailers: Headers) -> bool:
        call: H2Call = stream.owner
        return call.on_reply_whole(head, body, trailers)

    def on_data(self, stream: Stream, data: Data) -> bool:
        call: H2Call = stream.owner
        return call.on_data(data)

    def on_end(self, stream: Stream, trailers: Headers) -> None:
        call: H2Call = stream.owner
        call.on_end(trailers)

    def on_reset(self, stream: Stream, code: int, *, is_processed: bool) -> None:
        call: H2Call = stream.owner
        call.fail(_reset_reason(code), is_sent=is_processed)
        self.after_end()

    def on_writable(self, stream: Stream) -> None:
        call: H2Call = stream.owner
        call.on_writable()

    def on_settings(self) -> None:
        self._pool.on_room()

    def on_goaway(self) -> None:
        self._pool.on_room()


_CODE_NAMES: Final = {int(code): code.name for code in H2Code}


def _reset_reason(code: int) -> str:
    return f"stream reset: {_CODE_NAMES.get(code, str(code))}"
