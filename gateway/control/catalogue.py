"""Owns the catalogue as it is applied: a file's plans and coupons, all or nothing, in one change of policy."""

from typing import Any

import msgspec
import sqlalchemy as sa
from pydantic import ValidationError

from billing.catalogue import Catalogue, PlanEntry
from billing.coupons import COUPONS_MAX, Coupon
from gateway.control.bodies import PlanBody
from gateway.control.errors import ControlCode, ControlError, conflict, invalid, not_found
from gateway.control.plans import put_plan, require_plan
from gateway.control.pricing_views import AppliedPlanView, AppliedView
from gateway.control.schema import coupon as table


def apply_catalogue(tx: sa.Connection, found: Catalogue, *, book_currency: str, where: str, now_ns: int) -> AppliedView:
    """Store every plan and coupon of a file that is new or different. Raises ControlError; then nothing is stored."""
    for entry in found.plans:
        _check_currency(
            where, f"plans.{entry.name}", None if entry.terms is None else entry.terms.currency, book_currency
        )
    for coupon in found.coupons:
        _check_currency(where, f"coupons.{coupon.code}", coupon.currency or None, book_currency)
    plans = [_apply_plan(tx, entry, where, now_ns) for entry in found.plans]
    for coupon in found.coupons:
        for plan in coupon.plans:
            require_plan(tx, plan)
    return AppliedView(plans=plans, coupons=[code for one in found.coupons if (code := _add_coupon(tx, one, now_ns))])


def get_coupon(tx: sa.Connection, code: str) -> Coupon:
    """Raises ControlError when there is none of that code."""
    text = tx.execute(sa.select(table.c.body).where(table.c.code == code)).scalar_one_or_none()
    if text is None:
        raise not_found("coupon", code)
    return msgspec.json.decode(text, type=Coupon)


def list_coupons(tx: sa.Connection, *, after: str, limit: int) -> list[Coupon]:
    rows = tx.execute(sa.select(table.c.body).where(table.c.code > after).order_by(table.c.code).limit(limit))
    return [msgspec.json.decode(text, type=Coupon) for (text,) in rows]


def _apply_plan(tx: sa.Connection, entry: PlanEntry, where: str, now_ns: int) -> AppliedPlanView:
    path = f"plans.{entry.name}"
    if "name" in entry.limits:
        raise invalid(f"{where}: {path}.name: the table's name is the plan's name: remove it")
    before, after = put_plan(tx, _limits(entry, where, path), entry.terms, now_ns)
    return AppliedPlanView(
        name=entry.name,
        version=after.version,
        is_new_version=before is None or before.version != after.version,
    )


def _limits(entry: PlanEntry, where: str, path: str) -> PlanBody:
    try:
        return PlanBody.model_validate({"name": entry.name} | entry.limits)
    except ValidationError as error:
        raise invalid(f"{where}: {_first_problem(path, dict(error.errors()[0]))}") from error


def _first_problem(path: str, problem: dict[str, Any]) -> str:
    place = ".".join([path, *(str(part) for part in problem["loc"])])
    if problem["type"] == "extra_forbidden":
        known = ", ".join(sorted(set(PlanBody.model_fields) - {"name"}))
        return f"{place}: unknown field (value {problem['input']!r}): remove it or use one of {known}"
    if problem["type"] == "missing":
        return f"{place}: is missing: add it"
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{place}: {message[:1].lower()}{message[1:]} (value {problem['input']!r})"


def _check_currency(where: str, path: str, currency: str | None, book_currency: str) -> None:
    """Calls are recorded at list prices; money in another currency could not be compared with them."""
    if currency is not None and currency != book_currency:
        raise invalid(f"{where}: {path}: is in {currency}, but the prices in force are in {book_currency}: use that")


def _add_coupon(tx: sa.Connection, coupon: Coupon, now_ns: int) -> str | None:
    """The code, or None when it was there already with the same content."""
    text = msgspec.json.encode(coupon, order="deterministic").decode()
    known = tx.execute(sa.select(table.c.body).where(table.c.code == coupon.code)).scalar_one_or_none()
    # Compared as coupons: what an older release stored does not write the fields that came later.
    if known is not None and msgspec.json.decode(known, type=Coupon) == coupon:
        return None
    if known is not None:
        raise conflict(f"coupons.{coupon.code}: exists with other content and never changes: use another code")
    if tx.execute(sa.select(sa.func.count()).select_from(table)).scalar_one() >= COUPONS_MAX:
        raise ControlError(ControlCode.LIMIT_REACHED, f"there may be {COUPONS_MAX} coupons")
    tx.execute(table.insert().values(code=coupon.code, body=text, created_ns=now_ns))
    return coupon.code
