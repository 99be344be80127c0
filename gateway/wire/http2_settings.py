"""Owns SETTINGS: what we announce and how a peer's are read (RFC 9113 §6.5)."""

from typing import Final

from gateway.wire import http2_frames as frames
from gateway.wire.http2_frames import H2Code, Http2Error, Http2Limits, unpack_settings

_ENTRY_BYTES: Final = 6


def announced(limits: Http2Limits, *, is_client: bool) -> bytes:
    """Our SETTINGS frame and the connection window beyond its default."""
    pairs = [
        # No dynamic table: blocks become stateless and can be remembered by their bytes.
        (frames.HEADER_TABLE_SIZE, 0),
        (frames.INITIAL_WINDOW_SIZE, limits.stream_window_bytes),
        (frames.MAX_FRAME_SIZE, limits.frame_bytes_max),
        (frames.MAX_HEADER_LIST_SIZE, limits.header_list_bytes_max),
    ]
    if is_client:
        pairs.append((frames.ENABLE_PUSH, 0))
    else:
        pairs.append((frames.MAX_CONCURRENT_STREAMS, limits.streams_max))
    increment = limits.connection_window_bytes - frames.WINDOW_BYTES_DEFAULT
    return frames.settings(pairs) + (frames.window_update(0, increment) if increment > 0 else b"")


def parse(payload: bytes, limits: Http2Limits, *, is_client: bool) -> list[tuple[int, int]]:
    """(name, value) pairs in order, values checked, unknown names kept. Raises Http2Error."""
    if len(payload) % _ENTRY_BYTES:
        raise Http2Error(H2Code.FRAME_SIZE_ERROR, "SETTINGS length is not a multiple of 6")
    if len(payload) > limits.settings_entries_max * _ENTRY_BYTES:
        raise Http2Error(H2Code.ENHANCE_YOUR_CALM, "too many entries in SETTINGS")
    pairs = list(unpack_settings(payload))
    for name, value in pairs:
        if name == frames.ENABLE_PUSH and (value > 1 or (is_client and value)):
            raise Http2Error(H2Code.PROTOCOL_ERROR, "invalid SETTINGS_ENABLE_PUSH")
        if name == frames.INITIAL_WINDOW_SIZE and value > frames.WINDOW_BYTES_MAX:
            raise Http2Error(H2Code.FLOW_CONTROL_ERROR, "invalid SETTINGS_INITIAL_WINDOW_SIZE")
        if name == frames.MAX_FRAME_SIZE and not frames.FRAME_BYTES_DEFAULT <= value <= frames.FRAME_BYTES_MAX:
            raise Http2Error(H2Code.PROTOCOL_ERROR, "invalid SETTINGS_MAX_FRAME_SIZE")
    return pairs
