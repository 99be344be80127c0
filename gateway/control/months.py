"""Owns which months of a tenant are rated, by which plans and money, and that it happens before the invoice over them.

Charge months are calendar months from the billing account's anchor, in its zone. A month is rated by the money that
each plan had when the month began, whatever was applied since: the past is never repriced.
"""

import os
import sqlite3
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from billing import credit_store
from billing.invoices import gathering, store
from billing.invoices.account import Account
from billing.invoices.period import Period, floor_s, index_at, period_of
from billing.invoices.proration import share
from billing.settlement import MonthPlan, late_runs, rated_until, run_over
from billing.tally import TAIL_EVENTS_MAX, left
from gateway.control.agreements import Agreement, agreements_of
from gateway.control.errors import invalid
from gateway.control.money import Money
from gateway.control.plans import terms_at
from gateway.control.registry import Registry

#: Months that one round looks back for such as were never rated.
MONTHS_MAX: Final = 24
#: Rated months that one round looks back for usage that came in late.
LATE_MONTHS_MAX: Final = 3
#: Commands that make an invoice.
INVOICING: Final = frozenset({"invoice.draft", "invoice.bill"})
#: Workers may go on under the old plan for a moment when it changes at a month's very beginning.
_LAG_NS: Final = 3_600_000_000_000


class Months:
    """Rates months through the meter. Blocking, for worker threads."""

    def __init__(self, money: Money, registry: Registry) -> None:
        self._money = money
        self._registry = registry

    def settle_due(self, actor: str, tenant: str, until_ns: int) -> None:
        """Rate every month that ended by `until_ns` and never was, then those to which late usage came in.

        A month without anything to rate (no plan with money, no coupon, no credit) is left alone. Raises ControlError.
        """
        for month, span in self._money.read(lambda db: unrated(db, tenant, until_ns)):
            body = self.body(tenant, month, span)
            if body["plans"] or self._money.read(lambda db: _has_credit(db, tenant)):
                self._settle(actor, f"month:{tenant}:{span.start_ns}", body)
        for run in self._money.read(lambda db: late_runs(db, tenant, until_ns, limit=LATE_MONTHS_MAX)):
            month, span = self._month_and_span(tenant, run.start_ns)
            operation_id = f"month:{tenant}:{span.start_ns}:{run.n + 1}"
            self._settle(actor, operation_id, self.body(tenant, month, span))

    def settle_for(self, actor: str, verb: str, body: dict[str, Any]) -> None:
        """Before a command that makes an invoice: rate the months that it will be about. Raises ControlError."""
        tenant, until_ns = body.get("tenant"), body.get("until_ns")
        if verb in INVOICING and isinstance(tenant, str) and isinstance(until_ns, int):
            # A month that is not over cannot be rated: an invoice into the middle of it bills list prices so far.
            self.settle_due(actor, tenant, min(until_ns, self._registry.clock.wall_ns()))
            self.gather_invoice(tenant, until_ns)

    def gather_invoice(self, tenant: str, until_ns: int) -> None:
        """Have what an invoice will bill added up in parts, where that is much. Raises ControlError."""
        if not 0 <= until_ns < 2**63:
            return  # the command that follows refuses it
        body = {"tenant": tenant, "until_ns": until_ns}
        behind = self._money.read(lambda db: gathering.left(db, tenant, until_ns))
        while behind > gathering.TAIL_EVENTS_MAX:
            answer = self._money.run_unaudited("invoice.gather", f"gather:{os.urandom(16).hex()}", body)
            behind = answer["left"]

    def settle(self, actor: str, tenant: str, at_ns: int, operation_id: str) -> Any:
        """Rate (again) the month that `at_ns` lies in; the run. Raises ControlError, also while it is not over."""
        month, span = self._month_and_span(tenant, at_ns)
        return self._settle(actor, operation_id, self.body(tenant, month, span))

    def _settle(self, actor: str, operation_id: str, body: dict[str, Any]) -> Any:
        """Have the month added up in parts, between which the meter posts, as long as that is much; then rate it."""
        time = {name: body[name] for name in ("tenant", "start_ns", "end_ns")}
        behind = self._money.read(lambda db: left(db, **time))
        while behind > TAIL_EVENTS_MAX:
            behind = self._money.run_unaudited("month.gather", f"gather:{os.urandom(16).hex()}", time)["left"]
        return self._money.run(actor, "month.settle", operation_id, body)

    def _month_and_span(self, tenant: str, at_ns: int) -> tuple[Period, Period]:
        return self._money.read(lambda db: _month_and_span(db, tenant, at_ns))

    def body(self, tenant: str, month: Period, span: Period) -> dict[str, Any]:
        """The `month.settle` command over `span`, the part of `month` that is its own."""
        plans = self._registry.read(lambda tx, _: month_plans(tx, tenant, month, span))
        return {
            "tenant": tenant,
            "start_ns": span.start_ns,
            "end_ns": span.end_ns,
            "plans": [msgspec.to_builtins(one) for one in plans],
        }


