"""Owns the usage of an invoice, added up in parts where a tenant has much of it, so that no draft holds the meter up.

The figures are those of `usage_by` over the invoice's cut. Where more than TAIL_EVENTS_MAX of the tenant's own events
wait for an invoice, `invoice.gather` first adds them up, PART_EVENTS in one short transaction, between which the meter
posts. A part is kept beside the cut that it goes beyond: events never change and ids only grow, so it stays true, and
after a crash the next one goes on behind it.
"""

import sqlite3
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import msgspec

from billing.invoices import store
from billing.invoices.assemble import InvoiceError
from billing.invoices.desk import Verb
from billing.invoices.document import Cut
from billing.invoices.period import floor_s
from billing.ledger.journal import Journal
from billing.usage import Dimension, UsageRow, usage_by

#: Events, of whatever tenant, that one part walks.
PART_EVENTS: Final = 100_000
#: The tenant's own events that a draft walks itself; more must be gathered first.
TAIL_EVENTS_MAX: Final = 200_000
_BY: Final[tuple[Dimension, ...]] = ("model", "price_version")


class GatherUsage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Add up the next part of what an invoice until `until_ns` will bill."""

    tenant: str
    until_ns: int


class Part(NamedTuple):
    """Figures of the events beyond the last invoice, with an id up to `through_event_id`."""

    through_event_id: int
    rows: tuple[UsageRow, ...]


def gather(journal: Journal, body: GatherUsage, now_ns: int) -> Any:
    """One part; how many of the tenant's events are left behind it. Raises InvoiceError: a time that is none."""
    if not 0 <= body.until_ns < 2**63:
        raise InvoiceError("field", f"until_ns: {body.until_ns} is no instant")
    db, cut, previous = (
        journal.db,
        cut_until(journal.db, body.tenant, body.until_ns),
        _previous(journal.db, body.tenant),
    )
    before = find_part(db, body.tenant, cut.end_ns)
    through = min(before.through_event_id + PART_EVENTS, cut.event_id)
    if through > before.through_event_id:
        part = Cut(event_id=through, end_ns=cut.end_ns)
        rows = fold([*before.rows, *_usage(db, body.tenant, part, (before.through_event_id, through))])
        journal.execute(
            "INSERT INTO invoice_part VALUES (?, ?, ?, ?, ?, ?, ?)",
            (body.tenant, cut.end_ns, *previous, through, msgspec.json.encode(rows).decode(), now_ns),
        )
    return {"through_event_id": through, "left": left(db, body.tenant, body.until_ns)}


def usage_until(db: sqlite3.Connection, tenant: str, cut: Cut) -> list[UsageRow]:
    """What an invoice with `cut` bills, by model and price version. Raises InvoiceError: too much of it at once."""
    part = find_part(db, tenant, cut.end_ns)
    behind = _own_events(db, tenant, part.through_event_id)
    if behind > TAIL_EVENTS_MAX:
        raise InvoiceError("gather_first", f"{behind} events are not added up: invoice.gather, in parts, comes first")
    if not part.rows:
        # By the tenant's index: of a small tenant few events are walked, however many the others have.
        return _usage(db, tenant, cut, None)
    return fold([*part.rows, *_usage(db, tenant, cut, (part.through_event_id, cut.event_id))])


def left(db: sqlite3.Connection, tenant: str, until_ns: int) -> int:
    """The tenant's events that a draft until then would have to walk."""
    part = find_part(db, tenant, cut_until(db, tenant, until_ns).end_ns)
    return _own_events(db, tenant, part.through_event_id)


def cut_until(db: sqlite3.Connection, tenant: str, until_ns: int) -> Cut:
    """The cut of an invoice made now over the time until then, which never goes back."""
    return Cut(event_id=store.last_event_id(db), end_ns=max(floor_s(until_ns), _previous(db, tenant)[1]))


def find_part(db: sqlite3.Connection, tenant: str, end_ns: int) -> Part:
    """The furthest part towards an invoice until `end_ns`; an empty one that begins where its events can be."""
    previous = _previous(db, tenant)
    row = db.execute(
        "SELECT through_event_id, body FROM invoice_part WHERE tenant = ? AND end_ns = ? AND cut_event_id = ?"
        " AND cut_end_ns = ? ORDER BY through_event_id DESC LIMIT 1",
        (tenant, end_ns, *previous),
    ).fetchone()
    if row is not None:
        return Part(int(row[0]), msgspec.json.decode(row[1], type=tuple[UsageRow, ...]))
    (first,) = db.execute(
        "SELECT MIN(x.first_event_id) FROM journal_tx x JOIN tenant t USING (tenant_id)"
        " WHERE t.name = ? AND x.kind = 'usage' AND (x.first_event_id > ? OR x.t_max_ns >= ?)",
        (tenant, *previous),
    ).fetchone()
    return Part(store.last_event_id(db) if first is None else int(first) - 1, ())


def fold(rows: Iterable[UsageRow]) -> list[UsageRow]:
    """Sums by group and currency, sorted as `usage_by` sorts."""
    folded: dict[tuple[Any, ...], UsageRow] = {}
    for row in rows:
        key, known = (*row.group, row.currency), folded.get((*row.group, row.currency))
        figures = row[2:] if known is None else tuple(a + b for a, b in zip(known[2:], row[2:], strict=True))
        folded[key] = UsageRow(tuple(row.group), row.currency, *figures)
    return [folded[key] for key in sorted(folded)]


def _usage(db: sqlite3.Connection, tenant: str, cut: Cut, within: tuple[int, int] | None) -> list[UsageRow]:
    previous = store.find_cut(db, tenant)
    return usage_by(
        db,
        _BY,
        tenant=tenant,
        covered=(cut.event_id, cut.end_ns),
        beyond=None if previous is None else (previous.event_id, previous.end_ns),
        is_prepaid=False,
        within=within,
    )


def _previous(db: sqlite3.Connection, tenant: str) -> tuple[int, int]:
    cut = store.find_cut(db, tenant)
    return (0, 0) if cut is None else (cut.event_id, cut.end_ns)


def _own_events(db: sqlite3.Connection, tenant: str, behind_event_id: int) -> int:
    (count,) = db.execute(
        "SELECT COALESCE(SUM(x.event_count), 0) FROM journal_tx x JOIN tenant t USING (tenant_id)"
        " WHERE t.name = ? AND x.kind = 'usage' AND x.first_event_id + x.event_count > ? + 1",
        (tenant, behind_event_id),
    ).fetchone()
    return int(count)


VERBS: Final[dict[str, Verb[Any]]] = {"invoice.gather": Verb(GatherUsage, gather)}
