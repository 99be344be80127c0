"""Owns billing periods: calendar months and years from an anchor, in the customer's zone. Pure; whole seconds.

A period begins at the anchor's local time of day, n months later; a day the month lacks becomes its last day (an anchor
of January 31 gives February 28 or 29, then March 31 again, because every boundary is counted from the anchor). Local
times that a clock change skips or repeats resolve to one instant, so periods meet without gap or overlap (I19).
"""

import calendar
from datetime import UTC, datetime
from typing import Final, Literal, NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

Interval = Literal["month", "year"]
NS_PER_S: Final = 1_000_000_000
_MONTHS: Final = {"month": 1, "year": 12}
#: Boundaries searched on either side of the estimate; an estimate is never off by more than one.
_SLACK: Final = 2


class PeriodError(ValueError):
    """A zone or span that makes no sense; the message names it."""


class Period(NamedTuple):
    """Half open [start_ns, end_ns) in UTC nanoseconds, both on whole seconds."""

    start_ns: int
    end_ns: int

    @property
    def seconds(self) -> int:
        return (self.end_ns - self.start_ns) // NS_PER_S


def boundary_ns(anchor_ns: int, zone: str, interval: Interval, index: int) -> int:
    """The instant at which period `index` begins; index 0 begins at the anchor. Raises PeriodError."""
    anchor = _local(anchor_ns, zone)
    months = anchor.year * 12 + anchor.month - 1 + index * _MONTHS[interval]
    year, month = divmod(months, 12)
    if not 1970 <= year <= 9000:
        raise PeriodError(f"index: {index} leads to the year {year}")
    day = min(anchor.day, calendar.monthrange(year, month + 1)[1])
    local = anchor.replace(year=year, month=month + 1, day=day)
    return int(local.timestamp()) * NS_PER_S


def period_of(anchor_ns: int, zone: str, interval: Interval, index: int) -> Period:
    """Period `index` counted from the anchor. Raises PeriodError."""
    return Period(boundary_ns(anchor_ns, zone, interval, index), boundary_ns(anchor_ns, zone, interval, index + 1))


def index_at(anchor_ns: int, zone: str, interval: Interval, at_ns: int) -> int:
    """Which period `at_ns` lies in (negative before the anchor). Raises PeriodError."""
    anchor, at = _local(anchor_ns, zone), _local(at_ns, zone)
    estimate = ((at.year - anchor.year) * 12 + at.month - anchor.month) // _MONTHS[interval]
    for index in range(estimate + _SLACK, estimate - _SLACK - 1, -1):
        if boundary_ns(anchor_ns, zone, interval, index) <= at_ns:
            return index
    raise PeriodError(f"at_ns: {at_ns} lies in no period of {zone}")


def floor_s(at_ns: int) -> int:
    """`at_ns` cut to the whole second, the resolution of everything that is prorated."""
    return at_ns - at_ns % NS_PER_S


def _local(at_ns: int, zone: str) -> datetime:
    try:
        return datetime.fromtimestamp(at_ns // NS_PER_S, UTC if zone == "UTC" else ZoneInfo(zone))
    except (ZoneInfoNotFoundError, ValueError, OverflowError, OSError) as error:
        raise PeriodError(f"zone {zone!r}, instant {at_ns}: {error}") from error
