"""A month under a plan, by example: included units and overage, packages, minimum with true-up, text of lines."""

from billing.catalogue import parse_catalogue
from billing.month import PlanMonth, Usage, base_plan, month_lines, net_by_plan
from billing.plans import PlanTerms

LIST_NANOS = 3_000_000


def terms(text: str) -> PlanTerms:
    (plan,) = parse_catalogue(('currency = "USD"\n[plans.pro]\n' + text).encode(), is_json=False).plans
    assert plan.terms is not None
    return plan.terms


def usage(model: str = "ocr", calls: int = 0, plan: str = "pro", **figures: int) -> Usage:
    figures = {"rows": calls, "compute_ns": 0, "byte_count": 0, "charge_nanos": calls * LIST_NANOS} | figures
    return Usage(plan=plan, model=model, ok_calls=calls, **figures)


def lines_of(text: str, *used: Usage) -> list[tuple[str, str, int]]:
    of = terms(text)
    return [
        (line.key, line.kind, line.amount_nanos)
        for line in month_lines([PlanMonth("pro", 1, of, of.minimum_nanos)], used)
    ]


CALLS = '[plans.pro.charges.calls]\nunit = "call"\nincluded = 100\nper_unit = "0.002"\n'


def test_included_calls_are_free_and_overage_has_its_own_price() -> None:
    assert lines_of(CALLS, usage(calls=80)) == [("pro:calls", "adjustment", -80 * LIST_NANOS)]
    assert lines_of(CALLS, usage(calls=150)) == [
        ("pro:calls", "adjustment", 50 * 2_000_000 - 150 * LIST_NANOS),
    ]


def test_included_units_count_over_all_models_of_a_charge() -> None:
    ((_, _, nanos),) = lines_of(CALLS, usage("ocr", 70), usage("clip", 50))
    assert nanos == 20 * 2_000_000 - 120 * LIST_NANOS


def test_a_charge_on_top_is_added_to_the_list_price() -> None:
    text = '[plans.pro.charges.traffic]\nunit = "mb"\nis_on_top = true\nper_unit = "0.01"\n'
    assert lines_of(text, usage(calls=1, byte_count=1_500_000)) == [("pro:traffic", "adjustment", 15_000_000)]


def test_a_minimum_is_topped_up_and_is_nothing_when_it_is_reached() -> None:
    text = '[plans.pro.minimum]\nper_month = "1"\n'
    assert lines_of(text, usage(calls=100)) == [("pro:minimum", "minimum", 10**9 - 100 * LIST_NANOS)]
    assert lines_of(text, usage(calls=500)) == [("pro:minimum", "minimum", 0)]
    assert lines_of(text) == [("pro:minimum", "minimum", 10**9)]


def test_usage_under_another_plan_is_not_touched() -> None:
    used = [usage(calls=10, plan="pay-per-call")]
    lines = month_lines([PlanMonth("pro", 1, terms(CALLS), 0)], used)
    assert net_by_plan(used, lines) == {"pay-per-call": 10 * LIST_NANOS, "pro": 0}


def test_a_line_says_what_was_counted() -> None:
    text = '[plans.pro.charges.time]\nunit = "second"\nincluded = 2\nper_unit = "1"\n'
    (line,) = month_lines([PlanMonth("pro", 1, terms(text), 0)], [usage(calls=1, compute_ns=1_234_567_500_000)])
    assert line.description == "pro time: 1,234.5675 second, 2 included; instead of the list price"


def test_packs_belong_to_their_plan() -> None:
    assert [base_plan(name) for name in ("pro", "pro+2")] == ["pro", "pro"]
