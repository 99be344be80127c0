"""Coupons on fees: so many months of fees, prorated with the fee by the second, earned with it, printed as lines."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.invoices import store
from billing.invoices.subscriptions import list_subscriptions
from billing.money import from_minor
from tests.unit.billing.invoices.office import DAY_NS, NS_PER_S, Office, earned_of, open_office

FEE = 30_00
LIABILITY = "contract_liability:subscription:acme"


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    with open_office(tmp_path) as opened:
        opened.set_up()
        yield opened


def redeem(office: Office, code: str = "HALF", **fields: Any) -> None:
    coupon = {"code": code, "percent_ppm": 500_000, "months": 1, "applies_to": "fees"} | fields
    office.do("coupon.redeem", {"tenant": "acme", "coupon": coupon})


def begin(office: Office, **fields: Any) -> str:
    body = {"tenant": "acme", "name": "Pro", "fee_minor": FEE, "plan": "pro"} | fields
    return str(office.do("subscription.start", body)["subscription_id"])


def minor_by_kind(office: Office) -> dict[str, int]:
    found: dict[str, int] = {}
    for item in store.pending_items(office.reader, "acme"):
        found[item.kind] = found.get(item.kind, 0) + item.amount_nanos // 10**7
    return found


def total(office: Office) -> int:
    return sum(minor_by_kind(office).values())


def wait(office: Office, days: int) -> None:
    office.now_ns += days * DAY_NS
    office.do("subscription.renew", {"tenant": "acme"})


def test_a_percentage_off_a_fee_is_a_line_of_its_own_that_reduces_liability_and_tax(office: Office) -> None:
    redeem(office)
    begin(office)
    invoice = office.bill()
    assert [(line["kind"], line["amount_minor"]) for line in invoice["lines"]] == [
        ("subscription", FEE),
        ("coupon", -FEE // 2),
    ]
    assert "coupon HALF" in invoice["lines"][1]["description"]
    assert (invoice["net_minor"], invoice["tax_minor"]) == (FEE // 2, 285)
    assert office.balance(LIABILITY) == -from_minor(FEE // 2, "USD")
    assert office.balance("contra_revenue:coupon") == 0


def test_a_discounted_fee_is_earned_by_the_day_and_ends_with_nothing_deferred(office: Office) -> None:
    redeem(office)
    begin(office)
    office.bill()
    half_ns = office.now_ns + 14 * DAY_NS
    office.now_ns += 40 * DAY_NS
    office.do("recognition.run", {"tenant": "acme", "through_ns": half_ns})
    assert office.balance("revenue:subscription") == -from_minor(FEE // 4, "USD")
    office.do("recognition.run", {"tenant": "acme", "through_ns": office.now_ns})
    assert office.balance("revenue:subscription") == -from_minor(FEE // 2, "USD")
    assert office.balance(LIABILITY) == 0


def test_it_reduces_as_many_months_of_fees_as_it_has_and_no_more(office: Office) -> None:
    redeem(office, months=2)
    begin(office)
    for expected in (FEE // 2, FEE, 2 * FEE, 3 * FEE):
        assert total(office) == expected
        wait(office, 31)


def test_for_ever_is_for_ever(office: Office) -> None:
    redeem(office, months=0)
    begin(office)
    for months in range(1, 5):
        assert total(office) == months * FEE // 2
        wait(office, 31)


def test_a_coupon_redeemed_after_a_fee_was_asked_counts_from_the_next_one(office: Office) -> None:
    begin(office)
    redeem(office)
    assert total(office) == FEE
    wait(office, 31)
    assert total(office) == FEE + FEE // 2


def test_a_yearly_fee_is_reduced_for_the_months_that_the_coupon_has(office: Office) -> None:
    redeem(office, months=3)
    subscription = begin(office, interval="year", fee_minor=365_00)
    (found,) = list_subscriptions(office.reader, tenant="acme")
    # From February 2 on: 28 + 31 + 30 of 365 days, half of each of them off.
    assert [(one.code, one.amount_minor) for one in found.discounts] == [("HALF", 89_00 // 2)]
    assert found.discounts[0].end_ns - found.discounts[0].start_ns == 89 * DAY_NS
    office.now_ns += 200 * DAY_NS
    office.do("subscription.cancel", {"subscription_id": subscription, "when": "now"})
    # What the coupon took off lies behind: all of it stays with the days that were used.
    assert total(office) == 200_00 - 89_00 // 2
    begin(office)
    assert total(office) == 200_00 - 89_00 // 2 + FEE


def test_an_end_in_the_middle_gives_back_what_was_paid_for_the_rest(office: Office) -> None:
    redeem(office)
    subscription = begin(office)
    office.now_ns += 14 * DAY_NS
    office.do("subscription.cancel", {"subscription_id": subscription, "when": "now"})
    assert minor_by_kind(office) == {"subscription": FEE, "coupon": -FEE // 4, "proration": -FEE // 2}


def test_a_change_gives_both_back_and_takes_the_percentage_off_the_new_fee(office: Office) -> None:
    redeem(office)
    subscription = begin(office)
    office.now_ns += 14 * DAY_NS
    office.do("subscription.change", {"subscription_id": subscription, "fee_minor": 2 * FEE})
    # Half a month at half of each fee.
    assert total(office) == FEE // 4 + FEE // 2
    wait(office, 14)
    assert total(office) == FEE // 4 + FEE // 2 + 2 * FEE


def test_a_change_of_the_name_alone_asks_nothing(office: Office) -> None:
    redeem(office)
    subscription = begin(office)
    before = len(store.pending_items(office.reader, "acme"))
    office.now_ns += DAY_NS
    office.do("subscription.change", {"subscription_id": subscription, "fee_minor": FEE, "name": "Professional"})
    assert len(store.pending_items(office.reader, "acme")) == before


def test_a_coupon_for_one_plan_goes_and_comes_with_it(office: Office) -> None:
    redeem(office, plans=["pro"], months=0)
    subscription = begin(office)
    assert total(office) == FEE // 2
    office.do("subscription.change", {"subscription_id": subscription, "fee_minor": FEE, "plan": "basic"})
    assert total(office) == FEE
    office.do("subscription.change", {"subscription_id": subscription, "fee_minor": FEE, "plan": "pro"})
    assert total(office) == FEE // 2


def test_a_pause_gives_back_the_reduced_rest_and_a_resumption_asks_it_again(office: Office) -> None:
    redeem(office)
    subscription = begin(office)
    office.now_ns += 7 * DAY_NS
    office.do("subscription.pause", {"subscription_id": subscription})
    assert total(office) == FEE // 8
    office.now_ns += 7 * DAY_NS
    office.do("subscription.resume", {"subscription_id": subscription})
    assert total(office) == FEE // 8 + FEE // 4


def test_amounts_and_percentages_apply_in_the_order_of_redemption_and_never_below_zero(office: Office) -> None:
    redeem(office, "TEN", percent_ppm=0, amount_nanos=10 * 10**9, currency="USD", months=0)
    office.now_ns += NS_PER_S
    redeem(office, "HALF", months=0)
    office.now_ns += NS_PER_S
    redeem(office, "MUCH", percent_ppm=0, amount_nanos=99 * 10**9, currency="USD", months=2)
    begin(office)
    (found,) = list_subscriptions(office.reader, tenant="acme")
    assert [(one.code, one.amount_minor) for one in found.discounts] == [("TEN", 1000), ("HALF", 1000), ("MUCH", 1000)]
    assert total(office) == 0


def test_a_coupon_on_usage_leaves_fees_alone(office: Office) -> None:
    redeem(office, applies_to="usage")
    begin(office)
    assert minor_by_kind(office) == {"subscription": FEE}


def test_a_trial_uses_no_month_of_a_coupon(office: Office) -> None:
    redeem(office)
    begin(office, trial_days=14)
    assert total(office) == 0
    wait(office, 14)
    assert total(office) == FEE // 2


def test_a_void_bills_fee_and_coupon_again(office: Office) -> None:
    redeem(office)
    begin(office)
    office.bill()
    office.do("invoice.void", {"document": "INV-000001"})
    assert office.bill()["net_minor"] == FEE // 2


STEPS = st.lists(
    st.tuples(st.sampled_from(["change", "pause", "renew"]), st.integers(0, 50 * 86_400), st.integers(0, 50_00)),
    max_size=5,
)


@settings(max_examples=12, deadline=None)
@given(STEPS, st.integers(1, 999_999), st.sampled_from(["UTC", "Europe/Berlin"]))
def test_whatever_is_changed_what_is_asked_is_the_days_at_their_reduced_fees(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]], ppm: int, zone: str
) -> None:
    """I19 with a coupon for ever: sums differ from exact days by rounding only, and nothing is left deferred (I20)."""
    with open_office(tmp_path_factory.mktemp("coupon")) as office:
        office.set_up(zone=zone)
        redeem(office, percent_ppm=ppm, months=0)
        subscription = begin(office)
        fee, earned, since, rounded = FEE, 0.0, office.now_ns, 4
        for verb, wait_s, new_fee in steps:
            office.now_ns += wait_s * NS_PER_S
            earned += earned_of(office, fee, since, office.now_ns)
            since, rounded = office.now_ns, rounded + 6
            if verb == "change":
                office.do("subscription.change", {"subscription_id": subscription, "fee_minor": new_fee})
                fee = new_fee
            elif verb == "pause":
                office.do("subscription.pause", {"subscription_id": subscription})
                office.now_ns += 12 * DAY_NS
                office.do("subscription.resume", {"subscription_id": subscription})
                since = office.now_ns
            else:
                office.do("subscription.renew", {"tenant": "acme"})
        office.do("subscription.cancel", {"subscription_id": subscription, "when": "now"})
        assert abs(total(office) - earned * (1 - ppm / 10**6)) <= rounded
        for item in store.pending_items(office.reader, "acme"):
            assert item.account == LIABILITY
        office.do(
            "item.add",
            {"tenant": "acme", "source": "s", "kind": "adjustment", "description": "d", "amount_nanos": 10**12},
        )
        office.bill()
        office.now_ns += 400 * DAY_NS
        office.do("recognition.run", {"tenant": "acme", "through_ns": office.now_ns})
        assert office.balance(LIABILITY) == 0
