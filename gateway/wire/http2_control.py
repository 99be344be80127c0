"""Owns the frames that carry no message: WINDOW_UPDATE, RST_STREAM, PING, SETTINGS, GOAWAY, PRIORITY (RFC 9113 §6).

Functions over a connection's state; the reader has checked lengths and streams. All may raise Http2Error.
"""

from typing import TYPE_CHECKING, Final

from gateway.wire import http2_frames as frames
from gateway.wire import http2_settings
from gateway.wire.http2_frames import H2Code, Http2Error, unpack_u32

if TYPE_CHECKING:
    from gateway.wire.http2 import Http2Connection

DRAIN_PING: Final = b"tollgone"
_TABLE_BYTES_DEFAULT: Final = 4096
_SIZE_UPDATE_ZERO: Final = b"\x20"


def on_frame(connection: "Http2Connection", kind: int, flags: int, stream_id: int, payload: bytes) -> None:
    """Act on one control frame."""
    if kind == frames.WINDOW_UPDATE:
        _on_window_update(connection, stream_id, unpack_u32(payload)[0] & frames.WINDOW_BYTES_MAX)
    elif kind == frames.RST_STREAM:
        _on_rst_stream(connection, stream_id, unpack_u32(payload)[0])
    elif kind == frames.PING:
        _on_ping(connection, flags, payload)
    elif kind == frames.SETTINGS:
        _on_settings(connection, flags, payload)
    elif kind == frames.GOAWAY:
        _on_goaway(connection, payload)
    elif kind == frames.PRIORITY:
        connection.guard.on_control_frame("PRIORITY frames")
    else:
        raise Http2Error(H2Code.PROTOCOL_ERROR, "PUSH_PROMISE is not accepted")


def _on_window_update(connection: "Http2Connection", stream_id: int, increment: int) -> None:
    send = connection.send
    connection.guard.on_window_update(send.data_frames)
    if stream_id == 0:
        if not increment:
            raise Http2Error(H2Code.PROTOCOL_ERROR, "WINDOW_UPDATE by 0")
        send.window_bytes += increment
        if send.window_bytes > frames.WINDOW_BYTES_MAX:
            raise Http2Error(H2Code.FLOW_CONTROL_ERROR, "connection window overflow")
        if increment < connection.limits.fragment_bytes_min and send.is_backlogged:
            connection.guard.on_control_frame("tiny window updates")
        send.pump()
        return
    stream = connection.streams.get(stream_id)
    if stream is None:
        if connection.is_idle(stream_id):
            raise Http2Error(H2Code.PROTOCOL_ERROR, "WINDOW_UPDATE on an idle stream")
        return
    if not increment:
        connection.stream_error(stream, H2Code.PROTOCOL_ERROR)
        return
    stream.send_window_bytes += increment
    if stream.send_window_bytes > frames.WINDOW_BYTES_MAX:
        connection.stream_error(stream, H2Code.FLOW_CONTROL_ERROR)
        return
    if stream.backlog:
        if increment < connection.limits.fragment_bytes_min:
            connection.guard.on_control_frame("tiny window updates")
        if stream.send_window_bytes > 0:
            send.ring(stream)
            send.pump()


def _on_rst_stream(connection: "Http2Connection", stream_id: int, code: int) -> None:
    stream = connection.streams.get(stream_id)
    if stream is None:
        if connection.is_idle(stream_id):
            raise Http2Error(H2Code.PROTOCOL_ERROR, "RST_STREAM on an idle stream")
        connection.guard.on_control_frame("RST_STREAM frames on closed streams")
        return
    if not stream.is_local_closed:
        # May raise: the stream must still be listed then, or its call and bytes would outlive the connection.
        connection.guard.on_reset()
    del connection.streams[stream_id]
    connection.forget(stream, is_ours=False)
    connection.handler.on_reset(stream, code, is_processed=code != H2Code.REFUSED_STREAM)


def _on_ping(connection: "Http2Connection", flags: int, payload: bytes) -> None:
    connection.guard.on_control_frame("PING frames")
    if not flags & frames.ACK:
        connection.send.out.append(frames.ping(payload, is_ack=True))
        return
    connection.ping_acks += 1
    if payload == DRAIN_PING:
        connection.finish_drain()


def _on_settings(connection: "Http2Connection", flags: int, payload: bytes) -> None:
    connection.guard.on_control_frame("SETTINGS frames")
    if flags & frames.ACK:
        if payload:
            raise Http2Error(H2Code.FRAME_SIZE_ERROR, "SETTINGS acknowledgement with a payload")
        connection.on_acknowledged()
        return
    send = connection.send
    for name, value in http2_settings.parse(payload, connection.limits, is_client=connection.is_client):
        if name == frames.INITIAL_WINDOW_SIZE:
            _move_windows(connection, value - send.initial_window_bytes)
            send.initial_window_bytes = value
        elif name == frames.MAX_FRAME_SIZE:
            # Larger frames than our own limit would only make streams wait for each other.
            send.frame_bytes_max = max(frames.FRAME_BYTES_DEFAULT, min(value, connection.limits.frame_bytes_max))
        elif name == frames.MAX_CONCURRENT_STREAMS:
            connection.peer_streams_max = value
        elif name == frames.HEADER_TABLE_SIZE and value < _TABLE_BYTES_DEFAULT and not send.is_table_reduced:
            send.is_table_reduced = True
            send.block_prefix = _SIZE_UPDATE_ZERO
    send.out.append(frames.SETTINGS_ACK)
    connection.has_settings = True
    connection.handler.on_settings()
    send.pump()


def _move_windows(connection: "Http2Connection", delta: int) -> None:
    """SETTINGS_INITIAL_WINDOW_SIZE moves the windows of all open streams (RFC 9113 §6.9.2); they may go below 0."""
    for stream in connection.streams.values():
        stream.send_window_bytes += delta
        if stream.send_window_bytes > frames.WINDOW_BYTES_MAX:
            raise Http2Error(H2Code.FLOW_CONTROL_ERROR, "stream window overflow")
        if stream.send_window_bytes > 0:
            connection.send.ring(stream)


def _on_goaway(connection: "Http2Connection", payload: bytes) -> None:
    if len(payload) < 8:
        raise Http2Error(H2Code.FRAME_SIZE_ERROR, "GOAWAY shorter than 8 bytes")
    connection.guard.on_control_frame("GOAWAY frames")
    last_id = unpack_u32(payload)[0] & frames.STREAM_ID_MAX
    connection.is_peer_going = True
    if connection.is_client:
        for stream in [stream for stream in connection.streams.values() if stream.id > last_id]:
            if connection.streams.pop(stream.id, None) is not None:
                connection.forget(stream, is_ours=True)
                connection.handler.on_reset(stream, H2Code.REFUSED_STREAM, is_processed=False)
    connection.handler.on_goaway()
