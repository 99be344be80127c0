"""Listening: protocols told apart by their first bytes or ALPN, limits, unix sockets, drain. Real sockets, loopback."""

import asyncio
import datetime
import os
import socket
import ssl
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gateway.net.exchange import Exchange
from gateway.net.listener import Listener, h2_limits_of, h2_wire_limits_of
from gateway.settings import Limits
from gateway.wire import http2_frames as frames
from tests.leaks import assert_none_left, held
from tests.unit.net.fakes import RecordingApp
from tests.unit.wire.h2_tools import GRPC, PLAIN_SETTINGS, data, head, parse

GET = b"GET /g HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
LIMIT_S = 60.0


class WaitingApp(RecordingApp):
    """A recording application whose events can be awaited."""

    def __init__(self) -> None:
        super().__init__()
        self.changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    def on_end(self, exchange: Exchange) -> None:
        super().on_end(exchange)
        self._tell()

    def on_abort(self, exchange: Exchange) -> None:
        super().on_abort(exchange)
        self._tell()

    def _tell(self) -> None:
        self._tasks.add(asyncio.get_running_loop().create_task(self._notify()))

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def until(self, is_so: Callable[[], bool]) -> None:
        async with self.changed:
            await self.changed.wait_for(is_so)


class Scene:
    """A listener on a free port of loopback, and clients of it."""

    def __init__(self, limits: Limits, tls: ssl.SSLContext | None) -> None:
        self.app = WaitingApp()
        self.app.reply_at_end = (200, b"ok")
        self.listener = Listener(self.app, limits, asyncio.get_running_loop(), tls=tls)
        self.port = 0
        self._writers: list[asyncio.StreamWriter] = []

    async def open(self) -> None:
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        self.port = sock.getsockname()[1]
        await self.listener.listen_socket(sock)

    async def connect(self, tls: ssl.SSLContext | None = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=tls, server_hostname="localhost" if tls else None
        )
        self._writers.append(writer)
        return reader, writer

    async def close(self) -> None:
        self.listener.cut_all()
        for writer in self._writers:
            writer.transport.abort()
        while self.listener.connection_count:
            await asyncio.sleep(0)
        # What was told to close does so in the loop's next turns.
        for _ in range(5):
            await asyncio.sleep(0)


def play(
    scene: Callable[[Scene], Awaitable[None]], limits: Limits | None = None, tls: ssl.SSLContext | None = None
) -> None:
    async def run() -> None:
        made = Scene(limits or Limits(), tls)
        async with asyncio.timeout(LIMIT_S):
            await made.open()
            try:
                await scene(made)
            finally:
                await made.close()

    asyncio.run(run())


async def is_cut(reader: asyncio.StreamReader) -> bool:
    """Whether the other side ends the connection without another byte."""
    try:
        return await reader.read() == b""
    except ConnectionResetError:
        return True


async def read_frames(reader: asyncio.StreamReader, wanted: int) -> list[int]:
    """Kinds of frames until one of `wanted` came."""
    kinds: list[int] = []
    while wanted not in kinds:
        raw = await reader.readexactly(9)
        raw += await reader.readexactly(int.from_bytes(raw[:3], "big"))
        kinds += [kind for kind, *_ in parse(raw)]
    return kinds


@pytest.mark.parametrize("cut", range(1, 8))
def test_http1_is_recognised_however_its_first_bytes_come(cut: int) -> None:
    async def scene(made: Scene) -> None:
        reader, writer = await made.connect()
        for piece in (POST[:cut], POST[cut:]):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        assert await reader.readexactly(len(OK)) == OK
        assert (len(made.listener.h1_connections), made.listener.connection_count) == (1, 1)

    play(scene)


