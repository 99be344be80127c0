"""Owns which months of a tenant are rated, by which plans and money, and that it happens before the invoice over them.

Charge months are calendar months from the billing account's anchor, in its zone. A month is rated by the money that
each plan had when the month began, whatever was applied since: the past is never repriced.
"""

import sqlite3
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from billing import credit_store
from billing.invoices import store
from billing.invoices.account import Account
from billing.invoices.period import Period, boundary_ns, floor_s, index_at, period_of
from billing.invoices.proration import share
from billing.settlement import MonthPlan, find_run
from gateway.control.agreements import Agreement, agreements_of
from gateway.control.errors import invalid
from gateway.control.money import Money
from gateway.control.plans import terms_at
from gateway.control.registry import Registry

#: Months that one round looks back for such as were never rated.
MONTHS_MAX: Final = 24
#: Workers may go on under the old plan for a moment when it changes at a month's very beginning.
_LAG_NS: Final = 3_600_000_000_000


class Months:
    """Rates months through the meter. Blocking, for worker threads."""

    def __init__(self, money: Money, registry: Registry) -> None:
        self._money = money
        self._registry = registry

    def settle_due(self, actor: str, tenant: str, until_ns: int) -> None:
        """Rate every month that ended by `until_ns` and never was, oldest first. Raises ControlError.

        A month without anything to rate (no plan with money, no coupon, no credit) is left alone.
        """
        for period in self._money.read(lambda db: _unrated(db, tenant, until_ns)):
            body = self.body(tenant, period)
            if body["plans"] or self._money.read(lambda db: _has_credit(db, tenant)):
                self._money.run(actor, "month.settle", f"month:{tenant}:{period.start_ns}", body)

    def settle(self, actor: str, tenant: str, at_ns: int, operation_id: str) -> Any:
        """Rate (again) the month that `at_ns` lies in; the run. Raises ControlError, also while it is not over."""
        period = self._money.read(lambda db: month_at(store.get_account(db, tenant), at_ns))
        return self._money.run(actor, "month.settle", operation_id, self.body(tenant, period))

    def body(self, tenant: str, period: Period) -> dict[str, Any]:
        """The `month.settle` command over `period`."""
        plans = self._registry.read(lambda tx, _: month_plans(tx, tenant, period))
        return {
            "tenant": tenant,
            "start_ns": period.start_ns,
            "end_ns": period.end_ns,
            "plans": [msgspec.to_builtins(one) for one in plans],
        }


def month_plans(tx: sa.Connection, tenant: str, period: Period) -> list[MonthPlan]:
    """The plans with money that were in force at some time in `period`, each with its part of its minimum."""
    agreements = agreements_of(tx, tenant, period.start_ns - _LAG_NS, period.end_ns)
    found = []
    for plan in sorted({one.plan for one in agreements}):
        at = terms_at(tx, plan, period.start_ns)
        if at is None or at.terms is None:
            continue
        minimum = minimum_part(at.terms.minimum_nanos, period, [one for one in agreements if one.plan == plan])
        found.append(MonthPlan(plan=plan, version=at.version, terms=at.terms, minimum_nanos=minimum))
    return found


def minimum_part(minimum_nanos: int, period: Period, agreements: list[Agreement]) -> int:
    """What of a month's minimum belongs to the seconds in which the plan was in force."""
    total = 0
    for one in agreements:
        start_ns = max(period.start_ns, floor_s(one.since_ns))
        end_ns = period.end_ns if one.until_ns is None else min(period.end_ns, floor_s(one.until_ns))
        if start_ns < end_ns:
            total += share(minimum_nanos, period, Period(start_ns, end_ns))
    return total


def month_at(account: Account, at_ns: int) -> Period:
    """The charge month that `at_ns` lies in. Raises ControlError before the account's anchor."""
    if at_ns < account.anchor_ns:
        raise invalid(f"month: account {account.tenant!r} begins later, at {account.anchor_ns}")
    index = index_at(account.anchor_ns, account.zone, "month", at_ns)
    return period_of(account.anchor_ns, account.zone, "month", index)


def _unrated(db: sqlite3.Connection, tenant: str, until_ns: int) -> list[Period]:
    account = store.get_account(db, tenant)
    if until_ns <= account.anchor_ns:
        return []
    last = index_at(account.anchor_ns, account.zone, "month", until_ns)
    # The month that `until_ns` lies in is over only if that is its first instant: then the one before is the last.
    first = max(0, last - MONTHS_MAX)
    assert boundary_ns(account.anchor_ns, account.zone, "month", last) <= until_ns
    periods = [period_of(account.anchor_ns, account.zone, "month", index) for index in range(first, last)]
    return [one for one in periods if find_run(db, tenant, one.start_ns) is None]


def _has_credit(db: sqlite3.Connection, tenant: str) -> bool:
    return bool(credit_store.holdings(db, tenant) or credit_store.redemptions(db, tenant))
