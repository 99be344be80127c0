"""Owns quotes: list prices by the code that charges calls, a month under a plan by the code that rates months. Pure."""

from typing import NamedTuple

from billing.month import MonthLine, PlanMonth, Usage, month_lines
from billing.plans import PlanTerms
from billing.rating import CHARGE_NANOS_MAX, Rater


class QuoteError(ValueError):
    """Something that cannot be quoted; the message names the argument."""


class Call(NamedTuple):
    """What one call is expected to use. `byte_count`: request and reply together."""

    model: str
    rows: int = 1
    compute_ns: int = 0
    byte_count: int = 0


class Quote(NamedTuple):
    """One call's list price, and `calls` such calls in a month: list prices and the plan's lines. Fees come on top."""

    call_nanos: int
    list_nanos: int
    lines: list[MonthLine]


def quote(
    rater: Rater, call: Call, *, calls: int = 1, pricing: str = "priced", plan: str = "", terms: PlanTerms | None = None
) -> Quote:
    """What `calls` such calls cost in one month.

    Raises QuoteError for numbers out of range, PriceError for an unknown pricing.
    """
    for name, value in (
        ("rows", call.rows),
        ("compute", call.compute_ns),
        ("bytes", call.byte_count),
        ("calls", calls),
    ):
        if not 0 <= value < 2**48:
            raise QuoteError(f"{name}: {value} must be from 0 to {2**48 - 1}")
    call_nanos, _ = rater.charge(call.model, pricing, 0, call.rows, call.compute_ns)
    if call_nanos > CHARGE_NANOS_MAX:
        raise QuoteError(f"rows, compute: one call would cost more than the {CHARGE_NANOS_MAX} nanos a call may cost")
    lines: list[MonthLine] = []
    list_nanos = call_nanos * calls
    if terms is not None:
        usage = Usage(
            plan, call.model, calls, call.rows * calls, call.compute_ns * calls, call.byte_count * calls, list_nanos
        )
        lines = month_lines([PlanMonth(plan, 0, terms, terms.minimum_nanos)], [usage])
    return Quote(call_nanos, list_nanos, lines)
