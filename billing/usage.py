"""Owns the one query path from posted events to usage figures: API, dashboard and invoice all come through `usage_by`.

Takes a connection from `billing.ledger.connect.open_reader`. Amounts are nanos, instants UTC nanoseconds; days are
those of the zone that is asked for.
"""

import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime, tzinfo
from typing import Any, Final, Literal, NamedTuple, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from billing.events import Reason

Dimension = Literal["day", "model", "key", "tenant", "plan", "outcome", "price_version"]

ROWS_MAX: Final = 10_000
#: All zone offsets in use are multiples of this, so quarter hours fold into any zone's days.
_SLOT_NS: Final = 15 * 60 * 1_000_000_000
_COLUMNS: Final[dict[Dimension, str]] = {
    "day": f"e.t_ns / {_SLOT_NS}",
    "model": "f.model",
    "key": "f.key_id",
    "tenant": "t.name",
    "plan": "f.plan",
    "outcome": "f.outcome",
    "price_version": "f.price_version",
}


class UsageError(ValueError):
    """A query that makes no sense; the message names the argument."""


class UsageRow(NamedTuple):
    """Figures of one group. `group` holds the values of the asked dimensions in their order (day: "2026-01-31")."""

    group: tuple[str | int, ...]
    currency: str
    #: All recorded calls; `ok_calls` + `failed_calls` = calls.
    calls: int
    ok_calls: int
    failed_calls: int
    rows: int
    compute_ns: int
    request_bytes: int
    reply_bytes: int
    charge_nanos: int


def usage_by(
    db: sqlite3.Connection,
    by: Sequence[Dimension] = ("day",),
    *,
    tenant: str | None = None,
    model: str | None = None,
    key: str | None = None,
    since_ns: int | None = None,
    until_ns: int | None = None,
    zone: str = "UTC",
    covered: tuple[int, int] | None = None,
    beyond: tuple[int, int] | None = None,
    is_prepaid: bool | None = None,
    within: tuple[int, int] | None = None,
) -> list[UsageRow]:
    """Usage of posted calls with since_ns <= t_ns < until_ns, grouped by `by` and currency, sorted by group.

    `covered` and `beyond` are cuts of invoices, (event id, end_ns): only events inside the first (id <= event id and
    t_ns < end_ns) and outside the second. `is_prepaid`: only calls that a wallet paid, or only the others. `within`:
    only events with first < id <= second; no others are walked, whatever there are.

    Raises UsageError for an unknown dimension or zone, or for more than ROWS_MAX groups.
    """
    unknown = [dimension for dimension in by if dimension not in get_args(Dimension)]
    if unknown or len(set(by)) != len(by):
        raise UsageError(f"by: {', '.join(by)}: must be different ones of {', '.join(get_args(Dimension))}")
    in_zone = _zone(zone)
    where, values = _conditions(tenant, model, key, since_ns, until_ns)
    where, values = _within_cuts(where, values, covered, beyond)
    if is_prepaid is not None:
        where = f"{where} {'AND' if where else 'WHERE'} f.reason {'=' if is_prepaid else '<>'} {int(Reason.PREPAID)}"
    if within is not None:
        where = f"{where} {'AND' if where else 'WHERE'} e.event_id > ? AND e.event_id <= ?"
        values = [*values, *within]
    groups = ", ".join([*(_COLUMNS[dimension] for dimension in by), "f.currency"])
    folded: dict[tuple[Any, ...], list[int]] = {}
    for row in db.execute(_SELECT.format(groups=groups, where=where, tenant=_tenant_of(within)), values):
        group, figures = row[: len(by) + 1], row[len(by) + 1 :]
        name = tuple(
            _day(value, in_zone) if dimension == "day" else value
            for dimension, value in zip((*by, "currency"), group, strict=True)
        )
        sums = folded.setdefault(name, [0] * len(figures))
        if len(folded) > ROWS_MAX:
            raise UsageError(f"more than {ROWS_MAX} groups: narrow the query")
        for index, figure in enumerate(figures):
            sums[index] += figure
    return [_row(name, folded[name]) for name in sorted(folded)]


# Charges are summed as quotients and rests of 1e9: exact, and beyond the reach of a 64-bit overflow.
_SELECT = """
SELECT {groups}, COUNT(*), SUM(f.outcome = 0), SUM(e.rows), SUM(e.compute_ns), SUM(e.request_bytes),
       SUM(e.reply_bytes), SUM(e.charge_nanos / 1000000000), SUM(e.charge_nanos % 1000000000)
FROM usage_event e JOIN facet f USING (facet_id) JOIN tenant t ON t.tenant_id = {tenant}
{where} GROUP BY {groups}
"""


def _tenant_of(within: tuple[int, int] | None) -> str:
    """`+` keeps the planner from the tenant's index, by which it would walk all its events, not a range of ids."""
    return "e.tenant_id" if within is None else "+e.tenant_id"


def _conditions(
    tenant: str | None, model: str | None, key: str | None, since_ns: int | None, until_ns: int | None
) -> tuple[str, list[str | int]]:
    """The WHERE clause; event times have no index of their own, so `since_ns` also narrows by transaction."""
    wanted: list[tuple[str, str | int | None]] = [
        ("t.name = ?", tenant),
        ("f.model = ?", model),
        ("f.key_id = ?", key),
        ("e.t_ns >= ?", since_ns),
        ("e.event_id >= (SELECT COALESCE(MIN(first_event_id), 0) FROM journal_tx WHERE t_max_ns >= ?)", since_ns),
        ("e.t_ns < ?", until_ns),
    ]
    used = [(condition, value) for condition, value in wanted if value is not None]
    where = "WHERE " + " AND ".join(condition for condition, _ in used) if used else ""
    return where, [value for _, value in used]


def _within_cuts(
    where: str, values: list[str | int], covered: tuple[int, int] | None, beyond: tuple[int, int] | None
) -> tuple[str, list[str | int]]:
    conditions = [where.removeprefix("WHERE ")] if where else []
    if covered is not None:
        conditions.append("e.event_id <= ? AND e.t_ns < ?")
        values = [*values, *covered]
    if beyond is not None:
        # The first line narrows what is walked: events behind the cut, and those of transactions that reach beyond it.
        conditions.append(
            "e.event_id >= MIN(? + 1, (SELECT COALESCE(MIN(first_event_id), 9223372036854775807) FROM journal_tx"
            " WHERE kind = 'usage' AND t_max_ns >= ?)) AND (e.event_id > ? OR e.t_ns >= ?)"
        )
        values = [*values, *beyond, *beyond]
    return ("WHERE " + " AND ".join(conditions) if conditions else ""), values


def _row(name: tuple[Any, ...], sums: list[int]) -> UsageRow:
    calls, ok_calls, rows, compute_ns, request_bytes, reply_bytes, quotients, rests = sums
    return UsageRow(
        group=name[:-1],
        currency=name[-1],
        calls=calls,
        ok_calls=ok_calls,
        failed_calls=calls - ok_calls,
        rows=rows,
        compute_ns=compute_ns,
        request_bytes=request_bytes,
        reply_bytes=reply_bytes,
        charge_nanos=quotients * 1_000_000_000 + rests,
    )


def _zone(name: str) -> tzinfo:
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise UsageError(f"zone: {name!r} is no IANA time zone") from error


def _day(slot: int, zone: tzinfo) -> str:
    return datetime.fromtimestamp(slot * (_SLOT_NS // 1_000_000_000), zone).date().isoformat()
