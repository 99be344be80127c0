"""Owns the proof that answered = recorded = posted: every record in the usage logs has one fate, and the ledger holds.

    recorded = posted + voided + quarantined + dismissed + duplicates + pending + unposted

`recorded` counts Served records: those below the watermarks (the meter counted them as it decided them, I14) and those
still on disk above them. Reads only; a running meter is first asked to post everything it can see.
"""

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from billing.intake import LogPairing
from billing.ledger.opening import open_ledger_reader
from billing.ledger.port import Item, LedgerUnavailable, Position, Source
from billing.ledger.rules import differing_field
from billing.ledger.stored import find_event
from billing.ledger.verify import PROBLEMS_MAX, Problem, Verification, verify_ledger
from billing.meter_client import SOCKET_NAME, MeterError, ask_meter
from billing.packed import served_of
from billing.quarantine import DISMISSED, ended
from billing.usagelog.reader import Damaged, EpochEnded, UsageReader

#: Live traffic moves the figures while they are read; a mismatch counts only when it stays.
_ATTEMPTS: Final = 3
_READ_RECORDS: Final = 1000
_START: Final = Position(0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Figures of one reconciliation. `is_flushed`: a running meter posted everything readable just before."""

    is_flushed: bool
    recorded: int
    posted: int
    voided: int
    #: Waiting for a person; what one released is posted, what one gave up is dismissed.
    quarantined: int
    dismissed: int
    duplicates: int
    #: Served without a terminal mark in a living epoch: in flight right now.
    pending: int
    #: Readable and due, but not yet decided by the meter.
    unposted: int
    #: Served records found on disk and looked up one by one.
    checked_on_disk: int
    transactions: int
    charged_nanos: dict[str, int]
    head: bytes
    problems: tuple[Problem, ...]

    @property
    def answered(self) -> int:
        """Calls known to have been handed to their callers: recorded, less those in flight and those voided."""
        return self.recorded - self.pending - self.voided

    @property
    def is_ok(self) -> bool:
        return not self.problems


@dataclass(slots=True)
class _Disk:
    """Tally of the Served records found on disk."""

    db: sqlite3.Connection
    positions: dict[Source, Position]
    checked: int = 0
    above: int = 0
    pending: int = 0
    unposted: int = 0
    problems: list[Problem] = field(default_factory=list)

    def note(self, kind: str, where: str, detail: str) -> None:
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(Problem(kind, where, detail))


def reconcile(data_dir: Path, *, ask: Callable[..., object] = ask_meter) -> Report:
    """Compare logs and ledger of the data directory. Raises LedgerUnavailable or LedgerError when there is no ledger.

    Without a running meter, records not yet posted are a problem ("unposted"): start it, then reconcile again.
    """
    report = _attempt(data_dir, ask)
    for _ in range(_ATTEMPTS - 1):
        if report.is_ok:
            break
        report = _attempt(data_dir, ask)
    return report


def _attempt(data_dir: Path, ask: Callable[..., object]) -> Report:
    is_flushed, problems = _flush(data_dir, ask)
    db = open_ledger_reader(data_dir)
    try:
        positions, counted = _ledger_figures(db)
        disk = _walk_logs(db, data_dir / "usage", positions)
        verification = verify_ledger(db)
    except sqlite3.OperationalError as error:
        raise LedgerUnavailable(f"reconcile: {error}") from error
    finally:
        db.close()
    recorded = sum(position.served for position in positions.values()) + disk.above
    report = Report(
        is_flushed=is_flushed,
        recorded=recorded,
        pending=disk.pending,
        unposted=disk.unposted,
        checked_on_disk=disk.checked,
        transactions=verification.transactions,
        charged_nanos=verification.charged_nanos,
        head=verification.head,
        problems=(),
        **counted,
    )
    problems += [*disk.problems, *verification.problems, *_compare(report, verification)]
    return replace(report, problems=tuple(problems[:PROBLEMS_MAX]))


def _flush(data_dir: Path, ask: Callable[..., object]) -> tuple[bool, list[Problem]]:
    socket_path = data_dir / SOCKET_NAME
    if not socket_path.exists():
        return False, []
    try:
        ask(socket_path, {"op": "flush"})
    except MeterError as error:
        return False, [Problem("meter", error.code, str(error))] if error.code != "unreachable" else []
    return True, []


def _ledger_figures(db: sqlite3.Connection) -> tuple[dict[Source, Position], dict[str, int]]:
    """Watermarks and counts of one instant: a single read transaction."""
    db.execute("BEGIN")
    try:
        positions = {
            Source(instance, epoch): Position(seq, served, bool(is_ended))
            for instance, epoch, seq, served, is_ended in db.execute(
                "SELECT instance, epoch, seq, served, is_ended FROM watermark JOIN log USING (log_id)"
            )
        }
        posted, voided, quarantined, duplicates = db.execute(
            "SELECT (SELECT COUNT(*) FROM usage_event), (SELECT COUNT(*) FROM voided),"
            " (SELECT COUNT(*) FROM quarantine), (SELECT COUNT(*) FROM duplicate)"
        ).fetchone()
        ends = ended(db)
    finally:
        db.execute("COMMIT")
    return positions, {
        "posted": posted,
        "voided": voided,
        "quarantined": quarantined - sum(ends.values()),
        "dismissed": ends.get(DISMISSED, 0),
        "duplicates": duplicates,
    }


def _walk_logs(db: sqlite3.Connection, root: Path, positions: dict[Source, Position]) -> _Disk:
    """Look every Served record on disk up in the ledger."""
    disk = _Disk(db, positions)
    pairings: dict[Source, LogPairing] = {}
    reader = UsageReader(root, is_owner=False)
    try:
        while (result := reader.read_batch(_READ_RECORDS)) is not None:
            source = Source(result.instance, result.epoch)
            pairing = pairings.setdefault(source, LogPairing(Position(0, 0)))
            if isinstance(result, Damaged):
                disk.note("damaged_log", f"{source.instance}/{source.epoch}", result.reason)
                continue
            if isinstance(result, EpochEnded):
                ended = pairing.end(result.last_seq)
                due = ended.ready + ended.freed
            else:
                ready, freed, _ = pairing.feed(result.records)
                due = ready + freed
            for seq, served in due:
                _check(disk, (source, seq, served), is_due=True)
    finally:
        reader.close()
    for source, pairing in pairings.items():
        for seq, served in pairing.pending.items():
            _check(disk, (source, seq, served), is_due=False)
    return disk


def _check(disk: _Disk, item: Item, *, is_due: bool) -> None:
    """Find the one fate of a record. `is_due`: it has its terminal mark, or its epoch is dead."""
    source, seq, _ = item
    is_decided = seq <= disk.positions.get(source, _START).seq
    disk.checked += 1
    disk.above += not is_decided
    if _has_fate(disk.db, item):
        return
    if is_decided:
        disk.note("missing", f"{source.instance}/{source.epoch}:{seq}", "decided, but nowhere in the ledger")
    elif is_due:
        disk.unposted += 1
    else:
        disk.pending += 1


def _has_fate(db: sqlite3.Connection, item: Item) -> bool:
    source, seq, served = item
    stored = find_event(db, served)
    if stored is not None and (stored.source, stored.seq) == (source, seq):
        return differing_field(stored.served, served_of(served)) is None
    return db.execute(_FATES, {"instance": source.instance, "epoch": source.epoch, "seq": seq}).fetchone() is not None


def _compare(report: Report, verification: Verification) -> list[Problem]:
    decided = report.posted + report.voided + report.quarantined + report.dismissed + report.duplicates
    decided += report.pending + report.unposted
    problems = []
    if decided != report.recorded:
        problems.append(Problem("count", "logs", f"{report.recorded} recorded, {decided} accounted for"))
    if verification.events < report.posted:
        problems.append(Problem("count", "ledger", f"{report.posted} events, {verification.events} in transactions"))
    if report.quarantined:
        problems.append(Problem("quarantine", "ledger", f"{report.quarantined} records wait for a decision"))
    if report.unposted and not report.is_flushed:
        problems.append(Problem("unposted", "logs", f"{report.unposted} records are due and the meter is not running"))
    return problems


_FATES = """
WITH place AS (SELECT log_id FROM log WHERE instance = :instance AND epoch = :epoch)
SELECT 1 FROM voided WHERE log_id IN (SELECT log_id FROM place) AND seq = :seq
UNION ALL SELECT 1 FROM quarantine WHERE log_id IN (SELECT log_id FROM place) AND seq = :seq
UNION ALL SELECT 1 FROM duplicate WHERE log_id IN (SELECT log_id FROM place) AND seq = :seq
"""
