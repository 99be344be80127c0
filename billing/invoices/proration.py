"""Owns the division of a fee over time: by the second, in whole minor units, so that parts always sum to the whole.

A part's share is the difference of two cumulative amounts, each cut down to whole units. Shares of parts that meet
therefore telescope: whatever the cuts, they add up to the fee exactly, through clock changes, leap days and months of
any length (I19), because only elapsed seconds count. Pure.
"""

from billing.invoices.period import Period, PeriodError


def cumulative(amount: int, done: int, whole: int) -> int:
    """The part of `amount` that belongs to the first `done` of `whole` units, cut towards minus infinity.

    Raises PeriodError unless 0 <= done <= whole and whole > 0.
    """
    if whole <= 0 or not 0 <= done <= whole:
        raise PeriodError(f"part: {done} of {whole} is no part of a whole")
    return amount * done // whole


def share(amount_minor: int, period: Period, part: Period) -> int:
    """What of `amount_minor`, the fee of `period`, belongs to `part` of it. Raises PeriodError if it lies outside."""
    if not period.start_ns <= part.start_ns <= part.end_ns <= period.end_ns:
        raise PeriodError(f"part: {part} does not lie within {period}")
    first, last = Period(period.start_ns, part.start_ns).seconds, Period(period.start_ns, part.end_ns).seconds
    return cumulative(amount_minor, last, period.seconds) - cumulative(amount_minor, first, period.seconds)


def largest_remainder(total: int, weights: tuple[int, ...]) -> tuple[int, ...]:
    """`total` divided by `weights` (not negative, not all zero) into whole parts that sum to it exactly.

    Parts are cut down first; what is left goes to the largest remainders, the earlier first. Raises PeriodError.
    """
    whole = sum(weights)
    if whole <= 0 or min(weights, default=0) < 0:
        raise PeriodError(f"weights: {weights} cannot divide anything")
    parts = [total * weight // whole for weight in weights]
    order = sorted(range(len(weights)), key=lambda index: (-(total * weights[index] % whole), index))
    for index in order[: total - sum(parts)]:
        parts[index] += 1
    return tuple(parts)
