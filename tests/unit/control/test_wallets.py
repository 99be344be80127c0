"""The routes of wallets: top-ups of every kind, providers that fail, and what a tenant sees of its own."""

from collections.abc import Iterator
from typing import Any

import pytest

from billing.payments.fake import FakeProvider
from tests.unit.billing.invoices.office import ACCOUNT, SELLER, Office
from tests.unit.control.billing_desk import meter_of
from tests.unit.control.support import Desk

PLACE = "/admin/tenants/acme/wallet"
USD = 1_000_000_000
PAID = {"kind": "paid", "amount_nanos": 10 * USD, "provider": "bank", "reference": "r1"}


class Counter:
    """A desk, its office, and a payment provider."""

    def __init__(self, desk: Desk, office: Office) -> None:
        self.desk = desk
        self.office = office
        self.provider = FakeProvider()
        desk.app.state.providers = {"fake": self.provider, "stripe": self.provider}
        desk.new_tenant(plan="pay-per-call")
        office.do("seller.set", SELLER)
        office.do("account.set", ACCOUNT | {"provider": "fake", "provider_customer": "c1"})
        self._operation = 0

    def post(self, what: str, body: dict[str, Any], operation_id: str = "") -> Any:
        self._operation += 1
        body = {"operation_id": operation_id or f"operation-{self._operation}"} | body
        return self.desk.ask("POST", f"{PLACE}/{what}", body)

    def must(self, what: str, body: dict[str, Any], operation_id: str = "") -> Any:
        answer = self.post(what, body, operation_id)
        assert answer.is_success, answer.text
        return answer.json()

    @property
    def balance(self) -> int:
        return int(self.desk.must("GET", PLACE)["balance_nanos"])


@pytest.fixture
def counter(desk: Desk) -> Iterator[Counter]:
    with meter_of(desk) as office:
        yield Counter(desk, office)


def test_paid_money_is_booked_and_safe_to_repeat(counter: Counter) -> None:
    first = counter.must("top-ups", PAID, "operation-x")
    assert (first["outcome"], first["amount"], first["source"]) == ("succeeded", "10", "manual")
    assert counter.must("top-ups", PAID, "operation-x") == first
    again = counter.post("top-ups", PAID)
    assert (again.status_code, again.json()["code"]) == (409, "conflict")
    assert counter.balance == 10 * USD
    assert counter.desk.must("GET", f"{PLACE}/top-ups")["items"] == [first]


def test_granted_money_says_why(counter: Counter) -> None:
    made = counter.must("top-ups", {"kind": "granted", "amount_nanos": 5, "reason": "sorry"})
    assert (made["source"], made["code"], counter.balance) == ("grant", "sorry", 5)


def test_money_goes_back_and_no_more_than_there_is(counter: Counter) -> None:
    counter.must("top-ups", PAID)
    back = {"amount_nanos": 4 * USD, "provider": "bank", "reference": "b"}
    assert counter.must("refunds", back)["balance"] == "6"
    assert counter.post("refunds", back | {"amount_nanos": 7 * USD}).status_code == 422


@pytest.mark.parametrize(
    ("fault", "outcome", "balance"),
    [("", "succeeded", 500), ("partial", "succeeded", 250), ("declined", "declined", 0), ("refused", "refused", 0)],
)
def test_collected_money_is_what_the_provider_moved(counter: Counter, fault: str, outcome: str, balance: int) -> None:
    counter.provider.faults.extend([fault] if fault else [])
    made = counter.must("top-ups", {"kind": "collect", "amount_nanos": 5 * USD})
    assert made["outcome"] == outcome
    assert counter.balance == balance * USD // 100


@pytest.mark.parametrize("fault", ["timeout_before", "timeout_after"])
def test_a_provider_that_does_not_answer_is_asked_again_and_charges_once(counter: Counter, fault: str) -> None:
    counter.provider.faults.append(fault)
    order = {"kind": "collect", "amount_nanos": 5 * USD}
    first = counter.post("top-ups", order, "operation-y")
    assert (first.status_code, first.json()["code"], counter.balance) == (503, "unavailable", 0)
    assert counter.must("top-ups", order, "operation-y")["outcome"] == "succeeded"
    assert counter.must("top-ups", order, "operation-y")["outcome"] == "succeeded"
    assert counter.balance == 5 * USD
    assert sum(counter.provider.moved.values()) == 500


