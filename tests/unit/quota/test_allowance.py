from typing import Any
from zoneinfo import ZoneInfo

import pytest

from gateway.errors import Code
from gateway.quota.allowance import CLOCK_STEP_NS_MAX, CONCURRENCY_RETRY_MS, Instant, Taken, Wanted
from tests.unit.quota.plans import DAY_NS, MS, UTC_ZONE, S, allowance_of, instant, plan_of

ONE = Wanted(1, 1)
NOON_MS = DAY_NS // 2 // MS


@pytest.mark.parametrize(
    ("fields", "code", "retry_after_ms"),
    [
        ({"concurrency": 2}, Code.CONCURRENCY_EXCEEDED, CONCURRENCY_RETRY_MS),
        ({"rate_calls": 5, "burst": 2}, Code.RATE_EXCEEDED, 200),
        ({"calls_per_day": 2}, Code.DAILY_CAP_EXCEEDED, NOON_MS),
        ({"calls_per_month": 2}, Code.MONTHLY_CAP_EXCEEDED, 30 * DAY_NS // MS + NOON_MS),
        # The first limit in order is named when several refuse.
        ({"concurrency": 2, "rate_calls": 5, "burst": 2}, Code.CONCURRENCY_EXCEEDED, CONCURRENCY_RETRY_MS),
        ({"rate_calls": 5, "burst": 2, "calls_per_day": 2}, Code.RATE_EXCEEDED, 200),
        ({"calls_per_day": 2, "calls_per_month": 2}, Code.DAILY_CAP_EXCEEDED, NOON_MS),
    ],
)
def test_the_third_call_is_refused_by_the_named_limit(fields: dict[str, Any], code: Code, retry_after_ms: int) -> None:
    one_by_one, at_once = allowance_of(**fields), allowance_of(**fields)
    for _ in range(2):
        assert one_by_one.take(instant(), ONE) == Taken(1, 0, 1, None, 0)
    assert one_by_one.take(instant(), ONE) == Taken(0, 0, 0, code, retry_after_ms)
    assert at_once.take(instant(), Wanted(3, 3)) == Taken(2, 0, 2, code, retry_after_ms)


def test_a_call_with_a_slot_of_its_own_needs_none_from_the_owner() -> None:
    allowance = allowance_of(concurrency=1)
    allowance.take(instant(), ONE)
    assert allowance.take(instant(), Wanted(3, 2)) == Taken(1, 0, 0, Code.CONCURRENCY_EXCEEDED, CONCURRENCY_RETRY_MS)


def test_a_freed_slot_and_a_call_given_back_can_be_had_again() -> None:
    allowance = allowance_of(concurrency=1, calls_per_day=1)
    allowance.take(instant(), ONE)
    (day_start, _), _ = allowance.windows()
    allowance.free_slots(1)
    assert allowance.short_of(instant(), ONE) is Code.DAILY_CAP_EXCEEDED
    allowance.give_back(1, day_start, 0)
    assert allowance.take(instant(), ONE).calls == 1


def test_what_was_counted_in_a_past_window_is_not_given_back_to_the_next() -> None:
    allowance = allowance_of(calls_per_day=2, calls_per_month=10)
    allowance.take(instant(), Wanted(2))
    (yesterday, _), (month, _) = allowance.windows()
    tomorrow = instant(DAY_NS)
    allowance.take(tomorrow, Wanted(1))
    allowance.give_back(1, yesterday, month)
    assert allowance.day_left() == 1
    assert allowance.month_left() == 8


def test_spares_come_from_every_limit_and_only_when_all_calls_fit() -> None:
    allowance = allowance_of(rate_calls=1000, burst=1000, calls_per_day=6400, concurrency=160)
    assert allowance.take(instant(), Wanted(1, 1, 500, 64)) == Taken(1, 99, 1 + 159 // 16, None, 0)
    assert allowance.day_left() == 6300
    assert allowance.rate_left(instant()) == 750 - 100
    assert allowance.slots_left() == 160 - 10
    refused = allowance.take(instant(), Wanted(151, 151, 500, 64))
    assert (refused.calls, refused.spare, refused.slots) == (150, 0, 150)


@pytest.mark.parametrize(
    "fields",
    [
        {"rate_calls": 5, "burst": 1000},
        {"calls_per_day": 1000},  # nearly used up: call by call
        {"rate_calls": 1000, "burst": 1000, "calls_per_month": 1000},
    ],
)
def test_small_limits_give_no_spares(fields: dict[str, Any]) -> None:
    assert allowance_of(**fields).take(instant(), Wanted(1, 0, 64, 64)) == Taken(1, 0, 0, None, 0)


def test_a_new_day_counts_from_zero_and_the_month_goes_on() -> None:
    allowance = allowance_of(calls_per_day=1, calls_per_month=2)
    assert allowance.take(instant(), ONE).calls == 1
    assert allowance.take(instant(DAY_NS // 2 - 1), ONE).code is Code.DAILY_CAP_EXCEEDED
    assert allowance.take(instant(DAY_NS // 2), ONE).calls == 1
    assert allowance.take(instant(DAY_NS * 2), ONE).code is Code.MONTHLY_CAP_EXCEEDED


def test_a_small_step_back_of_the_clock_does_not_reopen_a_day() -> None:
    allowance = allowance_of(calls_per_day=1)
    midnight = instant(DAY_NS // 2)
    allowance.take(midnight, ONE)
    stepped = Instant(midnight.monotonic_ns + S, midnight.wall_ns - CLOCK_STEP_NS_MAX)
    assert allowance.take(stepped, ONE).code is Code.DAILY_CAP_EXCEEDED
    assert allowance.is_rebuilt


def test_a_large_step_back_of_the_clock_asks_for_a_recount() -> None:
    allowance = allowance_of(calls_per_day=1)
    allowance.roll(instant(DAY_NS // 2))
    assert allowance.is_rebuilt
    allowance.roll(Instant(instant(DAY_NS).monotonic_ns, instant().wall_ns))
    assert not allowance.is_rebuilt


def test_a_changed_limit_holds_at_once_and_keeps_the_counts() -> None:
    allowance = allowance_of(calls_per_day=10, concurrency=5)
    allowance.take(instant(), Wanted(3, 3))
    allowance.replan(plan_of(calls_per_day=4, concurrency=2), UTC_ZONE, instant())
    assert allowance.is_rebuilt
    assert allowance.day_left() == 1
    assert allowance.slots_left() == 0


@pytest.mark.parametrize(
    ("fields", "zone"), [({"calls_per_day": 5, "calls_per_month": 9}, "UTC"), ({"calls_per_day": 5}, "Asia/Tokyo")]
)
def test_a_cap_that_was_not_counted_so_far_asks_for_a_recount(fields: dict[str, Any], zone: str) -> None:
    allowance = allowance_of(calls_per_day=5)
    allowance.replan(plan_of(**fields), ZoneInfo(zone), instant())
    assert not allowance.is_rebuilt


def test_a_recount_adds_what_was_taken_meanwhile() -> None:
    allowance = allowance_of(calls_per_day=10, calls_per_month=100)
    allowance.take(instant(), Wanted(2))
    windows = allowance.begin_recount(instant())
    allowance.take(instant(), Wanted(3))
    allowance.finish_recount(instant(), windows, (1, 40))
    assert (allowance.day_left(), allowance.month_left()) == (6, 57)
    assert allowance.recounting is None


def test_a_window_that_begins_during_a_recount_keeps_its_own_count() -> None:
    allowance = allowance_of(calls_per_day=10)
    windows = allowance.begin_recount(instant())
    allowance.take(instant(DAY_NS), Wanted(2))
    allowance.finish_recount(instant(DAY_NS), windows, (9, 0))
    assert allowance.day_left() == 8
    assert allowance.is_rebuilt


def test_a_cap_gained_during_a_recount_needs_another() -> None:
    allowance = allowance_of(calls_per_day=10)
    windows = allowance.begin_recount(instant())
    allowance.replan(plan_of(calls_per_day=10, calls_per_month=20), UTC_ZONE, instant())
    allowance.finish_recount(instant(), windows, (9, 0))
    assert not allowance.is_rebuilt
    assert allowance.day_left() == 1


def test_an_unlimited_plan_takes_everything() -> None:
    assert allowance_of().take(instant(), Wanted(20_000, 0, 10, 10)).calls == 20_000
