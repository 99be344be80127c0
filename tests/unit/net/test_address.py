"""Addresses of endpoints, and connections to them."""

import asyncio
import socket
from pathlib import Path

import pytest

from gateway.errors import SettingsError
from gateway.net.address import open_connection, parse_address


@pytest.mark.parametrize(
    ("text", "path", "host", "port", "authority"),
    [
        ("unix:///run/engine.sock", "/run/engine.sock", "", 0, b"localhost"),
        ("http://127.0.0.1:8000", None, "127.0.0.1", 8000, b"127.0.0.1:8000"),
        ("http://triton:80/", None, "triton", 80, b"triton:80"),
        ("grpc://[::1]:8001", None, "::1", 8001, b"[::1]:8001"),
    ],
)
def test_the_three_forms(text: str, path: str | None, host: str, port: int, authority: bytes) -> None:
    address = parse_address(text)
    assert (address.path, address.host, address.port, address.authority) == (path, host, port, authority)
    assert address.text == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "engine.sock",
        "/run/engine.sock",
        "unix://",
        "unix://host/path",
        "https://h:1",
        "http://h",
        "http://:80",
        "http://h:port",
        "http://h:99999",
        "http://h:80/path",
        "grpc://",
        "http://[::1:80",
        "http://user:secret@h:80",
        "http://h:80?x=1",
        "http://h:80#f",
        "http://h\u00e9:80",
        "http://h:0",
    ],
)
def test_anything_else_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(SettingsError, match="http://host:port"):
        parse_address(text)


class Hello(asyncio.Protocol):
    """Keeps what arrives until the other side closes."""

    def __init__(self) -> None:
        self.data = b""
        self.closed = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.data += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set_result(None)


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"hello")
    await writer.drain()
    writer.close()
    await writer.wait_closed()


def test_a_tcp_connection_sends_small_writes_at_once() -> None:
    async def run() -> None:
        server = await asyncio.start_server(greet, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        address = parse_address(f"http://127.0.0.1:{port}")
        async with server:
            transport, protocol = await open_connection(asyncio.get_running_loop(), address, Hello)
            sock = transport.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            await protocol.closed
            assert protocol.data == b"hello"

    asyncio.run(run())


def test_a_unix_connection(tmp_path: Path) -> None:
    async def run() -> None:
        path = tmp_path / "s"
        server = await asyncio.start_unix_server(greet, path)
        async with server:
            _, protocol = await open_connection(asyncio.get_running_loop(), parse_address(f"unix://{path}"), Hello)
            await protocol.closed
            assert protocol.data == b"hello"

    asyncio.run(run())


def test_nobody_there_is_an_os_error(tmp_path: Path) -> None:
    async def run() -> None:
        with pytest.raises(OSError):
            await open_connection(asyncio.get_running_loop(), parse_address(f"unix://{tmp_path}/nobody"), Hello)

    asyncio.run(run())
