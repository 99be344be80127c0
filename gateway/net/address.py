"""Owns endpoint addresses: their text forms and how a connection to one is opened."""

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

from gateway.errors import SettingsError

P = TypeVar("P", bound=asyncio.Protocol)


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """`unix:///path`, `http://host:port` or `grpc://host:port`. `authority` is the Host / :authority to send."""

    text: str
    path: str | None
    host: str
    port: int
    authority: bytes


def parse_address(text: str) -> Address:
    """Raises SettingsError when `text` is none of the forms above."""
    refusal = SettingsError(f"address {text!r}: use unix:///path, http://host:port or grpc://host:port")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise refusal from None
    if parts.scheme == "unix" and parts.path and not parts.netloc:
        return Address(text=text, path=parts.path, host="", port=0, authority=b"localhost")
    is_plain = text.isascii() and "@" not in parts.netloc and not parts.query and not parts.fragment
    if not is_plain or parts.scheme not in ("http", "grpc") or not parts.hostname or not port:
        raise refusal
    if parts.path not in ("", "/"):
        raise refusal
    return Address(text=text, path=None, host=parts.hostname, port=port, authority=parts.netloc.encode("ascii"))


async def open_connection(
    loop: asyncio.AbstractEventLoop, address: Address, factory: Callable[[], P]
) -> tuple[asyncio.Transport, P]:
    """Connect to `address`; TCP_NODELAY is set. Raises OSError."""
    if address.path is not None:
        return await loop.create_unix_connection(factory, address.path)
    transport, protocol = await loop.create_connection(factory, address.host, address.port)
    sock: socket.socket = transport.get_extra_info("socket")
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return transport, protocol
