"""What can be read from a ledger: trial balance, entries by account, call, tenant and page, usage by any dimension."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from billing.events import Outcome, Reason
from billing.ledger.connect import open_reader
from billing.ledger.merkle import LEAF_VERSION, leaf_hash, leaves_of, root_from_path
from billing.ledger.port import Batch, Ending, LedgerError, Rejected
from billing.ledger.sqlite import SqliteLedger
from billing.ledger.stored import read_events
from billing.ledger.views import (
    EntryView,
    balance_of,
    entries,
    find_call,
    find_events,
    quarantined,
    reason_name,
    trial_balance,
    voided,
)
from billing.packed import Packer
from billing.usage import UsageError, usage_by
from tests.unit.billing.making import T0_NS, W0, call, items

DAY_NS = 86_400 * 1_000_000_000


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    ledger = SqliteLedger(tmp_path / "ledger.db")
    ledger.post(
        Batch(
            posts=[
                *items([1, 2]),
                *items([3], model="file_type", rows=4),
                *items([4], outcome=Outcome.FAILED),
                *items([5], tenant="beta", reason=Reason.FREE_PLAN, plan="free"),
            ],
            endings={(W0, 2): Ending("client_gone", 7)},
            now_ns=5,
        )
    )
    ledger.post(
        Batch(
            posts=items([6], t_ns=T0_NS + DAY_NS, key_id="key_2"),
            voids=items([7]),
            rejected=[Rejected((W0, 8, call(8)), "malformed", "rows")],
            now_ns=6,
        )
    )
    ledger.close()
    reader = open_reader(tmp_path / "ledger.db")
    yield reader
    reader.close()


def test_trial_balance_is_zero_and_zero_price_calls_are_on_it(db: sqlite3.Connection) -> None:
    balance = trial_balance(db)
    assert balance.is_balanced
    assert balance.totals == {"USD": 0}
    assert {(line.account, line.balance_nanos, line.calls) for line in balance.lines} == {
        ("unbilled_receivable:acme", 4_720_014, 5),
        ("unbilled_receivable:beta", 0, 1),
        ("revenue:model_call:ocr", -4_500_000, 5),
        ("revenue:model_call:file_type", -220_014, 1),
    }
    assert balance_of(db, "revenue:model_call:ocr", "USD") == -4_500_000
    assert balance_of(db, "nobody", "USD") == 0


def test_call_leads_to_its_entries_and_its_proof(db: sqlite3.Connection) -> None:
    found = find_call(db, call(3).call_id)
    assert found is not None
    assert found.event.served == call(3, model="file_type", rows=4)
    assert [(entry.account, entry.amount_nanos) for entry in found.entries] == [
        ("unbilled_receivable:acme", 3_220_014),
        ("revenue:model_call:file_type", -220_014),
        ("revenue:model_call:ocr", -3_000_000),
    ]
    (block,) = leaves_of(LEAF_VERSION, [event.served for event in read_events(db, 1, 4)])
    assert Packer().pack(found.event.served).payload in block
    assert root_from_path(leaf_hash(block), found.leaf_index, 1, []) == found.merkle_root


def test_call_that_was_cut_says_why(db: sqlite3.Connection) -> None:
    cut, whole = find_call(db, call(2).call_id), find_call(db, call(1).call_id)
    assert cut is not None
    assert whole is not None
    assert (cut.ended_cause, whole.ended_cause) == ("client_gone", None)


def test_unknown_call_and_foreign_tenant_find_nothing(db: sqlite3.Connection) -> None:
    assert find_call(db, bytes(16)) is None
    assert find_events(db, bytes(16)) == ()
    assert find_call(db, call(1).call_id, tenant="beta") is None
    assert find_call(db, call(1).call_id, tenant="acme") is not None


def test_entries_are_narrowed_by_what_is_given(db: sqlite3.Connection) -> None:
    assert len(entries(db).entries) == 7
    assert {entry.tx_id for entry in entries(db, account="revenue:model_call:ocr").entries} == {1, 2, 3}
    assert {entry.account for entry in entries(db, account="revenue:model_call:ocr").entries} == {
        "revenue:model_call:ocr"
    }
    assert {entry.tenant for entry in entries(db, tenant="beta").entries} == {"beta"}
    assert [entry.tx_id for entry in entries(db, tx_id=3).entries] == [3, 3]
    assert {entry.tx_id for entry in entries(db, call_id=call(5).call_id).entries} == {2}
    assert entries(db, call_id=call(5).call_id, tenant="acme").entries == ()
    assert entries(db, account="nobody").entries == ()


def test_pages_hold_everything_once(db: sqlite3.Connection) -> None:
    seen: list[EntryView] = []
    after = 0
    while True:
        page = entries(db, after=after, limit=1)
        seen += page.entries
        if page.next_after is None:
            break
        after = page.next_after
    assert tuple(seen) == entries(db).entries
    for limit in (0, 1001):
        with pytest.raises(LedgerError, match=f"limit: {limit} must be"):
            entries(db, limit=limit)


def test_voids_and_quarantine_are_published_with_their_record(db: sqlite3.Connection) -> None:
    (void,) = voided(db)
    assert (void.instance, void.epoch, void.seq, void.served) == ("w0", 1, 7, call(7))
    (kept,) = quarantined(db)
    assert (kept.seq, kept.reason, kept.field, kept.served) == (8, "malformed", "rows", call(8))
    assert voided(db, after=void.void_id) == ()
    assert quarantined(db, after=kept.quarantine_id) == ()
    assert reason_name(kept.served.reason) == "priced"


def test_usage_adds_up_to_the_ledger_by_every_dimension(db: sqlite3.Connection) -> None:
    revenue = -sum(line.balance_nanos for line in trial_balance(db).lines if line.account.startswith("revenue:"))
    for dimension in ("day", "model", "key", "tenant", "plan", "outcome", "price_version"):
        rows = usage_by(db, (dimension,))
        assert sum(row.calls for row in rows) == 6
        assert sum(row.charge_nanos for row in rows) == revenue
    assert [(row.group, row.calls) for row in usage_by(db, ("day",))] == [(("2026-01-01",), 5), (("2026-01-02",), 1)]


def test_usage_is_narrowed_and_told_apart(db: sqlite3.Connection) -> None:
    (row,) = usage_by(db, ("tenant", "model"), tenant="acme", model="ocr", until_ns=T0_NS + DAY_NS)
    assert (row.group, row.calls, row.ok_calls, row.failed_calls, row.rows) == (("acme", "ocr"), 3, 2, 1, 3)
    assert [row.group for row in usage_by(db, ("key",), since_ns=T0_NS + DAY_NS)] == [("key_2",)]
    assert usage_by(db, ("day",), key="nobody") == []
    (total,) = usage_by(db, ())
    assert (total.group, total.currency, total.calls) == ((), "USD", 6)


def test_days_begin_where_the_zone_says(db: sqlite3.Connection) -> None:
    days = {row.group[0]: row.calls for row in usage_by(db, ("day",), zone="America/New_York")}
    assert days == {"2025-12-31": 5, "2026-01-01": 1}


def test_senseless_query_is_refused(db: sqlite3.Connection) -> None:
    with pytest.raises(UsageError, match="zone: 'Mars/Base'"):
        usage_by(db, zone="Mars/Base")
    with pytest.raises(UsageError, match="by: day, day"):
        usage_by(db, ("day", "day"))
    with pytest.raises(UsageError, match="by: colour"):
        usage_by(db, ("colour",))  # type: ignore[arg-type]
