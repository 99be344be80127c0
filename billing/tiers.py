"""Owns the rating models of a period: a quantity → integer nanos, by per unit, package, graduated or volume. Pure.

Quantities are whole base units; `scale` base units make one unit that is sold (1 for calls and rows, 10^9 nanoseconds
for a second, 10^6 bytes for a megabyte). Amounts are kept exact as nanos * scale and divided once, half to even.

Volume prices may dip at a threshold (more units, lower total). Here they are capped instead: whoever is just below a
threshold pays at most what the first quantity beyond it would cost, so the total never falls as the quantity grows.
"""

from typing import Final, Literal

import msgspec

Model = Literal["per_unit", "package", "graduated", "volume"]
MODELS: Final = ("per_unit", "package", "graduated", "volume")
TIERS_MAX: Final = 100


class Tier(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Prices of the units from `start` (included) to `end` (excluded; None: without end), counted from 0."""

    start: int
    end: int | None = None
    per_unit_nanos: int = 0
    #: Once, as soon as the tier is entered (graduated) or applies (volume).
    flat_nanos: int = 0


class Rate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One rating model with the fields it needs: a price per unit, a package, or tiers."""

    model: Model
    per_unit_nanos: int = 0
    #: `package_nanos` for every `package_units` units begun.
    package_units: int = 0
    package_nanos: int = 0
    tiers: tuple[Tier, ...] = ()


class RateError(ValueError):
    """A rate that cannot bill; `field` is the path inside the rate."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def validate_rate(rate: Rate) -> None:
    """Raises RateError unless the model has its fields and its tiers cover every quantity once."""
    if rate.model == "package" and rate.package_units < 1:
        raise RateError("package", f"{rate.package_units} must be at least 1: how many units a package has")
    if rate.model not in {"graduated", "volume"}:
        return
    if not rate.tiers:
        raise RateError("tiers", "there are none: add at least one tier that starts at 0")
    if len(rate.tiers) > TIERS_MAX:
        raise RateError("tiers", f"{len(rate.tiers)} tiers are more than the {TIERS_MAX} allowed")
    _validate_tiers(rate.tiers)


def _validate_tiers(tiers: tuple[Tier, ...]) -> None:
    expected = 0
    for index, tier in enumerate(tiers):
        where = f"tiers[{index}]"
        if tier.start < expected:
            raise RateError(
                f"{where}.from", f"{tier.start} overlaps the tier before, which ends at {expected}: set {expected}"
            )
        if tier.start > expected:
            said = f"units from {expected} to {tier.start} have no price"
            raise RateError(f"{where}.from", f"{tier.start} leaves a gap, {said}: set {expected}")
        is_last = index == len(tiers) - 1
        if tier.end is None:
            if not is_last:
                raise RateError(f"{where}.to", "is missing: only the last tier is without end")
            return
        if tier.end <= tier.start:
            raise RateError(f"{where}.to", f"{tier.end} must be above from, {tier.start}")
        if is_last:
            raise RateError(f"{where}.to", f"units from {tier.end} on have no price: leave `to` out of the last tier")
        expected = tier.end


def amount(rate: Rate, quantity: int, scale: int = 1) -> int:
    """Nanos for `quantity` base units, rounded once (half to even). `rate` is valid, quantity >= 0, scale >= 1."""
    return divide_half_even(scaled_amount(rate, quantity, scale), scale)


def scaled_amount(rate: Rate, quantity: int, scale: int) -> int:
    """The exact amount in nanos * scale."""
    if rate.model == "per_unit":
        return rate.per_unit_nanos * quantity
    if rate.model == "package":
        return -(-quantity // (rate.package_units * scale)) * rate.package_nanos * scale
    if rate.model == "graduated":
        return graduated_part(rate.tiers, 0, quantity, scale)
    return _volume(rate.tiers, quantity, scale)


def graduated_part(tiers: tuple[Tier, ...], before: int, quantity: int, scale: int) -> int:
    """nanos * scale of the `quantity` base units that follow the first `before`: parts sum to the whole (I18)."""
    after = before + quantity
    total = 0
    for tier in tiers:
        start = tier.start * scale
        end = after if tier.end is None else tier.end * scale
        inside = min(after, end) - max(before, start)
        if inside > 0:
            total += inside * tier.per_unit_nanos
            if before <= start:
                total += tier.flat_nanos * scale
    return total


def _volume(tiers: tuple[Tier, ...], quantity: int, scale: int) -> int:
    """The least of: all units at their own tier, and the least quantity of each higher tier at that tier."""
    if not quantity:
        return 0
    costs = [
        max(quantity, tier.start * scale) * tier.per_unit_nanos + tier.flat_nanos * scale
        for tier in tiers
        if tier.end is None or tier.end * scale > quantity
    ]
    return min(costs)


def divide_half_even(numerator: int, denominator: int) -> int:
    """`numerator / denominator` to the nearest whole number, ties to even. `denominator` >= 1."""
    quotient, rest = divmod(numerator, denominator)
    if 2 * rest > denominator or (2 * rest == denominator and quotient & 1):
        return quotient + 1
    return quotient
