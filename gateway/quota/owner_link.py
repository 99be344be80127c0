"""Owns a worker's connection to the owner process, for limits and for wallets: frames in, messages to its keeper."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

from gateway.quota.protocol import FrameSplitter, ProtocolError

_log = logging.getLogger(__name__)


class Keeper(Protocol):
    """The client whose connection it is."""

    def on_connected(self, connection: "OwnerLink") -> None: ...

    def on_disconnected(self) -> None: ...

    def on_message(self, message: Any) -> None:
        """Raises ProtocolError for what nobody asked for: the connection is cut then."""


class OwnerLink(asyncio.Protocol):
    """One connection; `lost` is set when it is over. `subject` names it in the log ("quota", "funds")."""

    transport: asyncio.Transport

    def __init__(self, keeper: Keeper, decode: Callable[[bytes], Sequence[Any]], subject: str) -> None:
        self._keeper = keeper
        self._decode = decode
        self._subject = subject
        self._frames = FrameSplitter()
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's transports do not inherit from it
        self._keeper.on_connected(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._keeper.on_disconnected()
        self.lost.set()

    def data_received(self, data: bytes) -> None:
        try:
            for payload in self._frames.feed(data):
                for message in self._decode(payload):
                    self._keeper.on_message(message)
        except ProtocolError as error:
            _log.error("%s_protocol_error: %s", self._subject, error)
            self.transport.abort()
