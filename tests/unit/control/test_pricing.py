"""Plans' money through control: applied as files, subscribed, rated before the invoice, quoted, simulated."""

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from billing import settlement, tally
from billing.invoices import gathering
from billing.invoices.store import pending_items
from billing.ledger.views import trial_balance
from billing.pricebook import default_price_book
from billing.rating import compile_book
from gateway.control import months
from gateway.control.billing_clock import BillingClock
from gateway.control.money import Money
from gateway.control.months import Months
from tests.unit.billing.invoices.office import DAY_NS, MONTH_END_NS, Office
from tests.unit.billing.making import T0_NS
from tests.unit.control.billing_desk import command, meter_of
from tests.unit.control.support import Desk

NS_PER_S = 1_000_000_000
#: The list price of one call of "ocr" in the shipped book and in the office's.
OCR = 1_500_000
FILE = """
currency = "USD"
[plans.pro]
pricing = "priced"
rate_calls = 20
burst = 40
concurrency = 8
[plans.pro.subscription]
fee = "29"
trial_days = 0
[plans.pro.minimum]
per_month = "1"
[plans.pro.pack]
rate_calls = 10
burst = 15
concurrency = 4
fee = "5"
packs_max = 3
[plans.pro.trial_credit]
amount = "2"
days = 60
[plans.pro.charges.calls]
unit = "call"
included = 100
per_unit = "0.001"
[plans.pay]
pricing = "priced"
[coupons.HALF]
percent = 50
"""
_ids = count(1)


@pytest.fixture
def office(desk: Desk) -> Iterator[Office]:
    desk.new_tenant()
    with meter_of(desk) as office:
        office.now_ns = T0_NS
        office.set_up()
        yield office


def operation() -> str:
    return f"operation-{next(_ids)}"


def apply(desk: Desk, text: str = FILE, **fields: Any) -> Any:
    return desk.must("POST", "/admin/catalogue", {"name": "plans.toml", "text": text} | fields)


def refused(desk: Desk, path: str, body: Any, status: int = 422) -> str:
    answer = desk.ask("POST", path, body)
    assert answer.status_code == status, answer.text
    return str(answer.json()["error"])


def subscribe(desk: Desk, plan: str = "pro", packs: int = 0, operation_id: str | None = None) -> Any:
    body = {"operation_id": operation_id or operation(), "plan": plan, "packs": packs}
    return desk.must("POST", "/admin/tenants/acme/subscribe", body)


def live(desk: Desk) -> list[tuple[str, int]]:
    found = desk.must("GET", "/admin/billing/accounts/acme")["subscriptions"]
    return [(one["name"], one["fee_minor"]) for one in found if one["status"] == "active"]


def turn_to(desk: Desk, office: Office, at_ns: int) -> None:
    desk.clock.step_wall(at_ns - desk.clock.wall_ns())
    office.now_ns = at_ns


# -- catalogue ---------------------------------------------------------------------------------------------------------


def test_a_file_becomes_versions_and_applying_it_again_changes_nothing(desk: Desk) -> None:
    first = apply(desk)
    assert [(plan["name"], plan["version"], plan["is_new_version"]) for plan in first["plans"]] == [
        ("pro", 1, True),
        ("pay", 1, True),
    ]
    assert first["coupons"] == ["HALF"]
    policy = desk.snapshot.version
    again = apply(desk)
    assert [plan["is_new_version"] for plan in again["plans"]] == [False, False]
    assert again["coupons"] == []
    assert desk.snapshot.version == policy
    changed = apply(desk, FILE.replace('per_unit = "0.001"', 'per_unit = "0.002"'))
    assert [(plan["version"], plan["is_new_version"]) for plan in changed["plans"]] == [(2, True), (1, False)]
    terms = desk.must("GET", "/admin/plans/pro/terms")["items"]
    prices = [one["terms"]["charges"][0]["rate"]["per_unit_nanos"] for one in terms]
    assert (prices, [one["version"] for one in terms]) == ([1_000_000, 2_000_000], [1, 2])
    assert [one["code"] for one in desk.must("GET", "/admin/coupons")["items"]] == ["HALF"]


