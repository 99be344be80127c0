"""Owns the money commands of wallets: money in by hand, by grant or through a provider, and money back.

| command | debit | credit |
|---|---|---|
| wallet.top_up, wallet.finish, wallet.told | cash:psp:{provider} | contract_liability:prepaid:{tenant} |
| wallet.grant | contra_revenue:promo_discount | contract_liability:prepaid:{tenant} |
| wallet.refund | contract_liability:prepaid:{tenant} | cash:psp:{provider} |

A provider's top-up is begun before it is asked and finished with what it answered, as attempts of invoices are
(billing.payments.commands): the same key asked again never charges twice, and a reference is booked once.
"""

import os
from typing import Any, Final, Literal

import msgspec

from billing.invoices import store as invoices
from billing.invoices.assemble import InvoiceError
from billing.invoices.desk import Verb
from billing.ledger.accounts import prepaid
from billing.ledger.balances import wallet_nanos
from billing.ledger.journal import Journal
from billing.ledger.rules import Line
from billing.money import from_minor, is_currency, minor_digits
from billing.wallets import store
from billing.wallets.store import TX_REFUND, TX_TOP_UP, TopUp

PROMO: Final = "contra_revenue:promo_discount"
TOP_UP_PREFIX: Final = "top_"
#: One top-up at most: one million major units; in a wallet at most: one billion.
TOP_UP_NANOS_MAX: Final = 10**15
BALANCE_NANOS_MAX: Final = 10**18
TEXT_MAX: Final = 200
Outcome = Literal["succeeded", "declined", "pending", "refused"]


class TopUpOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Money that came in outside (bank transfer, cash): `reference` is the payment's, booked once per provider."""

    tenant: str
    currency: str
    amount_nanos: int
    provider: str
    reference: str


class Grant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Money given by us: usable like any other, never revenue, never paid back."""

    tenant: str
    currency: str
    amount_nanos: int
    reason: str


class WalletRefund(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Money paid back out of a wallet; at most what is neither spent, nor leased, nor was given by us."""

    tenant: str
    currency: str
    amount_nanos: int
    provider: str
    reference: str


