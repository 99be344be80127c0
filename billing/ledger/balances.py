"""Owns the balance of one account: the snapshot of the last closed period plus the entries since (I9).

Sums are taken as whole units and rests of 1e9, so they stay exact beyond 64 bits. Guarded accounts are asked about with
every lease, so theirs are kept beside the entries, in the transaction that moves them (`wallet_balance`); `verify`
compares.
"""

import sqlite3
from typing import Final

_UNIT: Final = 1_000_000_000


def balance_nanos(db: sqlite3.Connection, account: str, currency: str) -> int:
    """Debits less credits of `account` in nanos; 0 for an account without entries."""
    row = db.execute("SELECT account_id FROM account WHERE name = ? AND currency = ?", (account, currency)).fetchone()
    if row is None:
        return 0
    (account_id,) = row
    units, nanos, through = db.execute(_SNAPSHOT, (account_id,)).fetchone() or (0, 0, _last_through(db))
    more_units, more_nanos = db.execute(_TAIL, (account_id, through)).fetchone()
    return int(units + more_units) * _UNIT + int(nanos + more_nanos)


def wallet_nanos(db: sqlite3.Connection, account: str, currency: str) -> int:
    """What a guarded account holds in nanos (its credit balance): paid in and not spent, leased or not."""
    row = db.execute(
        "SELECT units, nanos FROM wallet_balance JOIN account USING (account_id) WHERE name = ? AND currency = ?",
        (account, currency),
    ).fetchone()
    return 0 if row is None else -(int(row[0]) * _UNIT + int(row[1]))


def held_nanos(db: sqlite3.Connection, account: str, currency: str) -> int:
    """What pending transfers hold of `account`, less what calls posted since have taken out of it."""
    (held,) = db.execute(
        "SELECT COALESCE(SUM(o.amount_nanos - COALESCE(l.used_nanos - l.held_from_nanos, 0)), 0)"
        " FROM transfer_open o LEFT JOIN fund_lease l ON l.lease_id = o.transfer_id"
        " WHERE o.debit = ? AND o.currency = ?",
        (account, currency),
    ).fetchone()
    return int(held)


def available_nanos(db: sqlite3.Connection, account: str, currency: str) -> int:
    """What a guarded account (credit balance) still has: neither spent nor held."""
    return wallet_nanos(db, account, currency) - held_nanos(db, account, currency)


def _last_through(db: sqlite3.Connection) -> int:
    """An account without a snapshot had no entries when the last period closed."""
    (through,) = db.execute("SELECT COALESCE(MAX(through_tx_id), 0) FROM period").fetchone()
    return int(through)


_SNAPSHOT: Final = """
SELECT b.units, b.nanos, p.through_tx_id FROM period_balance b JOIN period p ON p.period_id = b.period_id
WHERE b.account_id = ? ORDER BY b.period_id DESC LIMIT 1
"""
_TAIL: Final = """
SELECT COALESCE(SUM(amount_nanos / 1000000000), 0), COALESCE(SUM(amount_nanos % 1000000000), 0)
FROM entry WHERE account_id = ? AND tx_id > ?
"""
