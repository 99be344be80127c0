"""Owns the frames between the engine and a Python step's process: a JSON head and raw tensors over a socket pair.

Used on both sides, so it imports nothing but the standard library, and trusts neither side: every length is
bounded before memory is taken. A frame: head length (u32), blob length (u64), head, blob; tensors of the head's
`[name, datatype, shape, bytes]` lists follow one another in the blob as the binary tensor extension packs them.
"""

import json
import socket
import struct
from collections.abc import Sequence
from typing import Any, Final

_PREFIX: Final = struct.Struct("<IQ")
HEAD_BYTES_MAX: Final = 16 << 20
BLOB_BYTES_MAX: Final = 1 << 30
_IOVEC_MAX: Final = 512


class FrameError(Exception):
    """The other side is gone, or does not speak frames."""


def send_frame(sock: socket.socket, head: dict[str, Any], blobs: Sequence[bytes | memoryview]) -> None:
    """Send one frame, blocking up to the socket's time limit.

    Raises:
        OSError: the other side is gone or does not read (TimeoutError).
        FrameError: the frame is larger than the other side would take.
    """
    text = json.dumps(head, separators=(",", ":")).encode()
    size = sum(len(blob) for blob in blobs)
    if len(text) > HEAD_BYTES_MAX or size > BLOB_BYTES_MAX:
        raise FrameError(f"frame of {len(text)} + {size} bytes is too large")
    pending = [memoryview(_PREFIX.pack(len(text), size) + text), *(memoryview(blob) for blob in blobs if len(blob))]
    while pending:
        sent = sock.sendmsg(pending[:_IOVEC_MAX])
        while pending and sent >= len(pending[0]):
            sent -= len(pending[0])
            del pending[0]
        if sent:
            pending[0] = pending[0][sent:]


def receive_frame(sock: socket.socket) -> tuple[dict[str, Any], memoryview]:
    """Receive one frame; the blob is writable memory of its own.

    Raises:
        OSError: nothing came within the socket's time limit (TimeoutError), or the connection broke.
        FrameError: the other side has closed, or sent no frame.
    """
    head_size, blob_size = _PREFIX.unpack(_receive(sock, _PREFIX.size))
    if head_size > HEAD_BYTES_MAX or blob_size > BLOB_BYTES_MAX:
        raise FrameError(f"frame of {head_size} + {blob_size} bytes is too large")
    text = _receive(sock, head_size)
    blob = _receive(sock, blob_size)
    try:
        head = json.loads(bytes(text))
    except ValueError as error:
        raise FrameError("frame without a JSON head") from error
    if not isinstance(head, dict):
        raise FrameError("frame without a JSON object")
    return head, blob


def _receive(sock: socket.socket, size: int) -> memoryview:
    view = memoryview(bytearray(size))
    have = 0
    while have < size:
        count = sock.recv_into(view[have:])
        if count == 0:
            raise FrameError("the other side has closed")
        have += count
    return view
