"""The suite's own honesty: each way to forge a ledger, with the triggers out of the way, is found and named."""

import sqlite3
from pathlib import Path

import pytest

from billing.events import Closed, Sent
from billing.ledger.port import Batch
from billing.ledger.sqlite import SqliteLedger
from billing.ledger.verify import verify_ledger
from billing.meter_client import MeterError
from billing.reconcile import Report, reconcile
from tests.unit.billing.making import BOOK, T0_NS, Epoch, call, items, marked, write_dead_epoch


def forge(path: Path, *statements: str) -> sqlite3.Connection:
    """Drop every trigger, then run `statements`: what somebody with the file can do."""
    db = sqlite3.connect(path, isolation_level=None)
    for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
        db.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        db.execute(statement)
    return db


@pytest.fixture
def path(tmp_path: Path) -> Path:
    ledger = SqliteLedger(tmp_path / "ledger.db")
    ledger.prices(BOOK)
    ledger.post(Batch(posts=[*items([1, 2, 3]), *items([4], tenant="beta")], now_ns=5))
    ledger.post(Batch(posts=items([5]), now_ns=6))
    ledger.close()
    return tmp_path / "ledger.db"


def test_honest_ledger_has_no_problem(path: Path) -> None:
    db = forge(path)
    found = verify_ledger(db)
    db.close()
    assert found.problems == ()
    assert (found.transactions, found.events, found.charged_nanos) == (3, 5, {"USD": 7_500_000})


@pytest.mark.parametrize(
    ("statement", "kinds"),
    [
        ("UPDATE usage_event SET charge_nanos = 1 WHERE event_id = 2", {"merkle_root", "entries", "rating"}),
        ("UPDATE usage_event SET rows = 9 WHERE event_id = 2", {"merkle_root"}),
        ("UPDATE usage_event SET t_ns = 9 WHERE event_id = 2", {"merkle_root", "summary"}),
        ("UPDATE facet SET model = 'free_one'", {"merkle_root", "entries", "rating"}),
        ("UPDATE usage_event SET tx_id = 3 WHERE event_id = 2", {"foreign_event"}),
        ("DELETE FROM usage_event WHERE event_id = 2", {"event_range", "merkle_root", "entries"}),
        ("UPDATE entry SET amount_nanos = amount_nanos + 1 WHERE tx_id = 1 AND line = 0", {"unbalanced", "chain"}),
        ("DELETE FROM entry WHERE tx_id = 2", {"unbalanced", "chain", "entries"}),
        ("UPDATE account SET name = 'unbilled_receivable:else' WHERE name LIKE '%beta'", {"chain", "entries"}),
        ("UPDATE journal_tx SET posted_ns = 1 WHERE tx_id = 2", {"chain"}),
        ("UPDATE journal_tx SET ok_count = 0 WHERE tx_id = 2", {"chain", "summary"}),
        ("DELETE FROM seal WHERE tx_id = 3", {"unsealed"}),
        ("UPDATE seal SET hash = zeroblob(32) WHERE tx_id = 1", {"chain"}),
        ("DELETE FROM journal_tx WHERE tx_id = 1", {"transaction_missing"}),
        ("DELETE FROM journal_tx WHERE tx_id = 3", {"events_outside"}),
        ("DELETE FROM price_book", {"rating"}),
    ],
)
def test_forgery_is_found(path: Path, statement: str, kinds: set[str]) -> None:
    db = forge(path, "PRAGMA foreign_keys = OFF", statement)
    found = {problem.kind for problem in verify_ledger(db).problems}
    db.close()
    assert kinds <= found


def kinds(report: Report) -> list[str]:
    return [problem.kind for problem in report.problems]


def test_due_records_without_a_meter_are_a_problem(path: Path) -> None:
    write_dead_epoch(path.parent / "usage", [*marked([call(8), call(9)]), call(10), Closed(t_ns=T0_NS)], "w5")
    report = reconcile(path.parent)
    assert (report.unposted, report.checked_on_disk, report.is_flushed) == (3, 3, False)
    assert "unposted" in kinds(report)


def test_call_in_flight_is_pending_and_no_problem_of_its_own(path: Path) -> None:
    log = Epoch(path.parent / "usage", "w5")
    log.append([call(8)])
    report = reconcile(path.parent)
    log.die()
    assert (report.pending, report.unposted) == (1, 0)
    assert "unposted" not in kinds(report)


def test_record_below_the_watermark_that_is_nowhere_is_missing(path: Path) -> None:
    log = Epoch(path.parent / "usage", "w5")
    log.append([call(8), Sent(first_seq=1, last_seq=1)])
    forge(path, "INSERT INTO log VALUES (9, 'w5', 1)", "INSERT INTO watermark VALUES (9, 2, 1, 0, 0)").close()
    report = reconcile(path.parent)
    log.die()
    assert {"missing", "count"} <= set(kinds(report))


def test_posted_call_nobody_recorded_breaks_the_count(path: Path) -> None:
    report = reconcile(path.parent)
    assert (report.recorded, report.posted) == (0, 5)
    assert kinds(report) == ["count"]


def test_damaged_log_is_reported(path: Path) -> None:
    log = Epoch(path.parent / "usage", "w5")
    log.append([call(8)])
    # The second group says that the first was durable: what is broken now is damage, not a torn tail.
    log.append([call(9), Sent(first_seq=1, last_seq=2)])
    (segment,) = log.folder.glob("*.seg")
    raw = bytearray(segment.read_bytes())
    raw[120] ^= 1
    segment.write_bytes(raw)
    log.die()
    assert "damaged_log" in kinds(reconcile(path.parent))


def test_meter_that_refuses_to_flush_is_reported_and_one_that_is_gone_is_not(path: Path) -> None:
    (path.parent / "run").mkdir()
    (path.parent / "run" / "meter.sock").touch()

    def refusing(*_: object) -> object:
        raise MeterError("unavailable", "the disk is full")

    report = reconcile(path.parent, ask=refusing)
    assert "meter" in kinds(report)
    assert "meter" not in kinds(reconcile(path.parent))
