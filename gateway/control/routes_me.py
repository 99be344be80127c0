"""Owns self-service: what a tenant sees and does about itself with one of its own API keys. Never about another.

Reading needs the key's scope "read", changing "admin". The tenant is the key's; no route takes one.
"""

import sqlite3
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from sqlalchemy import Connection

from billing.invoices import store
from billing.meter_client import SOCKET_NAME, MeterError
from billing.usage import Dimension, UsageError, usage_by
from gateway.auth.keyring import Principal, Scope
from gateway.control import keys, routes_webhooks
from gateway.control import report_render as render
from gateway.control.billing_views import InvoiceRowView, InvoiceView, row_view
from gateway.control.bodies import KeyBody, RotateBody
from gateway.control.errors import ControlCode, ControlError, invalid, not_found
from gateway.control.me_guard import CALLER
from gateway.control.me_views import BalanceView, LimitsView, LimitView, MeView, MyKeyBody, balance_view
from gateway.control.money import Money
from gateway.control.registry import Change
from gateway.control.report_views import UsageView
from gateway.control.routes import PAGE_DEFAULT, PAGE_MAX, After, Limit, TheRegistry, page
from gateway.control.routes_billing import full_view, pdf_response
from gateway.control.views import ErrorView, KeyView, NewKeyView, Page, RotatedKeyView, instant
from gateway.control.webhook_store import (
    DeliveryView,
    NewWebhookView,
    RotateWebhookBody,
    WebhookBody,
    WebhookView,
    list_endpoints,
)
from gateway.quota.calendar import day_window, find_zone, month_window

ERRORS: dict[int | str, dict[str, Any]] = {
    401: {"model": ErrorView, "description": "No API key, or one that is wrong, revoked or expired."},
    403: {"model": ErrorView, "description": "The key lacks the scope, or may give no such rights."},
    404: {"model": ErrorView, "description": "There is no such thing of this tenant."},
    409: {"model": ErrorView, "description": "It is in another state, or a limit is reached."},
    422: {"model": ErrorView, "description": "A field is unknown, missing or out of bounds; the text names it."},
    429: {"model": ErrorView, "description": "Too many wrong keys from this address; see Retry-After."},
    503: {"model": ErrorView, "description": "The ledger or the meter cannot be asked now: try again."},
}
router = APIRouter(prefix="/me", tags=["self-service"], responses=ERRORS)

Name = Annotated[str, Path(max_length=64)]
DeliveryId = Annotated[int, Path(ge=1, le=2**63 - 1)]
AfterId = Annotated[int, Query(ge=0, le=2**63 - 1, description="`next` of the page before.")]
Instant = Annotated[int | None, Query(ge=0, le=2**63 - 1, description="UTC nanoseconds.")]


def _caller(request: Request, scope: Scope) -> Principal:
    """A second lock behind the guard: an unguarded application answers nobody."""
    caller = request.scope.get(CALLER)
    if not isinstance(caller, Principal):
        raise ControlError(ControlCode.UNAUTHENTICATED, "send an API key as 'Authorization: Bearer <key>'")
    if not caller.scopes & scope:
        raise ControlError(ControlCode.SCOPE_FORBIDDEN, f"this key lacks the scope '{scope.name.lower()}'")
    return caller


def _reader(request: Request) -> Principal:
    return _caller(request, Scope.READ)


def _changer(request: Request) -> Principal:
    return _caller(request, Scope.ADMIN)


def _money(request: Request, registry: TheRegistry) -> Money:
    return Money(request.app.state.data_dir, registry, request.app.state.ask_meter)


Reader = Annotated[Principal, Depends(_reader)]
Changer = Annotated[Principal, Depends(_changer)]
TheMoney = Annotated[Money, Depends(_money)]


@router.get("")
def get_me(caller: Reader) -> MeView:
    """The tenant and the key behind this request."""
    return MeView(
        tenant=caller.tenant.tenant,
        key_id=caller.key.key_id,
        scopes=list(caller.key.scopes),
        models=None if caller.key.models is None else list(caller.key.models),
        plan=caller.plan.name,
        zone=caller.tenant.zone,
        currency=caller.tenant.currency,
    )


@router.get("/limits")
def get_limits(request: Request, registry: TheRegistry, caller: Reader) -> LimitsView:
    """The plan's limits; what is used and left of the day's and the month's calls."""
    plan, zone = caller.plan, find_zone(caller.tenant.zone)
    assert zone is not None
    now_ns = registry.clock.wall_ns()
    windows = (day_window(now_ns, zone), month_window(now_ns, zone))
    used_day, used_month = _counts(request, caller.tenant.tenant, [start for start, _ in windows])
    rate = "calls_per_second" if plan.rate_window_s == 1 else f"calls_per_{plan.rate_window_s}_s"
    limits = [
        LimitView(name=name, limit=limit, used=None, left=None, resets_at=None)
        for name, limit in (
            (rate, plan.rate_calls),
            ("burst", None if plan.rate_calls is None else plan.burst),
            ("concurrency", plan.concurrency),
        )
    ]
    for name, limit, used, (_, end_ns) in (
        ("calls_per_day", plan.calls_per_day, used_day, windows[0]),
        ("calls_per_month", plan.calls_per_month, used_month, windows[1]),
    ):
        left = None if limit is None else max(0, limit - used)
        limits.append(LimitView(name=name, limit=limit, used=used, left=left, resets_at=instant(end_ns)))
    return LimitsView(plan=plan.name, plan_version=plan.version, limits=limits)


