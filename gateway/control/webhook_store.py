"""Owns webhook endpoints and their delivery log in control.db. Functions over one transaction.

An endpoint's secret follows from the pepper, its id and a generation number (`billing.webhooks.signing.derive_key`), so
none is stored. A rotation raises the generation; the one before signs along until its overlap ends.
"""

import os
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from pydantic import Field

from billing.webhooks.signing import derive_key, encode_secret
from billing.webhooks.targets import TargetRefused, parse_url
from gateway.control.bodies import Body
from gateway.control.errors import ControlCode, ControlError, invalid, not_found
from gateway.control.peppers import Peppers
from gateway.control.schema import webhook_attempt, webhook_delivery, webhook_endpoint
from gateway.control.views import NS_PER_S, View, instant

ENDPOINTS_MAX: Final = 10
EVENT_TYPES_MAX: Final = 50
#: The delivery log keeps what was decided for this long.
KEPT_NS: Final = 30 * 86_400 * NS_PER_S
OVERLAP_S_MAX: Final = 7 * 86_400


class WebhookBody(Body):
    """A new endpoint."""

    url: str = Field(max_length=2_048, description="https://… or http://…, on the usual port of a public host.")
    events: list[str] | None = Field(
        default=None, min_length=1, max_length=EVENT_TYPES_MAX, description="Event types to send; null: all."
    )


class RotateWebhookBody(Body):
    """A new secret for an endpoint."""

    overlap_s: int = Field(
        default=86_400, ge=0, le=OVERLAP_S_MAX, description="Seconds for which the old secret signs along."
    )


class WebhookView(View):
    endpoint_id: str
    tenant: str
    url: str
    events: list[str] | None
    is_enabled: bool
    disabled_reason: str | None
    failing_since: str | None
    old_secret_valid_until: str | None
    created_at: str | None


class NewWebhookView(View):
    """`secret` verifies the signatures. It is shown here; a later rotation shows another."""

    secret: str
    details: WebhookView


class AttemptView(View):
    at: str | None
    status: int = Field(description="The receiver's HTTP status; 0: no answer.")
    detail: str
    took_ms: int


class DeliveryView(View):
    delivery_id: int
    message_id: str
    type: str
    state: str = Field(description="pending, delivered or failed.")
    next_attempt_at: str | None
    created_at: str | None
    attempts: list[AttemptView]


def create_endpoint(
    tx: sa.Connection, tenant: str, body: WebhookBody, peppers: Peppers, *, cursor_seq: int, now_ns: int
) -> NewWebhookView:
    """An endpoint that is told everything behind event `cursor_seq`. Raises ControlError: bad URL, too many."""
    try:
        parse_url(body.url)
    except TargetRefused as error:
        raise invalid(str(error)) from error
    count = tx.execute(
        sa.select(sa.func.count()).select_from(webhook_endpoint).where(webhook_endpoint.c.tenant == tenant)
    ).scalar_one()
    if count >= ENDPOINTS_MAX:
        raise ControlError(ControlCode.LIMIT_REACHED, f"a tenant may have {ENDPOINTS_MAX} webhook endpoints")
    endpoint_id = f"wh_{now_ns // 1_000_000:012x}{os.urandom(5).hex()}"
    tx.execute(
        webhook_endpoint.insert().values(
            endpoint_id=endpoint_id,
            tenant=tenant,
            url=body.url,
            events=None if body.events is None else msgspec.json.encode(sorted(set(body.events))).decode(),
            generation=1,
            pepper_version=peppers.version,
            is_enabled=True,
            cursor_seq=cursor_seq,
            created_ns=now_ns,
        )
    )
    details = get_endpoint(tx, tenant, endpoint_id)
    return NewWebhookView(secret=encode_secret(derive_key(peppers.newest, endpoint_id, 1)), details=details)


def rotate_endpoint(
    tx: sa.Connection, tenant: str, endpoint_id: str, body: RotateWebhookBody, *, peppers: Peppers, now_ns: int
) -> NewWebhookView:
    """The next secret; the one before signs along for the overlap."""
    row = _row(tx, tenant, endpoint_id)
    generation = row["generation"] + 1
    pepper = peppers.by_version[row["pepper_version"]]
    tx.execute(
        webhook_endpoint.update()
        .where(webhook_endpoint.c.endpoint_id == endpoint_id)
        .values(generation=generation, old_until_ns=now_ns + body.overlap_s * NS_PER_S)
    )
    details = get_endpoint(tx, tenant, endpoint_id)
    return NewWebhookView(secret=encode_secret(derive_key(pepper, endpoint_id, generation)), details=details)


def enable_endpoint(tx: sa.Connection, tenant: str, endpoint_id: str) -> WebhookView:
    """Switch one on again after it was switched off; deliveries go on where they stopped."""
    _row(tx, tenant, endpoint_id)
    tx.execute(
        webhook_endpoint.update()
        .where(webhook_endpoint.c.endpoint_id == endpoint_id)
        .values(is_enabled=True, disabled_reason=None, failing_since_ns=None)
    )
    return get_endpoint(tx, tenant, endpoint_id)


