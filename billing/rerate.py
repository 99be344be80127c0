"""Owns re-rating: posted calls priced again by another price book, as a run with its differences. Posts nothing.

Against the version that each call names the run gives what was posted, to the nano (I16). Against another one it says
what that book would have charged. Takes a connection from `billing.ledger.connect.open_reader`.
"""

import hashlib
import sqlite3
from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec

from billing.event_pages import event_pages
from billing.events import Reason
from billing.rating import PRICING_BY_REASON, Rater

LINES_MAX: Final = 10_000


class RerateError(ValueError):
    """A run that cannot be made; the message names the argument."""


class RerateLine(msgspec.Struct, frozen=True, kw_only=True):
    """Calls of one tenant, model and pinned price version. `difference_nanos` = rerated - posted."""

    tenant: str
    model: str
    price_version: int
    currency: str
    calls: int
    posted_nanos: int
    rerated_nanos: int
    difference_nanos: int


class RerateRun(msgspec.Struct, frozen=True, kw_only=True):
    """One run. `against` None: each call by its own version. `digest`: SHA-256 of everything else in it."""

    since_ns: int
    until_ns: int
    against: int | None
    last_event_id: int
    lines: tuple[RerateLine, ...]
    digest: str = ""


class _Same(NamedTuple):
    """Calls that are charged alike."""

    tenant: str
    model: str
    version: int
    currency: str
    outcome: int
    reason: int
    rows: int
    compute_ns: int


def rerate(
    db: sqlite3.Connection,
    raters: Mapping[int, Rater],
    *,
    since_ns: int,
    until_ns: int,
    against: int | None = None,
    tenant: str | None = None,
    model: str | None = None,
) -> RerateRun:
    """Price the posted calls with since_ns <= t_ns < until_ns again.

    Raises RerateError: an unknown version, another currency, an empty span, or too many groups.
    """
    if since_ns >= until_ns:
        raise RerateError(f"from: must be before to ({since_ns} is not before {until_ns})")
    if against is not None and against not in raters:
        raise RerateError(f"against: price book {against} is unknown; known: {', '.join(map(str, sorted(raters)))}")
    folded: dict[tuple[str, str, int, str], list[int]] = {}
    last_event_id = 0
    for first, last_event_id in event_pages(db, since_ns, until_ns):
        where, values = _conditions((first, last_event_id), (since_ns, until_ns), tenant, model)
        for *facts, calls, quotients, rests in db.execute(_SELECT.format(where=where), values):
            same = _Same(*facts)
            sums = folded.setdefault((same.tenant, same.model, same.version, same.currency), [0, 0, 0])
            if len(folded) > LINES_MAX:
                raise RerateError(f"more than {LINES_MAX} lines: narrow the run by tenant, model or time")
            sums[0] += calls
            sums[1] += quotients * 1_000_000_000 + rests
            sums[2] += _amount(raters, same, against) * calls
    lines = tuple(_line(key, *folded[key]) for key in sorted(folded))
    run = RerateRun(since_ns=since_ns, until_ns=until_ns, against=against, last_event_id=last_event_id, lines=lines)
    return msgspec.structs.replace(run, digest=hashlib.sha256(msgspec.json.encode(run)).hexdigest())


# Calls alike in everything that a price depends on are charged alike: each group is rated once, its sum exact.
_SELECT: Final = """
SELECT t.name, f.model, f.price_version, f.currency, f.outcome, f.reason, e.rows, e.compute_ns,
       COUNT(*), SUM(e.charge_nanos / 1000000000), SUM(e.charge_nanos % 1000000000)
FROM usage_event e JOIN facet f USING (facet_id) JOIN tenant t USING (tenant_id)
WHERE {where} GROUP BY 1, 2, 3, 4, 5, 6, 7, 8
"""


def _conditions(
    events: tuple[int, int], span: tuple[int, int], tenant: str | None, model: str | None
) -> tuple[str, list[int | str]]:
    where = "e.event_id BETWEEN ? AND ? AND e.t_ns >= ? AND e.t_ns < ?"
    values: list[int | str] = [*events, *span]
    for column, wanted in (("t.name", tenant), ("f.model", model)):
        if wanted is not None:
            where += f" AND {column} = ?"
            values.append(wanted)
    return where, values


def _amount(raters: Mapping[int, Rater], same: _Same, against: int | None) -> int:
    rater = raters.get(same.version if against is None else against)
    if rater is None:
        raise RerateError(f"price book {same.version} of posted calls is unknown")
    if rater.currency != same.currency:
        raise RerateError(f"against: price book {rater.version} is in {rater.currency}, the calls in {same.currency}")
    pricing = PRICING_BY_REASON.get(Reason(same.reason), "priced")
    amount, _ = rater.charge(same.model, pricing, same.outcome, same.rows, same.compute_ns)
    return amount


def _line(key: tuple[str, str, int, str], calls: int, posted: int, rerated: int) -> RerateLine:
    tenant, model, version, currency = key
    return RerateLine(
        tenant=tenant,
        model=model,
        price_version=version,
        currency=currency,
        calls=calls,
        posted_nanos=posted,
        rerated_nanos=rerated,
        difference_nanos=rerated - posted,
    )
