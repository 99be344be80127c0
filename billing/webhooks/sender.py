"""Owns one POST to a pinned address: no redirects, no proxies, bounded in time and size. Blocking."""

import http.client
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from billing.webhooks.targets import Target

TOTAL_S: Final = 10.0
CONNECT_S: Final = 5.0
REPLY_BYTES_MAX: Final = 4_096
BODY_BYTES_MAX: Final = 64 * 1024

Connect = Callable[[tuple[str, int], float], socket.socket]


class Delivered(NamedTuple):
    """What came of an attempt. `status` 0: no answer; `detail` says why, for the delivery log."""

    status: int
    detail: str
    took_ms: int

    @property
    def is_ok(self) -> bool:
        return 200 <= self.status < 300


def post(target: Target, headers: Mapping[str, str], body: bytes, *, tls: ssl.SSLContext | None = None) -> Delivered:
    """Send `body` to `target.address`; TLS and Host name `target.host`. Anything but 2xx is a failure, 3xx included.

    Never raises for what the other side does. `tls` replaces the system's trust, for tests.
    """
    begin = time.monotonic()
    try:
        status, detail = _exchange(target, headers, body, tls, begin + TOTAL_S)
    except ssl.SSLError as error:
        status, detail = 0, f"tls: {error.reason or 'failed'}"
    except TimeoutError:
        status, detail = 0, "timed out"
    except (OSError, http.client.HTTPException) as error:
        status, detail = 0, f"connection: {type(error).__name__}"
    return Delivered(status, detail, int((time.monotonic() - begin) * 1_000))


def _exchange(
    target: Target, headers: Mapping[str, str], body: bytes, tls: ssl.SSLContext | None, deadline_s: float
) -> tuple[int, str]:
    raw = socket.create_connection((target.address, target.port), CONNECT_S)
    try:
        sock: socket.socket = raw
        if target.scheme == "https":
            sock = (tls or ssl.create_default_context()).wrap_socket(raw, server_hostname=target.host)
        raw = sock
        connection = http.client.HTTPConnection(target.host, target.port)
        # Our own socket: the library would look the name up again.
        connection.sock = sock
        _limit(sock, deadline_s)
        connection.request("POST", target.path, body, {**headers, "content-length": str(len(body))})
        _limit(sock, deadline_s)
        response = connection.getresponse()
        detail = _read(response, sock, deadline_s)
        return response.status, detail
    finally:
        raw.close()


def _read(response: http.client.HTTPResponse, sock: socket.socket, deadline_s: float) -> str:
    """The beginning of the reply, for the log; a reply that drips is cut at the deadline."""
    data = b""
    while len(data) < REPLY_BYTES_MAX:
        _limit(sock, deadline_s)
        piece = response.read1(REPLY_BYTES_MAX - len(data))
        if not piece:
            break
        data += piece
    return data.decode("utf-8", "replace")


def _limit(sock: socket.socket, deadline_s: float) -> None:
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    sock.settimeout(left_s)
