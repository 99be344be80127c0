"""Fakes for connection tests: a transport that remembers, an application that records or echoes."""

import asyncio
from typing import Any

from gateway.call import Data
from gateway.net.exchange import Exchange


class FakeTransport(asyncio.Transport):
    """Keeps what is written; `is_read_paused` shows back-pressure."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_read_paused = False
        self.was_aborted = False
        self.has_eof = False
        self._closing = False
        self.protocol: Any = None

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def take(self) -> bytes:
        data, self.written = self.written, b""
        return data

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = high

    def pause_reading(self) -> None:
        self.is_read_paused = True

    def resume_reading(self) -> None:
        self.is_read_paused = False

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.has_eof = True

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._closing = True

    def abort(self) -> None:
        self._closing = True
        self.was_aborted = True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


class RecordingApp:
    """Remembers what it is told; replies when asked to."""

    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []
        self.bodies: list[bytes] = []
        self.ended: list[Exchange] = []
        self.aborted: list[Exchange] = []
        self.writable: list[Exchange] = []
        self.reply_at_head: tuple[int, bytes] | None = None
        self.reply_at_end: tuple[int, bytes] | None = None

    def on_head(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)
        self.bodies.append(b"")
        if self.reply_at_head is not None:
            exchange.reply(self.reply_at_head[0], [], self.reply_at_head[1])

    def on_body(self, exchange: Exchange, data: Data) -> None:
        self.bodies[self.exchanges.index(exchange)] += bytes(data)

    def on_end(self, exchange: Exchange) -> None:
        self.ended.append(exchange)
        if self.reply_at_end is not None:
            exchange.reply(self.reply_at_end[0], [], self.reply_at_end[1])

    def on_abort(self, exchange: Exchange) -> None:
        self.aborted.append(exchange)

    def on_writable(self, exchange: Exchange) -> None:
        self.writable.append(exchange)
