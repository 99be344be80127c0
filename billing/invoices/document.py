"""Owns the shape of an invoice and a credit note: what is printed and kept for ever, and its canonical JSON.

Amounts: `exact_nanos` is what the ledger carries (1e-9 of the major unit), `*_minor` whole minor units of `currency`.
A document's lines are rounded once each (`billing.money.to_minor`, half to even); the remainder of a line is at most
half a minor unit and goes to `revenue:rounding` (I17).
"""

import hashlib
from typing import Final, Literal

import msgspec

from billing.invoices.tax import TaxLine, TaxProfile

DOCUMENT_VERSION: Final = 1
LINES_MAX: Final = 5_000

Kind = Literal["invoice", "credit_note"]
LineKind = Literal[
    "usage", "subscription", "proration", "minimum", "adjustment", "promo", "coupon", "rebilled", "credit"
]
Status = Literal["open", "paid", "void", "uncollectible"]


class Party(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seller or buyer as printed; `address` has at most eight lines."""

    name: str
    tax: TaxProfile
    address: tuple[str, ...] = ()
    email: str = ""


class Line(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line. `account` is the ledger account it is taken from when the document is finalized.

    `quantity` counts `unit`s for the reader; the amount does not follow from it. [start_ns, end_ns) is the time that
    the line is about, both 0 when it is about none.
    """

    kind: LineKind
    description: str
    account: str
    exact_nanos: int
    amount_minor: int
    quantity: int = 1
    unit: str = ""
    tax_category: str = "standard"
    start_ns: int = 0
    end_ns: int = 0
    #: The pending item that the line bills; None for usage.
    item_id: int | None = None


class Cut(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What usage a tenant's invoices cover together: posted events up to `event_id` whose time lies before `end_ns`.

    Cuts only grow, so an event is billed by exactly one invoice: the first whose cut holds it. A late event, posted
    after its period was billed, comes with the next invoice and keeps its own time (I24).
    """

    event_id: int
    end_ns: int


class Document(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A finalized invoice or credit note; a draft has no number and no instants. Instants are UTC nanoseconds."""

    version: int = DOCUMENT_VERSION
    kind: Kind = "invoice"
    document_id: str
    number: str = ""
    tenant: str
    currency: str
    zone: str
    seller: Party
    buyer: Party
    issued_ns: int = 0
    due_ns: int = 0
    start_ns: int
    end_ns: int
    lines: tuple[Line, ...]
    taxes: tuple[TaxLine, ...]
    prices_include_tax: bool
    net_minor: int
    tax_minor: int
    total_minor: int
    #: The usage covered by this invoice and all before it, and by those before it; null on credit notes.
    cut: Cut | None = None
    previous_cut: Cut | None = None
    #: A credit note names the invoice that it corrects.
    corrects: str = ""
    note: str = ""


def encode_document(document: Document) -> bytes:
    """Canonical JSON: equal documents have equal bytes."""
    return msgspec.json.encode(document, order="deterministic")


def decode_document(data: bytes | str) -> Document:
    """Reverse of `encode_document`. Raises msgspec.DecodeError."""
    return msgspec.json.decode(data, type=Document)


def digest_of(data: bytes) -> bytes:
    """SHA-256 of a document's canonical JSON: what the ledger keeps beside it."""
    return hashlib.sha256(data).digest()
