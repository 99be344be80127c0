"""Owns the routes for tenants, plans and keys. Handlers are plain functions: they block and run in worker threads."""

from typing import Annotated

from fastapi import APIRouter, Path, Query
from sqlalchemy import Connection

from gateway.control import keys, plans, tenants
from gateway.control.bodies import KeyBody, PlanBody, RotateBody, SetPlanBody, TenantBody
from gateway.control.registry import Change
from gateway.control.routes import ERRORS, PAGE_DEFAULT, REQUIRE_ACTOR, Actor, After, Limit, TheRegistry, page
from gateway.control.views import KeyView, NewKeyView, Page, PlanView, RotatedKeyView, TenantView

router = APIRouter(prefix="/admin", dependencies=[REQUIRE_ACTOR], responses=ERRORS)

Name = Annotated[str, Path(max_length=64)]


@router.get("/tenants", tags=["tenants"])
def list_tenants(registry: TheRegistry, limit: Limit = PAGE_DEFAULT, after: After = "") -> Page[TenantView]:
    """Tenants by id."""
    items = registry.read(lambda tx, _: tenants.list_tenants(tx, after=after, limit=limit))
    return page(items, limit, "tenant")


@router.post("/tenants", tags=["tenants"], status_code=201)
def create_tenant(registry: TheRegistry, actor: Actor, body: TenantBody) -> TenantView:
    """Create a tenant. Its id, zone and currency never change."""
    currency = registry.prices.currency
    return registry.change(
        actor,
        "tenant.create",
        lambda tx, now_ns: _tenant(tenants.create_tenant(tx, body, book_currency=currency, now_ns=now_ns)),
    )


@router.get("/tenants/{tenant}", tags=["tenants"])
def get_tenant(registry: TheRegistry, tenant: Name) -> TenantView:
    """One tenant."""
    return registry.read(lambda tx, _: tenants.get_tenant(tx, tenant))


@router.post("/tenants/{tenant}/plan", tags=["tenants"])
def set_plan(registry: TheRegistry, actor: Actor, tenant: Name, body: SetPlanBody) -> TenantView:
    """Put a tenant on another plan, from the next call on."""
    return registry.change(
        actor, "tenant.set_plan", lambda tx, now_ns: _tenant(tenants.set_plan(tx, tenant, body.plan, now_ns))
    )


@router.post("/tenants/{tenant}/suspend", tags=["tenants"])
def suspend(registry: TheRegistry, actor: Actor, tenant: Name) -> TenantView:
    """Refuse every call of a tenant (403 `tenant_suspended`) until it is resumed."""
    return registry.change(
        actor, "tenant.suspend", lambda tx, _: _tenant(tenants.set_suspended(tx, tenant, is_suspended=True))
    )


@router.post("/tenants/{tenant}/resume", tags=["tenants"])
def resume(registry: TheRegistry, actor: Actor, tenant: Name) -> TenantView:
    """End a suspension."""
    return registry.change(
        actor, "tenant.resume", lambda tx, _: _tenant(tenants.set_suspended(tx, tenant, is_suspended=False))
    )


@router.get("/plans", tags=["plans"])
def list_plans(registry: TheRegistry, limit: Limit = PAGE_DEFAULT, after: After = "") -> Page[PlanView]:
    """The newest version of each plan, by name."""
    items = registry.read(lambda tx, _: plans.list_plans(tx, after=after, limit=limit))
    return page(items, limit, "name")


@router.post("/plans", tags=["plans"], status_code=201)
def add_plan(registry: TheRegistry, actor: Actor, body: PlanBody) -> PlanView:
    """Add a plan, or the next version of one. Equal values change nothing. Tenants of the plan get it at once."""

    def work(tx: Connection, now_ns: int) -> Change[PlanView]:
        before, after = plans.add_plan(tx, body, now_ns)
        return Change(answer=after, subject=f"plan:{body.name}", before=before, after=after, is_needed=before != after)

    return registry.change(actor, "plan.add", work)


@router.get("/plans/{name}", tags=["plans"])
def list_plan_versions(registry: TheRegistry, name: Name) -> Page[PlanView]:
    """Every version of a plan; the last one applies."""
    return Page(items=registry.read(lambda tx, _: plans.list_versions(tx, name)))


@router.get("/keys", tags=["keys"])
def list_keys(
    registry: TheRegistry,
    tenant: Annotated[str | None, Query(max_length=64, description="Only this tenant's.")] = None,
    limit: Limit = PAGE_DEFAULT,
    after: After = "",
) -> Page[KeyView]:
    """Keys in the order of their creation. Secrets are never listed."""
    items = registry.read(lambda tx, now_ns: keys.list_keys(tx, tenant=tenant, after=after, limit=limit, now_ns=now_ns))
    return page(items, limit, "key_id")


@router.post("/keys", tags=["keys"], status_code=201)
def create_key(registry: TheRegistry, actor: Actor, body: KeyBody) -> NewKeyView:
    """Create a key. The answer holds its text, this once. With `parent`, its rights lie within that key's for ever."""

    def work(tx: Connection, now_ns: int) -> Change[NewKeyView]:
        answer = keys.create_key(tx, body, registry.minter.new_key, now_ns)
        return Change(answer=answer, subject=f"key:{answer.details.key_id}", before=None, after=answer.details)

    return registry.change(actor, "key.create", work)


@router.get("/keys/{key_id}", tags=["keys"])
def get_key(registry: TheRegistry, key_id: Name) -> KeyView:
    """One key, without its secrets."""
    return registry.read(lambda tx, now_ns: keys.get_key(tx, key_id, now_ns))


@router.post("/keys/{key_id}/rotate", tags=["keys"])
def rotate_key(registry: TheRegistry, actor: Actor, key_id: Name, body: RotateBody) -> RotatedKeyView:
    """Give a key a new secret; the old one stays valid for the overlap.

    Safe to repeat: the same operation id rotates once. The repeated answer is the same but for the secret, which is
    shown only the first time. If that answer was lost, rotate again under a new operation id.
    """

    def work(tx: Connection, now_ns: int) -> Change[RotatedKeyView]:
        rotation = keys.rotate_key(tx, key_id, body, registry.minter.new_secret, now_ns)
        answer = rotation.answer
        return Change(
            answer=answer,
            subject=f"key:{key_id}",
            before=rotation.before,
            after=answer.details,
            is_needed=not answer.is_repeated,
        )

    return registry.change(actor, "key.rotate", work)


@router.post("/keys/{key_id}/revoke", tags=["keys"])
def revoke_key(registry: TheRegistry, actor: Actor, key_id: Name) -> KeyView:
    """End a key and every key it made, for ever. Workers refuse it within seconds, open streams included."""

    def work(tx: Connection, now_ns: int) -> Change[KeyView]:
        before, after = keys.revoke_key(tx, key_id, now_ns)
        return Change(answer=after, subject=f"key:{key_id}", before=before, after=after, is_needed=before != after)

    return registry.change(actor, "key.revoke", work)


def _tenant(changed: tenants.Changed) -> Change[TenantView]:
    after = changed.after
    return Change(
        answer=after,
        subject=f"tenant:{after.tenant}",
        before=changed.before,
        after=after,
        is_needed=changed.before != after,
    )
