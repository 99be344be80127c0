"""HOT PATH. Owns the price book's shape and the pure function from units to money. Never imports the ledger.

Amounts are integer nanos: 1e-9 of the currency's major unit. No float from here onward.
"""

from typing import Final, NewType

import msgspec

from billing.amounts import NS_PER_MS, Terms, amount_of, compute_ms
from billing.events import Outcome, Reason

Nanos = NewType("Nanos", int)

#: One call may cost at most one million major units; a batch of them still fits a signed 64-bit sum.
CHARGE_NANOS_MAX: Final = 10**15
#: A single price is bounded so that a typing error of six zeros is refused, not billed.
PRICE_NANOS_MAX: Final = 10**15
MODELS_MAX: Final = 10_000
#: A bound of a call's compute time: one day.
COMPUTE_MS_MAX: Final = 86_400_000

#: The plan's `pricing` (gateway.snapshot.Plan) → the reason of an OK call under it.
REASON_BY_PRICING: Final = {
    "priced": Reason.PRICED,
    "free": Reason.FREE_PLAN,
    "internal": Reason.INTERNAL_PLAN,
    "prepaid": Reason.PREPAID,
}
PRICING_BY_REASON: Final = {reason: pricing for pricing, reason in REASON_BY_PRICING.items()}

Charge = tuple[int, Reason]


class PriceError(Exception):
    """A price book that cannot be used, or a pricing it does not know; the message names field and value."""


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one call of a model costs: call + rows * row + compute milliseconds * ms. All in nanos, all >= 0."""

    per_call_nanos: int = 0
    per_row_nanos: int = 0
    per_compute_ms_nanos: int = 0
    #: Compute milliseconds that a call with a bounded price is charged for at most (prepaid, or with a maximum cost of
    #: its caller's); 0: not declared, so a price by time has no bound.
    compute_ms_max: int = 0


class PriceBook(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Versioned prices of one currency. `models` overrides `default` by exact model name; immutable once used."""

    version: int
    currency: str
    default: Price
    models: dict[str, Price] = {}


class Rater:
    """One compiled price book: `charge` is a dict lookup and integer maths. Made by `compile_book`."""

    __slots__ = ("_default", "_models", "book", "currency", "version")

    def __init__(self, book: PriceBook) -> None:
        self.book = book
        self.version = book.version
        self.currency = book.currency
        self._default = _terms(book.default)
        self._models = {model: _terms(price) for model, price in book.models.items()}

    def charge(self, model: str, pricing: str, outcome: int, rows: int, compute_ns: int) -> Charge:
        """The list price of one call in nanos, and why. `rows` and `compute_ns` are >= 0 (the caller's duty).

        A failed call costs nothing whatever its plan; so does any call of a free or internal plan.
        Raises PriceError for a `pricing` that is none of "priced", "prepaid", "free", "internal".
        """
        if outcome:
            return _NOT_BILLABLE
        reason = _SOLD.get(pricing)
        if reason is None:
            try:
                return _UNPRICED[pricing]
            except KeyError:
                raise PriceError(f"pricing: {pricing!r} is unknown; known: {', '.join(REASON_BY_PRICING)}") from None
        return amount_of(self._models.get(model, self._default), rows, compute_ns), reason

    def terms_of(self, model: str) -> Terms:
        """The terms of a priced OK call of `model`, for `amount_of`."""
        return self._models.get(model, self._default)

    def price_of(self, model: str) -> Price:
        """The price that applies to `model` (its own, else the default)."""
        return self.book.models.get(model, self.book.default)


def compile_book(book: PriceBook) -> Rater:
    """A `Rater` over a validated copy of `book`. Raises PriceError naming the first bad field and its value."""
    validate_book(book)
    return Rater(book)


def validate_book(book: PriceBook) -> None:
    """Raises PriceError when a value of `book` is out of range; shape errors are `billing.pricebook`'s to name."""
    if book.version < 1 or book.version >= 2**31:
        raise PriceError(f"version: {book.version!r} must be from 1 to {2**31 - 1}")
    if not (
        len(book.currency) == 3 and book.currency.isascii() and book.currency.isupper() and book.currency.isalpha()
    ):
        raise PriceError(f"currency: {book.currency!r} must be three capital letters (ISO 4217)")
    if len(book.models) > MODELS_MAX:
        raise PriceError(f"models: {len(book.models)} entries are more than the {MODELS_MAX} allowed")
    _validate_price("default", book.default)
    for model, price in book.models.items():
        if not model or len(model) > 256:
            raise PriceError(f"models: {model!r} must be a model name of 1 to 256 characters")
        _validate_price(f"models.{model}", price)


def _validate_price(where: str, price: Price) -> None:
    for field in Price.__struct_fields__:
        value, is_time = getattr(price, field), field == "compute_ms_max"
        unit, most = ("milliseconds", COMPUTE_MS_MAX) if is_time else ("nanos", PRICE_NANOS_MAX)
        if isinstance(value, bool) or not isinstance(value, int):
            raise PriceError(f"{where}.{field}: {value!r} must be a whole number of {unit}")
        if value < 0 or value > most:
            raise PriceError(f"{where}.{field}: {value!r} must be from 0 to {most}")


def _terms(price: Price) -> Terms:
    return price.per_call_nanos, price.per_row_nanos, price.per_compute_ms_nanos


_NOT_BILLABLE: Final[Charge] = (0, Reason.NOT_BILLABLE)
#: Pricings at list price; they differ in who pays when.
_SOLD: Final = {"priced": Reason.PRICED, "prepaid": Reason.PREPAID}
_UNPRICED: Final[dict[str, Charge]] = {
    pricing: (0, reason) for pricing, reason in REASON_BY_PRICING.items() if pricing not in _SOLD
}

__all__ = [
    "CHARGE_NANOS_MAX",
    "COMPUTE_MS_MAX",
    "NS_PER_MS",
    "PRICE_NANOS_MAX",
    "PRICING_BY_REASON",
    "REASON_BY_PRICING",
    "Charge",
    "Nanos",
    "Outcome",
    "Price",
    "PriceBook",
    "PriceError",
    "Rater",
    "Reason",
    "Terms",
    "amount_of",
    "compile_book",
    "compute_ms",
    "validate_book",
]
