"""Owns the ledgers that the meter is measured with: each with the CPU of its server, if any, and its size."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import psycopg

from billing.ledger.postgres import open_postgres_ledger
from billing.ledger.sqlite import SqliteLedger, SqlLedger
from tests.contract.postgres_server import find_tools, running_server

STORES: Final = ("sqlite", "postgresql")
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_SIZE: Final = (
    "SELECT COALESCE(SUM(pg_total_relation_size(c.oid)), 0)::bigint FROM pg_class c"
    " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'tollway' AND c.relkind = 'r'"
)


class Store(Protocol):
    """A ledger under measurement."""

    @property
    def ledger(self) -> SqlLedger:
        """Open for writing; closed by whoever got the store."""

    def server_cpu_s(self) -> float:
        """CPU seconds of processes other than ours so far."""

    def size_bytes(self) -> int:
        """Tables and indexes on disk."""


class _SqliteStore(NamedTuple):
    ledger: SqlLedger
    path: Path

    def server_cpu_s(self) -> float:
        return 0.0

    def size_bytes(self) -> int:
        return self.path.stat().st_size


class _PostgresStore(NamedTuple):
    ledger: SqlLedger
    url: str
    pid: int

    def server_cpu_s(self) -> float:
        """Of the server and its children; those that ended are in its own account."""
        ticks = 0
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                # After the name, which may hold anything: state, parent, …; 14 to 17 are user, system, and children's.
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended while we looked
            own = int(fields[11]) + int(fields[12])
            if int(entry.name) == self.pid:
                ticks += own + int(fields[13]) + int(fields[14])
            elif int(fields[1]) == self.pid:
                ticks += own
        return ticks / _TICKS_PER_S

    def size_bytes(self) -> int:
        with psycopg.connect(self.url) as connection:
            row = connection.execute(_SIZE).fetchone()
        assert row is not None
        return int(row[0])


@contextmanager
def open_store(name: str, folder: Path) -> Iterator[Store]:
    """The empty ledger `name` below `folder`, all safeties on. Raises RuntimeError: its server is not installed."""
    if name == "sqlite":
        path = folder / "ledger.db"
        yield _SqliteStore(SqliteLedger(path), path)
        return
    tools = find_tools()
    if tools is None:
        raise RuntimeError("PostgreSQL is not installed here (Debian package postgresql)")
    folder.chmod(0o755)  # the server runs as another account where we are root
    with running_server(tools, is_durable=True, where=folder) as server:
        url = server.new_database()
        yield _PostgresStore(open_postgres_ledger(url), url, server.pid)
