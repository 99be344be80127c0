"""The fake fails in every way; Stripe's adapter keeps the same seam over recorded-shape answers and signatures."""

import hashlib
import hmac
import json
from typing import Any

import pytest

from billing.payments.fake import FAULTS, FakeProvider
from billing.payments.port import (
    Charge,
    Declined,
    NotAuthentic,
    Pending,
    ProviderRefused,
    ProviderUnavailable,
    Succeeded,
)
from billing.payments.stripe_provider import TOLERANCE_S, StripeProvider

CHARGE = Charge("inv_1-001", "cus_9/pm_7", 1_799, "USD", "inv_1", "Invoice INV-000001")
SECRET = "whsec_test"
NOW_S = 1_770_000_000


class Wire:
    """Stripe's HTTP side: answers in the recorded shape, one after another; keeps what was asked."""

    name = "wire"

    def __init__(self, *answers: tuple[int, dict[str, Any]] | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, str, dict[str, str], str]] = []

    def request_with_retries(
        self, method: str, url: str, headers: Any, post_data: Any = None, max_network_retries: Any = None, **_more: Any
    ) -> tuple[str, int, dict[str, str]]:
        self.asked.append((method, url, dict(headers), str(post_data)))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return json.dumps(answer[1]), answer[0], {"request-id": "req_1"}

    def close(self) -> None:
        """Nothing is open."""


def intent(status: str = "succeeded", **more: Any) -> dict[str, Any]:
    return {
        "id": "pi_3Nabc",
        "object": "payment_intent",
        "amount": 1_799,
        "amount_received": 1_799 if status == "succeeded" else 0,
        "currency": "usd",
        "status": status,
        "metadata": {"document_id": "inv_1"},
        "last_payment_error": None,
        **more,
    }


def card_error(code: str, decline_code: str) -> tuple[int, dict[str, Any]]:
    error = {"type": "card_error", "code": code, "decline_code": decline_code, "message": "Your card was declined."}
    return 402, {"error": error}


def provider(*answers: tuple[int, dict[str, Any]] | Exception) -> tuple[StripeProvider, Wire]:
    wire = Wire(*answers)
    return StripeProvider("sk_test_x", SECRET, http_client=wire), wire


def signed(body: bytes, at_s: int = NOW_S, secret: str = SECRET) -> dict[str, str]:
    digest = hmac.new(secret.encode(), f"{at_s}.".encode() + body, hashlib.sha256).hexdigest()
    return {"stripe-signature": f"t={at_s},v1={digest}"}


def event(kind: str, thing: dict[str, Any]) -> bytes:
    return json.dumps(
        {"id": "evt_1", "object": "event", "type": kind, "api_version": "2024-06-20", "data": {"object": thing}}
    ).encode()


def test_stripe_is_asked_with_our_key_and_the_exact_amount() -> None:
    stripe, wire = provider((200, intent()))
    assert stripe.charge(CHARGE) == Succeeded("pi_3Nabc", 1_799)
    (method, url, headers, data) = wire.asked[0]
    assert (method, url.endswith("/v1/payment_intents")) == ("post", True)
    assert headers["Idempotency-Key"] == CHARGE.key
    assert "amount=1799" in data
    assert "currency=usd" in data
    assert "off_session=true" in data
    assert "customer=cus_9&payment_method=pm_7" in data
    assert "[attempt_id]=inv_1-001" in data.replace("%5B", "[").replace("%5D", "]")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ((200, intent("processing")), Pending("pi_3Nabc")),
        ((200, intent("requires_action")), Declined("requires_action", is_final=False)),
        (card_error("card_declined", "insufficient_funds"), Declined("insufficient_funds", is_final=False)),
        (card_error("card_declined", "stolen_card"), Declined("stolen_card", is_final=True)),
        ((200, intent(amount_received=900)), Succeeded("pi_3Nabc", 900)),
    ],
)
def test_stripe_answers_become_ours(answer: tuple[int, dict[str, Any]], expected: object) -> None:
    assert provider(answer)[0].charge(CHARGE) == expected


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((500, {"error": {"type": "api_error", "message": "oops"}}), ProviderUnavailable),
        ((429, {"error": {"type": "invalid_request_error", "message": "slow down"}}), ProviderUnavailable),
        ((401, {"error": {"type": "invalid_request_error", "message": "bad key"}}), ProviderRefused),
        (
            (400, {"error": {"type": "invalid_request_error", "code": "resource_missing", "message": "no customer"}}),
            ProviderRefused,
        ),
    ],
)
def test_stripe_trouble_is_told_apart(answer: tuple[int, dict[str, Any]], error: type[Exception]) -> None:
    with pytest.raises(error) as found:
        provider(answer)[0].charge(CHARGE)
    assert "sk_test" not in str(found.value)


