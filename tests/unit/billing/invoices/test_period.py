"""Periods meet without gap or overlap; shares of a fee sum to it, through clock changes, leap days and month ends."""

from datetime import UTC, datetime
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.invoices.period import NS_PER_S, Period, PeriodError, boundary_ns, floor_s, index_at, period_of
from billing.invoices.proration import cumulative, largest_remainder, share

ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Pacific/Apia", "Australia/Lord_Howe")
ANCHORS = st.integers(1_000_000_000, 4_000_000_000).map(lambda seconds: seconds * NS_PER_S)
INTERVALS = st.sampled_from(["month", "year"])


def ns(*fields: int, zone: str = "UTC") -> int:
    year, month, day, *rest = fields
    hour, minute, second = (*rest, 0, 0, 0)[:3]
    local = datetime(year, month, day, hour, minute, second, tzinfo=UTC if zone == "UTC" else ZoneInfo(zone))
    return int(local.timestamp()) * NS_PER_S


@pytest.mark.parametrize(
    ("anchor", "index", "expected"),
    [
        ((2026, 1, 31), 1, (2026, 2, 28)),
        ((2026, 1, 31), 2, (2026, 3, 31)),
        ((2027, 12, 31), 2, (2028, 2, 29)),
        ((2026, 12, 1), 1, (2027, 1, 1)),
        ((2026, 3, 15), -1, (2026, 2, 15)),
    ],
)
def test_a_day_the_month_lacks_becomes_its_last_and_comes_back(
    anchor: tuple[int, int, int], index: int, expected: tuple[int, int, int]
) -> None:
    assert boundary_ns(ns(*anchor), "UTC", "month", index) == ns(*expected)


def test_a_year_from_a_leap_day_ends_on_the_28th() -> None:
    assert boundary_ns(ns(2028, 2, 29), "UTC", "year", 1) == ns(2029, 2, 28)
    assert boundary_ns(ns(2028, 2, 29), "UTC", "year", 4) == ns(2032, 2, 29)


def test_a_month_with_a_clock_change_has_its_hour_less_or_more() -> None:
    spring = period_of(ns(2026, 3, 1, zone="Europe/Berlin"), "Europe/Berlin", "month", 0)
    autumn = period_of(ns(2026, 10, 1, zone="Europe/Berlin"), "Europe/Berlin", "month", 0)
    assert spring.seconds == 31 * 86_400 - 3_600
    assert autumn.seconds == 31 * 86_400 + 3_600


def test_a_time_that_the_clock_skips_still_gives_one_boundary() -> None:
    anchor = ns(2026, 2, 28, 2, 30, zone="Europe/Berlin")
    before, after = (period_of(anchor, "Europe/Berlin", "month", index) for index in (0, 1))
    skipped = period_of(ns(2026, 2, 28, 2, 30, zone="Europe/Berlin"), "Europe/Berlin", "month", 1)
    assert before.end_ns == after.start_ns == skipped.start_ns


@given(ANCHORS, st.sampled_from(ZONES), INTERVALS, st.integers(-30, 200))
def test_periods_meet_and_every_instant_lies_in_exactly_one(anchor: int, zone: str, interval: str, index: int) -> None:
    one = period_of(anchor, zone, interval, index)  # type: ignore[arg-type]
    following = period_of(anchor, zone, interval, index + 1)  # type: ignore[arg-type]
    assert one.start_ns < one.end_ns == following.start_ns
    for at in (one.start_ns, one.end_ns - 1, (one.start_ns + one.end_ns) // 2):
        assert index_at(anchor, zone, interval, at) == index  # type: ignore[arg-type]


@given(
    ANCHORS,
    st.sampled_from(ZONES),
    INTERVALS,
    st.integers(-(10**12), 10**12),
    st.lists(st.floats(0, 1), max_size=6),
)
def test_shares_of_any_cutting_sum_to_the_fee(
    anchor: int, zone: str, interval: str, fee: int, cuts: list[float]
) -> None:
    period = period_of(anchor, zone, interval, 3)  # type: ignore[arg-type]
    length = period.end_ns - period.start_ns
    inner = sorted(floor_s(period.start_ns + int(cut * length)) for cut in cuts)
    points = [period.start_ns, *(min(max(at, period.start_ns), period.end_ns) for at in inner), period.end_ns]
    parts = [share(fee, period, Period(*pair)) for pair in pairwise(points)]
    assert sum(parts) == fee


@given(st.integers(0, 10**9), st.floats(0, 1))
def test_what_is_used_and_what_is_given_back_make_the_fee(fee: int, at: float) -> None:
    period = Period(ns(2026, 3, 1), ns(2026, 4, 1))
    at_ns = floor_s(period.start_ns + int(at * (period.end_ns - period.start_ns)))
    given_back = share(fee, period, Period(at_ns, period.end_ns))
    assert share(fee, period, Period(period.start_ns, at_ns)) + given_back == fee
    assert 0 <= given_back <= fee


@given(st.integers(0, 10**12), st.lists(st.integers(0, 10**6), min_size=1, max_size=9).filter(any))
def test_largest_remainder_gives_out_everything_and_is_fair(total: int, weights: list[int]) -> None:
    parts = largest_remainder(total, tuple(weights))
    assert sum(parts) == total
    assert all(abs(part - total * weight / sum(weights)) < 1.001 for part, weight in zip(parts, weights, strict=True))


@pytest.mark.parametrize(
    "bad",
    [
        lambda: share(1, Period(0, 10), Period(5, 11)),
        lambda: share(1, Period(0, 10 * NS_PER_S), Period(6, 5)),
        lambda: cumulative(1, 2, 1),
        lambda: cumulative(1, 0, 0),
        lambda: boundary_ns(0, "Mars/Olympus", "month", 0),
        lambda: boundary_ns(0, "UTC", "year", 9_999),
        lambda: largest_remainder(1, (0, 0)),
        lambda: largest_remainder(1, (-1, 2)),
    ],
)
def test_what_makes_no_sense_is_refused(bad: object) -> None:
    with pytest.raises(PeriodError):
        bad()  # type: ignore[operator]