def test_changing_limits_alone_keeps_the_money(desk: Desk) -> None:
    apply(desk)
    desk.must("POST", "/admin/plans", {"name": "pro", "pricing": "priced", "rate_calls": 5})
    terms = desk.must("GET", "/admin/plans/pro/terms")["items"]
    assert [one["version"] for one in terms] == [1, 2]
    assert terms[0]["terms"] == terms[1]["terms"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[plans.a]\nburst = 4\n", "plans.toml: plans.a.pricing: is missing: add it"),
        (
            '[plans.a]\npricing = "priced"\nqps = 4\n',
            "plans.toml: plans.a.qps: unknown field (value 4): remove it or use",
        ),
        (
            '[plans.a]\npricing = "cheap"\n',
            "plans.toml: plans.a.pricing: input should be 'free', 'priced', 'prepaid' or 'internal'",
        ),
        ('[plans.a]\npricing = "priced"\nrate_calls = -1\n', "plans.toml: plans.a.rate_calls: input should be greater"),
        ('[plans.a]\npricing = "priced"\nburst = 3\n', "plans.toml: plans.a: burst and rate_window_s need rate_calls"),
        ('[plans.A]\npricing = "priced"\n', "plans.toml: plans.A.name: string should match"),
        ('[plans.a]\nname = "b"\npricing = "priced"\n', "plans.toml: plans.a.name: the table's name is the plan's"),
        (
            'currency = "EUR"\n[plans.a]\npricing = "priced"\n[plans.a.minimum]\nper_month = "1"\n',
            "plans.toml: plans.a: is in EUR, but the prices in force are in USD: use that",
        ),
        (
            'currency = "USD"\n[plans.a]\npricing = "free"\n[plans.a.charges.c]\nunit = "call"\nper_unit = "1"\n',
            "plans.a.pricing: is 'free', but has charges: set pricing = \"priced\"",
        ),
        ('[coupons.A]\npercent = 5\nplans = ["gold"]\n', "plan: 'gold' does not exist"),
        ("[plans", "plans.toml: not readable as TOML"),
    ],
)
def test_a_wrong_file_is_refused_whole_and_by_path(desk: Desk, text: str, message: str) -> None:
    good = '[plans.good]\npricing = "priced"\n'
    said = refused(
        desk, "/admin/catalogue", {"name": "plans.toml", "text": text.replace("[plans.a]", good + "[plans.a]", 1)}
    )
    assert said.startswith(message)
    assert desk.ask("GET", "/admin/plans/good").status_code == 404


def test_a_coupon_never_changes(desk: Desk) -> None:
    apply(desk)
    said = refused(desk, "/admin/catalogue", {"text": "[coupons.HALF]\npercent = 60\n"}, 409)
    assert said == "coupons.HALF: exists with other content and never changes: use another code"


def test_a_json_catalogue_is_read_too(desk: Desk) -> None:
    applied = apply(desk, '{"plans": {"gold": {"pricing": "priced", "rate_calls": 3}}}', format="json")
    assert [plan["name"] for plan in applied["plans"]] == ["gold"]


# -- price books -------------------------------------------------------------------------------------------------------

BOOK = 'version = 2\ncurrency = "USD"\n[default]\nper_call = "0.0002"\n[models.ocr]\nper_image = "0.001"\n'


def test_a_new_book_reaches_ledger_and_workers_and_stays_in_force(desk: Desk, office: Office) -> None:
    applied = desk.must("POST", "/admin/prices", {"name": "book.toml", "text": BOOK})
    assert (applied["version"], applied["is_in_force"]) == (2, True)
    assert desk.snapshot.prices.version == 2
    assert 2 in office.ledger.prices()
    assert desk.must("GET", "/admin/prices")["version"] == 2
    versions = desk.must("GET", "/admin/prices/versions")["items"]
    assert [(one["version"], one["is_in_force"]) for one in versions] == [(2, True), (1, False)]
    policy = desk.snapshot.version
    desk.must("POST", "/admin/prices", {"name": "book.toml", "text": BOOK})
    assert desk.snapshot.version == policy


