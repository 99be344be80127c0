"""Owns how lines become a document: usage figures and pending items → lines, taxes, totals. Pure.

net   = sum of the lines' minor units (less the tax inside them, when prices include tax)
total = net + tax
"""

from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import msgspec

from billing.invoices.document import LINES_MAX, Cut, Document, Line, LineKind, Party
from billing.invoices.proration import cumulative
from billing.invoices.tax import TaxLine, TaxTable, decide, tax_lines
from billing.ledger.rules import receivable
from billing.money import to_minor
from billing.usage import UsageRow


class InvoiceError(ValueError):
    """A document that cannot be made or changed that way. `code` is stable, the message names what and why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Item(NamedTuple):
    """Something to be billed with the tenant's next invoice, beside usage. Amounts may be negative."""

    item_id: int
    kind: LineKind
    description: str
    account: str
    amount_nanos: int
    tax_category: str
    start_ns: int
    end_ns: int


class Terms(NamedTuple):
    """What the account says about how it is billed."""

    tenant: str
    currency: str
    zone: str
    seller: Party
    buyer: Party
    taxes: TaxTable
    prices_include_tax: bool


def usage_lines(tenant: str, currency: str, rows: Sequence[UsageRow], span: tuple[int, int]) -> list[Line]:
    """One line per (model, price version) of `rows`, grouped by exactly these. Calls that cost nothing are listed too.

    Raises InvoiceError when the usage is in another currency than the account.
    """
    lines = []
    for row in rows:
        if row.currency != currency:
            raise InvoiceError("currency", f"{tenant} is billed in {currency}, but has usage in {row.currency}")
        model, version = row.group
        lines.append(
            Line(
                kind="usage",
                description=_usage_text(str(model), version, row),
                account=receivable(tenant),
                exact_nanos=row.charge_nanos,
                amount_minor=to_minor(row.charge_nanos, currency),
                quantity=row.ok_calls,
                unit="call",
                start_ns=span[0],
                end_ns=span[1],
            )
        )
    return lines


def _usage_text(model: str, version: str | int, row: UsageRow) -> str:
    failed = f", {row.failed_calls} failed calls free" if row.failed_calls else ""
    return f"{model}: {row.rows} rows{failed} (price book {version})"


def item_lines(currency: str, items: Sequence[Item]) -> list[Line]:
    """A line for each pending item."""
    return [
        Line(
            kind=item.kind,
            description=item.description,
            account=item.account,
            exact_nanos=item.amount_nanos,
            amount_minor=to_minor(item.amount_nanos, currency),
            tax_category=item.tax_category,
            start_ns=item.start_ns,
            end_ns=item.end_ns,
            item_id=item.item_id,
        )
        for item in items
    ]


def assemble(
    document_id: str,
    terms: Terms,
    lines: Sequence[Line],
    *,
    span: tuple[int, int],
    on: date,
    cut: Cut | None = None,
    previous_cut: Cut | None = None,
    note: str = "",
) -> Document:
    """The draft of an invoice over `lines`, taxed as on the day `on`. Raises InvoiceError: too many lines."""
    if len(lines) > LINES_MAX:
        raise InvoiceError("too_many_lines", f"{len(lines)} lines are more than the {LINES_MAX} allowed")
    taxes = _taxes(terms, lines, on)
    gross = sum(line.amount_minor for line in lines)
    tax_minor = sum(line.tax_minor for line in taxes)
    net_minor = gross - tax_minor if terms.prices_include_tax else gross
    return Document(
        document_id=document_id,
        tenant=terms.tenant,
        currency=terms.currency,
        zone=terms.zone,
        seller=terms.seller,
        buyer=terms.buyer,
        start_ns=span[0],
        end_ns=span[1],
        lines=tuple(lines),
        taxes=taxes,
        prices_include_tax=terms.prices_include_tax,
        net_minor=net_minor,
        tax_minor=tax_minor,
        total_minor=net_minor + tax_minor,
        cut=cut,
        previous_cut=previous_cut,
        note=note,
    )


def credit_note(document_id: str, invoice: Document, amount_minor: int, credited_minor: int, reason: str) -> Document:
    """A credit note over `amount_minor` (tax included) of an invoice of which `credited_minor` was credited before.

    Each tax component is given back in proportion, by cumulative amounts: notes that together credit the whole invoice
    give back exactly its tax. Raises InvoiceError unless 0 < amount <= total - credited.
    """
    left = invoice.total_minor - credited_minor
    if not 0 < amount_minor <= left:
        raise InvoiceError("amount", f"amount_minor: {amount_minor} must be from 1 to {left}, what is left to credit")
    before, after = credited_minor, credited_minor + amount_minor
    taxes = tuple(_part(line, before, after, invoice.total_minor) for line in invoice.taxes)
    tax_minor = sum(line.tax_minor for line in taxes)
    if len({line.category for line in taxes}) == 1:
        taxes = tuple(msgspec.structs.replace(line, base_minor=amount_minor - tax_minor) for line in taxes)
    return Document(
        kind="credit_note",
        document_id=document_id,
        tenant=invoice.tenant,
        currency=invoice.currency,
        zone=invoice.zone,
        seller=invoice.seller,
        buyer=invoice.buyer,
        start_ns=invoice.start_ns,
        end_ns=invoice.end_ns,
        lines=(
            Line(
                kind="credit",
                description=reason,
                account="revenue:credit_notes",
                exact_nanos=0,
                amount_minor=amount_minor if invoice.prices_include_tax else amount_minor - tax_minor,
            ),
        ),
        taxes=taxes,
        prices_include_tax=invoice.prices_include_tax,
        net_minor=amount_minor - tax_minor,
        tax_minor=tax_minor,
        total_minor=amount_minor,
        corrects=invoice.number,
    )


def day_of(at_ns: int, zone: str) -> date:
    """The day of `at_ns` in an IANA zone that is known to exist."""
    return datetime.fromtimestamp(at_ns // 1_000_000_000, UTC if zone == "UTC" else ZoneInfo(zone)).date()


def _taxes(terms: Terms, lines: Sequence[Line], on: date) -> tuple[TaxLine, ...]:
    sums: dict[str, int] = {}
    for line in lines:
        sums[line.tax_category] = sums.get(line.tax_category, 0) + line.amount_minor
    found: list[TaxLine] = []
    for category, amount in sorted(sums.items()):
        decision = decide(terms.taxes, terms.seller.tax, terms.buyer.tax, category, on)
        found += tax_lines(category, amount, decision, is_inclusive=terms.prices_include_tax)
    return tuple(found)


def _part(line: TaxLine, before: int, after: int, total: int) -> TaxLine:
    def part(amount: int) -> int:
        return cumulative(amount, after, total) - cumulative(amount, before, total)

    changes: dict[str, Any] = {"base_minor": part(line.base_minor), "tax_minor": part(line.tax_minor)}
    return TaxLine(
        category=line.category,
        treatment=line.treatment,
        jurisdiction=line.jurisdiction,
        name=line.name,
        rate_ppm=line.rate_ppm,
        **changes,
    )
