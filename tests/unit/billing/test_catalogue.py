"""Catalogue files: what is read, and that every mistake is refused by file, path, fault and remedy."""

import json

import pytest

from billing.catalogue import parse_catalogue
from billing.coupons import Coupon, FeeOff, Redeemed, discounts, fee_discounts
from billing.fields import FileError
from billing.plans import (
    Pack,
    PlanCharge,
    PlanError,
    PlanTerms,
    Subscription,
    TrialCredit,
    decode_terms,
    encode_terms,
)
from billing.tiers import Rate, Tier

FULL = """
currency = "EUR"

[plans.free]
pricing = "free"
rate_calls = 5
burst = 10
calls_per_day = 1000

[plans.pro]
pricing = "priced"
rate_calls = 20
[plans.pro.subscription]
fee = "29.00"
interval = "year"
trial_days = 14
[plans.pro.minimum]
per_month = "10"
[plans.pro.pack]
rate_calls = 10
burst = 20
fee = "15.50"
[plans.pro.trial_credit]
amount = "5"
days = 30
[plans.pro.charges.calls]
unit = "call"
included = 10_000
models = ["ocr"]
per_unit = "0.002"
[plans.pro.charges.time]
unit = "second"
model = "graduated"
tiers = [{ from = 0, to = 60, per_unit = "0.5" }, { from = 60, per_unit = "0.25", flat = "1" }]
[plans.pro.charges.traffic]
unit = "mb"
is_on_top = true
package = { units = 1_000, price = "0.09" }

[coupons.WELCOME]
percent = "12.5"
months = 3
redeem_until = "2026-12-31T23:59:59Z"
applies_to = "all"
[coupons.FIVER]
amount = "5"
months = 0
redemptions_max = 100
plans = ["pro"]
"""
HEAD = 'currency = "EUR"\n'
PLAN = HEAD + '[plans.pro]\npricing = "priced"\n'
CHARGE = PLAN + "[plans.pro.charges.c]\n"


def test_a_full_file_is_read_field_by_field() -> None:
    found = parse_catalogue(FULL.encode(), is_json=False)
    free, pro = found.plans
    assert (free.name, free.limits["burst"], free.terms) == ("free", 10, None)
    assert pro.limits == {"pricing": "priced", "rate_calls": 20}
    assert pro.terms == PlanTerms(
        currency="EUR",
        subscription=Subscription(fee_nanos=29 * 10**9, interval="year", trial_days=14),
        minimum_nanos=10 * 10**9,
        pack=Pack(rate_calls=10, burst=20, fee_nanos=15_500_000_000),
        trial_credit=TrialCredit(amount_nanos=5 * 10**9, days=30),
        charges=(
            PlanCharge(
                name="calls",
                unit="call",
                included=10_000,
                models=("ocr",),
                rate=Rate(model="per_unit", per_unit_nanos=2_000_000),
            ),
            PlanCharge(
                name="time",
                unit="second",
                rate=Rate(
                    model="graduated",
                    tiers=(
                        Tier(start=0, end=60, per_unit_nanos=500_000_000),
                        Tier(start=60, per_unit_nanos=250_000_000, flat_nanos=10**9),
                    ),
                ),
            ),
            PlanCharge(
                name="traffic",
                unit="mb",
                is_on_top=True,
                rate=Rate(model="package", package_units=1_000, package_nanos=90_000_000),
            ),
        ),
    )
    assert found.coupons == (
        Coupon(
            code="WELCOME", percent_ppm=125_000, months=3, redeem_until_ns=1_798_761_599_000_000_000, applies_to="all"
        ),
        Coupon(
            code="FIVER",
            amount_nanos=5 * 10**9,
            currency="EUR",
            months=0,
            redemptions_max=100,
            plans=("pro",),
        ),
    )