@router.get("/keys")
def list_keys(registry: TheRegistry, caller: Reader, limit: Limit = PAGE_DEFAULT, after: After = "") -> Page[KeyView]:
    """The tenant's keys, without secrets."""
    tenant = caller.tenant.tenant
    items = registry.read(lambda tx, now_ns: keys.list_keys(tx, tenant=tenant, after=after, limit=limit, now_ns=now_ns))
    return page(items, limit, "key_id")


@router.post("/keys", status_code=201)
def create_key(registry: TheRegistry, caller: Changer, body: MyKeyBody) -> NewKeyView:
    """A key below the caller's: its rights lie within that key's for ever. Its text is shown once."""
    models = body.models if body.models is not None or caller.key.models is None else sorted(caller.key.models)
    full = KeyBody(
        tenant=caller.tenant.tenant,
        name=body.name,
        scopes=body.scopes,
        models=models,
        expires_s=_lifetime_s(caller, body.expires_s, registry.clock.wall_ns()),
        parent=caller.key.key_id,
    )

    def work(tx: Connection, now_ns: int) -> Change[NewKeyView]:
        answer = keys.create_key(tx, full, registry.minter.new_key, now_ns)
        return Change(answer=answer, subject=f"key:{answer.details.key_id}", before=None, after=answer.details)

    return registry.change(_actor(caller), "key.create", work)


@router.post("/keys/{key_id}/rotate")
def rotate_key(registry: TheRegistry, caller: Changer, key_id: Name, body: RotateBody) -> RotatedKeyView:
    """A new secret for the caller's own key or one below it."""

    def work(tx: Connection, now_ns: int) -> Change[RotatedKeyView]:
        _require_below(tx, key_id, caller)
        rotation = keys.rotate_key(tx, key_id, body, registry.minter.new_secret, now_ns)
        return Change(
            answer=rotation.answer,
            subject=f"key:{key_id}",
            before=rotation.before,
            after=rotation.answer.details,
            is_needed=not rotation.answer.is_repeated,
        )

    return registry.change(_actor(caller), "key.rotate", work)


@router.post("/keys/{key_id}/revoke")
def revoke_key(registry: TheRegistry, caller: Changer, key_id: Name) -> KeyView:
    """End the caller's own key or one below it, for ever, with every key that it made."""

    def work(tx: Connection, now_ns: int) -> Change[KeyView]:
        _require_below(tx, key_id, caller)
        before, after = keys.revoke_key(tx, key_id, now_ns)
        return Change(answer=after, subject=f"key:{key_id}", before=before, after=after, is_needed=before != after)

    return registry.change(_actor(caller), "key.revoke", work)


@router.get("/usage")
def get_usage(
    money: TheMoney,
    caller: Reader,
    *,
    by: Annotated[list[Dimension] | None, Query(max_length=4, description="Group by these; default: day.")] = None,
    since_ns: Instant = None,
    until_ns: Instant = None,
    limit: Limit = PAGE_MAX,
    after: Annotated[int, Query(ge=0, le=10_000, description="`next` of the page before.")] = 0,
) -> UsageView:
    """The tenant's posted calls with since_ns <= time < until_ns, grouped; days are those of its zone."""
    dimensions: list[Dimension] = by or ["day"]
    tenant, zone = caller.tenant.tenant, caller.tenant.zone
    try:
        rows = money.read(
            lambda db: usage_by(db, dimensions, tenant=tenant, since_ns=since_ns, until_ns=until_ns, zone=zone),
            tenant=tenant,
        )
    except UsageError as error:
        raise invalid(str(error)) from error
    return UsageView(
        by=list(dimensions),
        zone=zone,
        rows=[render.usage_row(dimensions, row) for row in rows[after : after + limit]],
        next=str(after + limit) if after + limit < len(rows) else None,
    )


@router.get("/balance")
def get_balance(money: TheMoney, caller: Reader) -> BalanceView:
    """What is owed, what is paid ahead and what is not billed yet, as the ledger has it."""
    tenant, currency = caller.tenant.tenant, caller.tenant.currency
    return money.read(lambda db: balance_view(db, tenant, currency), tenant=tenant)


@router.get("/invoices")
def list_invoices(
    money: TheMoney, caller: Reader, limit: Limit = PAGE_DEFAULT, after: After = ""
) -> Page[InvoiceRowView]:
    """The tenant's invoices and credit notes, oldest first."""
    tenant = caller.tenant.tenant
    rows = money.read(lambda db: store.list_invoices(db, tenant=tenant, after=after, limit=limit), tenant=tenant)
    return Page(items=[row_view(row) for row in rows], next=rows[-1].document_id if len(rows) == limit else None)


