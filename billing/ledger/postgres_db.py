"""Owns `PgDatabase`: a PostgreSQL connection that answers as a sqlite3 one does, so that all of billing runs on both.

Statements are written once, for SQLite; what differs is translated here (placeholders, `IS`, the writer's BEGIN) and
the rest is made up for in the schema (`postgres_schema`). psycopg's errors become sqlite3's, which the ledger already
turns into its own: what may pass by itself is OperationalError, a broken rule IntegrityError.

Writers take turns: the first statement of a writing transaction takes one advisory lock, so there is one lock, no order
to get wrong and no serialization failure between meters; the chain of seals needs that order anyway.
"""

import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final

import psycopg
from psycopg import RawCursor
from psycopg.adapt import Buffer, Loader
from psycopg.pq import TransactionStatus
from psycopg.types.numeric import Int8BinaryDumper

SCHEMA: Final = "tollway"
WRITER, READER, TENANT = "tollway_writer", "tollway_reader", "tollway_tenant"
CONNECT_TIMEOUT_S: Final = 5
#: How long a statement may wait for another writer before it is given up as unavailable.
LOCK_TIMEOUT_MS: Final = 10_000
#: Key of the advisory lock of writers ("Toll").
_WRITERS_LOCK: Final = 0x546F6C6C
_NUMBERED: Final = re.compile(r"\?\d")
_PLACEHOLDER: Final = re.compile(r"\?(\d*)|(?<![:\w]):([a-z_]+)|%|IS NOT \?|IS \?|CROSS JOIN(?= \w+ \w+ ON )")


class _WholeNumber(Loader):
    """SUM of bigint is numeric; all our numbers are whole."""

    def load(self, data: Buffer) -> int:
        return int(bytes(data))


