"""Owns what can be read from the ledger: trial balance, entries, a call's way to its entry, voids and quarantine.

Every function takes a connection from `billing.ledger.connect.open_reader` and runs short queries: a long-held read
would keep the meter from committing. Amounts are nanos; debits positive, credits negative. Pages go by `after`.
"""

import sqlite3
from typing import Any, Final, NamedTuple

from billing.events import Reason, Served, decode
from billing.ledger.merkle import leaf_index
from billing.ledger.port import LedgerError
from billing.ledger.stored import EVENT_SELECT, StoredEvent, event_from_row

PAGE_MAX: Final = 1000

# SUM of int64 overflows at 9.2e9 major units; sums of quotients and rests do not, and are exact together.
_EXACT = "COALESCE(SUM(amount_nanos / 1000000000), 0), COALESCE(SUM(amount_nanos % 1000000000), 0)"


class BalanceLine(NamedTuple):
    """One account: its balance is debit minus credit; `calls` counts the calls behind its entries."""

    account: str
    currency: str
    debit_nanos: int
    credit_nanos: int
    calls: int

    @property
    def balance_nanos(self) -> int:
        return self.debit_nanos - self.credit_nanos


class TrialBalance(NamedTuple):
    """All accounts, and per currency the sum of all balances, which must be zero."""

    lines: tuple[BalanceLine, ...]
    totals: dict[str, int]

    @property
    def is_balanced(self) -> bool:
        return not any(self.totals.values())


class EntryView(NamedTuple):
    """One line of a journal transaction. `posted_ns` is UTC."""

    tx_id: int
    line: int
    kind: str
    tenant: str
    posted_ns: int
    account: str
    currency: str
    amount_nanos: int
    calls: int


class EntryPage(NamedTuple):
    """`next_after` continues the listing; None: this was the last page."""

    entries: tuple[EntryView, ...]
    next_after: int | None


class CallView(NamedTuple):
    """A posted call and the entries of the transaction that carries it. `leaf_index`
    is the place of its leaf (a block of calls) in the tree."""

    event: StoredEvent
    leaf_index: int
    merkle_root: bytes
    seal: bytes
    ended_cause: str | None
    entries: tuple[EntryView, ...]


class VoidView(NamedTuple):
    """A call that was served and not charged, because its worker died before it was known to be sent (R7)."""

    void_id: int
    instance: str
    epoch: int
    seq: int
    voided_ns: int
    served: Served


class QuarantineView(NamedTuple):
    """A record that was not posted, why, and the record."""

    quarantine_id: int
    instance: str
    epoch: int
    seq: int
    reason: str
    field: str
    quarantined_ns: int
    served: Served


def trial_balance(db: sqlite3.Connection) -> TrialBalance:
    """Every account that has entries, by name and currency."""
    lines = tuple(
        BalanceLine(name, currency, _exact(debit, debit_rest), _exact(credit, credit_rest), calls)
        for name, currency, debit, debit_rest, credit, credit_rest, calls in db.execute(_BALANCE)
    )
    totals: dict[str, int] = {}
    for line in lines:
        totals[line.currency] = totals.get(line.currency, 0) + line.balance_nanos
    return TrialBalance(lines, totals)


def balance_of(db: sqlite3.Connection, account: str, currency: str) -> int:
    """Sum of all entries of one account in nanos; 0 for an unknown one."""
    row = db.execute(
        f"SELECT {_EXACT} FROM entry JOIN account USING (account_id) WHERE name = ? AND currency = ?",  # noqa: S608
        (account, currency),
    ).fetchone()
    return _exact(*row)


def entries(
    db: sqlite3.Connection,
    *,
    account: str | None = None,
    tenant: str | None = None,
    call_id: bytes | None = None,
    tx_id: int | None = None,
    after: int = 0,
    limit: int = 100,
) -> EntryPage:
    """Entries in posting order, narrowed by what is given; whole transactions, at most about `limit` lines a page.

    `after` is the last transaction already seen. Raises LedgerError for a limit outside 1..PAGE_MAX.
    """
    if not 1 <= limit <= PAGE_MAX:
        raise LedgerError(f"limit: {limit} must be from 1 to {PAGE_MAX}")
    if call_id is not None:
        found = find_events(db, call_id)
        transactions = sorted({event.tx_id for event in found if tx_id in (None, event.tx_id)})
        listed = [entry for one in transactions for entry in _entries_of(db, one) if _fits(entry, account, tenant)]
        return EntryPage(tuple(listed), None)
    where, values = _narrowed(account, tenant, tx_id)
    rows = db.execute(
        f"SELECT DISTINCT entry.tx_id {_FROM} WHERE entry.tx_id > ? {where} ORDER BY entry.tx_id LIMIT ?",
        (after, *values, limit),
    ).fetchall()
    page: list[EntryView] = []
    for index, (one,) in enumerate(rows):
        page += [entry for entry in _entries_of(db, one) if _fits(entry, account, tenant)]
        if len(page) >= limit:
            return EntryPage(tuple(page), one if index + 1 < len(rows) or len(rows) == limit else None)
    return EntryPage(tuple(page), rows[-1][0] if len(rows) == limit else None)


