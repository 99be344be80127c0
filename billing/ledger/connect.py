"""Owns how ledger.db is opened: pragmas, the journal mode by SQLite version, the writer's lock, error translation."""

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from billing.ledger.port import LedgerError, LedgerUnavailable
from billing.ledger.schema import APPLICATION_ID, SCHEMA_VERSION, schema_sql

LEDGER_FILE: Final = "ledger.db"
BUSY_TIMEOUT_S: Final = 2.0
#: WAL loses commits under a race fixed in this release (MONEY.md §3); older ones use a rollback journal.
WAL_SAFE_VERSION: Final = (3, 51, 3)


def journal_mode_for(version: tuple[int, ...]) -> str:
    """ "wal" where it is safe; else "persist", the rollback journal with the fewest file operations per commit."""
    return "wal" if version >= WAL_SAFE_VERSION else "persist"


@contextlib.contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn sqlite3 errors into the ledger's: passing trouble → LedgerUnavailable, the rest → LedgerError."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise LedgerUnavailable(f"{doing}: {error}") from error
    except sqlite3.Error as error:
        raise LedgerError(f"{doing}: {error}") from error


def lock_writer(path: Path) -> int:
    """Hold `<path>.lock` until the returned fd is closed or the process ends. Raises LedgerError if another holds it.

    SQLite alone would let two meters take turns and each acknowledge logs by its own positions.
    """
    fd = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise LedgerError(f"{path.name}: another meter is writing it; stop that one first") from error
    return fd


def open_writer(path: Path) -> sqlite3.Connection:
    """The read-write connection to `path`, made with mode 600 and the schema if it is new.

    Raises LedgerUnavailable, or LedgerError for a file that is no ledger or is of a newer schema.
    """
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    with translated(f"open {path.name}"):
        db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    try:
        with translated(f"open {path.name}"):
            db.execute(f"PRAGMA journal_mode = {journal_mode_for(sqlite3.sqlite_version_info)}")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA foreign_keys = ON")
            # Otherwise a REPLACE would delete rows without firing the append-only triggers.
            db.execute("PRAGMA recursive_triggers = ON")
            db.execute("PRAGMA trusted_schema = OFF")
            db.execute("PRAGMA cache_size = -8000")
            _ensure_schema(db, path)
    except LedgerError:
        db.close()
        raise
    return db


def open_reader(path: Path) -> sqlite3.Connection:
    """A connection for queries only. Raises LedgerUnavailable when there is no ledger yet or it cannot be read.

    Opened read-write with `query_only`, because after a crash of the meter the first reader has to roll back the
    journal it left; a read-only handle could not.
    """
    if not path.is_file():
        raise LedgerUnavailable(f"{path.name}: there is no ledger yet; it appears when the meter has started")
    with translated(f"open {path.name}"):
        db = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None
        )
    try:
        with translated(f"open {path.name}"):
            db.execute("PRAGMA query_only = ON")
            _check_schema(db, path)
    except LedgerError:
        db.close()
        raise
    return db


def _ensure_schema(db: sqlite3.Connection, path: Path) -> None:
    db.execute("BEGIN IMMEDIATE")
    try:
        have = _schema_version(db)
        is_new = have == 0 and not db.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone()
        if is_new or (0 < have < SCHEMA_VERSION and _application_id(db) == APPLICATION_ID):
            for statement in statements(schema_sql(have)):
                db.execute(statement)
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        _check_schema(db, path)
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _check_schema(db: sqlite3.Connection, path: Path) -> None:
    application_id, version = _application_id(db), _schema_version(db)
    if version == 0 and application_id == 0:
        raise LedgerUnavailable(f"{path.name}: the ledger is being created; try again")
    if application_id != APPLICATION_ID:
        raise LedgerError(f"{path.name}: is not a Tollway ledger")
    if 0 < version < SCHEMA_VERSION:
        raise LedgerUnavailable(f"{path.name}: has schema {version}; the meter of this release brings it up to date")
    if version != SCHEMA_VERSION:
        raise LedgerError(f"{path.name}: has schema {version}, this release reads {SCHEMA_VERSION}")


def _application_id(db: sqlite3.Connection) -> int:
    (application_id,) = db.execute("PRAGMA application_id").fetchone()
    return int(application_id)


def _schema_version(db: sqlite3.Connection) -> int:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    return int(version)


def statements(script: str) -> Iterator[str]:
    """Complete statements of `script` one by one: executescript would commit in between."""
    pending = ""
    for part in script.split(";"):
        pending += part + ";"
        if sqlite3.complete_statement(pending):
            if pending.strip(" \n;"):
                yield pending
            pending = ""