@pytest.mark.parametrize(
    ("text", "status", "message"),
    [
        (BOOK.replace("0.0002", "-1"), 422, "book.toml: default.per_call_nanos: -1000000000 must be from 0"),
        (BOOK.replace("version = 2", "version = 1"), 409, "version: 1 was used with other prices: raise it above 1"),
        (BOOK.replace("USD", "EUR"), 422, "price book: is in EUR, but tenant 'acme' pays in another currency"),
        (BOOK + "[models.x]\nper_minute = '1'\n", 422, "book.toml: models.x: unknown field 'per_minute'"),
        ("version", 422, "book.toml: not readable as TOML"),
    ],
)
def test_a_wrong_book_is_refused_and_the_old_one_stays(
    desk: Desk, office: Office, text: str, status: int, message: str
) -> None:
    said = refused(desk, "/admin/prices", {"name": "book.toml", "text": text}, status)
    assert said.startswith(message)
    assert desk.snapshot.prices.version == 1
    assert 2 not in office.ledger.prices()


def test_without_a_meter_no_book_comes_into_force(desk: Desk) -> None:
    said = refused(desk, "/admin/prices", {"text": BOOK}, 503)
    assert "meter" in said
    assert desk.snapshot.prices.version == 1


# -- subscriptions and packs -------------------------------------------------------------------------------------------


def test_subscribing_asks_the_fee_gives_the_trial_credit_once_and_sets_the_plan(desk: Desk, office: Office) -> None:
    apply(desk)
    name = operation()
    assert subscribe(desk, operation_id=name)["plan"] == "pro"
    subscribe(desk, operation_id=name)
    subscribe(desk)
    assert live(desk) == [("Plan pro", 2_900)]
    assert desk.tenant("acme").plan == "pro"
    credit = desk.must("GET", "/admin/tenants/acme/credit")
    assert [(one["grant_id"], one["left_nanos"]) for one in credit["grants"]] == [("acme:trial", 2 * 10**9)]
    assert office.events().count("subscription.started") == 1


def test_a_coupon_on_fees_reduces_the_fee_of_the_plan_it_is_for(desk: Desk, office: Office) -> None:
    apply(desk, FILE + '[coupons.START]\npercent = 20\napplies_to = "fees"\nplans = ["pro"]\n')
    shown = desk.must("GET", "/admin/coupons")["items"]
    assert {one["code"]: one["applies_to"] for one in shown} == {"HALF": "usage", "START": "fees"}
    desk.must("POST", "/admin/tenants/acme/coupons", {"operation_id": operation(), "code": "START"})
    subscribe(desk)
    items = [(one.kind, one.amount_nanos) for one in pending_items(office.reader, "acme")]
    assert items == [("subscription", 29 * 10**9), ("coupon", -58 * 10**8)]


def test_a_coupon_stored_by_an_older_release_is_the_same_coupon(desk: Desk) -> None:
    old = '{"code":"HALF","percent_ppm":500000,"amount_nanos":0,"currency":"","months":1,"redemptions_max":0,'
    old += '"redeem_until_ns":null,"plans":[]}'
    with desk.control.registry.database.write() as tx:
        tx.exec_driver_sql("INSERT INTO coupon VALUES ('HALF', ?, 1)", (old,))
    assert apply(desk)["coupons"] == []


def test_trial_credit_is_given_once_whatever_plans_follow(desk: Desk, office: Office) -> None:
    apply(desk, FILE + FILE[FILE.index("[plans.pro]") : FILE.index("[plans.pay]")].replace("plans.pro", "plans.max"))
    subscribe(desk, "pro")
    subscribe(desk, "max")
    subscribe(desk, "pro")
    grants = desk.must("GET", "/admin/tenants/acme/credit")["grants"]
    assert [(one["grant_id"], one["left_nanos"]) for one in grants] == [("acme:trial", 2 * 10**9)]
    assert office.events().count("subscription.started") == 1


