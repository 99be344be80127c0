"""Owns the catalogue file: plans and coupons in TOML or JSON, in; validated values, out. Nothing is guessed.

    currency = "EUR"
    [plans.pro]                       # limits: docs/quotas.md
    pricing = "priced"
    rate_calls = 20
    [plans.pro.subscription]
    fee = "29.00"
    [plans.pro.charges.calls]
    unit = "call"
    included = 10_000
    per_unit = "0.002"
    [coupons.WELCOME]
    percent = 20

docs/plans-and-prices.md documents every field.
"""

import re
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, cast

from billing.coupons import APPLIES_TO, CODE_PATTERN, COUPONS_MAX, MONTHS_MAX, REDEMPTIONS_MAX, AppliesTo, Coupon
from billing.fields import COUNT_MAX, FileError, Table, decode_file
from billing.money import is_currency
from billing.plans import (
    AMOUNT_NANOS_MAX,
    CHARGES_MAX,
    CREDIT_DAYS_MAX,
    OTHERS,
    PACKS_MAX,
    TRIAL_DAYS_MAX,
    UNITS,
    Pack,
    PlanCharge,
    PlanError,
    PlanTerms,
    Subscription,
    TrialCredit,
    Unit,
    validate_terms,
)
from billing.tiers import Model, Rate, Tier

PLANS_MAX: Final = 1_000
_CHARGE_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?\Z")
_CODE: Final = re.compile(CODE_PATTERN + r"\Z")


class PlanEntry(NamedTuple):
    """One plan of a file: its name, the fields of its limits as written, and its money (None: list prices only)."""

    name: str
    limits: dict[str, Any]
    terms: PlanTerms | None


class Catalogue(NamedTuple):
    """What one file holds."""

    plans: tuple[PlanEntry, ...]
    coupons: tuple[Coupon, ...]


def parse_catalogue(data: bytes, *, is_json: bool, name: str = "") -> Catalogue:
    """The plans and coupons that `data` writes. Raises FileError, beginning with the file's `name`."""
    try:
        root = decode_file(data, is_json=is_json)
        currency = root.text("currency", "")
        if currency and not is_currency(currency):
            raise root.fail("currency", f"{currency!r} is not an ISO 4217 code such as USD: correct it")
        plans = tuple(_plan(key, one, currency) for key, one in root.named("plans", at_most=PLANS_MAX).items())
        coupons = tuple(_coupon(key, one, currency) for key, one in root.named("coupons", at_most=COUPONS_MAX).items())
        root.end()
        if not plans and not coupons:
            raise FileError("the file holds no plan and no coupon: add a table [plans.NAME] or [coupons.CODE]")
    except FileError as error:
        raise FileError(f"{name}: {error}" if name else str(error)) from error
    return Catalogue(plans, coupons)


def _plan(name: str, table: Table, currency: str) -> PlanEntry:
    has_money = any(table.has(part) for part in ("subscription", "minimum", "pack", "trial_credit", "charges"))
    terms = None
    if has_money:
        if not currency:
            raise FileError(f"{table.path}: sells something, but the file has no currency: add it at the top")
        terms = PlanTerms(
            currency=currency,
            subscription=_subscription(table.table("subscription")),
            minimum_nanos=_minimum(table.table("minimum")),
            pack=_pack(table.table("pack")),
            trial_credit=_trial_credit(table.table("trial_credit")),
            charges=tuple(_charge(key, one) for key, one in table.named("charges", at_most=CHARGES_MAX).items()),
        )
        try:
            validate_terms(terms)
        except PlanError as error:
            raise FileError(f"{table.path}.{error.field}: {error.problem}") from error
    # The limits' own fields are control's to check: it knows them, and refuses unknown ones by name.
    return PlanEntry(name, table.rest(), terms)


def _subscription(table: Table | None) -> Subscription | None:
    if table is None:
        return None
    found = Subscription(
        fee_nanos=table.amount("fee", high=AMOUNT_NANOS_MAX),
        interval="year" if table.text("interval", "month", choices=("month", "year")) == "year" else "month",
        trial_days=table.integer("trial_days", 0, high=TRIAL_DAYS_MAX),
    )
    table.end()
    return found


def _minimum(table: Table | None) -> int:
    if table is None:
        return 0
    nanos = table.amount("per_month", high=AMOUNT_NANOS_MAX)
    table.end()
    return nanos


def _pack(table: Table | None) -> Pack | None:
    if table is None:
        return None
    found = Pack(
        rate_calls=table.integer("rate_calls", 0, high=COUNT_MAX),
        burst=table.integer("burst", 0, high=COUNT_MAX),
        concurrency=table.integer("concurrency", 0, high=COUNT_MAX),
        fee_nanos=table.amount("fee", high=AMOUNT_NANOS_MAX),
        packs_max=table.integer("packs_max", 100, low=1, high=PACKS_MAX),
    )
    table.end()
    return found


