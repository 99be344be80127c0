"""Owns who is billed and by whom: the tenant's billing account and the seller's settings, and their validation."""

from typing import Final, Literal

import msgspec

from billing.invoices.assemble import InvoiceError, Terms
from billing.invoices.document import Party
from billing.invoices.period import Interval, PeriodError, index_at
from billing.invoices.tax import TaxError, TaxProfile, TaxTable, validate_profile, validate_table
from billing.money import is_currency

TERMS_DAYS_MAX: Final = 365
GRACE_S_MAX: Final = 30 * 86_400
ADDRESS_LINES_MAX: Final = 8
TEXT_MAX: Final = 200
Collection = Literal["manual", "automatic"]


class Account(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one tenant is billed. Periods count from `anchor_ns` in `zone`; the currency never changes."""

    tenant: str
    currency: str
    buyer: Party
    anchor_ns: int
    zone: str = "UTC"
    interval: Interval = "month"
    terms_days: int = 14
    prices_include_tax: bool = False
    #: "automatic": the provider is asked to collect what is due; "manual": the customer pays by transfer.
    collection: Collection = "manual"
    provider: str = ""
    #: The customer's reference at the provider, such as a saved payment method.
    provider_customer: str = ""


class Seller(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who sells. `grace_s`: how long after the end of a period late usage is waited for before it is billed."""

    party: Party
    taxes: TaxTable = TaxTable(version=1)
    invoice_series: str = "INV"
    credit_series: str = "CN"
    grace_s: int = 3_600


UNNAMED_SELLER: Final = Seller(party=Party(name="Seller", tax=TaxProfile(country="XX")))


def validate_account(account: Account) -> Account:
    """`account` itself. Raises InvoiceError naming the field."""
    if not is_currency(account.currency):
        raise InvoiceError("currency", f"currency: {account.currency!r} is not an ISO 4217 code")
    if not 0 <= account.terms_days <= TERMS_DAYS_MAX:
        raise InvoiceError("field", f"terms_days: {account.terms_days} must be from 0 to {TERMS_DAYS_MAX}")
    if not account.tenant:
        raise InvoiceError("field", "tenant: is missing")
    if account.collection == "automatic" and not account.provider:
        raise InvoiceError("field", "provider: is needed for automatic collection")
    try:
        index_at(account.anchor_ns, account.zone, account.interval, account.anchor_ns)
    except PeriodError as error:
        raise InvoiceError("field", f"zone or anchor_ns: {error}") from error
    _check_party("buyer", account.buyer)
    return account


def validate_seller(seller: Seller) -> Seller:
    """`seller` itself. Raises InvoiceError naming the field."""
    for name, series in (("invoice_series", seller.invoice_series), ("credit_series", seller.credit_series)):
        if not (1 <= len(series) <= 16 and series.isascii() and series.isalnum()):
            raise InvoiceError("field", f"{name}: {series!r} must be 1 to 16 letters and digits")
    if seller.invoice_series == seller.credit_series:
        raise InvoiceError("field", "credit_series: must differ from invoice_series, each counts on its own")
    if not 0 <= seller.grace_s <= GRACE_S_MAX:
        raise InvoiceError("field", f"grace_s: {seller.grace_s} must be from 0 to {GRACE_S_MAX}")
    _check_party("party", seller.party)
    try:
        validate_table(seller.taxes)
    except TaxError as error:
        raise InvoiceError("field", f"taxes: {error}") from error
    return seller


def terms_of(account: Account, seller: Seller) -> Terms:
    """What a document for that account is made with."""
    return Terms(
        tenant=account.tenant,
        currency=account.currency,
        zone=account.zone,
        seller=seller.party,
        buyer=account.buyer,
        taxes=seller.taxes,
        prices_include_tax=account.prices_include_tax,
    )


def _check_party(where: str, party: Party) -> None:
    texts = (party.name, party.email, *party.address)
    if not party.name or len(party.address) > ADDRESS_LINES_MAX or any(len(text) > TEXT_MAX for text in texts):
        raise InvoiceError(
            "field", f"{where}: needs a name, at most {ADDRESS_LINES_MAX} address lines of {TEXT_MAX} characters"
        )
    try:
        validate_profile(party.tax)
    except TaxError as error:
        raise InvoiceError("field", f"{where}.tax.{error}") from error
