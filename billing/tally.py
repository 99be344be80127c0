"""Owns the adding up of a month's usage in parts: short commands instead of one walk over the whole month.

A tally holds the sums of a tenant's calls with start <= time < end among the events up to one id. Events are never
changed and ids only grow, so a tally stays true for ever: what it lacks are the events behind its id, late ones
included. Every part is one transaction; after a crash the next one goes on where the last committed one ended, and the
sums are whole numbers, so parts of any size give the same.
"""

import sqlite3
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import msgspec

from billing.invoices.assemble import InvoiceError
from billing.invoices.desk import Verb
from billing.ledger.journal import Journal
from billing.month import Usage, base_plan
from billing.usage import UsageRow, usage_by

#: Events, of whatever tenant, that one part walks: a tenth of a second or so.
PART_EVENTS: Final = 100_000
#: Events behind the tally that `month.settle` walks itself; more must be gathered first.
TAIL_EVENTS_MAX: Final = 200_000
_OK: Final = 0


class Gather(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Add the next part of a tenant's time [start_ns, end_ns) to its tally."""

    tenant: str
    start_ns: int
    end_ns: int


class Tally(NamedTuple):
    """Sums over the events with an id up to `through_event_id`."""

    through_event_id: int
    usage: tuple[Usage, ...]


def gather(journal: Journal, body: Gather, now_ns: int) -> Any:
    """One part; how many events are left behind it. Raises InvoiceError for a time that is none."""
    if not 0 <= body.start_ns < body.end_ns < 2**63:
        raise InvoiceError("field", f"end_ns: {body.end_ns} must be after start_ns, {body.start_ns}")
    before = find_tally(journal.db, body.tenant, body.start_ns, body.end_ns)
    last = last_event_id(journal.db)
    through = min(before.through_event_id + PART_EVENTS, last)
    if through > before.through_event_id:
        added = _usage(journal.db, body.tenant, body.start_ns, body.end_ns, (before.through_event_id, through))
        made = fold([*before.usage, *added])
        journal.execute(
            "INSERT INTO month_tally VALUES (?, ?, ?, ?, ?, ?)",
            (body.tenant, body.start_ns, body.end_ns, through, msgspec.json.encode(made).decode(), now_ns),
        )
    return {"through_event_id": through, "left": last - through}


def month_usage(db: sqlite3.Connection, tenant: str, start_ns: int, end_ns: int) -> list[Usage]:
    """Good calls by plan (packs folded into it) and model; the same query as every report. Failed calls are free."""
    tally = find_tally(db, tenant, start_ns, end_ns)
    tail = _usage(db, tenant, start_ns, end_ns, (tally.through_event_id, last_event_id(db)))
    return fold([*tally.usage, *tail])


def left(db: sqlite3.Connection, tenant: str, start_ns: int, end_ns: int) -> int:
    """Events that `month_usage` would have to walk."""
    return last_event_id(db) - find_tally(db, tenant, start_ns, end_ns).through_event_id


def find_tally(db: sqlite3.Connection, tenant: str, start_ns: int, end_ns: int) -> Tally:
    """The furthest tally of exactly that time; an empty one that begins where events of it can be, if there is none."""
    row = db.execute(
        "SELECT through_event_id, body FROM month_tally WHERE tenant = ? AND start_ns = ? AND end_ns = ?"
        " ORDER BY through_event_id DESC LIMIT 1",
        (tenant, start_ns, end_ns),
    ).fetchone()
    if row is not None:
        return Tally(int(row[0]), msgspec.json.decode(row[1], type=tuple[Usage, ...]))
    (first,) = db.execute(
        "SELECT MIN(x.first_event_id) FROM journal_tx x JOIN tenant t USING (tenant_id)"
        " WHERE t.name = ? AND x.kind = 'usage' AND x.t_max_ns >= ? AND x.t_min_ns < ?",
        (tenant, start_ns, end_ns),
    ).fetchone()
    return Tally(last_event_id(db) if first is None else int(first) - 1, ())


def last_event_id(db: sqlite3.Connection) -> int:
    """The newest posted event, whosever it is."""
    (event_id,) = db.execute("SELECT COALESCE(MAX(event_id), 0) FROM usage_event").fetchone()
    return int(event_id)


def fold(parts: Iterable[Usage]) -> list[Usage]:
    """Sums by plan and model, sorted."""
    folded: dict[tuple[str, str], Usage] = {}
    for one in parts:
        known = folded.get((one.plan, one.model))
        sums = one[2:] if known is None else (a + b for a, b in zip(known[2:], one[2:], strict=True))
        folded[one.plan, one.model] = Usage(one.plan, one.model, *sums)
    return [folded[key] for key in sorted(folded)]


def _usage(db: sqlite3.Connection, tenant: str, start_ns: int, end_ns: int, within: tuple[int, int]) -> list[Usage]:
    rows = usage_by(
        db,
        ("plan", "model", "outcome"),
        tenant=tenant,
        since_ns=start_ns,
        until_ns=end_ns,
        is_prepaid=False,
        within=within,
    )
    return [_usage_of(row) for row in rows if row.group[2] == _OK]


def _usage_of(row: UsageRow) -> Usage:
    plan, model, _ = row.group
    return Usage(
        base_plan(str(plan)),
        str(model),
        row.ok_calls,
        row.rows,
        row.compute_ns,
        row.request_bytes + row.reply_bytes,
        row.charge_nanos,
    )


VERBS: Final[dict[str, Verb[Any]]] = {"month.gather": Verb(Gather, gather)}