class PgDatabase:
    """One connection, opened when first used and again after it was lost. Not thread-safe."""

    def __init__(
        self,
        url: str,
        role: str,
        *,
        tenant: str | None = None,
        ddl: Callable[[str], Sequence[str]] | None = None,
    ) -> None:
        """`role` is WRITER, READER or TENANT; the last one sees `tenant`'s rows only. `ddl` translates a CREATE."""
        self._ddl = ddl
        self._url = url
        self._role = role
        self._tenant = tenant
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None
        #: Whether a transaction was begun that nothing ended: on a lost connection its middle must not go on.
        self._is_begun = False

    def execute(
        self, statement: str, values: Sequence[Any] | Mapping[str, Any] = ()
    ) -> "psycopg.Cursor[tuple[Any, ...]]":
        """As sqlite3's. Raises sqlite3.OperationalError, sqlite3.IntegrityError, sqlite3.Error."""
        if statement == "BEGIN IMMEDIATE":
            self._is_begun = False
            with translated_errors():
                return self._begin()
        if statement in {"COMMIT", "ROLLBACK"}:
            with translated_errors():
                cursor = self._open().execute(statement)
            self._is_begun = False
            return cursor
        if self._ddl is not None and statement.lstrip().startswith("CREATE "):
            return self._create(self._ddl(statement))
        text, style = translate(statement)
        with translated_errors():
            connection = self._open()
            if style == "numbered":
                # PostgreSQL's own placeholders: psycopg would take a statement of 64 rows apart again at every use,
                # which cost more than the inserts (25 µs a call).
                return RawCursor(connection).execute(text, values, prepare=True)
            return connection.execute(text, _parameters(values), prepare=True)

    def executemany(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        text, _ = translate(statement)
        with translated_errors():
            cursor = self._open().cursor()
            cursor.executemany(text, [_parameters(row) for row in rows])

    @property
    def in_transaction(self) -> bool:
        connection = self._connection
        if connection is None or connection.closed:
            self._is_begun = False
            return False
        return connection.info.transaction_status not in {TransactionStatus.IDLE, TransactionStatus.UNKNOWN}

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _begin(self) -> "psycopg.Cursor[tuple[Any, ...]]":
        """A transaction that has its turn, or none: one that waited in vain must not be found open by the next try."""
        connection = self._open()
        cursor = connection.execute("BEGIN")
        self._is_begun = True
        try:
            return cursor.execute("SELECT pg_advisory_xact_lock(%s)", (_WRITERS_LOCK,))
        except psycopg.Error:
            self._is_begun = False
            if not connection.closed:
                connection.rollback()
            raise

    def _create(self, statements: Sequence[str]) -> "psycopg.Cursor[tuple[Any, ...]]":
        """Tables belong to the user of the URL, not to the writer's role: an owner could give itself every right."""
        with translated_errors():
            cursor = self._open().execute("RESET ROLE")
            for statement in statements:
                cursor.execute(statement.encode())
            return cursor.execute(f"SET ROLE {self._role}".encode())

    def _open(self) -> "psycopg.Connection[tuple[Any, ...]]":
        if self._connection is None or self._connection.closed:
            if self._is_begun:
                raise psycopg.OperationalError("the connection was lost in the middle of a transaction")
            self._connection = self._connect()
        return self._connection

    def _connect(self) -> "psycopg.Connection[tuple[Any, ...]]":
        connection = psycopg.connect(self._url, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S)
        connection.adapters.register_loader("numeric", _WholeNumber)
        # One type for all numbers, as the columns have: by default it follows the value's size, and a statement would
        # be parsed and planned anew for every mix of sizes instead of being prepared once.
        connection.adapters.register_dumper(int, Int8BinaryDumper)
        try:
            connection.execute(f"SET search_path = {SCHEMA}")
            connection.execute(f"SET lock_timeout = {LOCK_TIMEOUT_MS}")
            connection.execute("SET synchronous_commit = on")
            if self._role != WRITER:
                connection.execute("SET default_transaction_read_only = on")
            if self._tenant is not None:
                connection.execute("SELECT set_config('tollway.tenant', %s, false)", (self._tenant,))
            connection.execute(f"SET ROLE {self._role}")
        except BaseException:
            connection.close()
            raise
        return connection


@contextmanager
def translated_errors() -> Iterator[None]:
    """psycopg's errors as sqlite3's."""
    try:
        yield
    except psycopg.IntegrityError as error:
        raise sqlite3.IntegrityError(_message(error)) from error
    except psycopg.errors.RaiseException as error:
        raise sqlite3.IntegrityError(_message(error)) from error
    except (psycopg.OperationalError, psycopg.errors.ReadOnlySqlTransaction, psycopg.InterfaceError) as error:
        raise sqlite3.OperationalError(_message(error)) from error
    except psycopg.Error as error:
        raise sqlite3.DatabaseError(_message(error)) from error


@lru_cache(maxsize=2_000)
def translate(statement: str) -> tuple[str, str]:
    """(PostgreSQL's text, the style of its parameters: "plain", "numbered" or "named")."""
    style = "numbered" if _NUMBERED.search(statement) else "plain"

    def replace(match: re.Match[str]) -> str:
        nonlocal style
        found, number, name = match[0], match[1], match[2]
        if found == "%":
            return "%" if style == "numbered" else "%%"
        if found == "IS NOT ?":
            return "IS DISTINCT FROM %s"
        if found == "CROSS JOIN":
            return "JOIN"
        if found == "IS ?":
            return "IS NOT DISTINCT FROM %s"
        if name:
            style = "named"
            return f"%({name})s"
        if number:
            return f"${number}"
        return "%s"

    return _PLACEHOLDER.sub(replace, statement), style


def _parameters(values: Sequence[Any] | Mapping[str, Any]) -> Sequence[Any] | Mapping[str, Any]:
    if isinstance(values, Mapping):
        return values
    return [int(value) if value is True or value is False else value for value in values]


def _message(error: psycopg.Error) -> str:
    return (error.diag.message_primary or str(error)).strip()


__all__ = ["READER", "SCHEMA", "TENANT", "WRITER", "PgDatabase", "translate", "translated_errors"]
