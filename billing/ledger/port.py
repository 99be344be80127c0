"""Owns the ledger seam: what is handed to a `Ledger`, what it answers, and the five verbs every implementation has.

A batch is posted whole or not at all: events, journal transactions, voids, quarantine and log positions commit
together, so a crash leaves either all of it or nothing, and sending it again changes nothing (MONEY.md R3).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, NamedTuple, Protocol

from billing.packed import Call
from billing.rating import PriceBook

#: `kind` of the unique key (tenant, call_id, kind, n): a whole call. Streams and batch items get their own later.
KIND_CALL: Final = 0
#: Events in one `Batch`. Sums of charges stay inside 64 bits because CHARGE_NANOS_MAX * this < 2**63.
BATCH_EVENTS_MAX: Final = 4096


class LedgerError(Exception):
    """The ledger cannot do what was asked; the message says what and what to do."""


class LedgerUnavailable(LedgerError):
    """Locked, full or unreadable right now. Nothing was changed; the same batch may be posted again later."""


class PriceBookConflict(LedgerError):
    """A price book version is already known with other content (versions are immutable once used)."""


class Source(NamedTuple):
    """One usage log: a worker instance and its epoch (one life of that worker)."""

    instance: str
    epoch: int


#: A Served record, packed or not, at its place: (source, seq, record). A bare tuple because one is made per call.
Item = tuple[Source, int, Call]


class Rejected(NamedTuple):
    """A record that must not be posted: the reason's stable name and the field that shows it."""

    item: Item
    reason: str
    field: str


class Position(NamedTuple):
    """How far one log is decided: every record up to `seq` is; `served` Served records are among them."""

    seq: int
    served: int
    is_ended: bool = False


class Ending(NamedTuple):
    """Why a charged caller did not get the whole reply (billing.events.Ended)."""

    cause: str
    bytes_sent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one pass over the logs decided. `posts` hold verified charges; `positions` are the new watermarks."""

    posts: Sequence[Item] = ()
    rejected: Sequence[Rejected] = ()
    voids: Sequence[Item] = ()
    positions: Mapping[Source, Position] = field(default_factory=dict)
    endings: Mapping[tuple[Source, int], Ending] = field(default_factory=dict)
    #: UTC instant written as the posting time.
    now_ns: int


class Outcome(IntEnum):
    """What became of a group, by precedence: the worst of its events names the group."""

    EXISTS = 0
    POSTED = 1
    EXISTS_WITH_DIFFERENT = 2


class GroupOutcome(NamedTuple):
    """A tenant's part of a batch. `tx_id` is None when no event was new."""

    tenant: str
    tx_id: int | None
    posted: int
    exists: int
    #: (call_id, first differing field) of each event whose id is taken by other content; it was quarantined (R4).
    conflicts: tuple[tuple[bytes, str], ...] = ()

    @property
    def outcome(self) -> Outcome:
        if self.conflicts:
            return Outcome.EXISTS_WITH_DIFFERENT
        return Outcome.POSTED if self.posted else Outcome.EXISTS


class PostReport(NamedTuple):
    """Only what was new: a batch posted twice reports zeros the second time."""

    groups: tuple[GroupOutcome, ...]
    posted: int
    voided: int
    quarantined: int


class LedgerState(NamedTuple):
    """Where the ledger stands: watermarks and totals since genesis."""

    positions: dict[Source, Position]
    posted: int
    voided: int
    quarantined: int
    transactions: int
    #: Hash of the newest sealed transaction; 32 zero bytes at genesis.
    head: bytes


class Ledger(Protocol):
    """Chosen by URL (`sqlite://`, later `postgresql://`); one writer at a time. Calls block; not thread-safe."""

    def post(self, batch: Batch) -> PostReport:
        """Commit `batch` atomically and durably. Idempotent per event key and log position.

        Raises LedgerUnavailable (nothing changed, may be repeated) and LedgerError (a broken invariant: do not go on).
        """

    def state(self) -> LedgerState:
        """Watermarks and totals. Raises LedgerUnavailable."""

    def prices(self, book: PriceBook | None = None) -> dict[int, PriceBook]:
        """All known books by version, after adding `book` if its version is new.

        Raises PriceBookConflict when the version is known with other content, LedgerUnavailable.
        """

    def counts(self, windows: Sequence[tuple[str, int]]) -> list[int]:
        """For each (tenant, since_ns): posted OK calls with t_ns >= since_ns. Raises LedgerUnavailable."""

    def close(self) -> None:
        """Release the file and the writer's lock; idempotent."""