def find_events(db: sqlite3.Connection, call_id: bytes) -> tuple[StoredEvent, ...]:
    """Posted events with this call id: one, or none; more only if tenants share the id."""
    # The unique index begins with the tenant, so each tenant is one look-up; there is no index on call_id alone.
    rows = db.execute(
        _BY_CALL_ID,
        (call_id,),
    )
    return tuple(event_from_row(row) for row in rows)


def find_call(db: sqlite3.Connection, call_id: bytes, *, tenant: str | None = None) -> CallView | None:
    """The posted call with this id (of `tenant`, when given), with its transaction's entries."""
    for event in find_events(db, call_id):
        if tenant is not None and event.served.tenant != tenant:
            continue
        first_event_id, leaf_version, merkle_root, seal = db.execute(
            "SELECT first_event_id, leaf_version, merkle_root, hash FROM journal_tx JOIN seal USING (tx_id)"
            " WHERE tx_id = ?",
            (event.tx_id,),
        ).fetchone()
        ended = db.execute("SELECT cause FROM ended WHERE event_id = ?", (event.event_id,)).fetchone()
        return CallView(
            event,
            leaf_index(leaf_version, event.event_id - first_event_id),
            merkle_root,
            seal,
            ended[0] if ended else None,
            tuple(_entries_of(db, event.tx_id)),
        )
    return None


def voided(db: sqlite3.Connection, *, after: int = 0, limit: int = 100) -> tuple[VoidView, ...]:
    """Published voids in the order they were decided, behind void id `after`."""
    rows = db.execute(
        "SELECT void_id, instance, epoch, seq, voided_ns, payload FROM voided JOIN log USING (log_id)"
        " WHERE void_id > ? ORDER BY void_id LIMIT ?",
        (after, min(limit, PAGE_MAX)),
    )
    return tuple(VoidView._make((*head, _served(payload))) for *head, payload in rows)


def quarantined(db: sqlite3.Connection, *, after: int = 0, limit: int = 100) -> tuple[QuarantineView, ...]:
    """Quarantined records in order, behind quarantine id `after`."""
    rows = db.execute(
        "SELECT quarantine_id, instance, epoch, seq, reason, field, quarantined_ns, payload"
        " FROM quarantine JOIN log USING (log_id) WHERE quarantine_id > ? ORDER BY quarantine_id LIMIT ?",
        (after, min(limit, PAGE_MAX)),
    )
    return tuple(QuarantineView._make((*head, _served(payload))) for *head, payload in rows)


def reason_name(reason: int) -> str:
    """The text of a stored reason, for printing."""
    return Reason(reason).name.lower()


_FROM = "FROM entry JOIN account USING (account_id) JOIN journal_tx USING (tx_id) JOIN tenant USING (tenant_id)"
_ENTRY = (
    "SELECT entry.tx_id, line, kind, tenant.name, posted_ns, account.name, currency, amount_nanos, calls "
    f"{_FROM} WHERE entry.tx_id = ? ORDER BY line"
)
_BY_CALL_ID = f"{EVENT_SELECT} WHERE e.tenant_id IN (SELECT tenant_id FROM tenant) AND e.call_id = ?"  # noqa: S608
_BALANCE = """
SELECT account.name, currency,
       SUM(MAX(amount_nanos, 0) / 1000000000), SUM(MAX(amount_nanos, 0) % 1000000000),
       SUM(MAX(-amount_nanos, 0) / 1000000000), SUM(MAX(-amount_nanos, 0) % 1000000000), SUM(calls)
FROM entry JOIN account USING (account_id) GROUP BY account.name, currency ORDER BY account.name, currency
"""


def _entries_of(db: sqlite3.Connection, tx_id: int) -> list[EntryView]:
    return [EntryView(*row) for row in db.execute(_ENTRY, (tx_id,))]


def _narrowed(account: str | None, tenant: str | None, tx_id: int | None) -> tuple[str, list[str | int]]:
    where, values = "", []
    for column, value in (("account.name", account), ("tenant.name", tenant), ("entry.tx_id", tx_id)):
        if value is not None:
            where += f" AND {column} = ?"
            values.append(value)
    return where, values


def _fits(entry: EntryView, account: str | None, tenant: str | None) -> bool:
    return account in (None, entry.account) and tenant in (None, entry.tenant)


def _served(payload: bytes) -> Served:
    record: Any = decode(payload)
    assert isinstance(record, Served)
    return record


def _exact(quotients: int, rests: int) -> int:
    return quotients * 1_000_000_000 + rests
