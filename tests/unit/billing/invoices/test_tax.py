"""Tax is decided by jurisdiction and day, rounded once per component, and reverses exactly."""

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.invoices.tax import (
    PPM,
    Decision,
    TaxError,
    TaxProfile,
    TaxRate,
    TaxTable,
    decide,
    tax_lines,
    validate_profile,
    validate_table,
)

DE = TaxProfile(country="DE", tax_id="DE123456789")
TABLE = validate_table(
    TaxTable(
        version=1,
        reverse_charge_zones=(("DE", "FR", "NL"),),
        rates=(
            TaxRate(jurisdiction="DE", name="USt", rate_ppm=190_000, valid_until=date(2027, 1, 1)),
            TaxRate(jurisdiction="DE", name="USt", rate_ppm=200_000, valid_from=date(2027, 1, 1)),
            TaxRate(jurisdiction="DE", name="USt", rate_ppm=70_000, category="books"),
            TaxRate(jurisdiction="FR", name="TVA", rate_ppm=200_000),
            TaxRate(jurisdiction="CA", name="GST", rate_ppm=50_000),
            TaxRate(jurisdiction="CA-QC", name="GST", rate_ppm=50_000),
            TaxRate(jurisdiction="CA-QC", name="QST", rate_ppm=99_750),
        ),
    )
)
DAY = date(2026, 6, 1)


def decided(buyer: TaxProfile, category: str = "standard", on: date = DAY) -> tuple[str, list[int]]:
    decision = decide(TABLE, DE, buyer, category, on)
    return decision.treatment, [rate.rate_ppm for rate in decision.components]


@pytest.mark.parametrize(
    ("buyer", "category", "on", "expected"),
    [
        (TaxProfile(country="DE"), "standard", DAY, ("taxed", [190_000])),
        (TaxProfile(country="DE", tax_id="DE99"), "standard", DAY, ("taxed", [190_000])),
        (TaxProfile(country="DE"), "standard", date(2026, 12, 31), ("taxed", [190_000])),
        (TaxProfile(country="DE"), "standard", date(2027, 1, 1), ("taxed", [200_000])),
        (TaxProfile(country="DE"), "books", DAY, ("taxed", [70_000])),
        (TaxProfile(country="FR"), "standard", DAY, ("taxed", [200_000])),
        (TaxProfile(country="FR", tax_id="FR12345678901"), "standard", DAY, ("reverse_charge", [])),
        (TaxProfile(country="FR", tax_id="FR1234", is_exempt=True), "standard", DAY, ("exempt", [])),
        (TaxProfile(country="CA", region="QC"), "standard", DAY, ("taxed", [50_000, 99_750])),
        (TaxProfile(country="CA", region="AB"), "standard", DAY, ("taxed", [50_000])),
        (TaxProfile(country="US", region="CA", tax_id="12345"), "standard", DAY, ("not_registered", [])),
        (TaxProfile(country="FR"), "books", DAY, ("not_registered", [])),
    ],
)
def test_the_decision_by_place_day_and_buyer(
    buyer: TaxProfile, category: str, on: date, expected: tuple[str, list[int]]
) -> None:
    assert decided(buyer, category, on) == expected


@pytest.mark.parametrize(
    ("amount", "ppm", "exclusive", "inclusive"),
    [
        (100_00, 190_000, 19_00, 15_97),
        (50, 50_000, 3, 2),
        (-50, 50_000, -3, -2),
        (30, 50_000, 2, 1),
        (0, 190_000, 0, 0),
    ],
)
def test_half_a_unit_rounds_away_from_zero(amount: int, ppm: int, exclusive: int, inclusive: int) -> None:
    decision = Decision("taxed", (TaxRate(jurisdiction="DE", name="t", rate_ppm=ppm),))
    (on_top,) = tax_lines("standard", amount, decision, is_inclusive=False)
    (inside,) = tax_lines("standard", amount, decision, is_inclusive=True)
    assert (on_top.tax_minor, on_top.base_minor) == (exclusive, amount)
    assert (inside.tax_minor, inside.base_minor) == (inclusive, amount - inclusive)


RATES = st.lists(st.integers(0, PPM), min_size=1, max_size=4).map(
    lambda rates: Decision(
        "taxed",
        tuple(TaxRate(jurisdiction="DE", name=f"t{index}", rate_ppm=ppm) for index, ppm in enumerate(rates)),
    )
)


@given(st.integers(-(10**12), 10**12), RATES, st.booleans())
def test_tax_reverses_exactly_and_is_within_half_a_unit(amount: int, decision: Decision, is_inclusive: bool) -> None:
    lines = tax_lines("standard", amount, decision, is_inclusive=is_inclusive)
    back = tax_lines("standard", -amount, decision, is_inclusive=is_inclusive)
    assert [line.tax_minor for line in back] == [-line.tax_minor for line in lines]
    if is_inclusive:
        assert lines[0].base_minor + sum(line.tax_minor for line in lines) == amount
        total = sum(rate.rate_ppm for rate in decision.components)
        exact = amount * total
        assert abs(sum(line.tax_minor for line in lines) * (PPM + total) - exact) * 2 <= PPM + total
    else:
        for line in lines:
            assert abs(line.tax_minor * PPM - amount * line.rate_ppm) * 2 <= PPM


def test_who_is_not_taxed_has_a_line_that_says_why() -> None:
    (line,) = tax_lines("standard", 500, Decision("reverse_charge", ()), is_inclusive=False)
    assert (line.treatment, line.base_minor, line.tax_minor, line.rate_ppm) == ("reverse_charge", 500, 0, 0)


@pytest.mark.parametrize(
    ("rates", "named"),
    [
        ([TaxRate(jurisdiction="Germany", name="t", rate_ppm=1)], "jurisdiction"),
        ([TaxRate(jurisdiction="DE-", name="t", rate_ppm=1)], "jurisdiction"),
        ([TaxRate(jurisdiction="DE", name="t", rate_ppm=-1)], "rate_ppm"),
        ([TaxRate(jurisdiction="DE", name="t", rate_ppm=PPM + 1)], "rate_ppm"),
        ([TaxRate(jurisdiction="DE", name="", rate_ppm=1)], "name"),
        (
            [TaxRate(jurisdiction="DE", name="t", rate_ppm=1, valid_from=DAY, valid_until=DAY)],
            "valid_until",
        ),
        (
            [TaxRate(jurisdiction="DE", name="t", rate_ppm=1), TaxRate(jurisdiction="DE", name="t", rate_ppm=2)],
            "overlaps",
        ),
    ],
)
def test_a_bad_table_is_refused_by_the_name_of_its_fault(rates: list[TaxRate], named: str) -> None:
    with pytest.raises(TaxError, match=named):
        validate_table(TaxTable(version=1, rates=tuple(rates)))


@pytest.mark.parametrize(
    "profile",
    [TaxProfile(country="de"), TaxProfile(country="DE", region="bavaria"), TaxProfile(country="DE", tax_id="DE 1")],
)
def test_a_bad_profile_is_refused(profile: TaxProfile) -> None:
    with pytest.raises(TaxError):
        validate_profile(profile)


def test_zones_and_versions_of_a_table_are_checked() -> None:
    with pytest.raises(TaxError, match="zones"):
        validate_table(TaxTable(version=1, reverse_charge_zones=(("Deutschland",),)))
    with pytest.raises(TaxError, match="version"):
        validate_table(TaxTable(version=0))
