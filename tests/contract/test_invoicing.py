"""One suite over the ledgers that take money commands: documents, payments, dunning, recognition, and their guards."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from billing.equality import compare_all
from billing.invoices import store
from billing.invoices.assemble import InvoiceError
from billing.invoices.subscriptions import due_tenants
from billing.ledger.port import LedgerError
from billing.money import from_minor
from billing.payments.commands import done_for, suspended_documents
from billing.recognition.reports import ageing, margin, roll_forward
from gateway.control.billing_clock import due_periods
from gateway.control.collector import open_documents
from tests.contract.ledgers import BOOKS
from tests.contract.offices import new_office
from tests.unit.billing.invoices.office import DAY_NS, MONTH_END_NS, Office


@pytest.fixture(params=BOOKS)
def office(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Office]:
    opened = new_office(request, tmp_path)
    try:
        opened.set_up()
        yield opened
        opened.check()
        assert compare_all(opened.reader).differences == ()
    finally:
        opened.close()


def pay(office: Office, amount_minor: int, reference: str) -> Any:
    body = {"invoice": "INV-000001", "provider": "bank", "reference": reference, "amount_minor": amount_minor}
    return office.do("invoice.pay", body)


def test_a_month_from_usage_to_payment_with_everything_in_between(office: Office) -> None:
    office.post_usage(1_000)
    office.do("subscription.start", {"tenant": "acme", "name": "Pro", "fee_minor": 3_100})
    assert due_tenants(office.reader, office.now_ns) == []
    assert due_periods(office.reader, office.now_ns) == [("acme", [MONTH_END_NS])]
    item = {"tenant": "acme", "source": "a", "kind": "adjustment", "description": "goodwill", "amount_nanos": -(10**9)}
    office.do("item.add", item)
    invoice = office.bill()
    assert (invoice["number"], invoice["net_minor"], invoice["tax_minor"]) == ("INV-000001", 3_150, 599)
    assert office.balance("unbilled_receivable:acme") == 0
    office.post_usage(500)
    pay(office, 3_000, "r1")
    office.do("invoice.credit", {"invoice": "INV-000001", "amount_minor": 749, "reason": "outage"})
    assert office.state("INV-000001").status == "paid"
    pay(office, 10, "r2")
    office.do("invoice.refund", {"invoice": "INV-000001", "provider": "bank", "reference": "b1", "amount_minor": 10})
    assert office.balance("accounts_receivable:acme") == 0
    office.now_ns += 31 * DAY_NS
    second = office.bill(MONTH_END_NS + 28 * DAY_NS)
    assert [line["quantity"] for line in second["lines"] if line["kind"] == "usage"] == [500]
    rows = store.list_invoices(office.reader, tenant="acme")
    assert sorted(row.number for row in rows) == ["CN-000001", "INV-000001", "INV-000002"]
    assert store.last_event_seq(office.reader) == len(office.events())


def test_a_void_is_billed_again_and_a_write_off_can_be_recovered(office: Office) -> None:
    office.post_usage(1_000)
    office.bill()
    office.do("invoice.void", {"document": "INV-000001"})
    assert office.bill()["number"] == "INV-000002"
    office.do("invoice.write_off", {"document": "INV-000002"})
    pay_body = {"invoice": "INV-000002", "provider": "bank", "reference": "r", "amount_minor": 179}
    office.do("invoice.pay", pay_body)
    assert office.balance("expense:bad_debt") == 0
    with pytest.raises(InvoiceError):
        office.do("invoice.pay", pay_body)


def test_fees_are_recognised_and_reported(office: Office) -> None:
    office.do("subscription.start", {"tenant": "acme", "name": "Pro", "fee_minor": 2_800})
    office.bill()
    start_ns = office.now_ns
    office.now_ns += 14 * DAY_NS
    office.do("recognition.run", {"tenant": "acme", "through_ns": office.now_ns})
    assert office.balance("revenue:subscription") == -from_minor(1_400, "USD")
    (row,) = roll_forward(office.reader, start_ns, office.now_ns + 1)
    assert (row.added_nanos, row.closing_nanos) == (from_minor(2_800, "USD"), from_minor(1_400, "USD"))
    (ages,) = ageing(office.reader, office.now_ns + 40 * DAY_NS)
    assert sum(ages.buckets_minor) == office.state("INV-000001").due_minor
    office.post_usage(10)
    assert margin(office.reader, ("model",), cost_nanos_per_compute_s=1)[0].calls == 10


def test_a_coupon_on_a_fee_is_billed_recognised_and_never_changed(office: Office) -> None:
    coupon = {"code": "HALF", "percent_ppm": 500_000, "months": 1, "applies_to": "fees"}
    office.do("coupon.redeem", {"tenant": "acme", "coupon": coupon})
    office.do("subscription.start", {"tenant": "acme", "name": "Pro", "fee_minor": 2_800})
    invoice = office.bill()
    assert [line["amount_minor"] for line in invoice["lines"]] == [2_800, -1_400]
    office.now_ns += 40 * DAY_NS
    office.do("recognition.run", {"tenant": "acme", "through_ns": office.now_ns})
    assert office.balance("revenue:subscription") == -from_minor(1_400, "USD")
    assert office.balance("contract_liability:subscription:acme") == 0
    with pytest.raises(LedgerError), office.ledger.journal() as journal:
        journal.execute("DELETE FROM fee_coupon")


def test_attempts_and_dunning_are_written_down(office: Office) -> None:
    office.post_usage(1_000)
    document_id = office.bill()["document_id"]
    begun = office.do("payment.begin", {"document": document_id, "covers": 1})
    assert done_for(office.reader, document_id).is_open
    assert office.do("payment.begin", {"document": document_id, "covers": 1})["attempt_id"] == begun["attempt_id"]
    office.do(
        "payment.finish", {"attempt_id": begun["attempt_id"], "outcome": "declined", "code": "x", "is_final": True}
    )
    office.do("dunning.note", {"document": document_id, "kind": "suspended"})
    done = done_for(office.reader, document_id)
    assert (done.tries, done.is_open, done.is_suspended, done.is_final) == (1, False, True, True)
    assert suspended_documents(office.reader) == [(document_id, "acme")]
    due_ns = office.document("INV-000001").due_ns
    assert open_documents(office.reader, due_ns - 1) == []
    assert open_documents(office.reader, due_ns) == [document_id]
    told = {"provider": "p", "kind": "succeeded", "reference": "x", "amount_minor": 179, "currency": "USD"}
    assert office.do("payment.told", told | {"document_id": document_id})["is_news"]
    assert not office.do("payment.told", told | {"document_id": document_id})["is_news"]
    assert office.state("INV-000001").status == "paid"
    assert open_documents(office.reader, due_ns) == []


def test_a_command_repeated_answers_the_same(office: Office) -> None:
    office.post_usage(1_000)
    body = {"tenant": "acme", "until_ns": MONTH_END_NS}
    assert office.do("invoice.bill", body, "same") == office.do("invoice.bill", body, "same")
    with pytest.raises(InvoiceError):
        office.do("invoice.bill", body | {"until_ns": 1}, "same")
    assert office.events().count("invoice.finalized") == 1


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE invoice SET total_minor = 1",
        "DELETE FROM invoice",
        "INSERT INTO invoice SELECT 'x', series, serial + 2, 'x', kind, tenant, currency, total_minor, issued_ns,"
        " due_ns, start_ns, end_ns, corrects, body, digest FROM invoice",
        "DELETE FROM invoice_step",
        "INSERT INTO usage_cut VALUES ('acme', 2, 1, 1, 'x')",
        "UPDATE money_operation SET answer = ''",
        "UPDATE billing_account SET currency = 'EUR'",
        "DELETE FROM contract",
        "DELETE FROM payment_attempt",
    ],
)
def test_what_is_written_cannot_be_changed(office: Office, statement: str) -> None:
    office.post_usage(1_000)
    office.do("subscription.start", {"tenant": "acme", "name": "Pro", "fee_minor": 2_800})
    document_id = office.bill()["document_id"]
    office.do("payment.begin", {"document": document_id, "covers": 1})
    with pytest.raises(LedgerError), office.ledger.journal() as journal:
        journal.execute(statement)
