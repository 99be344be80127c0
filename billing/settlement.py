"""Owns the rating of a month: posted usage under its plans → pending items beside the list prices, once, in full.

`month.settle` may be repeated, for example when late usage was posted: it rates the whole month again and adds items
over the differences only. Posted entries are never touched. Everything happens in one ledger transaction, so a crash
leaves either all of a month's items, its run and its credit use, or none.
"""

import sqlite3
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from billing import credit_store
from billing.coupons import discounts
from billing.credits import Burn, Need, burn
from billing.invoices import store
from billing.invoices.assemble import InvoiceError, Item
from billing.invoices.commands import MANUAL_ACCOUNTS
from billing.invoices.desk import Verb
from billing.invoices.proration import largest_remainder
from billing.ledger.journal import Journal
from billing.month import MonthLine, PlanMonth, Usage, month_lines, net_by_plan
from billing.plans import PlanError, PlanTerms, validate_terms
from billing.tally import TAIL_EVENTS_MAX, last_event_id, left, month_usage

PLANS_MAX: Final = 100
_COUPON: Final = "coupon:"
_PROMO: Final = "promo"


class MonthPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A plan that was in force in the month; `minimum_nanos` is its minimum for the part of the month that it was."""

    plan: str
    version: int
    terms: PlanTerms
    minimum_nanos: int = 0


class Settle(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rate a tenant's month [start_ns, end_ns) under `plans`."""

    tenant: str
    start_ns: int
    end_ns: int
    plans: tuple[MonthPlan, ...]


class RunLine(msgspec.Struct, frozen=True, kw_only=True):
    """A month's line as of one run; `item_id` is the pending item over its difference, if there is one."""

    key: str
    kind: str
    description: str
    amount_nanos: int
    item_id: int | None


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One rating of a month over its `ok_calls`. `list_nanos` is what they cost at list prices.

    `last_event_id`: the newest posted event then, whosever it is; what is newer came in later.
    """

    tenant: str
    start_ns: int
    end_ns: int
    n: int
    last_event_id: int
    ok_calls: int
    list_nanos: int
    net_nanos: int
    plan_versions: dict[str, int]
    lines: tuple[RunLine, ...]


def settle(journal: Journal, body: Settle, now_ns: int) -> Any:
    """Rate the month. Raises InvoiceError: no account, currency, too early, overlap with a month rated before."""
    account = store.get_account(journal.db, body.tenant)
    _check(journal, body, account.currency, now_ns)
    behind = left(journal.db, body.tenant, body.start_ns, body.end_ns)
    if behind > TAIL_EVENTS_MAX:
        # Walking them here would keep everybody's calls from being posted meanwhile.
        raise InvoiceError("gather_first", f"{behind} events are not added up: month.gather, in parts, comes first")
    previous = find_run(journal.db, body.tenant, body.start_ns)
    usage = month_usage(journal.db, body.tenant, body.start_ns, body.end_ns)
    lines = _all_lines(journal, body, usage, account.currency, now_ns)
    list_nanos = sum(one.charge_nanos for one in usage)
    run = Run(
        tenant=body.tenant,
        start_ns=body.start_ns,
        end_ns=body.end_ns,
        n=0 if previous is None else previous.n + 1,
        last_event_id=last_event_id(journal.db),
        ok_calls=sum(one.ok_calls for one in usage),
        list_nanos=list_nanos,
        net_nanos=list_nanos + sum(line.amount_nanos for line in lines),
        plan_versions={one.plan: one.version for one in body.plans},
        lines=(),
    )
    run = msgspec.structs.replace(run, lines=_add_items(journal, run, previous, lines, now_ns))
    journal.execute(
        "INSERT INTO month_run VALUES (?, ?, ?, ?, ?, ?)",
        (run.tenant, run.start_ns, run.n, run.end_ns, msgspec.json.encode(run).decode(), now_ns),
    )
    return msgspec.to_builtins(run)


def find_run(db: sqlite3.Connection, tenant: str, start_ns: int) -> Run | None:
    """The last rating of a month, or None."""
    row = db.execute(
        "SELECT body FROM month_run WHERE tenant = ? AND start_ns = ? ORDER BY n DESC LIMIT 1", (tenant, start_ns)
    ).fetchone()
    return None if row is None else msgspec.json.decode(row[0], type=Run)


def run_over(db: sqlite3.Connection, tenant: str, at_ns: int) -> Run | None:
    """The last rating of the time that `at_ns` lies in, or None."""
    row = db.execute(
        "SELECT body FROM month_run WHERE tenant = ? AND start_ns <= ? AND end_ns > ? ORDER BY start_ns DESC, n DESC",
        (tenant, at_ns, at_ns),
    ).fetchone()
    return None if row is None else msgspec.json.decode(row[0], type=Run)


def late_runs(db: sqlite3.Connection, tenant: str, until_ns: int, *, limit: int) -> list[Run]:
    """The last `limit` months that ended by `until_ns`, as last rated, to which usage came in since; oldest first."""
    rows = db.execute(
        "SELECT DISTINCT start_ns FROM month_run WHERE tenant = ? AND end_ns <= ? ORDER BY start_ns DESC LIMIT ?",
        (tenant, until_ns, limit),
    ).fetchall()
    late = []
    for (start_ns,) in reversed(rows):
        run = find_run(db, tenant, start_ns)
        assert run is not None
        if not _has_newer(db, run):
            continue
        usage = month_usage(db, tenant, run.start_ns, run.end_ns)
        now = (sum(one.ok_calls for one in usage), sum(one.charge_nanos for one in usage))
        if now != (run.ok_calls, run.list_nanos):
            late.append(run)
    return late


def _has_newer(db: sqlite3.Connection, run: Run) -> bool:
    """Whether a batch of the tenant's usage posted since reaches into the month: a look at batches, not at calls."""
    row = db.execute(
        "SELECT 1 FROM journal_tx x JOIN tenant t USING (tenant_id) WHERE t.name = ? AND x.kind = 'usage'"
        " AND x.first_event_id > ? AND x.t_max_ns >= ? AND x.t_min_ns < ? LIMIT 1",
        (run.tenant, run.last_event_id, run.start_ns, run.end_ns),
    ).fetchone()
    return row is not None


