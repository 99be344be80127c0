"""Owns what the quota owner tells an operator about the store that hosts share: figures, to whoever connects.

One msgpack map per connection, then it is closed; `gateway.monitoring.exporter` turns it into metrics.
"""

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import cast

import msgspec

from gateway.quota.server import bind
from gateway.quota.store_keeper import Figures


async def serve_figures(path: Path, figures: Figures) -> asyncio.AbstractServer:
    """Listen on `path` (mode 600), replacing a socket that a dead owner left."""
    loop = asyncio.get_running_loop()
    return await loop.create_unix_server(lambda: _Teller(figures), sock=bind(path))


class _Teller(asyncio.Protocol):
    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        out = cast(asyncio.Transport, transport)  # uvloop's transports do not inherit from it
        out.write(msgspec.msgpack.encode(asdict(self._figures)))
        out.close()
