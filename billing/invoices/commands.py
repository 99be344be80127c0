"""Owns the money commands on accounts and invoices: what each checks, writes and posts. Bodies are closed structs."""

import os
from typing import Any, Final

import msgspec

from billing import failpoint
from billing.invoices import postings, store
from billing.invoices.account import Account, Seller, terms_of, validate_account, validate_seller
from billing.invoices.assemble import InvoiceError, Item, assemble, credit_note, day_of, item_lines, usage_lines
from billing.invoices.bodies import AddItem, Credit, Draft, Named, Payment, Refund
from billing.invoices.desk import Verb
from billing.invoices.document import Document, LineKind
from billing.invoices.gathering import cut_until, usage_until
from billing.invoices.life import Step, StepKind, check_step
from billing.invoices.period import NS_PER_S, floor_s
from billing.ledger.journal import Journal
from billing.ledger.rules import Line, receivable
from billing.ledger.views import balance_of
from billing.money import from_minor
from billing.recognition.schedule import Contract
from billing.recognition.store import add_contract, add_contracts, line_deferred_nanos

NS_PER_DAY: Final = 86_400 * NS_PER_S
TEXT_MAX: Final = 500
MINOR_MAX: Final = 10**12
#: Kinds of items that an administrator may add by hand, and the account that each is taken from.
MANUAL_ACCOUNTS: Final[dict[LineKind, str]] = {
    "adjustment": "revenue:adjustments",
    "minimum": "revenue:minimum_commitment",
    "promo": "contra_revenue:promo_discount",
    "coupon": "contra_revenue:coupon",
}


def set_seller(journal: Journal, body: Seller, now_ns: int) -> Any:
    """Replace the seller's settings; documents already made keep theirs."""
    store.put_seller(journal.db, validate_seller(body), now_ns)
    return msgspec.to_builtins(body)


def set_account(journal: Journal, body: Account, now_ns: int) -> Any:
    """Create or replace a billing account. Raises InvoiceError: its currency would change."""
    validate_account(body)
    known = store.find_account(journal.db, body.tenant)
    if known is not None and known.currency != body.currency:
        raise InvoiceError("currency", f"account {body.tenant!r} is in {known.currency}; the currency never changes")
    store.put_account(journal.db, body, now_ns)
    return msgspec.to_builtins(body)


def add_item(journal: Journal, body: AddItem, now_ns: int) -> Any:
    """Add a pending item by hand."""
    store.get_account(journal.db, body.tenant)
    account = MANUAL_ACCOUNTS.get(body.kind)
    if account is None:
        raise InvoiceError("field", f"kind: {body.kind!r} is none of {', '.join(MANUAL_ACCOUNTS)}")
    if not body.description or len(body.description) > TEXT_MAX or not 1 <= len(body.source) <= TEXT_MAX:
        raise InvoiceError("field", f"description and source: need 1 to {TEXT_MAX} characters")
    if abs(body.amount_nanos) > 10**18:
        raise InvoiceError("field", f"amount_nanos: {body.amount_nanos} is beyond 1e18")
    item = Item(
        0, body.kind, body.description, account, body.amount_nanos, body.tax_category, body.start_ns, body.end_ns
    )
    item_id = store.add_item(journal.db, body.tenant, f"manual:{body.source}", item, now_ns)
    if item_id is None:
        raise InvoiceError("conflict", f"source: {body.source!r} was added before")
    return {"item_id": item_id}


def draft(journal: Journal, body: Draft, now_ns: int) -> Any:
    """Make (or replace) the tenant's draft. Raises InvoiceError: there is nothing to bill."""
    made = make_draft(journal, body, now_ns)
    store.put_draft(journal.db, made, now_ns)
    return msgspec.to_builtins(made)


def discard(journal: Journal, body: Named, _now_ns: int) -> Any:
    """Drop a draft."""
    if not store.drop_draft(journal.db, body.document):
        raise InvoiceError("not_found", f"draft {body.document!r} does not exist")
    return {"document_id": body.document}


def finalize(journal: Journal, body: Named, now_ns: int) -> Any:
    """Give a draft its number and post it. From here on nothing can change it."""
    made = store.find_draft(journal.db, document_id=body.document)
    if made is None:
        raise InvoiceError("not_found", f"draft {body.document!r} does not exist")
    return msgspec.to_builtins(finalize_draft(journal, made, now_ns))


