"""Owns what the routes of wallets accept and answer. Amounts are integer nanos beside their decimal text."""

from typing import Literal

from pydantic import Field

from billing.money import format_nanos
from billing.wallets.commands import BALANCE_NANOS_MAX, TEXT_MAX, TOP_UP_NANOS_MAX
from billing.wallets.store import TopUp, WalletState
from gateway.control.bodies import Body
from gateway.control.views import View, instant


class TopUpBody(Body):
    """Money for a wallet. `kind`: "paid" came in outside, "granted" is given, "collect" asks the payment provider."""

    operation_id: str = Field(
        min_length=8,
        max_length=100,
        pattern=r"^[\x21-\x7e]+$",
        description="Chosen by the caller, new per top-up; repeat with the same one.",
    )
    kind: Literal["paid", "granted", "collect"] = Field(description="Where the money comes from.")
    amount_nanos: int = Field(ge=1, le=TOP_UP_NANOS_MAX, description="How much; whole minor units to collect.")
    currency: str | None = Field(default=None, min_length=3, max_length=3, description="ISO 4217; null: the tenant's.")
    provider: str = Field(default="", max_length=TEXT_MAX, description="Of paid money: who received it.")
    reference: str = Field(default="", max_length=TEXT_MAX, description="Of paid money: the payment's own id.")
    reason: str = Field(default="", max_length=TEXT_MAX, description="Of granted money: why.")


class RefundBody(Body):
    """Money to pay back out of a wallet: what is neither spent, nor leased, nor was granted."""

    operation_id: str = Field(min_length=8, max_length=100, pattern=r"^[\x21-\x7e]+$", description="New per refund.")
    amount_nanos: int = Field(ge=1, le=TOP_UP_NANOS_MAX, description="How much.")
    currency: str | None = Field(default=None, min_length=3, max_length=3, description="Null: the tenant's.")
    provider: str = Field(min_length=1, max_length=TEXT_MAX, description="Who pays it back.")
    reference: str = Field(min_length=1, max_length=TEXT_MAX, description="The repayment's own id.")


class ThresholdBody(Body):
    """When `wallet.low_balance` is told."""

    operation_id: str = Field(min_length=8, max_length=100, pattern=r"^[\x21-\x7e]+$", description="New per change.")
    low_nanos: int = Field(ge=0, le=BALANCE_NANOS_MAX, description="Below this balance; 0: never.")
    currency: str | None = Field(default=None, min_length=3, max_length=3, description="Null: the tenant's.")


class WalletView(View):
    """`balance` = `available` + `held`; what is held is leased to workers for calls that run or may come."""

    tenant: str
    currency: str
    balance_nanos: int
    balance: str
    held_nanos: int
    available_nanos: int
    available: str
    low_nanos: int = Field(description="Below it `wallet.low_balance` is told; 0: never.")


class TopUpView(View):
    """One top-up; `outcome`: begun, pending, succeeded, declined or refused."""

    top_up_id: str
    tenant: str
    currency: str
    amount_nanos: int
    amount: str
    source: str
    provider: str
    created_at: str | None
    outcome: str
    reference: str
    booked_nanos: int = Field(description="What of it is in the wallet.")
    code: str = Field(description="The provider's word for a refusal, or the reason of a grant.")


def wallet_view(state: WalletState) -> WalletView:
    return WalletView(
        **state._asdict(),
        balance=format_nanos(state.balance_nanos),
        available=format_nanos(state.available_nanos),
    )


def top_up_view(one: TopUp) -> TopUpView:
    fields = one._asdict()
    created_ns = fields.pop("created_ns")
    return TopUpView(**fields, amount=format_nanos(one.amount_nanos), created_at=instant(created_ns))
