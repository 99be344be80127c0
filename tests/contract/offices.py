"""An `Office` on either store, for suites that run on both."""

from pathlib import Path

import pytest

from billing.ledger.opening import open_ledger_reader, set_ledger_url
from billing.ledger.postgres import open_postgres_ledger
from tests.contract.postgres_server import PostgresServer
from tests.unit.billing.invoices.office import Office


def new_office(request: pytest.FixtureRequest, folder: Path) -> Office:
    """Of the store that the fixture's parameter (one of `BOOKS`) names, over an empty ledger; close it."""
    if request.param == "sqlite":
        return Office(folder / "ledger.db")
    server: PostgresServer = request.getfixturevalue("postgres")
    url = server.new_database()
    set_ledger_url(folder, url)
    return Office(folder, open_postgres_ledger(url), open_ledger_reader(folder))
