"""HOT PATH. Owns one inbound HTTP/2 stream as an `Exchange`: reply out, body in, held while the application pauses."""

from typing import Any, Final, Protocol

from gateway.call import Data, Headers, RequestHead
from gateway.net.exchange import Application
from gateway.net.h2_held import HeldBody
from gateway.wire.header_blocks import BlockEncoder
from gateway.wire.http2 import Http2Connection
from gateway.wire.http2_frames import H2Code
from gateway.wire.http2_stream import Stream

_CONTINUE: Final = ((b":status", b"100"),)


class ExchangeHost(Protocol):
    """The connection, as its exchanges see it."""

    application: Application
    encoder: BlockEncoder
    h2: Http2Connection
    drain_bytes_max: int

    def schedule_flush(self) -> None: ...

    def after_end(self) -> None:
        """An exchange ended; flush, and close if it was the last one of a drain."""

    def keep(self, size_bytes: int) -> None:
        """Account for body bytes that a paused exchange holds."""

    def used(self, stream: Stream, size_bytes: int) -> None:
        """They are held no longer: free the account and the windows."""


class H2Exchange:
    """One stream as an `Exchange`."""

    __slots__ = (
        "_connection",
        "_discarded_bytes",
        "_held",
        "_is_done",
        "_is_paused",
        "_stream",
        "call",
        "head",
        "idle_ticks",
        "is_h2",
        "is_writable",
    )

    def __init__(self, connection: ExchangeHost, stream: Stream, head: RequestHead) -> None:
        self.head = head
        self.call: Any = None
        self.is_writable = True
        self.is_h2 = True
        self.idle_ticks = 0
        self._connection = connection
        self._stream = stream
        self._is_done = False
        self._is_paused = False
        self._held: HeldBody | None = None
        self._discarded_bytes = 0

    # --- Exchange --------------------------------------------------------------------------------------------------

    def reply(self, status: int, headers: Headers, body: Data, trailers: Headers | None = None) -> None:
        """See `Exchange`. gRPC with an empty body and trailers leaves as one trailers-only block."""
        if self._is_done:
            return
        encoder = self._connection.encoder
        send = self._connection.h2.send
        if trailers is not None and not body and self.head.is_grpc:
            send.headers(self._stream, encoder.status(status) + encoder.encode(headers + trailers), is_end=True)
        else:
            send.reply(
                self._stream,
                encoder.status(status) + encoder.encode(headers),
                b"" if self.head.method == b"HEAD" else body,
                None if trailers is None else encoder.encode(trailers),
            )
        self._finish()

    def reply_blocks(self, block: bytes, body: bytes, trailers: bytes) -> None:
        """`reply` with its headers (status first) and trailers already encoded."""
        if self._is_done:
            return
        self._is_done = True
        connection, stream = self._connection, self._stream
        connection.h2.send.reply(stream, block, body, trailers)
        if self._held:
            self._drop_unread()
        if stream.is_local_closed and stream.is_remote_closed:
            stream.owner = None  # see `_release_stream`
        connection.after_end()

    def send_head(self, status: int, headers: Headers) -> None:
        if not self._is_done:
            encoder = self._connection.encoder
            self._connection.h2.send.headers(self._stream, encoder.status(status) + encoder.encode(headers))
            self._connection.schedule_flush()

    def send_body(self, data: Data) -> None:
        if not self._is_done and data:
            stream = self._stream
            self._connection.h2.send.data(stream, data)
            if stream.is_waiting:
                self.is_writable = False
            self._connection.schedule_flush()

    def send_end(self, trailers: Headers | None = None) -> None:
        if self._is_done:
            return
        send = self._connection.h2.send
        if trailers:
            send.headers(self._stream, self._connection.encoder.encode(trailers), is_end=True)
        else:
            send.data(self._stream, b"", is_end=True)
        self._finish()

    def send_continue(self) -> None:
        if self.head.expects_continue and not self._is_done:
            self._connection.h2.send.headers(self._stream, self._connection.encoder.encode(_CONTINUE))
            self._connection.schedule_flush()

    def pause(self) -> None:
        self._is_paused = True
        if self._held is None:
            self._held = HeldBody()

    def resume(self) -> None:
        """Deliver what was kept; the application may pause again from within."""
        self._is_paused = False
        held = self._held
        application = self._connection.application
        while held and not self._is_paused and not self._is_done:
            data = held.pop()
            self._connection.used(self._stream, len(data))
            application.on_body(self, data)
        if held is not None and held.is_ended and not self._is_paused and not self._is_done:
            held.is_ended = False
            application.on_end(self)
        self._connection.schedule_flush()

    def abort(self, h2_error: int = H2Code.INTERNAL_ERROR) -> None:
        if not self._is_done:
            self._is_done = True
            self._drop_unread()
            self._connection.h2.reset(self._stream, h2_error)
            self._release_stream()
            self._connection.after_end()

    # --- From the connection ---------------------------------------------------------------------------------------

    @property
    def is_done(self) -> bool:
        """The reply is complete or given up: the application hears nothing more."""
        return self._is_done

    @property
    def is_awaiting_body(self) -> bool:
        """Whether the peer owes bytes and nothing else holds them up."""
        return not (self._stream.is_remote_closed or self._is_paused)

    def _finish(self) -> None:
        self._is_done = True
        if self._held:
            self._drop_unread()
        self._release_stream()
        self._connection.after_end()

    def _release_stream(self) -> None:
        """No cycle with a stream that is gone: both are freed by their count, not by the collector."""
        stream = self._stream
        if stream.is_local_closed and stream.is_remote_closed:
            stream.owner = None

    def _drop_unread(self) -> None:
        if self._held:
            self._connection.used(self._stream, self._held.clear())

    def on_data(self, data: Data) -> bool:
        """Whether the application took `data`; else it waits here, withheld from the windows."""
        self.idle_ticks = 0
        if self._is_done:
            self._discarded_bytes += len(data)
            if self._discarded_bytes > self._connection.drain_bytes_max:
                self._connection.h2.reset(self._stream, H2Code.NO_ERROR)
            return True
        held = self._held
        if held is not None and (self._is_paused or held):
            held.append(data)
            self._connection.keep(len(data))
            return False
        self._connection.application.on_body(self, data)
        return True

    def on_end(self) -> None:
        if self._is_done:
            self._release_stream()
            return
        held = self._held
        if held is not None and (self._is_paused or held):
            held.is_ended = True
        else:
            self._connection.application.on_end(self)

    def on_gone(self) -> None:
        """The stream or the connection is gone."""
        self._stream.owner = None
        if not self._is_done:
            self._is_done = True
            self._drop_unread()
            self._connection.application.on_abort(self)

    def on_writable(self) -> None:
        self.is_writable = True
        if not self._is_done:
            self._connection.application.on_writable(self)
