"""Owns what becomes of quarantined records: money that waits for a person, who releases or dismisses it, once.

    quarantine.release   the record is judged again, without its clock, and posted to the open period, keeping its own
                         time: it is billed from then on as any late call
    quarantine.dismiss   it is never posted; the note says why

A record stays in quarantine for ever, its end stands beside it. All records of one command end, or none.
"""

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from billing.events import Reason, Served, decode
from billing.invoices.assemble import InvoiceError
from billing.invoices.desk import Verb
from billing.judge import find_fault
from billing.ledger.accounts import prepaid
from billing.ledger.balances import available_nanos
from billing.ledger.journal import OPEN_SINCE, Journal
from billing.ledger.port import Batch, Item, Source
from billing.ledger.posting import post_sorted
from billing.ledger.stored import find_event
from billing.pricebook import decode_price_book
from billing.rating import Rater, compile_book

RECORDS_MAX: Final = 1_000
NOTE_MAX: Final = 500
POSTED: Final = "posted"
DISMISSED: Final = "dismissed"


class End(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Records by their quarantine ids, and why they end as they do."""

    quarantine_ids: tuple[int, ...]
    note: str


class Held(NamedTuple):
    """A record in quarantine. `fate`: how it ended, "" while it waits; `note` and `ended_ns` go with it."""

    quarantine_id: int
    source: Source
    seq: int
    reason: str
    field: str
    quarantined_ns: int
    served: Served
    fate: str
    note: str
    ended_ns: int


def release(journal: Journal, body: End, now_ns: int) -> Any:
    """Post them. Raises InvoiceError: unknown, ended before, still at fault, or beyond what a wallet has."""
    found = _waiting(journal, body)
    raters = _raters(journal.db)
    for one in found:
        if find_event(journal.db, one.served) is not None:
            raise _refused(one, "its id is posted with other content: dismiss it, and bill a difference by hand")
        fault = find_fault(one.served, raters)
        if fault is not None:
            raise _refused(one, f"still {fault.reason} ({fault.field})")
    _check_wallets(journal, found)
    (open_since_ns,) = journal.execute(OPEN_SINCE).fetchone()
    posts: list[Item] = [(one.source, one.seq, one.served) for one in found]
    posted = post_sorted(journal.db, journal.names, Batch(posts=posts, now_ns=max(now_ns, open_since_ns)))
    if sum(group.posted for group in posted.groups) != len(found):
        raise InvoiceError("conflict", "quarantine_ids: two of them are the same call: release one, dismiss the other")
    _end(journal, found, POSTED, body.note, now_ns)
    return {"posted": len(found), "charge_nanos": sum(one.served.charge_nanos for one in found)}


def dismiss(journal: Journal, body: End, now_ns: int) -> Any:
    """Never post them. Raises InvoiceError: unknown, or ended before."""
    found = _waiting(journal, body)
    _end(journal, found, DISMISSED, body.note, now_ns)
    return {"dismissed": len(found)}


def list_held(db: sqlite3.Connection, *, after: int = 0, limit: int = 100, waits_only: bool = True) -> list[Held]:
    """Records in quarantine behind id `after`, in order; at most RECORDS_MAX."""
    if not _has_ends(db):
        return []
    where = "q.quarantine_id > ?" + (" AND e.fate IS NULL" if waits_only else "")
    rows = db.execute(f"{_SELECT} WHERE {where} ORDER BY q.quarantine_id LIMIT ?", (after, min(limit, RECORDS_MAX)))
    return [_held(row) for row in rows]


def ended(db: sqlite3.Connection) -> Mapping[str, int]:
    """How many records ended in each way; none where no release that knows of ends has run."""
    if not _has_ends(db):
        return {}
    return dict(db.execute("SELECT fate, COUNT(*) FROM quarantine_end GROUP BY fate").fetchall())


def _has_ends(db: sqlite3.Connection) -> bool:
    """Whether a meter that knows of ends has opened the ledger: they start together with whoever asks."""
    return db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'quarantine_end'").fetchone() is not None


def _waiting(journal: Journal, body: End) -> list[Held]:
    ids = body.quarantine_ids
    if not 1 <= len(ids) <= RECORDS_MAX or len(set(ids)) != len(ids):
        raise InvoiceError("field", f"quarantine_ids: from 1 to {RECORDS_MAX} different ones")
    if not 1 <= len(body.note) <= NOTE_MAX:
        raise InvoiceError("field", f"note: needs 1 to {NOTE_MAX} characters that say why")
    found = []
    for quarantine_id in ids:
        row = journal.execute(f"{_SELECT} WHERE q.quarantine_id = ?", (quarantine_id,)).fetchone()
        if row is None:
            raise InvoiceError("not_found", f"quarantine_ids: {quarantine_id} does not exist")
        held = _held(row)
        if held.fate:
            raise InvoiceError("conflict", f"quarantine_ids: {quarantine_id} was {held.fate} before")
        found.append(held)
    return found


def _check_wallets(journal: Journal, found: Sequence[Held]) -> None:
    """Prepaid calls take no more than is there: their lease is gone."""
    wanted: dict[tuple[str, str], int] = {}
    for one in found:
        if one.served.reason == Reason.PREPAID:
            key = (one.served.tenant, one.served.currency)
            wanted[key] = wanted.get(key, 0) + one.served.charge_nanos
    for (tenant, currency), nanos in wanted.items():
        if nanos > available_nanos(journal.db, prepaid(tenant), currency):
            raise InvoiceError("conflict", f"the wallet of {tenant!r} does not have the {nanos} nanos that they cost")


def _end(journal: Journal, found: Sequence[Held], fate: str, note: str, now_ns: int) -> None:
    for one in found:
        row = (one.served.tenant, one.quarantine_id, fate, note, now_ns)
        journal.execute("INSERT INTO quarantine_end VALUES (?, ?, ?, ?, ?)", row)


def _raters(db: sqlite3.Connection) -> dict[int, Rater]:
    rows = db.execute("SELECT version, json FROM price_book").fetchall()
    return {version: compile_book(decode_price_book(text)) for version, text in rows}


def _refused(one: Held, why: str) -> InvoiceError:
    return InvoiceError("conflict", f"quarantine_ids: {one.quarantine_id}: {why}")


_SELECT = (
    "SELECT q.quarantine_id, l.instance, l.epoch, q.seq, q.reason, q.field, q.quarantined_ns, q.payload, e.fate,"
    " e.note, e.at_ns FROM quarantine q JOIN log l USING (log_id) LEFT JOIN quarantine_end e USING (quarantine_id)"
)


def _held(row: Sequence[Any]) -> Held:
    quarantine_id, instance, epoch, seq, reason, field, quarantined_ns, payload, fate, note, at_ns = row
    served: Any = decode(payload)
    assert isinstance(served, Served)
    source = Source(instance, epoch)
    return Held(quarantine_id, source, seq, reason, field, quarantined_ns, served, fate or "", note or "", at_ns or 0)


VERBS: Final[dict[str, Verb[Any]]] = {
    "quarantine.release": Verb(End, release),
    "quarantine.dismiss": Verb(End, dismiss),
}