def test_packs_raise_the_published_limits_and_the_fee(desk: Desk, office: Office) -> None:
    apply(desk)
    subscribe(desk, packs=2)
    assert live(desk) == [("Plan pro with 2 packs", 3_900)]
    plans = {plan.name: plan for plan in desk.snapshot.plans}
    assert desk.tenant("acme").plan == "pro+2"
    raised = plans["pro+2"]
    assert (raised.rate_calls, raised.burst, raised.concurrency, raised.pricing) == (40, 70, 16, "priced")
    assert (plans["pro"].rate_calls, plans["pro"].burst) == (20, 40)
    assert desk.must("GET", "/admin/tenants/acme")["plan"] == "pro"
    subscribe(desk)
    assert "pro+2" not in {plan.name for plan in desk.snapshot.plans}
    assert live(desk) == [("Plan pro", 2_900)]
    assert office.events().count("subscription.changed") == 1


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"plan": "pro", "packs": 4}, 422, "packs: 4 is not possible: plan 'pro' sells at most 3"),
        ({"plan": "pay", "packs": 1}, 422, "packs: 1 is not possible: plan 'pay' sells no packs"),
        ({"plan": "gold"}, 422, "plan: 'gold' does not exist"),
        ({"plan": "pro", "packs": -1}, 422, "packs: input should be greater"),
    ],
)
def test_a_wrong_subscription_changes_nothing(
    desk: Desk, office: Office, body: dict[str, Any], status: int, message: str
) -> None:
    apply(desk)
    said = refused(desk, "/admin/tenants/acme/subscribe", {"operation_id": operation()} | body, status)
    assert said.startswith(message)
    assert live(desk) == []
    assert desk.tenant("acme").plan == "free"
    assert office.events() == []


def test_leaving_for_a_plan_without_a_fee_ends_the_subscription(desk: Desk, office: Office) -> None:
    apply(desk)
    subscribe(desk)
    turn_to(desk, office, T0_NS + DAY_NS)
    subscribe(desk, "pay")
    assert live(desk) == []
    items = desk.must("GET", "/admin/billing/accounts/acme")["pending_items"]
    assert [item["kind"] for item in items] == ["subscription", "proration"]
    assert desk.tenant("acme").plan == "pay"


# -- months ------------------------------------------------------------------------------------------------------------


def test_the_clock_rates_the_month_before_it_bills_it(desk: Desk, office: Office) -> None:
    apply(desk, FILE.replace('fee = "29"', 'fee = "0"').replace('amount = "2"', 'amount = "0.5"'))
    subscribe(desk)
    desk.must("POST", "/admin/tenants/acme/coupons", {"operation_id": operation(), "code": "HALF"})
    turn_to(desk, office, MONTH_END_NS + DAY_NS)
    office.post_usage(3_100, plan="pro")
    registry = desk.control.registry
    clock = BillingClock(Money(desk.data_dir, registry, desk.app.state.ask_meter), registry, {})
    clock.tick()
    clock.tick()
    (run,) = desk.must("GET", "/admin/tenants/acme/months")
    # 3,000 calls beyond the included ones at 0.001, half of it off, 0.5 of trial credit.
    assert run["net_nanos"] == 10**9
    document = office.document("INV-000001")
    assert sum(line.exact_nanos for line in document.lines) == 10**9
    assert sum(line.amount_minor for line in document.lines) == document.net_minor == 100
    assert run["plan_versions"] == {"pro": 1}
    office.check()


def test_a_month_of_many_calls_is_gathered_in_parts_before_it_is_rated(
    desk: Desk, office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tally, "PART_EVENTS", 400)
    for module in (settlement, months):
        monkeypatch.setattr(module, "TAIL_EVENTS_MAX", 500)
    apply(desk)
    subscribe(desk)
    turn_to(desk, office, MONTH_END_NS + DAY_NS)
    office.post_usage(3_100, plan="pro")
    run = desk.must("POST", "/admin/tenants/acme/months", {"operation_id": operation(), "at_ns": T0_NS})
    assert {line["key"]: line["amount_nanos"] for line in run["lines"]}["pro:calls"] == 3_000_000_000 - 3_100 * OCR
    parts = office.reader.execute("SELECT through_event_id FROM month_tally ORDER BY 1").fetchall()
    assert [through for (through,) in parts] == [400, 800, 1_200, 1_600, 2_000, 2_400, 2_800]


