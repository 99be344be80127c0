"""Owns the grpc.aio proxy: what a Python gateway costs when it is built on the stock gRPC library."""

import sys
from pathlib import Path

from loadtests.contenders import Contender, free_port, start_proxy


def start_grpc_aio(workdir: Path, backend: str, core: int) -> Contender:
    """`backend` is host:port."""
    port = free_port()
    script = Path(__file__).with_name("grpc_aio_proxy.py")
    return start_proxy(
        "grpc_aio",
        [sys.executable, str(script), str(port), backend],
        workdir,
        core=core,
        http_port=None,
        grpc_port=port,
        note="grpc.aio in and out, raw bytes, no policy",
    )
