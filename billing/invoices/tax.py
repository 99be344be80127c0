"""Owns tax: rate tables by jurisdiction and date, who is taxed how, and the one rounding rule. Pure; not tax advice.

The rule: per tax component of a document, the sum of its lines' minor units times the rate, **rounded half away from
zero, once**. Rates are whole parts per million (19 % is 190000). A negative amount gives exactly the negative tax.
"""

from collections.abc import Sequence
from datetime import date
from typing import Final, Literal, NamedTuple

import msgspec

from billing.invoices.proration import largest_remainder

PPM: Final = 1_000_000
RATE_PPM_MAX: Final = PPM
RATES_MAX: Final = 10_000
Treatment = Literal["taxed", "exempt", "reverse_charge", "not_registered"]
_CATEGORY_MAX: Final = 64


class TaxError(ValueError):
    """A table or profile that cannot be used; the message names the field and its value."""


class TaxRate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One component of tax in a jurisdiction ("DE", or "US-CA" for a region), from a day on (in the seller's days)."""

    jurisdiction: str
    name: str
    rate_ppm: int
    category: str = "standard"
    valid_from: date = date(1970, 1, 1)
    #: The first day on which it no longer applies.
    valid_until: date | None = None


class TaxTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The rates a seller has to charge. `reverse_charge_zones`: countries between which a registered buyer accounts
    for the tax himself."""

    version: int
    rates: tuple[TaxRate, ...] = ()
    reverse_charge_zones: tuple[tuple[str, ...], ...] = ()


class TaxProfile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a party is, for tax. `region` is the part behind the country in ISO 3166-2, such as "CA" of "US-CA"."""

    country: str
    region: str = ""
    tax_id: str = ""
    is_exempt: bool = False


class Decision(NamedTuple):
    """How one category of goods is taxed for one buyer: its components, or why there are none."""

    treatment: Treatment
    components: tuple[TaxRate, ...]


class TaxLine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One component on a document: base and tax in minor units; `base_minor` is always net of tax."""

    category: str
    treatment: Treatment
    jurisdiction: str
    name: str
    rate_ppm: int
    base_minor: int
    tax_minor: int


def validate_table(table: TaxTable) -> TaxTable:
    """`table` itself. Raises TaxError naming the first bad row."""
    if table.version < 1 or len(table.rates) > RATES_MAX:
        raise TaxError(f"version: {table.version} must be at least 1, with at most {RATES_MAX} rates")
    seen: list[TaxRate] = []
    for index, rate in enumerate(table.rates):
        where = f"rates[{index}]"
        if not _is_jurisdiction(rate.jurisdiction):
            raise TaxError(f'{where}.jurisdiction: {rate.jurisdiction!r} must be like "DE" or "US-CA"')
        if not 0 <= rate.rate_ppm <= RATE_PPM_MAX:
            raise TaxError(f"{where}.rate_ppm: {rate.rate_ppm} must be from 0 to {RATE_PPM_MAX}")
        if not rate.name or len(rate.name) > 100 or not rate.category or len(rate.category) > _CATEGORY_MAX:
            raise TaxError(f"{where}: name and category must have 1 to 100 and 1 to {_CATEGORY_MAX} characters")
        if rate.valid_until is not None and rate.valid_until <= rate.valid_from:
            raise TaxError(f"{where}.valid_until: {rate.valid_until} is not after {rate.valid_from}")
        clash = next((other for other in seen if _overlaps(other, rate)), None)
        if clash is not None:
            raise TaxError(f"{where}: overlaps in time with another rate {rate.name!r} of {rate.jurisdiction}")
        seen.append(rate)
    for zone in table.reverse_charge_zones:
        for country in zone:
            if not _is_country(country):
                raise TaxError(f"reverse_charge_zones: {country!r} is no two-letter country code")
    return table


def validate_profile(profile: TaxProfile) -> TaxProfile:
    """`profile` itself. Raises TaxError: country, region or tax id are not well formed."""
    if not _is_country(profile.country):
        raise TaxError(f"country: {profile.country!r} is no two-letter country code")
    if profile.region and not _is_jurisdiction(f"{profile.country}-{profile.region}"):
        raise TaxError(f"region: {profile.region!r} must be one to three capital letters or digits")
    if profile.tax_id and not (
        2 <= len(profile.tax_id) <= 20 and profile.tax_id.isascii() and profile.tax_id.isalnum()
    ):
        raise TaxError(f"tax_id: {profile.tax_id!r} must be 2 to 20 letters and digits")
    return profile


def decide(table: TaxTable, seller: TaxProfile, buyer: TaxProfile, category: str, on: date) -> Decision:
    """How goods of `category` sold on that day are taxed. The region's rates come before the country's.

    Order: an exempt buyer; reverse charge (two countries of one zone, the buyer has a tax id); the rates in force; no
    rate, because the seller is not registered there.
    """
    if buyer.is_exempt:
        return Decision("exempt", ())
    if buyer.tax_id and buyer.country != seller.country and _share_zone(table, seller.country, buyer.country):
        return Decision("reverse_charge", ())
    for place in ([f"{buyer.country}-{buyer.region}"] if buyer.region else []) + [buyer.country]:
        rates = tuple(rate for rate in table.rates if _applies(rate, place, category, on))
        if rates:
            return Decision("taxed", rates)
    return Decision("not_registered", ())


def tax_lines(category: str, amount_minor: int, decision: Decision, *, is_inclusive: bool) -> tuple[TaxLine, ...]:
    """The tax components of `amount_minor`, the sum of a document's lines of one category.

    Inclusive: the amount holds the tax, which is amount * rate / (1 + rate), divided among several components by
    largest remainder. Exclusive: tax comes on top, each component of the same base.
    """
    if not decision.components:
        return (_line(category, decision.treatment, None, amount_minor, 0),)
    if not is_inclusive:
        return tuple(
            _line(category, "taxed", rate, amount_minor, half_away(amount_minor * rate.rate_ppm, PPM))
            for rate in decision.components
        )
    total_ppm = sum(rate.rate_ppm for rate in decision.components)
    tax_minor = half_away(amount_minor * total_ppm, PPM + total_ppm)
    base = amount_minor - tax_minor
    weights = tuple(rate.rate_ppm for rate in decision.components)
    parts = _divided(tax_minor, weights)
    return tuple(
        _line(category, "taxed", rate, base, part) for rate, part in zip(decision.components, parts, strict=True)
    )


def _divided(tax_minor: int, weights: Sequence[int]) -> tuple[int, ...]:
    if not any(weights):
        return tuple(0 for _ in weights)
    sign = -1 if tax_minor < 0 else 1
    return tuple(sign * part for part in largest_remainder(abs(tax_minor), tuple(weights)))


def _line(category: str, treatment: Treatment, rate: TaxRate | None, base_minor: int, tax_minor: int) -> TaxLine:
    return TaxLine(
        category=category,
        treatment=treatment,
        jurisdiction="" if rate is None else rate.jurisdiction,
        name="" if rate is None else rate.name,
        rate_ppm=0 if rate is None else rate.rate_ppm,
        base_minor=base_minor,
        tax_minor=tax_minor,
    )


def half_away(numerator: int, denominator: int) -> int:
    """numerator / denominator (> 0), rounded half away from zero."""
    rounded = (2 * abs(numerator) + denominator) // (2 * denominator)
    return -rounded if numerator < 0 else rounded


def _applies(rate: TaxRate, jurisdiction: str, category: str, on: date) -> bool:
    return (
        rate.jurisdiction == jurisdiction
        and rate.category == category
        and rate.valid_from <= on
        and (rate.valid_until is None or on < rate.valid_until)
    )


def _overlaps(one: TaxRate, other: TaxRate) -> bool:
    if (one.jurisdiction, one.category, one.name) != (other.jurisdiction, other.category, other.name):
        return False
    return (one.valid_until is None or other.valid_from < one.valid_until) and (
        other.valid_until is None or one.valid_from < other.valid_until
    )


def _share_zone(table: TaxTable, seller: str, buyer: str) -> bool:
    return any(seller in zone and buyer in zone for zone in table.reverse_charge_zones)


def _is_country(text: str) -> bool:
    return len(text) == 2 and text.isascii() and text.isalpha() and text.isupper()


def _is_jurisdiction(text: str) -> bool:
    country, dash, region = text.partition("-")
    is_region = 1 <= len(region) <= 3 and region.isascii() and region.isalnum() and region == region.upper()
    return _is_country(country) and (is_region if dash else True)
