"""I18 and what belongs to it: models are additive or monotone whatever their tiers, and included units never turn
into money; I17: a month's lines and list prices sum to what the plan says."""

from hypothesis import given
from hypothesis import strategies as st

from billing.coupons import Coupon, Redeemed, discounts
from billing.month import PlanMonth, Usage, charge_amount, month_lines, net_by_plan, quantity_of
from billing.plans import SCALE, UNITS, PlanCharge, PlanTerms, validate_terms
from billing.tiers import Rate, Tier, amount, graduated_part, scaled_amount, validate_rate

PRICES = st.integers(0, 10**12)
QUANTITIES = st.integers(0, 10**7)
SCALES = st.sampled_from([1, 10**6, 10**9])


@st.composite
def tiers(draw: st.DrawFn) -> tuple[Tier, ...]:
    """Tiers that cover every quantity once; prices in any order, so volume prices may dip."""
    cuts = sorted(draw(st.sets(st.integers(1, 10**6), max_size=5)))
    bounds = [0, *cuts]
    return tuple(
        Tier(
            start=start,
            end=bounds[index + 1] if index + 1 < len(bounds) else None,
            per_unit_nanos=draw(PRICES),
            flat_nanos=draw(PRICES),
        )
        for index, start in enumerate(bounds)
    )


@st.composite
def rates(draw: st.DrawFn) -> Rate:
    model = draw(st.sampled_from(["per_unit", "package", "graduated", "volume"]))
    if model == "per_unit":
        rate = Rate(model="per_unit", per_unit_nanos=draw(PRICES))
    elif model == "package":
        rate = Rate(model="package", package_units=draw(st.integers(1, 10**6)), package_nanos=draw(PRICES))
    elif model == "graduated":
        rate = Rate(model="graduated", tiers=draw(tiers()))
    else:
        rate = Rate(model="volume", tiers=draw(tiers()))
    validate_rate(rate)
    return rate


@given(tiers(), st.lists(QUANTITIES, max_size=6), SCALES)
def test_graduated_parts_sum_to_the_whole(of: tuple[Tier, ...], parts: list[int], scale: int) -> None:
    before, total = 0, 0
    for part in parts:
        total += graduated_part(of, before, part, scale)
        before += part
    assert total == graduated_part(of, 0, before, scale)


@given(rates(), QUANTITIES, QUANTITIES, SCALES)
def test_more_units_never_cost_less(rate: Rate, quantity: int, more: int, scale: int) -> None:
    assert amount(rate, quantity, scale) <= amount(rate, quantity + more, scale)


@given(rates(), QUANTITIES, SCALES)
def test_the_one_rounding_is_at_most_half_a_nano(rate: Rate, quantity: int, scale: int) -> None:
    exact = scaled_amount(rate, quantity, scale)
    assert 2 * abs(amount(rate, quantity, scale) * scale - exact) <= scale


@given(tiers(), QUANTITIES)
def test_a_capped_volume_price_is_at_most_its_own_tiers_and_never_dips_to_nothing(
    of: tuple[Tier, ...], quantity: int
) -> None:
    rate = Rate(model="volume", tiers=of)
    own = next(tier for tier in of if tier.end is None or quantity < tier.end)
    assert 0 <= amount(rate, quantity) <= quantity * own.per_unit_nanos + own.flat_nanos


USAGE = st.builds(
    Usage,
    plan=st.sampled_from(["pro", "free"]),
    model=st.sampled_from(["ocr", "llm", "clip"]),
    ok_calls=QUANTITIES,
    rows=QUANTITIES,
    compute_ns=st.integers(0, 10**15),
    byte_count=st.integers(0, 10**12),
    charge_nanos=st.integers(0, 10**15),
)


@given(rates(), st.sampled_from(UNITS), st.integers(0, 10**6), st.lists(USAGE, max_size=5))
def test_included_units_never_make_a_charge_negative(rate: Rate, unit: str, included: int, usage: list[Usage]) -> None:
    charge = PlanCharge(name="c", unit=unit, rate=rate, included=included)  # type: ignore[arg-type]
    quantity = quantity_of(charge.unit, usage)
    free = PlanCharge(name="c", unit=charge.unit, rate=rate)
    assert 0 <= charge_amount(charge, quantity) <= charge_amount(free, quantity)
    if quantity <= included * SCALE[charge.unit]:
        assert charge_amount(charge, quantity) == charge_amount(free, 0)


@given(rates(), rates(), st.lists(USAGE, max_size=6), st.integers(0, 10**15))
def test_list_prices_and_lines_sum_to_what_the_plan_says(
    ocr: Rate, others: Rate, usage: list[Usage], minimum: int
) -> None:
    charges = (
        PlanCharge(name="ocr", unit="call", models=("ocr",), rate=ocr),
        PlanCharge(name="others", unit="row", rate=others),
    )
    terms = PlanTerms(currency="USD", charges=charges, minimum_nanos=minimum)
    validate_terms(terms)
    lines = month_lines([PlanMonth("pro", 1, terms, minimum)], usage)
    net = net_by_plan(usage, lines)
    own = [one for one in usage if one.plan == "pro"]
    asked = amount(ocr, sum(one.ok_calls for one in own if one.model == "ocr")) + amount(
        others, sum(one.rows for one in own if one.model != "ocr")
    )
    assert net["pro"] == max(asked, minimum)
    assert net.get("free", 0) == sum(one.charge_nanos for one in usage if one.plan == "free")


@given(
    st.lists(st.tuples(st.integers(1, 10**6), st.integers(0, 10**12), st.booleans()), max_size=5),
    st.dictionaries(st.sampled_from(["pro", "free"]), st.integers(-(10**6), 10**12)),
)
def test_coupons_together_never_take_more_than_there_is(
    wanted: list[tuple[int, int, bool]], net: dict[str, int]
) -> None:
    coupons = [
        Redeemed(
            Coupon(code=f"C{n}", amount_nanos=amount_, currency="USD")
            if is_amount and amount_
            else Coupon(code=f"C{n}", percent_ppm=ppm, plans=("pro",)),
            0,
        )
        for n, (ppm, amount_, is_amount) in enumerate(wanted)
    ]
    found = discounts(coupons, net, "USD")
    assert all(one.amount_nanos >= 0 for one in found)
    assert sum(one.amount_nanos for one in found) <= sum(max(0, one) for one in net.values())
