"""HOT PATH. Owns the text of `ratelimit-policy` and `ratelimit` (draft-ietf-httpapi-ratelimit-headers; CONTRACT.md §6).

Names: "concurrency", "rate" (the sustained rate; policy only), "burst" (the bucket that the rate refills: `r` is what
it holds, `w` the seconds in which it fills from empty), "day", "month". All numbers are integers; seconds are rounded
up, so a caller that waits `t` seconds never comes too early.
"""

from collections.abc import Callable
from typing import Final

from gateway.quota.allowance import UNLIMITED
from gateway.snapshot import Plan

POLICY_NAME: Final = b"ratelimit-policy"
LIMIT_NAME: Final = b"ratelimit"
NS_PER_S: Final = 1_000_000_000
_DAY_S: Final = 86_400
_MONTH_S: Final = 31 * _DAY_S

Field = tuple[bytes, bytes]
#: (slots left, calls of the lease that are left) → field value.
Render = Callable[[int, int], bytes]


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


def renderer_of(plan: Plan, left: Left, wall_ns: int) -> Render:
    """A function that writes the `ratelimit` value. Its seconds are as of `wall_ns`; make a new one each second."""
    template = []
    bases = []
    if plan.rate_calls is not None and left.rate < UNLIMITED:
        template.append(b'"burst";r=%%d;t=%d' % _refill_s(plan, 1))
        bases.append(left.rate)
    if plan.calls_per_day is not None and left.day < UNLIMITED:
        template.append(b'"day";r=%%d;t=%d' % seconds_until(left.day_end_ns, wall_ns))
        bases.append(left.day)
    if plan.calls_per_month is not None and left.month < UNLIMITED:
        template.append(b'"month";r=%%d;t=%d' % seconds_until(left.month_end_ns, wall_ns))
        bases.append(left.month)
    if plan.concurrency is not None:
        return _with_slots(b", ".join([b'"concurrency";r=%d', *template]), bases)
    return _without_slots(b", ".join(template), bases)


def seconds_until(end_ns: int, wall_ns: int) -> int:
    return max(0, -(-(end_ns - wall_ns) // NS_PER_S))


def _refill_s(plan: Plan, calls: int) -> int:
    """Whole seconds in which `calls` calls come back, at least 1."""
    assert plan.rate_calls is not None
    return max(1, -(-calls * plan.rate_window_s // plan.rate_calls))


# One formatting expression per number of limits: a generic loop would cost more than the rest of an admission.


def _with_slots(template: bytes, bases: list[int]) -> Render:
    match bases:
        case [a, b, c]:
            return lambda slots, calls: template % (slots, a + calls, b + calls, c + calls)
        case [a, b]:
            return lambda slots, calls: template % (slots, a + calls, b + calls)
        case [a]:
            return lambda slots, calls: template % (slots, a + calls)
    return lambda slots, calls: template % slots


def _without_slots(template: bytes, bases: list[int]) -> Render:
    match bases:
        case [a, b, c]:
            return lambda slots, calls: template % (a + calls, b + calls, c + calls)
        case [a, b]:
            return lambda slots, calls: template % (a + calls, b + calls)
        case [a]:
            return lambda slots, calls: template % (a + calls)
    return lambda slots, calls: template
