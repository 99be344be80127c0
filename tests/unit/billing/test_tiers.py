"""Rating models by example: what each one costs, and which tiers are refused with what to do."""

import pytest

from billing.tiers import Rate, RateError, Tier, amount, divide_half_even, validate_rate

GRADUATED = Rate(
    model="graduated",
    tiers=(Tier(start=0, end=100, per_unit_nanos=10), Tier(start=100, per_unit_nanos=4, flat_nanos=50)),
)
VOLUME = Rate(model="volume", tiers=(Tier(start=0, end=100, per_unit_nanos=10), Tier(start=100, per_unit_nanos=8)))


@pytest.mark.parametrize(("quantity", "nanos"), [(0, 0), (99, 990), (100, 1_000), (101, 1_054), (200, 1_450)])
def test_graduated_prices_each_unit_in_its_tier(quantity: int, nanos: int) -> None:
    assert amount(GRADUATED, quantity) == nanos


@pytest.mark.parametrize(
    ("quantity", "nanos"),
    [(0, 0), (79, 790), (80, 800), (90, 800), (99, 800), (100, 800), (101, 808)],
)
def test_volume_is_capped_below_a_threshold_instead_of_dipping_at_it(quantity: int, nanos: int) -> None:
    assert amount(VOLUME, quantity) == nanos


@pytest.mark.parametrize(("quantity", "nanos"), [(0, 0), (1, 500), (1_000, 500), (1_001, 1_000)])
def test_a_package_begun_is_a_package_sold(quantity: int, nanos: int) -> None:
    assert amount(Rate(model="package", package_units=1_000, package_nanos=500), quantity) == nanos


@pytest.mark.parametrize(("base_units", "nanos"), [(0, 0), (500_000, 2), (1_500_000, 4), (250_000, 1), (166_666, 0)])
def test_parts_of_a_unit_are_rounded_once_half_to_even(base_units: int, nanos: int) -> None:
    assert amount(Rate(model="per_unit", per_unit_nanos=3), base_units, 10**6) == nanos


def test_a_package_of_seconds_is_counted_in_seconds() -> None:
    rate = Rate(model="package", package_units=60, package_nanos=7)
    assert [amount(rate, seconds * 10**9 + rest, 10**9) for seconds, rest in ((60, 0), (60, 1))] == [7, 14]


@pytest.mark.parametrize(("numerator", "rounded"), [(5, 2), (15, 8), (25, 12), (26, 13), (24, 12), (-5, -2), (-15, -8)])
def test_halves_go_to_the_even_side(numerator: int, rounded: int) -> None:
    assert divide_half_even(numerator, 2) == rounded


@pytest.mark.parametrize(
    ("rate", "field", "text"),
    [
        (Rate(model="graduated"), "tiers", "at least one"),
        (Rate(model="graduated", tiers=(Tier(start=1),)), "tiers[0].from", "gap, units from 0 to 1"),
        (
            Rate(model="volume", tiers=(Tier(start=0, end=10), Tier(start=9))),
            "tiers[1].from",
            "9 overlaps the tier before, which ends at 10: set 10",
        ),
        (Rate(model="volume", tiers=(Tier(start=0, end=10), Tier(start=11))), "tiers[1].from", "gap"),
        (Rate(model="graduated", tiers=(Tier(start=0), Tier(start=5))), "tiers[0].to", "only the last"),
        (Rate(model="graduated", tiers=(Tier(start=0, end=0),)), "tiers[0].to", "must be above"),
        (Rate(model="graduated", tiers=(Tier(start=0, end=9),)), "tiers[0].to", "from 9 on have no price"),
        (Rate(model="package", package_nanos=1), "package", "at least 1"),
        (
            Rate(
                model="volume",
                tiers=(*(Tier(start=n, end=n + 1) for n in range(100)), Tier(start=100)),
            ),
            "tiers",
            "101 tiers are more than the 100",
        ),
    ],
)
def test_tiers_that_do_not_price_every_quantity_once_are_refused(rate: Rate, field: str, text: str) -> None:
    with pytest.raises(RateError, match=text.replace("(", r"\(")) as refused:
        validate_rate(rate)
    assert refused.value.field == field


def test_a_hundred_tiers_are_allowed() -> None:
    validate_rate(Rate(model="volume", tiers=(*(Tier(start=n, end=n + 1) for n in range(99)), Tier(start=99))))
