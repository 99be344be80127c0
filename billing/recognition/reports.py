"""Owns the reports of finance: deferred-revenue roll-forward, ageing of receivables, margin. All of them only read.

Each figure is a sum of journal entries, of documents' states, or of `usage_by`; nothing is kept that could differ.
"""

import sqlite3
from collections.abc import Sequence
from typing import Final, NamedTuple

from billing.invoices.life import Step, state_of
from billing.usage import Dimension, usage_by

NS_PER_DAY: Final = 86_400_000_000_000
NS_PER_S: Final = 1_000_000_000
LIABILITIES: Final = "contract_liability:"
#: Ageing by whole days past the due date: up to 0 (not due), 30, 60, 90, and beyond.
BUCKETS: Final = (0, 30, 60, 90)


class RollForward(NamedTuple):
    """One liability over a time: opening + added - recognised - other = closing. Nanos; a liability is positive."""

    account: str
    currency: str
    opening_nanos: int
    added_nanos: int
    recognised_nanos: int
    other_nanos: int
    closing_nanos: int


class Ageing(NamedTuple):
    """What one tenant owes, in minor units, by how long it is due: not due, 1-30, 31-60, 61-90, over 90 days."""

    tenant: str
    currency: str
    buckets_minor: tuple[int, ...]
    #: What was paid or credited beyond what is asked.
    owed_back_minor: int


class Margin(NamedTuple):
    """What a group of calls earned and what its computing cost, in nanos."""

    group: tuple[str | int, ...]
    currency: str
    calls: int
    compute_ns: int
    revenue_nanos: int
    cost_nanos: int

    @property
    def margin_nanos(self) -> int:
        return self.revenue_nanos - self.cost_nanos


def roll_forward(db: sqlite3.Connection, since_ns: int, until_ns: int) -> list[RollForward]:
    """Every contract liability over [since, until), by posting time."""
    found = []
    for account, currency, opening, added, recognised, other in db.execute(
        _ROLL_FORWARD, {"since": since_ns, "until": until_ns, "prefix": f"{LIABILITIES}%"}
    ):
        found.append(
            RollForward(
                account=account,
                currency=currency,
                opening_nanos=-opening,
                added_nanos=-added,
                recognised_nanos=recognised,
                other_nanos=other,
                closing_nanos=-(opening + added + recognised + other),
            )
        )
    return found


def ageing(db: sqlite3.Connection, now_ns: int) -> list[Ageing]:
    """Open invoices by tenant and currency."""
    rows: dict[tuple[str, str], list[int]] = {}
    steps: dict[str, list[Step]] = {}
    for document_id, *step in db.execute(
        "SELECT document_id, kind, at_ns, amount_minor, tx_id, reference, note FROM invoice_step"
        " ORDER BY document_id, n"
    ):
        steps.setdefault(document_id, []).append(Step._make(step))
    for document_id, tenant, currency, total, due_ns in db.execute(
        "SELECT document_id, tenant, currency, total_minor, due_ns FROM invoice WHERE kind = 'invoice'"
    ):
        state = state_of(total, steps.get(document_id, []))
        if state.status in {"void", "uncollectible"} or not state.due_minor:
            continue
        sums = rows.setdefault((tenant, currency), [0] * (len(BUCKETS) + 2))
        if state.due_minor < 0:
            sums[-1] -= state.due_minor
        else:
            sums[_bucket(due_ns, now_ns)] += state.due_minor
    return [Ageing(*name, tuple(sums[:-1]), sums[-1]) for name, sums in sorted(rows.items())]


def margin(
    db: sqlite3.Connection,
    by: Sequence[Dimension],
    *,
    cost_nanos_per_compute_s: int,
    since_ns: int | None = None,
    until_ns: int | None = None,
) -> list[Margin]:
    """List-price revenue less metered compute at a cost per second, by the dimensions asked for.

    Free and internal calls cost as well: their margin is negative. Raises UsageError.
    """
    rows = usage_by(db, by, since_ns=since_ns, until_ns=until_ns)
    return [
        Margin(
            row.group,
            row.currency,
            row.calls,
            row.compute_ns,
            row.charge_nanos,
            row.compute_ns * cost_nanos_per_compute_s // NS_PER_S,
        )
        for row in rows
    ]


def _bucket(due_ns: int, now_ns: int) -> int:
    days = -((due_ns - now_ns) // NS_PER_DAY)
    return next((index for index, most in enumerate(BUCKETS) if days <= most), len(BUCKETS))


# Fees and top-ups come in with their documents; `recognition` and `breakage` are what became revenue.
_ROLL_FORWARD: Final = """
SELECT a.name, a.currency,
  COALESCE(SUM(CASE WHEN t.posted_ns < :since THEN e.amount_nanos END), 0),
  COALESCE(SUM(CASE WHEN t.posted_ns >= :since AND t.kind NOT IN ('recognition', 'breakage', 'credit_note', 'void',
    'usage', 'wallet_refund') THEN e.amount_nanos END), 0),
  COALESCE(SUM(CASE WHEN t.posted_ns >= :since AND t.kind IN ('recognition', 'breakage', 'usage')
    THEN e.amount_nanos END), 0),
  COALESCE(SUM(CASE WHEN t.posted_ns >= :since AND t.kind IN ('credit_note', 'void', 'wallet_refund')
    THEN e.amount_nanos END), 0)
FROM entry e JOIN account a USING (account_id) JOIN journal_tx t USING (tx_id)
WHERE a.name LIKE :prefix AND t.posted_ns < :until
GROUP BY a.account_id ORDER BY a.name, a.currency
"""