def test_json_says_the_same() -> None:
    raw = {"currency": "EUR", "plans": {"p": {"pricing": "priced", "minimum": {"per_month": "1"}}}}
    (plan,) = parse_catalogue(json.dumps(raw).encode(), is_json=True).plans
    assert plan.terms == PlanTerms(currency="EUR", minimum_nanos=10**9)


def test_stored_terms_are_canonical_and_come_back() -> None:
    terms = parse_catalogue(FULL.encode(), is_json=False).plans[1].terms
    assert terms is not None
    assert decode_terms(encode_terms(terms)) == terms
    for text in ("{}", "[", encode_terms(terms).replace('"EUR"', '"EUX"')):
        with pytest.raises(PlanError):
            decode_terms(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file holds no plan and no coupon: add"),
        ("plans = ", "not readable as TOML"),
        ('currency = "EUX"\n', "currency: 'EUX' is not an ISO 4217 code such as USD: correct it"),
        (HEAD + "colour = 1\n[plans.a]\n", "colour: unknown field (value 1): remove it or use one of coupons, curr"),
        ("plans = 3\n", "plans: 3 must be a table"),
        ("[plans]\npro = 3\n", "plans.pro: 3 must be a table"),
        ("[plans.pro.minimum]\nper_month = '1'\n", "plans.pro: sells something, but the file has no currency: add it"),
        (PLAN + "[plans.pro.subscription]\n", "plans.pro.subscription.fee: is missing: add it"),
        (PLAN + "[plans.pro.subscription]\nfee = 29\n", "plans.pro.subscription.fee: 29 must be decimal text in quo"),
        (PLAN + "[plans.pro.subscription]\nfee = '-1'\n", "plans.pro.subscription.fee: -1 is negative: prices and"),
        (PLAN + "[plans.pro.subscription]\nfee = '1.005'\n", "plans.pro.subscription.fee: has more than the 2 dec"),
        (PLAN + "[plans.pro.subscription]\nfee = '1e3'\n", "plans.pro.subscription.fee: amount: '1e3' is not a dec"),
        (
            PLAN + "[plans.pro.subscription]\nfee = '1'\ninterval = 'week'\n",
            "plans.pro.subscription.interval: 'week' is unknown: use one of month, year",
        ),
        (
            PLAN + "[plans.pro.subscription]\nfee = '1'\ntrial_days = 366\n",
            "plans.pro.subscription.trial_days: 366 must be from 0 to 365",
        ),
        (PLAN + "[plans.pro.minimum]\nper_month = '1000001'\n", "plans.pro.minimum.per_month: 1000001 is more than"),
        (PLAN + "[plans.pro.minimum]\nper_year = '1'\n", "plans.pro.minimum.per_month: is missing"),
        (PLAN + "[plans.pro.pack]\nfee = '1'\n", "plans.pro.pack: adds nothing: give rate_calls or concurrency"),
        (PLAN + "[plans.pro.pack]\nfee = '1'\nqps = 5\n", "plans.pro.pack.qps: unknown field (value 5): remove it or"),
        (PLAN + "[plans.pro.pack]\nfee = '1'\nrate_calls = true\n", "plans.pro.pack.rate_calls: True must be a whole"),
        (PLAN + "[plans.pro.trial_credit]\namount = '5'\n", "plans.pro.trial_credit.days: is missing"),
        (PLAN + "[plans.pro.trial_credit]\namount = '0'\ndays = 1\n", "plans.pro.trial_credit.amount: is 0: leave"),
        (CHARGE + "per_unit = '1'\n", "plans.pro.charges.c.unit: is missing"),
        (CHARGE + "unit = 'hour'\nper_unit = '1'\n", "plans.pro.charges.c.unit: 'hour' is unknown: use one of call, "),
        (CHARGE + "unit = 'call'\n", "plans.pro.charges.c: give exactly one of per_unit, package and tiers, not none"),
        (CHARGE + "unit = 'call'\nper_unit = '1'\npackage = {}\n", "plans.pro.charges.c: give exactly one of per_unit"),
        (CHARGE + "unit = 'call'\ntiers = [{from = 0}]\n", 'plans.pro.charges.c.model: is missing: tiers are "grad'),
        (CHARGE + "unit = 'call'\nmodel = 'volume'\nper_unit = '1'\n", "plans.pro.charges.c.model: 'volume' is unknow"),
        (CHARGE + "unit = 'call'\nmodel = 'volume'\ntiers = []\n", "plans.pro.charges.c.tiers: [] must be a list of"),
        (CHARGE + "unit = 'call'\nper_unit = '1'\nmodels = []\n", "plans.pro.charges.c.models: is empty: name models"),
        (CHARGE + "unit = 'call'\nper_unit = '1'\nmodels = ['a', 'a']\n", "plans.pro.charges.c.models: names an entry"),
        (CHARGE + "unit = 'call'\nper_unit = '1'\nmodels = [1]\n", "plans.pro.charges.c.models: [1] must be a list of"),
        (CHARGE + "unit = 'call'\nper_unit = '1'\nis_on_top = 1\n", "plans.pro.charges.c.is_on_top: 1 must be true or"),
        (
            CHARGE + "unit = 'call'\npackage = {units = 0, price = '1'}\n",
            "plans.pro.charges.c.package.units: 0 must be",
        ),
        (
            CHARGE + "unit = 'call'\nmodel = 'volume'\ntiers = [{from = 0, to = 10}, {from = 9}]\n",
            "plans.pro.charges.c.tiers[1].from: 9 overlaps the tier before, which ends at 10: set 10",
        ),
        (
            CHARGE + "unit = 'call'\nmodel = 'volume'\ntiers = [{from = 0, to = 10}, {from = 12}]\n",
            "plans.pro.charges.c.tiers[1].from: 12 leaves a gap, units from 10 to 12 have no price: set 10",
        ),
        (
            CHARGE + "unit = 'call'\nmodel = 'graduated'\ntiers = [{from = 0, per_unit = '-0.1'}]\n",
            "plans.pro.charges.c.tiers[0].per_unit: -0.1 is negative",
        ),
        (
            CHARGE + "unit = 'call'\nmodel = 'graduated'\ntiers = [{from = 0, upto = 1}]\n",
            "plans.pro.charges.c.tiers[0].upto: unknown field (value 1): remove it or use one of flat, from, per_unit,",
        ),
        (
            CHARGE + "unit = 'call'\nper_unit = '1'\n[plans.pro.charges.d]\nunit = 'row'\nper_unit = '1'\n",
            "plans.pro.charges.d.models: '*' is priced by charges.c already: keep one of them, or set is_on_top",
        ),
        (PLAN + "[plans.pro.charges.C]\n", "plans.pro.charges.C: a charge's name has 1 to 63 lower-case"),
        ("[coupons.welcome]\npercent = 5\n", "coupons.welcome: a code has 1 to 40 capital letters"),
        ("[coupons.A]\n", "coupons.A: give exactly one of percent and amount"),
        (HEAD + "[coupons.A]\npercent = 5\namount = '1'\n", "coupons.A: give exactly one of percent and amount"),
        ("[coupons.A]\namount = '1'\n", "coupons.A.amount: needs a currency: add"),
        (HEAD + "[coupons.A]\namount = '0'\n", "coupons.A.amount: is 0: a coupon takes something off"),
        (
            "[coupons.A]\npercent = 5\napplies_to = 'fee'\n",
            "coupons.A.applies_to: 'fee' is unknown: use one of usage, ",
        ),
        (HEAD + "[coupons.A]\namount = '1'\napplies_to = 'all'\n", 'coupons.A.applies_to: is "all", but an amount'),
        ("[coupons.A]\npercent = 101\n", "coupons.A.percent: 101 must be above 0 and at most 100"),
        ("[coupons.A]\npercent = 0\n", "coupons.A.percent: 0 must be above 0"),
        ("[coupons.A]\npercent = 12.5\n", "coupons.A.percent: 12.5 must be above 0 and at most 100, with at most 4"),
        ("[coupons.A]\npercent = '0.00001'\n", "coupons.A.percent: '0.00001' must be"),
        ("[coupons.A]\npercent = 5\nredeem_until = '9999-01-01'\n", "coupons.A.redeem_until: '9999-01-01' must lie"),
        ("x = " + "1" * 5_000, "not readable as TOML: Exceeds the limit"),
        (PLAN + f"[plans.pro.minimum]\nper_month = '{'1' * 500}'\n", "plans.pro.minimum.per_month: '1111"),
        ("[coupons.A]\npercent = 5\nredeem_until = 'soon'\n", "coupons.A.redeem_until: 'soon' is no instant: write"),
    ],
)
def test_a_mistake_is_named_by_file_path_fault_and_remedy(text: str, message: str) -> None:
    with pytest.raises(FileError) as refused:
        parse_catalogue(text.encode(), is_json=False, name="plans.toml")
    assert str(refused.value).startswith(f"plans.toml: {message}")


