"""HTTP/1.1 by hand over a plain socket: to send what no client sends, and to see exactly what comes back."""

import json
import socket
from dataclasses import dataclass
from types import TracebackType
from typing import Any

WAIT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One response. Header names are lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return str(self.json()["code"])


class Connection:
    """A connection that reads replies one by one. Used as a context."""

    def __init__(self, port: int, *, receive_bytes: int | None = None) -> None:
        self.sock = socket.socket()
        if receive_bytes is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.sock.settimeout(WAIT_S)
        self.sock.connect(("127.0.0.1", port))
        self._data = bytearray()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def _more(self) -> bool:
        chunk = self.sock.recv(1 << 16)
        self._data += chunk
        return bool(chunk)

    def read_head(self) -> tuple[int, dict[str, str]]:
        """Status and headers of the next response; 100s included. Raises ConnectionError at the stream's end."""
        while b"\r\n\r\n" not in self._data:
            if not self._more():
                raise ConnectionError(f"closed after {bytes(self._data[:200])!r}")
        head, _, rest = bytes(self._data).partition(b"\r\n\r\n")
        self._data = bytearray(rest)
        first, *lines = head.decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines)
        return int(first.split(" ")[1]), {name.lower(): value.strip() for name, _, value in pairs}

    def read(self) -> Reply:
        """The next final response with its whole body."""
        status, headers = self.read_head()
        while status == 100:
            status, headers = self.read_head()
        size = int(headers["content-length"])
        while len(self._data) < size:
            if not self._more():
                raise ConnectionError("closed inside a body")
        body = bytes(self._data[:size])
        del self._data[:size]
        return Reply(status=status, headers=headers, body=body)

    @property
    def buffered(self) -> int:
        """Bytes received behind what was read."""
        return len(self._data)

    def is_closed(self) -> bool:
        """Whether the peer ended the stream; waits for it to say so or to send something."""
        try:
            return not self._more()
        except ConnectionResetError:
            return True

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.sock.close()


def post(path: str, key: str, body: bytes, *lines: str) -> bytes:
    """A POST with its length and a key ("": none), and further header lines."""
    head = [f"POST {path} HTTP/1.1", "host: gateway", f"content-length: {len(body)}", *lines]
    if key:
        head.append(f"authorization: Bearer {key}")
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


def infer_body(rows: int = 1, size: int = 64) -> bytes:
    """JSON for `mlp`."""
    tensor = {"name": "x", "shape": [rows, size], "datatype": "FP32", "data": [0.5] * (rows * size)}
    return json.dumps({"inputs": [tensor]}).encode()
