"""HOT PATH. Owns the bounds of a queue: how many may wait, how long, and what becomes of who waits longer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from gateway.engine.work import Work

MIB: Final = 1 << 20
#: Where a model's configuration names no bound of its own.
QUEUE_REQUESTS_MAX: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLimits:
    """Bounds of one queue, or of one level of it.

    `timeout_ns` bounds the wait, 0: not; a caller's own can only shorten it, and bounds the run too. `is_delaying`: who
    waits longer, or longer than he wished, is not refused but goes behind all others of his level.
    """

    requests_max: int = QUEUE_REQUESTS_MAX
    nbytes_max: int = 512 * MIB
    timeout_ns: int = 0
    is_timeout_overridable: bool = True
    is_delaying: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """Priorities 1 (first) to `count`. `default` is of works that name none, or one that there is not."""

    count: int
    default: int
    limits: Mapping[int, QueueLimits]

    def of(self, work: Work) -> int:
        """The level that a work asks for, or the best that its tenant's plan allows."""
        priority = work.context.priority
        level = priority if 1 <= priority <= self.count else self.default
        return max(level, min(work.priority_best, self.count))


def rank_of(work: Work) -> int:
    return work.rank


def clamp(work: Work, limits: QueueLimits, now_ns: int) -> None:
    """Turn what bounds the wait into instants."""
    own_ns = work.timeout_ns if limits.is_timeout_overridable else 0
    wait_ns = min(limits.timeout_ns or own_ns, own_ns or limits.timeout_ns)
    if wait_ns:
        work.expires_ns = now_ns + wait_ns
    if own_ns and not limits.is_delaying:
        # What a caller bounds is his whole wait: of an answer that comes later he has no use.
        at_ns = now_ns + wait_ns
        work.deadline_ns = min(work.deadline_ns or at_ns, at_ns)


def end_of_wait(work: Work) -> int:
    """When a queued work must be looked at, 0: never."""
    return min(work.deadline_ns or work.expires_ns, work.expires_ns or work.deadline_ns)
