"""Owns how a tenant gets on a plan that costs something: one subscription, the plan's limits, its trial credit.

Every step asks what is so before it changes it, so a call that was cut in the middle is simply repeated: the
subscription first, then credit, then the plan. Until the last step the tenant keeps the limits that it had.
"""

from typing import Any, Final

import sqlalchemy as sa

from billing.credit_store import find_grant
from billing.invoices import subscriptions
from billing.invoices.store import find_account
from billing.money import to_minor
from billing.plans import PlanTerms
from gateway.control import tenants
from gateway.control.agreements import check_packs, newest_pack, packs_of
from gateway.control.errors import invalid
from gateway.control.money import Money
from gateway.control.plans import newest_terms, require_plan
from gateway.control.registry import Change, Registry
from gateway.control.views import TenantView

#: Subscriptions made here are told from others by this beginning of their name.
NAME: Final = "Plan "
#: The source of the trial credit's grant.
TRIAL: Final = "trial"
NS_PER_DAY: Final = 86_400 * 1_000_000_000


class Subscribing:
    """Puts tenants on plans. Blocking, for worker threads."""

    def __init__(self, money: Money, registry: Registry) -> None:
        self._money = money
        self._registry = registry

    def subscribe(self, actor: str, tenant: str, plan: str, packs: int, operation_id: str) -> TenantView:
        """Put `tenant` on `plan` with `packs` QPS packs. Raises ControlError; safe to repeat, also after `unavailable`.

        The fee is the plan's and its packs' together, prorated by the second when it changes.
        """
        terms = self._registry.read(lambda tx, _: _wanted(tx, tenant, plan, packs))
        self._check_currency(tenant, terms)
        fee = 0 if terms is None else _fee_minor(terms, packs)
        name = f"{NAME}{plan}" + (f" with {packs} packs" if packs else "")
        self._converge(actor, tenant, terms, (plan, name), fee, operation_id)
        if terms is not None and terms.trial_credit is not None:
            self._give_trial_credit(actor, tenant, terms, operation_id)
        return self._registry.change(
            actor,
            "tenant.subscribe",
            lambda tx, now_ns: _change(tx, tenant, plan, packs, now_ns),
        )

    def _check_currency(self, tenant: str, terms: PlanTerms | None) -> None:
        account = self._money.read(lambda db: find_account(db, tenant))
        if account is not None and terms is not None and account.currency != terms.currency:
            raise invalid(f"plan: is in {terms.currency}, but tenant {tenant!r} is billed in {account.currency}")

    def _converge(  # noqa: PLR0917 - what the subscription shall be, in its order
        self, actor: str, tenant: str, terms: PlanTerms | None, names: tuple[str, str], fee: int, operation_id: str
    ) -> None:
        """End, change or start the plan's subscription until it is what it shall be; `names`: plan, subscription."""
        plan, name = names
        interval = "month" if terms is None or terms.subscription is None else terms.subscription.interval
        had = self._money.read(lambda db: subscriptions.list_subscriptions(db, tenant=tenant))
        had = [one for one in had if one.name.startswith(NAME)]
        live = [one for one in had if one.status != "cancelled"]
        kept = next((one for one in live if fee and one.interval == interval and not one.ends_with_period), None)
        for one in live:
            if one is not kept:
                body: dict[str, Any] = {"subscription_id": one.subscription_id, "when": "now"}
                self._money.run(actor, "subscription.cancel", f"{operation_id}:end:{one.subscription_id}", body)
        if kept is not None and (kept.fee_minor, kept.name, kept.plan) != (fee, name, plan):
            body = {"subscription_id": kept.subscription_id, "fee_minor": fee, "name": name, "plan": plan}
            self._money.run(actor, "subscription.change", f"{operation_id}:change", body)
        if kept is None and fee:
            body = {"tenant": tenant, "name": name, "fee_minor": fee, "interval": interval, "plan": plan}
            # A trial is for the first plan only.
            if terms is not None and terms.subscription is not None and not had:
                body["trial_days"] = terms.subscription.trial_days
            self._money.run(actor, "subscription.start", f"{operation_id}:start", body)

    def _give_trial_credit(self, actor: str, tenant: str, terms: PlanTerms, operation_id: str) -> None:
        """Once per tenant, whatever plans follow: going from plan to plan earns nothing."""
        credit = terms.trial_credit
        assert credit is not None
        if self._money.read(lambda db: find_grant(db, f"{tenant}:{TRIAL}")) is not None:
            return
        body = {
            "tenant": tenant,
            "source": TRIAL,
            "amount_nanos": credit.amount_nanos,
            "expires_ns": self._registry.clock.wall_ns() + credit.days * NS_PER_DAY,
        }
        self._money.run(actor, "credit.grant", f"{operation_id}:credit", body)


def _wanted(tx: sa.Connection, tenant: str, plan: str, packs: int) -> PlanTerms | None:
    """The money of the plan. Raises ControlError: no such tenant or plan, or it does not sell so many packs."""
    tenants.get_tenant(tx, tenant)
    require_plan(tx, plan)
    check_packs(newest_pack(tx, plan), plan, packs)
    return newest_terms(tx, plan)


def _fee_minor(terms: PlanTerms, packs: int) -> int:
    plan = 0 if terms.subscription is None else terms.subscription.fee_nanos
    pack = 0 if terms.pack is None else terms.pack.fee_nanos * packs
    return to_minor(plan + pack, terms.currency)


def _change(tx: sa.Connection, tenant: str, plan: str, packs: int, now_ns: int) -> Change[TenantView]:
    had = packs_of(tx, tenant)
    changed = tenants.set_plan(tx, tenant, plan, now_ns, packs=packs)
    return Change(
        answer=changed.after,
        subject=f"tenant:{tenant}",
        before=changed.before,
        after=changed.after,
        is_needed=(changed.before, had) != (changed.after, packs),
    )
