"""Owns the plan simulator: recorded usage replayed against another plan's limits, prices and money. Changes nothing.

The limits are decided by the very code that decides in production (`gateway.quota.allowance`), one owner for all
workers, at the instants in the records. Two things the records do not hold are stated with every answer: calls that
were refused then do not appear (they were never recorded), and a call is taken to hold its concurrency slot for its
compute time, which is a lower bound.
"""

import heapq
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

from billing.event_pages import event_pages
from billing.month import MonthLine, PlanMonth, Usage, month_lines
from billing.plans import PlanTerms
from billing.rating import Rater
from gateway.errors import Code
from gateway.quota.allowance import Allowance, Instant, Wanted
from gateway.quota.calendar import month_window
from gateway.snapshot import Plan

EVENTS_MAX: Final = 1_000_000
BUCKETS_MAX: Final = 10_000
NS_PER_S: Final = 1_000_000_000


class SimulateError(ValueError):
    """A simulation that cannot be run; the message names what and why."""


class Event(NamedTuple):
    """One recorded call."""

    t_ns: int
    model: str
    outcome: int
    rows: int
    compute_ns: int
    byte_count: int
    charge_nanos: int


class Offer(NamedTuple):
    """What the usage is replayed against. `terms` None: list prices only."""

    plan: Plan
    terms: PlanTerms | None
    rater: Rater
    fee_nanos: int


@dataclass(slots=True)
class Bucket:
    """Calls of one step of time."""

    start_ns: int
    admitted: int = 0
    refused: int = 0


@dataclass(slots=True)
class MonthMoney:
    """One month of the tenant's zone: list price of what was admitted, lines of the plan beside it, its fee."""

    start_ns: int
    list_nanos: int = 0
    fee_nanos: int = 0
    lines: list[MonthLine] = field(default_factory=list)

    @property
    def total_nanos(self) -> int:
        return self.list_nanos + self.fee_nanos + sum(line.amount_nanos for line in self.lines)


@dataclass(slots=True)
class Outcome:
    """What came of a replay."""

    calls: int = 0
    admitted: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    #: Of each limit that refused: the first and the last instant.
    first_refused_ns: dict[str, int] = field(default_factory=dict)
    last_refused_ns: dict[str, int] = field(default_factory=dict)
    recorded_nanos: int = 0
    buckets: list[Bucket] = field(default_factory=list)
    months: list[MonthMoney] = field(default_factory=list)


_SELECT: Final = """
SELECT e.t_ns, f.model, f.outcome, e.rows, e.compute_ns, e.request_bytes + e.reply_bytes, e.charge_nanos
FROM usage_event e JOIN facet f USING (facet_id) JOIN tenant t USING (tenant_id)
WHERE e.event_id BETWEEN ? AND ? AND t.name = ? AND e.t_ns >= ? AND e.t_ns < ? ORDER BY e.event_id
"""


def read_events(
    db: sqlite3.Connection, tenant: str, since_ns: int, until_ns: int, *, events_max: int = EVENTS_MAX
) -> list[Event]:
    """A tenant's recorded calls in the order of their instants, all in memory (0.3 KB each).

    Raises SimulateError for more than `events_max`.
    """
    found: list[Event] = []
    for first, last in event_pages(db, since_ns, until_ns):
        found += map(Event._make, db.execute(_SELECT, (first, last, tenant, since_ns, until_ns)))
        if len(found) > events_max:
            raise SimulateError(f"more than {events_max} calls: choose a shorter time")
    # Stable: calls of one instant stay in the order of posting.
    found.sort(key=itemgetter(0))
    return found


def simulate(events: Iterable[Event], offer: Offer, zone: ZoneInfo, *, bucket_s: int) -> Outcome:
    """Replay `events`, in the order of their instants. Raises SimulateError for too many buckets."""
    outcome = Outcome()
    gate: _Gate | None = None
    figures: dict[tuple[int, str], list[int]] = {}
    month = (0, 0)
    for event in events:
        if gate is None:
            gate = _Gate(offer.plan, zone, event.t_ns)
        if not month[0] <= event.t_ns < month[1]:
            month = month_window(event.t_ns, zone)
        code = gate.admit(event)
        _count(outcome, event, code, bucket_s)
        if code is None and not event.outcome:
            _add(figures, (month[0], event.model), event, offer)
    outcome.months = _months(figures, offer)
    return outcome


class _Gate:
    """One allowance and the slots that its calls hold. Wall time stands for both clocks: records know no other."""

    def __init__(self, plan: Plan, zone: ZoneInfo, now_ns: int) -> None:
        self._allowance = Allowance(plan, zone, Instant(now_ns, now_ns), is_bucket_full=True, is_rebuilt=True)
        self._ends: list[int] = []

    def admit(self, event: Event) -> Code | None:
        """None: admitted; else the limit that refuses it."""
        now = Instant(event.t_ns, event.t_ns)
        while self._ends and self._ends[0] <= event.t_ns:
            heapq.heappop(self._ends)
            self._allowance.free_slots(1)
        taken = self._allowance.take(now, Wanted(need=1, slots_need=1))
        if not taken.calls:
            return taken.code
        heapq.heappush(self._ends, event.t_ns + event.compute_ns)
        if event.outcome:
            # A call that ends without a billable reply gives the caps back, as in production.
            day, month = self._allowance.windows()
            self._allowance.give_back(1, day[0], month[0])
        return None


def _count(outcome: Outcome, event: Event, code: Code | None, bucket_s: int) -> None:
    outcome.calls += 1
    outcome.recorded_nanos += event.charge_nanos
    start_ns = event.t_ns - event.t_ns % (bucket_s * NS_PER_S)
    if not outcome.buckets or outcome.buckets[-1].start_ns != start_ns:
        if len(outcome.buckets) >= BUCKETS_MAX:
            raise SimulateError(f"more than {BUCKETS_MAX} points: make bucket_s larger")
        outcome.buckets.append(Bucket(start_ns))
    if code is None:
        outcome.admitted += 1
        outcome.buckets[-1].admitted += 1
        return
    outcome.buckets[-1].refused += 1
    outcome.refused[code] = outcome.refused.get(code, 0) + 1
    outcome.first_refused_ns.setdefault(code, event.t_ns)
    outcome.last_refused_ns[code] = event.t_ns


def _add(figures: dict[tuple[int, str], list[int]], key: tuple[int, str], event: Event, offer: Offer) -> None:
    nanos, _ = offer.rater.charge(event.model, offer.plan.pricing, 0, event.rows, event.compute_ns)
    sums = figures.setdefault(key, [0, 0, 0, 0, 0])
    for index, value in enumerate((1, event.rows, event.compute_ns, event.byte_count, nanos)):
        sums[index] += value


def _months(figures: dict[tuple[int, str], list[int]], offer: Offer) -> list[MonthMoney]:
    name = offer.plan.name
    found = []
    for start_ns in sorted({start for start, _ in figures}):
        usage = [Usage(name, model, *sums) for (start, model), sums in sorted(figures.items()) if start == start_ns]
        lines: list[MonthLine] = []
        if offer.terms is not None:
            lines = month_lines([PlanMonth(name, 0, offer.terms, offer.terms.minimum_nanos)], usage)
        list_nanos = sum(one.charge_nanos for one in usage)
        found.append(MonthMoney(start_ns=start_ns, list_nanos=list_nanos, fee_nanos=offer.fee_nanos, lines=lines))
    return found
