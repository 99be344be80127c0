"""Owns which plan a tenant is on, with how many QPS packs, since when: append-only, because months are rated by it.

A pack raises the plan's limits for one tenant. Workers know limits by plan name, so such a tenant is published under a
plan of its own, "name+packs"; that is also what its usage records say, and what rating folds back to the plan's name.
"""

from typing import Final, NamedTuple

import msgspec
import sqlalchemy as sa

from billing.month import PACKS_MARK
from billing.plans import Pack
from gateway.control.errors import invalid
from gateway.control.plans import newest_terms
from gateway.control.schema import agreement as table
from gateway.snapshot import Plan

#: Rows of one tenant; a change of plan every hour for a year.
AGREEMENTS_MAX: Final = 10_000


class Agreement(NamedTuple):
    """A plan with packs, in force in [since_ns, until_ns); `until_ns` None: still."""

    plan: str
    packs: int
    since_ns: int
    until_ns: int | None


def agree(tx: sa.Connection, tenant: str, plan: str, packs: int, now_ns: int) -> None:
    """Note what holds from now on; nothing when it holds already. Raises ControlError for packs it does not have."""
    check_packs(newest_pack(tx, plan), plan, packs)
    last = _last(tx, tenant)
    if last is not None and (last["plan"], last["packs"]) == (plan, packs):
        return
    n = 1 if last is None else last["n"] + 1
    if n > AGREEMENTS_MAX:
        raise invalid(f"tenant {tenant!r} has changed its plan {AGREEMENTS_MAX} times, as often as it may")
    # Never before the row it follows, whatever the wall clock does: spans must not overlap.
    since_ns = now_ns if last is None else max(now_ns, last["since_ns"])
    tx.execute(table.insert().values(tenant=tenant, n=n, plan=plan, packs=packs, since_ns=since_ns))


def newest_pack(tx: sa.Connection, plan: str) -> Pack | None:
    terms = newest_terms(tx, plan)
    return None if terms is None else terms.pack


def check_packs(pack: Pack | None, plan: str, packs: int) -> None:
    """Raises ControlError unless a plan has so many packs to sell."""
    most = 0 if pack is None else pack.packs_max
    if not 0 <= packs <= most:
        said = "sells no packs" if pack is None else f"sells at most {most}"
        raise invalid(f"packs: {packs} is not possible: plan {plan!r} {said}")


def agreements_of(tx: sa.Connection, tenant: str, start_ns: int, end_ns: int) -> list[Agreement]:
    """What was in force at some time in [start_ns, end_ns), oldest first."""
    rows = tx.execute(sa.select(table).where(table.c.tenant == tenant).order_by(table.c.n)).mappings().all()
    ends = [*(row["since_ns"] for row in rows[1:]), None]
    found = [
        Agreement(row["plan"], row["packs"], row["since_ns"], until_ns)
        for row, until_ns in zip(rows, ends, strict=True)
    ]
    return [one for one in found if one.since_ns < end_ns and (one.until_ns is None or one.until_ns > start_ns)]


def current_packs(tx: sa.Connection) -> dict[str, int]:
    """The packs of each tenant that has any."""
    last = sa.select(table.c.tenant, sa.func.max(table.c.n).label("n")).group_by(table.c.tenant).subquery()
    query = sa.select(table.c.tenant, table.c.packs).join(
        last, sa.and_(table.c.tenant == last.c.tenant, table.c.n == last.c.n)
    )
    return {row.tenant: row.packs for row in tx.execute(query) if row.packs}


def packs_of(tx: sa.Connection, tenant: str) -> int:
    row = _last(tx, tenant)
    return 0 if row is None else int(row["packs"])


def packed_name(plan: str, packs: int) -> str:
    """What workers call a plan with packs. No plan's own name may hold the mark."""
    return f"{plan}{PACKS_MARK}{packs}" if packs else plan


def packed_plan(tx: sa.Connection, plan: Plan, packs: int) -> Plan:
    """The plan with the limits that `packs` packs give it. A limit that the plan does not have stays absent."""
    return raised(plan, newest_pack(tx, plan.name), packs)


def raised(plan: Plan, pack: Pack | None, packs: int) -> Plan:
    """`packed_plan` for a pack that is known; None (a later version sells none): the plan's own limits."""
    if pack is None:
        return msgspec.structs.replace(plan, name=packed_name(plan.name, packs))
    return msgspec.structs.replace(
        plan,
        name=packed_name(plan.name, packs),
        rate_calls=None if plan.rate_calls is None else plan.rate_calls + packs * pack.rate_calls,
        burst=plan.burst + packs * pack.burst,
        concurrency=None if plan.concurrency is None else plan.concurrency + packs * pack.concurrency,
    )


def _last(tx: sa.Connection, tenant: str) -> sa.RowMapping | None:
    query = sa.select(table).where(table.c.tenant == tenant).order_by(table.c.n.desc()).limit(1)
    return tx.execute(query).mappings().one_or_none()