def test_an_invoice_over_many_calls_is_gathered_in_parts_before_it_is_made(
    desk: Desk, office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "PART_EVENTS", 10)
    monkeypatch.setattr(gathering, "TAIL_EVENTS_MAX", 5)
    turn_to(desk, office, MONTH_END_NS + DAY_NS)
    office.post_usage(100)
    desk.must(*command("invoice.draft", {"tenant": "acme", "until_ns": MONTH_END_NS}))
    (parts,) = office.reader.execute("SELECT COUNT(*) FROM invoice_part").fetchone()
    assert parts == 10
    office.post_usage(40)
    registry = desk.control.registry
    BillingClock(Money(desk.data_dir, registry, desk.app.state.ask_meter), registry, {}).tick()
    assert [line.quantity for line in office.document("INV-000001").lines] == [140]


def test_a_version_applied_in_the_month_holds_from_the_next_one_on(desk: Desk, office: Office) -> None:
    apply(desk)
    subscribe(desk)
    turn_to(desk, office, T0_NS + 10 * DAY_NS)
    apply(desk, FILE.replace('per_unit = "0.001"', 'per_unit = "0.5"'))
    turn_to(desk, office, MONTH_END_NS + 40 * DAY_NS)
    office.post_usage(1_200, plan="pro")
    runs = []
    for at_ns in (T0_NS, MONTH_END_NS):
        body = {"operation_id": operation(), "at_ns": at_ns}
        runs.append(desk.must("POST", "/admin/tenants/acme/months", body))
    assert [run["plan_versions"] for run in runs] == [{"pro": 1}, {"pro": 2}]
    assert {line["key"]: line["amount_nanos"] for line in runs[0]["lines"]}["pro:calls"] == 1_100_000_000 - 1_200 * OCR


def test_a_minimum_is_asked_for_the_part_of_the_month_in_which_the_plan_held(desk: Desk, office: Office) -> None:
    apply(desk)
    turn_to(desk, office, MONTH_END_NS - 31 * DAY_NS // 2)
    subscribe(desk)
    turn_to(desk, office, MONTH_END_NS + DAY_NS)
    run = desk.must("POST", "/admin/tenants/acme/months", {"operation_id": operation(), "at_ns": T0_NS})
    minimum = next(line for line in run["lines"] if line["key"] == "pro:minimum")
    assert minimum["amount_nanos"] == 500_000_000


def test_a_month_that_is_not_over_is_not_rated(desk: Desk, office: Office) -> None:
    apply(desk)
    subscribe(desk)
    said = refused(desk, "/admin/tenants/acme/months", {"operation_id": operation(), "at_ns": T0_NS}, 409)
    assert "in the future" in said
    assert refused(desk, "/admin/tenants/acme/months", {"operation_id": operation(), "at_ns": 5}).startswith(
        "month: acc"
    )


# -- quotes, re-rating -------------------------------------------------------------------------------------------------


def test_a_quote_is_what_the_call_will_be_charged(desk: Desk) -> None:
    found = desk.must("POST", "/admin/prices/quote", {"model": "file_type", "rows": 3, "calls": 10})
    assert (found["call_nanos"], found["list_nanos"], found["total"]) == (170_000, 1_700_000, "0.0017")
    amount, _ = compile_book(default_price_book()).charge("file_type", "priced", 0, 3, 0)
    assert found["call_nanos"] == amount


def test_a_quote_under_a_plan_has_its_lines_and_fees(desk: Desk) -> None:
    apply(desk)
    body = {"model": "ocr", "calls": 2_000, "plan": "pro", "packs": 1}
    found = desk.must("POST", "/admin/prices/quote", body)
    assert [line["key"] for line in found["lines"]] == ["pro:calls", "pro:minimum"]
    assert (found["total"], found["fee_nanos"]) == ("35.9", 34 * 10**9)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"model": "ocr", "version": 9}, 404, "price book '9'"),
        ({"model": "ocr", "plan": "gold"}, 404, "plan 'gold'"),
        ({"model": "ocr", "packs": 1}, 422, "packs: need a plan"),
        ({"model": "ocr", "rows": -1}, 422, "rows: input should be greater"),
        ({"model": "ocr", "rows": 2**48}, 422, "rows: input should be less"),
        ({"model": "file_type", "rows": 2**48 - 1}, 422, "rows, compute: one call would cost more"),
        ({"model": ""}, 422, "model: "),
    ],
)
def test_what_cannot_be_quoted_is_refused(desk: Desk, body: dict[str, Any], status: int, message: str) -> None:
    assert refused(desk, "/admin/prices/quote", body, status).startswith(message)


