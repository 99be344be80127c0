"""Owns the re-verification of a ledger from genesis: chain, Merkle roots, entries against events, prices again.

Nothing stored is believed that can be computed: roots from events, lines from charges, charges from units and the
pinned price book, heads from all of it (I7, I8, I9, I16). Short queries by transaction, so that the meter can commit
in between.
"""

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple

from billing.events import Outcome, Served
from billing.judge import find_fault
from billing.ledger.merkle import leaves_of, merkle_root
from billing.ledger.periods import broken_periods
from billing.ledger.port import LedgerError
from billing.ledger.rules import (
    GENESIS,
    TX_USAGE,
    Line,
    Transaction,
    check_balanced,
    totals_of,
    transaction_hash,
    usage_lines,
)
from billing.ledger.stored import StoredEvent, read_events
from billing.ledger.views import balance_of, trial_balance
from billing.pricebook import decode_price_book
from billing.rating import Rater, compile_book

PROBLEMS_MAX: Final = 100


class Problem(NamedTuple):
    """One broken promise: a stable `kind`, where (transaction, log position or account), and the finding."""

    kind: str
    where: str
    detail: str


class Verification(NamedTuple):
    """What was checked up to `head`, and the first PROBLEMS_MAX problems."""

    transactions: int
    events: int
    head: bytes
    charged_nanos: dict[str, int]
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class _Audit:
    """What a verification reads from and writes to."""

    db: sqlite3.Connection
    raters: Mapping[int, Rater]
    problems: list[Problem] = field(default_factory=list)

    def note(self, kind: str, where: str, detail: str) -> None:
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(Problem(kind, where, detail))


def load_raters(db: sqlite3.Connection) -> dict[int, Rater]:
    """Every stored price book, compiled."""
    rows = db.execute("SELECT version, json FROM price_book")
    return {version: compile_book(decode_price_book(text)) for version, text in rows}


def verify_ledger(db: sqlite3.Connection) -> Verification:
    """Recompute everything from the first transaction to the newest one at the time of the call."""
    (last_tx,) = db.execute("SELECT COALESCE(MAX(tx_id), 0) FROM journal_tx").fetchone()
    (last_event,) = db.execute("SELECT COALESCE(MAX(event_id), 0) FROM usage_event").fetchone()
    audit = _Audit(db, load_raters(db))
    head, events, charged = GENESIS, 0, dict[str, int]()
    for tx_id in range(1, last_tx + 1):
        head, tx_events = _verify_transaction(audit, tx_id, events + 1, head)
        events += len(tx_events)
        for event in tx_events:
            currency = event.served.currency
            charged[currency] = charged.get(currency, 0) + event.served.charge_nanos
    if events < last_event:
        audit.note("events_outside", f"event {events + 1}", f"{last_event - events} in no transaction")
    _verify_balance(audit)
    _verify_wallets(audit)
    for period_id, finding in broken_periods(db):
        audit.note("period", f"period {period_id}", finding)
    return Verification(last_tx, events, head, charged, tuple(audit.problems))


def _verify_transaction(
    audit: _Audit, tx_id: int, first_event_id: int, previous: bytes
) -> tuple[bytes, list[StoredEvent]]:
    """Note what is wrong with one transaction. Returns the head it leads to, and its events."""
    db, note = audit.db, partial(_noted, audit, f"tx {tx_id}")
    row = db.execute(_TX, (tx_id,)).fetchone()
    if row is None:
        note("transaction_missing", "ids count up by one, but this one is not there")
        return previous, []
    *fields, seal = row
    tx = Transaction(**dict(zip(_TX_FIELDS, fields, strict=True)), lines=_lines(db, tx_id))
    if seal is None:
        note("unsealed", "it has no seal")
    head = transaction_hash(previous, tx)
    if seal is not None and seal != head:
        note("chain", "its hash does not follow from its content and its predecessor")
    try:
        check_balanced(tx.lines)
    except LedgerError as error:
        note("unbalanced", str(error))
    events = list(read_events(db, tx.first_event_id, tx.event_count)) if tx.kind == TX_USAGE else []
    if tx.kind == TX_USAGE:
        _verify_usage(audit, tx, first_event_id, events)
    # Go on from what is stored, so that one broken link is one finding.
    return seal or head, events


