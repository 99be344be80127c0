"""Owns what coupons take off a subscription's fee: which count for a period, over which time, and how often they did.

A discount belongs to a time inside the fee's period, as the fee does: a coupon that has three months left reduces the
first three of a yearly fee. What is given back of a fee gives back the discount's part of the same seconds, so parts of
discounts sum to the whole as parts of fees do (I19), and what is earned is what was asked (I20).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NamedTuple

import msgspec

from billing.coupons import Redeemed, fee_discounts
from billing.credit_store import redemptions
from billing.invoices.period import Interval, Period, boundary_ns, index_at
from billing.invoices.proration import share
from billing.ledger.journal import Journal
from billing.money import from_minor, to_minor

MONTHS_OF: Final[dict[Interval, int]] = {"month": 1, "year": 12}


class FeeDiscount(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a coupon takes off the fee of a period, in minor units, > 0, for [start_ns, end_ns) of it."""

    code: str
    amount_minor: int
    start_ns: int
    end_ns: int

    def part(self, rest: Period) -> tuple[Period, int]:
        """The span of the discount that lies in `rest` (which ends with the fee's period), and its share."""
        whole = Period(self.start_ns, self.end_ns)
        inside = Period(min(max(rest.start_ns, self.start_ns), self.end_ns), self.end_ns)
        return inside, share(self.amount_minor, whole, inside)


class Fee(NamedTuple):
    """A fee to be asked for a period, and by what it is known."""

    subscription_id: str
    tenant: str
    plan: str
    amount_minor: int
    currency: str
    anchor_ns: int
    zone: str
    interval: Interval
    period: Period


def take_coupons(journal: Journal, fee: Fee, now_ns: int) -> tuple[FeeDiscount, ...]:
    """The discounts on a fee, noting the months that they use up; those of a period are used up once.

    Coupons count from the first fee that is asked after they were redeemed.
    """
    found = redemptions(journal.db, fee.tenant)
    if not any(one.coupon.applies_to != "usage" for one in found):
        return ()
    used = _months_used(journal, fee)
    redeemed = [Redeemed(one.coupon, used.get(one.coupon.code, 0)) for one in found]
    boundaries = _month_boundaries(fee)
    amounts = _by_month(fee, boundaries)
    left_minor, discounts = fee.amount_minor, list[FeeDiscount]()
    for off in fee_discounts(redeemed, amounts, fee.plan, fee.currency):
        # Rounded once per coupon; all of them together take no more than the fee.
        minor = min(left_minor, to_minor(off.amount_nanos, fee.currency))
        if not minor:
            continue
        left_minor -= minor
        end_ns = boundaries[off.months]
        discounts.append(FeeDiscount(code=off.code, amount_minor=minor, start_ns=fee.period.start_ns, end_ns=end_ns))
        journal.execute(
            "INSERT INTO fee_coupon VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (fee.tenant, off.code, fee.subscription_id, fee.period.start_ns, off.months, now_ns),
        )
    return tuple(discounts)


def _month_boundaries(fee: Fee) -> list[int]:
    first = index_at(fee.anchor_ns, fee.zone, "month", fee.period.start_ns)
    inner = [boundary_ns(fee.anchor_ns, fee.zone, "month", first + n) for n in range(1, MONTHS_OF[fee.interval])]
    return [fee.period.start_ns, *inner, fee.period.end_ns]


def _by_month(fee: Fee, boundaries: Sequence[int]) -> list[int]:
    """The fee's nanos by the months of its period, by elapsed seconds; they sum to it."""
    nanos = from_minor(fee.amount_minor, fee.currency)
    return [share(nanos, fee.period, Period(*span)) for span in pairwise(boundaries)]


def _months_used(journal: Journal, fee: Fee) -> dict[str, int]:
    """How many months of fees each coupon has reduced, this very period's aside."""
    rows = journal.execute(
        "SELECT code, SUM(months) FROM fee_coupon WHERE tenant = ? AND NOT (subscription_id = ? AND start_ns = ?)"
        " GROUP BY code",
        (fee.tenant, fee.subscription_id, fee.period.start_ns),
    )
    return {code: int(months) for code, months in rows}