def test_a_pending_payment_is_booked_when_the_provider_tells(counter: Counter) -> None:
    counter.provider.faults.append("pending")
    made = counter.must("top-ups", {"kind": "collect", "amount_nanos": 5 * USD})
    assert (made["outcome"], counter.balance) == ("pending", 0)
    counter.office.do("account.set", ACCOUNT | {"provider": "stripe", "provider_customer": "c1"})
    counter.provider.faults.append("pending")
    counter.must("top-ups", {"kind": "collect", "amount_nanos": 7 * USD})
    body, headers = counter.provider.message("succeeded", counter.provider.asked[-1])
    for is_news in (True, False):
        answer = counter.desk.ask_tcp("POST", "/psp/stripe", content=body, headers=headers)
        assert (answer.status_code, counter.balance) == (200, 7 * USD), answer.text
        assert answer.json()["is_news"] or not is_news


def test_what_cannot_be_collected_is_refused(counter: Counter) -> None:
    assert counter.post("top-ups", {"kind": "collect", "amount_nanos": 10**7 + 1}).status_code == 422
    counter.office.do("account.set", ACCOUNT | {"provider": "other"})
    assert counter.post("top-ups", {"kind": "collect", "amount_nanos": 10**7}).status_code == 409
    counter.office.do("account.set", ACCOUNT)
    assert not counter.post("top-ups", {"kind": "collect", "amount_nanos": 10**7}).is_success
    assert counter.provider.asked == []


@pytest.mark.parametrize(
    ("what", "body"),
    [
        ("top-ups", PAID | {"amount_nanos": 0}),
        ("top-ups", PAID | {"kind": "stolen"}),
        ("top-ups", PAID | {"currency": "DOLLAR"}),
        ("top-ups", PAID | {"currency": "usd"}),
        ("top-ups", PAID | {"reference": ""}),
        ("top-ups", PAID | {"extra": 1}),
        ("threshold", {"low_nanos": -1}),
        ("refunds", {"amount_nanos": 1, "provider": "", "reference": "x"}),
    ],
)
def test_bad_fields_are_named(counter: Counter, what: str, body: dict[str, Any]) -> None:
    answer = counter.post(what, body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_field"), answer.text


@pytest.mark.parametrize(("method", "rest"), [("GET", ""), ("GET", "/top-ups"), ("POST", "/top-ups")])
def test_a_tenant_that_is_not_there_has_no_wallet(counter: Counter, method: str, rest: str) -> None:
    body = {"operation_id": "operation-z"} | PAID if method == "POST" else None
    assert counter.desk.ask(method, f"/admin/tenants/nobody/wallet{rest}", body).status_code == 404


def test_a_tenant_sees_its_wallet_and_its_threshold(counter: Counter) -> None:
    counter.must("top-ups", PAID)
    counter.must("threshold", {"low_nanos": 3 * USD})
    key = counter.desk.new_key(scopes=["read"])["key"]
    mine = counter.desk.ask_tcp("GET", "/me/wallet", token=key).json()
    assert (mine["balance"], mine["available"], mine["low_nanos"]) == ("10", "10", 3 * USD)
    (top_up,) = counter.desk.ask_tcp("GET", "/me/wallet/top-ups", token=key).json()["items"]
    assert (top_up["amount"], top_up["reference"]) == ("10", "r1")
    assert counter.desk.ask_tcp("GET", "/me/balance", token=key).json()["prepaid"] == "10"


def test_a_plan_may_be_prepaid_and_then_has_no_charges_of_its_own(counter: Counter) -> None:
    made = counter.desk.must("POST", "/admin/plans", {"name": "wallet", "pricing": "prepaid"})
    assert made["pricing"] == "prepaid"
    text = 'currency = "USD"\n[plans.w]\npricing = "prepaid"\n[plans.w.charges.calls]\nunit = "call"\nper_unit = "1"\n'
    answer = counter.desk.ask("POST", "/admin/catalogue", {"name": "f", "format": "toml", "text": text})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_field")
