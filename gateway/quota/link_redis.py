"""Owns the connection to a Redis or Valkey: one socket, the script by its digest, foreign errors translated here."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    MasterDownError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from gateway.quota.store_link import Command, CommandFailed, Reply, StoreUnavailable
from gateway.quota.store_words import SERVER_CLOCK, script_text
from gateway.quota_address import QuotaAddress

CONNECT_S: Final = 0.5
#: A store that answers later than this is taken for lost: calls wait for it.
REPLY_S: Final = 0.5

#: Error replies that say something about the server, not about one tenant's state.
_SERVER_ERRORS: Final = (
    AuthenticationError,
    BusyLoadingError,
    MasterDownError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
)
_SERVER_WORDS: Final = ("MISCONF", "NOREPLICAS", "CLUSTERDOWN", "MOVED", "BUSY", "TRYAGAIN", "NOAUTH", "UNBLOCKED")

_log = logging.getLogger(__name__)


class RedisLink:
    """See `StoreLink`. `clock` is the script's: the server's own but in tests."""

    def __init__(
        self, address: QuotaAddress, host: str, *, clock: str = SERVER_CLOCK, reply_s: float = REPLY_S
    ) -> None:
        self._address = address
        self._reply_s = reply_s
        self._host = host
        self._script = script_text(clock)
        self._digest = b""
        self._connection: AbstractConnection | None = None

    async def open(self) -> str:
        """See `StoreLink.open`."""
        connection = self._connection = _connection(self._address)
        try:
            async with asyncio.timeout(max(CONNECT_S, self._reply_s)):
                connect: Callable[[], Awaitable[None]] = connection.connect
                await connect()
                info = await _call(connection, "INFO", "server")
                self._digest = await _call(connection, "SCRIPT", "LOAD", self._script)
        except (RedisError, OSError, TimeoutError) as error:
            await self.close()
            raise StoreUnavailable(_words(error)) from error
        except BaseException:
            await self.close()
            raise
        return _run_id(info)

    async def run(self, session: str, epoch: str, commands: Sequence[Command]) -> list[Reply]:
        """See `StoreLink.run`."""
        connection = self._connection
        if connection is None:
            raise StoreUnavailable("the connection is closed")
        packed = connection.pack_commands([self._words_of(session, epoch, command) for command in commands])
        try:
            async with asyncio.timeout(self._reply_s):
                await connection.send_packed_command(packed)
                return [await _reply(connection) for _ in commands]
        except (RedisError, OSError, TimeoutError) as error:
            await self.close()
            raise StoreUnavailable(_words(error)) from error
        except BaseException:  # cancelled: replies would be read as answers to later questions
            await self.close()
            raise

    def _words_of(self, session: str, epoch: str, command: Command) -> tuple[Any, ...]:
        prefix = self._address.prefix
        subject = f"t:{command.tenant}" if command.tenant else f"want:{self._host}"
        keys = (f"{prefix}epoch", f"{prefix}hosts", prefix + subject)
        return ("EVALSHA", self._digest, 3, *keys, command.operation, self._host, session, epoch, *command.arguments)

    async def call(self, *words: str) -> Any:
        """One plain command, for checks. Raises StoreUnavailable."""
        connection = self._connection
        if connection is None:
            raise StoreUnavailable("the connection is closed")
        try:
            async with asyncio.timeout(self._reply_s):
                return await _call(connection, *words)
        except ResponseError as error:
            raise StoreUnavailable(_words(error)) from error
        except (RedisError, OSError, TimeoutError) as error:
            await self.close()
            raise StoreUnavailable(_words(error)) from error

    async def close(self) -> None:
        """See `StoreLink.close`."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(RedisError, OSError, TimeoutError):
                await connection.disconnect(nowait=True)


async def _call(connection: AbstractConnection, *words: str) -> Any:
    await connection.send_command(*words)
    return await connection.read_response()


async def _reply(connection: AbstractConnection) -> Reply:
    try:
        reply: Sequence[Any] = await connection.read_response()
    except _SERVER_ERRORS:
        raise
    except ResponseError as error:
        if str(error).startswith(_SERVER_WORDS):
            raise
        _log.error("quota_store_command_failed: %s", error)
        return CommandFailed(str(error))
    return reply


def _connection(address: QuotaAddress) -> AbstractConnection:
    """Not connected yet. No retries inside: the keeper decides about those."""
    common: dict[str, Any] = {
        "db": address.database,
        "username": address.username,
        "password": address.password,
        "socket_connect_timeout": CONNECT_S,
        # Ours is `reply_s` a batch: the library's is asyncio.wait_for, which may swallow a cancellation.
        "socket_timeout": None,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
    }
    if address.path is not None:
        return UnixDomainSocketConnection(path=address.path, **common)
    kind = SSLConnection if address.is_tls else Connection
    return kind(host=address.host, port=address.port, **common)


def _run_id(info: bytes) -> str:
    for line in info.splitlines():
        if line.startswith(b"run_id:"):
            return line.removeprefix(b"run_id:").decode("ascii")
    raise StoreUnavailable("the server does not say which run it is (INFO server)")


def _words(error: BaseException) -> str:
    """What went wrong; the address is added by whoever logs it."""
    return f"{type(error).__name__}: {error}".rstrip(": ") if str(error) else type(error).__name__
