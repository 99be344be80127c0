"""Owns the reading of the ledger for an export: every entry in posting order, in short queries, up to a fixed end.

A long-held read would keep the meter from committing; entries never change, so pages taken one after the other are as
good as one read, once the newest transaction of the export is fixed.
"""

import sqlite3
from collections.abc import Iterator
from typing import Final, NamedTuple

from billing.ledger.views import EntryView

PAGE_ROWS: Final = 5_000


class ExportRow(NamedTuple):
    """One entry and the seal (hex) of its transaction."""

    entry: EntryView
    seal: str


class Selection(NamedTuple):
    """What is exported: transactions posted in [since_ns, until_ns), of one tenant or of all."""

    since_ns: int = 0
    until_ns: int = 2**63 - 1
    tenant: str | None = None


def export_rows(db: sqlite3.Connection, selection: Selection, page_rows: int = PAGE_ROWS) -> Iterator[ExportRow]:
    """The entries of `selection` that are posted now, whole transactions in order."""
    (through,) = db.execute("SELECT COALESCE(MAX(tx_id), 0) FROM seal").fetchone()
    after_tx, after_line = 0, -1
    where = "" if selection.tenant is None else " AND t.name = ?"
    narrowed = () if selection.tenant is None else (selection.tenant,)
    while True:
        values = (after_tx, after_tx, after_line, through, selection.since_ns, selection.until_ns, *narrowed, page_rows)
        page = db.execute(_SELECT.format(where=where), values).fetchall()
        for row in page:
            yield ExportRow(EntryView._make(row[:9]), bytes(row[9]).hex())
        if len(page) < page_rows:
            return
        after_tx, after_line = page[-1][0], page[-1][1]


_SELECT: Final = """
SELECT e.tx_id, e.line, j.kind, t.name, j.posted_ns, a.name, a.currency, e.amount_nanos, e.calls, s.hash
FROM entry e JOIN journal_tx j ON j.tx_id = e.tx_id JOIN tenant t ON t.tenant_id = j.tenant_id
JOIN account a ON a.account_id = e.account_id JOIN seal s ON s.tx_id = e.tx_id
WHERE (e.tx_id > ? OR (e.tx_id = ? AND e.line > ?)) AND e.tx_id <= ? AND j.posted_ns >= ? AND j.posted_ns < ?{where}
ORDER BY e.tx_id, e.line LIMIT ?
"""