def bill(journal: Journal, body: Draft, now_ns: int) -> Any:
    """Draft and finalize in one go, if there is anything to bill; notes that the time until then is done."""
    seller = store.get_seller(journal.db)
    if body.until_ns + seller.grace_s * NS_PER_S > now_ns:
        raise InvoiceError("too_early", f"until_ns: usage before it is waited for {seller.grace_s} s longer")
    found: Document | None = None
    try:
        found = finalize_draft(journal, make_draft(journal, body, now_ns), now_ns)
    except InvoiceError as error:
        if error.code not in {"nothing_to_bill", "negative_total"}:
            raise
    store.note_billed_until(journal.db, body.tenant, body.until_ns, now_ns)
    return {"invoice": None if found is None else msgspec.to_builtins(found)}


def void(journal: Journal, body: Named, now_ns: int) -> Any:
    """Take an unpaid invoice back. Its number stays; what it billed is billed again by the next invoice."""
    document = _invoice(journal, body.document)
    _step(journal, document, "void", 0, postings.TX_VOID, postings.void_lines(document), now_ns, note=body.note)
    add_contracts(journal.db, document, now_ns, sign=-1)
    for index, line in enumerate(document.lines):
        item = Item(
            0,
            "rebilled" if line.kind == "usage" else line.kind,
            f"{line.description} (was on {document.number})",
            line.account,
            line.exact_nanos,
            line.tax_category,
            line.start_ns,
            line.end_ns,
        )
        store.add_item(journal.db, document.tenant, f"void:{document.document_id}:{index}", item, now_ns)
    return _answer(journal, document)


def write_off(journal: Journal, body: Named, now_ns: int) -> Any:
    """Give an open invoice up as uncollectible."""
    document = _invoice(journal, body.document)
    due = store.state_in(journal.db, document).due_minor
    lines = postings.write_off_lines(document.tenant, due, document.currency)
    _step(journal, document, "uncollectible", due, postings.TX_WRITE_OFF, lines, now_ns, note=body.note)
    return _answer(journal, document)


def credit(journal: Journal, body: Credit, now_ns: int) -> Any:
    """A credit note with a number of its own; it reduces what is due, or makes what was paid refundable."""
    document, seller = _invoice(journal, body.invoice), store.get_seller(journal.db)
    if not 1 <= len(body.reason) <= TEXT_MAX:
        raise InvoiceError("field", f"reason: needs 1 to {TEXT_MAX} characters")
    state = store.state_in(journal.db, document)
    note = credit_note(_new_id(now_ns), document, body.amount_minor, state.credited_minor, body.reason)
    serial = store.next_serial(journal.db, seller.credit_series)
    note = msgspec.structs.replace(note, number=_number(seller.credit_series, serial), issued_ns=now_ns, due_ns=now_ns)
    store.put_document(journal.db, note, seller.credit_series, serial)
    unearned = 0 if body.line is None else _take_unearned(journal, document, body.line, note.net_minor, now_ns)
    lines = postings.credit_note_lines(note, unearned)
    _step(journal, document, "credit", body.amount_minor, postings.TX_CREDIT_NOTE, lines, now_ns, note=note.number)
    store.add_event(journal.db, note.tenant, "credit_note.issued", _brief(note), now_ns)
    return {"credit_note": msgspec.to_builtins(note), **_answer(journal, document)}


def pay(journal: Journal, body: Payment, now_ns: int) -> Any:
    """Book a payment. More than is due is booked as well, and can be refunded; after a write-off it is a recovery."""
    document = _invoice(journal, body.invoice)
    check_amount(body.amount_minor)
    tenant, currency, amount = document.tenant, document.currency, body.amount_minor
    if body.paid_currency not in (None, currency):
        if body.paid_minor is None or body.paid_minor <= 0:
            raise InvoiceError("amount", "paid_minor: is needed, positive, with paid_currency")
        lines, kind = _fx_lines(body, document), postings.TX_FX
    else:
        lines, kind = postings.payment_lines(tenant, body.provider, amount, currency), postings.TX_PAYMENT
    state = store.state_in(journal.db, document)
    if state.status == "uncollectible":
        lines = _recovery(lines, tenant, from_minor(min(amount, state.due_minor), currency))
    reference = f"{body.provider}:{body.reference}"
    _step(journal, document, "payment", amount, kind, lines, now_ns, reference=reference)
    return _answer(journal, document)