@pytest.mark.parametrize("cut", [1, 2, 3, 24, 30])
def test_http2_with_prior_knowledge_is_recognised(cut: int) -> None:
    async def scene(made: Scene) -> None:
        reader, writer = await made.connect()
        raw = frames.PREFACE + PLAIN_SETTINGS + head(1, GRPC) + data(1, b"abc", is_end=True)
        for piece in (raw[:cut], raw[cut:]):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        assert frames.SETTINGS in await read_frames(reader, frames.DATA)
        assert made.app.bodies == [b"abc"]
        assert made.app.exchanges[0].is_h2
        assert len(made.listener.h2_connections) == 1

    play(scene)


def test_small_replies_leave_at_once() -> None:
    async def scene(made: Scene) -> None:
        reader, writer = await made.connect()
        writer.write(GET)
        await reader.readexactly(len(OK))
        (connection,) = made.listener.h1_connections
        sock = connection._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    play(scene)


def test_connections_beyond_the_limit_are_closed_and_room_is_given_back() -> None:
    async def scene(made: Scene) -> None:
        kept = [await made.connect() for _ in range(2)]
        for reader, writer in kept:
            writer.write(GET)
            assert await reader.readexactly(len(OK)) == OK
        refused, _ = await made.connect()
        assert await is_cut(refused)
        kept[0][1].close()
        while made.listener.connection_count > 1:
            await asyncio.sleep(0)
        reader, writer = await made.connect()
        writer.write(GET)
        assert await reader.readexactly(len(OK)) == OK

    play(scene, Limits(connections_max=2))


def test_silent_connections_count_and_are_cut_when_their_time_is_over() -> None:
    async def scene(made: Scene) -> None:
        reader, _ = await made.connect()
        while not made.listener.new_connections:
            await asyncio.sleep(0)
        (sniffer,) = made.listener.new_connections
        now_s = made.listener.loop.time()
        sniffer.sweep(now_s + 4)
        assert made.listener.connection_count == 1
        sniffer.sweep(now_s + 6)
        assert await is_cut(reader)
        while made.listener.connection_count:
            await asyncio.sleep(0)

    play(scene, Limits(head_s=5))


def test_a_connection_that_says_nothing_and_goes_is_forgotten() -> None:
    async def scene(made: Scene) -> None:
        _, writer = await made.connect()
        writer.write(b"P")
        while not made.listener.new_connections:
            await asyncio.sleep(0)
        writer.close()
        while made.listener.connection_count:
            await asyncio.sleep(0)
        assert made.app.exchanges == []

    play(scene)


def test_a_drain_closes_idle_connections_and_accepts_no_more() -> None:
    async def scene(made: Scene) -> None:
        reader, writer = await made.connect()
        writer.write(GET)
        await reader.readexactly(len(OK))
        await made.listener.drain(LIMIT_S)
        assert await is_cut(reader)
        with pytest.raises(OSError):
            await made.connect()

    play(scene)


def test_a_drain_waits_for_the_call_in_flight_and_its_reply_closes() -> None:
    async def scene(made: Scene) -> None:
        made.app.reply_at_end = None
        reader, writer = await made.connect()
        writer.write(POST)
        await made.app.until(lambda: len(made.app.ended) == 1)
        draining = asyncio.create_task(made.listener.drain(LIMIT_S))
        await asyncio.sleep(0)
        assert not draining.done()
        made.app.exchanges[0].reply(200, [], b"late")
        answer = await reader.read()
        assert answer == b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\nlate"
        await draining
        assert made.app.aborted == []

    play(scene)


def test_an_http2_drain_says_goaway_and_finishes_the_streams() -> None:
    async def scene(made: Scene) -> None:
        made.app.reply_at_end = None
        reader, writer = await made.connect()
        writer.write(frames.PREFACE + PLAIN_SETTINGS + head(1, GRPC) + data(1, b"abc", is_end=True))
        await made.app.until(lambda: len(made.app.ended) == 1)
        draining = asyncio.create_task(made.listener.drain(LIMIT_S))
        await read_frames(reader, frames.GOAWAY)
        made.app.exchanges[0].reply(200, [(b"content-type", b"application/grpc")], b"late", [(b"grpc-status", b"0")])
        assert frames.DATA in await read_frames(reader, frames.DATA)
        await draining

    play(scene)


