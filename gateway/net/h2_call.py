"""HOT PATH. Owns one outbound HTTP/2 call as an `Upstream`: waiting for a connection, then a stream of it."""

from collections.abc import Callable
from typing import Any, Protocol

from gateway.call import Data, Headers
from gateway.net.exchange import UpstreamListener
from gateway.net.h2_held import HeldBody
from gateway.wire.http2 import Http2Connection
from gateway.wire.http2_fields import ReplyHead
from gateway.wire.http2_frames import H2Code
from gateway.wire.http2_stream import Stream

#: Optional `on_reply_whole` of a listener.
OnReplyWhole = Callable[[int, Headers, bytes, Headers], None]


class CallHost(Protocol):
    """The connection, as its calls see it."""

    h2: Http2Connection

    def schedule_flush(self) -> None: ...

    def after_end(self) -> None:
        """A call ended: its place is free."""

    def keep(self, size_bytes: int) -> None:
        """Account for bytes that a call holds."""

    def used(self, stream: Stream, size_bytes: int) -> None:
        """They are held no longer: free the account and the windows."""


class WaitingRoom(Protocol):
    """The pool, as calls without a connection see it."""

    waiting_bytes_max: int

    def hold(self, size_bytes: int) -> None:
        """Account for request bytes that wait for a connection; negative frees them."""

    def leave(self, call: "H2Call") -> None:
        """A waiting call was given up."""


