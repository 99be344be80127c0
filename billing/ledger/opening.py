"""Owns which ledger a data directory has: DATA/ledger.db, or the database that DATA/ledger.url names.

The supervisor writes that file from the setting `ledger` (it may hold a password: mode 600); meter, control and the
offline commands open what it says. A ledger is never changed for another by a setting: the positions in the usage logs
are in it, so calls would be posted twice or not at all.
"""

import os
import sqlite3
from pathlib import Path
from typing import Final

from billing.ledger.connect import LEDGER_FILE, open_reader
from billing.ledger.port import LedgerError
from billing.ledger.sqlite import SqliteLedger, SqlLedger

URL_FILE: Final = "ledger.url"
SQLITE_URL: Final = "sqlite://"
POSTGRES_SCHEMES: Final = ("postgresql://", "postgres://")


def open_ledger(data_dir: Path) -> SqlLedger:
    """The data directory's ledger for its one meter. Raises LedgerUnavailable, LedgerError."""
    url = ledger_url(data_dir)
    if url == SQLITE_URL:
        return SqliteLedger(data_dir / LEDGER_FILE)
    try:
        from billing.ledger.postgres import open_postgres_ledger  # an extra: only who uses it needs it
    except ImportError as error:
        raise LedgerError(_NO_DRIVER) from error
    return open_postgres_ledger(url)


def open_ledger_reader(data_dir: Path, *, tenant: str | None = None) -> sqlite3.Connection:
    """A connection to the data directory's ledger for queries only. Raises LedgerUnavailable, LedgerError.

    With `tenant` a PostgreSQL ledger shows that tenant's rows and no others, whatever is asked; SQLite has no such
    rights, there the queries alone decide (docs/adr/0011-row-level-security.md).
    """
    url = ledger_url(data_dir)
    if url == SQLITE_URL:
        return open_reader(data_dir / LEDGER_FILE)
    try:
        from billing.ledger.postgres import open_postgres_reader
    except ImportError as error:
        raise LedgerError(_NO_DRIVER) from error
    return open_postgres_reader(url, tenant=tenant)


def ledger_url(data_dir: Path) -> str:
    """What DATA/ledger.url says; `sqlite://` without one."""
    try:
        return (data_dir / URL_FILE).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return SQLITE_URL


def set_ledger_url(data_dir: Path, url: str) -> None:
    """Make `url` the data directory's ledger. Raises LedgerError: it has another one already, or `url` is none.

    From one postgresql:// address to another it may go: databases move, and take their ledger along.
    """
    check_ledger_url(url)
    before, file = ledger_url(data_dir), data_dir / URL_FILE
    if url == before:
        return
    if before == SQLITE_URL and (data_dir / LEDGER_FILE).exists():
        raise LedgerError(f"{LEDGER_FILE} holds this data directory's ledger: a setting does not move it elsewhere")
    if url == SQLITE_URL:
        raise LedgerError(f"{URL_FILE} names this data directory's ledger: a setting does not move it to {LEDGER_FILE}")
    made = file.with_name(f".{URL_FILE}.new")
    fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as out:
        out.write(f"{url}\n")
        out.flush()
        os.fsync(out.fileno())
    made.rename(file)


def check_ledger_url(url: str) -> None:
    """Raises LedgerError for an address that no ledger has."""
    if url != SQLITE_URL and not url.startswith(POSTGRES_SCHEMES):
        raise LedgerError(f"ledger: must be {SQLITE_URL} (the data directory's) or postgresql://USER@HOST/DATABASE")


_NO_DRIVER: Final = "the ledger is on PostgreSQL, but its driver is missing: pip install 'tollway[postgresql]'"