def test_a_file_too_large_is_refused() -> None:
    padding = "#" * (1024 * 1024 - len(PLAN) + 1)
    with pytest.raises(FileError, match="more than the 1048576 allowed: split"):
        parse_catalogue((PLAN + padding).encode(), is_json=False)
    assert parse_catalogue((PLAN + padding[1:]).encode(), is_json=False).plans


def test_a_hundred_and_one_charges_are_refused() -> None:
    def text(count: int) -> bytes:
        charges = (
            f"[plans.pro.charges.c{n}]\nunit = 'call'\nmodels = ['m{n}']\nper_unit = '1'\n" for n in range(count)
        )
        return (PLAN + "".join(charges)).encode()

    assert len(parse_catalogue(text(100), is_json=False).plans) == 1
    with pytest.raises(FileError, match=r"plans\.pro\.charges: 101 entries are more than the 100"):
        parse_catalogue(text(101), is_json=False)


def test_coupons_apply_in_the_order_of_redemption_for_their_months() -> None:
    half = Coupon(code="HALF", percent_ppm=500_000, months=2)
    fiver = Coupon(code="FIVER", amount_nanos=5, currency="EUR", months=0, plans=("pro",))
    net = {"pro": 100, "free": 10}
    both = [Redeemed(half, 1), Redeemed(fiver, 50)]
    assert [one.amount_nanos for one in discounts(both, net, "EUR")] == [55, 5]
    assert [one.amount_nanos for one in discounts(list(reversed(both)), net, "EUR")] == [5, 52]
    assert [one.code for one in discounts([Redeemed(half, 2), Redeemed(fiver, 0)], net, "USD")] == []


