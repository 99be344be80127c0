"""Owns the admin routes of webhooks: endpoints of a tenant, their delivery log, replay."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from sqlalchemy import Connection

from billing.invoices.store import last_event_seq
from gateway.control import webhook_store as webhooks
from gateway.control.errors import ControlError
from gateway.control.money import Money
from gateway.control.registry import Change, Registry
from gateway.control.routes import ERRORS, PAGE_DEFAULT, REQUIRE_ACTOR, Actor, Limit, TheRegistry
from gateway.control.tenants import get_tenant
from gateway.control.views import Page
from gateway.control.webhook_store import (
    DeliveryView,
    NewWebhookView,
    RotateWebhookBody,
    WebhookBody,
    WebhookView,
)

router = APIRouter(
    prefix="/admin/tenants/{tenant}/webhooks", tags=["webhooks"], dependencies=[REQUIRE_ACTOR], responses=ERRORS
)

Name = Annotated[str, Path(max_length=64)]
DeliveryId = Annotated[int, Path(ge=1, le=2**63 - 1)]
AfterId = Annotated[int, Query(ge=0, le=2**63 - 1, description="`next` of the page before.")]


@router.get("")
def list_webhooks(registry: TheRegistry, tenant: Name) -> Page[WebhookView]:
    """A tenant's endpoints."""
    return Page(items=registry.read(lambda tx, _: webhooks.list_endpoints(tx, tenant)))


@router.post("", status_code=201)
def create_webhook(
    request: Request, registry: TheRegistry, actor: Actor, tenant: Name, body: WebhookBody
) -> NewWebhookView:
    """A new endpoint, told everything that happens from now on. The secret is shown once."""
    return create(request, registry, actor, tenant, body)


@router.post("/{endpoint_id}/rotate")
def rotate_webhook(
    registry: TheRegistry, actor: Actor, tenant: Name, endpoint_id: Name, body: RotateWebhookBody
) -> NewWebhookView:
    """A new secret, shown once; the old one signs along for the overlap."""
    return rotate(registry, actor, tenant, endpoint_id, body)


@router.post("/{endpoint_id}/enable")
def enable_webhook(registry: TheRegistry, actor: Actor, tenant: Name, endpoint_id: Name) -> WebhookView:
    """Switch an endpoint on again."""
    return enable(registry, actor, tenant, endpoint_id)


@router.delete("/{endpoint_id}")
def delete_webhook(registry: TheRegistry, actor: Actor, tenant: Name, endpoint_id: Name) -> WebhookView:
    """Take an endpoint away, with its delivery log."""
    return delete(registry, actor, tenant, endpoint_id)


@router.get("/{endpoint_id}/deliveries")
def list_deliveries(
    registry: TheRegistry, tenant: Name, endpoint_id: Name, limit: Limit = PAGE_DEFAULT, after: AfterId = 0
) -> Page[DeliveryView]:
    """What was sent to an endpoint, with every attempt."""
    return deliveries(registry, tenant, endpoint_id, limit=limit, after=after)


@router.post("/deliveries/{delivery_id}/replay", status_code=201)
def replay_delivery(registry: TheRegistry, actor: Actor, tenant: Name, delivery_id: DeliveryId) -> DeliveryView:
    """Send a message again, under its message id."""
    return replay(registry, actor, tenant, delivery_id)


def create(request: Request, registry: Registry, actor: str, tenant: str, body: WebhookBody) -> NewWebhookView:
    """Shared with the self-service routes, like all below."""
    money = Money(request.app.state.data_dir, registry, request.app.state.ask_meter)
    try:
        cursor_seq = money.read(last_event_seq)
    except ControlError:
        # No ledger yet: nothing has happened, so everything is news.
        cursor_seq = 0

    def work(tx: Connection, now_ns: int) -> Change[NewWebhookView]:
        get_tenant(tx, tenant)
        made = webhooks.create_endpoint(tx, tenant, body, registry.peppers, cursor_seq=cursor_seq, now_ns=now_ns)
        return Change(answer=made, subject=f"webhook:{made.details.endpoint_id}", before=None, after=made.details)

    return registry.change(actor, "webhook.create", work)


def rotate(registry: Registry, actor: str, tenant: str, endpoint_id: str, body: RotateWebhookBody) -> NewWebhookView:
    def work(tx: Connection, now_ns: int) -> Change[NewWebhookView]:
        before = webhooks.get_endpoint(tx, tenant, endpoint_id)
        made = webhooks.rotate_endpoint(tx, tenant, endpoint_id, body, peppers=registry.peppers, now_ns=now_ns)
        return Change(answer=made, subject=f"webhook:{endpoint_id}", before=before, after=made.details)

    return registry.change(actor, "webhook.rotate", work)


def enable(registry: Registry, actor: str, tenant: str, endpoint_id: str) -> WebhookView:
    def work(tx: Connection, _now_ns: int) -> Change[WebhookView]:
        before = webhooks.get_endpoint(tx, tenant, endpoint_id)
        after = webhooks.enable_endpoint(tx, tenant, endpoint_id)
        return Change(
            answer=after, subject=f"webhook:{endpoint_id}", before=before, after=after, is_needed=before != after
        )

    return registry.change(actor, "webhook.enable", work)


def delete(registry: Registry, actor: str, tenant: str, endpoint_id: str) -> WebhookView:
    def work(tx: Connection, _now_ns: int) -> Change[WebhookView]:
        gone = webhooks.delete_endpoint(tx, tenant, endpoint_id)
        return Change(answer=gone, subject=f"webhook:{endpoint_id}", before=gone, after=None)

    return registry.change(actor, "webhook.delete", work)


def deliveries(registry: Registry, tenant: str, endpoint_id: str, *, limit: int, after: int) -> Page[DeliveryView]:
    found = registry.read(lambda tx, _: webhooks.list_deliveries(tx, tenant, endpoint_id, after=after, limit=limit))
    return Page(items=found, next=str(found[-1].delivery_id) if len(found) == limit else None)


def replay(registry: Registry, actor: str, tenant: str, delivery_id: int) -> DeliveryView:
    def work(tx: Connection, now_ns: int) -> Change[DeliveryView]:
        again = webhooks.replay(tx, tenant, delivery_id, now_ns)
        return Change(answer=again, subject=f"webhook-delivery:{delivery_id}", before=None, after=again)

    return registry.change(actor, "webhook.replay", work)
