"""Owns coupons: percent or amount off a month's usage or off the fees of subscriptions, for so many months. Pure.

A coupon's definition never changes once added; a redemption keeps a copy of it, so what was promised stays.
"""

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

import msgspec

from billing.tiers import divide_half_even

PPM: Final = 1_000_000
MONTHS_MAX: Final = 1_200
REDEMPTIONS_MAX: Final = 10**9
COUPONS_MAX: Final = 10_000
CODE_PATTERN: Final = r"[A-Z0-9](?:[A-Z0-9-]{0,38}[A-Z0-9])?"
AppliesTo = Literal["usage", "fees", "all"]
APPLIES_TO: Final = ("usage", "fees", "all")


class Coupon(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Either `percent_ppm` (parts per million) or `amount_nanos` a month off, for `months` months (0: for ever)."""

    code: str
    percent_ppm: int = 0
    amount_nanos: int = 0
    #: Of `amount_nanos`; empty for a percentage.
    currency: str = ""
    months: int = 1
    #: Tenants that may redeem it, 0: any number.
    redemptions_max: int = 0
    #: After this instant (UTC nanoseconds) nobody may redeem it; None: it stays open. Redeemed ones go on.
    redeem_until_ns: int | None = None
    #: Only usage under, and fees of, these plans count; empty: any plan.
    plans: tuple[str, ...] = ()
    #: "all" is for percentages only: months of usage and of a fee begin on different days, an amount is not divided.
    applies_to: AppliesTo = "usage"


class Redeemed(NamedTuple):
    """A coupon of one tenant; `months_used` counts the months that it reduced before: of usage, or of fees."""

    coupon: Coupon
    months_used: int


class Discount(NamedTuple):
    """What a coupon takes off, >= 0."""

    code: str
    amount_nanos: int


class FeeOff(NamedTuple):
    """What a coupon takes off a fee, > 0, in the first `months` months of the fee's period."""

    code: str
    months: int
    amount_nanos: int


def discounts(redeemed: Sequence[Redeemed], net_by_plan: dict[str, int], currency: str) -> list[Discount]:
    """What each coupon takes off a month's net amounts, in the order of redemption; together never more than they are.

    A percentage is of what is left after the coupons before it, rounded to nanos, half to even.
    """
    left = {plan: max(0, nanos) for plan, nanos in net_by_plan.items()}
    found = []
    for coupon, months_used in redeemed:
        if coupon.applies_to == "fees" or not _is_open(coupon, months_used, currency):
            continue
        scope = [plan for plan in sorted(left) if not coupon.plans or plan in coupon.plans]
        base = sum(left[plan] for plan in scope)
        off = min(base, coupon.amount_nanos or divide_half_even(base * coupon.percent_ppm, PPM))
        _take(left, scope, off)
        found.append(Discount(coupon.code, off))
    return found


def fee_discounts(redeemed: Sequence[Redeemed], months: Sequence[int], plan: str, currency: str) -> list[FeeOff]:
    """What each coupon takes off a fee, in the order of redemption; together never more than the fee.

    `months`: the fee's nanos by the months of its period, one of a monthly fee, twelve of a yearly one. A coupon with
    fewer months left reduces the first ones. A percentage is of what the coupons before it left, half to even.
    """
    left = list(months)
    found = []
    for coupon, months_used in redeemed:
        if coupon.applies_to == "usage" or not _is_open(coupon, months_used, currency):
            continue
        if coupon.plans and plan not in coupon.plans:
            continue
        count = min(len(left), coupon.months - months_used) if coupon.months else len(left)
        total = 0
        for index in range(count):
            off = min(left[index], coupon.amount_nanos or divide_half_even(left[index] * coupon.percent_ppm, PPM))
            left[index] -= off
            total += off
        if total:
            found.append(FeeOff(coupon.code, count, total))
    return found


def _is_open(coupon: Coupon, months_used: int, currency: str) -> bool:
    return coupon.currency in {"", currency} and not (coupon.months and months_used >= coupon.months)


def _take(left: dict[str, int], scope: list[str], off: int) -> None:
    """Take `off` from the plans in scope, one after the other: only the sums matter to the coupons that follow."""
    for plan in scope:
        part = min(left[plan], off)
        left[plan] -= part
        off -= part