def refund(journal: Journal, body: Refund, now_ns: int) -> Any:
    """Book money given back, at most what the invoice was overpaid by."""
    document = _invoice(journal, body.invoice)
    check_amount(body.amount_minor)
    lines = postings.refund_lines(document.tenant, body.provider, body.amount_minor, document.currency)
    reference = f"{body.provider}:{body.reference}"
    _step(journal, document, "refund", body.amount_minor, postings.TX_REFUND, lines, now_ns, reference=reference)
    return _answer(journal, document)


def make_draft(journal: Journal, body: Draft, now_ns: int) -> Document:
    """The draft, not yet stored. Raises InvoiceError: `nothing_to_bill`, `negative_total`, `gather_first`."""
    account = store.get_account(journal.db, body.tenant)
    previous = store.find_cut(journal.db, body.tenant)
    cut = cut_until(journal.db, body.tenant, body.until_ns)
    until_ns, rows = cut.end_ns, usage_until(journal.db, body.tenant, cut)
    start_ns = previous.end_ns if previous is not None else account.anchor_ns
    span = (min(until_ns, start_ns if body.start_ns is None else body.start_ns), until_ns)
    lines = usage_lines(body.tenant, account.currency, rows, span)
    lines += item_lines(account.currency, store.pending_items(journal.db, body.tenant))
    if not any(line.exact_nanos for line in lines):
        raise InvoiceError("nothing_to_bill", f"tenant {body.tenant!r} has nothing to bill until then")
    terms = terms_of(account, store.get_seller(journal.db))
    document = assemble(
        _new_id(now_ns),
        terms,
        lines,
        span=span,
        on=day_of(now_ns, account.zone),
        cut=cut,
        previous_cut=previous,
    )
    if document.total_minor < 0:
        raise InvoiceError("negative_total", f"credits of {body.tenant!r} exceed the charges: they wait for the next")
    return document


def finalize_draft(journal: Journal, made: Document, now_ns: int) -> Document:
    """Number, store and post `made`. Raises InvoiceError when what it bills was billed meanwhile."""
    db, seller = journal.db, store.get_seller(journal.db)
    if store.find_cut(db, made.tenant) != made.previous_cut:
        raise InvoiceError("draft_stale", "usage of this draft was billed meanwhile: make the draft again")
    account = store.get_account(db, made.tenant)
    serial = store.next_serial(db, seller.invoice_series)
    final = msgspec.structs.replace(
        made,
        number=_number(seller.invoice_series, serial),
        issued_ns=now_ns,
        due_ns=now_ns + account.terms_days * NS_PER_DAY,
    )
    store.put_document(db, final, seller.invoice_series, serial)
    if failpoint.armed:
        failpoint.hit("after_invoice_number")
    store.mark_billed(db, [line.item_id for line in final.lines if line.item_id is not None], final.document_id)
    assert final.cut is not None
    store.put_cut(db, final.tenant, final.cut, final.document_id)
    store.drop_draft(db, made.document_id)
    tx_id = journal.post(postings.TX_INVOICE, final.tenant, now_ns, postings.invoice_lines(final))
    if balance_of(db, receivable(final.tenant), final.currency) < 0:
        # Some of the usage was paid for otherwise (prepaid): billing it would bill it twice.
        raise InvoiceError(
            "unbilled_short", f"{final.tenant!r} has less unbilled usage in the ledger than on the draft"
        )
    add_contracts(db, final, now_ns)
    store.add_step(db, final.document_id, Step("finalized", now_ns, 0, tx_id, "", ""))
    store.add_event(db, final.tenant, "invoice.finalized", _brief(final), now_ns)
    if final.total_minor == 0:
        store.add_event(db, final.tenant, "invoice.paid", _brief(final), now_ns)
    return final


def check_amount(amount_minor: int) -> None:
    """Raises InvoiceError for an amount no payment can have."""
    if not 0 < amount_minor <= MINOR_MAX:
        raise InvoiceError("amount", f"amount_minor: {amount_minor} must be from 1 to {MINOR_MAX}")


