"""HOT PATH. Owns an HTTP/2 connection, sans-IO, in either role (RFC 9113): bytes in, handler calls and output out.

`feed` never raises for what the peer sends: a stream error becomes RST_STREAM; a connection error sets `error`, sends
GOAWAY and ends all work. The shell writes `send.take()` after every turn and closes once `error` is set. Server push
is refused, priorities are ignored.
"""

from collections.abc import Callable
from typing import Final

from gateway.call import Data, Headers, RequestHead
from gateway.errors import Code
from gateway.wire import http2_control, http2_settings
from gateway.wire import http2_frames as frames
from gateway.wire.header_blocks import BlockDecoder
from gateway.wire.header_memo import HeaderBlock, HeaderMemo
from gateway.wire.http2_fields import HeadFault, ReplyHead, is_grpc_block, reply_head, request_head, trailer_fields
from gateway.wire.http2_frames import H2Code, Http2Error, Http2Limits
from gateway.wire.http2_guard import FloodGuard
from gateway.wire.http2_handler import Http2Handler, OnReplyWhole, OnRequestWhole
from gateway.wire.http2_reader import FrameReader
from gateway.wire.http2_stream import Budget, SendSide, Stream

_TOO_LARGE: Final = "header list larger than the announced limit"


class Http2Connection:
    """One connection. `streams` holds those not yet closed on both sides.

    Shells use the methods and `send`, `streams`, `error`, `is_*`, `has_settings`, `peer_streams_max`, `ping_acks`;
    the other attributes are shared inside `gateway.wire` only.
    """

    __slots__ = (
        "_credits_on_receipt",
        "_on_reply_whole",
        "_on_request_whole",
        "_recv_credit_bytes",
        "_recv_window_bytes",
        "closed",
        "decoder",
        "error",
        "goaway_id",
        "guard",
        "handler",
        "has_settings",
        "is_acknowledged",
        "is_client",
        "is_draining",
        "is_peer_going",
        "last_peer_id",
        "limits",
        "next_id",
        "peer_streams_max",
        "ping_acks",
        "reader",
        "send",
        "stream_window_bytes",
        "streams",
    )

    def __init__(
        self,
        handler: Http2Handler,
        limits: Http2Limits,
        memo: HeaderMemo,
        monotonic_ns: Callable[[], int],
        *,
        is_client: bool = False,
        budget: Budget | None = None,
    ) -> None:
        self.handler = handler
        self._on_request_whole: OnRequestWhole | None = getattr(handler, "on_request_whole", None)
        self._on_reply_whole: OnReplyWhole | None = getattr(handler, "on_reply_whole", None)
        self.limits = limits
        self.is_client = is_client
        self.streams: dict[int, Stream] = {}
        self.send = SendSide(self.streams, limits, handler, budget)
        self.reader = FrameReader(self, limits, is_client=is_client)
        self.decoder = BlockDecoder(limits, memo)
        self.guard = FloodGuard(limits, monotonic_ns)
        #: What ended the connection.
        self.error: Http2Error | None = None
        #: The peer acknowledged our SETTINGS; its own have come.
        self.is_acknowledged = False
        self.has_settings = False
        self.is_draining = False
        self.is_peer_going = False
        self.ping_acks = 0
        #: How many streams the peer lets us open; RFC 9113 §6.5.2 recommends at least 100.
        self.peer_streams_max = 100
        self.last_peer_id = 0
        self.next_id = 1
        self.goaway_id = frames.STREAM_ID_MAX
        #: Streams closed before their time: True by us (late frames are ignored), False by the peer.
        self.closed: dict[int, bool] = {}
        # A client's connection is shared by callers, and one who does not read must not stop the others: there the
        # connection window is credited on receipt and memory is bounded by the streams' windows.
        self._credits_on_receipt = is_client
        self._recv_window_bytes = max(limits.connection_window_bytes, frames.WINDOW_BYTES_DEFAULT)
        self._recv_credit_bytes = 0
        #: What new streams get: the default until our SETTINGS are acknowledged.
        self.stream_window_bytes = frames.WINDOW_BYTES_DEFAULT
        if is_client:
            self.send.out.append(frames.PREFACE)
        self.send.out.append(http2_settings.announced(limits, is_client=is_client))

    # --- What the shell asks ---------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Take what the socket gave. Never raises for the peer's faults; see `error`."""
        try:
            self.reader.feed(data)
        except Http2Error as error:
            self.fail(error)

    def fail(self, error: Http2Error) -> None:
        """End the connection: GOAWAY with the last stream that was begun (RFC 9113 §5.4.1). Idempotent."""
        if self.error is None:
            self.error = error
            self.reader.stop()
            last_id = min(self.last_peer_id, self.goaway_id)
            self.send.out.append(frames.goaway(last_id, error.code, error.message.encode("ascii", "replace")[:128]))

    @property
    def can_open(self) -> bool:
        """Client role: whether `open` may be called now."""
        return (
            len(self.streams) < self.peer_streams_max
            and not self.is_peer_going
            and self.error is None
            and self.next_id < frames.STREAM_ID_MAX
        )

    def open(self, block: bytes, owner: object, *, is_end: bool, is_bodyless: bool = False) -> Stream:
        """Client role: begin a request. `is_bodyless`: a HEAD, whose reply has no body. `can_open` must hold."""
        stream = Stream(self.next_id, self.send.initial_window_bytes, self.stream_window_bytes)
        stream.owner = owner
        stream.is_bodyless = is_bodyless
        self.next_id += 2
        self.streams[stream.id] = stream
        self.send.headers(stream, block, is_end=is_end)
        return stream

    def open_whole(self, block: bytes, body: bytes, owner: object) -> Stream | None:
        """`open` with the whole body, in one piece; None if the windows or the transport do not take all of it now."""
        stream_id = self.next_id
        if not self.send.request_whole(stream_id, block, body):
            return None
        self.next_id = stream_id + 2
        # Its send window is of no use any more.
        stream = self.streams[stream_id] = Stream(stream_id, 0, self.stream_window_bytes)
        stream.owner = owner
        stream.is_local_closed = True
        return stream

    def reset(self, stream: Stream, code: int) -> None:
        """Give a stream up: RST_STREAM(code). The handler hears nothing more of it. Idempotent."""
        if self.streams.pop(stream.id, None) is None:
            return
        self.send.out.append(frames.rst_stream(stream.id, code))
        self.forget(stream, is_ours=True)

    def consumed(self, stream: Stream, size_bytes: int) -> None:
        """Bytes that `on_data` kept have been used: their windows open again."""
        size_bytes = min(size_bytes, stream.unread_bytes)
        stream.unread_bytes -= size_bytes
        if not self._credits_on_receipt:
            self._credit_connection(size_bytes)
        self._credit_stream(stream, size_bytes)

    def ping(self, payload: bytes) -> None:
        """Send PING (8 bytes); `ping_acks` counts the answers."""
        self.send.out.append(frames.ping(payload, is_ack=False))

    def begin_drain(self) -> None:
        """Graceful end, first step (RFC 9113 §6.8): announce it; streams already on their way are still served."""
        if not self.is_draining and self.error is None:
            self.is_draining = True
            self.send.out.append(frames.goaway(frames.STREAM_ID_MAX, H2Code.NO_ERROR))
            self.ping(http2_control.DRAIN_PING)

    def finish_drain(self) -> None:
        """Second step, after a round trip or a time-out: name the last stream that will be served."""
        if self.is_draining and self.goaway_id == frames.STREAM_ID_MAX and self.error is None:
            self.goaway_id = self.last_peer_id
            self.send.out.append(frames.goaway(self.goaway_id, H2Code.NO_ERROR))

    @property
    def is_drained(self) -> bool:
        """Whether a drain is complete: nothing is in flight and nothing more will be served."""
        return self.is_draining and self.goaway_id != frames.STREAM_ID_MAX and not self.streams

    # --- Windows ---------------------------------------------------------------------------------------------------

    def _credit_connection(self, size_bytes: int) -> None:
        credit = self._recv_credit_bytes + size_bytes
        if credit * 2 >= self.limits.connection_window_bytes:
            self.send.out.append(frames.window_update(0, credit))
            self._recv_window_bytes += credit
            credit = 0
        self._recv_credit_bytes = credit

    def _credit_stream(self, stream: Stream, size_bytes: int) -> None:
        stream.recv_credit_bytes += size_bytes
        if stream.recv_credit_bytes * 2 >= self.limits.stream_window_bytes and not stream.is_remote_closed:
            self.send.out.append(frames.window_update(stream.id, stream.recv_credit_bytes))
            stream.recv_window_bytes += stream.recv_credit_bytes
            stream.recv_credit_bytes = 0

    # --- Streams ---------------------------------------------------------------------------------------------------

    def forget(self, stream: Stream, *, is_ours: bool) -> None:
        """A stream ended before its time: free what it holds, remember how late frames are to be taken."""
        stream.is_remote_closed = True
        self.send.drop(stream)
        if stream.unread_bytes:
            if not self._credits_on_receipt:
                self._credit_connection(stream.unread_bytes)
            stream.unread_bytes = 0
        self._remember(stream.id, is_ours=is_ours)

    def _remember(self, stream_id: int, *, is_ours: bool) -> None:
        closed = self.closed
        if len(closed) >= self.limits.closed_streams_max:
            del closed[next(iter(closed))]
        closed[stream_id] = is_ours

    def stream_error(self, stream: Stream, code: H2Code) -> None:
        """RFC 9113 §5.4.2. The handler hears of it."""
        self.guard.on_reset()
        if self.streams.pop(stream.id, None) is not None:
            self.send.out.append(frames.rst_stream(stream.id, code))
            self.forget(stream, is_ours=True)
            self.handler.on_reset(stream, code, is_processed=True)

    def is_idle(self, stream_id: int) -> bool:
        """Whether the stream was never begun (RFC 9113 §5.1)."""
        is_new = stream_id >= self.next_id if self.is_client else stream_id > self.last_peer_id
        return is_new or not stream_id & 1

    def on_acknowledged(self) -> None:
        """Our SETTINGS hold from here on; windows of open streams move (RFC 9113 §6.9.2)."""
        if self.is_acknowledged:
            return
        self.is_acknowledged = True
        self.decoder.on_acknowledged()
        for stream in self.streams.values():
            stream.recv_window_bytes += self.limits.stream_window_bytes - self.stream_window_bytes
        self.stream_window_bytes = self.limits.stream_window_bytes

    def _absent(self, stream_id: int, what: str) -> None:
        """DATA or HEADERS on a stream that is not open. Raises Http2Error unless it may be ignored (RFC 9113 §5.1)."""
        is_ours = self.closed.get(stream_id)
        if is_ours is None:
            if self.is_idle(stream_id):
                raise Http2Error(H2Code.PROTOCOL_ERROR, f"{what} on an idle stream")
            if stream_id <= self.goaway_id:
                raise Http2Error(H2Code.STREAM_CLOSED, f"{what} on a closed stream")
        elif not is_ours:
            self.guard.on_reset()
            self.send.out.append(frames.rst_stream(stream_id, H2Code.STREAM_CLOSED))

    # --- Frames (FrameSink) ----------------------------------------------------------------------------------------

    def on_data(self, stream_id: int, data: Data, flow_bytes: int, *, is_end: bool) -> None:
        window = self._recv_window_bytes - flow_bytes
        if window < 0:
            raise Http2Error(H2Code.FLOW_CONTROL_ERROR, "connection window exceeded")
        self._recv_window_bytes = window
        stream = self.streams.get(stream_id)
        if stream is None:
            self._absent(stream_id, "DATA")
            self._credit_connection(flow_bytes)
            return
        fault = self._data_fault(stream, len(data), flow_bytes, is_end=is_end)
        if fault is not None:
            self._credit_connection(flow_bytes)
            self.stream_error(stream, fault)
            return
        stream.recv_window_bytes -= flow_bytes
        if data and not self.handler.on_data(stream, data):
            flow_bytes = self._keep(stream, len(data), flow_bytes)
        credit = self._recv_credit_bytes + flow_bytes
        if credit * 2 < self.limits.connection_window_bytes:
            self._recv_credit_bytes = credit
        else:
            self._credit_connection(flow_bytes)
        if is_end:
            self._end_remote(stream, [])
        else:
            self._credit_stream(stream, flow_bytes)

    def _keep(self, stream: Stream, size: int, flow_bytes: int) -> int:
        """The handler kept `size` bytes: they stay charged to the stream; returns what to credit at once."""
        if stream.is_remote_closed:
            return flow_bytes  # it was reset meanwhile
        stream.unread_bytes += size
        if self._credits_on_receipt:
            self._credit_connection(size)
        return flow_bytes - size

    def _data_fault(self, stream: Stream, size: int, flow_bytes: int, *, is_end: bool) -> H2Code | None:
        """Why this DATA is a stream error; counts down content-length."""
        if stream.is_remote_closed:
            return H2Code.STREAM_CLOSED
        if flow_bytes > stream.recv_window_bytes:
            return H2Code.FLOW_CONTROL_ERROR
        if self.is_client and not stream.has_reply_head:
            return H2Code.PROTOCOL_ERROR
        remaining = stream.remaining_bytes
        if remaining >= 0:
            remaining -= size
            if remaining < 0 or (is_end and remaining):
                return H2Code.PROTOCOL_ERROR
            stream.remaining_bytes = remaining
        return None

    def on_empty_data(self) -> None:
        self.guard.on_control_frame("empty DATA frames")

    def on_unknown_frame(self) -> None:
        self.guard.on_control_frame("unknown frames")

    def _end_remote(self, stream: Stream, trailers: Headers) -> None:
        if stream.is_remote_closed:
            return  # reset by the handler meanwhile
        stream.is_remote_closed = True
        if stream.is_local_closed:
            self.streams.pop(stream.id, None)
        self.handler.on_end(stream, trailers)

    def on_request_whole(self, stream_id: int, block: bytes, body: bytes) -> None:
        decoded = self.decoder.decode(block)
        is_plain = decoded.is_plain
        if is_plain is None:
            is_plain = decoded.is_plain = self._is_plain_request(decoded)
        size = len(body)
        hand_on = self._on_request_whole
        if (
            not is_plain
            or hand_on is None
            or self.is_draining
            or stream_id <= self.last_peer_id
            or not stream_id & 1
            or size > self._recv_window_bytes
            or size > self.stream_window_bytes
            or len(self.streams) >= self.limits.streams_max
            or decoded.head.content_length not in (-1, size)
        ):
            # Anything unusual is taken step by step.
            self._take_block(stream_id, decoded, is_end=False)
            if self.error is None:
                self.on_data(stream_id, body, size, is_end=True)
            return
        self.last_peer_id = stream_id
        self._recv_window_bytes -= size
        stream = Stream(stream_id, self.send.initial_window_bytes, self.stream_window_bytes - size)
        stream.is_remote_closed = True
        self.streams[stream_id] = stream
        hand_on(stream, decoded.head, body)
        self._credit_connection(size)

    def _is_plain_request(self, block: HeaderBlock) -> bool:
        if block.head is None:
            block.head = self._request_head(block)
        head = block.head
        return type(head) is RequestHead and head.is_grpc and not head.expects_continue

    def on_reply_whole(self, stream_id: int, block: bytes, body: bytes, trailers: bytes) -> None:
        # Whether the last block is usual must be known before the first is told; the first may be a new one.
        last = self.decoder.known(trailers)
        decoded = self.decoder.decode_reply(block)
        if last is not None and self._take_reply(stream_id, decoded, body, last):
            return
        # Anything unusual is taken step by step.
        self._take_block(stream_id, decoded, is_end=False)
        if self.error is None:
            self.on_data(stream_id, body, len(body), is_end=False)
        if self.error is None:
            self.on_block(stream_id, trailers, is_end=True)

    def _take_reply(self, stream_id: int, block: HeaderBlock, body: bytes, last: HeaderBlock) -> bool:
        """Hand on a whole reply if nothing about it needs a closer look."""
        is_plain = block.is_plain
        if is_plain is None:
            is_plain = block.is_plain = _is_plain_reply(block)
        trailers = last.trailers
        if trailers is None:
            trailers = last.trailers = trailer_fields(last.fields)
        size = len(body)
        stream = self.streams.get(stream_id)
        hand_on = self._on_reply_whole
        if (
            not is_plain
            or hand_on is None
            or stream is None
            or type(trailers) is HeadFault
            or stream.has_reply_head
            or not stream.is_local_closed
            or stream.is_bodyless
            or size > self._recv_window_bytes
            or size > stream.recv_window_bytes
        ):
            return False
        del self.streams[stream_id]
        stream.is_remote_closed = True
        if not hand_on(stream, block.head, body, trailers):
            stream.is_remote_closed = False
            self.streams[stream_id] = stream
            return False
        self._recv_window_bytes -= size
        self._credit_connection(size)
        return True

    def on_block(self, stream_id: int, block: bytes, *, is_end: bool) -> None:
        decoded = self.decoder.decode_reply(block) if self.is_client else self.decoder.decode(block)
        self._take_block(stream_id, decoded, is_end=is_end)

    def _take_block(self, stream_id: int, decoded: HeaderBlock, *, is_end: bool) -> None:
        stream = self.streams.get(stream_id)
        if stream is None:
            if self.is_client or stream_id <= self.last_peer_id or not stream_id & 1:
                self._absent(stream_id, "HEADERS")
                return
            self.last_peer_id = stream_id
            if stream_id > self.goaway_id:
                return  # RFC 9113 §6.8: ignored, the peer knows
            self._open_request(stream_id, decoded, is_end=is_end)
        elif stream.is_remote_closed:
            self.stream_error(stream, H2Code.STREAM_CLOSED)
        elif self.is_client and not stream.has_reply_head:
            self._on_reply_block(stream, decoded, is_end=is_end)
        else:
            self._on_trailers(stream, decoded, is_end=is_end)

    def _open_request(self, stream_id: int, block: HeaderBlock, *, is_end: bool) -> None:
        if len(self.streams) >= self.limits.streams_max:
            self.guard.on_reset()
            self.send.out.append(frames.rst_stream(stream_id, H2Code.REFUSED_STREAM))
            self._remember(stream_id, is_ours=True)
            return
        stream = Stream(stream_id, self.send.initial_window_bytes, self.stream_window_bytes)
        self.streams[stream_id] = stream
        head = block.head
        if head is None:
            head = block.head = self._request_head(block)
        if type(head) is HeadFault:
            if head.code is None:
                self.guard.on_reset()
                self.reset(stream, H2Code.PROTOCOL_ERROR)
                return
            self.handler.on_refused_head(stream, head)
        else:
            length = stream.remaining_bytes = head.content_length
            if is_end and length > 0:
                self.guard.on_reset()
                self.reset(stream, H2Code.PROTOCOL_ERROR)
                return
            self.handler.on_request(stream, head)
        if is_end:
            self._end_remote(stream, [])

    def _request_head(self, block: HeaderBlock) -> RequestHead | HeadFault:
        if block.list_bytes > self.limits.header_list_bytes_max or len(block.fields) > self.limits.headers_max:
            return HeadFault(_TOO_LARGE, Code.HEADERS_TOO_LARGE, is_grpc=is_grpc_block(block.fields))
        return request_head(block.fields)

    def _on_reply_block(self, stream: Stream, block: HeaderBlock, *, is_end: bool) -> None:
        head = block.head
        if head is None:
            head = block.head = reply_head(block.fields)
        if type(head) is HeadFault:
            self.stream_error(stream, H2Code.PROTOCOL_ERROR)
            return
        if head.status < 200:
            self.guard.on_control_frame("informational replies")
            if is_end or head.status == 101:
                self.stream_error(stream, H2Code.PROTOCOL_ERROR)
            return
        stream.has_reply_head = True
        if stream.is_bodyless or head.status in (204, 304):
            stream.remaining_bytes = 0
        else:
            stream.remaining_bytes = head.content_length
        if is_end and stream.remaining_bytes > 0:
            self.stream_error(stream, H2Code.PROTOCOL_ERROR)
            return
        self.handler.on_reply(stream, head, is_end=is_end)
        if is_end:
            self._end_remote(stream, [])

    def _on_trailers(self, stream: Stream, block: HeaderBlock, *, is_end: bool) -> None:
        trailers = block.trailers
        if trailers is None:
            trailers = block.trailers = trailer_fields(block.fields)
        if not is_end or stream.remaining_bytes > 0 or isinstance(trailers, HeadFault):
            self.stream_error(stream, H2Code.PROTOCOL_ERROR)
            return
        self._end_remote(stream, trailers)

    def on_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        http2_control.on_frame(self, kind, flags, stream_id, payload)


def _is_plain_reply(block: HeaderBlock) -> bool:
    if block.head is None:
        block.head = reply_head(block.fields)
    head = block.head
    return type(head) is ReplyHead and head.status == 200 and head.content_length < 0
