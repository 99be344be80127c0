"""HOT PATH. Owns one tenant's limits and decides: concurrency → rate → day → month, all or nothing. Pure, no clock.

One `Allowance` per tenant exists in the owner process, so its decisions are exact over all workers. A refusal changes
nothing (MONEY.md I13): rooms are computed first, and only the number of calls that fits all of them is committed.

What is leased to workers counts as used from the moment it is leased; so the sum over workers can never pass a limit.
"""

from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

from gateway.errors import Code
from gateway.quota import gcra
from gateway.quota.calendar import Window, day_window, month_window
from gateway.quota.gcra import Gcra
from gateway.snapshot import Plan

NS_PER_MS: Final = 1_000_000
#: When a slot will be free is unknown; one second is the least that HTTP's Retry-After can say.
CONCURRENCY_RETRY_MS: Final = 1000
#: Spare calls: at most this share of what a cap has left, so that a cap nearly used up is decided call by call.
_CAP_SHARE: Final = 64
_RATE_SHARE: Final = 2
SPARE_CALLS_MIN: Final = 16
#: Plans with at least so many slots lease spare ones, at most this share of the free.
SPARE_SLOTS_LIMIT_MIN: Final = 64
_SLOT_SHARE: Final = 16
#: A wall clock set back by less stays in the window it was in; by more, the count is read from the meter again.
CLOCK_STEP_NS_MAX: Final = 5_000_000_000
UNLIMITED: Final = 1 << 62


class Instant(NamedTuple):
    """One moment on both clocks."""

    monotonic_ns: int
    wall_ns: int


class Cap:
    """Calls counted in one calendar window."""

    __slots__ = ("end_ns", "limit", "start_ns", "used")

    def __init__(self, limit: int, window: Window) -> None:
        self.limit = limit
        self.start_ns, self.end_ns = window
        self.used = 0

    def left(self) -> int:
        return max(0, self.limit - self.used)


class Wanted(NamedTuple):
    """What a worker asks for: `need` calls wait; `slots_need` of them lack a slot; the spares are for later calls."""

    need: int
    slots_need: int = 0
    spare: int = 0
    spare_slots: int = 0


class Taken(NamedTuple):
    """What it gets. `calls` <= need are admitted now; when fewer, `code` names the limit that refused the next one."""

    calls: int
    spare: int
    slots: int
    code: Code | None
    retry_after_ms: int