def test_fees_are_reduced_in_the_months_that_are_left_and_usage_by_coupons_for_usage_only() -> None:
    year = [100] * 12
    third = Coupon(code="THIRD", percent_ppm=333_333, months=14, applies_to="all")
    ten = Coupon(code="TEN", amount_nanos=10, currency="EUR", months=2, applies_to="fees", plans=("pro",))
    usage = Coupon(code="USAGE", percent_ppm=500_000)
    redeemed = [Redeemed(third, 4), Redeemed(ten, 1), Redeemed(usage, 0)]
    assert fee_discounts(redeemed, year, "pro", "EUR") == [FeeOff("THIRD", 10, 330), FeeOff("TEN", 1, 10)]
    assert fee_discounts(redeemed, year, "free", "EUR") == [FeeOff("THIRD", 10, 330)]
    assert fee_discounts([Redeemed(ten, 0)], [5, 20], "pro", "EUR") == [FeeOff("TEN", 2, 15)]
    assert fee_discounts([Redeemed(ten, 2), Redeemed(third, 14)], year, "pro", "EUR") == []
    assert fee_discounts([Redeemed(ten, 0)], year, "pro", "USD") == []
    assert [one.code for one in discounts(redeemed, {"pro": 100}, "EUR")] == ["THIRD", "USAGE"]