def delete_endpoint(tx: sa.Connection, tenant: str, endpoint_id: str) -> WebhookView:
    """Take one away with its delivery log."""
    view = get_endpoint(tx, tenant, endpoint_id)
    deliveries = sa.select(webhook_delivery.c.delivery_id).where(webhook_delivery.c.endpoint_id == endpoint_id)
    tx.execute(webhook_attempt.delete().where(webhook_attempt.c.delivery_id.in_(deliveries)))
    tx.execute(webhook_delivery.delete().where(webhook_delivery.c.endpoint_id == endpoint_id))
    tx.execute(webhook_endpoint.delete().where(webhook_endpoint.c.endpoint_id == endpoint_id))
    return view


def replay(tx: sa.Connection, tenant: str, delivery_id: int, now_ns: int) -> DeliveryView:
    """Send a message again, under its old message id: a new delivery, at once."""
    row = _delivery(tx, tenant, delivery_id)
    found = tx.execute(
        webhook_delivery.insert().values(
            endpoint_id=row["endpoint_id"],
            event_seq=row["event_seq"],
            type=row["type"],
            body=row["body"],
            state="pending",
            attempts=0,
            next_ns=now_ns,
            created_ns=now_ns,
        )
    )
    assert found.inserted_primary_key is not None
    return get_delivery(tx, tenant, int(found.inserted_primary_key[0]))


def get_endpoint(tx: sa.Connection, tenant: str, endpoint_id: str) -> WebhookView:
    """Raises ControlError when the tenant has no such endpoint: another tenant's is none."""
    return _view(_row(tx, tenant, endpoint_id))


def list_endpoints(tx: sa.Connection, tenant: str) -> list[WebhookView]:
    query = sa.select(webhook_endpoint).where(webhook_endpoint.c.tenant == tenant)
    return [_view(row) for row in tx.execute(query.order_by(webhook_endpoint.c.endpoint_id)).mappings()]


def list_deliveries(tx: sa.Connection, tenant: str, endpoint_id: str, *, after: int, limit: int) -> list[DeliveryView]:
    """The delivery log of an endpoint, oldest first."""
    _row(tx, tenant, endpoint_id)
    table = webhook_delivery
    query = sa.select(table).where(table.c.endpoint_id == endpoint_id, table.c.delivery_id > after)
    rows = tx.execute(query.order_by(table.c.delivery_id).limit(limit)).mappings().all()
    return [_delivery_view(tx, row) for row in rows]


def get_delivery(tx: sa.Connection, tenant: str, delivery_id: int) -> DeliveryView:
    return _delivery_view(tx, _delivery(tx, tenant, delivery_id))


def prune(tx: sa.Connection, now_ns: int) -> int:
    """Forget what was decided long ago; how many deliveries."""
    table = webhook_delivery
    old = sa.select(table.c.delivery_id).where(table.c.state != "pending", table.c.created_ns < now_ns - KEPT_NS)
    tx.execute(webhook_attempt.delete().where(webhook_attempt.c.delivery_id.in_(old)))
    return tx.execute(table.delete().where(table.c.delivery_id.in_(old))).rowcount


def _row(tx: sa.Connection, tenant: str, endpoint_id: str) -> sa.RowMapping:
    table = webhook_endpoint
    query = sa.select(table).where(table.c.endpoint_id == endpoint_id, table.c.tenant == tenant)
    row = tx.execute(query).mappings().one_or_none()
    if row is None:
        raise not_found("webhook endpoint", endpoint_id)
    return row


def _delivery(tx: sa.Connection, tenant: str, delivery_id: int) -> sa.RowMapping:
    query = (
        sa.select(webhook_delivery)
        .join(webhook_endpoint, webhook_endpoint.c.endpoint_id == webhook_delivery.c.endpoint_id)
        .where(webhook_delivery.c.delivery_id == delivery_id, webhook_endpoint.c.tenant == tenant)
    )
    row = tx.execute(query).mappings().one_or_none()
    if row is None:
        raise not_found("webhook delivery", str(delivery_id))
    return row


def _view(row: Any) -> WebhookView:
    return WebhookView(
        endpoint_id=row["endpoint_id"],
        tenant=row["tenant"],
        url=row["url"],
        events=None if row["events"] is None else msgspec.json.decode(row["events"], type=list[str]),
        is_enabled=bool(row["is_enabled"]),
        disabled_reason=row["disabled_reason"],
        failing_since=instant(row["failing_since_ns"]),
        old_secret_valid_until=instant(row["old_until_ns"]),
        created_at=instant(row["created_ns"]),
    )


def _delivery_view(tx: sa.Connection, row: Any) -> DeliveryView:
    table = webhook_attempt
    attempts = tx.execute(sa.select(table).where(table.c.delivery_id == row["delivery_id"]).order_by(table.c.n))
    return DeliveryView(
        delivery_id=row["delivery_id"],
        message_id=message_id(row["event_seq"]),
        type=row["type"],
        state=row["state"],
        next_attempt_at=instant(row["next_ns"]) if row["state"] == "pending" else None,
        created_at=instant(row["created_ns"]),
        attempts=[
            AttemptView(at=instant(one["at_ns"]), status=one["status"], detail=one["detail"], took_ms=one["took_ms"])
            for one in attempts.mappings()
        ],
    )


def message_id(event_seq: int) -> str:
    """The same for every attempt and replay: what a receiver dedupes by."""
    return f"evt_{event_seq}"
