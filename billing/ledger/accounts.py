"""Owns the chart of accounts (MONEY.md §3): every account there may be, its class, which may not be overdrawn. Pure.

An account's name is a path: a name of the chart and, where the chart says so, a subject (tenant, model, provider, …).
Debits are positive: assets and expenses usually stand above zero, liabilities and revenue below it.
"""

from enum import StrEnum
from typing import Final, NamedTuple

from billing.ledger.port import LedgerError

NAME_MAX: Final = 300


class AccountClass(StrEnum):
    """What an account is to an accountant; the value is the root that exports give it."""

    ASSET = "Assets"
    LIABILITY = "Liabilities"
    INCOME = "Income"
    EXPENSE = "Expenses"
    EQUITY = "Equity"


class AccountKind(NamedTuple):
    """One row of the chart. `subject`: what follows the name ("" for nothing)."""

    name: str
    account_class: AccountClass
    subject: str
    #: A credit balance that no debit, pending ones included, may exceed.
    is_guarded: bool = False
    #: Whether the subject is the tenant whose account it is.
    is_tenant: bool = False


CHART: Final = (
    AccountKind("cash:psp", AccountClass.ASSET, "provider"),
    AccountKind("unbilled_receivable", AccountClass.ASSET, "tenant", is_tenant=True),
    AccountKind("accounts_receivable", AccountClass.ASSET, "tenant", is_tenant=True),
    AccountKind("contract_liability:prepaid", AccountClass.LIABILITY, "tenant", is_guarded=True, is_tenant=True),
    AccountKind("contract_liability:subscription", AccountClass.LIABILITY, "tenant", is_tenant=True),
    #: What leases of wallets are held for; pending transfers only, so it never has an entry.
    AccountKind("usage_clearing", AccountClass.LIABILITY, ""),
    AccountKind("tax_payable", AccountClass.LIABILITY, "jurisdiction"),
    AccountKind("revenue:model_call", AccountClass.INCOME, "model"),
    AccountKind("revenue:subscription", AccountClass.INCOME, ""),
    AccountKind("revenue:minimum_commitment", AccountClass.INCOME, ""),
    AccountKind("revenue:adjustments", AccountClass.INCOME, ""),
    AccountKind("revenue:breakage", AccountClass.INCOME, ""),
    AccountKind("revenue:credit_notes", AccountClass.INCOME, ""),
    AccountKind("revenue:tax_included", AccountClass.INCOME, ""),
    AccountKind("revenue:rounding", AccountClass.INCOME, ""),
    AccountKind("contra_revenue:promo_discount", AccountClass.INCOME, ""),
    AccountKind("contra_revenue:coupon", AccountClass.INCOME, ""),
    AccountKind("expense:bad_debt", AccountClass.EXPENSE, ""),
    AccountKind("fx_clearing", AccountClass.EQUITY, ""),
)
_BY_NAME: Final = {kind.name: kind for kind in CHART}


def kind_of(account: str) -> AccountKind:
    """The chart's row for an account's full name. Raises LedgerError: the chart has no such account."""
    found = find_kind(account)
    if found is None:
        raise LedgerError(f"account {account[:NAME_MAX]!r} is not in the chart of accounts")
    return found


def find_kind(account: str) -> AccountKind | None:
    """The chart's row for an account's full name; None when there is none, or its subject is missing or unwanted."""
    if len(account) > NAME_MAX:
        return None
    exact = _BY_NAME.get(account)
    if exact is not None:
        return exact if not exact.subject else None
    # The longest name first: a subject may itself hold colons, a name of the chart has at most one.
    first, _, rest = account.partition(":")
    second, _, subject = rest.partition(":")
    for name, following in ((f"{first}:{second}", subject), (first, rest)):
        kind = _BY_NAME.get(name)
        if kind is not None and kind.subject and following:
            return kind
    return None


def prepaid(tenant: str) -> str:
    """What a tenant has paid in advance and not used (a contract liability, guarded)."""
    return f"contract_liability:prepaid:{tenant}"
