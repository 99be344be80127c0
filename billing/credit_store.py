"""Owns promotional credit and redeemed coupons in the ledger's database, and the commands that create them.

Credit is bookkeeping beside the journal until a month uses it: then the month's invoice carries it as contra revenue
(MONEY.md §3). Rows are only ever added; what is left of a grant is its amount less the sum of its burns.
"""

import sqlite3
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from billing.coupons import Coupon, Redeemed
from billing.credits import (
    AMOUNT_NANOS_MAX,
    GRANTS_MAX,
    PRIORITY_MAX,
    ROLLOVERS_MAX,
    Burn,
    Grant,
    Holding,
    roll_over,
)
from billing.invoices import store
from billing.invoices.assemble import InvoiceError
from billing.invoices.desk import Verb
from billing.ledger.journal import Journal

#: In `credit_burn.month_start_ns` of what left a grant because it rolled over or lapsed then.
ROLLED: Final = -1
COUPONS_PER_TENANT_MAX: Final = 100
_MODELS_MAX: Final = 1_000


class GrantCredit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Promotional credit for a tenant. `source` is its name per tenant: it is granted once."""

    tenant: str
    source: str
    amount_nanos: int
    expires_ns: int | None = None
    priority: int = 100
    models: tuple[str, ...] = ()
    rollovers: int = 0
    rollover_nanos_max: int | None = None


class Redeem(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A coupon for a tenant; the definition is kept as it is now."""

    tenant: str
    coupon: Coupon


class Redemption(NamedTuple):
    """A redeemed coupon and when that was."""

    coupon: Coupon
    redeemed_ns: int


def grant_credit(journal: Journal, body: GrantCredit, now_ns: int) -> Any:
    """Add a grant. Raises InvoiceError: no account, a field out of range, the source was used before."""
    account = store.get_account(journal.db, body.tenant)
    _check_grant(body, now_ns)
    grant_id = f"{body.tenant}:{body.source}"
    if find_grant(journal.db, grant_id) is not None:
        raise InvoiceError("conflict", f"source: {body.source!r} was granted to {body.tenant!r} before")
    if len(holdings(journal.db, body.tenant)) >= GRANTS_MAX:
        raise InvoiceError("too_many_grants", f"tenant {body.tenant!r} has {GRANTS_MAX} grants in use")
    grant = Grant(
        grant_id=grant_id,
        kind="promo",
        amount_nanos=body.amount_nanos,
        currency=account.currency,
        granted_ns=now_ns,
        expires_ns=body.expires_ns,
        priority=body.priority,
        models=body.models,
        rollovers=body.rollovers,
        rollover_nanos_max=body.rollover_nanos_max,
    )
    add_grant(journal, body.tenant, grant, now_ns)
    return msgspec.to_builtins(grant)


def redeem(journal: Journal, body: Redeem, now_ns: int) -> Any:
    """Redeem a coupon. Raises InvoiceError: no account, closed, used up, another currency, redeemed before."""
    account = store.get_account(journal.db, body.tenant)
    coupon = body.coupon
    if coupon.currency not in {"", account.currency}:
        raise InvoiceError(
            "currency", f"coupon {coupon.code} is in {coupon.currency}, the account in {account.currency}"
        )
    if coupon.redeem_until_ns is not None and now_ns >= coupon.redeem_until_ns:
        raise InvoiceError("coupon_closed", f"coupon {coupon.code} can no longer be redeemed")
    found = redemptions(journal.db, body.tenant)
    if any(one.coupon.code == coupon.code for one in found):
        raise InvoiceError("conflict", f"coupon {coupon.code} was redeemed by {body.tenant!r} before")
    if len(found) >= COUPONS_PER_TENANT_MAX:
        raise InvoiceError("too_many_coupons", f"tenant {body.tenant!r} has redeemed {COUPONS_PER_TENANT_MAX} coupons")
    (used,) = journal.execute("SELECT COUNT(*) FROM coupon_redemption WHERE code = ?", (coupon.code,)).fetchone()
    if coupon.redemptions_max and used >= coupon.redemptions_max:
        raise InvoiceError("coupon_used_up", f"coupon {coupon.code} was redeemed {used} times, as often as it may be")
    text = msgspec.json.encode(coupon, order="deterministic").decode()
    journal.execute("INSERT INTO coupon_redemption VALUES (?, ?, ?, ?)", (body.tenant, coupon.code, text, now_ns))
    return {"tenant": body.tenant, "code": coupon.code, "redeemed_ns": now_ns}


def add_grant(journal: Journal, tenant: str, grant: Grant, now_ns: int) -> None:
    text = msgspec.json.encode(grant, order="deterministic").decode()
    values = (grant.grant_id, tenant, grant.amount_nanos, text, now_ns)
    journal.execute("INSERT INTO credit_grant VALUES (?, ?, ?, ?, ?)", values)


