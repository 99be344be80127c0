"""HOT PATH. Owns the batcher's decision, pure: which queued works run together now, or when to look again.

Rows are counted, not requests. Only works of equal signature share a batch. Works of one signature leave in the order
they came; one signature that still gathers rows does not hold up another that is ready.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class Queued(Protocol):
    """What a plan needs to know of a queued work."""

    @property
    def rows(self) -> int: ...
    @property
    def signature(self) -> Any: ...
    @property
    def enqueued_ns(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanConfig:
    """`rows_max` bounds a batch; `delay_ns_max` is the longest that a work waits for company.

    A batch that reaches one of `preferred_rows` (ascending) leaves at once; without any, a full one does.
    `is_batching` False: every work leaves alone. `has_ranks`: the queue is ordered by rank before age.
    """

    is_batching: bool
    rows_max: int = 1
    preferred_rows: tuple[int, ...] = ()
    delay_ns_max: int = 0
    has_ranks: bool = False


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Run these together: positions in the queue, ascending, at least one."""

    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class WaitUntil:
    """Nothing is ready; look again at this monotonic instant, or when a work arrives or leaves."""

    at_ns: int


@dataclass(frozen=True, slots=True)
class Idle:
    """The queue is empty."""


IDLE = Idle()
_FIRST = Dispatch((0,))


def plan(queue: Sequence[Queued], now_ns: int, config: PlanConfig) -> Dispatch | WaitUntil | Idle:
    """What to do with the queue (lowest rank first, of each rank the oldest first) when a slot is free."""
    if not queue:
        return IDLE
    if not config.is_batching:
        return _FIRST
    wake_ns = 0
    waiting: set[Any] = set()
    for position, work in enumerate(queue):
        if work.signature in waiting:
            continue
        # A work behind others of a better rank has waited as well: its delay counts, its place does not change.
        oldest_ns = _oldest(queue, work.signature) if config.has_ranks else work.enqueued_ns
        ready_ns = oldest_ns + config.delay_ns_max
        chosen = _choose(queue, position, config, is_due=now_ns >= ready_ns)
        if chosen:
            return Dispatch(chosen)
        waiting.add(work.signature)
        wake_ns = min(wake_ns or ready_ns, ready_ns)
    return WaitUntil(wake_ns)


def _oldest(queue: Sequence[Queued], signature: Any) -> int:
    return min(work.enqueued_ns for work in queue if work.signature == signature)


def _choose(queue: Sequence[Queued], first: int, config: PlanConfig, *, is_due: bool) -> tuple[int, ...]:
    """The batch that should leave now among works of `queue[first]`'s signature; empty: let them gather."""
    signature = queue[first].signature
    positions: list[int] = []
    rows = 0
    preferred = 0
    is_full = False
    for position in range(first, len(queue)):
        work = queue[position]
        if work.signature != signature:
            continue
        if positions and rows + work.rows > config.rows_max:
            is_full = True
            break
        positions.append(position)
        rows += work.rows
        if rows in config.preferred_rows:
            preferred = len(positions)
        if rows >= config.rows_max:
            is_full = True
            break
    if preferred and not is_full:
        return tuple(positions[:preferred])
    return tuple(positions) if is_full or is_due else ()
