"""Owns how a quote and a simulation come together: the plan, its money, packs and prices, and what is answered.

Both use what bills: the rater of workers, the month rating of invoices, the allowance of the quota owner.
"""

from typing import Any, NamedTuple

import msgspec
from pydantic import ValidationError
from sqlalchemy import Connection

from billing.catalogue import parse_catalogue
from billing.fields import FileError
from billing.money import format_nanos
from billing.month import MonthLine
from billing.plans import PlanTerms
from billing.pricebook import parse_price_book
from billing.quote import Call, QuoteError, quote
from billing.rating import PriceBook, compile_book
from gateway.control import prices, tenants
from gateway.control.agreements import check_packs, raised
from gateway.control.bodies import PlanBody
from gateway.control.errors import invalid, not_found
from gateway.control.money import Money
from gateway.control.plans import newest_plan, newest_terms, plan_of
from gateway.control.pricing_views import FileBody, LineView, QuoteBody, QuoteView, SimulateBody
from gateway.control.registry import Registry
from gateway.control.simulate import MonthMoney, Offer, Outcome, SimulateError, read_events, simulate
from gateway.control.views import instant
from gateway.quota.calendar import find_zone
from gateway.snapshot import Plan

NS_PER_MS = 1_000_000


class _Chosen(NamedTuple):
    """A plan with its money; `terms` None: list prices only."""

    plan: Plan
    terms: PlanTerms | None


def quote_view(tx: Connection, body: QuoteBody, in_force: PriceBook) -> QuoteView:
    """The answer to a quote. Raises ControlError."""
    book = in_force if body.version is None else prices.find_book(tx, body.version)
    if book is None:
        raise not_found("price book", str(body.version))
    chosen = None if body.plan is None else _stored(tx, body.plan)
    terms = None if chosen is None else chosen.terms
    if chosen is not None:
        check_packs(None if terms is None else terms.pack, chosen.plan.name, body.packs)
    elif body.packs:
        raise invalid("packs: need a plan that sells them")
    call = Call(body.model, body.rows, body.compute_ms * NS_PER_MS, body.byte_count)
    try:
        found = quote(
            compile_book(book),
            call,
            calls=body.calls,
            pricing="priced" if chosen is None else chosen.plan.pricing,
            plan=body.plan or "",
            terms=terms,
        )
    except QuoteError as error:
        raise invalid(str(error)) from error
    fee = monthly_fee(terms, body.packs)
    total = found.list_nanos + sum(line.amount_nanos for line in found.lines) + fee
    return QuoteView(
        model=body.model,
        currency=book.currency,
        price_version=book.version,
        plan=body.plan,
        calls=body.calls,
        call_nanos=found.call_nanos,
        call=format_nanos(found.call_nanos),
        list_nanos=found.list_nanos,
        lines=[line_view(line) for line in found.lines],
        fee_nanos=fee,
        total_nanos=total,
        total=format_nanos(total),
    )


def monthly_fee(terms: PlanTerms | None, packs: int) -> int:
    """Fees of one month in nanos; those of a yearly plan are not part of a month."""
    if terms is None or (terms.subscription is not None and terms.subscription.interval == "year"):
        return 0
    plan = 0 if terms.subscription is None else terms.subscription.fee_nanos
    return plan + (0 if terms.pack is None else packs * terms.pack.fee_nanos)


def line_view(line: MonthLine) -> LineView:
    return LineView(
        key=line.key,
        kind=line.kind,
        description=line.description,
        amount_nanos=line.amount_nanos,
        amount=format_nanos(line.amount_nanos),
    )


def simulation(registry: Registry, money: Money, body: SimulateBody) -> dict[str, Any]:
    """Replay, and the answer. Raises ControlError, SimulateError, FileError, PriceError."""
    if body.since_ns >= body.until_ns:
        raise SimulateError("since_ns: must be before until_ns")
    tenant = registry.read(lambda tx, _: tenants.get_tenant(tx, body.tenant))
    chosen = registry.read(lambda tx, _: _chosen(tx, body, tenant.plan))
    book = registry.prices if body.prices is None else _book(body.prices)
    zone = find_zone(tenant.zone)
    if zone is None:
        raise SimulateError(f"tenant {body.tenant!r} has the zone {tenant.zone!r}, which this machine does not know")
    offer = Offer(chosen.plan, chosen.terms, compile_book(book), monthly_fee(chosen.terms, body.packs))
    events = money.read(lambda db: read_events(db, body.tenant, body.since_ns, body.until_ns))
    outcome = simulate(events, offer, zone, bucket_s=body.bucket_s)
    return _answer(body, offer, outcome, book)


