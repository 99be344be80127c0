"""Owns what the self-service routes accept and answer, and how balances are read. Every function takes the tenant."""

import sqlite3
from typing import Annotated

from pydantic import AfterValidator, Field

from billing.invoices.postings import accounts_receivable, subscription_liability
from billing.ledger.rules import receivable
from billing.ledger.views import balance_of
from billing.money import format_nanos
from gateway.control.bodies import LIFETIME_S_MAX, Body, ModelName, Scope, sorted_models, sorted_scopes
from gateway.control.views import View


class MyKeyBody(Body):
    """A key to create: its rights must lie within the caller's, and end with it."""

    name: str = Field(default="", max_length=200, description="A name for people.")
    scopes: Annotated[list[Scope], AfterValidator(sorted_scopes)] = Field(
        default=["infer", "read"], min_length=1, max_length=8, description="What it may do; a part of the caller's."
    )
    models: Annotated[list[ModelName] | None, AfterValidator(sorted_models)] = Field(
        default=None, min_length=1, max_length=1_000, description="Exact names it may call; null: as the caller's."
    )
    expires_s: int | None = Field(
        default=None, ge=1, le=LIFETIME_S_MAX, description="Seconds until it expires; null: with the caller's."
    )


class MeView(View):
    """Who is asking, by its key."""

    tenant: str
    key_id: str
    scopes: list[str]
    models: list[str] | None
    plan: str
    zone: str
    currency: str


class LimitView(View):
    """A limit of the plan; null: unlimited. `used` and `left` count posted and waiting calls of the window."""

    name: str
    limit: int | None
    used: int | None
    left: int | None
    resets_at: str | None


class LimitsView(View):
    plan: str
    plan_version: int
    limits: list[LimitView]


class BalanceView(View):
    """What is owed and what is paid ahead, in nanos beside decimal text."""

    currency: str
    unbilled_nanos: int = Field(description="Usage that no invoice holds yet.")
    unbilled: str
    owed_nanos: int = Field(description="Open on invoices; negative: owed back to you.")
    owed: str
    prepaid_nanos: int = Field(description="Paid ahead for usage and not used.")
    prepaid: str
    fees_ahead_nanos: int = Field(description="Fees billed for days that are still to come.")
    fees_ahead: str


def balance_view(db: sqlite3.Connection, tenant: str, currency: str) -> BalanceView:
    """The tenant's own accounts, exactly as the ledger has them."""
    unbilled = balance_of(db, receivable(tenant), currency)
    owed = balance_of(db, accounts_receivable(tenant), currency)
    fees = -balance_of(db, subscription_liability(tenant), currency)
    prepaid = -sum(balance_of(db, account, currency) for account in _prepaid_accounts(db, tenant, currency))
    return BalanceView(
        currency=currency,
        unbilled_nanos=unbilled,
        unbilled=format_nanos(unbilled),
        owed_nanos=owed,
        owed=format_nanos(owed),
        prepaid_nanos=prepaid,
        prepaid=format_nanos(prepaid),
        fees_ahead_nanos=fees,
        fees_ahead=format_nanos(fees),
    )


def _prepaid_accounts(db: sqlite3.Connection, tenant: str, currency: str) -> list[str]:
    """`contract_liability:prepaid:{tenant}` and its grants; a tenant whose id only begins the same is another."""
    account = f"contract_liability:prepaid:{tenant}"
    rows = db.execute(
        "SELECT name FROM account WHERE currency = ? AND (name = ? OR substr(name, 1, length(?)) = ?)",
        (currency, account, f"{account}:", f"{account}:"),
    )
    return [name for (name,) in rows]
