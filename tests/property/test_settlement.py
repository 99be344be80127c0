"""I17, I21 over whole histories: whatever is posted, granted, redeemed and rated in whatever order, the items of a
month sum to its last rating, credit is used up to its amount, and the books balance."""

import tempfile
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.credit_store import burns_of, holdings
from billing.invoices.store import pending_items
from billing.plans import PlanCharge, PlanTerms
from billing.settlement import find_run
from billing.tally import month_usage
from billing.tiers import Rate, Tier
from tests.unit.billing.invoices.office import DAY_NS, MONTH_END_NS, Office, open_office
from tests.unit.billing.making import T0_NS

GRADUATED = Rate(
    model="graduated", tiers=(Tier(start=0, end=3, per_unit_nanos=5_000_000), Tier(start=3, per_unit_nanos=333_333))
)
TERMS = [
    PlanTerms(currency="USD", charges=(PlanCharge(name="c", unit="call", rate=GRADUATED, included=1),)),
    PlanTerms(
        currency="USD",
        minimum_nanos=7_000_001,
        charges=(
            PlanCharge(name="p", unit="row", rate=Rate(model="package", package_units=4, package_nanos=9_000_007)),
            PlanCharge(name="t", unit="second", rate=Rate(model="per_unit", per_unit_nanos=1_000_003), is_on_top=True),
        ),
    ),
]
STEPS = st.one_of(
    st.tuples(
        st.just("use"), st.integers(1, 4), st.sampled_from(["ocr", "file_type"]), st.sampled_from(["pro", "pay"])
    ),
    st.tuples(st.just("grant"), st.integers(1, 20_000_000), st.integers(1, 3), st.sampled_from([(), ("ocr",)])),
    st.tuples(st.just("redeem"), st.integers(1, 10**6)),
    st.tuples(st.just("rate"), st.sampled_from([0, 1])),
)


@settings(max_examples=20, deadline=None)
@given(st.lists(STEPS, min_size=1, max_size=10), st.sampled_from([0, 1]))
def test_items_sum_to_the_last_rating_whatever_happened_before(steps: list[tuple[Any, ...]], last: int) -> None:
    with tempfile.TemporaryDirectory() as folder, open_office(Path(folder)) as office:
        office.set_up()
        for index, step in enumerate([*steps, ("rate", last)]):
            _do(office, index, step)
            _check(office)


def _do(office: Office, index: int, step: tuple[Any, ...]) -> None:
    office.now_ns = T0_NS + DAY_NS
    if step[0] == "use":
        _, calls, model, plan = step
        office.post_usage(calls, model=model, plan=plan, compute_ns=333_333_333)
    elif step[0] == "grant":
        _, amount, priority, models = step
        body = {"tenant": "acme", "source": f"g{index}", "amount_nanos": amount, "priority": priority}
        office.do("credit.grant", body | {"models": list(models)})
    elif step[0] == "redeem":
        coupon = {"code": f"C{index}", "percent_ppm": step[1], "months": 1}
        office.do("coupon.redeem", {"tenant": "acme", "coupon": coupon})
    else:
        office.now_ns = MONTH_END_NS + DAY_NS
        terms = TERMS[step[1]]
        plan = {"plan": "pro", "version": 1, "terms": msgspec.to_builtins(terms), "minimum_nanos": terms.minimum_nanos}
        body = {"tenant": "acme", "start_ns": T0_NS, "end_ns": MONTH_END_NS, "plans": [plan]}
        run = office.do("month.settle", body)
        usage = month_usage(office.reader, "acme", T0_NS, MONTH_END_NS)
        assert run["list_nanos"] == sum(one.charge_nanos for one in usage)
        assert run["net_nanos"] >= 0


def _check(office: Office) -> None:
    run = find_run(office.reader, "acme", T0_NS)
    lines = () if run is None else run.lines
    by_kind: dict[str, int] = {}
    for line in lines:
        by_kind[line.kind] = by_kind.get(line.kind, 0) + line.amount_nanos
    items: dict[str, int] = {}
    for item in pending_items(office.reader, "acme"):
        items[item.kind] = items.get(item.kind, 0) + item.amount_nanos
    assert {kind: nanos for kind, nanos in items.items() if nanos} == {
        kind: nanos for kind, nanos in by_kind.items() if nanos
    }
    used = sum(burns_of(office.reader, "acme", T0_NS).values())
    assert used == -by_kind.get("promo", 0)
    assert all(0 < holding.left_nanos <= holding.grant.amount_nanos for holding in holdings(office.reader, "acme"))
