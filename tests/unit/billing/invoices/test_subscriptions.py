"""Fees are asked once per period, in advance; changes, pauses and ends are prorated by the second and sum up (I19)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.invoices import store
from billing.invoices.assemble import InvoiceError
from billing.invoices.subscriptions import RENEWALS_MAX, due_tenants, list_subscriptions
from billing.money import from_minor
from tests.unit.billing.invoices.office import DAY_NS, NS_PER_S, Office, earned_of, open_office

FEE = 30_00


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    with open_office(tmp_path) as opened:
        opened.set_up()
        yield opened


def begin(office: Office, **fields: Any) -> str:
    body = {"tenant": "acme", "name": "Pro", "fee_minor": FEE} | fields
    return str(office.do("subscription.start", body)["subscription_id"])


def amounts(office: Office) -> list[int]:
    return [item.amount_nanos for item in store.pending_items(office.reader, "acme")]


def status(office: Office) -> str:
    return list_subscriptions(office.reader, tenant="acme")[0].status


def renew(office: Office) -> Any:
    return office.do("subscription.renew", {"tenant": "acme"})


def test_the_first_fee_is_asked_at_once_and_billed_as_a_liability(office: Office) -> None:
    begin(office)
    invoice = office.bill()
    assert invoice["net_minor"] == FEE
    assert office.balance("contract_liability:subscription:acme") == -from_minor(FEE, "USD")


def test_each_period_is_asked_once_however_often_it_is_renewed(office: Office) -> None:
    begin(office)
    office.now_ns += 65 * DAY_NS
    renew(office)
    renew(office)
    assert amounts(office) == [from_minor(FEE, "USD")] * 3


def test_a_trial_asks_nothing_until_it_ends(office: Office) -> None:
    begin(office, trial_days=14)
    assert amounts(office) == []
    office.now_ns += 14 * DAY_NS
    assert due_tenants(office.reader, office.now_ns) == ["acme"]
    renew(office)
    assert amounts(office) == [from_minor(FEE, "USD")]


def test_an_end_with_the_period_asks_no_more(office: Office) -> None:
    subscription = begin(office)
    office.do("subscription.cancel", {"subscription_id": subscription})
    office.now_ns += 40 * DAY_NS
    assert renew(office) == {"renewed": []}
    assert status(office) == "cancelled"
    assert amounts(office) == [from_minor(FEE, "USD")]


def test_what_has_ended_stays_ended(office: Office) -> None:
    subscription = begin(office)
    office.do("subscription.cancel", {"subscription_id": subscription, "when": "now"})
    assert sum(amounts(office)) == 0
    office.do("subscription.cancel", {"subscription_id": subscription, "when": "now"})
    assert sum(amounts(office)) == 0
    for verb in ("change", "pause", "resume"):
        body = {"subscription_id": subscription} | ({"fee_minor": 1} if verb == "change" else {})
        with pytest.raises(InvoiceError) as error:
            office.do(f"subscription.{verb}", body)
        assert error.value.code == "subscription_state"


def test_a_clock_far_ahead_asks_a_bounded_number_of_fees(office: Office) -> None:
    begin(office)
    office.now_ns += 100 * 366 * DAY_NS
    renew(office)
    assert len(amounts(office)) == 1 + RENEWALS_MAX


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"fee_minor": -1}, "amount"),
        ({"fee_minor": 10**12 + 1}, "amount"),
        ({"trial_days": 366}, "field"),
        ({"trial_days": -1}, "field"),
        ({"interval": "week"}, "field"),
        ({"name": ""}, "field"),
        ({"tenant": "nobody"}, "not_found"),
    ],
)
def test_a_bad_subscription_is_refused(office: Office, fields: dict[str, Any], code: str) -> None:
    with pytest.raises(InvoiceError) as error:
        begin(office, **fields)
    assert error.value.code == code


def test_the_largest_fee_is_taken(office: Office) -> None:
    begin(office, fee_minor=10**9)
    assert amounts(office) == [from_minor(10**9, "USD")]


STEPS = st.lists(st.tuples(st.integers(0, 80 * 86_400), st.integers(0, 50_00)), max_size=5)


@settings(max_examples=12, deadline=None)
@given(STEPS, st.sampled_from(["UTC", "Europe/Berlin"]))
def test_whatever_is_changed_the_days_paid_for_are_the_days_used(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int]], zone: str
) -> None:
    """Changes at any second, then an end: what is asked is what each fee earned in its time, to a unit per change."""
    with open_office(tmp_path_factory.mktemp("subscription")) as office:
        office.set_up(zone=zone)
        subscription = begin(office)
        fee, earned, since = FEE, 0.0, office.now_ns
        for wait_s, new_fee in steps:
            office.now_ns += wait_s * NS_PER_S
            office.do("subscription.change", {"subscription_id": subscription, "fee_minor": new_fee})
            earned += earned_of(office, fee, since, office.now_ns)
            fee, since = new_fee, office.now_ns
        office.do("subscription.cancel", {"subscription_id": subscription, "when": "now"})
        assert abs(sum(amounts(office)) / 10**7 - earned) <= 2 * len(steps) + 2
