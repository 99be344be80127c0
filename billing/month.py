"""Owns what a month of posted usage costs under plans: charges, minimum, coupons, credit; every amount exact. Pure.

    list price (posted per call)  + adjustment per charge  + minimum true-up  - coupons  - promotional credit

The list price of each call stays what its record says; a month's plan is expressed as lines beside it, so an invoice's
lines are sums of exact nanos and each is rounded once, by the invoice (I17). Charge months are rated as wholes: tiers,
packages and included units count over all calls of the month under the plan.
"""

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

from billing.plans import OTHERS, SCALE, PlanCharge, PlanTerms, Unit
from billing.tiers import amount

Kind = Literal["adjustment", "minimum", "coupon", "promo"]
#: What separates a plan's name from its number of packs in what workers record.
PACKS_MARK: Final = "+"


class Usage(NamedTuple):
    """Posted calls of one model under one plan in a month. `charge_nanos` is their list price."""

    plan: str
    model: str
    ok_calls: int
    rows: int
    compute_ns: int
    byte_count: int
    charge_nanos: int


class PlanMonth(NamedTuple):
    """A plan as it holds in one month: its terms, and the minimum for the part of the month that it was in force."""

    plan: str
    version: int
    terms: PlanTerms
    minimum_nanos: int


class MonthLine(NamedTuple):
    """One line beside the list prices. `key` is stable: rating the month again gives the line of the same key."""

    key: str
    kind: Kind
    plan: str
    description: str
    amount_nanos: int


def base_plan(recorded: str) -> str:
    """The plan's name in what a worker records: "pro+2" is plan "pro" with two packs."""
    return recorded.partition(PACKS_MARK)[0]


def quantity_of(unit: Unit, usage: Sequence[Usage]) -> int:
    """Base units sold (see `billing.plans.SCALE`)."""
    if unit == "call":
        return sum(one.ok_calls for one in usage)
    if unit == "second":
        return sum(one.compute_ns for one in usage)
    if unit == "mb":
        return sum(one.byte_count for one in usage)
    return sum(one.rows for one in usage)


def charge_amount(charge: PlanCharge, quantity: int) -> int:
    """Nanos of `quantity` base units: never negative, whatever is included."""
    scale = SCALE[charge.unit]
    return amount(charge.rate, max(0, quantity - charge.included * scale), scale)


def plan_lines(month: PlanMonth, usage: Sequence[Usage]) -> list[MonthLine]:
    """The lines of one plan's charges and minimum over its own `usage`."""
    lines = [_charge_line(month, charge, _covered(month.terms, charge, usage)) for charge in month.terms.charges]
    spent = sum(one.charge_nanos for one in usage) + sum(line.amount_nanos for line in lines)
    if month.minimum_nanos:
        true_up = max(0, month.minimum_nanos - spent)
        text = f"{month.plan}: minimum of the month, less what was used"
        lines.append(MonthLine(f"{month.plan}:minimum", "minimum", month.plan, text, true_up))
    return lines


def net_by_plan(usage: Sequence[Usage], lines: Sequence[MonthLine]) -> dict[str, int]:
    """What a month costs under each plan so far: list prices and lines."""
    net: dict[str, int] = {}
    for one in usage:
        net[one.plan] = net.get(one.plan, 0) + one.charge_nanos
    for line in lines:
        net[line.plan] = net.get(line.plan, 0) + line.amount_nanos
    return net


def month_lines(months: Sequence[PlanMonth], usage: Sequence[Usage]) -> list[MonthLine]:
    """Every plan's lines, before coupons and credit."""
    return [line for month in months for line in plan_lines(month, [one for one in usage if one.plan == month.plan])]


def _covered(terms: PlanTerms, charge: PlanCharge, usage: Sequence[Usage]) -> list[Usage]:
    """The usage that a charge prices: its models, `*` being all that no replacing charge names."""
    named = {model for one in terms.charges if not one.is_on_top for model in one.models}
    return [
        one
        for one in usage
        if one.model in charge.models or (OTHERS in charge.models and (charge.is_on_top or one.model not in named))
    ]


def _charge_line(month: PlanMonth, charge: PlanCharge, usage: Sequence[Usage]) -> MonthLine:
    quantity = quantity_of(charge.unit, usage)
    nanos = charge_amount(charge, quantity)
    replaced = 0 if charge.is_on_top else sum(one.charge_nanos for one in usage)
    text = f"{month.plan} {charge.name}: {_quantity_text(quantity, charge)}"
    if charge.included:
        text += f", {charge.included:,} included"
    if not charge.is_on_top:
        text += "; instead of the list price"
    return MonthLine(f"{month.plan}:{charge.name}", "adjustment", month.plan, text, nanos - replaced)


def _quantity_text(quantity: int, charge: PlanCharge) -> str:
    whole, rest = divmod(quantity, SCALE[charge.unit])
    text = f"{whole:,}"
    if rest:
        digits = len(str(SCALE[charge.unit])) - 1
        text += "." + f"{rest:0{digits}d}".rstrip("0")
    return f"{text} {charge.unit}"
