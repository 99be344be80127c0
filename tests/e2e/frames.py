"""HTTP/2 by hand over a plain socket: frames that no client sends, and what comes back (RFC 9113)."""

import socket
import struct
from types import TracebackType
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, WITH_PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = 0x0, 0x1, 0x2, 0x3
STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM, COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 0x5, 0x6, 0x7, 0x9, 0xB
WAIT_S: Final = 60.0


def frame(kind: int, flags: int, stream: int, payload: bytes = b"", *, length: int | None = None) -> bytes:
    """One frame; `length` may lie."""
    size = len(payload) if length is None else length
    return struct.pack(">I", size)[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def block(*fields: tuple[str, str]) -> bytes:
    """A header block of literals without indexing (RFC 7541 §6.2.2); short names and values only."""
    parts = []
    for name, value in fields:
        parts.append(b"\0" + _text(name.encode("latin-1")) + _text(value.encode("latin-1")))
    return b"".join(parts)


def _text(data: bytes) -> bytes:
    if len(data) < 127:
        return bytes([len(data)]) + data
    rest = len(data) - 127
    out = bytearray([127])
    while rest >= 128:
        out.append(rest & 127 | 128)
        rest >>= 7
    out.append(rest)
    return bytes(out) + data


def request(path: str = "/v2/health/live", *fields: tuple[str, str], method: str = "GET") -> bytes:
    """The block of a request."""
    own = (":method", method), (":scheme", "http"), (":path", path), (":authority", "gateway")
    return block(*own, *fields)


class H2:
    """A connection whose preface and settings are sent. Reads frames until an end that the test waits for."""

    def __init__(self, port: int, *, preface: bytes | None = None) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), WAIT_S)
        self._data = b""
        #: (kind, flags, stream, payload) of everything that came.
        self.frames: list[tuple[int, int, int, bytes]] = []
        self.send(PREFACE + frame(SETTINGS, 0, 0) if preface is None else preface)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def try_send(self, data: bytes) -> None:
        """The peer may have closed already: what it said counts, not whether it listens on."""
        try:
            self.sock.sendall(data)
        except ConnectionError:
            return

    def _read_frame(self) -> tuple[int, int, int, bytes] | None:
        while len(self._data) < 9 or len(self._data) < 9 + int.from_bytes(self._data[:3], "big"):
            try:
                chunk = self.sock.recv(1 << 16)
            except ConnectionResetError:
                return None
            if not chunk:
                return None
            self._data += chunk
        size = int.from_bytes(self._data[:3], "big")
        kind, flags = self._data[3], self._data[4]
        stream = int.from_bytes(self._data[5:9], "big") & 0x7FFFFFFF
        found = kind, flags, stream, self._data[9 : 9 + size]
        self._data = self._data[9 + size :]
        self.frames.append(found)
        return found

    def goaway(self) -> int | None:
        """Read to the stream's end; the error code of the last GOAWAY, None where there was none."""
        while self._read_frame() is not None:
            pass
        codes = [int.from_bytes(payload[4:8], "big") for kind, _, _, payload in self.frames if kind == GOAWAY]
        return codes[-1] if codes else None

    def outcome(self, stream: int) -> tuple[str, int]:
        """How `stream` ended: ("reset", code), ("goaway", code), or ("answered", HTTP status)."""
        status = 0
        while (found := self._read_frame()) is not None:
            kind, flags, number, payload = found
            if kind == GOAWAY and int.from_bytes(payload[4:8], "big"):
                return "goaway", int.from_bytes(payload[4:8], "big")
            if number != stream:
                continue
            if kind == RST_STREAM:
                return "reset", int.from_bytes(payload, "big")
            if kind == HEADERS and not status:
                # Blocks of ours begin with :status; indexed (RFC 7541 Appendix A) or as a literal with its digits.
                status = _status_of(payload)
            if kind in (HEADERS, DATA) and flags & END_STREAM:
                return "answered", status
        return "closed", 0

    def is_alive(self) -> bool:
        """A PING is answered."""
        self.send(frame(PING, 0, 0, b"alive???"))
        while (found := self._read_frame()) is not None:
            if found[0] == PING and found[1] & ACK and found[3] == b"alive???":
                return True
        return False

    def __enter__(self) -> "H2":
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.sock.close()


def _status_of(payload: bytes) -> int:
    from hpack import Decoder

    return int(dict(Decoder().decode(payload, raw=True))[b":status"])