def _trial_credit(table: Table | None) -> TrialCredit | None:
    if table is None:
        return None
    found = TrialCredit(
        amount_nanos=table.amount("amount", high=AMOUNT_NANOS_MAX),
        days=table.integer("days", low=1, high=CREDIT_DAYS_MAX),
    )
    if not found.amount_nanos:
        raise table.fail("amount", "is 0: leave trial_credit out")
    table.end()
    return found


def _charge(name: str, table: Table) -> PlanCharge:
    if _CHARGE_NAME.match(name) is None:
        raise FileError(f"{table.path}: a charge's name has 1 to 63 lower-case letters, digits, - and _: rename it")
    found = PlanCharge(
        name=name,
        unit=cast(Unit, table.text("unit", choices=UNITS)),
        included=table.integer("included", 0),
        models=table.texts("models") if table.has("models") else (OTHERS,),
        is_on_top=table.flag("is_on_top", default=False),
        rate=_rate(table),
    )
    table.end()
    return found


def _rate(table: Table) -> Rate:
    """The rating model: `model` may be left out when the fields say which it is."""
    shapes: dict[Model, str] = {"per_unit": "per_unit", "package": "package", "graduated": "tiers", "volume": "tiers"}
    given = [field for field in ("per_unit", "package", "tiers") if table.has(field)]
    if len(given) != 1:
        said = " and ".join(given) or "none of them"
        raise FileError(f"{table.path}: give exactly one of per_unit, package and tiers, not {said}")
    fits = [model for model, field in shapes.items() if field == given[0]]
    default = fits[0] if len(fits) == 1 else None
    if default is None and not table.has("model"):
        raise table.fail("model", 'is missing: tiers are "graduated" or "volume"')
    model = cast(Model, table.text("model", default, choices=fits))
    if given[0] == "per_unit":
        return Rate(model=model, per_unit_nanos=table.amount("per_unit", high=AMOUNT_NANOS_MAX))
    if given[0] == "package":
        package = table.table("package")
        assert package is not None
        found = Rate(
            model=model,
            package_units=package.integer("units", low=1),
            package_nanos=package.amount("price", high=AMOUNT_NANOS_MAX),
        )
        package.end()
        return found
    return Rate(model=model, tiers=tuple(_tier(row) for row in table.rows("tiers")))


def _tier(table: Table) -> Tier:
    found = Tier(
        start=table.integer("from"),
        end=table.optional_integer("to"),
        per_unit_nanos=table.amount("per_unit", 0, high=AMOUNT_NANOS_MAX),
        flat_nanos=table.amount("flat", 0, high=AMOUNT_NANOS_MAX),
    )
    table.end()
    return found


def _coupon(code: str, table: Table, currency: str) -> Coupon:
    if _CODE.match(code) is None:
        raise FileError(f"{table.path}: a code has 1 to 40 capital letters, digits and dashes: rename it")
    if table.has("percent") == table.has("amount"):
        raise FileError(f"{table.path}: give exactly one of percent and amount")
    if table.has("amount") and not currency:
        raise FileError(f"{table.path}.amount: needs a currency: add `currency` at the top of the file")
    is_amount = table.has("amount")
    amount = table.amount("amount", high=AMOUNT_NANOS_MAX) if is_amount else 0
    if is_amount and not amount:
        raise table.fail("amount", "is 0: a coupon takes something off")
    applies_to = cast(AppliesTo, table.text("applies_to", "usage", choices=APPLIES_TO))
    if is_amount and applies_to == "all":
        raise table.fail("applies_to", 'is "all", but an amount is not divided: use "usage" or "fees", or a percent')
    found = Coupon(
        code=code,
        percent_ppm=0 if is_amount else table.ppm("percent"),
        amount_nanos=amount,
        currency=currency if is_amount else "",
        months=table.integer("months", 1, high=MONTHS_MAX),
        redemptions_max=table.integer("redemptions_max", 0, high=REDEMPTIONS_MAX),
        redeem_until_ns=_instant(table, "redeem_until"),
        plans=table.texts("plans"),
        applies_to=applies_to,
    )
    table.end()
    return found


def _instant(table: Table, name: str) -> int | None:
    text = table.text(name, "")
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise table.fail(name, f"{text!r} is no instant: write for example 2026-12-31T23:59:59Z") from error
    instant_ns = int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()) * 1_000_000_000
    if not 0 <= instant_ns < 2**63:
        raise table.fail(name, f"{text!r} must lie between the years 1970 and 2262")
    return instant_ns
