"""Owns the rows of wallets: thresholds, top-ups and their steps; what a wallet looks like; when it has run low.

`wallet.low_balance` is told in the transaction that notes the crossing. What is compared is the level, so a check that
a crash prevented is made up for by the next one.
"""

import sqlite3
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from billing.invoices.store import add_event
from billing.ledger.accounts import prepaid
from billing.ledger.balances import available_nanos, held_nanos, wallet_nanos
from billing.ledger.journal import Journal

PAGE_MAX: Final = 1_000
TX_TOP_UP: Final = "top_up"
TX_REFUND: Final = "wallet_refund"
#: Of a top-up that its provider has not decided yet.
UNDECIDED: Final = frozenset({"begun", "pending"})


class WalletState(NamedTuple):
    """One wallet in nanos: `balance` is what was paid in and not spent, `held` what workers may still spend of it."""

    tenant: str
    currency: str
    balance_nanos: int
    held_nanos: int
    available_nanos: int
    #: Below it `wallet.low_balance` is told; 0: never.
    low_nanos: int


class TopUp(NamedTuple):
    """Money on its way into a wallet, or in it; `outcome` is its newest step: begun, pending, succeeded, …"""

    top_up_id: str
    tenant: str
    currency: str
    amount_nanos: int
    source: str
    provider: str
    created_ns: int
    outcome: str
    reference: str
    booked_nanos: int
    code: str


def wallet_state(db: sqlite3.Connection, tenant: str, currency: str) -> WalletState:
    """A wallet as it stands; one that nothing was ever paid into is empty."""
    account = prepaid(tenant)
    row = db.execute("SELECT low_nanos FROM wallet WHERE tenant = ? AND currency = ?", (tenant, currency)).fetchone()
    return WalletState(
        tenant,
        currency,
        wallet_nanos(db, account, currency),
        held_nanos(db, account, currency),
        available_nanos(db, account, currency),
        0 if row is None else int(row[0]),
    )


def refundable_nanos(db: sqlite3.Connection, tenant: str, currency: str) -> int:
    """What may be paid back: neither spent nor leased, and not given by us. Gifts count as spent first."""
    state = wallet_state(db, tenant, currency)
    granted, paid = db.execute(
        "SELECT COALESCE(SUM(CASE WHEN u.source = 'grant' THEN s.amount_nanos ELSE 0 END), 0),"
        " COALESCE(SUM(CASE WHEN u.source = 'grant' THEN 0 ELSE s.amount_nanos END), 0)"
        " FROM top_up u JOIN top_up_step s USING (top_up_id)"
        " WHERE u.tenant = ? AND u.currency = ? AND s.outcome = 'succeeded'",
        (tenant, currency),
    ).fetchone()
    (refunded,) = db.execute(
        "SELECT COALESCE(SUM(e.amount_nanos), 0) FROM entry e JOIN account a USING (account_id)"
        " JOIN journal_tx t USING (tx_id) WHERE a.name = ? AND a.currency = ? AND t.kind = ?",
        (prepaid(tenant), currency, TX_REFUND),
    ).fetchone()
    spent = int(granted) + int(paid) - int(refunded) - state.balance_nanos
    return max(0, min(state.available_nanos, state.balance_nanos - max(0, int(granted) - max(0, spent))))


def currencies_of(db: sqlite3.Connection, tenant: str) -> list[str]:
    """The currencies that something was ever paid into the tenant's wallet in."""
    rows = db.execute(
        "SELECT currency FROM wallet_balance JOIN account USING (account_id) WHERE name = ? ORDER BY currency",
        (prepaid(tenant),),
    )
    return [currency for (currency,) in rows]


def list_top_ups(db: sqlite3.Connection, tenant: str, *, after: str = "", limit: int = 100) -> list[TopUp]:
    """A tenant's top-ups in the order they were begun, behind id `after`."""
    rows = db.execute(
        f"{_TOP_UP} WHERE u.tenant = ? AND u.top_up_id > ? ORDER BY u.top_up_id LIMIT ?",
        (tenant, after, min(limit, PAGE_MAX)),
    )
    return [TopUp(*row) for row in rows]