def _step(  # noqa: PLR0917 - what a step is, in its order
    journal: Journal,
    document: Document,
    kind: StepKind,
    amount_minor: int,
    tx_kind: str,
    lines: tuple[Line, ...],
    now_ns: int,
    *,
    reference: str = "",
    note: str = "",
) -> None:
    """Check, post, append, tell: what every step of an invoice's life does."""
    before = store.state_in(journal.db, document)
    check_step(document.number, before, kind, amount_minor)
    tx_id = journal.post(tx_kind, document.tenant, now_ns, lines)
    store.add_step(journal.db, document.document_id, Step(kind, now_ns, amount_minor, tx_id, reference, note))
    after = store.state_in(journal.db, document)
    event = {**_brief(document), "status": after.status, "due_minor": after.due_minor, "amount_minor": amount_minor}
    if kind in {"payment", "refund"}:
        store.add_event(journal.db, document.tenant, f"{kind}.booked", event, now_ns)
    if after.status != before.status:
        store.add_event(journal.db, document.tenant, f"invoice.{after.status}", event, now_ns)


def _take_unearned(journal: Journal, document: Document, line: int, net_minor: int, now_ns: int) -> int:
    """What of a credit comes out of a fee that is not yet earned; from now on that much less of it will be."""
    if not 0 <= line < len(document.lines) or not postings.is_deferred(document.lines[line]):
        raise InvoiceError("field", f"line: {line} is no fee for a time on {document.number}")
    left = line_deferred_nanos(journal.db, document.document_id, line, floor_s(now_ns))
    taken = max(0, min(from_minor(net_minor, document.currency), left))
    span = Contract(-taken, floor_s(now_ns), document.lines[line].end_ns)
    if taken:
        add_contract(journal.db, document, line, span, now_ns)
    return taken


def _invoice(journal: Journal, name: str) -> Document:
    document = store.get_document(journal.db, name)
    if document.kind != "invoice":
        raise InvoiceError("invoice_state", f"{document.number} is a credit note, not an invoice")
    return document


def _fx_lines(body: Payment, document: Document) -> tuple[Line, ...]:
    assert body.paid_currency is not None
    assert body.paid_minor is not None
    check_amount(body.paid_minor)
    return postings.fx_payment_lines(
        document.tenant,
        body.provider,
        paid_minor=body.paid_minor,
        paid_currency=body.paid_currency,
        amount_minor=body.amount_minor,
        currency=document.currency,
    )


def _recovery(lines: tuple[Line, ...], tenant: str, recovered_nanos: int) -> tuple[Line, ...]:
    """After a write-off the receivable is gone: what comes in reduces the loss, what goes beyond is owed back."""
    receivable, found = postings.accounts_receivable(tenant), list[Line]()
    for line in lines:
        if line.account != receivable:
            found.append(line)
            continue
        found.append(line._replace(account=postings.BAD_DEBT, amount_nanos=-recovered_nanos))
        if line.amount_nanos + recovered_nanos:
            found.append(line._replace(amount_nanos=line.amount_nanos + recovered_nanos))
    return tuple(found)


def _answer(journal: Journal, document: Document) -> dict[str, Any]:
    state = store.state_in(journal.db, document)
    return {"document_id": document.document_id, "number": document.number, "due_minor": state.due_minor} | (
        state._asdict()
    )


def _brief(document: Document) -> dict[str, Any]:
    return {
        "document_id": document.document_id,
        "number": document.number,
        "currency": document.currency,
        "total_minor": document.total_minor,
        "total_nanos": from_minor(document.total_minor, document.currency),
        "due_ns": document.due_ns,
    }


def _number(series: str, serial: int) -> str:
    return f"{series}-{serial:06d}"


def _new_id(now_ns: int) -> str:
    """Ids sort by creation: milliseconds first, then chance."""
    return f"inv_{now_ns // 1_000_000:012x}{os.urandom(5).hex()}"


VERBS: Final[dict[str, Verb[Any]]] = {
    "seller.set": Verb(Seller, set_seller),
    "account.set": Verb(Account, set_account),
    "item.add": Verb(AddItem, add_item),
    "invoice.draft": Verb(Draft, draft),
    "invoice.discard": Verb(Named, discard),
    "invoice.finalize": Verb(Named, finalize),
    "invoice.bill": Verb(Draft, bill),
    "invoice.void": Verb(Named, void),
    "invoice.write_off": Verb(Named, write_off),
    "invoice.credit": Verb(Credit, credit),
    "invoice.pay": Verb(Payment, pay),
    "invoice.refund": Verb(Refund, refund),
}