def month_plans(tx: sa.Connection, tenant: str, month: Period, span: Period) -> list[MonthPlan]:
    """The plans with money that were in force at some time in `span`, each with its part of the month's minimum."""
    agreements = agreements_of(tx, tenant, span.start_ns - _LAG_NS, span.end_ns)
    found = []
    for plan in sorted({one.plan for one in agreements}):
        at = terms_at(tx, plan, span.start_ns)
        if at is None or at.terms is None:
            continue
        own = [one for one in agreements if one.plan == plan]
        minimum = minimum_part(at.terms.minimum_nanos, month, span, own)
        found.append(MonthPlan(plan=plan, version=at.version, terms=at.terms, minimum_nanos=minimum))
    return found


def minimum_part(minimum_nanos: int, month: Period, span: Period, agreements: list[Agreement]) -> int:
    """What of a month's minimum belongs to the seconds of `span` in which the plan was in force."""
    total = 0
    for one in agreements:
        start_ns = max(span.start_ns, floor_s(one.since_ns))
        end_ns = span.end_ns if one.until_ns is None else min(span.end_ns, floor_s(one.until_ns))
        if start_ns < end_ns:
            total += share(minimum_nanos, month, Period(start_ns, end_ns))
    return total


def month_at(account: Account, at_ns: int) -> Period:
    """The charge month that `at_ns` lies in. Raises ControlError before the account's anchor."""
    if at_ns < account.anchor_ns:
        raise invalid(f"month: account {account.tenant!r} begins later, at {account.anchor_ns}")
    index = index_at(account.anchor_ns, account.zone, "month", at_ns)
    return period_of(account.anchor_ns, account.zone, "month", index)


def unrated(db: sqlite3.Connection, tenant: str, until_ns: int) -> list[tuple[Period, Period]]:
    """(month, what of it is left to rate) of every month that ended by `until_ns` and was never rated, oldest first.

    Where the account's anchor was moved, a month begins behind what the old months covered: no time is rated twice.
    """
    account = store.get_account(db, tenant)
    if until_ns <= account.anchor_ns:
        return []
    # The month that `until_ns` lies in is not over.
    last = index_at(account.anchor_ns, account.zone, "month", until_ns)
    found = []
    for index in range(max(0, last - MONTHS_MAX), last):
        month = period_of(account.anchor_ns, account.zone, "month", index)
        span = Period(rated_until(db, tenant, *month), month.end_ns)
        if span.start_ns < span.end_ns:
            found.append((month, span))
    return found


def _month_and_span(db: sqlite3.Connection, tenant: str, at_ns: int) -> tuple[Period, Period]:
    """The charge month of `at_ns`, and the span by which it was rated, if it was."""
    month = month_at(store.get_account(db, tenant), at_ns)
    run = run_over(db, tenant, at_ns)
    if run is None:
        return month, Period(rated_until(db, tenant, month.start_ns, at_ns), month.end_ns)
    span = Period(run.start_ns, run.end_ns)
    is_inside = month.start_ns <= span.start_ns and span.end_ns <= month.end_ns
    # Rated before the account's anchor was moved: it is a whole month of its own.
    return (month if is_inside else span), span


def _has_credit(db: sqlite3.Connection, tenant: str) -> bool:
    return bool(credit_store.holdings(db, tenant) or credit_store.redemptions(db, tenant))
