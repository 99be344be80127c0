"""Owns the proof that usage, invoices and ledger say the same for every tenant (I30). Reads only.

Dashboard, usage API, invoices and exports all come through `billing.usage.usage_by`; here its sums are compared with
what the journal and the finalized documents hold:

    usage of all time         = debits of the tenant's usage transactions
    postpaid usage in the cut = usage lines of its invoices
    unbilled in the journal   = postpaid usage of all time - what invoices in force took
"""

import sqlite3
from typing import NamedTuple

from billing.invoices import store
from billing.invoices.document import Document, decode_document
from billing.invoices.postings import TX_INVOICE, TX_VOID
from billing.ledger.rules import receivable
from billing.ledger.views import balance_of
from billing.usage import usage_by


class Difference(NamedTuple):
    """Two figures that must be equal and are not, in nanos."""

    tenant: str
    currency: str
    what: str
    expected_nanos: int
    found_nanos: int


class Equality(NamedTuple):
    """How many tenants were compared, and where they differ."""

    tenants: int
    differences: tuple[Difference, ...]


def compare_all(db: sqlite3.Connection) -> Equality:
    """Every tenant that the ledger knows, one after another."""
    tenants = [name for (name,) in db.execute("SELECT name FROM tenant ORDER BY name")]
    found = [difference for tenant in tenants for difference in compare(db, tenant)]
    return Equality(len(tenants), tuple(found))


def compare(db: sqlite3.Connection, tenant: str) -> list[Difference]:
    """Where the figures of one tenant differ."""
    used = _sums(db, tenant)
    posted = {currency: _usage_debits(db, tenant, currency) for currency in used}
    found = [
        Difference(tenant, currency, "usage and ledger", posted[currency], amount)
        for currency, amount in used.items()
        if posted[currency] != amount
    ]
    account, cut = store.find_account(db, tenant), store.find_cut(db, tenant)
    if account is None:
        return found
    currency, documents = account.currency, _documents(db, tenant)
    covered = _sums(db, tenant, (cut.event_id, cut.end_ns), is_prepaid=False).get(currency, 0) if cut else 0
    billed = sum(line.exact_nanos for one in documents for line in one.lines if line.kind == "usage")
    if covered != billed:
        found.append(Difference(tenant, currency, "usage and invoices", billed, covered))
    unbilled = balance_of(db, receivable(tenant), currency)
    expected = _debits(db, tenant, receivable(tenant), currency) - _taken(db, tenant, receivable(tenant), currency)
    if unbilled != expected:
        found.append(Difference(tenant, currency, "invoices and ledger", expected, unbilled))
    return found


def _sums(
    db: sqlite3.Connection,
    tenant: str,
    covered: tuple[int, int] | None = None,
    *,
    is_prepaid: bool | None = None,
) -> dict[str, int]:
    sums: dict[str, int] = {}
    for row in usage_by(db, ("model",), tenant=tenant, covered=covered, is_prepaid=is_prepaid):
        sums[row.currency] = sums.get(row.currency, 0) + row.charge_nanos
    return sums


def _documents(db: sqlite3.Connection, tenant: str) -> list[Document]:
    rows = db.execute("SELECT body FROM invoice WHERE tenant = ? AND kind = 'invoice'", (tenant,))
    return [decode_document(body) for (body,) in rows]


def _usage_debits(db: sqlite3.Connection, tenant: str, currency: str) -> int:
    """What the tenant's usage transactions debit, on whatever account (postpaid or prepaid)."""
    return _exact(db, "t.kind = 'usage' AND e.amount_nanos > 0", (tenant, currency))


def _debits(db: sqlite3.Connection, tenant: str, account: str, currency: str) -> int:
    """All entries on an account but those of invoices."""
    kinds = f"t.kind NOT IN ('{TX_INVOICE}', '{TX_VOID}') AND a.name = ?"
    return _exact(db, kinds, (tenant, currency, account))


def _taken(db: sqlite3.Connection, tenant: str, account: str, currency: str) -> int:
    """What invoices in force took from an account, by their documents."""
    taken = 0
    for document in _documents(db, tenant):
        if document.currency == currency and store.state_in(db, document).status != "void":
            taken += sum(line.exact_nanos for line in document.lines if line.account == account)
    return taken


def _exact(db: sqlite3.Connection, condition: str, values: tuple[str, ...]) -> int:
    quotients, rests = db.execute(_SUM + condition, values).fetchone()
    return int(quotients) * 1_000_000_000 + int(rests)


_SUM = (
    "SELECT COALESCE(SUM(e.amount_nanos / 1000000000), 0), COALESCE(SUM(e.amount_nanos % 1000000000), 0)"
    " FROM entry e JOIN account a USING (account_id) JOIN journal_tx t USING (tx_id)"
    " JOIN tenant n USING (tenant_id) WHERE n.name = ? AND a.currency = ? AND "
)
