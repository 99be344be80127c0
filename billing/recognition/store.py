"""Owns the rows of revenue recognition: contracts, made as documents are finalized, and what of each was recognised."""

import sqlite3
from typing import NamedTuple

from billing.invoices.document import Document
from billing.invoices.postings import inside_tax_minor, is_deferred
from billing.money import from_minor
from billing.recognition.schedule import Contract, deferred_nanos


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
