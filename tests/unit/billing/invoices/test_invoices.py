"""An invoice bills posted usage once, gets the next number, never changes, and its books balance at every step."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from billing.invoices.assemble import InvoiceError, usage_lines
from billing.invoices.document import digest_of, encode_document
from billing.invoices.schema import ensure_schema
from billing.ledger.port import LedgerError
from billing.ledger.rules import Line
from billing.money import from_minor
from billing.usage import UsageRow
from tests.unit.billing.invoices.office import ACCOUNT, DAY_NS, MONTH_END_NS, NS_PER_S, Office, open_office

CALL_NANOS = 1_500_000


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    with open_office(tmp_path) as opened:
        opened.set_up()
        yield opened


def refused(office: Office, verb: str, body: dict[str, Any]) -> str:
    with pytest.raises(InvoiceError) as error:
        office.do(verb, body)
    return error.value.code


def test_an_invoice_bills_the_period_with_tax_and_clears_the_unbilled_receivable(office: Office) -> None:
    office.post_usage(1_000)
    invoice = office.bill()
    assert invoice["number"] == "INV-000001"
    assert (invoice["net_minor"], invoice["tax_minor"], invoice["total_minor"]) == (150, 29, 179)
    assert office.balance("unbilled_receivable:acme") == 0
    assert office.balance("accounts_receivable:acme") == from_minor(179, "USD")
    assert office.balance("tax_payable:DE") == -from_minor(29, "USD")
    assert office.state("INV-000001").status == "open"
    assert invoice["due_ns"] == office.now_ns + 14 * DAY_NS


def test_the_remainder_of_rounding_goes_to_its_account(office: Office) -> None:
    office.post_usage(3)
    invoice = office.bill()
    (line,) = invoice["lines"]
    assert (line["exact_nanos"], line["amount_minor"]) == (3 * CALL_NANOS, 0)
    assert office.balance("revenue:rounding") == 3 * CALL_NANOS
    assert office.state(invoice["number"]).status == "paid"


def test_late_usage_comes_with_the_next_invoice_and_keeps_its_time(office: Office) -> None:
    office.post_usage(1_000)
    office.bill()
    office.post_usage(500)
    assert office.balance("unbilled_receivable:acme") == 500 * CALL_NANOS
    office.now_ns += 31 * DAY_NS
    second = office.bill(MONTH_END_NS + 28 * DAY_NS)
    assert [line["quantity"] for line in second["lines"]] == [500]
    assert office.balance("unbilled_receivable:acme") == 0


def test_usage_behind_the_end_waits_for_its_own_invoice(office: Office) -> None:
    office.post_usage(1_000)
    office.post_usage(700, t_ns=MONTH_END_NS)
    office.post_usage(300, t_ns=MONTH_END_NS - 1)
    assert [line["quantity"] for line in office.bill()["lines"]] == [1_300]
    office.now_ns += 31 * DAY_NS
    assert [line["quantity"] for line in office.bill(MONTH_END_NS + 28 * DAY_NS)["lines"]] == [700]


def test_billing_twice_bills_nothing_twice(office: Office) -> None:
    office.post_usage(1_000)
    assert office.bill() is not None
    assert office.bill() is None


def test_the_grace_for_late_usage_is_waited_for(office: Office) -> None:
    office.post_usage(1_000)
    office.now_ns = MONTH_END_NS + 3_600 * NS_PER_S - 1
    assert refused(office, "invoice.bill", {"tenant": "acme", "until_ns": MONTH_END_NS}) == "too_early"
    office.now_ns += 1
    assert office.bill() is not None


def test_a_command_repeated_answers_the_same_and_does_nothing(office: Office) -> None:
    office.post_usage(1_000)
    body = {"tenant": "acme", "until_ns": MONTH_END_NS}
    first = office.do("invoice.bill", body, "same")
    assert office.do("invoice.bill", body, "same") == first
    assert office.events().count("invoice.finalized") == 1
    with pytest.raises(InvoiceError) as error:
        office.do("invoice.bill", body | {"until_ns": MONTH_END_NS - DAY_NS}, "same")
    assert error.value.code == "conflict"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE invoice SET total_minor = 1",
        "UPDATE invoice SET body = '{}'",
        "DELETE FROM invoice",
        "REPLACE INTO invoice SELECT * FROM invoice",
        "INSERT INTO invoice SELECT 'x', series, serial + 2, 'x', kind, tenant, currency, total_minor, issued_ns,"
        " due_ns, start_ns, end_ns, corrects, body, digest FROM invoice",
        "UPDATE invoice_step SET amount_minor = 1",
        "DELETE FROM invoice_step",
        "DELETE FROM usage_cut",
        "INSERT INTO usage_cut VALUES ('acme', 2, 1, 1, 'x')",
        "DELETE FROM item_billed",
        "DELETE FROM billing_event",
        "UPDATE money_operation SET answer = ''",
        "UPDATE billing_account SET currency = 'EUR'",
    ],
)
def test_a_finalized_invoice_and_what_belongs_to_it_cannot_be_changed(office: Office, statement: str) -> None:
    office.do(
        "item.add", {"tenant": "acme", "source": "a", "kind": "adjustment", "description": "d", "amount_nanos": 1}
    )
    office.post_usage(1_000)
    office.bill()
    with pytest.raises(LedgerError), office.ledger.journal() as journal:
        journal.execute(statement)
        assert journal.execute("SELECT changes()").fetchone() != (0,)


def test_the_stored_document_is_what_its_digest_says(office: Office) -> None:
    office.post_usage(1_000)
    number = office.bill()["number"]
    (digest,) = office.reader.execute("SELECT digest FROM invoice").fetchone()
    assert digest_of(encode_document(office.document(number))).hex() == digest


def test_a_draft_has_no_number_can_be_dropped_and_goes_stale(office: Office) -> None:
    office.post_usage(1_000)
    body = {"tenant": "acme", "until_ns": MONTH_END_NS}
    draft = office.do("invoice.draft", body)
    assert draft["number"] == ""
    office.do("invoice.discard", {"document": draft["document_id"]})
    assert refused(office, "invoice.finalize", {"document": draft["document_id"]}) == "not_found"
    stale = office.do("invoice.draft", body)
    office.bill()
    assert refused(office, "invoice.finalize", {"document": stale["document_id"]}) == "draft_stale"


def test_usage_that_was_paid_otherwise_is_not_billed_again(office: Office) -> None:
    office.post_usage(1_000)
    moved = [Line("contract_liability:prepaid:acme", "USD", 1, 0), Line("unbilled_receivable:acme", "USD", -1, 0)]
    with office.ledger.journal() as journal:
        funds = [Line("cash:psp:bank", "USD", 1, 0), Line("contract_liability:prepaid:acme", "USD", -1, 0)]
        journal.post("top_up", "acme", office.now_ns, funds)
        journal.post("settlement", "acme", office.now_ns, moved)
    assert refused(office, "invoice.bill", {"tenant": "acme", "until_ns": MONTH_END_NS}) == "unbilled_short"
    assert office.events() == []


def test_a_draft_is_finalized_as_it_was_shown(office: Office) -> None:
    office.post_usage(1_000)
    draft = office.do("invoice.draft", {"tenant": "acme", "until_ns": MONTH_END_NS})
    office.post_usage(1_000)
    final = office.do("invoice.finalize", {"document": draft["document_id"]})
    assert final["lines"] == draft["lines"]
    assert office.balance("unbilled_receivable:acme") == 1_000 * CALL_NANOS


def test_payments_in_parts_pay_the_invoice_and_are_booked_once(office: Office) -> None:
    office.post_usage(1_000)
    number = office.bill()["number"]
    part = {"invoice": number, "provider": "bank", "reference": "r1", "amount_minor": 100}
    assert office.do("invoice.pay", part)["due_minor"] == 79
    assert refused(office, "invoice.pay", part) == "conflict"
    office.do("invoice.pay", part | {"reference": "r2", "amount_minor": 79})
    assert office.state(number).status == "paid"
    assert office.balance("accounts_receivable:acme") == 0
    assert office.balance("cash:psp:bank") == from_minor(179, "USD")
    assert office.events()[-1] == "invoice.paid"


def test_an_overpayment_can_be_given_back_and_no_more(office: Office) -> None:
    office.post_usage(1_000)
    number = office.bill()["number"]
    office.do("invoice.pay", {"invoice": number, "provider": "bank", "reference": "r1", "amount_minor": 200})
    back = {"invoice": number, "provider": "bank", "reference": "b1", "amount_minor": 22}
    assert refused(office, "invoice.refund", back) == "amount"
    office.do("invoice.refund", back | {"amount_minor": 21})
    assert office.state(number).due_minor == 0
    assert office.balance("accounts_receivable:acme") == 0


def test_credit_notes_have_numbers_of_their_own_and_give_all_tax_back_in_parts(office: Office) -> None:
    office.post_usage(1_000)
    number = office.bill()["number"]
    notes = [
        office.do("invoice.credit", {"invoice": number, "amount_minor": amount, "reason": "goodwill"})["credit_note"]
        for amount in (1, 77, 101)
    ]
    assert [note["number"] for note in notes] == ["CN-000001", "CN-000002", "CN-000003"]
    assert sum(note["tax_minor"] for note in notes) == 29
    assert office.balance("tax_payable:DE") == office.balance("accounts_receivable:acme") == 0
    assert office.balance("revenue:credit_notes") == from_minor(150, "USD")
    assert office.state(number).status == "paid"
    assert refused(office, "invoice.credit", {"invoice": number, "amount_minor": 1, "reason": "more"}) == "amount"
    assert refused(office, "invoice.pay", _pay(notes[0]["number"], 1)) == "invoice_state"


def test_a_voided_invoice_keeps_its_number_and_is_billed_again(office: Office) -> None:
    office.post_usage(1_000)
    first = office.bill()
    office.do("invoice.void", {"document": first["number"]})
    assert office.state(first["number"]).status == "void"
    assert office.balance("unbilled_receivable:acme") == 1_000 * CALL_NANOS
    again = office.bill()
    assert again["number"] == "INV-000002"
    assert again["total_minor"] == first["total_minor"]
    assert office.balance("unbilled_receivable:acme") == 0
    assert refused(office, "invoice.pay", _pay(first["number"], 1)) == "invoice_state"


def test_an_invoice_with_payments_is_not_voided(office: Office) -> None:
    office.post_usage(1_000)
    number = office.bill()["number"]
    office.do("invoice.pay", _pay(number, 1))
    assert refused(office, "invoice.void", {"document": number}) == "invoice_state"


def test_what_is_written_off_and_paid_after_all_reduces_the_loss(office: Office) -> None:
    office.post_usage(1_000)
    number = office.bill()["number"]
    office.do("invoice.write_off", {"document": number})
    assert office.state(number).status == "uncollectible"
    assert office.balance("expense:bad_debt") == from_minor(179, "USD")
    office.do("invoice.pay", _pay(number, 200))
    assert office.state(number).status == "paid"
    assert office.balance("expense:bad_debt") == 0
    assert office.balance("accounts_receivable:acme") == -from_minor(21, "USD")


def test_a_payment_in_another_currency_is_four_entries(office: Office) -> None:
    office.post_usage(1_000)
    number = office.bill()["number"]
    office.do("invoice.pay", _pay(number, 179) | {"paid_currency": "EUR", "paid_minor": 165})
    assert office.balance("cash:psp:bank", "EUR") == from_minor(165, "EUR")
    assert office.balance("fx_clearing", "EUR") == -from_minor(165, "EUR")
    assert office.balance("fx_clearing", "USD") == from_minor(179, "USD")
    assert office.balance("accounts_receivable:acme") == 0


def test_items_reduce_an_invoice_and_credits_beyond_it_wait(office: Office) -> None:
    office.post_usage(1_000)
    item = {"tenant": "acme", "source": "g1", "kind": "promo", "description": "goodwill"}
    office.do("item.add", item | {"amount_nanos": -2 * 10**9})
    assert refused(office, "item.add", item | {"amount_nanos": -1}) == "conflict"
    assert office.bill() is None
    assert office.balance("unbilled_receivable:acme") == 1_000 * CALL_NANOS
    office.do("item.add", item | {"source": "g2", "amount_nanos": 10**9})
    assert office.bill()["net_minor"] == 50
    assert office.balance("contra_revenue:promo_discount") == 10**9


def test_reverse_charge_has_no_tax_and_says_so(tmp_path: Path) -> None:
    with open_office(tmp_path) as office:
        office.set_up(buyer={"name": "Dupont", "tax": {"country": "FR", "tax_id": "FR12345678901"}})
        office.post_usage(1_000)
        invoice = office.bill()
        assert (invoice["total_minor"], invoice["tax_minor"]) == (150, 0)
        assert [tax["treatment"] for tax in invoice["taxes"]] == ["reverse_charge"]


def test_tax_inside_the_price_is_no_revenue(tmp_path: Path) -> None:
    with open_office(tmp_path) as office:
        office.set_up(prices_include_tax=True)
        office.post_usage(1_000)
        invoice = office.bill()
        assert (invoice["total_minor"], invoice["tax_minor"], invoice["net_minor"]) == (150, 24, 126)
        assert office.balance("revenue:tax_included") == from_minor(24, "USD")
        assert office.balance("tax_payable:DE") == -from_minor(24, "USD")


@pytest.mark.parametrize(
    ("verb", "body", "code"),
    [
        ("account.set", {"tenant": "acme", "currency": "EUR"}, "currency"),
        ("account.set", {"currency": "XXX"}, "currency"),
        ("account.set", {"terms_days": 366}, "field"),
        ("account.set", {"terms_days": -1}, "field"),
        ("account.set", {"zone": "Mars/Olympus"}, "field"),
        ("account.set", {"collection": "automatic"}, "field"),
        ("account.set", {"buyer": {"name": "", "tax": {"country": "DE"}}}, "field"),
        ("account.set", {"buyer": {"name": "x", "tax": {"country": "Germany"}}}, "field"),
        ("account.set", {"colour": "red"}, "field"),
    ],
)
def test_a_bad_account_is_refused(office: Office, verb: str, body: dict[str, Any], code: str) -> None:
    assert refused(office, verb, ACCOUNT | body) == code


@pytest.mark.parametrize(
    ("verb", "body", "code"),
    [
        ("invoice.draft", {"tenant": "nobody", "until_ns": MONTH_END_NS}, "not_found"),
        ("invoice.draft", {"tenant": "acme", "until_ns": MONTH_END_NS}, "nothing_to_bill"),
        ("invoice.draft", {"tenant": "acme"}, "field"),
        ("invoice.pay", {"invoice": "INV-9", "provider": "p", "reference": "r", "amount_minor": 1}, "not_found"),
        ("invoice.void", {"document": "INV-9"}, "not_found"),
        ("invoice.nonsense", {}, "unknown_verb"),
        (
            "item.add",
            {"tenant": "acme", "source": "s", "kind": "usage", "description": "d", "amount_nanos": 1},
            "field",
        ),
    ],
)
def test_a_bad_command_is_refused_by_code(office: Office, verb: str, body: dict[str, Any], code: str) -> None:
    assert refused(office, verb, body) == code


def test_usage_in_another_currency_than_the_account_is_not_billed() -> None:
    row = UsageRow(("ocr", 1), "EUR", 1, 1, 0, 1, 1, 1, 1, 5)
    with pytest.raises(InvoiceError) as error:
        usage_lines("acme", "USD", [row], (0, 1))
    assert error.value.code == "currency"


def test_tables_of_a_newer_release_are_refused(office: Office) -> None:
    with pytest.raises(LedgerError, match="schema 999"), office.ledger.journal() as journal:
        journal.execute("INSERT INTO money_schema VALUES (999, 0)")
        ensure_schema(journal.db, 0)


def test_a_command_that_fails_leaves_nothing(office: Office) -> None:
    office.post_usage(1_000)
    before = office.ledger.state()
    with pytest.raises(LedgerError), office.ledger.journal() as journal:
        journal.execute("INSERT INTO billing_event (at_ns, tenant, type, body) VALUES (1, 'a', 'b', 'c')")
        journal.execute("SELECT ?", ())
    assert office.ledger.state() == before
    assert office.events() == []


def _pay(number: str, amount_minor: int) -> dict[str, Any]:
    return {"invoice": number, "provider": "bank", "reference": f"r-{amount_minor}", "amount_minor": amount_minor}