def test_calls_rated_again_by_their_own_version_do_not_differ_and_by_another_do(desk: Desk, office: Office) -> None:
    office.post_usage(10, model="other")
    office.post_usage(5)
    before = trial_balance(office.reader)
    desk.must("POST", "/admin/prices", {"text": BOOK})
    span = {"since_ns": T0_NS, "until_ns": MONTH_END_NS}
    own = desk.must("POST", "/admin/prices/rerate", span)
    assert [line["difference_nanos"] for line in own["lines"]] == [0, 0]
    other = desk.must("POST", "/admin/prices/rerate", span | {"against": 2})
    assert [(line["model"], line["posted_nanos"], line["rerated_nanos"]) for line in other["lines"]] == [
        ("ocr", 5 * OCR, 5_000_000),
        ("other", 1_000_000, 2_000_000),
    ]
    assert other["digest"] != own["digest"]
    assert desk.must("POST", "/admin/prices/rerate", span | {"against": 2}) == other
    assert trial_balance(office.reader) == before
    office.check()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"against": 7}, "against: price book 7 is unknown; known: 1"),
        ({"since_ns": MONTH_END_NS}, "from: must be before to"),
    ],
)
def test_a_run_that_cannot_be_made_is_refused(desk: Desk, office: Office, body: dict[str, Any], message: str) -> None:
    office.post_usage(1)
    span = {"since_ns": T0_NS, "until_ns": MONTH_END_NS}
    assert refused(desk, "/admin/prices/rerate", span | body).startswith(message)


# -- simulation --------------------------------------------------------------------------------------------------------


def simulated(desk: Desk, **fields: Any) -> Any:
    return desk.must(
        "POST",
        "/admin/plans/simulate",
        {"tenant": "acme", "since_ns": T0_NS, "until_ns": MONTH_END_NS, "bucket_s": 86_400} | fields,
    )


def test_a_daily_cap_throttles_exactly_what_is_beyond_it(desk: Desk, office: Office) -> None:
    apply(desk)
    for day in range(3):
        for second in range(1, 6):
            office.post_usage(1, t_ns=T0_NS + day * DAY_NS + second * NS_PER_S)
    found = simulated(desk, plan="pay", limits={"calls_per_day": 4})
    assert (found["calls"], found["admitted"]) == (15, 12)
    (code,) = found["refused"]
    assert code == "daily_cap_exceeded"
    assert found["refused"][code]["calls"] == 3
    assert found["refused"][code]["first_at"] == "2026-01-01T00:00:05.000Z"
    assert [(one["admitted"], one["refused"]) for one in found["series"]] == [(4, 1)] * 3
    assert (found["recorded_nanos"], found["would_be_nanos"]) == (15 * OCR, 12 * OCR)


