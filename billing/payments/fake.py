"""Owns `FakeProvider`: a payment provider in memory that can fail in every way, for tests and dry runs.

Faults are queued by name and taken one per charge: "declined", "stolen", "timeout_before" (nothing happened),
"timeout_after" (the money moved and nobody was told), "partial" (half of it), "pending", "refused".
"""

import hashlib
import hmac
from collections import deque
from collections.abc import Iterable
from typing import Final

import msgspec

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

FAULTS: Final = frozenset({"declined", "stolen", "timeout_before", "timeout_after", "partial", "pending", "refused"})
SECRET: Final = b"fake-provider"


class FakeProvider:
    """Keeps what it did: `moved` holds every charge for which money moved, by key."""

    name = "fake"

    def __init__(self, faults: Iterable[str] = ()) -> None:
        """Raises ValueError for a fault it does not know."""
        self.faults = deque(faults)
        unknown = set(self.faults) - FAULTS
        if unknown:
            raise ValueError(f"unknown faults: {', '.join(sorted(unknown))}")
        self.moved: dict[str, int] = {}
        self.refunded: dict[str, int] = {}
        self.asked: list[Charge] = []
        #: Nothing gets through, either way.
        self.is_down = False
        self._forgotten: set[str] = set()
        self._results: dict[str, tuple[Charge, ChargeResult]] = {}

    def charge(self, charge: Charge) -> ChargeResult:
        if self.is_down:
            raise ProviderUnavailable("no answer")
        self.asked.append(charge)
        known = self._results.get(charge.key)
        if charge.key in self._forgotten:
            known = None
        if known is not None:
            if known[0] != charge:
                raise ProviderRefused(f"key {charge.key!r} was used for another charge")
            return known[1]
        fault = self.faults.popleft() if self.faults else ""
        if fault == "timeout_before":
            raise ProviderUnavailable("no answer")
        if fault == "refused":
            raise ProviderRefused("bad credentials")
        result = self._result(charge, fault)
        self._results[charge.key] = (charge, result)
        if isinstance(result, Succeeded):
            self.moved[charge.key] = self.moved.get(charge.key, 0) + result.amount_minor
        if fault == "timeout_after":
            raise ProviderUnavailable("no answer")
        return result

    def find(self, key: str) -> ChargeResult | None:
        known = self._results.get(key)
        return None if known is None else known[1]

    def forget(self) -> None:
        """As providers do after a day: a key that comes again is a new charge."""
        self._forgotten |= set(self._results)

    def refund(self, key: str, reference: str, amount_minor: int) -> str:
        if reference not in {f"pay_{known}" for known in self.moved}:
            raise ProviderRefused(f"payment {reference!r} does not exist")
        self.refunded.setdefault(key, amount_minor)
        return f"re_{key}"

    def read_message(self, body: bytes, headers: dict[str, str], now_s: int) -> Message | None:
        expected = hmac.digest(SECRET, body, "sha256").hex()
        if not hmac.compare_digest(headers.get("fake-signature", ""), expected):
            raise NotAuthentic("the signature does not fit")
        try:
            return msgspec.json.decode(body, type=Message | None)
        except msgspec.DecodeError as error:
            raise NotAuthentic(f"not a message: {error}") from error

    def message(self, kind: str, charge: Charge, *, amount_minor: int | None = None) -> tuple[bytes, dict[str, str]]:
        """A signed message about a charge, as this provider would send it."""
        body = msgspec.json.encode(
            Message(
                event_id=hashlib.sha256(f"{kind}{charge.key}".encode()).hexdigest()[:16],
                kind=kind,
                reference=f"pay_{charge.key}",
                amount_minor=charge.amount_minor if amount_minor is None else amount_minor,
                currency=charge.currency,
                document_id=charge.document_id,
            )
        )
        return body, {"fake-signature": hmac.digest(SECRET, body, "sha256").hex()}

    def settle(self, charge: Charge) -> None:
        """A pending charge comes through after all."""
        self.moved[charge.key] = charge.amount_minor

    def _result(self, charge: Charge, fault: str) -> ChargeResult:
        if fault in {"declined", "stolen"}:
            return Declined(fault, is_final=fault == "stolen")
        if fault == "pending":
            return Pending(f"pay_{charge.key}")
        amount = charge.amount_minor // 2 if fault == "partial" else charge.amount_minor
        return Succeeded(f"pay_{charge.key}", amount)
