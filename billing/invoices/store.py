"""Owns the rows of invoicing: accounts, items, drafts, documents, steps, cuts and events. It decides nothing.

Functions take a `sqlite3.Connection`: the meter's inside `Journal`, or one of `billing.ledger.connect.open_reader`.
"""

import sqlite3
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from billing.invoices.account import UNNAMED_SELLER, Account, Seller
from billing.invoices.assemble import InvoiceError, Item
from billing.invoices.document import Cut, Document, decode_document, digest_of, encode_document
from billing.invoices.life import State, Step, state_of

PAGE_MAX: Final = 1_000
PENDING_ITEMS_MAX: Final = 4_000
_SELLER: Final = "seller"
_ITEM = "item_id, kind, description, account, amount_nanos, tax_category, start_ns, end_ns"


class InvoiceRow(NamedTuple):
    """A document in a list: its head and where it stands. Credit notes have no state of their own."""

    document_id: str
    number: str
    kind: str
    tenant: str
    currency: str
    total_minor: int
    issued_ns: int
    due_ns: int
    start_ns: int
    end_ns: int
    corrects: str
    digest: str
    state: State


class Event(NamedTuple):
    """Something told to the outside. `seq` counts up by one in the order of commits."""

    seq: int
    at_ns: int
    tenant: str
    type: str
    body: Any


def get_seller(db: sqlite3.Connection) -> Seller:
    row = db.execute("SELECT body FROM billing_setting WHERE name = ?", (_SELLER,)).fetchone()
    return UNNAMED_SELLER if row is None else msgspec.json.decode(row[0], type=Seller)


def put_seller(db: sqlite3.Connection, seller: Seller, now_ns: int) -> None:
    db.execute(
        "INSERT INTO billing_setting VALUES (?, ?, ?)"
        " ON CONFLICT (name) DO UPDATE SET body = excluded.body, updated_ns = excluded.updated_ns",
        (_SELLER, _json(seller), now_ns),
    )


def find_account(db: sqlite3.Connection, tenant: str) -> Account | None:
    row = db.execute("SELECT body FROM billing_account WHERE tenant = ?", (tenant,)).fetchone()
    return None if row is None else msgspec.json.decode(row[0], type=Account)


def get_account(db: sqlite3.Connection, tenant: str) -> Account:
    """Raises InvoiceError when the tenant has none."""
    account = find_account(db, tenant)
    if account is None:
        raise InvoiceError("not_found", f"tenant {tenant!r} has no billing account")
    return account


def list_accounts(db: sqlite3.Connection, *, after: str, limit: int) -> list[Account]:
    rows = db.execute("SELECT body FROM billing_account WHERE tenant > ? ORDER BY tenant LIMIT ?", (after, limit))
    return [msgspec.json.decode(body, type=Account) for (body,) in rows]


def put_account(db: sqlite3.Connection, account: Account, now_ns: int) -> None:
    db.execute(
        "INSERT INTO billing_account VALUES (?, ?, ?, ?)"
        " ON CONFLICT (tenant) DO UPDATE SET currency = excluded.currency, body = excluded.body,"
        " updated_ns = excluded.updated_ns",
        (account.tenant, account.currency, _json(account), now_ns),
    )


def add_item(db: sqlite3.Connection, tenant: str, source: str, item: Item, now_ns: int) -> int | None:
    """Add a pending item (its `item_id` is ignored); the new id, or None when `source` was added before."""
    (count,) = db.execute(f"SELECT COUNT(*) FROM pending_item i {_UNBILLED}", (tenant,)).fetchone()  # noqa: S608
    if count >= PENDING_ITEMS_MAX:
        raise InvoiceError(
            "too_many_items", f"tenant {tenant!r} has {PENDING_ITEMS_MAX} pending items: bill them first"
        )
    row = db.execute(
        f"INSERT INTO pending_item (tenant, source, {_ITEM.removeprefix('item_id, ')}, created_ns)"  # noqa: S608
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (source) DO NOTHING RETURNING item_id",
        (tenant, source, *item[1:], now_ns),
    ).fetchone()
    return None if row is None else int(row[0])


