"""HOT PATH. Owns whose turn it is in a queue that tenants share: start-time fair queueing over rows, pure.

A work's `turn` is the amount of rows after which it starts if all tenants that wait are served by their weights (alike,
where their plans say nothing); the queue is ordered by rank, then turn, then age. A tenant that floods the queue puts
its own works behind one another, not others behind them. Of two tenants that wait all the time, neither is served more
than one of its own works' rows and one of the other's ahead, each divided by its tenant's weight (Goyal, Vin, Cheng:
Start-time Fair Queueing, 1996, theorem 1). Works of one tenant and rank keep their order. Nothing is kept of an empty
queue: nobody pays for what he was served while nobody else waited.
"""

from collections.abc import Sequence
from typing import Any, Final, Protocol, TypeVar

#: Tenants without a work in the queue that are remembered, at most; each only while it is ahead of others.
SHARES_MAX: Final = 4096
#: Turns are counted in parts of a row, so that rows divide by weights: exactly by those up to 10.
ROW_PARTS: Final = 2520


class Turned(Protocol):
    """What is needed of a queued work; `turn` is set here."""

    rank: int
    turn: int

    @property
    def rows(self) -> int: ...
    @property
    def tenant(self) -> bytes: ...
    @property
    def weight(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def enqueued_ns(self) -> int: ...


Item = TypeVar("Item", bound=Turned)


class _Share:
    """One tenant in one rank. `finish`: the turn up to which it is served or waits; `last`: that of its last work."""

    __slots__ = ("finish", "last", "waiting", "weight")

    def __init__(self) -> None:
        self.finish = 0
        self.last = 0
        self.waiting = 0
        self.weight = 1


class Turns:
    """Of one queue."""

    __slots__ = ("_passed", "_shares", "waiting")

    def __init__(self) -> None:
        self._shares: dict[tuple[int, bytes], _Share] = {}
        #: By rank: the turn of what left last. Who comes now waits no longer than those who wait already.
        self._passed: dict[int, int] = {}
        #: Shares with works in the queue: from 2 on the queue may be in another order than age.
        self.waiting = 0

    @property
    def remembered(self) -> int:
        """Shares that are kept, those without a work in the queue included."""
        return len(self._shares)

    def join(self, work: Turned) -> None:
        """Give a work that enters the queue its turn."""
        key = (work.rank, work.tenant)
        share = self._shares.get(key)
        if share is None:
            if len(self._shares) >= SHARES_MAX:
                self._shares = {known: one for known, one in self._shares.items() if one.waiting}
            share = self._shares[key] = _Share()
        passed = self._passed.get(work.rank, 0)
        start = share.finish if share.finish > passed else passed
        share.finish = start + _cost(work)
        share.weight = work.weight
        if not share.waiting:
            self.waiting += 1
        elif start < share.last:
            # What left unserved was given back: `finish` may lie before the works that still wait.
            start = share.last
        share.last = work.turn = start
        share.waiting += 1

    def leave(self, work: Turned, *, is_served: bool) -> None:
        """A work leaves the queue. Unserved (cancelled, out of time, pushed out) it costs its tenant nothing."""
        share = self._shares[work.rank, work.tenant]
        if not is_served:
            share.finish -= _cost(work)
        self._subtract(share, 1)

    def serve(self, batch: Sequence[Turned]) -> None:
        """A batch leaves the queue to run, in the queue's order."""
        passed = self._passed
        last = batch[-1]
        if self.waiting == 1:  # one tenant, one rank: no need to look at each
            passed[last.rank] = max(passed.get(last.rank, 0), last.turn)
            self._subtract(self._shares[last.rank, last.tenant], len(batch))
            return
        for work in batch:
            if work.turn > passed.get(work.rank, 0):
                passed[work.rank] = work.turn
        for work in batch:
            self.leave(work, is_served=True)

    def _subtract(self, share: _Share, count: int) -> None:
        share.waiting -= count
        if not share.waiting:
            self.waiting -= 1
            if not self.waiting:
                self._shares.clear()
                self._passed.clear()

    def find_hoarder(self, work: Turned) -> bytes | None:
        """The tenant that must give a place of a full level to `work`: who has most works there by weight, and still
        not fewer than `work`'s tenant by its own once it has given one. None: `work` has no better claim than anybody.
        """
        if self.waiting < 2 and (work.rank, work.tenant) in self._shares:
            return None
        counts: dict[bytes, int] = {}
        weights: dict[bytes, int] = {}
        for (rank, tenant), share in self._shares.items():
            # A level is a rank and the one of its delayed works.
            if rank | 1 == work.rank | 1 and share.waiting:
                counts[tenant] = counts.get(tenant, 0) + share.waiting
                weights[tenant] = share.weight
        hoarder = max(counts, key=lambda tenant: counts[tenant] / weights[tenant], default=None)
        if hoarder is None:
            return None
        own = (counts.get(work.tenant, 0) + 1) * weights[hoarder]
        return hoarder if hoarder != work.tenant and (counts[hoarder] - 1) * work.weight >= own else None


def _cost(work: Turned) -> int:
    """By how much a work puts its tenant's next one off."""
    return work.rows * ROW_PARTS // work.weight


def find_room(
    turns: Turns, queue: Sequence[Item], level: range, work: Turned, *, requests_max: int, nbytes_max: int, over: int
) -> list[Item] | None:
    """Works of tenants with more than their share that must leave the queue so that `work` may enter it.

    `level`: where the queue holds works of its level; `over`: bytes by which it passes `nbytes_max`. The newest leave:
    they have waited least. Empty where there is room; None: `work` has no better claim than who waits.
    """
    leaving: list[Item] = []
    if len(level) >= requests_max:
        hoarder = turns.find_hoarder(work)
        if hoarder is None:
            return None
        leaving.append(max((one for one in queue[level.start : level.stop] if one.tenant == hoarder), key=_age))
    # One work larger than the bound may still wait alone, else it could never run.
    if over <= 0 or len(queue) == len(leaving):
        return leaving
    if turns.waiting < 2 and queue[0].tenant == work.tenant:
        return None
    heaviest = _find_heaviest(queue[level.start :], work, nbytes_max, over)  # none of a better level
    if heaviest is None:
        return None
    return heaviest if not leaving or leaving[0] in heaviest else [*leaving, *heaviest]


def _find_heaviest(works: Sequence[Item], work: Turned, nbytes_max: int, over: int) -> list[Item] | None:
    """Works that free at least `over` bytes for `work`: the newest of tenants that hold more than their share.

    None: `work`'s tenant would itself hold more than its share, or that is not enough.
    """
    held: dict[bytes, int] = {work.tenant: work.nbytes}
    weights: dict[bytes, int] = {work.tenant: work.weight}
    for one in works:
        held[one.tenant] = held.get(one.tenant, 0) + one.nbytes
        weights[one.tenant] = one.weight
    part = nbytes_max // sum(weights.values())
    if held[work.tenant] > part * work.weight:
        return None
    found: list[Item] = []
    for one in sorted(works, key=_age, reverse=True):
        if over <= 0:
            break
        if held[one.tenant] > part * weights[one.tenant]:
            held[one.tenant] -= one.nbytes
            over -= one.nbytes
            found.append(one)
    return found if over <= 0 else None


def place_of(work: Any) -> tuple[int, int]:
    """What the queue is ordered by; equal ones by age."""
    return (work.rank, work.turn)


def _age(work: Turned) -> tuple[int, int]:
    return (work.enqueued_ns, work.turn)
