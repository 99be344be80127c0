"""Owns tenants: created, put on a plan, suspended and resumed. Functions over one transaction."""

from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from gateway.control.agreements import agree
from gateway.control.bodies import TenantBody
from gateway.control.errors import ControlCode, ControlError, conflict, invalid, not_found
from gateway.control.plans import require_plan
from gateway.control.schema import tenant as table
from gateway.control.views import TenantView, instant

TENANTS_MAX: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """A thing before and after a change, as the audit trail tells it."""

    before: TenantView | None
    after: TenantView


def create_tenant(tx: sa.Connection, body: TenantBody, *, book_currency: str, now_ns: int) -> Changed:
    """Raises ControlError: the id is taken, the plan unknown, or the currency is not the price book's."""
    if _find(tx, body.tenant) is not None:
        raise conflict(f"tenant {body.tenant!r} exists already")
    if body.currency != book_currency:
        # Workers rate with the one book in force: another currency would be charged the wrong amounts.
        raise invalid(f"currency: the prices in force are in {book_currency}, not {body.currency}")
    require_plan(tx, body.plan)
    if count_tenants(tx) >= TENANTS_MAX:
        raise ControlError(ControlCode.LIMIT_REACHED, f"there may be {TENANTS_MAX} tenants")
    tx.execute(
        table.insert().values(
            tenant=body.tenant,
            name=body.name,
            plan=body.plan,
            zone=body.zone,
            currency=body.currency,
            is_suspended=False,
            created_ns=now_ns,
        )
    )
    agree(tx, body.tenant, body.plan, 0, now_ns)
    return Changed(before=None, after=get_tenant(tx, body.tenant))


def set_plan(tx: sa.Connection, name: str, plan: str, now_ns: int, *, packs: int = 0) -> Changed:
    """Another plan, with `packs` QPS packs of it, from now on. Raises ControlError."""
    require_plan(tx, plan)
    changed = _update(tx, name, plan=plan)
    agree(tx, name, plan, packs, now_ns)
    return changed


def set_suspended(tx: sa.Connection, name: str, *, is_suspended: bool) -> Changed:
    """Suspending twice is no error: the state is what was asked for."""
    return _update(tx, name, is_suspended=is_suspended)


def get_tenant(tx: sa.Connection, name: str) -> TenantView:
    row = _find(tx, name)
    if row is None:
        raise not_found("tenant", name)
    return _view(row)


def list_tenants(tx: sa.Connection, *, after: str, limit: int) -> list[TenantView]:
    rows = tx.execute(sa.select(table).where(table.c.tenant > after).order_by(table.c.tenant).limit(limit))
    return [_view(row) for row in rows.mappings()]


def count_tenants(tx: sa.Connection) -> int:
    return tx.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()


def _update(tx: sa.Connection, name: str, **values: Any) -> Changed:
    before = get_tenant(tx, name)
    tx.execute(table.update().where(table.c.tenant == name).values(**values))
    return Changed(before=before, after=get_tenant(tx, name))


def _find(tx: sa.Connection, name: str) -> sa.RowMapping | None:
    return tx.execute(sa.select(table).where(table.c.tenant == name)).mappings().one_or_none()


def _view(row: sa.RowMapping) -> TenantView:
    return TenantView(
        tenant=row["tenant"],
        name=row["name"],
        plan=row["plan"],
        zone=row["zone"],
        currency=row["currency"],
        is_suspended=bool(row["is_suspended"]),
        created_at=instant(row["created_ns"]),
    )
