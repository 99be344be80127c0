"""Owns the seam `PaymentProvider`: what is asked of a payment provider, and every answer it can have.

A charge carries a key chosen by us. Asking again with the same key never charges twice, so after a time-out, when
nobody knows whether the money moved, the cure is to ask the same again.
"""

from typing import NamedTuple, Protocol


class ProviderUnavailable(Exception):
    """No answer, or none that can be read: the money may or may not have moved. Ask again with the same key."""


class ProviderRefused(Exception):
    """The provider does not take what we send (credentials, parameters): asking again will not help."""


class NotAuthentic(Exception):
    """A message that claims to be the provider's and is not, or is too old."""


class Charge(NamedTuple):
    """Collect `amount_minor` of `currency` from a saved payment method; `customer` is the account's reference to it."""

    key: str
    customer: str
    amount_minor: int
    currency: str
    document_id: str
    description: str


class Succeeded(NamedTuple):
    """The money moved; `amount_minor` may be less than was asked."""

    reference: str
    amount_minor: int


class Declined(NamedTuple):
    """It did not move and will not for this key. `is_final`: no later attempt with this payment method can help."""

    code: str
    is_final: bool


class Pending(NamedTuple):
    """Not decided yet: a message of the provider will tell."""

    reference: str


ChargeResult = Succeeded | Declined | Pending


class Message(NamedTuple):
    """What a provider tells by itself. `event_id` is the same when it is told again."""

    event_id: str
    kind: str
    reference: str
    amount_minor: int
    currency: str
    #: The document named when it was charged; empty when the message names none.
    document_id: str
    code: str = ""


class PaymentProvider(Protocol):
    """Blocking calls over the network, for worker threads."""

    name: str

    def charge(self, charge: Charge) -> ChargeResult:
        """Collect once per key. Raises ProviderUnavailable (ask the same again) and ProviderRefused."""

    def find(self, key: str) -> ChargeResult | None:
        """What became of the charge with this key, long after it was asked; None: it never arrived.

        Raises ProviderUnavailable and ProviderRefused.
        """

    def refund(self, key: str, reference: str, amount_minor: int) -> str:
        """Give back part of a payment, once per key; the refund's reference. Raises like `charge`."""

    def read_message(self, body: bytes, headers: dict[str, str], now_s: int) -> Message | None:
        """The verified message in a webhook's body; None for kinds that do not matter. Raises NotAuthentic."""
