"""HOT PATH. Owns the seam between connections and applications: one request and its reply, whatever the protocol.

A listener turns bytes into `Exchange`s and tells an `Application`; the gateway's pipeline and the embedded engine are
the two applications. An outbound pool turns an `UpstreamRequest` into bytes and tells an `UpstreamListener`.

Rules for both directions
* All calls are synchronous and happen on the event loop's thread. Nothing here awaits.
* Header names are lower-case bytes. Connection-level headers (connection, keep-alive, transfer-encoding, te, upgrade,
  proxy-*, http2-settings, and those named by `connection:`) never cross this seam; `content-length` does.
* Body data is `bytes` or `memoryview`; a memoryview stays valid only until the callback returns. Copy what you keep.
* After `on_abort`/`on_reply_error` nothing more is called for that exchange; after `abort()`/`cancel()` neither.
* Back-pressure: the consumer calls `pause()`/`resume()`; the producer is told `on_writable` when its peer drained.
"""

from typing import Any, Final, Protocol

from gateway.call import Data, Headers, RequestHead

__all__ = [
    "POOL_FULL",
    "Application",
    "Data",
    "Exchange",
    "Headers",
    "RequestHead",
    "Upstream",
    "UpstreamListener",
    "UpstreamPool",
]


#: The reason by which a pool says that the endpoint is well but no connection is free.
POOL_FULL: Final = "too many calls wait for a backend connection"


class Exchange(Protocol):
    """The inbound side of one call: an HTTP/1.1 request/response or one HTTP/2 stream."""

    head: RequestHead
    #: Free for the application: its per-call object.
    call: Any
    #: Bytes of reply accepted but not yet taken by the socket or the peer's flow-control window.
    is_writable: bool

    @property
    def is_h2(self) -> bool:
        """True for HTTP/2 (trailers are native); HTTP/1.1 sends trailers only on chunked replies."""

    def reply(self, status: int, headers: Headers, body: Data, trailers: Headers | None = None) -> None:
        """Send a whole reply at once and end the exchange. `content-length` is added where the protocol needs it."""

    def send_head(self, status: int, headers: Headers) -> None:
        """Begin a streamed reply. Without `content-length` in `headers` HTTP/1.1 uses chunked encoding."""

    def send_body(self, data: Data) -> None: ...

    def send_end(self, trailers: Headers | None = None) -> None:
        """End a streamed reply."""

    def send_continue(self) -> None:
        """Send `100 Continue` (HTTP/1.1 and HTTP/2) when the head expects it."""

    def pause(self) -> None:
        """Stop reading this request's body (HTTP/1.1: the socket; HTTP/2: withhold WINDOW_UPDATE)."""

    def resume(self) -> None: ...

    def abort(self, h2_error: int = 0x2) -> None:
        """Cut the exchange without a (further) reply: HTTP/1.1 closes, HTTP/2 sends RST_STREAM(h2_error)."""


class Application(Protocol):
    """What a listener serves."""

    def on_head(self, exchange: Exchange) -> None:
        """The head is complete; the body, if any, follows. The application may reply at once."""

    def on_body(self, exchange: Exchange, data: Data) -> None: ...

    # def on_request(self, exchange: Exchange, body: bytes) -> None
    #   Optional: called instead of on_head, on_body and on_end when a whole request is there at once (over HTTP/2:
    #   gRPC only).

    # def body_space(self, exchange: Exchange) -> memoryview | None
    # def on_body_filled(self, exchange: Exchange, count: int) -> None
    #   Optional, HTTP/1.1 only: after the first `on_body` of a large body of known length, writable memory for all the
    #   rest of it (None: by `on_body`); what has come is told by `on_body_filled` instead of `on_body`.

    def on_end(self, exchange: Exchange) -> None:
        """The request is complete (request trailers are dropped)."""

    def on_abort(self, exchange: Exchange) -> None:
        """The caller is gone (reset, closed, timed out) before the reply was complete."""

    def on_writable(self, exchange: Exchange) -> None:
        """`is_writable` became true again."""


class UpstreamListener(Protocol):
    """Who hears an upstream reply."""

    def on_reply_head(self, status: int, headers: Headers, content_length: int) -> None:
        """`content_length` is -1 when unknown; 1xx never arrive here."""

    def on_reply_body(self, data: Data) -> None: ...

    def on_reply_end(self, trailers: Headers) -> None: ...

    def on_reply(self, status: int, headers: Headers, body: bytes) -> None:
        """A whole reply at once, instead of head, body and end. HTTP/1.1 pools call it when all came in one read."""

    # def on_reply_whole(self, status: int, headers: Headers, body: bytes, trailers: Headers) -> None
    #   Optional: the same with trailers; HTTP/2 pools call it when all came in one read.

    def on_reply_error(self, *, is_sent: bool, reason: str) -> None:
        """No (complete) reply will come. `is_sent`: request bytes may have reached the backend."""

    def on_upstream_writable(self) -> None: ...


class Upstream(Protocol):
    """The outbound side of one call."""

    is_writable: bool

    def send_body(self, data: Data) -> None: ...

    def send_end(self) -> None: ...

    def pause(self) -> None:
        """Stop reading the reply."""

    def resume(self) -> None: ...

    def cancel(self) -> None:
        """Give up: HTTP/1.1 closes the connection, HTTP/2 sends RST_STREAM(CANCEL). The listener hears nothing more."""


class UpstreamPool(Protocol):
    """Connections to one endpoint (`unix:///path`, `http://host:port`, `grpc://host:port`)."""

    def request(
        self,
        method: bytes,
        target: bytes,
        headers: Headers,
        content_length: int,
        listener: UpstreamListener,
    ) -> Upstream:
        """Begin a request; body bytes follow by `send_body`/`send_end`. Connects when needed and buffers meanwhile.

        `content_length` -1 sends chunked (HTTP/1.1) or no length (HTTP/2); 0 still needs `send_end`.
        """

    def close(self) -> None: ...
