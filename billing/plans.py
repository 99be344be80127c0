"""Owns the money half of a plan: its fee, included units and overage, minimum, QPS packs and trial credit. Pure.

The other half, the limits, is `gateway.snapshot.Plan`. A plan's calls are recorded at the price book's list price; its
`charges` say what they cost over a month instead. Amounts are integer nanos of `currency`.
"""

from typing import Final, Literal

import msgspec

from billing.money import is_currency, minor_digits
from billing.tiers import Rate, RateError, validate_rate

TERMS_VERSION: Final = 1
CHARGES_MAX: Final = 100
#: The most that a fee, a minimum or a single price of a plan may be: one million major units.
AMOUNT_NANOS_MAX: Final = 10**15
TRIAL_DAYS_MAX: Final = 365
PACKS_MAX: Final = 1_000
CREDIT_DAYS_MAX: Final = 3_660
#: In a charge's `models`: every model that no other replacing charge of the plan names.
OTHERS: Final = "*"

Unit = Literal["call", "row", "image", "token", "second", "mb"]
UNITS: Final = ("call", "row", "image", "token", "second", "mb")
#: Base units of one unit sold. Images and tokens are rows of models that report them so; bytes go both ways.
SCALE: Final[dict[Unit, int]] = {"call": 1, "row": 1, "image": 1, "token": 1, "second": 10**9, "mb": 10**6}


class PlanError(ValueError):
    """Terms that cannot bill. `field` is the path inside the terms, the message says what is wrong and what to do."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.problem = message


class PlanCharge(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a quantity costs per month under a plan: the first `included` units nothing, the rest by `rate`.

    It replaces the list price of its models' calls, or with `is_on_top` is added to it.
    """

    name: str
    unit: Unit
    rate: Rate
    included: int = 0
    models: tuple[str, ...] = (OTHERS,)
    is_on_top: bool = False


class Pack(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A QPS pack: what each one adds to the plan's rate, burst and concurrency, and its fee per period."""

    rate_calls: int
    burst: int
    fee_nanos: int
    concurrency: int = 0
    packs_max: int = 100


class Subscription(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A fee in advance per month or year, after a trial of `trial_days`."""

    fee_nanos: int
    interval: Literal["month", "year"] = "month"
    trial_days: int = 0


class TrialCredit(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Promotional credit, given once with the subscription, that ends after `days`."""

    amount_nanos: int
    days: int


class PlanTerms(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The money of one plan version; immutable. A new version holds from the next charge month on."""

    schema: int = TERMS_VERSION
    currency: str
    subscription: Subscription | None = None
    #: What a month under the plan costs at least, before coupons and credit; prorated by the second.
    minimum_nanos: int = 0
    pack: Pack | None = None
    trial_credit: TrialCredit | None = None
    charges: tuple[PlanCharge, ...] = ()


def validate_terms(terms: PlanTerms) -> None:
    """Raises PlanError naming the first field that is out of range or contradicts another."""
    if not is_currency(terms.currency):
        raise PlanError("currency", f"{terms.currency!r} is not an ISO 4217 code such as USD: correct it")
    if len(terms.charges) > CHARGES_MAX:
        raise PlanError("charges", f"{len(terms.charges)} charges are more than the {CHARGES_MAX} allowed")
    if terms.subscription is not None:
        _whole_minor("subscription.fee", terms.subscription.fee_nanos, terms.currency)
    if terms.pack is not None:
        _whole_minor("pack.fee", terms.pack.fee_nanos, terms.currency)
        if not (terms.pack.rate_calls or terms.pack.concurrency):
            raise PlanError("pack", "adds nothing: give rate_calls or concurrency")
    for charge in terms.charges:
        try:
            validate_rate(charge.rate)
        except RateError as error:
            raise PlanError(f"charges.{charge.name}.{error.field}", str(error)) from error
    _models_once(terms.charges)


def _whole_minor(field: str, nanos: int, currency: str) -> None:
    """Fees are invoiced in minor units: a fraction of a cent could not be prorated to the whole."""
    digits = minor_digits(currency)
    if nanos % 10 ** (9 - digits):
        raise PlanError(field, f"has more than the {digits} decimal places of {currency}: round it")


def _models_once(charges: tuple[PlanCharge, ...]) -> None:
    taken: dict[str, str] = {}
    for charge in charges:
        if not charge.models:
            raise PlanError(f"charges.{charge.name}.models", "is empty: name models, or leave it out for all others")
        if charge.is_on_top:
            continue
        for model in charge.models:
            if model in taken:
                raise PlanError(
                    f"charges.{charge.name}.models",
                    f"{model!r} is priced by charges.{taken[model]} already: "
                    "keep one of them, or set is_on_top = true on the added one",
                )
            taken[model] = charge.name


def encode_terms(terms: PlanTerms) -> str:
    """Canonical JSON: equal terms have equal text."""
    return msgspec.json.encode(terms, order="deterministic").decode()


def decode_terms(text: str | bytes) -> PlanTerms:
    """Reverse of `encode_terms`. Raises PlanError."""
    try:
        terms = msgspec.json.decode(text, type=PlanTerms)
    except msgspec.DecodeError as error:
        raise PlanError("terms", f"are no stored plan terms: {error}") from error
    validate_terms(terms)
    return terms