def find_top_up(db: sqlite3.Connection, top_up_id: str) -> TopUp | None:
    row = db.execute(f"{_TOP_UP} WHERE u.top_up_id = ?", (top_up_id,)).fetchone()
    return None if row is None else TopUp(*row)


def is_booked(db: sqlite3.Connection, provider: str, reference: str) -> bool:
    """Whether a payment is in a wallet already."""
    found = db.execute("SELECT 1 FROM top_up_booked WHERE provider = ? AND reference = ?", (provider, reference))
    return found.fetchone() is not None


def add_top_up(journal: Journal, made: TopUp) -> None:
    journal.execute(
        "INSERT INTO top_up VALUES (?, ?, ?, ?, ?, ?, ?)",
        (made.top_up_id, made.tenant, made.currency, made.amount_nanos, made.source, made.provider, made.created_ns),
    )


def add_step(journal: Journal, top_up_id: str, outcome: str, now_ns: int, **more: Any) -> None:
    """Append what became of a top-up. `more`: reference, amount_nanos, code, tx_id."""
    journal.execute(
        "INSERT INTO top_up_step SELECT ?, 1 + COALESCE(MAX(n), 0), ?, ?, ?, ?, ?, ? FROM top_up_step"
        " WHERE top_up_id = ?",
        (
            top_up_id,
            outcome,
            more.get("reference", ""),
            more.get("amount_nanos", 0),
            more.get("code", ""),
            now_ns,
            more.get("tx_id", 0),
            top_up_id,
        ),
    )


def note_booked(journal: Journal, provider: str, reference: str, top_up_id: str) -> None:
    """One payment goes into one wallet once: a second row of the same reference is an error of the database's."""
    journal.execute("INSERT INTO top_up_booked VALUES (?, ?, ?)", (provider, reference, top_up_id))


def set_threshold(journal: Journal, tenant: str, currency: str, low_nanos: int, now_ns: int) -> None:
    journal.execute(
        "INSERT INTO wallet VALUES (?, ?, ?, 0, ?) ON CONFLICT (tenant, currency) DO UPDATE SET"
        " low_nanos = excluded.low_nanos, updated_ns = excluded.updated_ns",
        (tenant, currency, low_nanos, now_ns),
    )
    check_low(journal, [tenant], now_ns)


def watched_tenants(db: sqlite3.Connection) -> frozenset[str]:
    """Who has a threshold."""
    return frozenset(tenant for (tenant,) in db.execute("SELECT DISTINCT tenant FROM wallet WHERE low_nanos > 0"))


def check_low(journal: Journal, tenants: Iterable[str], now_ns: int) -> int:
    """Tell of each wallet of `tenants` that fell below its threshold since the last check; how many did."""
    told = 0
    for tenant in tenants:
        rows = journal.execute(
            "SELECT currency, low_nanos, is_low FROM wallet WHERE tenant = ? ORDER BY currency", (tenant,)
        ).fetchall()
        for currency, low_nanos, was_low in rows:
            balance = wallet_nanos(journal.db, prepaid(tenant), currency)
            is_low = balance < low_nanos
            if is_low == bool(was_low):
                continue
            journal.execute(
                "UPDATE wallet SET is_low = ?, updated_ns = ? WHERE tenant = ? AND currency = ?",
                (int(is_low), now_ns, tenant, currency),
            )
            if is_low:
                body = {"currency": currency, "balance_nanos": balance, "low_nanos": low_nanos}
                add_event(journal.db, tenant, "wallet.low_balance", body, now_ns)
                told += 1
    return told


_TOP_UP: Final = (
    "SELECT u.top_up_id, u.tenant, u.currency, u.amount_nanos, u.source, u.provider, u.created_ns,"
    " s.outcome, s.reference, s.amount_nanos, s.code FROM top_up u JOIN top_up_step s ON s.top_up_id = u.top_up_id"
    " AND s.n = (SELECT MAX(n) FROM top_up_step m WHERE m.top_up_id = u.top_up_id)"
)
