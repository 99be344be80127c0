"""Owns the journal lines of every money event around invoices (MONEY.md §3). Pure; debits positive, credits negative.

| event | debit | credit |
|---|---|---|
| invoice finalized | accounts_receivable | what the lines are taken from, tax_payable; the rounding remainder |
| payment | cash:psp:{provider} | accounts_receivable |
| credit note | revenue:credit_notes or contract_liability, tax_payable | accounts_receivable |
| refund | accounts_receivable | cash:psp:{provider} |
| uncollectible | expense:bad_debt | accounts_receivable |
| void | the mirror of finalizing | |
"""

from collections.abc import Sequence
from typing import Final

from billing.invoices.document import Document
from billing.invoices.document import Line as DocumentLine
from billing.invoices.tax import PPM, half_away
from billing.ledger.rules import Line, check_balanced
from billing.money import from_minor

TX_INVOICE: Final = "invoice"
TX_PAYMENT: Final = "payment"
TX_CREDIT_NOTE: Final = "credit_note"
TX_REFUND: Final = "refund"
TX_VOID: Final = "void"
TX_WRITE_OFF: Final = "write_off"
TX_FX: Final = "fx"
TX_RECOGNITION: Final = "recognition"
TX_BREAKAGE: Final = "breakage"

SUBSCRIPTION_PREFIX: Final = "contract_liability:subscription:"
ROUNDING: Final = "revenue:rounding"
TAX_INCLUDED: Final = "revenue:tax_included"
CREDIT_NOTES: Final = "revenue:credit_notes"
BAD_DEBT: Final = "expense:bad_debt"
FX_CLEARING: Final = "fx_clearing"


def accounts_receivable(tenant: str) -> str:
    """What a tenant owes on finalized invoices (an asset)."""
    return f"accounts_receivable:{tenant}"


def subscription_liability(tenant: str) -> str:
    """Fees billed in advance and not yet earned (a contract liability)."""
    return f"{SUBSCRIPTION_PREFIX}{tenant}"


def cash(provider: str) -> str:
    """Money at a payment provider or a bank (an asset)."""
    return f"cash:psp:{provider}"


def tax_payable(jurisdiction: str) -> str:
    """Tax collected for a jurisdiction (a liability)."""
    return f"tax_payable:{jurisdiction}"


def invoice_lines(document: Document) -> tuple[Line, ...]:
    """Finalizing `document`: the receivable against what its lines are taken from, taxes and the rounding."""
    currency, sums = document.currency, dict[str, int]()

    def add(account: str, amount_nanos: int) -> None:
        sums[account] = sums.get(account, 0) + amount_nanos

    add(accounts_receivable(document.tenant), from_minor(document.total_minor, currency))
    inside_minor = document.tax_minor if document.prices_include_tax else 0
    for line in document.lines:
        # What is deferred is net of tax, so that all of it becomes revenue.
        deferred_tax = inside_tax_minor(document, line) if is_deferred(line) else 0
        inside_minor -= deferred_tax
        add(line.account, from_minor(deferred_tax, currency) - line.exact_nanos)
        add(ROUNDING, line.exact_nanos - from_minor(line.amount_minor, currency))
    # Other lines' revenue was booked at the price, tax inside: the tax is no revenue.
    add(TAX_INCLUDED, from_minor(inside_minor, currency))
    for tax in document.taxes:
        add(tax_payable(tax.jurisdiction), -from_minor(tax.tax_minor, currency))
    return _sorted(currency, sums)


def is_deferred(line: DocumentLine) -> bool:
    """Whether the line is a fee for a time: earned as that passes, a liability until then."""
    return line.account.startswith(SUBSCRIPTION_PREFIX)


def inside_tax_minor(document: Document, line: DocumentLine) -> int:
    """The tax inside one line's amount; 0 where prices are net."""
    if not document.prices_include_tax:
        return 0
    ppm = sum(tax.rate_ppm for tax in document.taxes if tax.category == line.tax_category)
    return half_away(line.amount_minor * ppm, PPM + ppm)


def void_lines(document: Document) -> tuple[Line, ...]:
    """The mirror of finalizing."""
    return reversed_lines(invoice_lines(document))


def credit_note_lines(note: Document, from_liability_nanos: int) -> tuple[Line, ...]:
    """A credit note; `from_liability_nanos` of its net amount were not yet earned and come out of the liability."""
    currency = note.currency
    net_nanos = from_minor(note.net_minor, currency)
    sums = {
        accounts_receivable(note.tenant): -from_minor(note.total_minor, currency),
        CREDIT_NOTES: net_nanos - from_liability_nanos,
        subscription_liability(note.tenant): from_liability_nanos,
    }
    for tax in note.taxes:
        account = tax_payable(tax.jurisdiction)
        if tax.tax_minor:
            sums[account] = sums.get(account, 0) + from_minor(tax.tax_minor, currency)
    return _sorted(currency, sums)


def payment_lines(tenant: str, provider: str, amount_minor: int, currency: str) -> tuple[Line, ...]:
    """Money received for a tenant's invoices."""
    return _pair(cash(provider), accounts_receivable(tenant), amount_minor, currency)


def refund_lines(tenant: str, provider: str, amount_minor: int, currency: str) -> tuple[Line, ...]:
    """Money given back, which a credit note or an overpayment had made the tenant's."""
    return _pair(accounts_receivable(tenant), cash(provider), amount_minor, currency)


def write_off_lines(tenant: str, amount_minor: int, currency: str) -> tuple[Line, ...]:
    """What will not be paid."""
    return _pair(BAD_DEBT, accounts_receivable(tenant), amount_minor, currency)


def fx_payment_lines(
    tenant: str, provider: str, *, paid_minor: int, paid_currency: str, amount_minor: int, currency: str
) -> tuple[Line, ...]:
    """A payment in another currency than the invoice's: four entries, each currency summing to zero.

    The clearing account holds what was received in one currency and what it was worth in the other; its balances,
    valued at any later rate, are the gain or loss.
    """
    paid, worth = from_minor(paid_minor, paid_currency), from_minor(amount_minor, currency)
    lines = (
        Line(cash(provider), paid_currency, paid, 0),
        Line(FX_CLEARING, paid_currency, -paid, 0),
        Line(FX_CLEARING, currency, worth, 0),
        Line(accounts_receivable(tenant), currency, -worth, 0),
    )
    check_balanced(lines)
    return lines


def reversed_lines(lines: Sequence[Line]) -> tuple[Line, ...]:
    """The same accounts with the opposite amounts."""
    return tuple(line._replace(amount_nanos=-line.amount_nanos) for line in lines)


def _pair(debit: str, credit: str, amount_minor: int, currency: str) -> tuple[Line, ...]:
    return _sorted(currency, {debit: from_minor(amount_minor, currency), credit: -from_minor(amount_minor, currency)})


def _sorted(currency: str, sums: dict[str, int]) -> tuple[Line, ...]:
    """Debits first, then by account; what comes to nothing is left out, unless nothing would be left."""
    lines = [Line(account, currency, amount, 0) for account, amount in sums.items() if amount]
    if not lines:
        lines = [Line(account, currency, 0, 0) for account in list(sums)[:1]]
    lines.sort(key=lambda line: (line.amount_nanos < 0, line.account))
    check_balanced(lines)
    return tuple(lines)
