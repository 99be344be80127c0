"""Owns the admin routes of billing: commands to the meter, and reads of accounts, documents and events."""

import sqlite3
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Path, Query, Request, Response

from billing.equality import compare_all
from billing.invoices import store
from billing.invoices.pdf import render_pdf
from billing.invoices.subscriptions import list_subscriptions
from billing.recognition.reports import ageing, margin, roll_forward
from billing.usage import Dimension
from gateway.control.billing_views import (
    AccountView,
    AgeingView,
    CommandBody,
    EqualityView,
    EventView,
    InvoiceRowView,
    InvoiceView,
    MarginView,
    RollForwardView,
    ageing_view,
    equality_view,
    event_view,
    invoice_view,
    margin_view,
    roll_forward_view,
    row_view,
)
from gateway.control.money import Money
from gateway.control.months import Months
from gateway.control.routes import ERRORS, PAGE_DEFAULT, REQUIRE_ACTOR, Actor, After, Limit, TheRegistry
from gateway.control.views import ErrorView, Page, instant

_UNAVAILABLE: dict[int | str, dict[str, Any]] = {
    503: {"model": ErrorView, "description": "The meter or its ledger cannot be asked now: try again."}
}
router = APIRouter(
    prefix="/admin/billing", tags=["billing"], dependencies=[REQUIRE_ACTOR], responses=ERRORS | _UNAVAILABLE
)

Name = Annotated[str, Path(max_length=64)]


def _money(request: Request, registry: TheRegistry) -> Money:
    return Money(request.app.state.data_dir, registry, request.app.state.ask_meter)


TheMoney = Annotated[Money, Depends(_money)]


def _months(registry: TheRegistry, money: TheMoney) -> Months:
    return Months(money, registry)


TheMonths = Annotated[Months, Depends(_months)]


@router.post("/commands/{verb}")
def run_command(money: TheMoney, months: TheMonths, actor: Actor, verb: Name, body: CommandBody) -> dict[str, Any]:
    """Carry out a money command (docs/billing-api.md lists them): one ledger transaction, safe to repeat."""
    months.settle_for(actor, verb, body.body)
    answer: dict[str, Any] = money.run(actor, verb, body.operation_id, body.body)
    return answer


@router.get("/seller")
def get_seller(money: TheMoney) -> dict[str, Any]:
    """Who sells: name, address, tax table, number series, grace."""
    answer: dict[str, Any] = msgspec.to_builtins(money.read(store.get_seller))
    return answer


@router.get("/accounts")
def list_accounts(money: TheMoney, limit: Limit = PAGE_DEFAULT, after: After = "") -> Page[dict[str, Any]]:
    """Billing accounts by tenant."""
    found = money.read(lambda db: store.list_accounts(db, after=after, limit=limit))
    return Page(
        items=[msgspec.to_builtins(one) for one in found], next=found[-1].tenant if len(found) == limit else None
    )


@router.get("/accounts/{tenant}")
def get_account(money: TheMoney, tenant: Name) -> AccountView:
    """One account: its terms, pending items, subscriptions and draft."""
    return money.read(lambda db: account_view(db, tenant))


@router.get("/invoices")
def list_invoices(
    money: TheMoney,
    tenant: Annotated[str | None, Query(max_length=64, description="Only this tenant's.")] = None,
    limit: Limit = PAGE_DEFAULT,
    after: After = "",
) -> Page[InvoiceRowView]:
    """Finalized invoices and credit notes, oldest first."""
    rows = money.read(lambda db: store.list_invoices(db, tenant=tenant, after=after, limit=limit))
    return Page(items=[row_view(row) for row in rows], next=rows[-1].document_id if len(rows) == limit else None)


@router.get("/invoices/{name}")
def get_invoice(money: TheMoney, name: Name) -> InvoiceView:
    """One document by id or number."""
    return money.read(lambda db: full_view(db, name))


@router.get("/invoices/{name}/pdf", response_class=Response, responses={200: {"content": {"application/pdf": {}}}})
def get_pdf(money: TheMoney, name: Name) -> Response:
    """The document as PDF; the same bytes until its state changes."""
    return money.read(lambda db: pdf_response(db, name))