class Allowance:
    """The state of one tenant's limits. Every method takes the instant; monotonic time must not go backwards."""

    __slots__ = ("_day", "_gcra", "_month", "is_rebuilt", "plan", "recounting", "slots_out", "ttl_ns", "zone")

    def __init__(self, plan: Plan, zone: ZoneInfo, now: Instant, *, is_bucket_full: bool, is_rebuilt: bool) -> None:
        self.slots_out = 0
        #: Whether the caps' counts can be trusted; until then the owner refuses.
        self.is_rebuilt = is_rebuilt
        #: Calls a running recount may miss; None when none runs.
        self.recounting: int | None = None
        self._gcra: Gcra | None = None
        self._day: Cap | None = None
        self._month: Cap | None = None
        self._set_plan(plan, zone, now)
        if self._gcra is not None and not is_bucket_full:
            self._gcra.take(now.monotonic_ns, self._gcra.burst)

    @property
    def is_capped(self) -> bool:
        return self._day is not None or self._month is not None

    @property
    def leases_slots(self) -> bool:
        return self.plan.concurrency is not None and self.plan.concurrency >= SPARE_SLOTS_LIMIT_MIN

    # -- decide --------------------------------------------------------------------------------------------------------

    def take(self, now: Instant, wanted: Wanted) -> Taken:
        """Admit as many of `wanted.need` as fit every limit, in order; spares only when all of them fit."""
        self.roll(now)
        calls, code = self._fit(now, wanted)
        idle_slots = wanted.need - wanted.slots_need
        slots = max(0, calls - idle_slots)
        self._commit(now, calls, slots)
        if calls < wanted.need:
            assert code is not None
            return Taken(calls, 0, slots, code, self._retry_after_ms(now, code))
        spare, spare_slots = self._spare(now, wanted)
        self._commit(now, spare, spare_slots)
        return Taken(calls, spare, slots + spare_slots, None, 0)

    def short_of(self, now: Instant, wanted: Wanted) -> Code | None:
        """The limit that would refuse some of `wanted.need` now; None when all of it fits. Takes nothing."""
        self.roll(now)
        return self._fit(now, wanted)[1]

    def _fit(self, now: Instant, wanted: Wanted) -> tuple[int, Code | None]:
        """How many calls pass every stage, and the first stage that stops the next one."""
        calls, code = wanted.need, None
        room = calls - max(0, wanted.slots_need - self.slots_left())
        if room < calls:
            calls, code = room, Code.CONCURRENCY_EXCEEDED
        for room, stage in (
            (self.rate_left(now), Code.RATE_EXCEEDED),
            (self.day_left(), Code.DAILY_CAP_EXCEEDED),
            (self.month_left(), Code.MONTHLY_CAP_EXCEEDED),
        ):
            if room < calls:
                calls, code = room, stage
        return calls, code

    def _spare(self, now: Instant, wanted: Wanted) -> tuple[int, int]:
        spare = min(
            wanted.spare,
            self.rate_left(now) // _RATE_SHARE,
            self.day_left() // _CAP_SHARE,
            self.month_left() // _CAP_SHARE,
        )
        if spare < SPARE_CALLS_MIN or self.ttl_ns == 0:
            spare = 0
        spare_slots = 0
        if self.leases_slots:
            spare_slots = min(wanted.spare_slots, self.slots_left() // _SLOT_SHARE)
        return spare, spare_slots

    def _commit(self, now: Instant, calls: int, slots: int) -> None:
        self.slots_out += slots
        if not calls:
            return
        if self._gcra is not None:
            self._gcra.take(now.monotonic_ns, calls)
        self.count(calls)
        if self.recounting is not None:
            self.recounting += calls

    def _retry_after_ms(self, now: Instant, code: Code) -> int:
        if code is Code.RATE_EXCEEDED:
            assert self._gcra is not None
            return -(-self._gcra.wait_ns(now.monotonic_ns) // NS_PER_MS)
        if code is Code.CONCURRENCY_EXCEEDED:
            return CONCURRENCY_RETRY_MS
        cap = self._day if code is Code.DAILY_CAP_EXCEEDED else self._month
        assert cap is not None
        return max(1, -(-(cap.end_ns - now.wall_ns) // NS_PER_MS))

    # -- give back -----------------------------------------------------------------------------------------------------

    def free_slots(self, slots: int) -> None:
        self.slots_out -= slots
        assert self.slots_out >= 0

    def give_back(self, calls: int, day_start_ns: int, month_start_ns: int) -> None:
        """Uncount `calls` taken in the windows with these starts; a window that has passed keeps its count."""
        for cap, start_ns in ((self._day, day_start_ns), (self._month, month_start_ns)):
            if cap is not None and cap.start_ns == start_ns:
                cap.used = max(0, cap.used - calls)

    def count(self, calls: int) -> None:
        """Count `calls` in the current windows without asking: they were admitted elsewhere or just now."""
        if self._day is not None:
            self._day.used += calls
        if self._month is not None:
            self._month.used += calls

    # -- what is left --------------------------------------------------------------------------------------------------

    def rate_left(self, now: Instant) -> int:
        return UNLIMITED if self._gcra is None else self._gcra.available(now.monotonic_ns)

    def day_left(self) -> int:
        return UNLIMITED if self._day is None else self._day.left()

    def month_left(self) -> int:
        return UNLIMITED if self._month is None else self._month.left()

    def slots_left(self) -> int:
        return UNLIMITED if self.plan.concurrency is None else max(0, self.plan.concurrency - self.slots_out)

    def windows(self) -> tuple[Window, Window]:
        """The current day and month; (0, 0) for a cap the plan does not have."""
        return _window_of(self._day), _window_of(self._month)

    # -- time, plan, recount -------------------------------------------------------------------------------------------

    def roll(self, now: Instant) -> None:
        """Enter the windows that `now` lies in. What is in flight across a boundary stays where it was counted."""
        wall_ns = now.wall_ns
        for cap in (self._day, self._month):
            if cap is None or cap.start_ns - CLOCK_STEP_NS_MAX <= wall_ns < cap.end_ns:
                continue
            if wall_ns < cap.start_ns:
                self.is_rebuilt = False
            find_window = day_window if cap is self._day else month_window
            cap.start_ns, cap.end_ns = find_window(wall_ns, self.zone)
            cap.used = 0

    def replan(self, plan: Plan, zone: ZoneInfo, now: Instant) -> None:
        """Obey `plan` from now on. Counts and debts are kept; a cap that was not counted so far needs a recount."""
        day, month, moved = self._day, self._month, zone.key != self.zone.key
        self._set_plan(plan, zone, now)
        for old, new in ((day, self._day), (month, self._month)):
            if new is None:
                continue
            if old is None or moved:
                self.is_rebuilt = False
            else:
                new.start_ns, new.end_ns, new.used = old.start_ns, old.end_ns, old.used
        self.roll(now)

    def _set_plan(self, plan: Plan, zone: ZoneInfo, now: Instant) -> None:
        self.plan, self.zone = plan, zone
        self.ttl_ns = UNLIMITED
        if plan.rate_calls is None:
            self._gcra = None
        else:
            burst, self.ttl_ns = gcra.lease_terms(plan)
            window_ns = plan.rate_window_s * gcra.NS_PER_S
            self._gcra = (
                Gcra(plan.rate_calls, window_ns, burst, now.monotonic_ns, is_full=True)
                if self._gcra is None
                else self._gcra.with_terms(plan.rate_calls, window_ns, burst, now.monotonic_ns)
            )
        day, month = plan.calls_per_day, plan.calls_per_month
        self._day = None if day is None else Cap(day, day_window(now.wall_ns, zone))
        self._month = None if month is None else Cap(month, month_window(now.wall_ns, zone))

    def begin_recount(self, now: Instant) -> tuple[Window, Window]:
        """From here on, what is taken is added to the meter's answer. Returns the windows to ask the meter about."""
        self.roll(now)
        self.recounting = 0
        return self.windows()

    def finish_recount(self, now: Instant, windows: tuple[Window, Window], counts: tuple[int, int]) -> None:
        """Set the caps to what the meter counts in `windows` plus what it may have missed.

        A window that began during the recount was counted from its first call and keeps that count. A cap that the
        plan got meanwhile was not asked about: the allowance then stays in need of a recount.
        """
        missed, self.recounting = self.recounting or 0, None
        self.is_rebuilt = True
        self.roll(now)
        for cap, (start_ns, end_ns), counted in zip((self._day, self._month), windows, counts, strict=True):
            if cap is None:
                continue
            if cap.start_ns == start_ns:
                cap.used = counted + missed
            elif end_ns == 0 or cap.start_ns < end_ns:
                self.is_rebuilt = False


def _window_of(cap: Cap | None) -> Window:
    return (0, 0) if cap is None else (cap.start_ns, cap.end_ns)