def rated_until(db: sqlite3.Connection, tenant: str, start_ns: int, before_ns: int) -> int:
    """How far [start_ns, before_ns) was rated by runs that began before `before_ns`; `start_ns` when it was not."""
    (end_ns,) = db.execute(
        "SELECT COALESCE(MAX(end_ns), ?) FROM month_run WHERE tenant = ? AND start_ns < ? AND end_ns > ?",
        (start_ns, tenant, before_ns, start_ns),
    ).fetchone()
    return int(end_ns)


def list_runs(db: sqlite3.Connection, tenant: str, *, limit: int) -> list[Run]:
    """A tenant's ratings, newest month first, each month's last run first."""
    rows = db.execute(
        "SELECT body FROM month_run WHERE tenant = ? ORDER BY start_ns DESC, n DESC LIMIT ?", (tenant, limit)
    )
    return [msgspec.json.decode(body, type=Run) for (body,) in rows]


def _check(journal: Journal, body: Settle, currency: str, now_ns: int) -> None:
    if not 0 <= body.start_ns < body.end_ns < 2**63:
        raise InvoiceError("field", f"end_ns: {body.end_ns} must be after start_ns, {body.start_ns}")
    if body.end_ns > now_ns:
        raise InvoiceError("too_early", f"end_ns: {body.end_ns} is in the future: a month is rated when it is over")
    names = [one.plan for one in body.plans]
    if len(names) > PLANS_MAX or len(set(names)) != len(names):
        raise InvoiceError("field", f"plans: at most {PLANS_MAX} different ones")
    for one in body.plans:
        try:
            validate_terms(one.terms)
        except PlanError as error:
            raise InvoiceError("field", f"plans.{one.plan}.{error}") from error
        if one.terms.currency != currency:
            raise InvoiceError("currency", f"plan {one.plan!r} is in {one.terms.currency}, the account in {currency}")
        if not 0 <= one.minimum_nanos <= one.terms.minimum_nanos:
            raise InvoiceError("field", f"plans.{one.plan}.minimum_nanos: {one.minimum_nanos} is beyond its terms'")
    other = journal.execute(
        "SELECT start_ns, end_ns FROM month_run WHERE tenant = ? AND start_ns < ? AND end_ns > ?"
        " AND NOT (start_ns = ? AND end_ns = ?) LIMIT 1",
        (body.tenant, body.end_ns, body.start_ns, body.start_ns, body.end_ns),
    ).fetchone()
    if other is not None:
        raise InvoiceError("conflict", f"start_ns: the time overlaps a month rated before, {other[0]} to {other[1]}")


