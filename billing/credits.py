"""Owns promotional and paid credit: grants, the order in which they burn, expiry, rollover. Pure; time is an argument.

Order: priority ascending, then the earliest expiry (none is last), then the oldest, then the id. Only paid credit is
money that was received: it alone may be refunded. Expired credit is never used; what is left of it may roll over into
a new grant, as often as the grant says.
"""

from collections.abc import Iterable, Sequence
from typing import Final, Literal, NamedTuple

import msgspec

Kind = Literal["paid", "promo"]
AMOUNT_NANOS_MAX: Final = 10**18
PRIORITY_MAX: Final = 1_000
ROLLOVERS_MAX: Final = 120
GRANTS_MAX: Final = 1_000


class Grant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Credit of one tenant. Instants are UTC nanoseconds; `expires_ns` None: it does not expire."""

    grant_id: str
    kind: Kind
    amount_nanos: int
    currency: str
    granted_ns: int
    expires_ns: int | None = None
    priority: int = 100
    #: Only usage of these models; empty: of any.
    models: tuple[str, ...] = ()
    #: How often what is left at the expiry lives on, each time for as long as the grant did.
    rollovers: int = 0
    #: At most so much of it rolls over; None: all.
    rollover_nanos_max: int | None = None


class Holding(NamedTuple):
    """A grant and what is left of it."""

    grant: Grant
    left_nanos: int


class Burn(NamedTuple):
    """Credit used of one grant, > 0."""

    grant_id: str
    amount_nanos: int


class Need(NamedTuple):
    """An amount that credit may pay, > 0, and the model it is for ("": for none in particular)."""

    model: str
    amount_nanos: int


class CreditError(ValueError):
    """A use of credit that is not allowed; `code` is stable."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def burn_order(grant: Grant) -> tuple[int, bool, int, int, str]:
    """The sort key: what burns first is least."""
    return (grant.priority, grant.expires_ns is None, grant.expires_ns or 0, grant.granted_ns, grant.grant_id)


def is_live(grant: Grant, now_ns: int) -> bool:
    """Whether a grant may be used: it has begun and its end has not come."""
    return grant.granted_ns <= now_ns and (grant.expires_ns is None or now_ns < grant.expires_ns)


def burn(holdings: Iterable[Holding], needs: Sequence[Need], currency: str, now_ns: int) -> list[Burn]:
    """What pays `needs` as far as credit reaches. The same input gives the same burns, whatever its order."""
    left = {need.model: 0 for need in needs}
    for need in needs:
        left[need.model] += need.amount_nanos
    burns = []
    for grant, available in sorted(holdings, key=lambda holding: burn_order(holding.grant)):
        if not available or grant.currency != currency or not is_live(grant, now_ns):
            continue
        used = 0
        for model in sorted(left):
            if grant.models and model not in grant.models:
                continue
            part = min(left[model], available - used)
            left[model] -= part
            used += part
        if used:
            burns.append(Burn(grant.grant_id, used))
    return burns


def roll_over(holding: Holding, now_ns: int) -> Grant | None:
    """The grant that an expired one turns into; None when it has not expired, is used up, or may not roll over.

    Its id follows from the old one's, so repeating it gives the same grant.
    """
    grant, left = holding
    if grant.expires_ns is None or now_ns < grant.expires_ns or not left or not grant.rollovers:
        return None
    kept = left if grant.rollover_nanos_max is None else min(left, grant.rollover_nanos_max)
    if not kept:
        return None
    life_ns = grant.expires_ns - grant.granted_ns
    return msgspec.structs.replace(
        grant,
        grant_id=f"{grant.grant_id.partition('~')[0]}~{grant.rollovers}",
        amount_nanos=kept,
        granted_ns=grant.expires_ns,
        expires_ns=grant.expires_ns + life_ns,
        rollovers=grant.rollovers - 1,
    )


def refund(holding: Holding, amount_nanos: int) -> Burn:
    """Take paid credit back out as money; promotional credit never is. Raises CreditError, also beyond what is left."""
    grant, left = holding
    if grant.kind != "paid":
        raise CreditError("promo_not_refundable", f"grant {grant.grant_id} is promotional: it cannot be paid out")
    if not 0 < amount_nanos <= left:
        raise CreditError("amount", f"amount_nanos: {amount_nanos} must be from 1 to {left}, what is left")
    return Burn(grant.grant_id, amount_nanos)


def unused(holdings: Iterable[Holding], currency: str, now_ns: int) -> int:
    """What may be used now, over all models."""
    return sum(left for grant, left in holdings if grant.currency == currency and is_live(grant, now_ns))
