"""Owns the bodies of the money commands on invoices: closed structs, amounts in minor units unless they say nanos."""

import msgspec

from billing.invoices.document import LineKind


class AddItem(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Something to bill with the next invoice; negative amounts reduce it. `source` makes it idempotent."""

    tenant: str
    source: str
    kind: LineKind
    description: str
    amount_nanos: int
    tax_category: str = "standard"
    start_ns: int = 0
    end_ns: int = 0


class Draft(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Draft an invoice over usage before `until_ns` and all pending items."""

    tenant: str
    until_ns: int
    start_ns: int | None = None


class Named(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A document by id or number."""

    document: str
    note: str = ""


class Credit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Give back `amount_minor` (tax included) of an invoice. With `line` (its place, from 0), a fee for a time, what is
    not yet earned of it comes out of the liability."""

    invoice: str
    amount_minor: int
    reason: str
    line: int | None = None


class Payment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Money received. `reference` is its id at the provider: it is booked once. In another currency than the
    invoice's, `paid_minor` of `paid_currency` came in and settle `amount_minor` of the invoice."""

    invoice: str
    provider: str
    reference: str
    amount_minor: int
    paid_currency: str | None = None
    paid_minor: int | None = None


class Refund(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Money given back of what an invoice was overpaid by."""

    invoice: str
    provider: str
    reference: str
    amount_minor: int