def test_a_rate_throttles_by_the_bucket_of_production(desk: Desk, office: Office) -> None:
    apply(desk)
    for step in range(20):
        office.post_usage(1, t_ns=T0_NS + step * NS_PER_S // 10)
    found = simulated(desk, plan="pay", limits={"rate_calls": 2, "burst": 5}, bucket_s=1)
    # 5 at once, then one each half second: at 0.5, 1.0 and 1.5 s.
    assert found["admitted"] == 5 + 3
    assert found["refused"]["rate_exceeded"]["calls"] == 12


def test_concurrency_counts_calls_by_their_compute_time(desk: Desk, office: Office) -> None:
    apply(desk)
    for step in range(4):
        office.post_usage(1, t_ns=T0_NS + step * NS_PER_S, compute_ns=5 * NS_PER_S // 2)
    found = simulated(desk, plan="pay", limits={"concurrency": 2})
    assert found["refused"]["concurrency_exceeded"]["first_at"] == "2026-01-01T00:00:02.000Z"
    assert found["admitted"] == 3


def test_revenue_is_that_of_the_plan_over_admitted_calls(desk: Desk, office: Office) -> None:
    apply(desk)
    for number in range(300):
        office.post_usage(1, t_ns=T0_NS + number * 60 * NS_PER_S)
    found = simulated(desk, plan="pro", packs=1)
    (month,) = found["months"]
    # 200 beyond the included calls cost 0.2; the minimum is 1; 29 + 5 fees.
    assert (month["total"], found["would_be_nanos"]) == ("35", 35 * 10**9)
    assert found["plan"]["name"] == "pro+1"
    assert found["plan"]["rate_calls"] == 30


def test_a_plan_and_prices_from_files_need_not_be_applied(desk: Desk, office: Office) -> None:
    office.post_usage(10)
    text = '[plans.new]\npricing = "priced"\nrate_calls = 1000\nburst = 1000\n'
    found = simulated(desk, file={"name": "new.toml", "text": text}, prices={"name": "book.toml", "text": BOOK})
    assert (found["admitted"], found["would_be_nanos"], found["price_version"]) == (10, 10_000_000, 2)
    assert desk.ask("GET", "/admin/plans/new").status_code == 404
    assert desk.snapshot.prices.version == 1


def test_without_calls_there_is_nothing_to_say(desk: Desk, office: Office) -> None:
    found = simulated(desk)
    assert (found["calls"], found["series"], found["months"], found["change_nanos"]) == (0, [], [], 0)
    assert office.events() == []


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"tenant": "nobody"}, 404, "tenant 'nobody'"),
        ({"plan": "gold"}, 404, "plan 'gold'"),
        ({"since_ns": MONTH_END_NS}, 422, "since_ns: must be before"),
        ({"limits": {"qps": 3}}, 422, "limits.qps: unknown: use one of rate_calls"),
        ({"limits": {"calls_per_day": -1}}, 422, "limits.calls_per_day: Input should be greater"),
        ({"packs": 1}, 422, "packs: 1 is not possible: plan 'free' sells no packs"),
        ({"file": {"name": "f.toml", "text": "[plans.a]\n"}}, 422, "f.toml: plans.a.pricing: Field required"),
        ({"file": {"name": "f.toml", "text": "[coupons.A]\npercent = 1\n"}}, 422, "f.toml: holds 0 such plans"),
        ({"bucket_s": 0}, 422, "bucket_s: input should be"),
    ],
)
def test_a_wrong_simulation_is_refused(
    desk: Desk, office: Office, fields: dict[str, Any], status: int, message: str
) -> None:
    body = {"tenant": "acme", "since_ns": T0_NS, "until_ns": MONTH_END_NS} | fields
    assert refused(desk, "/admin/plans/simulate", body, status).startswith(message)
    assert office.events() == []


# -- months whose account moved ----------------------------------------------------------------------------------------


def test_an_account_whose_anchor_moves_is_rated_without_gap_or_overlap(desk: Desk, office: Office) -> None:
    apply(desk, FILE.replace('fee = "29"', 'fee = "0"'))
    subscribe(desk)
    middle_ns = T0_NS + 14 * DAY_NS
    turn_to(desk, office, MONTH_END_NS + DAY_NS)
    assert desk.must("POST", "/admin/tenants/acme/months", {"operation_id": operation(), "at_ns": T0_NS})["n"] == 0
    office.set_up(anchor_ns=middle_ns)
    turn_to(desk, office, MONTH_END_NS + 40 * DAY_NS)
    office.post_usage(10, plan="pro", t_ns=MONTH_END_NS + DAY_NS)
    months = Months(Money(desk.data_dir, desk.control.registry, desk.app.state.ask_meter), desk.control.registry)
    months.settle_due("test", "acme", middle_ns + 31 * DAY_NS)
    runs = desk.must("GET", "/admin/tenants/acme/months")
    assert [(run["start_ns"], run["end_ns"]) for run in runs] == [
        (MONTH_END_NS, middle_ns + 31 * DAY_NS),
        (T0_NS, MONTH_END_NS),
    ]
    # 14 of the new month's 31 days are its own: that part of the minimum of 1.
    minimum = {line["key"]: line["amount_nanos"] for line in runs[0]["lines"]}["pro:minimum"]
    assert minimum == 10**9 - 17 * 10**9 // 31
    for at_ns in (T0_NS + 20 * DAY_NS, MONTH_END_NS + DAY_NS):
        again = desk.must("POST", "/admin/tenants/acme/months", {"operation_id": operation(), "at_ns": at_ns})
        assert (again["n"], [line["item_id"] for line in again["lines"]]) == (1, [None] * len(again["lines"]))


