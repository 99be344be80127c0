"""I27 on PostgreSQL: what control reads for a tenant it reads with that tenant's rights, so the database isolates too.

The tests of self-service run again here, over a ledger whose rows of other tenants cannot be seen at all.
"""

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import pytest

from billing.ledger.opening import open_ledger_reader, set_ledger_url
from billing.ledger.postgres import open_postgres_ledger, open_postgres_reader
from billing.ledger.postgres_db import TENANT
from billing.usage import usage_by
from gateway.control.money import Money
from tests.contract.postgres_server import PostgresServer
from tests.unit.billing.invoices.office import Office
from tests.unit.control.billing_desk import meter_of
from tests.unit.control.conftest import started  # noqa: F401 - a fixture
from tests.unit.control.support import Desk, open_desk
from tests.unit.control.test_me import (
    QUERIES,
    Two,
    my_routes,
    test_no_route_shows_or_changes_anything_of_another_tenant,  # noqa: F401 - collected here again
    test_the_same_routes_work_for_the_owner,  # noqa: F401
    test_usage_balance_and_invoice_say_the_same,  # noqa: F401
    things_of,
)

T = TypeVar("T")


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    return postgres.new_database()


@pytest.fixture
def two(tmp_path: Path, started: Path, url: str) -> Iterator[Two]:  # noqa: F811
    shutil.copytree(started, tmp_path / "data")
    set_ledger_url(tmp_path / "data", url)
    with open_desk(tmp_path / "data") as desk:
        office = Office(tmp_path / "unused", open_postgres_ledger(url), open_postgres_reader(url))
        with meter_of(desk, office):
            yield Two(desk, office)


def money_of(desk: Desk) -> Money:
    return Money(desk.data_dir, desk.control.registry, desk.app.state.ask_meter)


def test_every_read_for_a_tenant_is_under_its_rights(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of routes is the application's: a new one that reads as staff is found here."""
    mine, read = things_of(two, "acme"), Money.read
    seen: list[tuple[str, str | None]] = []

    def recording(self: Money, question: Callable[[Any], T], *, tenant: str | None = None) -> T:
        def asked(db: Any) -> T:
            (role,) = db.execute("SELECT current_user").fetchone()
            seen.append((role, tenant))
            return question(db)

        return read(self, asked, tenant=tenant)

    monkeypatch.setattr(Money, "read", recording)
    for method, path in my_routes(two.desk):
        if method == "GET":
            answer = two.ask("acme", method, path.format(**mine) + QUERIES.get(path, ""))
            assert answer.is_success, (path, answer.text)
    assert len(seen) >= 12
    assert set(seen) == {(TENANT, "acme")}


def test_a_query_that_forgets_its_tenant_still_sees_no_other(two: Two) -> None:
    """What a mistake in a query would show on SQLite, the database does not show."""
    money = money_of(two.desk)

    def calls(rights: str | None, asked: str | None = None) -> list[int]:
        rows = money.read(lambda db: usage_by(db, ("plan",), tenant=asked), tenant=rights)
        return [row.calls for row in rows]

    assert calls(None) == [3_000]
    assert calls("acme") == [1_000]
    assert calls("acme", "beta") == calls("nobody") == calls("") == []


def test_every_table_is_shown_in_part_or_not_at_all(two: Two, url: str) -> None:
    """Of each table a tenant sees no more than staff does of it, and beta's name in nothing."""
    things_of(two, "acme")
    things_of(two, "beta")
    staff, acme = open_postgres_reader(url), open_postgres_reader(url, tenant="acme")
    shown = {}
    for (table,) in staff.execute("SELECT name FROM sqlite_schema ORDER BY name").fetchall():
        whole = staff.execute(f"SELECT * FROM {table}").fetchall()
        try:
            rows = acme.execute(f"SELECT * FROM {table}").fetchall()
        except sqlite3.DatabaseError as error:
            assert "permission denied" in str(error), (table, error)
            continue
        assert set(rows) <= set(whole)
        shown[table] = (len(rows), len(whole))
        assert "beta" not in str(rows), table
    for table in ("usage_event", "journal_tx", "entry", "seal", "invoice", "invoice_step", "tree_head", "tenant"):
        mine, all_ = shown.pop(table)
        assert 0 < mine < all_ or (table == "tree_head" and mine <= all_), table
    staff.close()
    acme.close()


def test_rules_come_to_a_ledger_that_an_older_release_made(two: Two, url: str) -> None:
    with psycopg.connect(url, autocommit=True) as owner:
        owner.execute("DROP POLICY own ON tollway.invoice_step")
        owner.execute("DROP POLICY staff ON tollway.invoice_step")
        owner.execute("ALTER TABLE tollway.invoice_step DISABLE ROW LEVEL SECURITY")
        for table in ("invoice_step", "price_book", "log"):
            owner.execute(f"REVOKE SELECT ON tollway.{table} FROM tollway_tenant".encode())
    open_postgres_ledger(url).close()
    acme = open_ledger_reader(two.desk.data_dir, tenant="acme")
    (count,) = acme.execute("SELECT COUNT(*) FROM invoice_step").fetchone()
    assert count == 1
    assert acme.execute("SELECT COUNT(*) FROM price_book").fetchone()[0] == 1
    acme.close()
