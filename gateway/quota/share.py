"""Owns what one host knows of one tenant whose limits several hosts share: policy, slots, counts, what must be told.

The truth is in the store (`store.lua`); a share is this host's part of it. Pure, no clock.
"""

from typing import Final
from zoneinfo import ZoneInfo

from gateway.quota.allowance import SPARE_SLOTS_LIMIT_MIN
from gateway.quota.calendar import Window, day_window, month_window
from gateway.quota.gcra import NS_PER_S, LeaseTerms, lease_terms
from gateway.snapshot import Plan

NO_WINDOW: Final[Window] = (0, 0)
#: Terms of a plan without a rate: leased calls live as long as their windows.
_NO_RATE: Final = LeaseTerms(0, -1)


class Share:
    """One tenant at one host. `plan` None: only counted here, as another host asked for it."""

    __slots__ = (
        "count",
        "day",
        "is_counted",
        "is_dirty",
        "is_overcounted",
        "month",
        "plan",
        "recounting",
        "returns",
        "slots",
        "tenant",
        "terms",
        "wanted",
        "zone",
    )

    def __init__(self, tenant: str, plan: Plan | None, zone: ZoneInfo | None) -> None:
        self.tenant = tenant
        #: Held by this host's workers.
        self.slots = 0
        self.day: Window = NO_WINDOW
        self.month: Window = NO_WINDOW
        #: Whether the store has this host's count of the caps.
        self.is_counted = False
        #: The count is too high since a worker died or a reply was lost.
        self.is_overcounted = False
        #: Windows that another host wants to have counted here.
        self.wanted: tuple[Window, Window] | None = None
        #: Calls that a running recount may miss; None when none runs.
        self.recounting: int | None = None
        #: The meter's answer, (window, calls) for day and month, until it is on its way to the store.
        self.count: tuple[tuple[Window, int], tuple[Window, int]] | None = None
        #: (day start, month start) → calls to give back.
        self.returns: dict[tuple[int, int], int] = {}
        #: `slots` or `returns` differ from what the store was told.
        self.is_dirty = False
        self.set_plan(plan, zone)

    def set_plan(self, plan: Plan | None, zone: ZoneInfo | None) -> None:
        """Obey `plan` from now on. A cap that was not counted so far, or in another zone, needs a count."""
        old = getattr(self, "plan", None), getattr(self, "zone", None)
        self.plan, self.zone = plan, zone
        self.terms = lease_terms(plan) if plan is not None and plan.rate_calls is not None else _NO_RATE
        if _caps(plan) - _caps(old[0]) or (zone is not None and old[1] is not None and zone.key != old[1].key):
            self.is_counted = False
            self.day = self.month = NO_WINDOW

    @property
    def is_capped(self) -> bool:
        return bool(_caps(self.plan))

    @property
    def leases_slots(self) -> bool:
        return self.plan is not None and (self.plan.concurrency or 0) >= SPARE_SLOTS_LIMIT_MIN

    @property
    def needs_count(self) -> bool:
        return self.wanted is not None or (self.is_capped and (not self.is_counted or self.is_overcounted))

    def windows(self, wall_ns: int) -> tuple[Window, Window]:
        """Day and month that hold `wall_ns` (the store's time); (0, 0) for a cap the plan does not have."""
        if self.plan is None or self.zone is None:
            return NO_WINDOW, NO_WINDOW
        if not self.day[0] <= wall_ns < self.day[1]:
            self.day = day_window(wall_ns, self.zone)
        if not self.month[0] <= wall_ns < self.month[1]:
            self.month = month_window(wall_ns, self.zone)
        return (
            NO_WINDOW if self.plan.calls_per_day is None else self.day,
            NO_WINDOW if self.plan.calls_per_month is None else self.month,
        )

    def windows_to_count(self, wall_ns: int) -> tuple[Window, Window]:
        """Those that another host asked about, which the store is in, else those of the plan's caps."""
        day, month = self.windows(wall_ns)
        if self.wanted is not None:
            day, month = (theirs if theirs[1] else own for theirs, own in zip(self.wanted, (day, month), strict=True))
        return day, month

    def put_back(self, calls: int, day_start_ns: int, month_start_ns: int) -> None:
        """Note `calls` of these windows as not made."""
        key = (day_start_ns, month_start_ns)
        self.returns[key] = self.returns.get(key, 0) + calls
        self.is_dirty = True

    @property
    def window_us(self) -> int:
        return 0 if self.plan is None else self.plan.rate_window_s * (NS_PER_S // 1000)


def _caps(plan: Plan | None) -> set[str]:
    if plan is None:
        return set()
    return {name for name in ("calls_per_day", "calls_per_month") if getattr(plan, name) is not None}