def test_a_month_rated_by_hand_does_not_hide_the_one_before(desk: Desk, office: Office) -> None:
    apply(desk)
    subscribe(desk)
    turn_to(desk, office, MONTH_END_NS + 40 * DAY_NS)
    desk.must("POST", "/admin/tenants/acme/months", {"operation_id": operation(), "at_ns": MONTH_END_NS})
    months = Months(Money(desk.data_dir, desk.control.registry, desk.app.state.ask_meter), desk.control.registry)
    months.settle_due("test", "acme", MONTH_END_NS + 28 * DAY_NS)
    runs = desk.must("GET", "/admin/tenants/acme/months")
    assert [(run["start_ns"], run["n"]) for run in runs] == [(MONTH_END_NS, 0), (T0_NS, 0)]


def test_a_plan_in_another_currency_than_the_account_is_not_subscribed(desk: Desk, office: Office) -> None:
    apply(desk)
    desk.new_tenant("globex")
    office.set_up(tenant="globex", currency="EUR")
    body = {"operation_id": operation(), "plan": "pro"}
    said = refused(desk, "/admin/tenants/globex/subscribe", body)
    assert said == "plan: is in USD, but tenant 'globex' is billed in EUR"
    assert desk.tenant("globex").plan == "free"


def test_usage_that_came_in_late_is_rated_before_the_next_invoice(desk: Desk, office: Office) -> None:
    without_credit = FILE.replace('[plans.pro.trial_credit]\namount = "2"\ndays = 60\n', "")
    apply(desk, without_credit.replace('fee = "29"', 'fee = "0"'))
    subscribe(desk)
    turn_to(desk, office, MONTH_END_NS + DAY_NS)
    office.post_usage(1_600, plan="pro")
    desk.must(*command("invoice.bill", {"tenant": "acme", "until_ns": MONTH_END_NS}))
    assert sum(line.exact_nanos for line in office.document("INV-000001").lines) == 1_500_000_000
    office.post_usage(400, plan="pro")
    february_ns = MONTH_END_NS + 28 * DAY_NS
    turn_to(desk, office, february_ns + DAY_NS)
    desk.must(*command("invoice.draft", {"tenant": "acme", "until_ns": february_ns}))
    desk.must(*command("invoice.bill", {"tenant": "acme", "until_ns": february_ns}))
    runs = desk.must("GET", "/admin/tenants/acme/months")
    assert [(run["start_ns"], run["n"], run["net_nanos"]) for run in runs] == [
        (MONTH_END_NS, 0, 10**9),
        (T0_NS, 1, 1_900_000_000),
        (T0_NS, 0, 1_500_000_000),
    ]
    # 400 late calls at 0.001 and February's minimum.
    assert sum(line.exact_nanos for line in office.document("INV-000002").lines) == 1_400_000_000
    office.check()


def test_an_invoice_into_a_month_that_is_not_over_bills_list_prices_so_far(desk: Desk, office: Office) -> None:
    apply(desk, FILE.replace('fee = "29"', 'fee = "0"'))
    subscribe(desk)
    turn_to(desk, office, T0_NS + 2 * DAY_NS)
    office.post_usage(10, plan="pro")
    draft = desk.must(*command("invoice.draft", {"tenant": "acme", "until_ns": T0_NS + DAY_NS}))
    assert [line["kind"] for line in draft["lines"]] == ["usage"]
    assert desk.must("GET", "/admin/tenants/acme/months") == []
