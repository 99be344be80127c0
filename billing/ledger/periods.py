"""Owns the closing of periods: a closed one takes no entry, and its hash seals what was booked in it.

A transaction belongs to the period of its posting time. Closing keeps the balance of every account (a snapshot, so that
balances need not be summed from genesis) and a hash over the previous period's hash, the bounds, the seals of the
period's transactions and its turnover by account. What is found out later is booked in the open period (I24).
"""

import sqlite3
from hashlib import sha256
from typing import Final, NamedTuple

import msgspec

from billing.ledger.journal import Journal
from billing.ledger.port import LedgerError
from billing.ledger.rules import GENESIS

_UNIT: Final = 1_000_000_000


class Period(NamedTuple):
    """A closed period [start_ns, end_ns) of posting times, UTC. `through_tx_id`: what its balances reach to."""

    period_id: int
    start_ns: int
    end_ns: int
    through_tx_id: int
    closed_ns: int
    hash: bytes


class Turnover(NamedTuple):
    """What one account took in a period; debits less credits is its change."""

    account: str
    currency: str
    debit_nanos: int
    credit_nanos: int
    calls: int


def open_since_ns(db: sqlite3.Connection) -> int:
    """The instant before which nothing can be posted any more; 0 while no period is closed."""
    (end_ns,) = db.execute("SELECT COALESCE(MAX(end_ns), 0) FROM period").fetchone()
    return int(end_ns)


def periods(db: sqlite3.Connection) -> list[Period]:
    """All closed periods in order."""
    rows = db.execute(
        "SELECT period_id, start_ns, end_ns, through_tx_id, closed_ns, hash FROM period ORDER BY period_id"
    )
    return [Period._make((*row[:5], bytes(row[5]))) for row in rows]


def close_period(journal: Journal, end_ns: int, now_ns: int) -> Period:
    """Close everything posted before `end_ns`, from the end of the last closed period on.

    Raises LedgerError: `end_ns` lies in the future or in a closed period, or the books do not balance.
    """
    db = journal.db
    closed = periods(db)
    start_ns = closed[-1].end_ns if closed else 0
    if not start_ns < end_ns <= now_ns:
        raise LedgerError(
            f"end_ns: {end_ns} must be after {start_ns}, where the open period begins, and not in the future"
        )
    (through,) = db.execute("SELECT COALESCE(MAX(tx_id), 0) FROM seal").fetchone()
    previous = closed[-1].hash if closed else GENESIS
    period = Period(
        len(closed) + 1, start_ns, end_ns, int(through), now_ns, period_hash(db, previous, start_ns, end_ns)
    )
    journal.execute("INSERT INTO period VALUES (?, ?, ?, ?, ?, ?)", period)
    for account_id, units, nanos in _balances(db, period.through_tx_id):
        journal.execute("INSERT INTO period_balance VALUES (?, ?, ?, ?)", (period.period_id, account_id, units, nanos))
    return period


def turnover(db: sqlite3.Connection, start_ns: int, end_ns: int) -> list[Turnover]:
    """Debits, credits and calls per account of what was posted in [start_ns, end_ns), by account and currency."""
    return [
        Turnover(name, currency, int(du) * _UNIT + int(dn), int(cu) * _UNIT + int(cn), int(calls))
        for name, currency, du, dn, cu, cn, calls in db.execute(_TURNOVER, (start_ns, end_ns))
    ]


def period_hash(db: sqlite3.Connection, previous: bytes, start_ns: int, end_ns: int) -> bytes:
    """SHA-256 over the previous period's hash and what this one holds. Raises LedgerError if it does not balance."""
    moved = turnover(db, start_ns, end_ns)
    sums: dict[str, int] = {}
    for one in moved:
        sums[one.currency] = sums.get(one.currency, 0) + one.debit_nanos - one.credit_nanos
    if any(sums.values()):
        raise LedgerError(f"the period does not balance: {sums}; `tollway reconcile` says where")
    seals = sha256()
    count = 0
    for (seal,) in db.execute(_SEALS, (start_ns, end_ns)):
        seals.update(seal)
        count += 1
    # Amounts as text: a period's turnover may be beyond 64 bits.
    lines = [(one.account, one.currency, str(one.debit_nanos), str(one.credit_nanos), one.calls) for one in moved]
    body = msgspec.msgpack.encode([1, start_ns, end_ns, count, seals.digest(), lines])
    return sha256(previous + body).digest()


def broken_periods(db: sqlite3.Connection) -> list[tuple[int, str]]:
    """(period, finding) for each closed period whose hash or balances are not what the books say today."""
    found: list[tuple[int, str]] = []
    previous = GENESIS
    for period in periods(db):
        try:
            if period_hash(db, previous, period.start_ns, period.end_ns) != period.hash:
                found.append((period.period_id, "its hash is not that of its transactions"))
        except LedgerError as error:
            found.append((period.period_id, str(error)))
        kept = {
            (account_id, units, nanos)
            for account_id, units, nanos in db.execute(
                "SELECT account_id, units, nanos FROM period_balance WHERE period_id = ?", (period.period_id,)
            )
        }
        if kept != set(_balances(db, period.through_tx_id)):
            found.append((period.period_id, "its balances are not the sums of the entries"))
        previous = period.hash
    return found


def _balances(db: sqlite3.Connection, through_tx_id: int) -> list[tuple[int, int, int]]:
    """(account, whole units, rest in nanos) summed from genesis."""
    rows = db.execute(_BALANCES, (through_tx_id,)).fetchall()
    sums = [(int(account), int(units) * _UNIT + int(nanos)) for account, units, nanos in rows]
    return [(account, total // _UNIT, total % _UNIT) for account, total in sums]


_TURNOVER: Final = """
SELECT a.name, a.currency,
  SUM(CASE WHEN e.amount_nanos > 0 THEN e.amount_nanos / 1000000000 ELSE 0 END),
  SUM(CASE WHEN e.amount_nanos > 0 THEN e.amount_nanos % 1000000000 ELSE 0 END),
  SUM(CASE WHEN e.amount_nanos < 0 THEN -e.amount_nanos / 1000000000 ELSE 0 END),
  SUM(CASE WHEN e.amount_nanos < 0 THEN -e.amount_nanos % 1000000000 ELSE 0 END), SUM(e.calls)
FROM journal_tx j JOIN entry e ON e.tx_id = j.tx_id JOIN account a ON a.account_id = e.account_id
WHERE j.posted_ns >= ? AND j.posted_ns < ? GROUP BY a.name, a.currency ORDER BY a.name, a.currency
"""
_SEALS: Final = """
SELECT s.hash FROM journal_tx j JOIN seal s ON s.tx_id = j.tx_id
WHERE j.posted_ns >= ? AND j.posted_ns < ? ORDER BY j.tx_id
"""
_BALANCES: Final = """
SELECT account_id, SUM(amount_nanos / 1000000000), SUM(amount_nanos % 1000000000) FROM entry
WHERE tx_id <= ? GROUP BY account_id ORDER BY account_id
"""