def add_burn(journal: Journal, month_start_ns: int, burnt: Burn, now_ns: int) -> None:
    """Take from a grant, or give back to it (negative)."""
    journal.execute(
        "INSERT INTO credit_burn (grant_id, month_start_ns, amount_nanos, at_ns) VALUES (?, ?, ?, ?)",
        (burnt.grant_id, month_start_ns, burnt.amount_nanos, now_ns),
    )


def find_grant(db: sqlite3.Connection, grant_id: str) -> Grant | None:
    row = db.execute("SELECT body FROM credit_grant WHERE grant_id = ?", (grant_id,)).fetchone()
    return None if row is None else msgspec.json.decode(row[0], type=Grant)


def holdings(db: sqlite3.Connection, tenant: str, *, without_month_ns: int | None = None) -> list[Holding]:
    """A tenant's grants of which something is left, oldest first. `without_month_ns`: as if that month used none."""
    rows = db.execute(
        "SELECT g.body, COALESCE(SUM(b.amount_nanos), 0) FROM credit_grant g LEFT JOIN credit_burn b"
        " ON b.grant_id = g.grant_id AND b.month_start_ns IS NOT ? WHERE g.tenant = ?"
        " GROUP BY g.grant_id ORDER BY g.created_ns, g.grant_id",
        (without_month_ns, tenant),
    )
    found = []
    for body, burnt in rows:
        grant = msgspec.json.decode(body, type=Grant)
        if burnt < grant.amount_nanos:
            found.append(Holding(grant, grant.amount_nanos - burnt))
    return found


def burns_of(db: sqlite3.Connection, tenant: str, month_start_ns: int) -> dict[str, int]:
    """What a month has used of each grant so far."""
    rows = db.execute(
        "SELECT b.grant_id, SUM(b.amount_nanos) FROM credit_burn b JOIN credit_grant g USING (grant_id)"
        " WHERE g.tenant = ? AND b.month_start_ns = ? GROUP BY b.grant_id",
        (tenant, month_start_ns),
    )
    return dict(rows)


def redemptions(db: sqlite3.Connection, tenant: str) -> list[Redemption]:
    """A tenant's coupons in the order of redemption."""
    rows = db.execute(
        "SELECT body, redeemed_ns FROM coupon_redemption WHERE tenant = ? ORDER BY redeemed_ns, code", (tenant,)
    )
    return [Redemption(msgspec.json.decode(body, type=Coupon), at_ns) for body, at_ns in rows]


def redeemed_before(found: Sequence[Redemption], end_ns: int, months_used: dict[str, int]) -> list[Redeemed]:
    """The coupons that count for a month that ends at `end_ns`."""
    return [Redeemed(coupon, months_used.get(coupon.code, 0)) for coupon, at_ns in found if at_ns < end_ns]


def roll_expired(journal: Journal, tenant: str, at_ns: int, now_ns: int) -> None:
    """Turn what is left of grants that expired by `at_ns` into the grants that follow them.

    A grant rolls over once: what a month that is rated again gives back to it afterwards lapses.
    """
    waiting = holdings(journal.db, tenant)
    while waiting:
        holding = waiting.pop()
        made = roll_over(holding, at_ns)
        if made is None or find_grant(journal.db, made.grant_id) is not None:
            continue
        add_burn(journal, ROLLED, Burn(holding.grant.grant_id, holding.left_nanos), now_ns)
        add_grant(journal, tenant, made, now_ns)
        waiting.append(Holding(made, made.amount_nanos))


def _check_grant(body: GrantCredit, now_ns: int) -> None:
    if not 1 <= len(body.source) <= 100 or "~" in body.source:
        raise InvoiceError("field", "source: needs 1 to 100 characters other than ~")
    if not 0 < body.amount_nanos <= AMOUNT_NANOS_MAX:
        raise InvoiceError("amount", f"amount_nanos: {body.amount_nanos} must be from 1 to {AMOUNT_NANOS_MAX}")
    if body.expires_ns is not None and not now_ns < body.expires_ns < 2**63:
        raise InvoiceError("field", f"expires_ns: {body.expires_ns} must be in the future")
    if not 0 <= body.priority <= PRIORITY_MAX:
        raise InvoiceError("field", f"priority: {body.priority} must be from 0 to {PRIORITY_MAX}")
    if not 0 <= body.rollovers <= ROLLOVERS_MAX or (body.rollovers and body.expires_ns is None):
        raise InvoiceError("field", f"rollovers: from 0 to {ROLLOVERS_MAX}, and only with expires_ns")
    if body.rollover_nanos_max is not None and not 0 <= body.rollover_nanos_max <= AMOUNT_NANOS_MAX:
        raise InvoiceError(
            "field", f"rollover_nanos_max: {body.rollover_nanos_max} must be from 0 to {AMOUNT_NANOS_MAX}"
        )
    if len(body.models) > _MODELS_MAX or not all(0 < len(model) <= 256 for model in body.models):
        raise InvoiceError("field", f"models: at most {_MODELS_MAX} names of 1 to 256 characters")


VERBS: Final[dict[str, Verb[Any]]] = {
    "credit.grant": Verb(GrantCredit, grant_credit),
    "coupon.redeem": Verb(Redeem, redeem),
}