def pending_items(db: sqlite3.Connection, tenant: str) -> list[Item]:
    """What the tenant's next invoice will hold beside usage, oldest first."""
    columns = ", ".join(f"i.{column}" for column in _ITEM.split(", "))
    rows = db.execute(f"SELECT {columns} FROM pending_item i {_UNBILLED} ORDER BY i.item_id", (tenant,))  # noqa: S608
    return [Item._make(row) for row in rows]


def mark_billed(db: sqlite3.Connection, item_ids: Sequence[int], document_id: str) -> None:
    """Raises InvoiceError when an item is on another document already."""
    try:
        db.executemany("INSERT INTO item_billed VALUES (?, ?)", [(item, document_id) for item in item_ids])
    except sqlite3.IntegrityError as error:
        raise InvoiceError("draft_stale", "an item of this draft was billed meanwhile: make the draft again") from error


def find_cut(db: sqlite3.Connection, tenant: str) -> Cut | None:
    """The usage that the tenant's invoices cover so far."""
    row = db.execute(
        "SELECT event_id, end_ns FROM usage_cut WHERE tenant = ? ORDER BY n DESC LIMIT 1", (tenant,)
    ).fetchone()
    return None if row is None else Cut(event_id=row[0], end_ns=row[1])


def put_cut(db: sqlite3.Connection, tenant: str, cut: Cut, document_id: str) -> None:
    db.execute(
        "INSERT INTO usage_cut SELECT ?, 1 + COALESCE(MAX(n), 0), ?, ?, ? FROM usage_cut WHERE tenant = ?",
        (tenant, cut.event_id, cut.end_ns, document_id, tenant),
    )


def last_event_id(db: sqlite3.Connection) -> int:
    (event_id,) = db.execute("SELECT COALESCE(MAX(event_id), 0) FROM usage_event").fetchone()
    return int(event_id)


def put_draft(db: sqlite3.Connection, draft: Document, now_ns: int) -> None:
    """The tenant's one draft; it replaces the one before."""
    db.execute("DELETE FROM invoice_draft WHERE tenant = ?", (draft.tenant,))
    db.execute(
        "INSERT INTO invoice_draft VALUES (?, ?, ?, ?)",
        (draft.tenant, draft.document_id, encode_document(draft).decode(), now_ns),
    )


def find_draft(db: sqlite3.Connection, *, tenant: str | None = None, document_id: str | None = None) -> Document | None:
    row = db.execute(
        "SELECT body FROM invoice_draft WHERE tenant = ? OR document_id = ?", (tenant, document_id)
    ).fetchone()
    return None if row is None else decode_document(row[0])


def drop_draft(db: sqlite3.Connection, document_id: str) -> bool:
    return db.execute("DELETE FROM invoice_draft WHERE document_id = ?", (document_id,)).rowcount == 1


def next_serial(db: sqlite3.Connection, series: str) -> int:
    (serial,) = db.execute("SELECT 1 + COALESCE(MAX(serial), 0) FROM invoice WHERE series = ?", (series,)).fetchone()
    return int(serial)


def put_document(db: sqlite3.Connection, document: Document, series: str, serial: int) -> None:
    body = encode_document(document)
    db.execute(
        "INSERT INTO invoice VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            document.document_id,
            series,
            serial,
            document.number,
            document.kind,
            document.tenant,
            document.currency,
            document.total_minor,
            document.issued_ns,
            document.due_ns,
            document.start_ns,
            document.end_ns,
            document.corrects,
            body.decode(),
            digest_of(body).hex(),
        ),
    )


def get_document(db: sqlite3.Connection, name: str) -> Document:
    """A finalized document by its id or number. Raises InvoiceError when there is none."""
    row = db.execute("SELECT body FROM invoice WHERE document_id = ? OR number = ?", (name, name)).fetchone()
    if row is None:
        raise InvoiceError("not_found", f"invoice {name!r} does not exist")
    return decode_document(row[0])


