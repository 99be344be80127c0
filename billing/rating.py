"""HOT PATH. Owns the price book's shape and the pure function from units to money. Never imports the ledger.

Amounts are integer nanos: 1e-9 of the currency's major unit. No float from here onward.
"""

from typing import NewType

import msgspec

from billing.events import Outcome, Reason

Nanos = NewType("Nanos", int)


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one call of a model costs: call + rows * row + compute milliseconds * ms. All in nanos, all >= 0."""

    per_call_nanos: int = 0
    per_row_nanos: int = 0
    per_compute_ms_nanos: int = 0


class PriceBook(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Versioned prices of one currency. `models` overrides `default` by exact model name; immutable once used."""

    version: int
    currency: str
    default: Price
    models: dict[str, Price] = {}
