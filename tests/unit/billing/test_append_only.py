"""I7 and I8 where the database itself enforces them: no update, no delete, no unbalanced, unsealed or late entry."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from billing.ledger.periods import broken_periods, close_period
from billing.ledger.port import Batch, Ending, Position, Rejected
from billing.ledger.schema import STEPS
from billing.ledger.sqlite import SqliteLedger
from billing.ledger.transfers import Transfer, transfer
from tests.unit.billing.making import BOOK, W0, call, items


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """A plain connection, as anybody with the file and a SQLite shell has, to a ledger with rows in every table."""
    path = tmp_path / "ledger.db"
    ledger = SqliteLedger(path)
    ledger.prices(BOOK)
    ledger.post(
        Batch(
            posts=[*items([1, 2]), (W0, 3, call(1))],
            rejected=[Rejected((W0, 4, call(4)), "charge_mismatch", "charge_nanos")],
            voids=items([5]),
            positions={W0: Position(5, 5)},
            endings={(W0, 1): Ending("client_gone", 3)},
            now_ns=5,
        )
    )
    ledger.close()
    connection = sqlite3.connect(path, isolation_level=None)
    yield connection
    connection.close()


@pytest.fixture
def closed(db: sqlite3.Connection, tmp_path: Path) -> sqlite3.Connection:
    """The same with transfers and a closed period."""
    ledger = SqliteLedger(tmp_path / "ledger.db")
    with ledger.journal() as journal:
        funded = Transfer("top", "acme", "single", 5, "cash:psp:bank", "contract_liability:prepaid:acme", "USD")
        held = Transfer("hold", "acme", "pending", 5, funded.credit, "revenue:breakage", "USD")
        assert [one.tx_id > 0 for one in transfer(journal, [funded, held], 6)] == [True, False]
        journal.execute("INSERT INTO top_up VALUES ('t', 'acme', 'USD', 5, 'manual', 'bank', 6)")
        journal.execute("INSERT INTO top_up_step VALUES ('t', 1, 'succeeded', 'r', 5, '', 6, 1)")
        journal.execute("INSERT INTO top_up_booked VALUES ('bank', 'r', 't')")
        close_period(journal, 7, 7)
    ledger.close()
    return db


@pytest.mark.parametrize("table", [table for _, _, tables in STEPS for table in tables])
def test_no_row_is_updated_or_deleted(closed: sqlite3.Connection, table: str) -> None:
    db = closed
    columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
    assert db.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0] > 0
    for column in columns:
        with pytest.raises(sqlite3.IntegrityError, match="append-only, UPDATE is refused"):
            db.execute(f"UPDATE {table} SET {column} = {column}")
    with pytest.raises(sqlite3.IntegrityError, match="append-only, DELETE is refused"):
        db.execute(f"DELETE FROM {table}")


@pytest.mark.parametrize("table", ["journal_tx", "entry", "seal"])
def test_no_posted_row_is_replaced(db: sqlite3.Connection, table: str) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        db.execute(f"REPLACE INTO {table} SELECT * FROM {table} LIMIT 1")


def test_watermark_only_moves_forward(db: sqlite3.Connection) -> None:
    db.execute("UPDATE watermark SET seq = seq + 1")
    for change in ("seq = seq - 1", "served = served - 1", "log_id = log_id + 1"):
        with pytest.raises(sqlite3.IntegrityError, match="only moves forward"):
            db.execute(f"UPDATE watermark SET {change}")
    with pytest.raises(sqlite3.IntegrityError, match="never deleted"):
        db.execute("DELETE FROM watermark")


def test_sealed_transaction_takes_no_entry(db: sqlite3.Connection) -> None:
    with pytest.raises(sqlite3.IntegrityError, match="sealed or unknown"):
        db.execute("INSERT INTO entry VALUES (1, 9, 1, 5, 0)")
    with pytest.raises(sqlite3.IntegrityError, match="sealed or unknown"):
        db.execute("INSERT INTO entry VALUES (77, 0, 1, 5, 0)")


@pytest.mark.parametrize(("event_id", "tx_id"), [(3, 1), (9, 2), (3, 3)])
def test_event_slipped_in_stops_the_next_seal(db: sqlite3.Connection, event_id: int, tx_id: int) -> None:
    db.execute(
        "INSERT INTO usage_event SELECT ?, tenant_id, x'77', kind, n, facet_id, ?, log_id, seq, t_ns, rows, compute_ns,"
        " request_bytes, reply_bytes, charge_nanos FROM usage_event LIMIT 1",
        (event_id, tx_id),
    )
    open_transaction(db, event_count=1)
    db.execute("INSERT INTO entry VALUES (2, 0, 1, 5, 1)")
    db.execute("INSERT INTO entry VALUES (2, 1, 2, -5, 1)")
    with pytest.raises(sqlite3.IntegrityError, match="exactly its events"):
        db.execute("INSERT INTO seal VALUES (2, x'00')")


def test_event_with_a_known_key_is_refused(db: sqlite3.Connection) -> None:
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        db.execute(
            "INSERT INTO usage_event SELECT 3, tenant_id, call_id, kind, n, facet_id, 2, log_id, seq, t_ns, rows,"
            " compute_ns, request_bytes, reply_bytes, charge_nanos FROM usage_event LIMIT 1"
        )


def open_transaction(db: sqlite3.Connection, event_count: int = 0) -> None:
    db.execute(
        "INSERT INTO journal_tx SELECT 2, kind, tenant_id, posted_ns, 3, ?, ok_count, t_min_ns, t_max_ns, leaf_version,"
        " merkle_root FROM journal_tx WHERE tx_id = 1",
        (event_count,),
    )


@pytest.mark.parametrize(
    ("amounts", "event_count", "refusal"),
    [
        ([], 0, "must exist and sum to zero"),
        ([5, -4], 0, "must exist and sum to zero"),
        ([5, -5], 1, "exactly its events"),
    ],
)
def test_seal_refuses_what_does_not_add_up(
    db: sqlite3.Connection, amounts: list[int], event_count: int, refusal: str
) -> None:
    open_transaction(db, event_count)
    for line, amount in enumerate(amounts):
        db.execute("INSERT INTO entry VALUES (2, ?, 1, ?, 0)", (line, amount))
    with pytest.raises(sqlite3.IntegrityError, match=refusal):
        db.execute("INSERT INTO seal VALUES (2, x'00')")


def test_sum_is_checked_per_currency(db: sqlite3.Connection) -> None:
    open_transaction(db)
    db.execute("INSERT INTO account VALUES (90, 'cash', 'EUR')")
    db.execute("INSERT INTO entry VALUES (2, 0, 1, 5, 0)")
    db.execute("INSERT INTO entry VALUES (2, 1, 90, -5, 0)")
    with pytest.raises(sqlite3.IntegrityError, match="sum to zero in every currency"):
        db.execute("INSERT INTO seal VALUES (2, x'00')")


def test_next_transaction_waits_for_the_seal_of_the_last(db: sqlite3.Connection) -> None:
    open_transaction(db)
    with pytest.raises(sqlite3.IntegrityError, match="previous transaction must be sealed"):
        db.execute("INSERT INTO journal_tx SELECT 3, kind, tenant_id, 0, 3, 0, 0, 0, 0, 1, x'' FROM journal_tx LIMIT 1")
    with pytest.raises(sqlite3.IntegrityError, match="only the newest"):
        db.execute("INSERT INTO seal VALUES (1, x'00')")


def test_what_is_held_neither_changes_nor_ends_without_a_post_or_a_void(closed: sqlite3.Connection) -> None:
    db = closed
    with pytest.raises(sqlite3.IntegrityError, match="never changes"):
        db.execute("UPDATE transfer_open SET amount_nanos = 1")
    with pytest.raises(sqlite3.IntegrityError, match="closed only by a post or a void"):
        db.execute("DELETE FROM transfer_open")


def test_closed_period_takes_no_transaction_whoever_writes(closed: sqlite3.Connection) -> None:
    db = closed
    with pytest.raises(sqlite3.IntegrityError, match="closed and takes no entry"):
        db.execute(
            "INSERT INTO journal_tx SELECT tx_id + 1, kind, tenant_id, 6, 0, 0, 0, 0, 0, 0, merkle_root FROM journal_tx"
            " ORDER BY tx_id DESC LIMIT 1"
        )
    with pytest.raises(sqlite3.IntegrityError, match="begins where the one before ended"):
        db.execute("INSERT INTO period VALUES (2, 0, 9, 1, 9, x'00')")


@pytest.mark.parametrize("forgery", ["UPDATE period SET hash = x'00'", "UPDATE period_balance SET nanos = nanos + 1"])
def test_forged_period_is_found(closed: sqlite3.Connection, forgery: str) -> None:
    db = closed
    for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
        db.execute(f"DROP TRIGGER {name}")
    assert broken_periods(db) == []
    db.execute(forgery)
    assert [period_id for period_id, _ in broken_periods(db)] == [1]
