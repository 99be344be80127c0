"""HOT PATH. Owns the batcher's decision, pure: which queued works run together now, or when to look again.

Rows are counted, not requests. Only works of equal signature share a batch. Works of one signature leave in the queue's
order; one signature that still gathers rows does not hold up another that is ready.
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
    `is_batching` False: every work leaves alone. `has_ranks`: the queue is ordered by rank before anything else.
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


def plan(
    queue: Sequence[Queued], now_ns: int, config: PlanConfig, *, is_by_age: bool = True
) -> Dispatch | WaitUntil | Idle:
    """What to do with the queue when a slot is free.

    The queue is in the order in which works shall leave. `is_by_age`: within a rank that is the order they came in.
    """
    if not queue:
        return IDLE
    if not config.is_batching:
        return _FIRST
    is_by_age = is_by_age and not config.has_ranks
    wake_ns = 0
    waiting: set[Any] = set()
    for position, work in enumerate(queue):
        if work.signature in waiting:
            continue
        chosen, is_complete = _choose(queue, position, config)
        if is_complete:
            return Dispatch(chosen)
        # A work behind others of a better place has waited as well: its delay counts, its place does not change.
        oldest_ns = work.enqueued_ns if is_by_age else _oldest(queue, work.signature)
        ready_ns = oldest_ns + config.delay_ns_max
        if now_ns >= ready_ns:
            return Dispatch(chosen)
        waiting.add(work.signature)
        wake_ns = min(wake_ns or ready_ns, ready_ns)
    return WaitUntil(wake_ns)


def _oldest(queue: Sequence[Queued], signature: Any) -> int:
    return min(work.enqueued_ns for work in queue if work.signature == signature)


def _choose(queue: Sequence[Queued], first: int, config: PlanConfig) -> tuple[tuple[int, ...], bool]:
    """The batch that begins with `queue[first]`, of its signature; and whether it need not wait for more."""
    signature = queue[first].signature
    positions: list[int] = []
    rows = 0
    preferred = 0
    for position in range(first, len(queue)):
        work = queue[position]
        if work.signature != signature:
            continue
        if positions and rows + work.rows > config.rows_max:
            return tuple(positions), True
        positions.append(position)
        rows += work.rows
        if rows in config.preferred_rows:
            preferred = len(positions)
        if rows >= config.rows_max:
            return tuple(positions), True
    return tuple(positions[:preferred] if preferred else positions), bool(preferred)
