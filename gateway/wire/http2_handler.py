"""Owns the seam between an HTTP/2 connection and the shell around it."""

from collections.abc import Callable
from typing import Protocol

from gateway.call import Data, Headers, RequestHead
from gateway.wire.http2_fields import HeadFault, ReplyHead
from gateway.wire.http2_stream import Stream

#: Optional attribute `on_request_whole` of a handler in the server role: a gRPC request with all of its body, instead
#: of `on_request`, `on_data` and `on_end`. Used where no drain, limit or window stands against taking it in one step.
OnRequestWhole = Callable[[Stream, RequestHead, bytes], None]
#: Optional attribute `on_reply_whole` in the client role: a reply with all of its body and its trailers, instead of
#: `on_reply`, `on_data` and `on_end`. False: not taken, tell it step by step.
OnReplyWhole = Callable[[Stream, ReplyHead, bytes, Headers], bool]


class Http2Handler(Protocol):
    """The shell around a connection. Calls come from within `feed` (or `send.pump`) and may send, reset and drain.

    After `on_reset` nothing more is called for that stream.
    """

    def on_request(self, stream: Stream, head: RequestHead) -> None:
        """Server role: a request begins."""

    def on_refused_head(self, stream: Stream, fault: HeadFault) -> None:
        """Server role: well-formed, but not served; `fault.code` is set and the handler answers."""

    def on_reply(self, stream: Stream, head: ReplyHead, *, is_end: bool) -> None:
        """Client role: the final reply head; `is_end`: nothing follows (`on_end` is called next)."""

    def on_data(self, stream: Stream, data: Data) -> bool:
        """Body bytes, not empty; a view dies with the call. False: kept, and `consumed` will be called for them."""

    def on_end(self, stream: Stream, trailers: Headers) -> None:
        """The peer's side is complete."""

    def on_reset(self, stream: Stream, code: int, *, is_processed: bool) -> None:
        """The stream is gone, by the peer's RST_STREAM or GOAWAY, or by its fault."""

    def on_writable(self, stream: Stream) -> None:
        """A backlog that made `stream.is_waiting` true has drained."""

    def on_settings(self) -> None:
        """The peer's SETTINGS hold from now on (`peer_streams_max`)."""

    def on_goaway(self) -> None:
        """The peer takes no new streams."""