def test_a_broken_connection_is_an_unknown_outcome() -> None:
    import stripe

    with pytest.raises(ProviderUnavailable):
        provider(stripe.APIConnectionError("cut"))[0].charge(CHARGE)


@pytest.mark.parametrize("customer", ["", "cus_9", "cus_9/", "/pm_7"])
def test_stripe_needs_customer_and_payment_method(customer: str) -> None:
    stripe, wire = provider()
    with pytest.raises(ProviderRefused, match="provider_customer"):
        stripe.charge(CHARGE._replace(customer=customer))
    assert wire.asked == []


def test_an_old_charge_is_found_by_its_attempt() -> None:
    page = {"object": "search_result", "url": "/v1/payment_intents/search", "has_more": False}
    stripe, wire = provider((200, page | {"data": [intent()]}), (200, page | {"data": []}))
    assert stripe.find("inv_1-001") == Succeeded("pi_3Nabc", 1_799)
    assert stripe.find("inv_1-001") is None
    assert "/v1/payment_intents/search" in wire.asked[0][1]
    assert "attempt_id" in wire.asked[0][1] + wire.asked[0][3]


def test_a_refund_has_its_own_key() -> None:
    stripe, wire = provider((200, {"id": "re_1", "object": "refund", "status": "succeeded"}))
    assert stripe.refund("key-1", "pi_3Nabc", 100) == "re_1"
    assert wire.asked[0][2]["Idempotency-Key"] == "key-1"


@pytest.mark.parametrize(
    ("kind", "thing", "expected"),
    [
        ("payment_intent.succeeded", intent(), ("succeeded", "pi_3Nabc", 1_799, "")),
        (
            "payment_intent.payment_failed",
            intent("requires_payment_method", last_payment_error={"code": "x", "decline_code": "lost_card"}),
            ("failed", "pi_3Nabc", 1_799, "lost_card"),
        ),
        (
            "charge.refunded",
            {"id": "ch_1", "object": "charge", "payment_intent": "pi_3Nabc", "amount_refunded": 50, "currency": "usd",
             "metadata": {"document_id": "inv_1"}},
            ("refunded", "pi_3Nabc", 50, ""),
        ),
    ],
)  # fmt: skip
def test_a_signed_message_is_read(kind: str, thing: dict[str, Any], expected: tuple[object, ...]) -> None:
    body = event(kind, thing)
    message = provider()[0].read_message(body, signed(body), NOW_S)
    assert message is not None
    assert (message.kind, message.reference, message.amount_minor, message.code) == expected
    assert (message.event_id, message.currency, message.document_id) == ("evt_1", "USD", "inv_1")


def test_messages_that_do_not_matter_are_none() -> None:
    body = event("customer.created", {"id": "cus_1", "object": "customer"})
    assert provider()[0].read_message(body, signed(body), NOW_S) is None


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"stripe-signature": "t=1,v1=00"},
        {"stripe-signature": "nonsense"},
        signed(event("payment_intent.succeeded", intent()), secret="other"),
        signed(event("payment_intent.succeeded", intent(amount=1))),
        signed(event("payment_intent.succeeded", intent()), at_s=NOW_S - TOLERANCE_S - 1),
        signed(event("payment_intent.succeeded", intent()), at_s=NOW_S + TOLERANCE_S + 1),
    ],
)
def test_a_message_without_a_fitting_fresh_signature_is_refused(headers: dict[str, str]) -> None:
    body = event("payment_intent.succeeded", intent())
    with pytest.raises(NotAuthentic):
        provider()[0].read_message(body, headers, NOW_S)


def test_a_message_at_the_edge_of_the_tolerance_is_taken() -> None:
    body = event("payment_intent.succeeded", intent())
    assert provider()[0].read_message(body, signed(body, at_s=NOW_S - TOLERANCE_S), NOW_S) is not None


def test_the_fake_charges_once_per_key_whatever_the_network_does() -> None:
    fake = FakeProvider(["timeout_after"])
    with pytest.raises(ProviderUnavailable):
        fake.charge(CHARGE)
    assert fake.charge(CHARGE) == Succeeded("pay_inv_1-001", 1_799)
    assert fake.moved == {CHARGE.key: 1_799}
    with pytest.raises(ProviderRefused):
        fake.charge(CHARGE._replace(amount_minor=1))


def test_every_fault_of_the_fake_does_something_else() -> None:
    seen = set()
    for fault in sorted(FAULTS):
        fake = FakeProvider([fault])
        try:
            result: object = fake.charge(CHARGE)
        except (ProviderRefused, ProviderUnavailable) as error:
            result = type(error)
        seen.add((str(result), bool(fake.moved)))
    assert len(seen) == len(FAULTS)
    with pytest.raises(ValueError, match="earthquake"):
        FakeProvider(["earthquake"])
