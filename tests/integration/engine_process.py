"""The engine as its own process, and a relay by which clients that know only TCP reach its unix socket."""

import asyncio
import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path


class EngineProcess:
    """A running engine; `log` is what it wrote to standard error."""

    def __init__(self, process: "subprocess.Popen[bytes]", path: Path, log: Path) -> None:
        self.process = process
        self.path = path
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text()

    def get(self, target: str, *, method: str = "GET", body: bytes | None = None) -> tuple[int, bytes]:
        """One call over the unix socket."""
        connection = http.client.HTTPConnection("engine", timeout=30)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(60)
        connection.sock.connect(str(self.path))
        with contextlib.closing(connection):
            connection.request(method, target, body)
            reply = connection.getresponse()
            return reply.status, reply.read()

    def wait_models(self) -> None:
        """Until loading has ended, well or not."""
        while b"LOADING" in self.get("/v2/repository/index", method="POST")[1] or "state=" not in self.log:
            assert self.process.poll() is None, self.log
            time.sleep(0.01)  # another process: nothing to await

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextlib.contextmanager
def running_process(
    folder: Path, *repositories: Path, extra: Sequence[str] = (), wait: bool = True
) -> Iterator[EngineProcess]:
    """An engine over `repositories`, its Python models allowed."""
    path = folder / "engine.sock"
    read_fd, write_fd = os.pipe()
    command = [sys.executable, "-m", "gateway.engine", "--socket", str(path), "--ready-fd", str(write_fd)]
    for repository in repositories:
        command += ["--repository", str(repository), "--python-models-allowed", str(repository)]
    log = folder / "engine.log"
    with log.open("wb") as stderr:
        process = subprocess.Popen([*command, *extra], stderr=stderr, pass_fds=(write_fd,))
    os.close(write_fd)
    engine = EngineProcess(process, path, log)
    try:
        with os.fdopen(read_fd, "rb") as ready:
            assert ready.read() == b"ready\n", engine.log
        if wait:
            engine.wait_models()
        yield engine
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


@contextlib.contextmanager
def tcp_relay(path: Path) -> Iterator[str]:
    """`host:port` of a loopback listener whose bytes go to the unix socket and back."""
    loop = asyncio.new_event_loop()
    started = threading.Event()
    address: list[str] = []
    stop = asyncio.Event()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 18):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_unix_connection(str(path))
        await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        address.append(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
        started.set()
        await stop.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    started.wait(60)
    try:
        yield address[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(60)
        loop.close()
