"""Owns the connection to control.db: one writer at a time, every commit on disk before it is acknowledged."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Final

import sqlalchemy as sa
from sqlalchemy.pool import ConnectionPoolEntry

from gateway.control.migrations import migrate

DATABASE_FILE: Final = "control.db"
#: How long a reader or the writer waits for the other before it fails with "database is locked".
BUSY_MS: Final = 5_000


class Database:
    """control.db. Only one process opens it (`gateway.control.lock`); blocking, so called from worker threads."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._writer = Lock()

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A consistent view of the database."""
        with self._engine.connect() as tx, tx.begin():
            yield tx

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """One transaction, committed durably on exit and rolled back on an exception; writers take turns."""
        with self._writer, self._engine.begin() as tx:
            yield tx

    def close(self) -> None:
        self._engine.dispose()


def open_database(data_dir: Path, now_ns: int) -> Database:
    """Open (and create or migrate) DATA/control.db, mode 600. Raises SettingsError on a newer schema."""
    path = data_dir / DATABASE_FILE
    # Created by us first: SQLite would create it with the process's umask.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    engine = open_engine(path)
    try:
        migrate(engine, now_ns)
    except BaseException:
        engine.dispose()
        raise
    return Database(engine)


def open_engine(path: Path) -> sa.Engine:
    """An engine with our pragmas. `hide_parameters`: a failed statement's text must not carry digests into a log."""
    engine = sa.create_engine(f"sqlite:///{path}", hide_parameters=True)
    sa.event.listen(engine, "connect", _configure)
    sa.event.listen(engine, "begin", _begin)
    return engine


def _configure(connection: sqlite3.Connection, _entry: ConnectionPoolEntry) -> None:
    # The driver's own transaction handling would run DDL outside of transactions; we begin them ourselves.
    connection.isolation_level = None
    cursor = connection.cursor()
    # A rollback journal: WAL of SQLite below 3.51.3 can lose a commit (MONEY.md). PERSIST: fewest syncs per commit.
    for pragma in ("journal_mode=PERSIST", "synchronous=FULL", f"busy_timeout={BUSY_MS}", "trusted_schema=OFF"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN")
