"""Owns what billing does by itself: renew subscriptions, bill periods that are over, collect what is due. In rounds.

Each command's operation id follows from what it is about (tenant, period), so a round that is repeated after a crash
repeats commands, not bookings. One account's trouble is logged and does not keep the others waiting.
"""

import logging
import sqlite3
from collections.abc import Mapping
from typing import Final

from billing.invoices import store
from billing.invoices.account import Account
from billing.invoices.period import NS_PER_S, index_at, period_of
from billing.invoices.subscriptions import due_tenants
from billing.payments.port import PaymentProvider
from gateway.control.collector import Collector
from gateway.control.errors import ControlCode, ControlError
from gateway.control.money import Money
from gateway.control.months import Months
from gateway.control.registry import Registry

ROUND_S: Final = 30.0
ACTOR: Final = "billing-clock"
ACCOUNTS_PAGE: Final = 500
#: Periods billed one after another for one account in one round, when we were down for long.
PERIODS_MAX: Final = 24
_log = logging.getLogger("tollway.control")


class BillingClock:
    """`tick` is one round; blocking, for a worker thread."""

    def __init__(self, money: Money, registry: Registry, providers: Mapping[str, PaymentProvider]) -> None:
        self._money = money
        self._now_ns = registry.clock.wall_ns
        self._months = Months(money, registry)
        self._collector = Collector(money, registry, providers)

    def tick(self) -> None:
        """One round over everything that is due. Never raises for trouble that passes; it is logged."""
        now_ns = self._now_ns()
        try:
            self._renew(now_ns)
            self._bill(now_ns)
            self._collector.run_once(now_ns)
        except ControlError as error:
            # Without a ledger, or while the meter restarts, there is nothing to do; the next round comes.
            level = logging.DEBUG if error.code is ControlCode.UNAVAILABLE else logging.ERROR
            _log.log(level, "billing_round_cut code=%s", error.code)

    def _renew(self, now_ns: int) -> None:
        for tenant in self._money.read(lambda db: due_tenants(db, now_ns)):
            # A second round in the same second would find nothing due any more.
            operation = f"renew:{tenant}:{now_ns // NS_PER_S}"
            self._try("subscription.renew", operation, {"tenant": tenant}, tenant)

    def _bill(self, now_ns: int) -> None:
        for tenant, ends in self._money.read(lambda db: due_periods(db, now_ns)):
            for end_ns in ends:
                body = {"tenant": tenant, "until_ns": end_ns}
                if not self._rate(tenant, end_ns) or not self._try(
                    "invoice.bill", f"bill:{tenant}:{end_ns}", body, tenant
                ):
                    break

    def _rate(self, tenant: str, end_ns: int) -> bool:
        """Rate the months that the invoice is about, before it is made. An account that fails is not billed."""
        try:
            self._months.settle_due(ACTOR, tenant, end_ns)
            self._months.gather_invoice(tenant, end_ns)
        except ControlError as error:
            if error.code is ControlCode.UNAVAILABLE:
                raise
            _log.error("rating_failed tenant=%s code=%s error=%s", tenant, error.code, error)
            return False
        return True

    def _try(self, verb: str, operation: str, body: dict[str, object], tenant: str) -> bool:
        try:
            self._money.run(ACTOR, verb, operation, body)
        except ControlError as error:
            if error.code is ControlCode.UNAVAILABLE:
                raise
            _log.error("billing_failed verb=%s tenant=%s code=%s error=%s", verb, tenant, error.code, error)
            return False
        return True


def due_periods(db: sqlite3.Connection, now_ns: int) -> list[tuple[str, list[int]]]:
    """(tenant, ends of periods that are over and not billed), the grace for late usage included."""
    grace_ns = store.get_seller(db).grace_s * NS_PER_S
    found, after = [], ""
    while page := store.list_accounts(db, after=after, limit=ACCOUNTS_PAGE):
        for account in page:
            ends = _due_ends(db, account, now_ns - grace_ns)
            if ends:
                found.append((account.tenant, ends))
        after = page[-1].tenant
    return found


def _due_ends(db: sqlite3.Connection, account: Account, until_ns: int) -> list[int]:
    if until_ns < account.anchor_ns:
        return []
    last = index_at(account.anchor_ns, account.zone, account.interval, until_ns) - 1
    ends: list[int] = []
    for index in range(last, max(-1, last - PERIODS_MAX), -1):
        end_ns = period_of(account.anchor_ns, account.zone, account.interval, index).end_ns
        if store.is_billed_until(db, account.tenant, end_ns):
            break
        ends.append(end_ns)
    return ends[::-1]
