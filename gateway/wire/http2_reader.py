"""HOT PATH. Owns the framing of HTTP/2 (RFC 9113 §3.4, §4, §6): bytes in, frames out, faults of a frame by itself.

DATA is handed on in the parts it arrives in, as if each were a frame of its own: a large frame is never collected.
Header blocks are handed on whole, without padding, priority and CONTINUATION. Unknown frames are skipped unheld.
"""

from typing import Final, Protocol

from gateway.call import Data
from gateway.wire import http2_frames as frames
from gateway.wire.http2_frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME_HEAD_BYTES,
    HEADERS,
    PADDED,
    WINDOW_UPDATE,
    H2Code,
    Http2Error,
    Http2Limits,
    unpack_head,
)

#: Parts from this size on are views of the bytes read, smaller ones copies: cheaper, and they pin no large buffer.
_VIEW_BYTES_MIN: Final = 16 * 1024
_PRIORITY_BYTES: Final = 5
_UPDATE_BYTES: Final = 4
_END_BOTH: Final = END_HEADERS | END_STREAM
#: Payload length by kind; -1 any.
_EXACT_BYTES: Final = {frames.PRIORITY: 5, frames.RST_STREAM: 4, frames.PING: 8, frames.WINDOW_UPDATE: 4}
_ON_CONNECTION: Final = frozenset({frames.SETTINGS, frames.PING, frames.GOAWAY})


class FrameSink(Protocol):
    """Who takes frames. Every method may raise Http2Error."""

    def on_data(self, stream_id: int, data: Data, flow_bytes: int, *, is_end: bool) -> None:
        """A part of a DATA frame; `flow_bytes` counts against the windows (with padding). A view dies with the call."""

    def on_empty_data(self) -> None:
        """A DATA frame without content that ends nothing; `on_data` follows if it was padded."""

    def on_block(self, stream_id: int, block: bytes, *, is_end: bool) -> None:
        """A complete header block."""

    def on_request_whole(self, stream_id: int, block: bytes, body: bytes) -> None:
        """Server: `on_block` and the `on_data` that ends the stream, in one step."""

    def on_reply_whole(self, stream_id: int, block: bytes, body: bytes, trailers: bytes) -> None:
        """Client: `on_block`, `on_data` and the `on_block` that ends the stream, in one step."""

    def on_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        """Any other frame of a known kind, its length and stream checked; or an empty one of an unknown kind."""

    def on_unknown_frame(self) -> None: ...


