"""Owns subscriptions: a fee per month or year, billed in advance, changed, paused and ended by the second.

A subscription writes pending items only; the next invoice bills them. Each item names the time it pays for, which is
how revenue recognition knows what is earned (a fee is a liability until its time has passed). Coupons on fees are items
of their own beside each fee, over the same liability: `billing.invoices.fee_coupons`.
"""

import os
from typing import Any, Final, Literal

import msgspec

from billing.invoices import store
from billing.invoices.assemble import InvoiceError, Item, day_of
from billing.invoices.commands import MINOR_MAX, NS_PER_DAY
from billing.invoices.desk import Verb
from billing.invoices.fee_coupons import Fee, FeeDiscount, take_coupons
from billing.invoices.period import Interval, Period, boundary_ns, floor_s, index_at, period_of
from billing.invoices.postings import subscription_liability
from billing.invoices.proration import share
from billing.ledger.journal import Journal
from billing.money import from_minor

TRIAL_DAYS_MAX: Final = 365
#: Periods that one renewal bills at most: a clock set to the year 3000 must not write a thousand fees.
RENEWALS_MAX: Final = 24
SUBSCRIPTIONS_PAGE: Final = 1_000
_STATES = Literal["active", "paused", "cancelled"]


class Subscription(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One subscription. Periods count from `anchor_ns`, which lies behind a trial; fees up to `next_ns` are asked."""

    subscription_id: str
    tenant: str
    name: str
    fee_minor: int
    anchor_ns: int
    zone: str
    next_ns: int
    interval: Interval = "month"
    status: _STATES = "active"
    #: Ends with the period instead of renewing.
    ends_with_period: bool = False
    tax_category: str = "standard"
    #: The plan that the fee is for, which coupons of some plans go by; "": none.
    plan: str = ""
    #: What coupons take off the fee of the period that was asked last.
    discounts: tuple[FeeDiscount, ...] = ()


class Start(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A new subscription from now, or from the end of a trial, on."""

    tenant: str
    name: str
    fee_minor: int
    interval: Interval = "month"
    trial_days: int = 0
    tax_category: str = "standard"
    plan: str = ""


class Change(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Another fee (name, plan) from now on: the rest of the paid period is given back and asked again."""

    subscription_id: str
    fee_minor: int
    name: str | None = None
    plan: str | None = None


class Cancel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """End now (the rest is given back) or with the paid period."""

    subscription_id: str
    when: Literal["now", "period_end"] = "period_end"


class Which(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One subscription."""

    subscription_id: str


class Renew(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Ask the fees of every period of a tenant's subscriptions that has begun."""

    tenant: str


def start(journal: Journal, body: Start, now_ns: int) -> Any:
    """Create it and ask the first fee. Raises InvoiceError: no account, or a field out of range."""
    account = store.get_account(journal.db, body.tenant)
    _check_fee(body.fee_minor)
    if not 0 <= body.trial_days <= TRIAL_DAYS_MAX or not 1 <= len(body.name) <= 100 or len(body.plan) > 100:
        raise InvoiceError(
            "field", f"trial_days: from 0 to {TRIAL_DAYS_MAX}; name: 1 to 100 characters, plan: at most 100"
        )
    anchor_ns = floor_s(now_ns) + body.trial_days * NS_PER_DAY
    made = Subscription(
        subscription_id=f"sub_{now_ns // 1_000_000:012x}{os.urandom(5).hex()}",
        tenant=body.tenant,
        name=body.name,
        fee_minor=body.fee_minor,
        interval=body.interval,
        anchor_ns=anchor_ns,
        next_ns=anchor_ns,
        zone=account.zone,
        tax_category=body.tax_category,
        plan=body.plan,
    )
    return _save(journal, _renewed(journal, made, now_ns), now_ns, "subscription.started")


def change(journal: Journal, body: Change, now_ns: int) -> Any:
    """Change the fee. What was paid for the rest of the period comes back, the new fee's share is asked.

    Coupons go with the fee: their part comes back as well, and those that count now reduce the new fee's share.
    """
    _check_fee(body.fee_minor)
    found = _renewed(journal, _live(journal, body.subscription_id), now_ns)
    changed = msgspec.structs.replace(
        found,
        fee_minor=body.fee_minor,
        name=body.name or found.name,
        plan=found.plan if body.plan is None else body.plan,
    )
    period = _paid_period(found, now_ns)
    if period is not None:
        changed = _discounted(journal, changed, period, now_ns)
        if (changed.fee_minor, changed.discounts) != (found.fee_minor, found.discounts):
            _prorate(journal, found, now_ns, -1, "change: rest given back")
            _prorate(journal, changed, now_ns, 1, "change: rest of the period")
    return _save(journal, changed, now_ns, "subscription.changed")


def cancel(journal: Journal, body: Cancel, now_ns: int) -> Any:
    """End it. A subscription that has ended stays ended."""
    found = _get(journal, body.subscription_id)
    if found.status == "cancelled":
        return msgspec.to_builtins(found)
    if body.when == "period_end" and found.status == "active" and found.next_ns > now_ns:
        return _save(journal, msgspec.structs.replace(found, ends_with_period=True), now_ns, "subscription.ending")
    if found.status == "active" and not found.ends_with_period:
        found = _renewed(journal, found, now_ns)
    if found.status == "active":
        _prorate(journal, found, now_ns, -1, "cancelled: rest given back")
    ended = msgspec.structs.replace(found, status="cancelled")
    return _save(journal, ended, now_ns, "subscription.cancelled")


def pause(journal: Journal, body: Which, now_ns: int) -> Any:
    """Give the rest of the paid period back and ask nothing until it is resumed."""
    found = _renewed(journal, _live(journal, body.subscription_id), now_ns)
    _prorate(journal, found, now_ns, -1, "paused: rest given back")
    return _save(journal, msgspec.structs.replace(found, status="paused"), now_ns, "subscription.paused")


def resume(journal: Journal, body: Which, now_ns: int) -> Any:
    """Go on: the rest of the current period is asked, and the following ones as before."""
    found = _get(journal, body.subscription_id)
    if found.status != "paused":
        raise InvoiceError("subscription_state", f"subscription {found.subscription_id} is {found.status}, not paused")
    index = index_at(found.anchor_ns, found.zone, found.interval, max(now_ns, found.anchor_ns))
    next_ns = boundary_ns(found.anchor_ns, found.zone, found.interval, index + 1)
    resumed = msgspec.structs.replace(
        found, status="active", next_ns=next_ns if now_ns >= found.anchor_ns else found.anchor_ns
    )
    period = _paid_period(resumed, now_ns)
    if period is not None:
        resumed = _discounted(journal, resumed, period, now_ns)
    _prorate(journal, resumed, now_ns, 1, "resumed: rest of the period")
    return _save(journal, resumed, now_ns, "subscription.resumed")


def renew(journal: Journal, body: Renew, now_ns: int) -> Any:
    """Ask what is due. Repeating it asks nothing twice: an item's source names subscription and period."""
    renewed = []
    for found in list_subscriptions(journal.db, tenant=body.tenant):
        if found.status != "active" or found.next_ns > now_ns:
            continue
        if found.ends_with_period:
            ended = msgspec.structs.replace(found, status="cancelled")
            _save(journal, ended, now_ns, "subscription.cancelled")
            continue
        _save(journal, _renewed(journal, found, now_ns), now_ns, "subscription.renewed")
        renewed.append(found.subscription_id)
    return {"renewed": renewed}


def list_subscriptions(db: Any, *, tenant: str) -> list[Subscription]:
    """A tenant's subscriptions, ended ones included, oldest first; at most SUBSCRIPTIONS_PAGE."""
    rows = db.execute(
        "SELECT body FROM subscription WHERE tenant = ? ORDER BY subscription_id LIMIT ?", (tenant, SUBSCRIPTIONS_PAGE)
    )
    return [msgspec.json.decode(body, type=Subscription) for (body,) in rows]


def due_tenants(db: Any, now_ns: int) -> list[str]:
    """Tenants with a fee to ask or a subscription to end by now."""
    rows = db.execute(
        "SELECT DISTINCT tenant FROM subscription WHERE status = 'active' AND next_ns <= ? ORDER BY tenant LIMIT ?",
        (now_ns, SUBSCRIPTIONS_PAGE),
    )
    return [tenant for (tenant,) in rows]


def _renewed(journal: Journal, found: Subscription, now_ns: int) -> Subscription:
    """Ask the fee of each period that has begun, less what coupons take off it."""
    for _ in range(RENEWALS_MAX):
        if found.next_ns > now_ns:
            break
        index = index_at(found.anchor_ns, found.zone, found.interval, found.next_ns)
        period = period_of(found.anchor_ns, found.zone, found.interval, index)
        found = _discounted(journal, found, period, now_ns)
        _ask(journal, found, period, found.fee_minor, ("subscription", "fee"), now_ns)
        _ask_discounts(journal, found, period, 1, "", now_ns)
        found = msgspec.structs.replace(found, next_ns=period.end_ns)
    return found


def _prorate(journal: Journal, found: Subscription, now_ns: int, sign: int, why: str) -> None:
    """Items over the fee's and its discounts' shares of the rest of the paid period; none when nothing is paid."""
    period = _paid_period(found, now_ns)
    if period is None:
        return
    rest = Period(floor_s(now_ns), period.end_ns)
    _ask(journal, found, rest, sign * share(found.fee_minor, period, rest), ("proration", why), now_ns)
    _ask_discounts(journal, found, rest, sign, f", {why}", now_ns)


def _discounted(journal: Journal, found: Subscription, period: Period, now_ns: int) -> Subscription:
    """With the discounts that count for the fee of `period`."""
    fee = Fee(
        subscription_id=found.subscription_id,
        tenant=found.tenant,
        plan=found.plan,
        amount_minor=found.fee_minor,
        currency=store.get_account(journal.db, found.tenant).currency,
        anchor_ns=found.anchor_ns,
        zone=found.zone,
        interval=found.interval,
        period=period,
    )
    return msgspec.structs.replace(found, discounts=take_coupons(journal, fee, now_ns))


def _ask_discounts(  # noqa: PLR0917 - as `_ask`
    journal: Journal, found: Subscription, rest: Period, sign: int, why: str, now_ns: int
) -> None:
    """Items over what coupons take off `rest` (`sign` 1), or took off and is not any more (-1)."""
    for one in found.discounts:
        span, minor = one.part(rest)
        _ask(journal, found, span, -sign * minor, ("coupon", f"coupon {one.code}{why}"), now_ns)


def _paid_period(found: Subscription, now_ns: int) -> Period | None:
    """The current period, where its fee was asked; None in a trial, or when nothing is paid ahead."""
    if found.next_ns <= now_ns or now_ns < found.anchor_ns:
        return None
    index = index_at(found.anchor_ns, found.zone, found.interval, now_ns)
    return period_of(found.anchor_ns, found.zone, found.interval, index)


def _ask(  # noqa: PLR0917 - what an item is, in its order
    journal: Journal,
    found: Subscription,
    span: Period,
    amount_minor: int,
    what: tuple[Literal["subscription", "proration", "coupon"], str],
    now_ns: int,
) -> None:
    """Add the item of a fee, of a part of one, or of what a coupon takes off."""
    kind, why = what
    if not amount_minor:
        return
    account = store.get_account(journal.db, found.tenant)
    first, last = day_of(span.start_ns, found.zone), day_of(span.end_ns, found.zone)
    (serial,) = journal.execute("SELECT COALESCE(MAX(item_id), 0) + 1 FROM pending_item").fetchone()
    # A fee is asked once per period; a proration once per change, and there may be several in one second.
    source = f"{found.subscription_id}:{kind}:{span.start_ns}" + ("" if kind == "subscription" else f":{serial}")
    item = Item(
        0,
        kind,
        f"{found.name}, {why}: {first} to {last}",
        subscription_liability(found.tenant),
        from_minor(amount_minor, account.currency),
        found.tax_category,
        span.start_ns,
        span.end_ns,
    )
    store.add_item(journal.db, found.tenant, source, item, now_ns)


def _save(journal: Journal, made: Subscription, now_ns: int, event: str) -> Any:
    body = msgspec.json.encode(made, order="deterministic").decode()
    journal.execute(
        "INSERT INTO subscription VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (subscription_id) DO UPDATE SET"
        " status = excluded.status, next_ns = excluded.next_ns, body = excluded.body, updated_ns = excluded.updated_ns",
        (made.subscription_id, made.tenant, made.status, made.next_ns, body, now_ns),
    )
    answer = msgspec.to_builtins(made)
    store.add_event(journal.db, made.tenant, event, answer, now_ns)
    return answer


def _get(journal: Journal, subscription_id: str) -> Subscription:
    row = journal.execute("SELECT body FROM subscription WHERE subscription_id = ?", (subscription_id,)).fetchone()
    if row is None:
        raise InvoiceError("not_found", f"subscription {subscription_id!r} does not exist")
    return msgspec.json.decode(row[0], type=Subscription)


def _live(journal: Journal, subscription_id: str) -> Subscription:
    found = _get(journal, subscription_id)
    if found.status != "active":
        raise InvoiceError("subscription_state", f"subscription {subscription_id} is {found.status}, not active")
    return found


def _check_fee(fee_minor: int) -> None:
    if not 0 <= fee_minor <= MINOR_MAX:
        raise InvoiceError("amount", f"fee_minor: {fee_minor} must be from 0 to {MINOR_MAX}")


VERBS: Final[dict[str, Verb[Any]]] = {
    "subscription.start": Verb(Start, start),
    "subscription.change": Verb(Change, change),
    "subscription.cancel": Verb(Cancel, cancel),
    "subscription.pause": Verb(Which, pause),
    "subscription.resume": Verb(Which, resume),
    "subscription.renew": Verb(Renew, renew),
}
