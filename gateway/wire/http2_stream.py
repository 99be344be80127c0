"""HOT PATH. Owns one HTTP/2 stream's state and the send side of a connection: output, windows, queues, fair draining.

Bytes go straight to the output while both windows and the transport allow it; otherwise they wait in the stream's
backlog and leave frame by frame, one stream after the other.
"""

from collections import deque
from typing import Any, Final, Protocol

from gateway.call import Data
from gateway.wire import http2_frames as frames
from gateway.wire.http2_frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME_BYTES_DEFAULT,
    HEADERS,
    Http2Limits,
    frame_head,
    pack_short,
)

#: Kind and flags as `pack_short` takes them.
_HEAD: Final = HEADERS << 8 | END_HEADERS
_BODY: Final = DATA << 8
_BODY_AND_END: Final = DATA << 8 | END_STREAM
_TRAILERS: Final = HEADERS << 8 | END_HEADERS | END_STREAM

_VIEW_BYTES_MIN: Final = 16 * 1024
_MERGE_BYTES_MAX: Final = 4 * 1024


class Budget(Protocol):
    """Who accounts for bytes held in memory."""

    def add(self, size_bytes: int) -> None: ...

    def sub(self, size_bytes: int) -> None: ...


class Stream:
    """One stream. `owner` belongs to the handler. Both `*_closed` flags: the stream is gone from the connection."""

    __slots__ = (
        "backlog",
        "backlog_bytes",
        "end_block",
        "has_reply_head",
        "id",
        "is_bodyless",
        "is_end_queued",
        "is_local_closed",
        "is_remote_closed",
        "is_ringed",
        "is_waiting",
        "owner",
        "recv_credit_bytes",
        "recv_window_bytes",
        "remaining_bytes",
        "send_window_bytes",
        "unread_bytes",
    )

    def __init__(self, stream_id: int, send_window_bytes: int, recv_window_bytes: int) -> None:
        self.id = stream_id
        self.owner: Any = None
        self.is_local_closed = False
        self.is_remote_closed = False
        #: Client role: the final (not 1xx) reply head has come; a reply to HEAD has no body whatever its length says.
        self.has_reply_head = False
        self.is_bodyless = False
        #: What content-length still promises; -1 without one.
        self.remaining_bytes = -1
        self.recv_window_bytes = recv_window_bytes
        self.recv_credit_bytes = 0
        self.unread_bytes = 0
        self.send_window_bytes = send_window_bytes
        self.backlog: deque[Data | bytearray] | None = None
        self.backlog_bytes = 0
        self.is_end_queued = False
        self.end_block: bytes | None = None
        self.is_ringed = False
        self.is_waiting = False


class SendHandler(Protocol):
    """Who hears that a stream drained."""

    def on_writable(self, stream: Stream) -> None: ...


