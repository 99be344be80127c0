"""Owns a real stand-in of S3 that was not written by us: moto's server, in an environment of its own (`make test`)."""

import contextlib
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tests.e2e.harness import free_ports

PYTHON = Path(__file__).parents[2] / ".venvs" / "moto" / "bin" / "python"
START_S = 60.0


@contextlib.contextmanager
def serving_moto(log: Path) -> Iterator[str]:
    """Its address, until the block ends. Objects are in memory."""
    [port] = free_ports(1)
    address = f"http://127.0.0.1:{port}"
    command = [str(PYTHON), "-I", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with log.open("wb") as said, subprocess.Popen(command, stdout=said, stderr=said) as process:
        try:
            _wait(process, address, log)
            yield address
        finally:
            process.terminate()
            process.wait(30)


def create_bucket(address: str, name: str) -> None:
    request = urllib.request.Request(f"{address}/{name}", method="PUT", headers={"Authorization": "AWS key:any"})
    with _direct().open(request, timeout=30) as reply:
        assert reply.status == 200


def _direct() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _wait(process: "subprocess.Popen[bytes]", address: str, log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(OSError), _direct().open(f"{address}/moto-api/", timeout=5):
            return
        time.sleep(0.05)  # another process: nothing to await
    raise AssertionError(f"moto does not answer: {log.read_text()}")
