"""HOT PATH. Owns the text of `ratelimit-policy` and `ratelimit` (draft-ietf-httpapi-ratelimit-headers; CONTRACT.md §6).

Names: "concurrency", "rate" (the sustained rate; policy only), "burst" (the bucket that the rate refills: `r` is what
it holds, `w` the seconds in which it fills from empty), "day", "month". All numbers are integers; seconds are rounded
up, so a caller that waits `t` seconds never comes too early.
"""

from typing import Final

from gateway.quota.allowance import UNLIMITED
from gateway.quota.store import POLICY_NAME
from gateway.snapshot import Plan
from gateway.wire.decimal import decimal, padded

NS_PER_S: Final = 1_000_000_000
_DAY_S: Final = 86_400
_MONTH_S: Final = 31 * _DAY_S

Field = tuple[bytes, bytes]


def policy_of(plan: Plan) -> Field | None:
    """The policy field of `plan`, constant for its life; None for a plan without limits."""
    items = []
    if plan.concurrency is not None:
        items.append(f'"concurrency";q={plan.concurrency};qu="concurrent-requests"')
    if plan.rate_calls is not None:
        items.append(f'"rate";q={plan.rate_calls};w={plan.rate_window_s}')
        items.append(f'"burst";q={plan.burst};w={_refill_s(plan, plan.burst)}')
    if plan.calls_per_day is not None:
        items.append(f'"day";q={plan.calls_per_day};w={_DAY_S}')
    if plan.calls_per_month is not None:
        items.append(f'"month";q={plan.calls_per_month};w={_MONTH_S}')
    return (POLICY_NAME, ", ".join(items).encode()) if items else None


class Left:
    """What a plan's limits have left besides a lease; ends are wall-clock nanoseconds."""

    __slots__ = ("day", "day_end_ns", "month", "month_end_ns", "rate")

    def __init__(self, rate: int, day: int, day_end_ns: int, month: int, month_end_ns: int) -> None:
        self.rate = rate
        self.day = day
        self.day_end_ns = day_end_ns
        self.month = month
        self.month_end_ns = month_end_ns


class _Item:
    """One limit's part of the value. All digits but the last three are remembered: the number moves by ones."""

    __slots__ = ("_head", "_high", "after", "base", "before")

    def __init__(self, before: bytes, base: int, after: bytes) -> None:
        self.before = before
        self.base = base
        self.after = after
        self._high = -1
        self._head = before

    def add(self, parts: list[bytes], number: int) -> None:
        """Append the part's pieces, with `number` left."""
        high = number // 1000
        if high <= 0:
            parts.append(self.before)
            parts.append(decimal(number))
            parts.append(self.after)
            return
        if high != self._high:
            self._high, self._head = high, self.before + decimal(high)
        parts.append(self._head)
        parts.append(padded(number % 1000))
        parts.append(self.after)


class Renderer:
    """Writes the `ratelimit` value. Its seconds are as of the instant it was made for: make a new one each second."""

    __slots__ = ("_has_slots", "_items")

    def __init__(self, items: list[_Item], *, has_slots: bool) -> None:
        self._items = items
        self._has_slots = has_slots

    def render(self, slots: int, calls: int) -> bytes:
        """The field value when `slots` and `calls` of the lease are left."""
        parts = [b'"concurrency";r=', decimal(slots)] if self._has_slots else []
        for item in self._items:
            item.add(parts, item.base + calls)
        return b"".join(parts)


def renderer_of(plan: Plan, left: Left, wall_ns: int) -> Renderer:
    """What writes the `ratelimit` value of `plan` from `wall_ns` on."""
    figures: list[tuple[bytes, int, int]] = []
    if plan.rate_calls is not None and left.rate < UNLIMITED:
        figures.append((b"burst", left.rate, _refill_s(plan, 1)))
    if plan.calls_per_day is not None and left.day < UNLIMITED:
        figures.append((b"day", left.day, seconds_until(left.day_end_ns, wall_ns)))
    if plan.calls_per_month is not None and left.month < UNLIMITED:
        figures.append((b"month", left.month, seconds_until(left.month_end_ns, wall_ns)))
    has_slots = plan.concurrency is not None
    items = [
        _Item(b'%b"%b";r=' % (b", " if at or has_slots else b"", name), base, b";t=%d" % seconds)
        for at, (name, base, seconds) in enumerate(figures)
    ]
    return Renderer(items, has_slots=has_slots)


def seconds_until(end_ns: int, wall_ns: int) -> int:
    return max(0, -(-(end_ns - wall_ns) // NS_PER_S))


def _refill_s(plan: Plan, calls: int) -> int:
    """Whole seconds in which `calls` calls come back, at least 1."""
    assert plan.rate_calls is not None
    return max(1, -(-calls * plan.rate_window_s // plan.rate_calls))
