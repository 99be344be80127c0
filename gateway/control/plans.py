"""Owns plans as versioned data: a version never changes, a change is the next version, the newest one applies.

A tenant names a plan, not a version: a new version holds for all its tenants from the next snapshot on.
"""

from typing import Final, NamedTuple

import msgspec
import sqlalchemy as sa

from billing.plans import PlanTerms, decode_terms, encode_terms
from gateway.control.bodies import PlanBody
from gateway.control.errors import ControlCode, ControlError, invalid, not_found
from gateway.control.schema import plan_terms as terms_table
from gateway.control.schema import plan_version as table
from gateway.control.views import PlanView, instant
from gateway.snapshot import Plan

PLANS_MAX: Final = 1_000
VERSIONS_MAX: Final = 10_000


class TermsVersion(NamedTuple):
    """The money of one plan version; `terms` None: list prices only."""

    version: int
    created_ns: int
    terms: PlanTerms | None


SEED: Final[tuple[Plan, ...]] = (
    Plan(name="free", version=1, pricing="free", rate_calls=5, burst=10, calls_per_day=1_000),
    Plan(
        name="pay-per-call",
        version=1,
        pricing="priced",
        rate_calls=100,
        burst=200,
        concurrency=64,
        store_down="lease",
    ),
    Plan(name="internal", version=1, pricing="internal", store_down="lease"),
)


def seed_plans(tx: sa.Connection, now_ns: int) -> None:
    """Add the plans that every installation has, where they are missing."""
    for plan in SEED:
        if _newest(tx, plan.name) is None:
            _insert(tx, plan, now_ns)


def add_plan(tx: sa.Connection, body: PlanBody, now_ns: int) -> tuple[PlanView | None, PlanView]:
    """The plan's newest version before and after, other limits and the money that it had.

    Equal values make no new version (then both are the same).
    """
    return put_plan(tx, body, newest_terms(tx, body.name), now_ns)


def put_plan(
    tx: sa.Connection, body: PlanBody, terms: PlanTerms | None, now_ns: int
) -> tuple[PlanView | None, PlanView]:
    """`add_plan` with the plan's money; None: list prices only. Raises ControlError."""
    known = _newest(tx, body.name)
    plan = plan_of(body, version=1 if known is None else known.version + 1)
    if terms is not None and terms.charges and plan.pricing != "priced":
        raise invalid(f'plans.{plan.name}.pricing: is {plan.pricing!r}, but has charges: set pricing = "priced"')
    same_terms = newest_terms(tx, body.name) == terms
    if known is not None and same_terms and msgspec.structs.replace(plan, version=known.version) == known:
        view = get_plan(tx, body.name)
        return view, view
    _check_limits(tx, plan)
    before = None if known is None else get_plan(tx, body.name)
    _insert(tx, plan, now_ns)
    text = None if terms is None else encode_terms(terms)
    tx.execute(terms_table.insert().values(name=plan.name, version=plan.version, body=text, created_ns=now_ns))
    return before, get_plan(tx, body.name)


def newest_terms(tx: sa.Connection, name: str) -> PlanTerms | None:
    """The money of a plan's newest version; None: list prices only."""
    found = terms_versions(tx, name)
    return found[-1].terms if found else None


def terms_versions(tx: sa.Connection, name: str) -> list[TermsVersion]:
    """The money of each version that was given any statement about it, oldest first."""
    query = sa.select(terms_table).where(terms_table.c.name == name).order_by(terms_table.c.version)
    return [
        TermsVersion(row["version"], row["created_ns"], None if row["body"] is None else decode_terms(row["body"]))
        for row in tx.execute(query).mappings()
    ]


def terms_at(tx: sa.Connection, name: str, at_ns: int) -> TermsVersion | None:
    """The money that a month beginning at `at_ns` is rated by: the newest version then, else the first one ever.

    So a version added later never reprices a month that has begun.
    """
    found = terms_versions(tx, name)
    return next((one for one in reversed(found) if one.created_ns <= at_ns), found[0] if found else None)


