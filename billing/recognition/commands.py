"""Owns the money commands of revenue recognition: a tenant's fees up to an instant, and breakage of expired prepaid.

| event | debit | credit |
|---|---|---|
| fees earned | contract_liability:subscription:{tenant} | revenue:subscription |
| a prepaid grant expires | contract_liability:prepaid:{tenant}:{grant} | revenue:breakage |
"""

from typing import Any, Final

import msgspec

from billing.invoices import store as invoices
from billing.invoices.assemble import InvoiceError
from billing.invoices.desk import Verb
from billing.invoices.postings import TX_BREAKAGE, TX_RECOGNITION, subscription_liability
from billing.ledger.accounts import find_kind
from billing.ledger.journal import Journal
from billing.ledger.rules import Line
from billing.ledger.views import balance_of
from billing.money import is_currency
from billing.recognition import store
from billing.recognition.schedule import earned_nanos

REVENUE: Final = "revenue:subscription"
BREAKAGE: Final = "revenue:breakage"


class Run(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Recognise what a tenant's fees have earned by `through_ns`."""

    tenant: str
    through_ns: int


class Expire(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A prepaid grant has expired: what is left of it is ours, where there is no right to a refund."""

    tenant: str
    grant: str
    currency: str


class Schedule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A prepaid grant without a right to a refund expires at `expires_ns`; control lets it expire then."""

    tenant: str
    grant: str
    currency: str
    expires_ns: int


def run(journal: Journal, body: Run, now_ns: int) -> Any:
    """Post the difference between what is earned and what was recognised, one transaction per currency.

    Raises InvoiceError: the instant lies ahead of now, or before what was recognised already.
    """
    before = store.recognised_until(journal.db, body.tenant)
    if not before <= body.through_ns <= now_ns:
        raise InvoiceError("field", f"through_ns: must be from {before}, recognised so far, to now")
    sums: dict[str, int] = {}
    found: list[tuple[int, str, int]] = []
    for one in store.open_contracts(journal.db, body.tenant):
        amount = earned_nanos(one.contract, body.through_ns) - one.recognised_nanos
        if amount:
            found.append((one.contract_id, one.currency, amount))
            sums[one.currency] = sums.get(one.currency, 0) + amount
    posted = {currency: _post(journal, body.tenant, currency, amount, now_ns) for currency, amount in sums.items()}
    for contract_id, currency, amount in found:
        journal.execute(
            "INSERT INTO recognition VALUES (?, ?, ?, ?)", (contract_id, body.through_ns, amount, posted[currency])
        )
    journal.execute(
        "INSERT INTO recognition_run VALUES (?, ?, ?) ON CONFLICT DO NOTHING", (body.tenant, body.through_ns, now_ns)
    )
    return {"recognised_nanos": sums, "contracts": len(found)}


def schedule(journal: Journal, body: Schedule, now_ns: int) -> Any:
    """Note when a grant expires. The same again is fine; another time for it is a conflict, as it was promised.

    Raises InvoiceError: a grant, currency or time that is none.
    """
    account = _account(body.tenant, body.grant)
    if not body.tenant or not body.grant or find_kind(account) is None or not is_currency(body.currency):
        raise InvoiceError("field", "grant, currency: needs the name of a prepaid account and a known currency")
    known = store.expiry_of(journal.db, body.tenant, body.grant, body.currency)
    if known is None and not now_ns <= body.expires_ns < 2**63:
        raise InvoiceError("field", f"expires_ns: {body.expires_ns} is in the past")
    if known not in {None, body.expires_ns}:
        raise InvoiceError("conflict", f"{account} expires at {known} already")
    if known is None:
        journal.execute(
            "INSERT INTO prepaid_expiry VALUES (?, ?, ?, ?, ?)",
            (body.tenant, body.grant, body.currency, body.expires_ns, now_ns),
        )
    return {"account": account, "expires_ns": body.expires_ns}


def expire(journal: Journal, body: Expire, now_ns: int) -> Any:
    """Release what is left of an expired grant. Expiring it again finds nothing left.

    Raises InvoiceError: it is scheduled and its time has not come, or the account is overdrawn.
    """
    account = _account(body.tenant, body.grant)
    scheduled = store.expiry_of(journal.db, body.tenant, body.grant, body.currency)
    if scheduled is not None and scheduled > now_ns:
        raise InvoiceError("too_early", f"{account} expires at {scheduled}")
    left_nanos = -balance_of(journal.db, account, body.currency)
    if left_nanos < 0:
        raise InvoiceError("conflict", f"{account} is overdrawn by {-left_nanos} nanos: nothing can expire")
    if left_nanos:
        lines = (Line(account, body.currency, left_nanos, 0), Line(BREAKAGE, body.currency, -left_nanos, 0))
        journal.post(TX_BREAKAGE, body.tenant, now_ns, lines)
        event = {"grant": body.grant, "amount_nanos": left_nanos, "currency": body.currency}
        invoices.add_event(journal.db, body.tenant, "prepaid.expired", event, now_ns)
    if scheduled is not None:
        journal.execute(
            "INSERT INTO prepaid_expired VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (body.tenant, body.grant, body.currency, left_nanos, now_ns),
        )
    return {"released_nanos": left_nanos}


def _account(tenant: str, grant: str) -> str:
    return f"contract_liability:prepaid:{tenant}:{grant}"


def _post(journal: Journal, tenant: str, currency: str, amount_nanos: int, now_ns: int) -> int:
    lines = [
        Line(subscription_liability(tenant), currency, amount_nanos, 0),
        Line(REVENUE, currency, -amount_nanos, 0),
    ]
    return journal.post(TX_RECOGNITION, tenant, now_ns, lines)


VERBS: Final[dict[str, Verb[Any]]] = {
    "recognition.run": Verb(Run, run),
    "prepaid.expire": Verb(Expire, expire),
    "prepaid.schedule": Verb(Schedule, schedule),
}
