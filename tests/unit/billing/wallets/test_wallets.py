"""Money into wallets and back: booked once, refused where it must not be, and told when it runs low."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from billing.equality import compare_all
from billing.events import Reason
from billing.funds import FundsDesk
from billing.invoices import store as invoices
from billing.invoices.assemble import InvoiceError
from billing.ledger.leases import LeaseOrder, order_leases
from billing.ledger.port import Batch, Position
from billing.ledger.rules import Line
from billing.meter_client import MeterError
from billing.recognition.reports import roll_forward
from billing.usage import usage_by
from billing.wallets.commands import BALANCE_NANOS_MAX, TOP_UP_NANOS_MAX, whole_minor
from billing.wallets.store import currencies_of, find_top_up, list_top_ups, wallet_state
from tests.unit.billing.invoices.office import MONTH_END_NS, Office, open_office
from tests.unit.billing.making import W0, items

USD = 1_000_000_000
#: What a call of `ocr` costs.
CALL = 1_500_000
PAID = {"tenant": "acme", "currency": "USD", "amount_nanos": 10 * USD, "provider": "bank", "reference": "r1"}
GIFT = {"tenant": "acme", "currency": "USD", "amount_nanos": 2 * USD, "reason": "welcome"}
BACK = {"tenant": "acme", "currency": "USD", "amount_nanos": USD, "provider": "bank", "reference": "b1"}


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    with open_office(tmp_path) as opened:
        opened.set_up(provider="fake", provider_customer="c1")
        yield opened


def refused(office: Office, verb: str, body: dict[str, Any]) -> str:
    before = office.events()
    with pytest.raises(InvoiceError) as caught:
        office.do(verb, body)
    assert office.events() == before
    return caught.value.code


def balance(office: Office) -> int:
    return wallet_state(office.reader, "acme", "USD").balance_nanos


def lease(office: Office, nanos: int, seq: int = 1) -> None:
    with office.ledger.journal() as journal:
        order_leases(journal, [LeaseOrder(W0, "acme", "USD", seq, 0, nanos, nanos)], 1, office.now_ns)


def spend(office: Office, calls: int, first: int = 1) -> Any:
    posted = items(range(first, first + calls), reason=Reason.PREPAID)
    return office.ledger.post(Batch(posts=posted, positions={W0: Position(first + calls, calls)}, now_ns=office.now_ns))


def test_money_that_came_in_is_booked_once_per_reference(office: Office) -> None:
    made = office.do("wallet.top_up", PAID, "op-once")
    assert (made["outcome"], made["booked_nanos"], made["balance_nanos"]) == ("succeeded", 10 * USD, 10 * USD)
    assert office.do("wallet.top_up", PAID, "op-once") == made
    assert refused(office, "wallet.top_up", PAID) == "conflict"
    assert refused(office, "wallet.top_up", PAID | {"tenant": "beta"}) == "conflict"
    office.do("wallet.top_up", PAID | {"provider": "other"})
    assert office.balance("cash:psp:bank") == office.balance("cash:psp:other") == 10 * USD
    assert balance(office) == 20 * USD
    assert currencies_of(office.reader, "acme") == ["USD"]
    assert office.events() == ["wallet.topped_up"] * 2


def test_a_gift_is_no_cash_and_is_never_paid_back(office: Office) -> None:
    office.do("wallet.grant", GIFT)
    assert office.balance("contra_revenue:promo_discount") == 2 * USD
    assert refused(office, "wallet.refund", BACK) == "amount"
    office.do("wallet.top_up", PAID)
    assert refused(office, "wallet.refund", BACK | {"amount_nanos": 10 * USD + 1}) == "amount"
    office.do("wallet.refund", BACK | {"amount_nanos": 4 * USD})
    assert balance(office) == 8 * USD
    assert refused(office, "wallet.refund", BACK | {"amount_nanos": 6 * USD + 1}) == "amount"
    office.do("wallet.refund", BACK | {"amount_nanos": 6 * USD})
    assert balance(office) == 2 * USD


def test_gifts_count_as_spent_first_and_leased_money_does_not_go_back(office: Office) -> None:
    office.do("wallet.grant", GIFT | {"amount_nanos": 2 * CALL})
    office.do("wallet.top_up", PAID | {"amount_nanos": 4 * CALL})
    lease(office, 4 * CALL)
    spend(office, 3)
    assert balance(office) == 3 * CALL
    assert refused(office, "wallet.refund", BACK | {"amount_nanos": 2 * CALL + 1}) == "amount"
    office.do("wallet.refund", BACK | {"amount_nanos": 2 * CALL})
    assert wallet_state(office.reader, "acme", "USD")[2:5] == (CALL, CALL, 0)


@pytest.mark.parametrize(
    ("verb", "body", "code"),
    [
        ("wallet.top_up", PAID | {"amount_nanos": 0}, "amount"),
        ("wallet.top_up", PAID | {"amount_nanos": -1}, "amount"),
        ("wallet.top_up", PAID | {"amount_nanos": TOP_UP_NANOS_MAX + 1}, "amount"),
        ("wallet.top_up", PAID | {"currency": "usd"}, "currency"),
        ("wallet.top_up", PAID | {"reference": ""}, "field"),
        ("wallet.top_up", PAID | {"provider": "p" * 201}, "field"),
        ("wallet.top_up", PAID | {"tenant": ""}, "field"),
        ("wallet.top_up", PAID | {"extra": 1}, "field"),
        ("wallet.top_up", PAID | {"amount_nanos": 1.5}, "field"),
        ("wallet.grant", GIFT | {"reason": ""}, "field"),
        ("wallet.refund", BACK, "amount"),
        ("wallet.begin", {"tenant": "acme", "currency": "USD", "amount_minor": 0}, "field"),
        ("wallet.begin", {"tenant": "acme", "currency": "EUR", "amount_minor": 1}, "currency"),
        ("wallet.begin", {"tenant": "nobody", "currency": "USD", "amount_minor": 1}, "not_found"),
        ("wallet.finish", {"top_up_id": "top_x", "outcome": "pending"}, "not_found"),
        ("wallet.set", {"tenant": "acme", "currency": "USD", "low_nanos": -1}, "field"),
        ("wallet.set", {"tenant": "acme", "currency": "USD", "low_nanos": BALANCE_NANOS_MAX + 1}, "field"),
    ],
)
def test_what_makes_no_sense_is_refused(office: Office, verb: str, body: dict[str, Any], code: str) -> None:
    assert refused(office, verb, body) == code
    assert balance(office) == 0


def test_a_wallet_has_a_most(office: Office) -> None:
    paid = [Line("cash:psp:bank", "USD", BALANCE_NANOS_MAX - 1, 0)]
    paid.append(Line("contract_liability:prepaid:acme", "USD", 1 - BALANCE_NANOS_MAX, 0))
    with office.ledger.journal() as journal:
        journal.post("top_up", "acme", office.now_ns, paid)
    assert refused(office, "wallet.top_up", PAID | {"amount_nanos": 2}) == "amount"
    office.do("wallet.top_up", PAID | {"amount_nanos": 1})
    assert refused(office, "wallet.top_up", PAID | {"amount_nanos": 1, "reference": "r2"}) == "amount"


@pytest.mark.parametrize(
    ("steps", "outcome", "booked", "events"),
    [
        (["succeeded"], "succeeded", 500, ["wallet.topped_up"]),
        (["pending", "told"], "succeeded", 500, ["wallet.topped_up"]),
        (["told", "succeeded"], "succeeded", 500, ["wallet.topped_up"]),
        (["told", "pending"], "succeeded", 500, ["wallet.topped_up"]),
        (["succeeded", "told", "told"], "succeeded", 500, ["wallet.topped_up"]),
        (["succeeded", "failed"], "succeeded", 500, ["wallet.topped_up"]),
        (["declined"], "declined", 0, ["wallet.top_up_failed"]),
        (["refused"], "refused", 0, ["wallet.top_up_failed"]),
        (["pending", "failed"], "declined", 0, ["wallet.top_up_failed"]),
        (["pending", "failed", "told"], "succeeded", 500, ["wallet.top_up_failed", "wallet.topped_up"]),
        (["partly"], "succeeded", 200, ["wallet.topped_up"]),
    ],
)
def test_a_provider_s_answers_and_messages_book_a_payment_once(
    office: Office, steps: list[str], outcome: str, booked: int, events: list[str]
) -> None:
    begun = office.do("wallet.begin", {"tenant": "acme", "currency": "USD", "amount_minor": 500})
    assert (begun["provider"], begun["customer"], begun["amount_minor"]) == ("fake", "c1", 500)
    name, reference = begun["top_up_id"], "pay_1"
    told = {"provider": "fake", "reference": reference, "amount_minor": 500, "currency": "USD", "document_id": name}
    for step in steps:
        if step in {"told", "failed"}:
            office.do("wallet.told", told | {"kind": "succeeded" if step == "told" else "failed"})
        else:
            answer = {"outcome": "succeeded" if step == "partly" else step, "reference": reference}
            minor = {"succeeded": 500, "partly": 200}.get(step, 0)
            office.do("wallet.finish", {"top_up_id": name, "amount_minor": minor} | answer)
    made = find_top_up(office.reader, name)
    assert made is not None
    assert made.outcome == outcome
    assert balance(office) == booked * USD // 100
    assert office.events() == events
    assert [one.top_up_id for one in list_top_ups(office.reader, "acme")] == [name]


@pytest.mark.parametrize("change", [{"provider": "other"}, {"document_id": "top_2"}, {"currency": "EUR"}])
def test_a_message_that_fits_no_top_up_books_nothing(office: Office, change: dict[str, str]) -> None:
    name = office.do("wallet.begin", {"tenant": "acme", "currency": "USD", "amount_minor": 5})["top_up_id"]
    told = {"provider": "fake", "kind": "succeeded", "reference": "p", "amount_minor": 5, "currency": "USD"}
    refused(office, "wallet.told", told | {"document_id": name} | change)
    assert balance(office) == 0


def test_low_balance_is_told_once_per_crossing(office: Office) -> None:
    funds = FundsDesk(office.ledger, lambda: office.now_ns)
    threshold = {"tenant": "acme", "currency": "USD", "low_nanos": 3 * CALL}
    office.do("wallet.top_up", PAID | {"amount_nanos": 5 * CALL})
    office.do("wallet.set", threshold)
    funds.wallets_changed()
    lease(office, 5 * CALL)

    def told() -> int:
        return office.events().count("wallet.low_balance")

    for first, expected in ((1, 0), (2, 0), (3, 1), (4, 1)):
        funds.on_posted(spend(office, 1, first))
        assert told() == expected, first
    (event,) = [
        one for one in invoices.list_events(office.reader, after=0, limit=99) if one.type == "wallet.low_balance"
    ]
    assert event.body == {"currency": "USD", "balance_nanos": 2 * CALL, "low_nanos": 3 * CALL}
    office.do("wallet.top_up", PAID | {"amount_nanos": 2 * CALL, "reference": "r2"})
    assert told() == 1
    funds.on_posted(spend(office, 1, 5))
    assert told() == 2
    office.do("wallet.set", threshold | {"low_nanos": 9 * CALL})
    assert told() == 2
    office.do("wallet.set", threshold | {"low_nanos": 0})
    office.do("wallet.set", threshold | {"low_nanos": 9 * CALL})
    assert told() == 3


def test_a_crossing_that_a_crash_left_untold_is_told_by_the_next_meter(office: Office) -> None:
    office.do("wallet.top_up", PAID | {"amount_nanos": 2 * CALL})
    office.do("wallet.set", {"tenant": "acme", "currency": "USD", "low_nanos": 2 * CALL})
    lease(office, CALL)
    spend(office, 1)
    assert "wallet.low_balance" not in office.events()
    FundsDesk(office.ledger, lambda: office.now_ns)
    assert office.events().count("wallet.low_balance") == 1


def test_prepaid_usage_is_in_the_figures_and_on_no_invoice(office: Office) -> None:
    office.do("wallet.top_up", PAID)
    lease(office, 1_000 * CALL)
    spend(office, 1_000)
    assert office.bill() is None
    office._seq = 2_000
    office.post_usage(1_000)
    document = office.document(office.bill()["number"])
    assert [line.exact_nanos for line in document.lines] == [1_000 * CALL]
    assert compare_all(office.reader).differences == ()
    (row,) = usage_by(office.reader, ("tenant",), tenant="acme")
    (prepaid,) = usage_by(office.reader, ("tenant",), tenant="acme", is_prepaid=True)
    assert (row.charge_nanos, prepaid.charge_nanos) == (2_000 * CALL, 1_000 * CALL)
    body = {"tenant": "acme", "start_ns": MONTH_END_NS - 31 * 86_400 * 10**9, "end_ns": MONTH_END_NS, "plans": []}
    assert office.do("month.settle", body)["ok_calls"] == 1_000


def test_the_roll_forward_shows_what_came_in_was_used_and_went_back(office: Office) -> None:
    office.do("wallet.top_up", PAID)
    lease(office, CALL)
    spend(office, 1)
    office.do("wallet.refund", BACK)
    (row,) = [one for one in roll_forward(office.reader, 0, office.now_ns + 1) if "prepaid" in one.account]
    assert (row.added_nanos, row.recognised_nanos, row.other_nanos) == (10 * USD, CALL, USD)
    assert row.closing_nanos == balance(office) == 9 * USD - CALL


@pytest.mark.parametrize(
    ("nanos", "currency", "minor"),
    [(10**9, "USD", 100), (10**7, "USD", 1), (10**7 + 1, "USD", None), (10**9, "JPY", 1)],
)
def test_whole_minor_units(nanos: int, currency: str, minor: int | None) -> None:
    assert whole_minor(nanos, currency) == minor


@pytest.mark.parametrize(
    ("orders", "workers"),
    [
        ([], 0),
        ([], 257),
        ([], "1"),
        ("x", 1),
        ([["w0"]], 1),
        ([[["w0", 1], "acme", "USD", 1, -1, 0, 0, 0, False]], 1),
        ([[["w0", 1], "", "USD", 1, 0, 0, 0, 0, False]], 1),
        ([[["w0", 1], "acme", "DOLLAR", 1, 0, 0, 0, 0, False]], 1),
        ([[["w0", 1], "acme", "USD", 1, 0, 2, 1, 0, False]], 1),
        ([[["w0", 1], "acme", "USD", 1, 0, 0, 0, 0, False]] * 1_001, 1),
    ],
)
def test_orders_that_make_no_sense_are_refused_whole(office: Office, orders: Any, workers: Any) -> None:
    with pytest.raises(MeterError):
        FundsDesk(office.ledger, lambda: 1).run(orders, workers)
    assert office.reader.execute("SELECT COUNT(*) FROM fund_lease").fetchone() == (0,)


def test_orders_in_one_request_are_carried_out_in_turn(office: Office) -> None:
    office.do("wallet.top_up", PAID | {"amount_nanos": 10 * CALL})
    orders = [
        [["w0", 1], "acme", "USD", 1, 0, 6 * CALL, 6 * CALL, 0, False],
        [["w1", 1], "acme", "USD", 1, 0, 6 * CALL, 6 * CALL, 0, False],
        [["w0", 1], "acme", "USD", 2, CALL, 0, 0, 0, True],
        [["w1", 1], "acme", "USD", 3, 0, 6 * CALL, 6 * CALL, 0, False],
    ]
    found = FundsDesk(office.ledger, lambda: 1).run(orders, 2)
    assert found == [
        (6 * CALL, 4 * CALL, False),
        (0, 4 * CALL, True),
        (CALL, 9 * CALL, False),
        (6 * CALL, 3 * CALL, False),
    ]
