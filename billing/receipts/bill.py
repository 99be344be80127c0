"""Owns the proof of a bill: all calls of a tenant, its signed tree, the price books; and its offline verification.

Verified from the invoice and the proof alone: the proof's calls are those of the signed head; each costs what the
pinned price book says; the invoice's usage lines are what the calls inside its cut add up to; its lines, taxes and
totals add up; and the signer stands for exactly this invoice, these books and this numbering.
"""

import hashlib
import sqlite3
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from billing.events import Outcome, Reason, Served, decode
from billing.invoices.assemble import InvoiceError, usage_lines
from billing.invoices.document import Cut, Document, encode_document
from billing.judge import find_fault
from billing.ledger.merkle import LEAF_VERSION, blocks_of, merkle_root, root_of
from billing.ledger.port import LedgerError
from billing.ledger.stored import read_events
from billing.money import to_minor
from billing.packed import Packer
from billing.pricebook import decode_price_book
from billing.rating import PriceError, compile_book
from billing.receipts.keys import Signer, is_signed
from billing.receipts.prover import head_of, tenant_transactions
from billing.receipts.receipt import Head, ReceiptError, transaction_leaf, verify_head
from billing.usage import UsageRow

PROOF_VERSION: Final = 1
#: Calls of the tenant in one proof: about 150 bytes each, twice that in the file.
CALLS_MAX: Final = 1_000_000
_CONTEXT: Final = b"tollway bill v1\n"


