"""Owns haproxy as a plain proxy: HTTP/1.1 to HTTP/1.1, HTTP/2 to HTTP/2."""

from pathlib import Path
from typing import Final

from loadtests.contenders import LOOPBACK, Contender, free_port, start_proxy

_CONFIG: Final = """
global
  nbthread 1
  maxconn 4096
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  http-reuse always
frontend http_in
  bind {host}:{http_port}
  default_backend http_out
backend http_out
  server s {backend}
frontend grpc_in
  bind {host}:{grpc_port} proto h2
  default_backend grpc_out
backend grpc_out
  server s {backend} proto h2
"""


def start_haproxy(workdir: Path, backend: str, core: int) -> Contender:
    """`backend` is host:port."""
    http_port, grpc_port = free_port(), free_port()
    file = workdir / "haproxy.conf"
    file.write_text(_CONFIG.format(host=LOOPBACK, http_port=http_port, grpc_port=grpc_port, backend=backend))
    return start_proxy(
        "haproxy",
        ["haproxy", "-db", "-f", str(file)],
        workdir,
        core=core,
        http_port=http_port,
        grpc_port=grpc_port,
        note="plain, one thread, no log",
    )