def _chosen(tx: Connection, body: SimulateBody, own: str) -> _Chosen:
    name = body.plan or own
    found = _stored(tx, name) if body.file is None else _from_file(body.file, body.plan)
    plan = found.plan
    if body.packs:
        pack = None if found.terms is None else found.terms.pack
        check_packs(pack, plan.name, body.packs)
        plan = raised(plan, pack, body.packs)
    return _Chosen(_with_limits(plan, body.limits), found.terms)


def _stored(tx: Connection, name: str) -> _Chosen:
    return _Chosen(newest_plan(tx, name), newest_terms(tx, name))


def _from_file(file: FileBody, name: str | None) -> _Chosen:
    entries = parse_catalogue(file.text.encode(), is_json=file.format == "json", name=file.name).plans
    wanted = [entry for entry in entries if name in {None, entry.name}]
    if len(wanted) != 1:
        raise FileError(f"{file.name}: holds {len(wanted)} such plans: name one of its plans with `plan`")
    (entry,) = wanted
    try:
        body = PlanBody.model_validate({"name": entry.name} | entry.limits)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise FileError(f"{file.name}: plans.{entry.name}.{place}: {problem['msg']}") from error
    return _Chosen(plan_of(body, version=0), entry.terms)


def _with_limits(plan: Plan, limits: dict[str, int | None]) -> Plan:
    """The plan with some limits replaced, checked as a plan's are."""
    if not limits:
        return plan
    known = ("rate_calls", "rate_window_s", "burst", "concurrency", "calls_per_day", "calls_per_month")
    unknown = sorted(set(limits) - set(known))
    if unknown:
        raise SimulateError(f"limits.{unknown[0]}: unknown: use one of {', '.join(known)}")
    fields = {name: getattr(plan, name) for name in known} | limits
    if fields["rate_calls"] is None:
        fields = {name: value for name, value in fields.items() if name not in {"burst", "rate_window_s"}}
    try:
        # "x" stands for names that no body may have, such as "pro+2".
        body = PlanBody.model_validate({"name": "x", "pricing": plan.pricing} | fields)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise SimulateError(f"limits.{place}: {problem['msg']}") from error
    return msgspec.structs.replace(plan_of(body, version=plan.version), name=plan.name, store_down=plan.store_down)


def _book(file: FileBody) -> PriceBook:
    return parse_price_book(file.text.encode(), is_json=file.format == "json")


def _answer(body: SimulateBody, offer: Offer, outcome: Outcome, book: PriceBook) -> dict[str, Any]:
    would_nanos = sum(month.total_nanos for month in outcome.months)
    return {
        "tenant": body.tenant,
        "plan": msgspec.to_builtins(offer.plan),
        "price_version": book.version,
        "currency": book.currency,
        "since": instant(body.since_ns),
        "until": instant(body.until_ns),
        "calls": outcome.calls,
        "admitted": outcome.admitted,
        "refused": {
            code: {
                "calls": count,
                "first_at": instant(outcome.first_refused_ns[code]),
                "last_at": instant(outcome.last_refused_ns[code]),
            }
            for code, count in sorted(outcome.refused.items())
        },
        "recorded_nanos": outcome.recorded_nanos,
        "would_be_nanos": would_nanos,
        "change_nanos": would_nanos - outcome.recorded_nanos,
        "would_be": format_nanos(would_nanos),
        "months": [_month(month) for month in outcome.months],
        "bucket_s": body.bucket_s,
        "series": [
            {"at": instant(one.start_ns), "at_ns": one.start_ns, "admitted": one.admitted, "refused": one.refused}
            for one in outcome.buckets
        ],
    }


def _month(month: MonthMoney) -> dict[str, Any]:
    return {
        "start": instant(month.start_ns),
        "list_nanos": month.list_nanos,
        "fee_nanos": month.fee_nanos,
        "lines": [line_view(line).model_dump() for line in month.lines],
        "total_nanos": month.total_nanos,
        "total": format_nanos(month.total_nanos),
    }