@router.get("/invoices/{name}")
def get_invoice(money: TheMoney, caller: Reader, name: Name) -> InvoiceView:
    """One document by id or number."""
    return money.read(lambda db: full_view(db, _own_document(db, name, caller)), tenant=caller.tenant.tenant)


@router.get("/invoices/{name}/pdf", response_class=Response, responses={200: {"content": {"application/pdf": {}}}})
def get_pdf(money: TheMoney, caller: Reader, name: Name) -> Response:
    """The document as PDF."""
    return money.read(lambda db: pdf_response(db, _own_document(db, name, caller)), tenant=caller.tenant.tenant)


@router.get("/webhooks")
def list_webhooks(registry: TheRegistry, caller: Reader) -> Page[WebhookView]:
    """The tenant's webhook endpoints."""
    return Page(items=registry.read(lambda tx, _: list_endpoints(tx, caller.tenant.tenant)))


@router.post("/webhooks", status_code=201)
def create_webhook(request: Request, registry: TheRegistry, caller: Changer, body: WebhookBody) -> NewWebhookView:
    """A new endpoint. Its secret is shown once."""
    return routes_webhooks.create(request, registry, _actor(caller), caller.tenant.tenant, body)


@router.post("/webhooks/{endpoint_id}/rotate")
def rotate_webhook(
    registry: TheRegistry, caller: Changer, endpoint_id: Name, body: RotateWebhookBody
) -> NewWebhookView:
    """A new secret; the old one signs along for the overlap."""
    return routes_webhooks.rotate(registry, _actor(caller), caller.tenant.tenant, endpoint_id, body)


@router.post("/webhooks/{endpoint_id}/enable")
def enable_webhook(registry: TheRegistry, caller: Changer, endpoint_id: Name) -> WebhookView:
    """Switch an endpoint on again."""
    return routes_webhooks.enable(registry, _actor(caller), caller.tenant.tenant, endpoint_id)


@router.delete("/webhooks/{endpoint_id}")
def delete_webhook(registry: TheRegistry, caller: Changer, endpoint_id: Name) -> WebhookView:
    """Take an endpoint away, with its log."""
    return routes_webhooks.delete(registry, _actor(caller), caller.tenant.tenant, endpoint_id)


@router.get("/webhooks/{endpoint_id}/deliveries")
def list_deliveries(
    registry: TheRegistry, caller: Reader, endpoint_id: Name, limit: Limit = PAGE_DEFAULT, after: AfterId = 0
) -> Page[DeliveryView]:
    """What was sent to an endpoint, with every attempt."""
    return routes_webhooks.deliveries(registry, caller.tenant.tenant, endpoint_id, limit=limit, after=after)


@router.post("/webhooks/deliveries/{delivery_id}/replay", status_code=201)
def replay_delivery(registry: TheRegistry, caller: Changer, delivery_id: DeliveryId) -> DeliveryView:
    """Send a message again."""
    return routes_webhooks.replay(registry, _actor(caller), caller.tenant.tenant, delivery_id)


def _actor(caller: Principal) -> str:
    return f"key:{caller.key.key_id}"


def _lifetime_s(caller: Principal, asked_s: int | None, now_ns: int) -> int | None:
    """Without a wish a key ends with the caller's; that it ends no later is the attenuation's to check."""
    if asked_s is not None or caller.key.expires_ns is None:
        return asked_s
    # A second less: it is counted from the change's own, later clock reading, and must not outlive the caller's key.
    return max(1, (caller.key.expires_ns - now_ns) // 1_000_000_000 - 1)


def _require_below(tx: Connection, key_id: str, caller: Principal) -> None:
    """Raises ControlError unless the key is the caller's or made by it: others do not exist for it."""
    grants, parents = keys.load_grants(tx)
    at: str | None = key_id
    for _ in range(len(parents) + 1):
        if at is None or at not in grants or grants[at].tenant != caller.tenant.tenant:
            break
        if at == caller.key.key_id:
            return
        at = parents.get(at)
    raise not_found("key", key_id)


def _own_document(db: sqlite3.Connection, name: str, caller: Principal) -> str:
    document = store.get_document(db, name)
    if document.tenant != caller.tenant.tenant:
        raise not_found("invoice", name)
    return document.document_id


def _counts(request: Request, tenant: str, starts: list[int]) -> list[int]:
    question = {"op": "counts", "windows": [[tenant, start] for start in starts]}
    try:
        answer = request.app.state.ask_meter(request.app.state.data_dir / SOCKET_NAME, question)
    except MeterError as error:
        raise ControlError(ControlCode.UNAVAILABLE, "the meter cannot be asked now", retry_after_s=1) from error
    return [int(count) for count in answer["counts"]]