class ProvenTransaction(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One usage transaction of the tenant: `records` in hex, numbered from `first_event_id` on."""

    tx_id: int
    first_event_id: int
    leaf_version: int
    records: tuple[str, ...]


class BillProof(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What goes with an invoice. `signature` (hex) is by the head's key; docs/receipts.md."""

    version: int = PROOF_VERSION
    head: Head
    prices: tuple[str, ...]
    transactions: tuple[ProvenTransaction, ...]
    signature: str = ""


def make_proof(  # noqa: PLR0917 - what a proof is made of
    db: sqlite3.Connection,
    document: Document,
    signer: Signer,
    now_ns: int,
    head: Head | None = None,
    calls_max: int = CALLS_MAX,
) -> BillProof:
    """The proof of a finalized invoice under `head`, which the signer signed, or a head made for it.

    Raises LedgerError: no invoice with a cut, more than `calls_max` calls, old leaves.
    """
    if document.cut is None or not document.number:
        raise LedgerError(f"{document.number or document.document_id}: only a finalized invoice over usage has a proof")
    transactions = tenant_transactions(db, document.tenant)
    if head is not None:
        transactions = transactions[: head.size]
    if sum(one.event_count for one in transactions) > calls_max:
        raise LedgerError(f"{document.tenant}: has more than {calls_max} calls, too many for one proof here")
    if any(one.leaf_version != LEAF_VERSION for one in transactions):
        raise LedgerError(f"{document.tenant}: has calls of a release whose leaves have no receipts")
    proven = []
    for one in transactions:
        packer = Packer()
        events = read_events(db, one.first_event_id, one.event_count)
        records = tuple(packer.pack(event.served).payload.hex() for event in events)
        proven.append(
            ProvenTransaction(
                tx_id=one.tx_id, first_event_id=one.first_event_id, leaf_version=one.leaf_version, records=records
            )
        )
    books = tuple(str(text) for (text,) in db.execute("SELECT json FROM price_book ORDER BY version"))
    head = head or head_of(document.tenant, transactions, signer, now_ns)
    unsigned = BillProof(head=head, prices=books, transactions=tuple(proven))
    return msgspec.structs.replace(unsigned, signature=signer.sign(_statement(document, unsigned)).hex())


def decode_proof(data: bytes) -> BillProof:
    """Raises ReceiptError for anything that is not a proof."""
    try:
        return msgspec.json.decode(data, type=BillProof)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ReceiptError(f"not a proof of a bill: {error}") from error


def decode_invoice(data: bytes) -> Document:
    """The document in a file: itself, or the member `document` of what the API answers. Raises ReceiptError."""
    try:
        raw: Any = msgspec.json.decode(data)
        return msgspec.convert(raw.get("document", raw) if isinstance(raw, dict) else raw, Document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ReceiptError(f"not an invoice: {error}") from error


def verify_bill(document: Document, proof: BillProof, keys: Mapping[str, bytes]) -> int:
    """How many calls the invoice bills. Raises ReceiptError naming the first thing that is wrong."""
    if proof.version != PROOF_VERSION:
        raise ReceiptError(f"version: {proof.version} is not known here")
    verify_head(proof.head, keys)
    if proof.head.tenant != document.tenant or document.cut is None:
        raise ReceiptError("tenant: the proof is not of this invoice's tenant, or the invoice bills no usage")
    events = list(_events(proof))
    signature = bytes.fromhex(proof.signature) if _is_hex(proof.signature) else b""
    if not is_signed(keys[proof.head.key_id], signature, _statement(document, proof)):
        raise ReceiptError("signature: the signer does not stand for this invoice, these books and these numbers")
    _check_prices(proof, [served for _, served in events])
    billed = [served for event_id, served in events if _is_billed(document, event_id, served)]
    _check_usage(document, billed)
    _check_sums(document)
    return len(billed)


def _statement(document: Document, proof: BillProof) -> bytes:
    numbering = [(one.tx_id, one.first_event_id) for one in proof.transactions]
    books = [hashlib.sha256(text.encode()).digest() for text in proof.prices]
    return _CONTEXT + msgspec.msgpack.encode([hashlib.sha256(encode_document(document)).digest(), books, numbering])


def _events(proof: BillProof) -> Iterator[tuple[int, Served]]:
    """(event id, call) of the whole tree. Raises ReceiptError unless it is the signed one."""
    leaves = []
    for one in proof.transactions:
        if one.leaf_version != LEAF_VERSION or not all(map(_is_hex, one.records)):
            raise ReceiptError(f"tx {one.tx_id}: its records or leaf version cannot be read")
        records = [bytes.fromhex(record) for record in one.records]
        root = merkle_root(blocks_of(records))
        leaves.append(transaction_leaf(one.tx_id, len(records), one.leaf_version, root))
        for at, record in enumerate(records):
            try:
                served: Any = decode(record)
            except msgspec.DecodeError as error:
                raise ReceiptError(f"tx {one.tx_id}: holds what is no record: {error}") from error
            if not isinstance(served, Served) or served.tenant != proof.head.tenant:
                raise ReceiptError(f"tx {one.tx_id}: holds what is no call of {proof.head.tenant}")
            yield one.first_event_id + at, served
    if len(leaves) != proof.head.size or root_of(leaves).hex() != proof.head.root:
        raise ReceiptError("transactions: are not those of the signed head")


def _check_prices(proof: BillProof, calls: list[Served]) -> None:
    try:
        books = [decode_price_book(text) for text in proof.prices]
    except PriceError as error:
        raise ReceiptError(f"prices: {error}") from error
    raters = {book.version: compile_book(book) for book in books}
    for served in calls:
        fault = find_fault(served, raters)
        if fault is not None:
            raise ReceiptError(f"call {served.call_id.hex()}: {fault.reason} ({fault.field})")


def _is_billed(document: Document, event_id: int, served: Served) -> bool:
    def is_inside(cut: Cut | None) -> bool:
        return cut is not None and event_id <= cut.event_id and served.t_ns < cut.end_ns

    return is_inside(document.cut) and not is_inside(document.previous_cut)


def _check_usage(document: Document, billed: list[Served]) -> None:
    groups: dict[tuple[str, int], list[Served]] = {}
    for served in billed:
        if served.reason == Reason.PREPAID:
            continue  # paid by the wallet, so no line of an invoice
        groups.setdefault((served.model, served.price_version), []).append(served)
    rows = []
    for group, calls in sorted(groups.items()):
        ok = sum(one.outcome == Outcome.OK for one in calls)
        charge = sum(one.charge_nanos for one in calls)
        row = sum(one.rows for one in calls)
        rows.append(UsageRow(group, calls[0].currency, len(calls), ok, len(calls) - ok, row, 0, 0, 0, charge))
    try:
        expected = usage_lines(document.tenant, document.currency, rows, (document.start_ns, document.end_ns))
    except InvoiceError as error:
        raise ReceiptError(f"lines: {error}") from error
    stated = [line for line in document.lines if line.kind == "usage"]
    if stated != expected:
        raise ReceiptError("lines: the usage on the invoice is not what the calls add up to")


def _check_sums(document: Document) -> None:
    if any(line.amount_minor != to_minor(line.exact_nanos, document.currency) for line in document.lines):
        raise ReceiptError("lines: an amount is not its exact value rounded once")
    total = sum(line.amount_minor for line in document.lines)
    total += 0 if document.prices_include_tax else document.tax_minor
    if document.tax_minor != sum(tax.tax_minor for tax in document.taxes) or document.total_minor != total:
        raise ReceiptError("total_minor: lines and taxes do not add up to it")
    if document.net_minor + document.tax_minor != document.total_minor:
        raise ReceiptError("net_minor: net and tax are not the total")


def _is_hex(text: str) -> bool:
    try:
        bytes.fromhex(text)
    except ValueError:
        return False
    return True
