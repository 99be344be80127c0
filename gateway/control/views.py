"""Owns what the admin API answers: views of stored things, never a secret but where it is shown once.

Instants are RFC 3339 text in UTC; money is integer nanos beside its decimal text.
"""

from datetime import UTC, datetime
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

NS_PER_S = 1_000_000_000
T = TypeVar("T")


def instant(ns: int | None) -> str | None:
    """RFC 3339 text of an instant, to the millisecond."""
    if ns is None:
        return None
    return datetime.fromtimestamp(ns / NS_PER_S, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class View(BaseModel):
    """Base of all answers."""

    model_config = ConfigDict(frozen=True)


class Page(View, Generic[T]):
    """One page of a list. Ask for the next one with `after` = `next`; null: this was the last."""

    items: list[T]
    next: str | None = None


class ErrorView(View):
    """Every answer that is not 2xx."""

    error: str = Field(description="One sentence for people: what is wrong, where, and what to do.")
    code: str = Field(description="Stable name for programs.")


class TenantView(View):
    tenant: str
    name: str
    plan: str
    zone: str
    currency: str
    is_suspended: bool
    created_at: str | None


class PlanView(View):
    """One version of a plan; null limits are unlimited."""

    name: str
    version: int
    pricing: str
    rate_calls: int | None
    rate_window_s: int
    burst: int
    concurrency: int | None
    calls_per_day: int | None
    calls_per_month: int | None
    store_down: str
    queue_weight: int
    priority_best: int
    created_at: str | None


class SecretView(View):
    """One live secret of a key: when it was made and, during a rotation, its end."""

    created_at: str | None
    not_after: str | None


class KeyView(View):
    key_id: str
    kid: str = Field(description="The public part inside the key's text, to recognise a key by.")
    name: str
    tenant: str
    scopes: list[str]
    models: list[str] | None
    state: Literal["active", "expired", "revoked"]
    parent: str | None
    created_at: str | None
    expires_at: str | None
    revoked_at: str | None
    secrets: list[SecretView]


class NewKeyView(View):
    """`key` is the text to hand to the caller. It is shown here once and cannot be read again."""

    key: str
    details: KeyView


class RotatedKeyView(View):
    """`key` is null when this operation id was carried out before: its secret was shown then."""

    key: str | None
    operation_id: str
    is_repeated: bool
    old_secret_valid_until: str | None
    details: KeyView


class NewTokenView(View):
    """The new admin token, shown once."""

    token: str
    expires_at: str | None
    old_token_valid_until: str | None


class TokenStateView(View):
    must_rotate: bool = Field(description="The bootstrap token is still in use: rotate it before it expires.")
    expires_at: str | None
    failed_attempts: int = Field(description="Requests refused for a missing or wrong token since the start.")


class AuditStateView(View):
    rows: int
    head: str
    is_ok: bool
    broken_seq: int | None


class StatusView(View):
    """What this control process knows about itself."""

    policy_version: int
    is_policy_published: bool
    tenants: int
    keys: int
    plans: int
    price_version: int
    currency: str
    backends: list[str]
    admin_token: TokenStateView
    audit: AuditStateView


class ModelView(View):
    """A model as its backend reports it."""

    name: str
    version: str
    state: str
    reason: str
    backend: str


class BackendView(View):
    """A backend and whether it answered; `problem` says why not."""

    name: str
    http: str | None
    grpc: str | None
    is_reachable: bool
    problem: str | None


class ModelsView(View):
    models: list[ModelView]
    backends: list[BackendView]


class AuditView(View):
    seq: int
    at: str | None
    actor: str
    action: str
    subject: str
    before: Any
    after: Any
    hash: str


class PriceView(View):
    per_call_nanos: int
    per_row_nanos: int
    per_compute_ms_nanos: int
    compute_ms_max: int = Field(description="Compute time that a call with a bounded price is charged for at most.")


class PricesView(View):
    """The price book in force; amounts in nanos, 1e-9 of the currency's major unit."""

    version: int
    currency: str
    default: PriceView
    models: dict[str, PriceView]