class FrameReader:
    """The receiving half of a connection. Not reentrant. `stop` makes it ignore the rest, within `feed` too."""

    __slots__ = (
        "_block_bytes",
        "_block_bytes_max",
        "_block_frames",
        "_block_is_end",
        "_block_parts",
        "_block_stream_id",
        "_body_bytes_max",
        "_data_is_end",
        "_data_left",
        "_data_padding",
        "_data_stream_id",
        "_held",
        "_held_last",
        "_is_client",
        "_is_started",
        "_is_stopped",
        "_limits",
        "_pending",
        "_preface_left",
        "_sink",
        "_skip_left",
    )

    def __init__(self, sink: FrameSink, limits: Http2Limits, *, is_client: bool) -> None:
        self._sink = sink
        self._limits = limits
        self._is_client = is_client
        #: What `_whole` takes.
        self._block_bytes_max = min(limits.frame_bytes_max, limits.header_block_bytes_max)
        self._body_bytes_max = min(limits.frame_bytes_max, _VIEW_BYTES_MIN - 1)
        self._preface_left = b"" if is_client else frames.PREFACE
        self._is_started = False
        self._is_stopped = False
        self._pending = b""
        self._skip_left = 0
        self._data_left = 0
        self._data_padding = 0
        self._data_stream_id = 0
        self._data_is_end = False
        self._block_stream_id = 0
        self._block_parts: list[bytes] = []
        self._block_bytes = 0
        self._block_frames = 0
        self._block_is_end = False
        #: Server, within `feed` only: request heads whose bodies may follow after other heads, in order.
        self._held: dict[int, bytes] = {}
        self._held_last = 0

    @property
    def is_mid_frame(self) -> bool:
        """Whether a preface, frame or header block (not DATA) has begun and not ended: its time should be limited."""
        return bool(self._block_stream_id or self._pending or self._preface_left)

    def stop(self) -> None:
        self._is_stopped = True
        self._pending = b""
        self._block_parts = []
        self._held.clear()

    def feed(self, data: bytes) -> None:
        """Take what the socket gave. Raises Http2Error."""
        if self._pending:
            data = self._pending + data
            self._pending = b""
        position = self._match_preface(data) if self._preface_left else 0
        size = len(data)
        frame_bytes_max = self._limits.frame_bytes_max
        while position < size and not self._is_stopped:
            if self._data_left or self._skip_left:
                position = self._continue(data, position, size)
                continue
            start = position + FRAME_HEAD_BYTES
            if start > size:
                break
            high, low, kind, flags, stream_id = unpack_head(data, position)
            if (
                kind == HEADERS
                and flags == END_HEADERS
                and not high
                and low <= self._block_bytes_max
                and 0 < stream_id <= frames.STREAM_ID_MAX
                and self._is_started
                and not self._block_stream_id
            ):
                end = 0 if self._held else self._whole(data, stream_id, start, start + low, size)
                if not end and not self._is_client:
                    end = self._hold(data, stream_id, start, start + low, size)
                if end:
                    position = end
                    continue
            length = high << 16 | low
            stream_id &= frames.STREAM_ID_MAX
            if length > frame_bytes_max:
                if self._held:
                    self._release()  # what came before it is heard first, in however many reads it came
                    continue
                raise Http2Error(H2Code.FRAME_SIZE_ERROR, "frame larger than SETTINGS_MAX_FRAME_SIZE")
            if not self._is_started:
                self._check_first(kind, flags)
            if self._block_stream_id and (kind != CONTINUATION or stream_id != self._block_stream_id):
                raise Http2Error(H2Code.PROTOCOL_ERROR, "a header block was interrupted")
            end = start + length
            if self._held:
                if kind == DATA and flags == END_STREAM and 0 < length <= self._body_bytes_max and end <= size:
                    block = self._take_first(stream_id)
                    if block is not None:
                        self._sink.on_request_whole(stream_id, block, data[start:end])
                        position = end
                        continue
                self._release()
                continue  # the frame is read again, unless what was released stopped us
            if kind == DATA:
                if flags & PADDED and length and start >= size:
                    break
                if end > size or flags & PADDED or not length:
                    position = self._begin_data(data, start, length, flags, stream_id)
                    continue
                self._sink.on_data(
                    stream_id,
                    data[start:end] if length < _VIEW_BYTES_MIN else memoryview(data)[start:end],
                    length,
                    is_end=bool(flags & END_STREAM),
                )
                position = end
                continue
            self._check_frame(kind, length, stream_id)
            if kind > CONTINUATION:
                self._skip_left = length
                position = start
                continue
            if end > size:
                break
            if kind == HEADERS:
                self._on_headers(flags, stream_id, data[start:end])
            elif kind == CONTINUATION:
                self._on_continuation(flags, data[start:end])
            else:
                self._sink.on_frame(kind, flags, stream_id, data[start:end])
            position = end
        if self._held:
            self._release()
        if position < size and not self._is_stopped:
            self._pending = data[position:]

    # Clients with several streams may send all heads first and then all bodies (nghttp2 does). Within one read a head
    # waits for its body, so that such requests are handed on whole, too; heads keep their order, and any other frame
    # lets them go first.

    def _hold(self, data: bytes, stream_id: int, start: int, end: int, size: int) -> int:
        """Keep a head back; returns the position after it, 0 if it is not to be kept."""
        if end >= size or (self._held and stream_id <= self._held_last):
            return 0
        self._held[stream_id] = data[start:end]
        self._held_last = stream_id
        return end

    def _take_first(self, stream_id: int) -> bytes | None:
        """The block of `stream_id` if it is the first that is held."""
        for first in self._held:
            return self._held.pop(first) if first == stream_id else None
        return None

    def _release(self) -> None:
        """Hand on the heads that are held, as if their bodies were still to come."""
        held, self._held = self._held, {}
        for stream_id, block in held.items():
            if self._is_stopped:
                return
            self._sink.on_block(stream_id, block, is_end=False)

    def _match_preface(self, data: bytes) -> int:
        expected = self._preface_left
        step = min(len(expected), len(data))
        if data[:step] != expected[:step]:
            raise Http2Error(H2Code.PROTOCOL_ERROR, "invalid connection preface")
        self._preface_left = expected[step:]
        return step

    def _check_first(self, kind: int, flags: int) -> None:
        """A preface ends with SETTINGS, which are not an acknowledgement (RFC 9113 §3.4)."""
        if kind != frames.SETTINGS or flags & frames.ACK:
            raise Http2Error(H2Code.PROTOCOL_ERROR, "the first frame is not SETTINGS")
        self._is_started = True

    def _check_frame(self, kind: int, length: int, stream_id: int) -> None:
        """Refuse a frame by its head alone, before anything of it is held."""
        if kind > CONTINUATION:
            self._sink.on_unknown_frame()
            return
        exact = _EXACT_BYTES.get(kind)
        if exact is not None and length != exact:
            raise Http2Error(H2Code.FRAME_SIZE_ERROR, f"frame of kind {kind} with a wrong length")
        if kind in (HEADERS, CONTINUATION):
            if self._block_bytes + length > self._limits.header_block_bytes_max:
                raise Http2Error(H2Code.ENHANCE_YOUR_CALM, "header block too large")
        elif length > self._limits.control_frame_bytes_max:
            raise Http2Error(H2Code.ENHANCE_YOUR_CALM, "control frame too large")
        if kind != frames.WINDOW_UPDATE and (stream_id == 0) != (kind in _ON_CONNECTION):
            raise Http2Error(H2Code.PROTOCOL_ERROR, f"frame of kind {kind} on a wrong stream")

    def _begin_data(self, data: bytes, start: int, length: int, flags: int, stream_id: int) -> int:
        """A DATA frame that is padded, empty or not complete yet; returns the position of its content."""
        padding = 0
        if flags & PADDED:
            padding = data[start] + 1 if length else 1
            if padding > length:
                raise Http2Error(H2Code.PROTOCOL_ERROR, "padding longer than its DATA frame")
            start += 1
        self._data_stream_id = stream_id
        self._data_is_end = bool(flags & END_STREAM)
        self._data_padding = padding
        self._data_left = length - padding
        if not self._data_left:
            if not self._data_is_end:
                self._sink.on_empty_data()
            self._end_data()
        return start

    def _end_data(self) -> None:
        """The content is complete: charge and skip the padding, end the stream."""
        padding = self._data_padding
        self._skip_left = padding - 1 if padding else 0
        self._sink.on_data(self._data_stream_id, b"", padding, is_end=self._data_is_end)

    def _continue(self, data: bytes, position: int, size: int) -> int:
        if self._skip_left:
            step = min(self._skip_left, size - position)
            self._skip_left -= step
            return position + step
        step = min(self._data_left, size - position)
        end = position + step
        self._data_left -= step
        part = data[position:end] if step < _VIEW_BYTES_MIN else memoryview(data)[position:end]
        if self._data_left or self._data_padding:
            self._sink.on_data(self._data_stream_id, part, step, is_end=False)
            if not self._data_left:
                self._end_data()
        else:
            self._sink.on_data(self._data_stream_id, part, step, is_end=self._data_is_end)
        return end

    def _whole(self, data: bytes, stream_id: int, start: int, end: int, size: int) -> int:
        """Hand on a message that is all here: its head from `start`, a small body in one unpadded frame, trailers.

        Returns the position after it, 0 if what follows the head is anything else.
        """
        end_of_head = end
        start_of_body = end + FRAME_HEAD_BYTES
        if start_of_body >= size:
            return 0
        high, low, kind, flags, body_stream_id = unpack_head(data, end)
        update = b""
        if kind == WINDOW_UPDATE and low == _UPDATE_BYTES and body_stream_id == stream_id and not self._is_client:
            # grpc-core opens the stream's window before the body; nothing of ours depends on which comes first.
            end = start_of_body + _UPDATE_BYTES
            update = data[start_of_body:end]
            start_of_body = end + FRAME_HEAD_BYTES
            if high or start_of_body >= size:
                return 0
            high, low, kind, flags, body_stream_id = unpack_head(data, end)
        end_of_body: int = start_of_body + low
        if (
            kind != DATA
            or body_stream_id != stream_id
            or high
            or not 0 < low <= self._body_bytes_max
            or end_of_body > size
        ):
            return 0
        if flags == END_STREAM and not self._is_client:
            self._sink.on_request_whole(stream_id, data[start:end_of_head], data[start_of_body:end_of_body])
            if update and not self._is_stopped:
                self._sink.on_frame(WINDOW_UPDATE, 0, stream_id, update)
            return end_of_body
        if flags or not self._is_client or end_of_body + FRAME_HEAD_BYTES >= size:
            return 0
        high, low, kind, flags, end_stream_id = unpack_head(data, end_of_body)
        start_of_end = end_of_body + FRAME_HEAD_BYTES
        end_of_all: int = start_of_end + low
        if (
            kind != HEADERS
            or flags != _END_BOTH
            or end_stream_id != stream_id
            or high
            or low > self._block_bytes_max
            or end_of_all > size
        ):
            return 0
        self._sink.on_reply_whole(
            stream_id, data[start:end_of_head], data[start_of_body:end_of_body], data[start_of_end:end_of_all]
        )
        return end_of_all

    def _on_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if flags & (PADDED | frames.HAS_PRIORITY):
            payload = _strip(payload, flags)
        if flags & END_HEADERS:
            self._sink.on_block(stream_id, payload, is_end=bool(flags & END_STREAM))
            return
        self._block_stream_id = stream_id
        self._block_parts = [payload]
        self._block_bytes = len(payload)
        self._block_frames = 0
        self._block_is_end = bool(flags & END_STREAM)

    def _on_continuation(self, flags: int, payload: bytes) -> None:
        if not self._block_stream_id:
            raise Http2Error(H2Code.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        self._block_parts.append(payload)
        self._block_bytes += len(payload)
        self._block_frames += 1
        if self._block_frames > self._limits.continuation_frames_max:
            raise Http2Error(H2Code.ENHANCE_YOUR_CALM, "too many CONTINUATION frames")
        if flags & END_HEADERS:
            stream_id, self._block_stream_id = self._block_stream_id, 0
            block = b"".join(self._block_parts)
            self._block_parts = []
            self._block_bytes = 0
            self._sink.on_block(stream_id, block, is_end=self._block_is_end)


def _strip(payload: bytes, flags: int) -> bytes:
    """A HEADERS payload without padding and (ignored) priority (RFC 9113 §6.2)."""
    start = 0
    end = len(payload)
    if flags & PADDED:
        if not payload:
            raise Http2Error(H2Code.FRAME_SIZE_ERROR, "padded HEADERS without a pad length")
        start = 1
        end -= payload[0]
    if flags & frames.HAS_PRIORITY:
        start += _PRIORITY_BYTES
        if start > len(payload):
            raise Http2Error(H2Code.FRAME_SIZE_ERROR, "HEADERS too short for its priority")
    if start > end:
        raise Http2Error(H2Code.PROTOCOL_ERROR, "padding longer than its HEADERS frame")
    return payload[start:end]