class H2Call:
    """See `Upstream`. The listener may be called from within any read, never from within `request`."""

    __slots__ = (
        "_early",
        "_held",
        "_host",
        "_is_bodyless",
        "_is_done",
        "_is_end_early",
        "_is_paused",
        "_on_reply_whole",
        "_pool",
        "_stream",
        "_trailers",
        "block",
        "is_writable",
        "listener",
        "units",
    )

    def __init__(self, pool: WaitingRoom, block: bytes, listener: UpstreamListener, *, is_bodyless: bool) -> None:
        self.block = block
        self.listener = listener
        self.is_writable = True
        #: What a reply's `ReplyHead` says.
        self.units: Headers | None = None
        self._pool = pool
        self._host: CallHost | None = None
        self._stream: Stream | None = None
        self._is_bodyless = is_bodyless
        self._early: HeldBody | None = None
        self._is_end_early = False
        self._is_done = False
        self._is_paused = False
        self._held: HeldBody | None = None
        self._on_reply_whole: OnReplyWhole | None = None
        #: Of a trailers-only reply.
        self._trailers: Headers | None = None

    @property
    def is_done(self) -> bool:
        return self._is_done

    # --- Upstream --------------------------------------------------------------------------------------------------

    def send_body(self, data: Data) -> None:
        if self._is_done or not data:
            return
        host, stream = self._host, self._stream
        if host is None or stream is None:
            self._send_early(data)
            return
        host.h2.send.data(stream, data)
        if stream.is_waiting:
            self.is_writable = False
        host.schedule_flush()

    def _send_early(self, data: Data) -> None:
        if self._early is None:
            self._early = HeldBody()
        self._early.append(data)
        self._pool.hold(len(data))
        if self._early.size_bytes > self._pool.waiting_bytes_max:
            self.is_writable = False

    def send_end(self) -> None:
        if self._is_done:
            return
        host, stream = self._host, self._stream
        if host is None or stream is None:
            self._is_end_early = True
            return
        host.h2.send.data(stream, b"", is_end=True)
        host.schedule_flush()

    def pause(self) -> None:
        self._is_paused = True
        if self._held is None:
            self._held = HeldBody()

    def resume(self) -> None:
        """Deliver what was kept; the listener may pause again from within."""
        self._is_paused = False
        held, host, stream = self._held, self._host, self._stream
        if held is None or host is None or stream is None:
            return
        while held and not self._is_paused and not self._is_done:
            data = held.pop()
            host.used(stream, len(data))
            self.listener.on_reply_body(data)
        if held.is_ended and not self._is_paused and not self._is_done:
            self._finish()
        host.schedule_flush()

    def cancel(self) -> None:
        if self._is_done:
            return
        self._is_done = True
        host, stream = self._host, self._stream
        if host is None or stream is None:
            self._drop_early()
            self._pool.leave(self)
            return
        self._drop_held(host, stream)
        host.h2.reset(stream, H2Code.CANCEL)
        stream.owner = None
        host.after_end()

    # --- From pool and connection ----------------------------------------------------------------------------------

    def start(self, host: CallHost) -> None:
        """A connection has a place: send what there is so far."""
        self._host = host
        early = self._early
        is_end = self._is_end_early and early is None
        stream = self._stream = host.h2.open(self.block, self, is_end=is_end, is_bodyless=self._is_bodyless)
        if early is not None:
            self._send_held(host, stream, early)
        host.schedule_flush()

    def start_whole(self, host: CallHost, body: bytes) -> None:
        """As `start`, `send_body` and `send_end`; the reply may come whole, too, if the listener can take it so."""
        self._on_reply_whole = getattr(self.listener, "on_reply_whole", None)
        stream = host.h2.open_whole(self.block, body, self)
        if stream is None:
            self.start(host)
            self.send_body(body)
            self.send_end()
        else:
            self._host = host
            self._stream = stream
            host.schedule_flush()

    def _send_held(self, host: CallHost, stream: Stream, early: HeldBody) -> None:
        self._early = None
        while early:
            data = early.pop()
            self._pool.hold(-len(data))
            host.h2.send.data(stream, data)
        if self._is_end_early:
            host.h2.send.data(stream, b"", is_end=True)
        if not self.is_writable and not stream.is_waiting:
            self.is_writable = True
            self.listener.on_upstream_writable()

    def fail(self, reason: str, *, is_sent: bool) -> None:
        """No reply will come."""
        if self._is_done:
            return
        self._is_done = True
        self._drop_early()
        if self._host is not None and self._stream is not None:
            self._drop_held(self._host, self._stream)
            self._stream.owner = None
        self.listener.on_reply_error(is_sent=is_sent, reason=reason)

    def _drop_early(self) -> None:
        if self._early:
            self._pool.hold(-self._early.clear())

    def _drop_held(self, host: CallHost, stream: Stream) -> None:
        if self._held:
            host.used(stream, self._held.clear())

    def on_reply(self, head: ReplyHead, *, is_end: bool) -> None:
        if is_end and any(name == b"grpc-status" for name, _ in head.headers):
            # A list of their own: what is remembered with shared headers is either of a head or of trailers.
            self._trailers = list(head.headers)
        self.units = head.units
        self.listener.on_reply_head(head.status, head.headers, head.content_length)

    def on_reply_whole(self, head: ReplyHead, body: bytes, trailers: Headers) -> bool:
        """As `on_reply`, `on_data` and `on_end`; False if it was not taken so."""
        host = self._host
        stream = self._stream
        on_reply_whole = self._on_reply_whole
        if on_reply_whole is None or self._held is not None or self._is_done or host is None or stream is None:
            return False
        self._is_done = True
        stream.owner = None
        self.units = head.units
        on_reply_whole(head.status, head.headers, body, trailers)
        host.after_end()
        return True

    def on_data(self, data: Data) -> bool:
        """Whether the listener took `data`; else it waits here, withheld from the stream's window."""
        held = self._held
        if held is not None and (self._is_paused or held):
            held.append(data)
            host: Any = self._host
            host.keep(len(data))
            return False
        self.listener.on_reply_body(data)
        return True

    def on_end(self, trailers: Headers) -> None:
        if self._is_done:
            return
        if self._trailers is None:
            self._trailers = trailers
        held = self._held
        if held is not None and (self._is_paused or held):
            held.is_ended = True
        else:
            self._finish()

    def _finish(self) -> None:
        """The reply is complete: a request that is not is of no use any more (RFC 9113 §8.1)."""
        self._is_done = True
        host, stream = self._host, self._stream
        assert host is not None and stream is not None
        if not stream.is_local_closed:
            host.h2.reset(stream, H2Code.CANCEL)
        # No cycle with a stream that is gone: both are freed by their count, not by the collector.
        stream.owner = None
        trailers = self._trailers
        self.listener.on_reply_end([] if trailers is None else trailers)
        host.after_end()

    def on_writable(self) -> None:
        self.is_writable = True
        if not self._is_done:
            self.listener.on_upstream_writable()
