"""Owns a host's counting of caps for a store that several hosts share: which tenants, and what the meter may miss.

As in `Owner`: workers report first, the meter is asked after, and what is admitted from the begin on is added, so a
count can be too high by the calls in flight at that moment, never too low.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from gateway.quota.calendar import Window
from gateway.quota.owner import WorkerState, check_holding
from gateway.quota.protocol import Holding
from gateway.quota.share import Share

Counted = tuple[tuple[Window, int], tuple[Window, int]]


class Counts:
    """The counts of one host. `shares` is the owner's own."""

    def __init__(self, shares: dict[str, Share], *, has_meter: bool) -> None:
        self._shares = shares
        self._has_meter = has_meter
        #: Being counted: tenant → its windows.
        self._running: dict[str, tuple[Window, Window]] = {}
        #: Tenants whose count is ready to be carried.
        self._ready: dict[str, Share] = {}
        self.sequence = 0

    def _needed(self, is_excluded: Callable[[str], bool]) -> Iterator[str]:
        for tenant, share in self._shares.items():
            if self.is_needed(share) and not is_excluded(tenant):
                yield tenant

    def is_needed(self, share: Share) -> bool:
        """Whether the meter should be asked about this tenant, and has not just answered."""
        return self._has_meter and share.needs_count and share.tenant not in self._ready

    def are_needed(self, is_excluded: Callable[[str], bool]) -> bool:
        return next(self._needed(is_excluded), None) is not None

    def begin(self, wall_ns: int, is_excluded: Callable[[str], bool]) -> int:
        """Start counting every tenant that needs it, in the windows of `wall_ns`; returns the sequence for reports."""
        self.sequence += 1
        self._running = {}
        for tenant in list(self._needed(is_excluded)):
            share = self._shares[tenant]
            self._running[tenant] = share.windows_to_count(wall_ns)
            share.recounting = 0
            share.is_overcounted = False
        return self.sequence

    def report(self, worker: WorkerState, sequence: int, holdings: Sequence[Holding], *, is_last: bool) -> None:
        """What a worker holds now: none of it is in the meter's answer, which is asked for later."""
        if sequence != self.sequence:
            return
        for holding in holdings:
            check_holding(holding)
            share = self._shares.get(holding.tenant)
            if share is not None and share.recounting is not None:
                share.recounting += holding.in_flight + holding.unspent
        if is_last:
            worker.reported = sequence

    def windows(self, earlier_ns: int) -> list[tuple[str, int]]:
        """(tenant, since) for every window, each `earlier_ns` before its start; 0 where there is none."""
        return [
            (tenant, max(1, start - earlier_ns) if start else 0)
            for tenant, windows in self._running.items()
            for start, _ in windows
        ]

    def finish(self, counts: Sequence[int]) -> None:
        """The meter's answer, aligned with `windows`. What was missed is added when it is carried (`take`)."""
        assert len(counts) == 2 * len(self._running)
        for at, (tenant, (day, month)) in enumerate(self._running.items()):
            share = self._shares[tenant]
            share.count = (day, counts[2 * at]), (month, counts[2 * at + 1])
            self._ready[tenant] = share
        self._running = {}

    def abandon(self) -> None:
        """No answer: whatever needed a count still does."""
        for tenant in self._running:
            share = self._shares[tenant]
            share.recounting = None
            share.is_overcounted = share.is_overcounted or share.is_counted
        self._running = {}

    def start_from_zero(self, share: Share, day: Window, month: Window) -> None:
        """Without a meter there is nothing to count from; what the store has of this host stays."""
        share.count, share.recounting = ((day, 0), (month, 0)), 0
        self._ready[share.tenant] = share

    @property
    def is_waiting(self) -> bool:
        return bool(self._ready)

    def take(self, count_max: int) -> list[tuple[Share, Counted]]:
        """What is ready, with everything admitted until now. Only while no batch is on its way."""
        taken: list[tuple[Share, Counted]] = []
        for tenant in list(islice(self._ready, count_max)):
            share = self._ready.pop(tenant)
            assert share.count is not None
            (day, day_calls), (month, month_calls) = share.count
            missed = share.recounting or 0
            taken.append((share, ((day, day_calls + missed), (month, month_calls + missed))))
            share.count = share.recounting = share.wanted = None
            share.is_counted = True
        return taken
