"""Whatever a catalogue file holds, it is read or refused by name: nothing else is raised, nothing is half read."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from billing.catalogue import Catalogue, parse_catalogue
from billing.fields import FileError
from billing.plans import UNITS, decode_terms, encode_terms, validate_terms

FIELDS = [
    "fee", "interval", "trial_days", "per_month", "rate_calls", "burst", "packs_max", "amount", "days", "unit", "model",
    "included", "models", "is_on_top", "per_unit", "package", "units", "price", "tiers", "from", "to", "flat",
    "percent", "months", "redemptions_max", "redeem_until", "plans", "pricing", "colour",
]  # fmt: skip
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(
        ["", "0", "1", "-1", "0.5", "1e3", "month", "year", "graduated", "volume", "*", "USD", "٣", "\x00"]
    ),
    st.sampled_from(UNITS),
    st.text(max_size=8),
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(FIELDS), inner, max_size=6)),
    max_leaves=20,
)
PARTS = st.dictionaries(
    st.sampled_from(["subscription", "minimum", "pack", "trial_credit", "pricing", "colour"]), VALUES, max_size=4
)
CHARGES = st.dictionaries(
    st.sampled_from(["calls", "Rows", "", "x" * 70]),
    st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=5) | VALUES,
    max_size=3,
)
PLANS = st.builds(lambda parts, charges: parts | {"charges": charges}, PARTS, CHARGES) | VALUES
FILES = st.fixed_dictionaries(
    {},
    optional={
        "currency": st.sampled_from(["USD", "JPY", "EUX", 5]),
        "plans": st.dictionaries(st.text(max_size=5), PLANS, max_size=2) | VALUES,
        "coupons": st.dictionaries(st.sampled_from(["A", "b", "A-1"]), VALUES, max_size=2) | VALUES,
        "colour": VALUES,
    },
)


@given(FILES)
def test_any_values_are_read_or_refused_by_name(raw: dict[str, Any]) -> None:
    _check(json.dumps(raw).encode(), is_json=True)


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_read_or_refused(data: bytes, is_json: bool) -> None:
    _check(data, is_json=is_json)


def _check(data: bytes, *, is_json: bool) -> None:
    try:
        found = parse_catalogue(data, is_json=is_json, name="f")
    except FileError as error:
        assert str(error).startswith("f: ")
        assert len(str(error)) < 2_000
        return
    _check_read(found)


def _check_read(found: Catalogue) -> None:
    assert found.plans or found.coupons
    for plan in found.plans:
        if plan.terms is not None:
            validate_terms(plan.terms)
            assert decode_terms(encode_terms(plan.terms)) == plan.terms
    for coupon in found.coupons:
        assert (coupon.percent_ppm > 0) != (coupon.amount_nanos > 0)
