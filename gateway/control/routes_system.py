"""Owns the routes about the installation: probes, status, admin token, prices, models, audit."""

from typing import Annotated

from fastapi import APIRouter, Query, Response
from sqlalchemy import Connection

from gateway.control import audit, keys, plans, tenants, tokens
from gateway.control.backends import list_models
from gateway.control.bodies import RotateTokenBody
from gateway.control.errors import ControlCode, error_body
from gateway.control.prices import prices_view
from gateway.control.registry import Change, Registry
from gateway.control.routes import ERRORS, PAGE_DEFAULT, REQUIRE_ACTOR, Actor, Limit, TheRegistry
from gateway.control.views import (
    AuditStateView,
    AuditView,
    ModelsView,
    NewTokenView,
    Page,
    PricesView,
    StatusView,
    TokenStateView,
    instant,
)

probes = APIRouter(tags=["probes"])
router = APIRouter(prefix="/admin", dependencies=[REQUIRE_ACTOR], responses=ERRORS, tags=["system"])


@probes.get("/healthz")
async def healthz() -> dict[str, bool]:
    """200 while the process serves. Open, and says nothing else."""
    return {"live": True}


@probes.get("/readyz", responses={503: {"description": "What was committed is not published yet."}})
def readyz(registry: TheRegistry) -> Response:
    """200 when workers can see the newest committed policy. Open, and says nothing else."""
    if registry.publisher.published_version == registry.publisher.committed_version():
        return Response(b'{"ready":true}', media_type="application/json")
    body = error_body(ControlCode.UNAVAILABLE, "the newest policy is not published yet")
    return Response(body, status_code=503, media_type="application/json")


@router.get("/status")
def get_status(registry: TheRegistry) -> StatusView:
    """Policy version, counts, the admin token's state and whether the audit chain holds."""
    return registry.read(lambda tx, _: _status(registry, tx))


@router.post("/token/rotate")
def rotate_token(registry: TheRegistry, actor: Actor, body: RotateTokenBody | None = None) -> NewTokenView:
    """A new admin token, shown once. The old one ends at once, or after the overlap."""
    wanted = body or RotateTokenBody()

    def work(tx: Connection, now_ns: int) -> Change[NewTokenView]:
        answer = tokens.rotate_token(tx, registry.peppers, wanted, now_ns)
        return Change(answer=answer, subject="admin-token", before=None, after=wanted)

    return registry.change(actor, "token.rotate", work)


@router.get("/prices")
def get_prices(registry: TheRegistry) -> PricesView:
    """The price book in force. A price changes by a new file with a higher version, and a restart."""
    return prices_view(registry.prices)


@router.get("/models")
async def get_models(registry: TheRegistry) -> ModelsView:
    """What every backend says that it holds, asked now."""
    return await list_models(registry.backends)


@router.get("/audit")
def list_audit(
    registry: TheRegistry,
    limit: Limit = PAGE_DEFAULT,
    after: Annotated[int, Query(ge=0, le=2**63 - 1, description="`next` of the page before.")] = 0,
) -> Page[AuditView]:
    """Who changed what and when, in order. Append-only; each row's hash covers the one before."""
    rows = registry.read(lambda tx, _: audit.list_audit(tx, after_seq=after, limit=limit))
    items = [AuditView(at=instant(row.pop("at_ns")), **row) for row in rows]
    return Page(items=items, next=str(items[-1].seq) if len(items) == limit else None)


def _status(registry: Registry, tx: Connection) -> StatusView:
    report = audit.verify_audit(tx)
    publisher = registry.publisher
    committed = publisher.committed_version()
    return StatusView(
        policy_version=committed,
        is_policy_published=publisher.published_version == committed,
        tenants=tenants.count_tenants(tx),
        keys=keys.count_keys(tx),
        plans=plans.count_plans(tx),
        price_version=registry.prices.version,
        currency=registry.prices.currency,
        backends=[backend.name for backend in registry.backends],
        admin_token=TokenStateView(
            must_rotate=registry.tokens.must_rotate,
            expires_at=instant(registry.tokens.expires_ns),
            failed_attempts=registry.failures.total,
        ),
        audit=AuditStateView(rows=report.rows, head=report.head, is_ok=report.is_ok, broken_seq=report.broken_seq),
    )
