"""HOT PATH. Owns reading a large body straight into the application's memory: one copy, the kernel's.

A connection that carries such bodies stays with this reader from one request to the next; heads and small pieces go
through a small buffer to the connection's own `data_received`.
"""

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

#: Less than this left of a body is read the usual way.
BULK_BYTES_MIN: Final = 64 * 1024
_HEAD_BYTES: Final = 16 * 1024


class Bulky(Protocol):
    """The connection, as far as this reader needs it. The first four are asyncio.Protocol's."""

    def data_received(self, data: bytes) -> None: ...
    def eof_received(self) -> bool | None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...
    def connection_lost(self, exc: Exception | None) -> None: ...
    def on_filled(self, count: int) -> None:
        """`count` more bytes of the body lie in the memory that was given."""


class BulkReader(asyncio.BufferedProtocol):
    """In a connection's place at its transport while `is_active`.

    `space` is what is left of the application's memory for the body under way, None between bodies.
    """

    __slots__ = ("_connection", "_head", "_transport", "is_active", "space")

    def __init__(self, connection: Bulky, transport: asyncio.Transport) -> None:
        self._connection = connection
        self._transport = transport
        self._head = memoryview(bytearray(_HEAD_BYTES))
        self.is_active = False
        self.space: memoryview | None = None

    def enter(self, space: memoryview) -> None:
        """Read what comes next into `space`; not one byte beyond it."""
        self.space = space
        if not self.is_active:
            self.is_active = True
            self._attach(lambda: self._transport.set_protocol(self))

    def leave(self, connection: asyncio.Protocol) -> None:
        """Give the transport back."""
        self.space = None
        if self.is_active:
            self.is_active = False
            self._attach(lambda: self._transport.set_protocol(connection))

    def _attach(self, change: Callable[[], None]) -> None:
        """A transport looks at its protocol's kind when it starts reading."""
        transport = self._transport
        is_reading = transport.is_reading()
        if is_reading:
            transport.pause_reading()
        change()
        if is_reading:
            transport.resume_reading()

    # -- asyncio.BufferedProtocol ------------------------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._head if self.space is None else self.space

    def buffer_updated(self, nbytes: int) -> None:
        space = self.space
        if space is None:
            self._connection.data_received(bytes(self._head[:nbytes]))
            return
        self.space = space[nbytes:] if nbytes < len(space) else None
        self._connection.on_filled(nbytes)

    def eof_received(self) -> bool | None:
        return self._connection.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self.space = None
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()
