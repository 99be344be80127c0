"""Owns the rows of revenue recognition: contracts, made as documents are finalized, and what of each was recognised."""

import sqlite3
from typing import Final, NamedTuple

from billing.invoices.document import Document
from billing.invoices.postings import inside_tax_minor, is_deferred
from billing.money import from_minor
from billing.recognition.schedule import Contract, deferred_nanos

#: Expired grants that one round sees.
EXPIRIES_PAGE: Final = 1_000


class OpenContract(NamedTuple):
    """A contract that is not earned in full, with what was recognised of it so far."""

    contract_id: int
    tenant: str
    currency: str
    contract: Contract
    recognised_nanos: int


def add_contracts(db: sqlite3.Connection, document: Document, now_ns: int, *, sign: int = 1) -> None:
    """A contract for each line of a document that is a fee for a time; `sign` -1 when the document is taken back."""
    for index, line in enumerate(document.lines):
        if is_deferred(line):
            net = line.exact_nanos - from_minor(inside_tax_minor(document, line), document.currency)
            add_contract(db, document, index, Contract(sign * net, line.start_ns, line.end_ns), now_ns)


def add_contract(db: sqlite3.Connection, document: Document, line: int, contract: Contract, now_ns: int) -> None:
    """An amount to be earned, from line `line` of a document."""
    db.execute(
        "INSERT INTO contract (tenant, currency, document_id, line, amount_nanos, start_ns, end_ns, created_ns)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (document.tenant, document.currency, document.document_id, line, *contract, now_ns),
    )


def line_deferred_nanos(db: sqlite3.Connection, document_id: str, line: int, at_ns: int) -> int:
    """What of a line is not yet earned, less what was given back of it."""
    rows = db.execute(
        "SELECT amount_nanos, start_ns, end_ns FROM contract WHERE document_id = ? AND line = ?", (document_id, line)
    )
    return sum(deferred_nanos(Contract._make(row), at_ns) for row in rows)


def open_contracts(db: sqlite3.Connection, tenant: str) -> list[OpenContract]:
    rows = db.execute(
        "SELECT contract_id, tenant, currency, amount_nanos, start_ns, end_ns, recognised FROM ("
        " SELECT c.*, COALESCE((SELECT SUM(r.amount_nanos) FROM recognition r WHERE r.contract_id = c.contract_id), 0)"
        " AS recognised FROM contract c WHERE tenant = ?) AS sums"
        " WHERE recognised <> amount_nanos ORDER BY contract_id",
        (tenant,),
    )
    return [OpenContract(row[0], row[1], row[2], Contract(*row[3:6]), row[6]) for row in rows]


def tenants_with_contracts(db: sqlite3.Connection) -> list[str]:
    return [tenant for (tenant,) in db.execute("SELECT DISTINCT tenant FROM contract ORDER BY tenant")]


def recognised_until(db: sqlite3.Connection, tenant: str) -> int:
    """The instant up to which the tenant's fees are recognised; 0: never."""
    (through_ns,) = db.execute(
        "SELECT COALESCE(MAX(through_ns), 0) FROM recognition_run WHERE tenant = ?", (tenant,)
    ).fetchone()
    return int(through_ns)


class DueExpiry(NamedTuple):
    """A prepaid grant whose time has come and that nobody let expire yet."""

    tenant: str
    grant: str
    currency: str


def expiry_of(db: sqlite3.Connection, tenant: str, grant: str, currency: str) -> int | None:
    """When a prepaid grant expires; None: nobody said."""
    row = db.execute(
        "SELECT expires_ns FROM prepaid_expiry WHERE tenant = ? AND grant_id = ? AND currency = ?",
        (tenant, grant, currency),
    ).fetchone()
    return None if row is None else int(row[0])


def due_expiries(db: sqlite3.Connection, now_ns: int) -> list[DueExpiry]:
    """Grants that expired by now, the earliest first; at most EXPIRIES_PAGE."""
    rows = db.execute(
        "SELECT tenant, grant_id, currency FROM prepaid_expiry p WHERE expires_ns <= ? AND NOT EXISTS"
        " (SELECT 1 FROM prepaid_expired e WHERE e.tenant = p.tenant AND e.grant_id = p.grant_id"
        " AND e.currency = p.currency) ORDER BY expires_ns, tenant, grant_id, currency LIMIT ?",
        (now_ns, EXPIRIES_PAGE),
    )
    return [DueExpiry._make(row) for row in rows]
