"""I20: recognised + deferred = billed (net of tax) at every instant, whatever is changed, voided or credited."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.invoices.assemble import InvoiceError
from billing.invoices.document import Document
from billing.ledger.rules import Line
from billing.money import from_minor
from billing.recognition import store
from billing.recognition.reports import ageing, margin, roll_forward
from billing.recognition.schedule import Contract, deferred_nanos, earned_nanos
from tests.unit.billing.invoices.office import DAY_NS, NS_PER_S, Office, open_office

FEE = 30_00
LIABILITY = "contract_liability:subscription:acme"


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    with open_office(tmp_path) as opened:
        opened.set_up()
        yield opened


def begin(office: Office, fee: int = FEE, **fields: Any) -> str:
    body = {"tenant": "acme", "name": "Pro", "fee_minor": fee} | fields
    return str(office.do("subscription.start", body)["subscription_id"])


def recognise(office: Office, through_ns: int | None = None) -> Any:
    return office.do("recognition.run", {"tenant": "acme", "through_ns": through_ns or office.now_ns})


def bill(office: Office) -> Document | None:
    made = office.bill(office.now_ns - 2 * 3_600 * NS_PER_S)
    return None if made is None else office.document(made["number"])


def check_balances(office: Office) -> None:
    """The liability in the books is what the contracts say, once everything up to now is recognised."""
    recognise(office)
    rows = office.reader.execute("SELECT amount_nanos, start_ns, end_ns FROM contract").fetchall()
    contracts = [Contract._make(row) for row in rows]
    assert -office.balance(LIABILITY) == sum(deferred_nanos(one, office.now_ns) for one in contracts)
    assert -office.balance("revenue:subscription") == sum(earned_nanos(one, office.now_ns) for one in contracts)


@given(
    st.integers(-(10**15), 10**15),
    st.integers(0, 10**9),
    st.integers(0, 10**8),
    st.lists(st.integers(0, 2 * 10**9), max_size=5),
)
def test_earned_and_deferred_make_the_whole_at_every_instant_and_nothing_is_left(
    amount: int, start_s: int, length_s: int, instants: list[int]
) -> None:
    contract = Contract(amount, start_s * NS_PER_S, (start_s + length_s) * NS_PER_S)
    for at_s in instants:
        at_ns = at_s * NS_PER_S
        assert earned_nanos(contract, at_ns) + deferred_nanos(contract, at_ns) == amount
        if at_ns < contract.start_ns:
            assert earned_nanos(contract, at_ns) == 0
    assert deferred_nanos(contract, contract.end_ns) == 0


def test_a_fee_is_earned_day_by_day(office: Office) -> None:
    begin(office)
    bill(office)
    assert office.balance(LIABILITY) == -from_minor(FEE, "USD")
    office.now_ns += 14 * DAY_NS
    recognise(office)
    assert office.balance("revenue:subscription") == -from_minor(FEE, "USD") // 2
    office.now_ns += 20 * DAY_NS
    recognise(office)
    assert office.balance("revenue:subscription") == -from_minor(FEE, "USD")
    assert office.balance(LIABILITY) == 0
    assert store.open_contracts(office.reader, "acme") == []


def test_recognising_twice_recognises_nothing_twice_and_never_backwards(office: Office) -> None:
    begin(office)
    bill(office)
    office.now_ns += 10 * DAY_NS
    assert recognise(office)["contracts"] == 1
    assert recognise(office)["contracts"] == 0
    for through_ns in (office.now_ns - DAY_NS, office.now_ns + 1):
        with pytest.raises(InvoiceError):
            recognise(office, through_ns)


def test_tax_inside_the_fee_is_not_deferred(tmp_path: Path) -> None:
    with open_office(tmp_path) as office:
        office.set_up(prices_include_tax=True)
        begin(office, 119_00)
        bill(office)
        assert office.balance(LIABILITY) == -from_minor(100_00, "USD")
        assert office.balance("revenue:tax_included") == 0
        office.now_ns += 40 * DAY_NS
        check_balances(office)
        assert office.balance(LIABILITY) == 0


def test_a_void_takes_back_what_was_recognised_as_well(office: Office) -> None:
    begin(office)
    document = bill(office)
    assert document is not None
    office.now_ns += 10 * DAY_NS
    recognise(office)
    office.do("invoice.void", {"document": document.number})
    check_balances(office)
    assert office.balance("revenue:subscription") == office.balance(LIABILITY) == 0
    bill(office)
    check_balances(office)
    assert office.balance("revenue:subscription") < 0


def test_a_credit_on_a_fee_comes_out_of_what_is_not_yet_earned(office: Office) -> None:
    begin(office)
    document = bill(office)
    assert document is not None
    office.now_ns += 14 * DAY_NS
    recognise(office)
    credit = {"invoice": document.number, "amount_minor": document.total_minor, "reason": "goodwill", "line": 0}
    office.do("invoice.credit", credit)
    half = from_minor(FEE, "USD") // 2
    assert office.balance("revenue:credit_notes") == half
    check_balances(office)
    assert office.balance(LIABILITY) == 0
    office.now_ns += 30 * DAY_NS
    check_balances(office)
    assert office.balance("revenue:subscription") == -half


def test_a_credit_names_a_line_that_is_a_fee(office: Office) -> None:
    office.post_usage(1_000)
    begin(office)
    document = bill(office)
    assert document is not None
    for line in (0, 2, -1):
        with pytest.raises(InvoiceError):
            body = {"invoice": document.number, "amount_minor": 1, "reason": "r", "line": line}
            office.do("invoice.credit", body)


WHAT = st.sampled_from(["change", "pause", "bill", "credit", "void", "recognise"])
STEPS = st.lists(st.tuples(WHAT, st.integers(0, 45), st.integers(0, 50_00)), max_size=7)


@settings(max_examples=15, deadline=None)
@given(STEPS, st.booleans())
def test_whatever_is_done_the_books_hold_what_is_deferred(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]], is_inclusive: bool
) -> None:
    with open_office(tmp_path_factory.mktemp("recognition")) as office:
        office.set_up(prices_include_tax=is_inclusive)
        subscription = begin(office)
        documents = [bill(office)]
        for what, days, amount in steps:
            office.now_ns += days * DAY_NS + 7 * NS_PER_S
            try:
                _do(office, subscription, what, amount, documents)
            except InvoiceError as error:
                assert error.code in {"amount", "invoice_state", "field"}, error
            check_balances(office)
        office.do("subscription.cancel", {"subscription_id": subscription, "when": "now"})
        bill(office)
        office.now_ns += 400 * DAY_NS
        check_balances(office)
        assert office.balance(LIABILITY) == 0


def _do(office: Office, subscription: str, what: str, amount: int, documents: list[Document | None]) -> None:
    last = next((document for document in reversed(documents) if document is not None), None)
    if what == "change":
        office.do("subscription.change", {"subscription_id": subscription, "fee_minor": amount})
    elif what == "pause":
        office.do("subscription.pause", {"subscription_id": subscription})
        office.do("subscription.resume", {"subscription_id": subscription})
    elif what == "bill":
        office.do("subscription.renew", {"tenant": "acme"})
        documents.append(bill(office))
    elif what == "recognise":
        recognise(office)
    elif last is not None and what == "credit":
        body = {"invoice": last.number, "amount_minor": max(1, amount), "reason": "goodwill", "line": 0}
        office.do("invoice.credit", body)
    elif last is not None:
        office.do("invoice.void", {"document": last.number})


def test_what_is_left_of_an_expired_grant_is_breakage(office: Office) -> None:
    account = "contract_liability:prepaid:acme:g1"
    with office.ledger.journal() as journal:
        lines = [Line("cash:psp:bank", "USD", 500, 0), Line(account, "USD", -500, 0)]
        journal.post("top_up", "acme", office.now_ns, lines)
    body = {"tenant": "acme", "grant": "g1", "currency": "USD"}
    assert office.do("prepaid.expire", body) == {"released_nanos": 500}
    assert office.do("prepaid.expire", body) == {"released_nanos": 0}
    assert office.balance("revenue:breakage") == -500


def test_the_roll_forward_adds_up_and_meets_the_balance(office: Office) -> None:
    begin(office)
    document = bill(office)
    assert document is not None
    middle = office.now_ns + 14 * DAY_NS
    office.now_ns = middle
    recognise(office)
    office.do("invoice.credit", {"invoice": document.number, "amount_minor": 100, "reason": "r", "line": 0})
    office.now_ns += DAY_NS
    (first,) = roll_forward(office.reader, 0, middle)
    (second,) = roll_forward(office.reader, middle, office.now_ns)
    for one in (first, second):
        changed = one.added_nanos - one.recognised_nanos - one.other_nanos
        assert one.opening_nanos + changed == one.closing_nanos
    assert (first.opening_nanos, first.added_nanos, first.closing_nanos) == (
        0,
        from_minor(FEE, "USD"),
        second.opening_nanos,
    )
    assert second.closing_nanos == -office.balance(LIABILITY)
    assert second.recognised_nanos == from_minor(FEE, "USD") // 2
    assert second.other_nanos > 0


@pytest.mark.parametrize(
    ("days", "bucket"), [(-1, 0), (0, 0), (1, 1), (30, 1), (31, 2), (60, 2), (61, 3), (90, 3), (91, 4), (900, 4)]
)
def test_receivables_age_by_whole_days(office: Office, days: int, bucket: int) -> None:
    office.post_usage(1_000)
    office.bill()
    due_ns = office.document("INV-000001").due_ns
    ((tenant, currency, buckets, owed_back),) = ageing(office.reader, due_ns + days * DAY_NS)
    assert (tenant, currency, owed_back) == ("acme", "USD", 0)
    assert [index for index, amount in enumerate(buckets) if amount] == [bucket]
    assert sum(buckets) == 179


def test_ageing_shows_what_is_owed_back_and_leaves_out_what_is_done(office: Office) -> None:
    office.post_usage(1_000)
    office.bill()
    pay = {"invoice": "INV-000001", "provider": "bank", "reference": "r", "amount_minor": 179}
    office.do("invoice.pay", pay)
    assert ageing(office.reader, office.now_ns) == []
    office.do("invoice.pay", pay | {"reference": "r2", "amount_minor": 21})
    ((_, _, buckets, owed_back),) = ageing(office.reader, office.now_ns)
    assert (sum(buckets), owed_back) == (0, 21)


def test_margin_is_revenue_less_metered_compute(office: Office) -> None:
    office.post_usage(10)
    (row,) = margin(office.reader, ("model", "tenant"), cost_nanos_per_compute_s=10**9)
    assert (row.group, row.calls, row.compute_ns) == (("ocr", "acme"), 10, 25_000_000)
    assert (row.revenue_nanos, row.cost_nanos, row.margin_nanos) == (15_000_000, 25_000_000, -10_000_000)


def test_a_scheduled_grant_expires_once_and_not_before_its_time(office: Office) -> None:
    account = "contract_liability:prepaid:acme:g1"
    with office.ledger.journal() as journal:
        lines = [Line("cash:psp:bank", "USD", 500, 0), Line(account, "USD", -500, 0)]
        journal.post("top_up", "acme", office.now_ns, lines)
    grant = {"tenant": "acme", "grant": "g1", "currency": "USD"}
    due_ns = office.now_ns + DAY_NS
    assert office.do("prepaid.schedule", grant | {"expires_ns": due_ns}) == {"account": account, "expires_ns": due_ns}
    assert office.do("prepaid.schedule", grant | {"expires_ns": due_ns})["expires_ns"] == due_ns
    with pytest.raises(InvoiceError, match="already") as caught:
        office.do("prepaid.schedule", grant | {"expires_ns": due_ns + 1})
    assert caught.value.code == "conflict"
    with pytest.raises(InvoiceError, match="expires at") as caught:
        office.do("prepaid.expire", grant)
    assert caught.value.code == "too_early"
    assert store.due_expiries(office.reader, due_ns - 1) == []
    assert store.due_expiries(office.reader, due_ns) == [store.DueExpiry("acme", "g1", "USD")]
    office.now_ns = due_ns
    assert office.do("prepaid.expire", grant) == {"released_nanos": 500}
    assert store.due_expiries(office.reader, due_ns) == []
    assert office.balance("revenue:breakage") == -500
    assert office.do("prepaid.schedule", grant | {"expires_ns": due_ns})["expires_ns"] == due_ns


@pytest.mark.parametrize(
    "change", [{"grant": ""}, {"currency": "XXY"}, {"expires_ns": 0}, {"expires_ns": 2**63 - 1 + 1}, {"tenant": ""}]
)
def test_what_cannot_be_scheduled_is_refused(office: Office, change: dict[str, Any]) -> None:
    body = {"tenant": "acme", "grant": "g1", "currency": "USD", "expires_ns": office.now_ns + 1}
    with pytest.raises(InvoiceError) as caught:
        office.do("prepaid.schedule", body | change)
    assert caught.value.code == "field"
    assert office.reader.execute("SELECT COUNT(*) FROM prepaid_expiry").fetchone() == (0,)
