"""I17: lines are the sum of rated calls, rounded once each, and the remainder is booked to the nano."""

from datetime import date

from hypothesis import given
from hypothesis import strategies as st

from billing.invoices.account import Account, Seller, terms_of
from billing.invoices.assemble import Item, assemble, credit_note, item_lines, usage_lines
from billing.invoices.document import Document, Party, decode_document, encode_document
from billing.invoices.postings import ROUNDING, credit_note_lines, invoice_lines, void_lines
from billing.invoices.tax import TaxProfile, TaxRate, TaxTable
from billing.money import from_minor, minor_digits
from billing.usage import UsageRow

CURRENCIES = st.sampled_from(["USD", "JPY", "KWD"])
CHARGES = st.lists(st.integers(0, 10**13), max_size=12)
ITEMS = st.lists(
    st.tuples(st.sampled_from(["subscription", "adjustment", "promo"]), st.integers(-(10**13), 10**13)), max_size=6
)
RATES = st.lists(st.integers(0, 300_000), max_size=3)
ACCOUNTS = {
    "subscription": "contract_liability:subscription:acme",
    "adjustment": "revenue:adjustments",
    "promo": "contra_revenue:promo_discount",
}


def made(
    currency: str, charges: list[int], items: list[tuple[str, int]], rates: list[int], is_inclusive: bool
) -> Document:
    rows = [UsageRow((f"m{index}", 1), currency, 3, 2, 1, 5, 7, 1, 1, charge) for index, charge in enumerate(charges)]
    pending = [
        Item(index, kind, "item", ACCOUNTS[kind], amount, "standard", 0, 0)  # type: ignore[arg-type]
        for index, (kind, amount) in enumerate(items)
    ]
    seller = Seller(
        party=Party(name="S", tax=TaxProfile(country="DE")),
        taxes=TaxTable(
            version=1,
            rates=tuple(TaxRate(jurisdiction="DE", name=f"t{n}", rate_ppm=ppm) for n, ppm in enumerate(rates)),
        ),
    )
    account = Account(
        tenant="acme",
        currency=currency,
        anchor_ns=0,
        buyer=Party(name="B", tax=TaxProfile(country="DE")),
        prices_include_tax=is_inclusive,
    )
    lines = usage_lines("acme", currency, rows, (0, 1)) + item_lines(currency, pending)
    return assemble("inv_1", terms_of(account, seller), lines, span=(0, 1), on=date(2026, 1, 1))


DOCUMENTS = st.builds(made, CURRENCIES, CHARGES, ITEMS, RATES, st.booleans())


@given(DOCUMENTS)
def test_lines_sum_to_the_total_and_each_is_rounded_by_half_a_unit_at_most(document: Document) -> None:
    unit = 10 ** (9 - minor_digits(document.currency))
    for line in document.lines:
        assert 2 * abs(from_minor(line.amount_minor, document.currency) - line.exact_nanos) <= unit
    assert document.net_minor + document.tax_minor == document.total_minor
    gross = sum(line.amount_minor for line in document.lines)
    assert gross == (document.total_minor if document.prices_include_tax else document.net_minor)


@given(DOCUMENTS)
def test_what_is_posted_balances_and_the_remainder_is_the_rounding(document: Document) -> None:
    lines = invoice_lines(document)
    assert sum(line.amount_nanos for line in lines) == 0
    exact = sum(line.exact_nanos for line in document.lines)
    rounded = sum(from_minor(line.amount_minor, document.currency) for line in document.lines)
    assert sum(line.amount_nanos for line in lines if line.account == ROUNDING) == exact - rounded
    usage = sum(line.exact_nanos for line in document.lines if line.kind == "usage")
    assert -sum(line.amount_nanos for line in lines if line.account == "unbilled_receivable:acme") == usage
    back = void_lines(document)
    assert [(one.account, -one.amount_nanos) for one in lines] == [(one.account, one.amount_nanos) for one in back]


@given(DOCUMENTS.filter(lambda document: document.total_minor > 0), st.lists(st.integers(1, 10**9), max_size=5))
def test_credit_notes_over_the_whole_give_back_its_tax_exactly(document: Document, parts: list[int]) -> None:
    credited, taxes, net = 0, 0, 0
    for part in [*parts, document.total_minor]:
        amount = min(part, document.total_minor - credited)
        if not amount:
            continue
        note = credit_note("cn_1", document, amount, credited, "why")
        assert sum(line.amount_nanos for line in credit_note_lines(note, 0)) == 0
        credited, taxes, net = credited + amount, taxes + note.tax_minor, net + note.net_minor
    assert (credited, taxes, net) == (document.total_minor, document.tax_minor, document.net_minor)


@given(DOCUMENTS)
def test_a_document_survives_its_canonical_json(document: Document) -> None:
    assert decode_document(encode_document(document)) == document