@router.get("/events")
def list_events(
    money: TheMoney,
    limit: Limit = PAGE_DEFAULT,
    after: Annotated[int, Query(ge=0, le=2**63 - 1, description="`next` of the page before.")] = 0,
) -> Page[EventView]:
    """What happened to accounts, subscriptions and invoices, in order: what webhooks tell."""
    found = money.read(lambda db: store.list_events(db, after=after, limit=limit))
    return Page(items=[event_view(one) for one in found], next=str(found[-1].seq) if len(found) == limit else None)


@router.get("/reports/deferred")
def get_deferred(
    money: TheMoney,
    since_ns: Annotated[int, Query(ge=0, le=2**63 - 1, description="UTC nanoseconds.")],
    until_ns: Annotated[int, Query(ge=0, le=2**63 - 1, description="UTC nanoseconds.")],
) -> Page[RollForwardView]:
    """Roll-forward of every contract liability over since_ns <= posting time < until_ns."""
    return Page(items=[roll_forward_view(row) for row in money.read(lambda db: roll_forward(db, since_ns, until_ns))])


@router.get("/reports/ageing")
def get_ageing(money: TheMoney, registry: TheRegistry) -> Page[AgeingView]:
    """Open invoices by tenant, currency and days past their due date."""
    now_ns = registry.clock.wall_ns()
    return Page(items=[ageing_view(row) for row in money.read(lambda db: ageing(db, now_ns))])


@router.get("/reports/equality")
def get_equality(money: TheMoney) -> EqualityView:
    """Compare usage, invoices and ledger of every tenant: the same figures everywhere."""
    return equality_view(money.read(compare_all))


@router.get("/reports/margin")
def get_margin(
    money: TheMoney,
    cost_nanos_per_compute_s: Annotated[int, Query(ge=0, le=10**15, description="What a second of compute costs.")],
    *,
    by: Annotated[list[Dimension] | None, Query(max_length=4, description="Group by these; default: model.")] = None,
    since_ns: Annotated[int | None, Query(ge=0, le=2**63 - 1, description="UTC nanoseconds.")] = None,
    until_ns: Annotated[int | None, Query(ge=0, le=2**63 - 1, description="UTC nanoseconds.")] = None,
) -> Page[MarginView]:
    """List-price revenue of posted calls less their metered compute at a cost per second."""
    dimensions: list[Dimension] = by or ["model"]
    rows = money.read(
        lambda db: margin(
            db,
            dimensions,
            cost_nanos_per_compute_s=cost_nanos_per_compute_s,
            since_ns=since_ns,
            until_ns=until_ns,
        )
    )
    return Page(items=[margin_view(dimensions, row) for row in rows])


def account_view(db: sqlite3.Connection, tenant: str) -> AccountView:
    """Raises InvoiceError when the tenant has no account."""
    draft = store.find_draft(db, tenant=tenant)
    cut = store.find_cut(db, tenant)
    return AccountView(
        account=msgspec.to_builtins(store.get_account(db, tenant)),
        pending_items=[item._asdict() for item in store.pending_items(db, tenant)],
        subscriptions=[msgspec.to_builtins(one) for one in list_subscriptions(db, tenant=tenant)],
        draft=None if draft is None else msgspec.to_builtins(draft),
        billed_until=None if cut is None else instant(cut.end_ns),
    )


def full_view(db: sqlite3.Connection, name: str) -> InvoiceView:
    """Raises InvoiceError when there is no such document."""
    document = store.get_document(db, name)
    return invoice_view(document, store.state_in(db, document), store.steps_of(db, document.document_id))


def pdf_response(db: sqlite3.Connection, name: str) -> Response:
    """Raises InvoiceError when there is no such document."""
    document = store.get_document(db, name)
    return Response(
        render_pdf(document, store.state_in(db, document)),
        media_type="application/pdf",
        headers={"content-disposition": f'inline; filename="{document.number}.pdf"'},
    )
