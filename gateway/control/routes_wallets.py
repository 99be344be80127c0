"""Owns the routes of wallets: an administrator's, and a tenant's own under /me."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request

from billing.wallets.store import list_top_ups, wallet_state
from gateway.control.money import Money
from gateway.control.routes import ERRORS, PAGE_DEFAULT, REQUIRE_ACTOR, Actor, After, Limit, TheRegistry, page
from gateway.control.routes_billing import TheMoney
from gateway.control.routes_me import ERRORS as MY_ERRORS
from gateway.control.routes_me import Reader
from gateway.control.views import ErrorView, Page
from gateway.control.wallet_views import (
    RefundBody,
    ThresholdBody,
    TopUpBody,
    TopUpView,
    WalletView,
    top_up_view,
    wallet_view,
)
from gateway.control.wallets import Wallets

router = APIRouter(
    prefix="/admin/tenants/{tenant}/wallet",
    tags=["wallets"],
    dependencies=[REQUIRE_ACTOR],
    responses=ERRORS | {503: {"model": ErrorView, "description": "The meter or the provider cannot be asked now."}},
)
mine = APIRouter(prefix="/me/wallet", tags=["self-service"], responses=MY_ERRORS)

Currency = Annotated[str | None, Query(min_length=3, max_length=3, description="ISO 4217; default: the tenant's.")]
Tenant = Annotated[str, Path(max_length=64)]


def _wallets(request: Request, registry: TheRegistry, money: TheMoney) -> Wallets:
    return Wallets(money, registry, request.app.state.providers)


TheWallets = Annotated[Wallets, Depends(_wallets)]


@router.get("")
def get_wallet(money: TheMoney, wallets: TheWallets, tenant: Tenant, currency: Currency = None) -> WalletView:
    """A tenant's wallet; in the tenant's currency unless another is named."""
    return _view(money, tenant, wallets.currency(tenant, currency))


@router.post("/top-ups", status_code=201)
def top_up(wallets: TheWallets, actor: Actor, tenant: Tenant, body: TopUpBody) -> TopUpView:
    """Book money that came in, grant some, or collect it from the tenant's payment method. Safe to repeat."""
    return top_up_view(wallets.top_up(actor, tenant, body))


@router.get("/top-ups")
def get_top_ups(
    money: TheMoney, wallets: TheWallets, tenant: Tenant, limit: Limit = PAGE_DEFAULT, after: After = ""
) -> Page[TopUpView]:
    """A tenant's top-ups, oldest first."""
    wallets.currency(tenant, None)
    return _page(money, tenant, after, limit)


@router.post("/refunds")
def refund(money: TheMoney, wallets: TheWallets, actor: Actor, tenant: Tenant, body: RefundBody) -> WalletView:
    """Pay back what is not spent; the wallet afterwards. Safe to repeat."""
    wallets.refund(actor, tenant, body)
    return _view(money, tenant, wallets.currency(tenant, body.currency))


@router.post("/threshold")
def set_threshold(
    money: TheMoney, wallets: TheWallets, actor: Actor, tenant: Tenant, body: ThresholdBody
) -> WalletView:
    """Set below which balance `wallet.low_balance` is told, once per crossing."""
    return _view(money, tenant, wallets.set_threshold(actor, tenant, body))


@mine.get("")
def get_mine(money: TheMoney, caller: Reader) -> WalletView:
    """What the wallet holds, what of it is leased to calls, and the threshold of the low-balance event."""
    return _view(money, caller.tenant.tenant, caller.tenant.currency)


@mine.get("/top-ups")
def list_mine(money: TheMoney, caller: Reader, limit: Limit = PAGE_DEFAULT, after: After = "") -> Page[TopUpView]:
    """What was paid into the wallet, oldest first."""
    return _page(money, caller.tenant.tenant, after, limit)


def _view(money: Money, tenant: str, currency: str) -> WalletView:
    return wallet_view(money.read(lambda db: wallet_state(db, tenant, currency), tenant=tenant))


def _page(money: Money, tenant: str, after: str, limit: int) -> Page[TopUpView]:
    rows = money.read(lambda db: list_top_ups(db, tenant, after=after, limit=limit), tenant=tenant)
    return page([top_up_view(row) for row in rows], limit, "top_up_id")
