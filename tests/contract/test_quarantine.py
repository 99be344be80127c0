"""Quarantine on both stores: what waits is shown, released once what was wrong is right, or given up."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from billing.events import Reason
from billing.invoices.assemble import InvoiceError
from billing.ledger.port import Batch, LedgerError, Position, Rejected
from billing.quarantine import RECORDS_MAX, ended, list_held
from billing.reconcile import reconcile
from tests.contract.ledgers import BOOKS
from tests.contract.offices import new_office
from tests.unit.billing.invoices.office import Office
from tests.unit.billing.making import W0, call, marked, write_dead_epoch

OCR = 1_500_000


@pytest.fixture(params=BOOKS)
def office(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Office]:
    opened = new_office(request, tmp_path)
    try:
        opened.set_up()
        yield opened
        opened.check()
    finally:
        opened.close()


def hold(office: Office, *numbers: int, reason: str = "clock_skewed", **changes: Any) -> None:
    """Put calls into quarantine, at places of w0's log that are as their numbers."""
    rejected = [Rejected((W0, n, call(n, **changes)), reason, "t_ns") for n in numbers]
    last = max(numbers)
    office.ledger.post(Batch(rejected=rejected, positions={W0: Position(last, last)}, now_ns=office.now_ns))


def waiting(office: Office) -> list[int]:
    return [one.quarantine_id for one in list_held(office.reader)]


def decide(office: Office, verb: str, *ids: int, note: str = "looked at") -> Any:
    return office.do(f"quarantine.{verb}", {"quarantine_ids": list(ids), "note": note})


def refusal(office: Office, verb: str, *ids: int, **fields: Any) -> str:
    before = waiting(office)
    with pytest.raises(InvoiceError) as refused:
        decide(office, verb, *ids, **fields)
    assert waiting(office) == before
    return refused.value.code


def test_what_waits_is_shown_with_its_call_and_its_reason(office: Office) -> None:
    hold(office, 1, 2)
    first, second = list_held(office.reader)
    assert (first.served, first.source, first.seq, first.reason, first.field) == (
        call(1),
        W0,
        1,
        "clock_skewed",
        "t_ns",
    )
    assert [one.quarantine_id for one in list_held(office.reader, after=first.quarantine_id)] == [second.quarantine_id]


def test_a_release_posts_the_call_with_its_own_time_and_it_is_billed(office: Office) -> None:
    hold(office, 1, 2, 3)
    one, two, three = waiting(office)
    assert decide(office, "release", one, three) == {"posted": 2, "charge_nanos": 2 * OCR}
    assert waiting(office) == [two]
    assert office.balance("unbilled_receivable:acme") == 2 * OCR
    invoice = office.bill()
    assert [line["quantity"] for line in invoice["lines"]] == [2]
    (done, *_) = list_held(office.reader, waits_only=False)
    assert (done.fate, done.note, done.ended_ns) == ("posted", "looked at", office.now_ns)


def test_a_dismissal_posts_nothing_and_every_end_is_final(office: Office) -> None:
    hold(office, 1, 2)
    one, two = waiting(office)
    assert decide(office, "dismiss", one) == {"dismissed": 1}
    decide(office, "release", two)
    assert waiting(office) == []
    assert office.balance("unbilled_receivable:acme") == OCR
    assert dict(ended(office.reader)) == {"posted": 1, "dismissed": 1}
    for verb in ("release", "dismiss"):
        assert refusal(office, verb, one) == refusal(office, verb, two) == "conflict"
    with pytest.raises(LedgerError), office.ledger.journal() as journal:
        journal.execute("DELETE FROM quarantine_end")


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("price_version_unknown", {"price_version": 9}),
        ("charge_mismatch", {"charge_nanos": 1}),
        ("malformed", {"rows": -1}),
    ],
)
def test_what_is_still_at_fault_is_not_released(office: Office, reason: str, changes: dict[str, Any]) -> None:
    rejected = [Rejected((W0, 1, call(1)), "clock_skewed", "t_ns")]
    faulty = msgspec.structs.replace(call(2), **changes)
    rejected.append(Rejected((W0, 2, faulty), reason, "x"))
    office.ledger.post(Batch(rejected=rejected, positions={W0: Position(2, 2)}, now_ns=office.now_ns))
    good, bad = waiting(office)
    assert refusal(office, "release", bad) == "conflict"
    # All of a command or none.
    assert refusal(office, "release", good, bad) == "conflict"
    assert office.balance("unbilled_receivable:acme") == 0


