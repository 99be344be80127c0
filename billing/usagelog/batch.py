"""Owns the values a usage-log reader hands out. A consumer matches on them exhaustively."""

from dataclasses import dataclass

from billing.packed import AnyRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Consecutive records of one epoch: `records` holds (seq, record) from `first_seq` to `last_seq` without a gap."""

    instance: str
    epoch: int
    first_seq: int
    last_seq: int
    records: list[tuple[int, AnyRecord]]


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochEnded:
    """The writer of this epoch is gone and everything it left has been delivered; nothing will follow.

    `is_clean`: its last record is `Closed`, so no Served is without its terminal mark. Otherwise those without one are
    decided by MONEY.md R7. `torn_bytes` counts what was cut off the tail: never acknowledged, so nobody was answered.
    `last_seq` is 0 for an epoch without records. `ack(instance, epoch, last_seq)` then removes the epoch's folder.
    """

    instance: str
    epoch: int
    last_seq: int
    is_clean: bool
    torn_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Damaged:
    """A record that had been durable cannot be read: alarm. The epoch delivers nothing more and is never deleted.

    `seq` is the first number that cannot be delivered; `offset` is where it should be in the file `segment`.
    """

    instance: str
    epoch: int
    seq: int
    segment: str
    offset: int
    reason: str


ReadResult = Batch | EpochEnded | Damaged