def test_what_outlives_the_drain_is_cut_and_told() -> None:
    async def scene(made: Scene) -> None:
        made.app.reply_at_end = None
        reader, writer = await made.connect()
        writer.write(POST)
        await made.app.until(lambda: len(made.app.ended) == 1)
        await made.listener.drain(0.0)
        assert await is_cut(reader)
        await made.app.until(lambda: made.app.aborted == made.app.exchanges)

    play(scene)


def test_a_unix_socket_is_ours_alone_and_replaces_a_stale_one(tmp_path: Path) -> None:
    path = tmp_path / "engine.sock"

    async def scene(made: Scene) -> None:
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(path))
        await made.listener.listen_unix(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert os.listdir(tmp_path) == ["engine.sock"]
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(GET)
        assert await reader.readexactly(len(OK)) == OK
        writer.transport.abort()

    play(scene)


def test_nothing_is_left_after_many_connections() -> None:
    async def scene(made: Scene) -> None:
        async def visit() -> None:
            reader, writer = await made.connect()
            writer.write(GET)
            await reader.readexactly(len(OK))
            writer.transport.abort()
            while made.listener.connection_count:
                await asyncio.sleep(0)

        await visit()
        before = held()
        for _ in range(50):
            await visit()
        await asyncio.sleep(0)
        assert_none_left(before, 50)

    play(scene)


def contexts(folder: Path) -> tuple[ssl.SSLContext, Callable[[list[str]], ssl.SSLContext]]:
    """(the server's, what makes a client's for some protocols) with a fresh certificate of localhost."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    chain = folder / "chain.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    chain.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(chain)
    server.set_alpn_protocols(["h2", "http/1.1"])

    def client(protocols: list[str]) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(chain))
        context.set_alpn_protocols(protocols)
        return context

    return server, client


def test_alpn_chooses_the_protocol_under_tls(tmp_path: Path) -> None:
    server, client = contexts(tmp_path)

    async def scene(made: Scene) -> None:
        reader, writer = await made.connect(client(["http/1.1"]))
        writer.write(GET)
        assert await reader.readexactly(len(OK)) == OK
        reader, writer = await made.connect(client(["h2"]))
        # The server speaks first: it knows the protocol before a byte came.
        assert frames.SETTINGS in await read_frames(reader, frames.SETTINGS)
        writer.write(frames.PREFACE + PLAIN_SETTINGS + head(1, GRPC) + data(1, b"abc", is_end=True))
        assert frames.DATA in await read_frames(reader, frames.DATA)
        assert (len(made.listener.h1_connections), len(made.listener.h2_connections)) == (1, 1)

    play(scene, tls=server)


def test_plain_bytes_on_a_tls_port_are_no_request(tmp_path: Path) -> None:
    server, _ = contexts(tmp_path)

    async def scene(made: Scene) -> None:
        reader, writer = await made.connect()
        writer.write(GET)
        assert OK not in await reader.read()
        assert made.app.exchanges == []

    play(scene, tls=server)


def test_limits_reach_both_protocols() -> None:
    limits = Limits(
        h2_streams_max=7, head_bytes_max=11, headers_max=13, stream_buffer_bytes_max=400, head_s=3, body_idle_s=5
    )
    wire = h2_wire_limits_of(limits)
    assert (wire.streams_max, wire.header_list_bytes_max, wire.headers_max) == (7, 11, 13)
    assert (wire.send_queue_high_bytes, wire.send_queue_low_bytes) == (400, 100)
    shell = h2_limits_of(limits)
    assert (shell.head_s, shell.body_idle_s, shell.send_stall_s) == (3, 5, 5)
