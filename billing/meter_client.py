"""Owns the meter's question-and-answer framing (u32 little-endian length, then msgpack) and its blocking client.

Requests: {"op": "counts", "windows": [[tenant, since_ns], ...]} → {"counts": [...]}; {"op": "status"} → figures;
{"op": "flush"} → {"posted": n} once everything readable at that time is posted. Refusal: {"error": {code, message}}.
{"op": "add_prices", "book": {...}} → {"version": n}.
{"op": "money", "verb": v, "operation_id": id, "body": {...}} → {"answer": ...}: a money command (billing.invoices).
"""

import socket
import struct
from pathlib import Path
from typing import Any, Final

import msgspec

FRAME_BYTES_MAX: Final = 1024 * 1024
SOCKET_NAME: Final = "run/meter.sock"
LENGTH: Final = struct.Struct("<I")


class MeterError(Exception):
    """The meter cannot be reached, or refused; the message says which. `code` is "unreachable" or the meter's own."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def encode_frame(message: dict[str, Any]) -> bytes:
    """One frame. Raises MeterError when it is longer than FRAME_BYTES_MAX."""
    body = msgspec.msgpack.encode(message)
    if len(body) > FRAME_BYTES_MAX:
        raise MeterError("frame_too_large", f"a frame of {len(body)} bytes is over {FRAME_BYTES_MAX}")
    return LENGTH.pack(len(body)) + body


def decode_body(body: bytes) -> dict[str, Any]:
    """The message of one frame. Raises MeterError for anything but a msgpack map."""
    try:
        return msgspec.msgpack.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MeterError("bad_frame", f"not a msgpack map: {error}") from error


def ask_meter(socket_path: Path, request: dict[str, Any], *, timeout_s: float = 30.0) -> dict[str, Any]:
    """One question to the meter at `socket_path`; blocks up to `timeout_s`. Raises MeterError."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_s)
            connection.connect(str(socket_path))
            connection.sendall(encode_frame(request))
            (length,) = LENGTH.unpack(_read_exactly(connection, LENGTH.size))
            reply = decode_body(_read_exactly(connection, min(length, FRAME_BYTES_MAX)))
    except OSError as error:
        raise MeterError("unreachable", f"the meter does not answer at {socket_path.name}: {error}") from error
    if "error" in reply:
        raise MeterError(str(reply["error"]["code"]), str(reply["error"]["message"]))
    return reply


def _read_exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = connection.recv(size - len(data))
        if not chunk:
            raise ConnectionResetError("closed in the middle of an answer")
        data += chunk
    return data
