from datetime import UTC, datetime

import pytest

from gateway.quota.calendar import day_window, find_zone, month_window

HOUR_NS = 3600 * 1_000_000_000


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1_000_000_000


@pytest.mark.parametrize(
    ("zone_name", "instant", "start", "hours"),
    [
        ("UTC", "2026-03-29T12:00:00", "2026-03-29T00:00:00", 24),
        # Spring forward and fall back in Berlin.
        ("Europe/Berlin", "2026-03-29T12:00:00", "2026-03-28T23:00:00", 23),
        ("Europe/Berlin", "2026-10-25T12:00:00", "2026-10-24T22:00:00", 25),
        # Midnight itself is skipped (Cairo) or happens twice (Havana).
        ("Africa/Cairo", "2026-04-24T12:00:00", "2026-04-23T22:00:00", 23),
        ("America/Havana", "2026-11-01T12:00:00", "2026-11-01T04:00:00", 25),
        # A half-hour change, and a whole day that never was.
        ("Australia/Lord_Howe", "2026-04-05T03:00:00", "2026-04-04T13:00:00", 24.5),
        ("Pacific/Apia", "2011-12-30T09:59:59", "2011-12-29T10:00:00", 24),
        ("Pacific/Apia", "2011-12-30T10:00:00", "2011-12-30T10:00:00", 24),
    ],
)
def test_days_begin_at_the_zones_midnight(zone_name: str, instant: str, start: str, hours: float) -> None:
    zone = find_zone(zone_name)
    assert zone is not None
    assert day_window(at(instant), zone) == (at(start), at(start) + int(hours * HOUR_NS))


def test_the_last_nanosecond_of_a_day_belongs_to_it() -> None:
    zone = find_zone("Asia/Shanghai")
    assert zone is not None
    start, end = day_window(at("2026-01-01T00:00:00"), zone)
    assert day_window(end - 1, zone) == (start, end)
    assert day_window(end, zone)[0] == end


def test_months_follow_the_zone_and_leap_years() -> None:
    zone = find_zone("America/New_York")
    assert zone is not None
    assert month_window(at("2028-03-01T04:59:59"), zone) == (at("2028-02-01T05:00:00"), at("2028-03-01T05:00:00"))
    assert month_window(at("2026-12-31T23:00:00"), zone) == (at("2026-12-01T05:00:00"), at("2027-01-01T05:00:00"))


@pytest.mark.parametrize("name", ["Mars/Olympus", "", "..", "Europe", "/etc/passwd", "UTC\0"])
def test_a_name_that_is_no_zone_is_found_to_be_none(name: str) -> None:
    assert find_zone(name) is None