def test_an_id_that_is_posted_otherwise_stays_out(office: Office) -> None:
    office.ledger.post(Batch(posts=[(W0, 1, call(1))], positions={W0: Position(1, 1)}, now_ns=office.now_ns))
    office.ledger.post(Batch(posts=[(W0, 2, call(1, rows=4))], positions={W0: Position(2, 2)}, now_ns=office.now_ns))
    (held,) = list_held(office.reader)
    assert held.reason == "exists_with_different"
    assert refusal(office, "release", held.quarantine_id) == "conflict"
    decide(office, "dismiss", held.quarantine_id)


def test_two_records_of_one_call_are_not_released_together(office: Office) -> None:
    rejected = [Rejected((W0, n, call(7)), "clock_skewed", "t_ns") for n in (1, 2)]
    office.ledger.post(Batch(rejected=rejected, positions={W0: Position(2, 2)}, now_ns=office.now_ns))
    one, two = waiting(office)
    assert refusal(office, "release", one, two) == "conflict"
    decide(office, "release", one)
    assert refusal(office, "release", two) == "conflict"


def test_a_prepaid_call_takes_what_the_wallet_has_and_no_more(office: Office) -> None:
    changed = [msgspec.structs.replace(call(n), reason=int(Reason.PREPAID)) for n in (3, 4)]
    rejected = [Rejected((W0, n, one), "over_lease", "charge_nanos") for n, one in enumerate(changed, 3)]
    office.ledger.post(Batch(rejected=rejected, positions={W0: Position(4, 4)}, now_ns=office.now_ns))
    one, two = waiting(office)
    assert refusal(office, "release", one) == "conflict"
    body = {"tenant": "acme", "currency": "USD", "amount_nanos": OCR, "provider": "bank", "reference": "r"}
    office.do("wallet.top_up", body)
    assert refusal(office, "release", one, two) == "conflict"
    decide(office, "release", one)
    assert office.balance("contract_liability:prepaid:acme") == 0
    assert refusal(office, "release", two) == "conflict"


@pytest.mark.parametrize(
    ("ids", "note", "code"),
    [
        ([], "n", "field"),
        ([1, 1], "n", "field"),
        ([1], "", "field"),
        ([1], "n" * 501, "field"),
        ([99], "n", "not_found"),
    ],
)
def test_a_bad_decision_is_refused(office: Office, ids: list[int], note: str, code: str) -> None:
    hold(office, 1)
    assert refusal(office, "release", *ids, note=note) == code
    assert refusal(office, "dismiss", *range(1, RECORDS_MAX + 2)) == "field"


def test_reconcile_counts_each_fate_and_is_content_when_all_is_decided(office: Office, tmp_path: Path) -> None:
    write_dead_epoch(tmp_path / "usage", marked([call(n) for n in range(1, 6)]))
    hold(office, 1, 2, 3)
    office.ledger.post(
        Batch(
            posts=[(W0, n, call(n)) for n in (4, 5)],
            positions={W0: Position(6, 5, is_ended=True)},
            now_ns=office.now_ns,
        )
    )
    report = reconcile(tmp_path)
    assert (report.posted, report.quarantined, report.dismissed) == (2, 3, 0)
    assert [problem.kind for problem in report.problems] == ["quarantine"]
    one, two, three = waiting(office)
    decide(office, "release", one, two)
    decide(office, "dismiss", three)
    report = reconcile(tmp_path)
    assert report.problems == ()
    assert (report.recorded, report.posted, report.quarantined, report.dismissed) == (5, 4, 0, 1)
