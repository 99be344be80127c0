"""Owns `StripeProvider`: the payment seam on Stripe's PaymentIntents and Refunds, and its signed webhooks.

Every call carries our key as Stripe's idempotency key. The library is imported when the provider is made (extra
"stripe"); its own retries are off, because one layer retries: ours, durably.
"""

import importlib
from typing import Any, Final

from billing.payments.port import (
    Charge,
    ChargeResult,
    Declined,
    Message,
    NotAuthentic,
    Pending,
    ProviderRefused,
    ProviderUnavailable,
    Succeeded,
)

TOLERANCE_S: Final = 300
#: Declines after which no attempt with the same card can succeed.
FINAL_DECLINES: Final = frozenset(
    {"stolen_card", "lost_card", "pickup_card", "fraudulent", "expired_card", "invalid_account"}
)
_KINDS: Final = {
    "payment_intent.succeeded": "succeeded",
    "payment_intent.payment_failed": "failed",
    "charge.refunded": "refunded",
}
_UNKNOWN_OUTCOME: Final = ("APIConnectionError", "RateLimitError", "APIError")


class StripeProvider:
    """Blocking. `http_client` replaces the library's own, for tests."""

    name = "stripe"

    def __init__(self, api_key: str, webhook_secret: str, http_client: Any = None) -> None:
        """Raises ProviderRefused when the library is not installed."""
        try:
            self._stripe: Any = importlib.import_module("stripe")
        except ImportError as error:
            raise ProviderRefused('the stripe library is missing: install the extra "stripe"') from error
        self._client = self._stripe.StripeClient(api_key, http_client=http_client, max_network_retries=0)
        self._webhook_secret = webhook_secret

    def charge(self, charge: Charge) -> ChargeResult:
        customer, _, method = charge.customer.partition("/")
        if not customer or not method:
            raise ProviderRefused("provider_customer must be cus_…/pm_…: the customer and the saved payment method")
        parameters = {
            "amount": charge.amount_minor,
            "currency": charge.currency.lower(),
            "customer": customer,
            "payment_method": method,
            "description": charge.description,
            "metadata": {"document_id": charge.document_id, "attempt_id": charge.key},
            "confirm": True,
            "off_session": True,
        }
        try:
            intent = self._client.v1.payment_intents.create(parameters, options={"idempotency_key": charge.key})
        except self._stripe.CardError as error:
            code = _decline_code(error)
            return Declined(code, is_final=code in FINAL_DECLINES)
        except self._stripe.StripeError as error:
            raise self._translated(error) from error
        return _result(intent)

    def find(self, key: str) -> ChargeResult | None:
        try:
            found = self._client.v1.payment_intents.search({"query": f"metadata['attempt_id']:'{key}'", "limit": 1})
        except self._stripe.StripeError as error:
            raise self._translated(error) from error
        return _result(found.data[0]) if found.data else None

    def refund(self, key: str, reference: str, amount_minor: int) -> str:
        parameters = {"payment_intent": reference, "amount": amount_minor}
        try:
            return str(self._client.v1.refunds.create(parameters, options={"idempotency_key": key}).id)
        except self._stripe.StripeError as error:
            raise self._translated(error) from error

    def read_message(self, body: bytes, headers: dict[str, str], now_s: int) -> Message | None:
        """Verified by Stripe's own library against its clock; `now_s` bounds the age once more by ours."""
        signature = headers.get("stripe-signature", "")
        try:
            event = self._stripe.Webhook.construct_event(body, signature, self._webhook_secret, tolerance=None)
            sent_s = int(dict(part.split("=", 1) for part in signature.split(","))["t"])
        except (self._stripe.SignatureVerificationError, ValueError, KeyError) as error:
            raise NotAuthentic("the signature does not fit") from error
        if abs(now_s - sent_s) > TOLERANCE_S:
            raise NotAuthentic(f"the message is {abs(now_s - sent_s)} s away from our clock")
        kind = _KINDS.get(event.type)
        return None if kind is None else _message(event, kind)

    def _translated(self, error: Any) -> ProviderUnavailable | ProviderRefused:
        if type(error).__name__ in _UNKNOWN_OUTCOME:
            return ProviderUnavailable(f"stripe: {type(error).__name__}")
        return ProviderRefused(f"stripe: {type(error).__name__} ({error.code or 'no code'})")


def _result(intent: Any) -> ChargeResult:
    if intent.status == "succeeded":
        return Succeeded(intent.id, int(intent.amount_received))
    if intent.status == "processing":
        return Pending(intent.id)
    # The customer would have to act (3-D Secure, another card): nobody is there to do it.
    return Declined(str(intent.status), is_final=False)


def _message(event: Any, kind: str) -> Message:
    thing = event.data.object.to_dict()
    error = thing.get("last_payment_error") or {}
    amounts = {"succeeded": "amount_received", "failed": "amount", "refunded": "amount_refunded"}
    return Message(
        event_id=str(event.id),
        kind=kind,
        reference=str(thing["payment_intent"] if kind == "refunded" else thing["id"]),
        amount_minor=int(thing[amounts[kind]]),
        currency=str(thing["currency"]).upper(),
        document_id=str((thing.get("metadata") or {}).get("document_id", "")),
        code=str(error.get("decline_code") or error.get("code") or ""),
    )


def _decline_code(error: Any) -> str:
    body = (error.json_body or {}).get("error", {})
    return str(body.get("decline_code") or error.code or "declined")
