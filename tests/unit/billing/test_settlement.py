"""A month is rated once and in full: items beside the list prices, again only over differences, books in balance."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from billing import credit_store
from billing.catalogue import parse_catalogue
from billing.credits import Burn
from billing.invoices.assemble import InvoiceError
from billing.invoices.store import pending_items
from billing.settlement import list_runs
from billing.tally import month_usage
from tests.unit.billing.invoices.office import DAY_NS, MONTH_END_NS, Office, open_office
from tests.unit.billing.making import T0_NS

#: One call of "ocr" in the tests' price book.
OCR = 1_500_000
CALLS = '[plans.pro.charges.calls]\nunit = "call"\nincluded = 100\nper_unit = "0.001"\n'
MINIMUM = '[plans.pro.minimum]\nper_month = "1"\n'


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    with open_office(tmp_path) as opened:
        opened.set_up()
        yield opened


def month(text: str = CALLS, *, start_ns: int = T0_NS, end_ns: int = MONTH_END_NS, **changes: Any) -> dict[str, Any]:
    (plan,) = parse_catalogue(('currency = "USD"\n[plans.pro]\n' + text).encode(), is_json=False).plans
    assert plan.terms is not None
    entry = {
        "plan": "pro",
        "version": 1,
        "terms": msgspec.to_builtins(plan.terms),
        "minimum_nanos": plan.terms.minimum_nanos,
    }
    return {"tenant": "acme", "start_ns": start_ns, "end_ns": end_ns, "plans": [entry | changes]}


def amounts(run: Any) -> dict[str, int]:
    return {line["key"]: line["amount_nanos"] for line in run["lines"]}


def pending(office: Office) -> list[tuple[str, int]]:
    return [(item.kind, item.amount_nanos) for item in pending_items(office.reader, "acme")]


def test_a_month_becomes_items_and_the_invoice_is_list_price_plus_items(office: Office) -> None:
    office.post_usage(150, plan="pro")
    run = office.do("month.settle", month())
    assert run["list_nanos"] == 150 * OCR
    assert amounts(run) == {"pro:calls": 50 * 1_000_000 - 150 * OCR}
    assert run["net_nanos"] == 50 * 1_000_000
    assert pending(office) == [("adjustment", 50_000_000 - 150 * OCR)]
    invoice = office.bill()
    assert sum(line["exact_nanos"] for line in invoice["lines"]) == 50_000_000
    assert invoice["net_minor"] == sum(line["amount_minor"] for line in invoice["lines"])


def test_packs_count_to_their_plan_and_other_plans_pay_list_prices(office: Office) -> None:
    office.post_usage(60, plan="pro")
    office.post_usage(60, plan="pro+2")
    office.post_usage(10, plan="pay-per-call")
    run = office.do("month.settle", month())
    assert amounts(run) == {"pro:calls": 20 * 1_000_000 - 120 * OCR}
    assert run["net_nanos"] == 20 * 1_000_000 + 10 * OCR


def test_failed_calls_are_neither_counted_nor_charged(office: Office) -> None:
    office.post_usage(5, plan="pro", outcome=1, rows=9)
    office.post_usage(5, plan="pro")
    (found,) = month_usage(office.reader, "acme", T0_NS, MONTH_END_NS)
    assert (found.ok_calls, found.rows, found.charge_nanos) == (5, 5, 5 * OCR)


def test_rating_again_adds_items_over_the_differences_only(office: Office) -> None:
    office.post_usage(150, plan="pro")
    office.do("month.settle", month())
    assert office.do("month.settle", month())["n"] == 1
    assert len(pending(office)) == 1
    office.bill()
    # Late: posted after the invoice, with a time inside the month.
    office.post_usage(10, plan="pro")
    run = office.do("month.settle", month())
    assert (run["n"], run["net_nanos"]) == (2, 60 * 1_000_000)
    assert pending(office) == [("adjustment", 10 * 1_000_000 - 10 * OCR)]
    assert [one.n for one in list_runs(office.reader, "acme", limit=10)] == [2, 1, 0]


def test_a_line_that_is_gone_is_taken_back(office: Office) -> None:
    office.post_usage(10, plan="pro")
    office.do("month.settle", month(MINIMUM))
    run = office.do("month.settle", month() | {"plans": []})
    assert amounts(run) == {"pro:minimum": 0}
    assert sum(nanos for _, nanos in pending(office)) == 0


@pytest.mark.parametrize(
    ("changes", "code", "text"),
    [
        ({"end_ns": MONTH_END_NS + 2 * DAY_NS}, "too_early", "in the future"),
        ({"end_ns": T0_NS}, "field", "must be after start_ns"),
        ({"tenant": "nobody"}, "not_found", "nobody"),
        ({"start_ns": T0_NS + 1}, "conflict", "overlaps a month rated before"),
        ({"plans": month()["plans"] * 2}, "field", "different ones"),
        ({"plans": [{"plan": "pro"}]}, "field", "version"),
        ({"plans": month(minimum_nanos=1)["plans"]}, "field", "beyond its terms'"),
    ],
)
def test_a_wrong_month_is_refused_and_changes_nothing(
    office: Office, changes: dict[str, Any], code: str, text: str
) -> None:
    office.post_usage(3, plan="pro")
    office.do("month.settle", month())
    with pytest.raises(InvoiceError, match=text) as refused:
        office.do("month.settle", month() | changes)
    assert refused.value.code == code
    assert len(list_runs(office.reader, "acme", limit=10)) == 1


def test_a_plan_in_another_currency_than_the_account_is_refused(office: Office) -> None:
    body = month()
    body["plans"][0]["terms"]["currency"] = "EUR"
    with pytest.raises(InvoiceError, match="plan 'pro' is in EUR") as refused:
        office.do("month.settle", body)
    assert refused.value.code == "currency"


def coupon(**changes: Any) -> dict[str, Any]:
    return {"tenant": "acme", "coupon": {"code": "HALF", "percent_ppm": 500_000, "months": 1} | changes}


def test_a_coupon_takes_off_its_months_and_no_more(office: Office) -> None:
    office.now_ns = T0_NS + DAY_NS
    office.do("coupon.redeem", coupon())
    office.now_ns = MONTH_END_NS + 40 * DAY_NS
    office.post_usage(1_000, plan="pro")
    february = MONTH_END_NS + 28 * DAY_NS
    run = office.do("month.settle", month())
    assert amounts(run)["coupon:HALF"] == -450_000_000
    assert office.do("month.settle", month())["net_nanos"] == 450_000_000
    office.post_usage(200, plan="pro", t_ns=MONTH_END_NS + DAY_NS)
    run = office.do("month.settle", month(start_ns=MONTH_END_NS, end_ns=february))
    assert "coupon:HALF" not in amounts(run)


def test_a_coupon_redeemed_after_the_month_does_not_count_for_it(office: Office) -> None:
    office.post_usage(200, plan="pro")
    office.do("coupon.redeem", coupon())
    assert "coupon:HALF" not in amounts(office.do("month.settle", month()))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"redeem_until_ns": MONTH_END_NS}, "coupon_closed"),
        ({"currency": "EUR", "amount_nanos": 5, "percent_ppm": 0}, "currency"),
        ({"color": 1}, "field"),
    ],
)
def test_a_coupon_that_is_not_for_this_account_is_refused(office: Office, changes: dict[str, Any], code: str) -> None:
    with pytest.raises(InvoiceError) as refused:
        office.do("coupon.redeem", coupon(**changes))
    assert refused.value.code == code


def test_a_coupon_is_redeemed_once_per_tenant_and_as_often_as_it_may(office: Office) -> None:
    office.do("coupon.redeem", coupon(redemptions_max=1))
    with pytest.raises(InvoiceError, match="before"):
        office.do("coupon.redeem", coupon(redemptions_max=1))
    office.set_up(tenant="globex")
    with pytest.raises(InvoiceError, match="as often as it may") as refused:
        office.do("coupon.redeem", coupon(redemptions_max=1) | {"tenant": "globex"})
    assert refused.value.code == "coupon_used_up"


def grant(office: Office, amount: int, source: str = "welcome", **fields: Any) -> Any:
    return office.do("credit.grant", {"tenant": "acme", "source": source, "amount_nanos": amount} | fields)


def left(office: Office) -> dict[str, int]:
    found = credit_store.holdings(office.reader, "acme")
    return {holding.grant.grant_id: holding.left_nanos for holding in found}


def test_promotional_credit_pays_what_is_left_and_a_second_rating_gives_back(office: Office) -> None:
    office.now_ns = T0_NS
    grant(office, 30_000_000)
    office.now_ns = MONTH_END_NS + DAY_NS
    office.post_usage(120, plan="pro")
    assert office.do("month.settle", month())["net_nanos"] == 0
    assert left(office) == {"acme:welcome": 10_000_000}
    # Rated again under a plan that includes more: less is owed, so the credit comes back.
    free = month(CALLS.replace("100", "110"))
    assert office.do("month.settle", free)["net_nanos"] == 0
    assert left(office) == {"acme:welcome": 20_000_000}
    assert dict(pending(office))["promo"] != 0
    assert sum(nanos for kind, nanos in pending(office) if kind == "promo") == -10_000_000


def test_credit_burns_in_order_and_only_for_its_models(office: Office) -> None:
    office.now_ns = T0_NS
    grant(office, 10_000_000, "any", priority=2)
    grant(office, 7_000_000, "ocr", priority=1, models=["ocr"])
    grant(office, 99_000_000, "clip", priority=0, models=["clip"])
    office.now_ns = MONTH_END_NS + DAY_NS
    office.post_usage(112, plan="pro")
    office.do("month.settle", month())
    assert left(office) == {"acme:any": 5_000_000, "acme:clip": 99_000_000}


def test_expired_credit_stays_unused_and_rolls_over_as_often_as_it_may(office: Office) -> None:
    office.now_ns = T0_NS
    grant(office, 50_000_000, "gone", expires_ns=T0_NS + DAY_NS)
    grant(office, 40_000_000, "rolls", expires_ns=T0_NS + 20 * DAY_NS, rollovers=1, rollover_nanos_max=15_000_000)
    office.now_ns = MONTH_END_NS + DAY_NS
    office.post_usage(110, plan="pro")
    assert amounts(office.do("month.settle", month()))["promo"] == -10_000_000
    assert left(office) == {"acme:gone": 50_000_000, "acme:rolls~1": 5_000_000}


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"amount_nanos": 0}, "amount_nanos"),
        ({"amount_nanos": -5}, "amount_nanos"),
        ({"expires_ns": 1}, "in the future"),
        ({"priority": 1_001}, "priority"),
        ({"rollovers": 1}, "rollovers"),
        ({"source": ""}, "source"),
        ({"source": "a~1"}, "source"),
        ({"models": [""]}, "models"),
        ({"rollover_nanos_max": -1}, "rollover_nanos_max"),
        ({"tenant": "nobody"}, "nobody"),
        ({"kind": "paid"}, "kind"),
    ],
)
def test_a_wrong_grant_is_refused(office: Office, fields: dict[str, Any], text: str) -> None:
    with pytest.raises(InvoiceError, match=text):
        grant(office, 5, **fields)
    assert left(office) == {}


def test_a_grant_is_made_once_and_never_burns_more_than_was_granted(office: Office) -> None:
    grant(office, 5)
    with pytest.raises(InvoiceError, match="before"):
        grant(office, 5)
    with pytest.raises(Exception, match="at most what was granted"), office.ledger.journal() as journal:
        credit_store.add_burn(journal, 0, Burn("acme:welcome", 6), 0)
    with pytest.raises(Exception, match="append-only"), office.ledger.journal() as journal:
        journal.execute("UPDATE credit_grant SET tenant = 'other'")