def get_plan(tx: sa.Connection, name: str) -> PlanView:
    """The newest version. Raises ControlError when no plan has that name."""
    return list_versions(tx, name)[-1]


def list_versions(tx: sa.Connection, name: str) -> list[PlanView]:
    rows = tx.execute(sa.select(table).where(table.c.name == name).order_by(table.c.version)).mappings().all()
    if not rows:
        raise not_found("plan", name)
    return [_view(row) for row in rows]


def list_plans(tx: sa.Connection, *, after: str, limit: int) -> list[PlanView]:
    """The newest version of each plan, by name."""
    newest = _newest_versions().where(table.c.name > after).order_by(table.c.name).limit(limit)
    return [_view(row) for row in tx.execute(newest).mappings()]


def current_plans(tx: sa.Connection) -> list[Plan]:
    """The newest version of each plan, for the snapshot."""
    return [_decode(row["body"]) for row in tx.execute(_newest_versions().order_by(table.c.name)).mappings()]


def count_plans(tx: sa.Connection) -> int:
    return tx.execute(sa.select(sa.func.count(sa.distinct(table.c.name)))).scalar_one()


def newest_plan(tx: sa.Connection, name: str) -> Plan:
    """The newest version, as workers obey it. Raises ControlError when no plan has that name."""
    found = _newest(tx, name)
    if found is None:
        raise not_found("plan", name)
    return found


def require_plan(tx: sa.Connection, name: str) -> None:
    """Raises ControlError when no plan has that name."""
    if _newest(tx, name) is None:
        raise invalid(f"plan: {name!r} does not exist; list the plans with `tollway plans list`")


def _newest_versions() -> sa.Select[tuple[object, ...]]:
    last = sa.select(table.c.name, sa.func.max(table.c.version).label("version")).group_by(table.c.name).subquery()
    return sa.select(table).join(last, sa.and_(table.c.name == last.c.name, table.c.version == last.c.version))


def _newest(tx: sa.Connection, name: str) -> Plan | None:
    query = sa.select(table.c.body).where(table.c.name == name).order_by(table.c.version.desc()).limit(1)
    text = tx.execute(query).scalar_one_or_none()
    return None if text is None else _decode(text)


def _check_limits(tx: sa.Connection, plan: Plan) -> None:
    if plan.version == 1 and count_plans(tx) >= PLANS_MAX:
        raise ControlError(ControlCode.LIMIT_REACHED, f"there may be {PLANS_MAX} plans")
    if plan.version > VERSIONS_MAX:
        raise ControlError(ControlCode.LIMIT_REACHED, f"a plan may have {VERSIONS_MAX} versions; use a new name")


def _insert(tx: sa.Connection, plan: Plan, now_ns: int) -> None:
    body = msgspec.json.encode(plan, order="sorted").decode()
    tx.execute(table.insert().values(name=plan.name, version=plan.version, body=body, created_ns=now_ns))


def plan_of(body: PlanBody, *, version: int) -> Plan:
    """The limits that `body` asks for, as workers obey them."""
    return Plan(
        name=body.name,
        version=version,
        pricing=body.pricing,
        rate_calls=body.rate_calls,
        rate_window_s=body.rate_window_s,
        burst=body.burst or 1,
        concurrency=body.concurrency,
        calls_per_day=body.calls_per_day,
        calls_per_month=body.calls_per_month,
        store_down=body.store_down,
        queue_weight=body.queue_weight,
        priority_best=body.priority_best,
    )


def _decode(text: str) -> Plan:
    return msgspec.json.decode(text, type=Plan)


def _view(row: sa.RowMapping) -> PlanView:
    plan = _decode(row["body"])
    return PlanView(**msgspec.to_builtins(plan), created_at=instant(row["created_ns"]))