class SendSide:
    """Output of one connection. Never raises for what the peer did; called by the connection and by applications."""

    __slots__ = (
        "_budget",
        "_handler",
        "_high_bytes",
        "_is_pumping",
        "_low_bytes",
        "_out_bytes_max",
        "_ring",
        "_streams",
        "_tail_length",
        "_tail_stream",
        "block_prefix",
        "data_frames",
        "frame_bytes_max",
        "initial_window_bytes",
        "is_gated",
        "is_table_reduced",
        "out",
        "out_bytes",
        "window_bytes",
    )

    def __init__(
        self, streams: dict[int, Stream], limits: Http2Limits, handler: SendHandler, budget: Budget | None
    ) -> None:
        self._streams = streams
        self._handler = handler
        self._budget = budget
        self._high_bytes = limits.send_queue_high_bytes
        self._low_bytes = limits.send_queue_low_bytes
        self._out_bytes_max = limits.flush_bytes_max
        self._ring: deque[Stream] = deque()
        self._is_pumping = False
        self._tail_stream: Stream | None = None
        self._tail_length = 0
        self.out: list[Data] = []
        self.out_bytes = 0
        #: The transport does not take more: bodies wait, heads and control frames do not.
        self.is_gated = False
        self.window_bytes = frames.WINDOW_BYTES_DEFAULT
        self.initial_window_bytes = frames.WINDOW_BYTES_DEFAULT
        self.frame_bytes_max = frames.FRAME_BYTES_DEFAULT
        self.data_frames = 0
        #: Goes before the next block: the table size update that a reduced table demands (RFC 7541 §4.2).
        self.block_prefix = b""
        self.is_table_reduced = False

    def headers(self, stream: Stream, block: bytes, *, is_end: bool = False) -> None:
        """HEADERS that open a request or reply, or (`is_end`) end it; trailers wait behind queued bodies."""
        if stream.is_local_closed:
            return
        if stream.backlog:
            stream.end_block = block
            stream.is_end_queued = True
            return
        self._headers(stream.id, block, is_end=is_end)
        if is_end:
            self._end(stream)

    def _headers(self, stream_id: int, block: bytes, *, is_end: bool) -> None:
        if self.block_prefix:
            block = self.block_prefix + block
            self.block_prefix = b""
        self.out.append(frames.headers(stream_id, block, self.frame_bytes_max, is_end=is_end))

    def request_whole(self, stream_id: int, block: bytes, body: bytes) -> bool:
        """A new stream's request, HEADERS and DATA in one piece; False if not all of it can leave now."""
        size = len(body)
        length = len(block)
        if (
            not 0 < size <= self.window_bytes
            or size > self.initial_window_bytes
            or size + length >= FRAME_BYTES_DEFAULT
            or self.out_bytes >= self._out_bytes_max
            or self.is_gated
            or self.block_prefix
        ):
            return False
        self.window_bytes -= size
        self.out_bytes += size
        self.data_frames += 1
        self.out += (pack_short(length, _HEAD, stream_id), block, pack_short(size, _BODY_AND_END, stream_id), body)
        return True

    def reply(self, stream: Stream, block: bytes, body: Data, trailers: bytes | None) -> None:
        """A whole reply: HEADERS, DATA and trailers in one piece where the windows allow it."""
        size = len(body)
        if (
            trailers is not None
            and 0 < size <= stream.send_window_bytes
            and size <= self.window_bytes
            and size + len(block) + len(trailers) < FRAME_BYTES_DEFAULT
            and not self.is_gated
            and not stream.is_local_closed
            and not self.block_prefix
        ):
            stream_id = stream.id
            stream.send_window_bytes -= size
            self.window_bytes -= size
            self.out_bytes += size
            self.data_frames += 1
            self.out += (
                pack_short(len(block), _HEAD, stream_id),
                block,
                pack_short(size, _BODY, stream_id),
                body if type(body) is bytes else hold(body),
                pack_short(len(trailers), _TRAILERS, stream_id),
                trailers,
            )
            stream.is_local_closed = True
            if stream.is_remote_closed:
                self._streams.pop(stream_id, None)
            return
        is_end = trailers is None
        self.headers(stream, block, is_end=is_end and not size)
        if size:
            self.data(stream, body, is_end=is_end)
        if trailers is not None:
            self.headers(stream, trailers, is_end=True)

    def data(self, stream: Stream, data: Data, *, is_end: bool = False) -> None:
        """Body bytes; at once if both windows take them, else queued. Sets `stream.is_waiting` above the high mark."""
        if stream.is_local_closed or stream.is_end_queued:
            return
        size = len(data)
        if (
            size <= self.window_bytes
            and size <= stream.send_window_bytes
            and size <= self.frame_bytes_max
            and not stream.backlog
            and not self.is_gated
            and self.out_bytes < self._out_bytes_max
        ) or (not size and is_end and not stream.backlog):
            if not size and not is_end:
                return
            stream.send_window_bytes -= size
            self.window_bytes -= size
            self.out_bytes += size
            self.data_frames += 1
            out = self.out
            if size:
                out.append(frame_head(size, DATA, END_STREAM if is_end else 0, stream.id))
                out.append(hold(data))
                self._tail_stream = stream
                self._tail_length = len(out)
            elif self._tail_stream is stream and self._tail_length == len(out):
                # The last frame written is this stream's DATA and still here: it can carry the end itself.
                out[-2] = frame_head(len(out[-1]), DATA, END_STREAM, stream.id)
            else:
                out.append(frame_head(0, DATA, END_STREAM, stream.id))
            if is_end:
                self._end(stream)
            return
        self._enqueue(stream, data, size)
        stream.is_end_queued = is_end
        if stream.send_window_bytes > 0:
            self.ring(stream)
        self.pump()
        if stream.backlog_bytes > self._high_bytes:
            stream.is_waiting = True

    def _enqueue(self, stream: Stream, data: Data, size: int) -> None:
        if stream.backlog is None:
            stream.backlog = deque()
        if size:
            append_held(stream.backlog, data)
            stream.backlog_bytes += size
            if self._budget is not None:
                self._budget.add(size)

    def ring(self, stream: Stream) -> None:
        """Let a stream with a backlog take part in draining."""
        if not stream.is_ringed and stream.backlog:
            stream.is_ringed = True
            self._ring.append(stream)

    @property
    def is_backlogged(self) -> bool:
        """Whether any stream could send if the connection's window or the transport took more."""
        return bool(self._ring)

    def pump(self) -> None:
        """Move queued bodies to the output, one frame per stream and turn, as far as windows and transport allow."""
        if self._is_pumping or not self._ring:
            return
        self._is_pumping = True
        woken: list[Stream] = []
        ring = self._ring
        while ring and self.window_bytes > 0 and not self.is_gated and self.out_bytes < self._out_bytes_max:
            stream = ring.popleft()
            if stream.backlog and self._send_one(stream):
                ring.append(stream)
            else:
                stream.is_ringed = False
            if stream.is_waiting and stream.backlog_bytes <= self._low_bytes:
                stream.is_waiting = False
                woken.append(stream)
        self._is_pumping = False
        for stream in woken:
            if not stream.is_local_closed:
                self._handler.on_writable(stream)

    def _send_one(self, stream: Stream) -> bool:
        """One DATA frame from the backlog, which is not empty. True if the stream may go on."""
        backlog = stream.backlog
        assert backlog
        chunk = backlog[0]
        size = len(chunk)
        room = min(stream.send_window_bytes, self.window_bytes, self.frame_bytes_max)
        if room <= 0:
            return False
        if isinstance(chunk, bytearray):
            chunk = bytes(chunk)
        if size > room:
            view = memoryview(chunk)
            backlog[0] = view[room:]
            chunk, size = view[:room], room
        else:
            backlog.popleft()
        is_end = not backlog and stream.is_end_queued and stream.end_block is None
        stream.send_window_bytes -= size
        self.window_bytes -= size
        self.out_bytes += size
        self.data_frames += 1
        self.out.append(frame_head(size, DATA, END_STREAM if is_end else 0, stream.id))
        self.out.append(chunk)
        self._release(stream, size)
        if backlog:
            return stream.send_window_bytes > 0
        if stream.end_block is not None:
            self._headers(stream.id, stream.end_block, is_end=True)
            is_end = True
        if is_end:
            self._end(stream)
        return False

    def _release(self, stream: Stream, size: int) -> None:
        stream.backlog_bytes -= size
        if self._budget is not None:
            self._budget.sub(size)

    def _end(self, stream: Stream) -> None:
        stream.is_local_closed = True
        if stream.is_remote_closed:
            self._streams.pop(stream.id, None)

    def drop(self, stream: Stream) -> None:
        """Forget what a reset stream had queued."""
        stream.is_local_closed = True
        if stream.backlog:
            self._release(stream, stream.backlog_bytes)
            stream.backlog.clear()
        stream.end_block = None

    def take(self) -> list[Data]:
        """The output so far; the caller writes it in order."""
        out = self.out
        self.out = []
        self.out_bytes = 0
        self._tail_stream = None
        return out


def hold(data: Data) -> Data:
    """`data` in a form that outlives the callback it came in: views of immutable bytes are kept, others are copied."""
    if type(data) is memoryview and (type(data.obj) is not bytes or len(data) < _VIEW_BYTES_MIN):
        return bytes(data)
    return data


def append_held(queue: deque[Data | bytearray], data: Data) -> None:
    """Append `data` so that it outlives its callback; small pieces are merged into one."""
    last = queue[-1] if queue else None
    if type(last) is bytearray and len(last) + len(data) <= _VIEW_BYTES_MIN:
        last += data
    elif len(data) < _MERGE_BYTES_MAX:
        queue.append(bytearray(data))
    else:
        queue.append(hold(data))
