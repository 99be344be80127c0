"""Owns how control tops wallets up: by a money command, or through the payment provider of the billing account.

A collected top-up is begun in the books, charged at the provider under its id, and finished with the answer. Each step
may be repeated with the same operation id: the provider charges once per id. When the provider does not answer, nothing
is finished and the caller is told to repeat.
"""

from collections.abc import Mapping
from typing import Any, Final

from billing.payments.port import (
    Charge,
    Declined,
    PaymentProvider,
    Pending,
    ProviderRefused,
    ProviderUnavailable,
    Succeeded,
)
from billing.wallets.commands import whole_minor
from billing.wallets.store import TopUp, find_top_up
from gateway.control import tenants
from gateway.control.errors import ControlCode, ControlError, invalid
from gateway.control.money import Money
from gateway.control.registry import Registry
from gateway.control.wallet_views import RefundBody, ThresholdBody, TopUpBody

#: Providers remember our keys for a day at least; well before that an open top-up is looked up instead.
KEY_LIFE_NS: Final = 12 * 3_600 * 1_000_000_000


class Wallets:
    """Commands about wallets. Blocking, in a worker thread."""

    def __init__(self, money: Money, registry: Registry, providers: Mapping[str, PaymentProvider]) -> None:
        self._money = money
        self._registry = registry
        self._providers = providers

    def currency(self, tenant: str, asked: str | None) -> str:
        """The currency of a wallet: what is asked for, else the tenant's. Raises ControlError: no such tenant."""
        found = self._registry.read(lambda tx, _: tenants.get_tenant(tx, tenant))
        return asked or found.currency

    def top_up(self, actor: str, tenant: str, body: TopUpBody) -> TopUp:
        """Raises ControlError; `unavailable` may be repeated with the same operation id."""
        currency = self.currency(tenant, body.currency)
        common: dict[str, Any] = {"tenant": tenant, "currency": currency}
        if body.kind == "collect":
            return self._collect(actor, common, body)
        if body.kind == "paid":
            fields = {"provider": body.provider, "reference": body.reference}
        else:
            fields = {"reason": body.reason}
        verb = "wallet.top_up" if body.kind == "paid" else "wallet.grant"
        order = common | {"amount_nanos": body.amount_nanos} | fields
        return self._found(self._money.run(actor, verb, body.operation_id, order)["top_up_id"])

    def refund(self, actor: str, tenant: str, body: RefundBody) -> None:
        """Raises ControlError."""
        order = {
            "tenant": tenant,
            "currency": self.currency(tenant, body.currency),
            "amount_nanos": body.amount_nanos,
            "provider": body.provider,
            "reference": body.reference,
        }
        self._money.run(actor, "wallet.refund", body.operation_id, order)

    def set_threshold(self, actor: str, tenant: str, body: ThresholdBody) -> str:
        """The wallet's currency. Raises ControlError."""
        currency = self.currency(tenant, body.currency)
        order = {"tenant": tenant, "currency": currency, "low_nanos": body.low_nanos}
        self._money.run(actor, "wallet.set", body.operation_id, order)
        return currency

    def _collect(self, actor: str, common: dict[str, Any], body: TopUpBody) -> TopUp:
        minor = whole_minor(body.amount_nanos, common["currency"])
        if minor is None:
            raise invalid(f"amount_nanos: {body.amount_nanos} is no whole minor unit, as a provider needs")
        begun = self._money.run(actor, "wallet.begin", body.operation_id, common | {"amount_minor": minor})
        provider = self._providers.get(begun["provider"])
        if provider is None:
            raise ControlError(ControlCode.CONFLICT, f"payment provider {begun['provider']!r} is not set up here")
        charge = Charge(
            key=begun["top_up_id"],
            customer=begun["customer"],
            amount_minor=begun["amount_minor"],
            currency=begun["currency"],
            document_id=begun["top_up_id"],
            description="Wallet top-up",
        )
        age_ns = self._registry.clock.wall_ns() - int(begun["begun_ns"])
        fields = _ask(provider, charge, is_old=age_ns >= KEY_LIFE_NS)
        order = {"top_up_id": charge.key, **fields}
        self._money.run(actor, "wallet.finish", f"finish:{charge.key}:{fields['outcome']}", order)
        return self._found(charge.key)

    def _found(self, top_up_id: str) -> TopUp:
        made = self._money.read(lambda db: find_top_up(db, top_up_id))
        assert made is not None
        return made


def _ask(provider: PaymentProvider, charge: Charge, *, is_old: bool) -> dict[str, Any]:
    """What the provider answers, as `wallet.finish` takes it. Raises ControlError when it does not answer."""
    try:
        result = (provider.find(charge.key) if is_old else None) or provider.charge(charge)
    except ProviderRefused:
        return {"outcome": "refused", "code": "provider_refused"}
    except ProviderUnavailable as error:
        text = "the payment provider does not answer: the money may have moved; repeat with the same operation id"
        raise ControlError(ControlCode.UNAVAILABLE, text, retry_after_s=5) from error
    if isinstance(result, Succeeded):
        return {"outcome": "succeeded", "reference": result.reference, "amount_minor": result.amount_minor}
    if isinstance(result, Pending):
        return {"outcome": "pending", "reference": result.reference}
    assert isinstance(result, Declined)
    return {"outcome": "declined", "code": result.code}
