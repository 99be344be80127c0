"""Owns where a tenant's days and months begin: pure functions from an instant and a zone to a window of instants.

Instants are UTC nanoseconds. A day is a calendar day of the zone and lasts 23, 24 or 25 hours (or whatever its law
says); where midnight does not exist the day begins at the transition. Windows tile time: each ends where the next
begins.
"""

from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

NS_PER_S: Final = 1_000_000_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND: Final = timedelta(seconds=1)
_DAY: Final = timedelta(days=1)
_ZONES_MAX: Final = 1024

#: start <= instant < end.
Window = tuple[int, int]


@lru_cache(maxsize=_ZONES_MAX)
def find_zone(name: str) -> ZoneInfo | None:
    """The IANA zone called `name`, or None when there is none."""
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError):  # unknown names are KeyErrors, odd ones (a folder, "..") the others
        return None


def day_window(wall_ns: int, zone: ZoneInfo) -> Window:
    """The zone's calendar day that holds `wall_ns`."""
    today = _date_at(wall_ns, zone)
    return _midnight_ns(today, zone), _midnight_ns(today + _DAY, zone)


def month_window(wall_ns: int, zone: ZoneInfo) -> Window:
    """The zone's calendar month that holds `wall_ns`."""
    first = _date_at(wall_ns, zone).replace(day=1)
    following = (first + timedelta(days=31)).replace(day=1)
    return _midnight_ns(first, zone), _midnight_ns(following, zone)


def _date_at(wall_ns: int, zone: ZoneInfo) -> date:
    return (_EPOCH + timedelta(seconds=wall_ns // NS_PER_S)).astimezone(zone).date()


def _midnight_ns(day: date, zone: ZoneInfo) -> int:
    # fold=0: of two midnights the first; of a midnight that is skipped, the instant of the skip.
    midnight = datetime(day.year, day.month, day.day, tzinfo=zone)
    return (midnight.astimezone(UTC) - _EPOCH) // _SECOND * NS_PER_S