class BeginTopUp(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Collect an amount from the payment method that the tenant's billing account names."""

    tenant: str
    currency: str
    amount_minor: int


class FinishTopUp(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the provider answered."""

    top_up_id: str
    outcome: Outcome
    reference: str = ""
    amount_minor: int = 0
    code: str = ""


class TopUpTold(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A verified message of a provider about a top-up (`document_id` is its id)."""

    provider: str
    kind: Literal["succeeded", "failed", "refunded"]
    reference: str
    amount_minor: int
    currency: str
    document_id: str
    code: str = ""


class SetThreshold(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tell when the balance falls below `low_nanos`; 0: never."""

    tenant: str
    currency: str
    low_nanos: int


def top_up(journal: Journal, body: TopUpOrder, now_ns: int) -> Any:
    """Book money that came in. Raises InvoiceError: fields, a reference that is booked already."""
    _check(journal, body.tenant, body.currency, body.amount_nanos)
    _check_text("provider", body.provider)
    _check_text("reference", body.reference)
    if store.is_booked(journal.db, body.provider, body.reference):
        raise InvoiceError("conflict", f"reference {body.reference!r} of {body.provider!r} is booked already")
    made = _open(journal, body.tenant, body.currency, body.amount_nanos, "manual", body.provider, now_ns)
    return _book(journal, made, body.amount_nanos, body.reference, now_ns)


def grant(journal: Journal, body: Grant, now_ns: int) -> Any:
    """Give money. Raises InvoiceError: fields."""
    _check(journal, body.tenant, body.currency, body.amount_nanos)
    _check_text("reason", body.reason)
    made = _open(journal, body.tenant, body.currency, body.amount_nanos, "grant", "", now_ns)
    lines = _lines(PROMO, prepaid(body.tenant), body.currency, body.amount_nanos)
    tx_id = journal.post(TX_TOP_UP, body.tenant, now_ns, lines)
    store.add_step(
        journal, made.top_up_id, "succeeded", now_ns, amount_nanos=body.amount_nanos, code=body.reason, tx_id=tx_id
    )
    return _tell(journal, made.top_up_id, now_ns)


def refund(journal: Journal, body: WalletRefund, now_ns: int) -> Any:
    """Pay back what is not spent. Raises InvoiceError: fields, or it is more than is available."""
    _check(journal, body.tenant, body.currency, body.amount_nanos, is_paid_in=False)
    _check_text("provider", body.provider)
    _check_text("reference", body.reference)
    wallet = prepaid(body.tenant)
    most = store.refundable_nanos(journal.db, body.tenant, body.currency)
    if body.amount_nanos > most:
        raise InvoiceError("amount", f"amount_nanos: {body.amount_nanos} is more than the {most} that may go back")
    journal.post(TX_REFUND, body.tenant, now_ns, _lines(wallet, _cash(body.provider), body.currency, body.amount_nanos))
    event = {
        "currency": body.currency,
        "amount_nanos": body.amount_nanos,
        "provider": body.provider,
        "reference": body.reference,
    }
    invoices.add_event(journal.db, body.tenant, "wallet.refunded", event, now_ns)
    store.check_low(journal, [body.tenant], now_ns)
    return event | {"balance_nanos": wallet_nanos(journal.db, wallet, body.currency)}


def begin(journal: Journal, body: BeginTopUp, now_ns: int) -> Any:
    """Open a top-up that a provider is asked for. Raises InvoiceError: fields, no billing account, other currency."""
    if body.amount_minor <= 0 or not is_currency(body.currency):
        raise InvoiceError("field", "amount_minor: must be above 0, in an ISO 4217 currency")
    nanos = from_minor(body.amount_minor, body.currency)
    _check(journal, body.tenant, body.currency, nanos)
    account = invoices.get_account(journal.db, body.tenant)
    if account.currency != body.currency:
        raise InvoiceError("currency", f"{body.tenant!r} pays in {account.currency}, not in {body.currency}")
    if not account.provider:
        raise InvoiceError("field", f"the billing account of {body.tenant!r} names no payment provider")
    made = _open(journal, body.tenant, body.currency, nanos, "provider", account.provider, now_ns)
    store.add_step(journal, made.top_up_id, "begun", now_ns)
    return {
        "top_up_id": made.top_up_id,
        "provider": account.provider,
        "customer": account.provider_customer,
        "amount_minor": body.amount_minor,
        "currency": body.currency,
        "begun_ns": now_ns,
    }


def finish(journal: Journal, body: FinishTopUp, now_ns: int) -> Any:
    """Write down what the provider answered; money that moved is booked, once per reference."""
    made = store.find_top_up(journal.db, body.top_up_id)
    if made is None:
        raise InvoiceError("not_found", f"top-up {body.top_up_id!r} does not exist")
    if body.outcome == "succeeded":
        nanos = from_minor(body.amount_minor, made.currency)
        _check_text("reference", body.reference)
        if store.is_booked(journal.db, made.provider, body.reference):
            return _view(journal, made.top_up_id)  # a message told it before the answer came
        return _book(journal, made, nanos, body.reference, now_ns)
    if made.outcome not in store.UNDECIDED:
        return _view(journal, made.top_up_id)
    store.add_step(journal, made.top_up_id, body.outcome, now_ns, reference=body.reference, code=body.code)
    if body.outcome != "pending":
        _tell_failure(journal, made, body.code, now_ns)
    return _view(journal, made.top_up_id)


def told(journal: Journal, body: TopUpTold, now_ns: int) -> Any:
    """Take a provider's message, in whatever order and however often it comes."""
    made = store.find_top_up(journal.db, body.document_id)
    if made is None or made.provider != body.provider:
        raise InvoiceError("not_found", f"the message names no top-up of ours: {body.document_id!r}")
    if body.currency != made.currency:
        raise InvoiceError("currency", f"{made.top_up_id} is in {made.currency}, the message in {body.currency}")
    is_known = store.is_booked(journal.db, body.provider, body.reference)
    answer = {"document_id": made.top_up_id, "is_news": False}
    if body.kind == "succeeded" and not is_known:
        _book(journal, made, from_minor(body.amount_minor, made.currency), body.reference, now_ns)
    elif body.kind == "failed" and not is_known and made.outcome in store.UNDECIDED:
        store.add_step(journal, made.top_up_id, "declined", now_ns, reference=body.reference, code=body.code)
        _tell_failure(journal, made, body.code, now_ns)
    elif body.kind == "refunded":
        # What became of the money in the wallet is not the message's to say: a person books it (wallet.refund).
        event = {"top_up_id": made.top_up_id, "reference": body.reference, "amount_minor": body.amount_minor}
        invoices.add_event(journal.db, made.tenant, "payment.refund_unexplained", event, now_ns)
    else:
        return answer
    return answer | {"is_news": True}


def set_threshold(journal: Journal, body: SetThreshold, now_ns: int) -> Any:
    """Set when `wallet.low_balance` is told. Raises InvoiceError: fields."""
    if not is_currency(body.currency) or not body.tenant:
        raise InvoiceError("field", "tenant and currency: must name a wallet")
    if not 0 <= body.low_nanos <= BALANCE_NANOS_MAX:
        raise InvoiceError("field", f"low_nanos: {body.low_nanos} must be from 0 to {BALANCE_NANOS_MAX}")
    store.set_threshold(journal, body.tenant, body.currency, body.low_nanos, now_ns)
    return store.wallet_state(journal.db, body.tenant, body.currency)._asdict()


def _check(journal: Journal, tenant: str, currency: str, nanos: int, *, is_paid_in: bool = True) -> None:
    _check_text("tenant", tenant)
    if not is_currency(currency):
        raise InvoiceError("currency", f"currency: {currency!r} is not an ISO 4217 code")
    if not 0 < nanos <= TOP_UP_NANOS_MAX:
        raise InvoiceError("amount", f"amount_nanos: {nanos} must be from 1 to {TOP_UP_NANOS_MAX}")
    balance = wallet_nanos(journal.db, prepaid(tenant), currency)
    if is_paid_in and balance + nanos > BALANCE_NANOS_MAX:
        raise InvoiceError("amount", f"amount_nanos: the wallet would hold more than {BALANCE_NANOS_MAX}")


def _check_text(field: str, text: str) -> None:
    if not 0 < len(text) <= TEXT_MAX:
        raise InvoiceError("field", f"{field}: must have 1 to {TEXT_MAX} characters")


def _open(  # noqa: PLR0917 - what a top-up is, in its order
    journal: Journal, tenant: str, currency: str, nanos: int, source: str, provider: str, now_ns: int
) -> TopUp:
    top_up_id = f"{TOP_UP_PREFIX}{now_ns // 1_000_000:012x}{os.urandom(5).hex()}"
    made = TopUp(top_up_id, tenant, currency, nanos, source, provider, now_ns, "begun", "", 0, "")
    store.add_top_up(journal, made)
    return made


def _book(journal: Journal, made: TopUp, nanos: int, reference: str, now_ns: int) -> Any:
    """Money is in: what the provider says it moved, which may be less than was asked."""
    if not 0 < nanos <= TOP_UP_NANOS_MAX:
        raise InvoiceError("amount", f"amount: {nanos} nanos must be from 1 to {TOP_UP_NANOS_MAX}")
    lines = _lines(_cash(made.provider), prepaid(made.tenant), made.currency, nanos)
    tx_id = journal.post(TX_TOP_UP, made.tenant, now_ns, lines)
    store.note_booked(journal, made.provider, reference, made.top_up_id)
    store.add_step(journal, made.top_up_id, "succeeded", now_ns, reference=reference, amount_nanos=nanos, tx_id=tx_id)
    return _tell(journal, made.top_up_id, now_ns)


def _tell(journal: Journal, top_up_id: str, now_ns: int) -> Any:
    view = _view(journal, top_up_id)
    invoices.add_event(journal.db, view["tenant"], "wallet.topped_up", view, now_ns)
    store.check_low(journal, [view["tenant"]], now_ns)
    return view


def _tell_failure(journal: Journal, made: TopUp, code: str, now_ns: int) -> None:
    event = {"top_up_id": made.top_up_id, "currency": made.currency, "amount_nanos": made.amount_nanos, "code": code}
    invoices.add_event(journal.db, made.tenant, "wallet.top_up_failed", event, now_ns)


def _view(journal: Journal, top_up_id: str) -> dict[str, Any]:
    made = store.find_top_up(journal.db, top_up_id)
    assert made is not None
    balance = wallet_nanos(journal.db, prepaid(made.tenant), made.currency)
    return made._asdict() | {"balance_nanos": balance}


def _cash(provider: str) -> str:
    return f"cash:psp:{provider}"


def _lines(debit: str, credit: str, currency: str, nanos: int) -> tuple[Line, ...]:
    return (Line(debit, currency, nanos, 0), Line(credit, currency, -nanos, 0))


def whole_minor(nanos: int, currency: str) -> int | None:
    """`nanos` in minor units; None when they are no whole number of them."""
    minor, rest = divmod(nanos, 10 ** (9 - minor_digits(currency)))
    return None if rest else minor


VERBS: Final[dict[str, Verb[Any]]] = {
    "wallet.top_up": Verb(TopUpOrder, top_up),
    "wallet.grant": Verb(Grant, grant),
    "wallet.refund": Verb(WalletRefund, refund),
    "wallet.begin": Verb(BeginTopUp, begin),
    "wallet.finish": Verb(FinishTopUp, finish),
    "wallet.told": Verb(TopUpTold, told),
    "wallet.set": Verb(SetThreshold, set_threshold),
}