def _all_lines(journal: Journal, body: Settle, usage: Sequence[Usage], currency: str, now_ns: int) -> list[MonthLine]:
    months = [PlanMonth(one.plan, one.version, one.terms, one.minimum_nanos) for one in body.plans]
    lines = month_lines(months, usage)
    redeemed = credit_store.redeemed_before(
        credit_store.redemptions(journal.db, body.tenant), body.end_ns, _months_used(journal, body)
    )
    for off in discounts(redeemed, net_by_plan(usage, lines), currency):
        text = f"coupon {off.code}"
        lines.append(MonthLine(f"{_COUPON}{off.code}", "coupon", "", text, -off.amount_nanos))
    net = sum(one.charge_nanos for one in usage) + sum(line.amount_nanos for line in lines)
    used = _use_credit(journal, body, _needs(usage, max(0, net)), currency, now_ns)
    if used:
        lines.append(MonthLine(_PROMO, "promo", "", "promotional credit", -used))
    return lines


def _months_used(journal: Journal, body: Settle) -> dict[str, int]:
    """In how many other months each coupon took something off, by their last runs."""
    rows = journal.execute(
        "SELECT body FROM month_run r WHERE tenant = ? AND start_ns <> ? AND n ="
        " (SELECT MAX(n) FROM month_run m WHERE m.tenant = r.tenant AND m.start_ns = r.start_ns)",
        (body.tenant, body.start_ns),
    )
    used: dict[str, int] = {}
    for (text,) in rows:
        for line in msgspec.json.decode(text, type=Run).lines:
            if line.key.startswith(_COUPON) and line.amount_nanos:
                code = line.key.removeprefix(_COUPON)
                used[code] = used.get(code, 0) + 1
    return used


def _needs(usage: Sequence[Usage], net_nanos: int) -> list[Need]:
    """A month's net amount by model, in proportion to the list prices, so that credit for a model finds its part."""
    weights = tuple(one.charge_nanos for one in usage)
    if not net_nanos:
        return []
    if not sum(weights):
        return [Need("", net_nanos)]
    parts = largest_remainder(net_nanos, weights)
    return [Need(one.model, part) for one, part in zip(usage, parts, strict=True) if part]


def _use_credit(journal: Journal, body: Settle, needs: list[Need], currency: str, now_ns: int) -> int:
    """Bring the month's credit use to what its needs call for; how much that is. Credit must be valid at its end."""
    last_ns = body.end_ns - 1
    credit_store.roll_expired(journal, body.tenant, last_ns, now_ns)
    before = credit_store.burns_of(journal.db, body.tenant, body.start_ns)
    available = credit_store.holdings(journal.db, body.tenant, without_month_ns=body.start_ns)
    wanted = {one.grant_id: one.amount_nanos for one in burn(available, needs, currency, last_ns)}
    for grant_id in sorted(before.keys() | wanted.keys()):
        change = wanted.get(grant_id, 0) - before.get(grant_id, 0)
        if change:
            credit_store.add_burn(journal, body.start_ns, Burn(grant_id, change), now_ns)
    return sum(wanted.values())


def _add_items(
    journal: Journal, run: Run, previous: Run | None, lines: Sequence[MonthLine], now_ns: int
) -> tuple[RunLine, ...]:
    """Pending items over what differs from the run before; lines that are gone are taken back."""
    before = {} if previous is None else {line.key: line for line in previous.lines}
    wanted = {line.key: (line.kind, line.description, line.amount_nanos) for line in lines}
    for key, line in before.items():
        wanted.setdefault(key, (line.kind, line.description, 0))  # type: ignore[arg-type]
    made = []
    for key, (kind, description, nanos) in wanted.items():
        change = nanos - (before[key].amount_nanos if key in before else 0)
        item_id = None
        if change:
            text = description if previous is None else f"{description} (rated again)"
            item = Item(0, kind, text, MANUAL_ACCOUNTS[kind], change, "standard", run.start_ns, run.end_ns)
            item_id = store.add_item(
                journal.db, run.tenant, f"month:{run.tenant}:{run.start_ns}:{run.n}:{key}", item, now_ns
            )
        made.append(RunLine(key=key, kind=kind, description=description, amount_nanos=nanos, item_id=item_id))
    return tuple(made)


VERBS: Final[dict[str, Verb[Any]]] = {"month.settle": Verb(Settle, settle)}