def _verify_usage(audit: _Audit, tx: Transaction, first_event_id: int, events: list[StoredEvent]) -> None:
    note = partial(_noted, audit, f"tx {tx.tx_id}")
    served = [event.served for event in events]
    if tx.first_event_id != first_event_id or len(events) != tx.event_count:
        note(
            "event_range",
            f"{len(events)} events from {tx.first_event_id}; expected {tx.event_count} from {first_event_id}",
        )
    if any(event.tx_id != tx.tx_id or event.served.tenant != tx.tenant for event in events):
        note("foreign_event", "an event in its range belongs to another transaction or tenant")
    if not _has_root(tx, served):
        note("merkle_root", "its root is not that of its events")
    if not served:
        return
    if usage_lines(tx.tenant, *totals_of(served)) != tx.lines:
        note("entries", "its entries are not what its events add up to")
    times, ok_count = [one.t_ns for one in served], sum(one.outcome == Outcome.OK for one in served)
    if (min(times), max(times), ok_count) != (tx.t_min_ns, tx.t_max_ns, tx.ok_count):
        note("summary", "its times or its number of good calls are not those of its events")
    for event in events:
        fault = find_fault(event.served, audit.raters)
        if fault is not None:
            note("rating", f"event {event.event_id}: {fault.reason} ({fault.field})")


def _has_root(tx: Transaction, served: list[Served]) -> bool:
    try:
        return merkle_root(leaves_of(tx.leaf_version, served)) == tx.merkle_root
    except ValueError:
        # A version or values that nothing of ours writes.
        return False


def _noted(audit: _Audit, where: str, kind: str, detail: str) -> None:
    audit.note(kind, where, detail)


def _verify_balance(audit: _Audit) -> None:
    for currency, total in trial_balance(audit.db).totals.items():
        if total:
            audit.note("trial_balance", currency, f"off by {total} nanos")


def _verify_wallets(audit: _Audit) -> None:
    """Kept balances of guarded accounts are the sums of their entries (I9), and never below zero (I10)."""
    for name, currency, units, nanos in audit.db.execute(
        "SELECT name, currency, units, nanos FROM wallet_balance JOIN account USING (account_id)"
    ):
        kept = int(units) * 1_000_000_000 + int(nanos)
        if kept != balance_of(audit.db, name, currency):
            audit.note("wallet_balance", name, "what is kept is not the sum of its entries")
        if kept > 0:
            audit.note("overdrawn", name, f"{kept} nanos {currency} more were spent than paid in")


def _lines(db: sqlite3.Connection, tx_id: int) -> tuple[Line, ...]:
    return tuple(Line(*row) for row in db.execute(_LINES, (tx_id,)))


_TX_FIELDS: Final = (
    "tx_id",
    "kind",
    "tenant",
    "posted_ns",
    "first_event_id",
    "event_count",
    "ok_count",
    "t_min_ns",
    "t_max_ns",
    "leaf_version",
    "merkle_root",
)
_TX = """
SELECT t.tx_id, kind, name, posted_ns, first_event_id, event_count, ok_count, t_min_ns, t_max_ns, leaf_version,
       merkle_root, hash
FROM journal_tx t JOIN tenant USING (tenant_id) LEFT JOIN seal s ON s.tx_id = t.tx_id WHERE t.tx_id = ?
"""
_LINES = """
SELECT name, currency, amount_nanos, calls FROM entry JOIN account USING (account_id) WHERE tx_id = ? ORDER BY line
"""
