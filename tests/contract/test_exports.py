"""Exports of a ledger with calls, documents and transfers: accepted by beancount, and no entry lost or changed."""

import csv
import random
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from billing.exports.beancount import account_name
from billing.exports.rows import Selection, export_rows
from billing.exports.tables import COLUMNS
from billing.exports.writing import Format, write_export
from billing.ledger.port import Batch, LedgerError
from billing.ledger.postgres import open_postgres_ledger, open_postgres_reader
from billing.ledger.rules import Line
from billing.ledger.views import trial_balance
from gateway.commands.ledger import app
from tests.contract.ledgers import BOOKS
from tests.contract.postgres_server import PostgresServer
from tests.unit.billing.invoices.office import Office, open_office
from tests.unit.billing.making import items


@pytest.fixture(params=BOOKS)
def office(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Office]:
    """Calls of odd tenants and amounts, an invoice, a payment, a credit note; then transfers of random amounts."""
    if request.param == "sqlite":
        with open_office(tmp_path) as opened:
            yield fill(opened)
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    url = server.new_database()
    opened = Office(tmp_path / "unused", open_postgres_ledger(url), open_postgres_reader(url))
    yield fill(opened)
    opened.close()


def fill(office: Office) -> Office:
    office.set_up()
    office.post_usage(1_003)
    for number, tenant in enumerate(("Acme", "a-b", "a_b", "ü.x", 'q"\\')):
        office.ledger.post(Batch(posts=items([9_000 + number], tenant=tenant, model="v1.5-x:y"), now_ns=office.now_ns))
    number = office.bill()["number"]
    office.do("invoice.pay", {"invoice": number, "provider": "bank", "reference": "r", "amount_minor": 100})
    office.do("invoice.credit", {"invoice": number, "amount_minor": 7, "reason": "goodwill"})
    chance = random.Random(4)
    with office.ledger.journal() as journal:
        for currency in ("USD", "JPY", "EUR"):
            for _ in range(20):
                amount = chance.randrange(1, 10**18)
                lines = [
                    Line("cash:psp:x", currency, amount, 0),
                    Line("contract_liability:prepaid:z", currency, -amount, 0),
                ]
                journal.post("top_up", "z", office.now_ns, lines)
    return office


def bean_check(path: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("bean-check")), "--no-cache", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_beancount_accepts_the_export_with_its_closing_balances(office: Office, tmp_path: Path) -> None:
    path = tmp_path / "books.beancount"
    count = write_export(office.reader, Selection(), "beancount", path)
    text = path.read_text(encoding="utf-8")
    assert text.count(" balance ") == len(trial_balance(office.reader).lines)
    assert count == len(list(export_rows(office.reader, Selection()))) > 130
    done = bean_check(path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    # The check can fail: one nano more on one posting.
    first = next(line for line in text.splitlines() if line.startswith("  Assets:") and line.endswith("0 USD"))
    path.write_text(text.replace(first, first[:-5] + "1 USD", 1), encoding="utf-8")
    assert bean_check(path).returncode != 0


def test_csv_and_parquet_hold_every_entry_exactly(office: Office, tmp_path: Path) -> None:
    rows = list(export_rows(office.reader, Selection()))
    entries = [row.entry for row in rows]
    assert write_export(office.reader, Selection(), "csv", tmp_path / "l.csv") == len(rows)
    with (tmp_path / "l.csv").open(encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file))
    assert [(int(one["tx_id"]), one["tenant"], one["account"], int(one["amount_nanos"])) for one in read] == [
        (one.tx_id, one.tenant, one.account, one.amount_nanos) for one in entries
    ]
    assert all(Decimal(one["amount"]) * 10**9 == int(one["amount_nanos"]) for one in read)
    assert write_export(office.reader, Selection(), "parquet", tmp_path / "l.parquet") == len(rows)
    table = parquet.read_table(tmp_path / "l.parquet")
    assert table.column_names == list(COLUMNS)
    assert table["amount_nanos"].to_pylist() == [one.amount_nanos for one in entries]
    assert [int(one * 10**9) for one in table["amount"].to_pylist()] == [one.amount_nanos for one in entries]


def test_selection_is_by_posting_time_and_tenant(office: Office) -> None:
    now_ns = office.now_ns
    assert {row.entry.tenant for row in export_rows(office.reader, Selection(tenant="Acme"))} == {"Acme"}
    assert list(export_rows(office.reader, Selection(tenant="nobody"))) == []
    assert list(export_rows(office.reader, Selection(until_ns=now_ns))) == []
    assert len(list(export_rows(office.reader, Selection(since_ns=now_ns, until_ns=now_ns + 1)))) > 130


@pytest.mark.parametrize("page_rows", [1, 2, 7])
def test_export_goes_on_behind_a_page(office: Office, page_rows: int) -> None:
    whole = list(export_rows(office.reader, Selection()))
    assert list(export_rows(office.reader, Selection(), page_rows)) == whole
    (count,) = office.reader.execute("SELECT COUNT(*) FROM entry").fetchone()
    assert len({(row.entry.tx_id, row.entry.line) for row in whole}) == len(whole) == count


@pytest.mark.parametrize("form", ["beancount", "csv", "parquet"])
def test_failed_export_leaves_what_was_there_and_nothing_else(tmp_path: Path, form: Format) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "file").write_text("before")
    with pytest.raises(sqlite3.Error):
        write_export(broken_reader(), Selection(), form, folder / "file")
    assert [path.name for path in folder.iterdir()] == ["file"]
    assert (folder / "file").read_text() == "before"


def broken_reader() -> sqlite3.Connection:
    db = sqlite3.connect(":memory:")
    db.close()
    return db


def test_two_accounts_never_become_one() -> None:
    subjects = ["acme", "Acme", "a-b", "a_b", "a:b", "a.b", "-a", "S", "ü", "a-2d-b", "2d"]
    names = {account_name(f"unbilled_receivable:{subject}") for subject in subjects}
    assert len(names) == len(subjects)
    with pytest.raises(LedgerError, match="chart"):
        account_name("slush_fund")


def test_command_writes_the_ledger_of_a_data_directory(tmp_path: Path) -> None:
    with open_office(tmp_path) as office:
        fill(office)
        out, runner = tmp_path / "l.csv", CliRunner()
        command = ["export", "-o", str(out), "--format", "csv", "--data-dir", str(tmp_path)]
        done = runner.invoke(app, [*command, "--since", "2026-01-01", "--before", "2027-01-01"])
        assert (done.exit_code, out.read_text().count("\n") > 130) == (0, True), done.output
        assert runner.invoke(app, [*command, "--since", "today"]).exit_code == 1
        assert runner.invoke(app, [*command[:-1], str(tmp_path / "none")]).exit_code == 1
