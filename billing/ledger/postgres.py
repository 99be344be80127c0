"""Owns the ledger of `postgresql://`: opening it for writing and for reading.

Several meters may write to one database: their transactions take turns. What is lost with a connection is the
transaction under way; the next one connects anew, so a database that was away is found again without a restart.
"""

import sqlite3
from typing import cast

import psycopg

from billing.ledger.port import LedgerUnavailable
from billing.ledger.postgres_db import CONNECT_TIMEOUT_S, READER, TENANT, WRITER, PgDatabase
from billing.ledger.postgres_schema import ensure_postgres_schema, postgres_statements
from billing.ledger.sqlite import SqlLedger


def open_postgres_ledger(url: str) -> SqlLedger:
    """The ledger at `url`; its user makes roles and schema the first time.

    Raises LedgerUnavailable (it cannot be reached, or refuses the user), LedgerError (a newer schema).
    """
    try:
        with psycopg.connect(url, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S) as connection:
            ensure_postgres_schema(connection)
    except psycopg.Error as error:
        raise LedgerUnavailable(f"the ledger's database cannot be opened: {error}") from error
    return SqlLedger(_as_sqlite(PgDatabase(url, WRITER, ddl=postgres_statements)), has_clock=True)


def open_postgres_reader(url: str, *, tenant: str | None = None) -> sqlite3.Connection:
    """A connection for queries only; with `tenant` the database itself shows that tenant's rows and no others.

    Raises LedgerUnavailable.
    """
    db = PgDatabase(url, READER if tenant is None else TENANT, tenant=tenant)
    try:
        db.execute("SELECT 1 FROM ledger_schema")
    except sqlite3.Error as error:
        db.close()
        raise LedgerUnavailable(f"the ledger's database cannot be read: {error}") from error
    return _as_sqlite(db)


def _as_sqlite(db: PgDatabase) -> sqlite3.Connection:
    """`PgDatabase` has what billing uses of sqlite3.Connection: execute, executemany, in_transaction, close."""
    return cast("sqlite3.Connection", db)
