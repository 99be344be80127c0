"""What is measured: servers that stand between the load and the backend, all started the same way."""

import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from loadtests.processes import BenchError, spawn, wait_until

#: The credential that proxies with a policy know. Not a secret: it opens nothing but the bench's own servers.
PEER_KEY: Final = "bench-key-0123456789abcdef0123456789abcdef"
LOOPBACK: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A running server. `process` is the root of its tree; None for the backend itself ("direct")."""

    name: str
    http: str | None = None
    grpc: str | None = None
    headers: Sequence[tuple[str, str]] = ()
    process: subprocess.Popen[bytes] | None = None
    #: What is configured, in words for the report.
    note: str = ""
    #: Contender's own extra addresses and paths (Tollway: metrics, data directory).
    extras: dict[str, str] = field(default_factory=dict)


def free_port() -> int:
    """A TCP port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def is_http_ready(base: str) -> bool:
    """Whether GET /v2/health/ready answers 200, straight or through a proxy."""
    try:
        with urllib.request.urlopen(f"{base}/v2/health/ready", timeout=2) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def is_listening(port: int) -> bool:
    try:
        socket.create_connection((LOOPBACK, port), timeout=1).close()
    except OSError:
        return False
    return True


def start_proxy(
    name: str,
    command: Sequence[str],
    workdir: Path,
    *,
    core: int,
    http_port: int | None,
    grpc_port: int | None,
    headers: Sequence[tuple[str, str]] = (),
    note: str = "",
) -> Contender:
    """Start a proxy and wait until its ports listen. Raises BenchError with the end of its log."""
    log = workdir / f"{name}.log"
    try:
        process = spawn(command, core=core, log=log)
    except FileNotFoundError as error:
        raise BenchError(f"{name}: {error}; run `sh loadtests/tools.sh`") from error
    ports = [port for port in (http_port, grpc_port) if port is not None]
    wait_until(name, lambda: all(is_listening(port) for port in ports), process, log)
    return Contender(
        name=name,
        http=f"http://{LOOPBACK}:{http_port}" if http_port else None,
        grpc=f"http://{LOOPBACK}:{grpc_port}" if grpc_port else None,
        headers=headers,
        process=process,
        note=note,
    )
