"""Owns the ledgers that the contract suites run over, by name."""

from pathlib import Path
from typing import Final

import pytest

from billing.ledger.postgres import open_postgres_ledger
from billing.ledger.sqlite import SqliteLedger, SqlLedger
from tests.contract.postgres_server import PostgresServer

#: Ledgers that hand out journals: transfers, periods and money commands run on each.
BOOKS: Final = ("postgresql", "sqlite")


def open_books(name: str, folder: Path, request: pytest.FixtureRequest) -> SqlLedger:
    """An empty ledger. Skips the test where its server is not installed."""
    if name == "sqlite":
        return SqliteLedger(folder / "ledger.db")
    server: PostgresServer = request.getfixturevalue("postgres")
    return open_postgres_ledger(server.new_database())
