"""Snapshots for the auth tests: one tenant, one plan, keys as each test needs them."""

from dataclasses import dataclass
from typing import Any

from billing.rating import Price, PriceBook
from gateway.auth import keys
from gateway.snapshot import Key, Plan, Secret, Snapshot, Tenant

PEPPERS = {1: bytes(range(32)), 2: bytes(range(32, 64))}
NOW_NS = 1_767_225_600_000_000_000
PLAN = Plan(name="free", version=1, pricing="free")
TENANT = Tenant(tenant="acme", plan="free")


@dataclass(frozen=True)
class Issued:
    text: bytes
    key: Key


def secret_of(secret: bytes, *, pepper_version: int = 1, not_after_ns: int | None = None) -> Secret:
    digest = keys.digest(PEPPERS[pepper_version], secret)
    return Secret(digest=digest, pepper_version=pepper_version, not_after_ns=not_after_ns)


def issue(**fields: Any) -> Issued:
    minted = keys.mint()
    values: dict[str, Any] = {
        "kid": minted.kid,
        "key_id": f"key-{minted.kid}",
        "tenant": "acme",
        "secrets": (secret_of(minted.secret),),
        "scopes": ("infer", "read"),
    }
    return Issued(minted.text.encode(), Key(**(values | fields)))


def snapshot_of(*issued: Issued, version: int = 1, **fields: Any) -> Snapshot:
    values: dict[str, Any] = {
        "version": version,
        "created_ns": NOW_NS,
        "keys": tuple(one.key for one in issued),
        "tenants": (TENANT,),
        "plans": (PLAN,),
        "backends": (),
        "prices": PriceBook(version=1, currency="USD", default=Price()),
        "peppers": PEPPERS,
    }
    return Snapshot(**(values | fields))