def add_step(db: sqlite3.Connection, document_id: str, step: Step) -> None:
    """Raises InvoiceError when its reference (a payment's id at the provider) was booked before."""
    known = (
        step.reference
        and db.execute(
            "SELECT 1 FROM invoice_step WHERE kind = ? AND reference = ?", (step.kind, step.reference)
        ).fetchone()
    )
    if known:
        raise InvoiceError("conflict", f"{step.kind} {step.reference!r} was booked before")
    db.execute(
        "INSERT INTO invoice_step SELECT ?, 1 + COALESCE(MAX(n), 0), ?, ?, ?, ?, ?, ? FROM invoice_step"
        " WHERE document_id = ?",
        (document_id, step.kind, step.at_ns, step.amount_minor, step.tx_id, step.reference, step.note, document_id),
    )


def steps_of(db: sqlite3.Connection, document_id: str) -> list[Step]:
    rows = db.execute(
        "SELECT kind, at_ns, amount_minor, tx_id, reference, note FROM invoice_step WHERE document_id = ? ORDER BY n",
        (document_id,),
    )
    return [Step._make(row) for row in rows]


def state_in(db: sqlite3.Connection, document: Document) -> State:
    return state_of(document.total_minor, steps_of(db, document.document_id))


def list_invoices(
    db: sqlite3.Connection, *, tenant: str | None = None, after: str = "", limit: int = 100
) -> list[InvoiceRow]:
    """Documents in the order of their ids, which is that of their making, to the millisecond."""
    columns = "document_id, number, kind, tenant, currency, total_minor, issued_ns, due_ns, start_ns, end_ns, corrects"
    where = "document_id > ?" + ("" if tenant is None else " AND tenant = ?")
    values = [after, *([] if tenant is None else [tenant]), min(limit, PAGE_MAX)]
    rows = db.execute(
        f"SELECT {columns}, digest FROM invoice WHERE {where} ORDER BY document_id LIMIT ?",  # noqa: S608
        values,
    ).fetchall()
    return [InvoiceRow._make((*row, state_of(row[5], steps_of(db, row[0])))) for row in rows]


def add_event(db: sqlite3.Connection, tenant: str, kind: str, body: Any, now_ns: int) -> None:
    """Tell the outside, in the transaction of what happened: never of something that was undone."""
    db.execute(
        "INSERT INTO billing_event (at_ns, tenant, type, body) VALUES (?, ?, ?, ?)", (now_ns, tenant, kind, _json(body))
    )


def list_events(db: sqlite3.Connection, *, after: int, limit: int) -> list[Event]:
    """Events behind `after`. One writer numbers them inside its transactions, so none ever appears behind a later."""
    rows = db.execute(
        "SELECT seq, at_ns, tenant, type, body FROM billing_event WHERE seq > ? ORDER BY seq LIMIT ?",
        (after, min(limit, PAGE_MAX)),
    )
    return [Event._make((*head, msgspec.json.decode(body))) for *head, body in rows]


def last_event_seq(db: sqlite3.Connection) -> int:
    """The newest event's number; 0: nothing has happened."""
    (seq,) = db.execute("SELECT COALESCE(MAX(seq), 0) FROM billing_event").fetchone()
    return int(seq)


def is_billed_until(db: sqlite3.Connection, tenant: str, end_ns: int) -> bool:
    return (
        db.execute("SELECT 1 FROM billed_until WHERE tenant = ? AND end_ns >= ?", (tenant, end_ns)).fetchone()
        is not None
    )


def note_billed_until(db: sqlite3.Connection, tenant: str, end_ns: int, now_ns: int) -> None:
    db.execute("INSERT INTO billed_until VALUES (?, ?, ?) ON CONFLICT DO NOTHING", (tenant, end_ns, now_ns))


def _json(value: Any) -> str:
    return msgspec.json.encode(value, order="deterministic").decode()


_UNBILLED = "WHERE i.tenant = ? AND NOT EXISTS (SELECT 1 FROM item_billed b WHERE b.item_id = i.item_id)"
