"""Owns `tollway wallet`: what a tenant has paid in advance, top-ups, refunds, and the low-balance threshold."""

from typing import Annotated, Any
from uuid import uuid4

import typer

from billing.money import MoneyError, format_nanos, parse_nanos
from gateway.commands.client import DEFAULT_DATA_DIR, ApiUrl, AsJson, DataDir, fail, open_api
from gateway.commands.invoices import OperationId, TenantId
from gateway.commands.output import print_fields, print_json, print_table

app = typer.Typer(help="Wallets of prepaid plans.", no_args_is_help=True)

Amount = Annotated[str, typer.Argument(help="Amount, such as 25.00.", show_default=False)]
Currency = Annotated[str | None, typer.Option(help="ISO 4217; default: the tenant's.")]
TOP_UPS = ("id", "when", "source", "amount", "outcome", "booked", "provider", "reference", "code")


@app.command()
def show(
    *,
    tenant: TenantId,
    currency: Currency = None,
    limit: Annotated[int, typer.Option(min=1, help="Most top-ups to list.")] = 20,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """Show a wallet and its top-ups."""
    query: dict[str, Any] = {} if currency is None else {"currency": currency}
    with open_api(data_dir, api) as control:
        found = control.get(f"/admin/tenants/{tenant}/wallet", query)
        top_ups = control.get_all(f"/admin/tenants/{tenant}/wallet/top-ups", {}, limit)
    if as_json:
        print_json(found | {"top_ups": top_ups})
        return
    _print_wallet(found)
    if top_ups:
        print_table(TOP_UPS, (_row(one) for one in top_ups), right=frozenset({"amount", "booked"}))


@app.command("top-up")
def top_up(
    *,
    tenant: TenantId,
    amount: Amount,
    provider: Annotated[str, typer.Option(help="Who received the money, such as bank.")] = "",
    reference: Annotated[str, typer.Option(help="The payment's own id: booked once.")] = "",
    collect: Annotated[bool, typer.Option("--collect", help="Charge the tenant's saved payment method.")] = False,
    currency: Currency = None,
    operation_id: OperationId = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """Book money that came in (--provider, --reference), or collect it (--collect). Safe to repeat."""
    if collect == bool(provider or reference):
        fail("top-up: give either --collect, or --provider and --reference of a payment that came in")
    body = {"kind": "collect" if collect else "paid", "provider": provider, "reference": reference}
    made = _post(tenant, "top-ups", body, amount, currency, operation_id, data_dir, api)
    _print_top_up(made, as_json=as_json)


@app.command()
def grant(
    *,
    tenant: TenantId,
    amount: Amount,
    reason: Annotated[str, typer.Option(help="Why; kept with it.")],
    currency: Currency = None,
    operation_id: OperationId = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """Give money: used like any other, never paid back. Safe to repeat with --operation-id."""
    body = {"kind": "granted", "reason": reason}
    _print_top_up(_post(tenant, "top-ups", body, amount, currency, operation_id, data_dir, api), as_json=as_json)


@app.command()
def refund(
    *,
    tenant: TenantId,
    amount: Amount,
    provider: Annotated[str, typer.Option(help="Who pays it back.")],
    reference: Annotated[str, typer.Option(help="The repayment's own id.")],
    currency: Currency = None,
    operation_id: OperationId = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """Book money paid back: at most what is neither spent, nor leased, nor was granted."""
    body = {"provider": provider, "reference": reference}
    found = _post(tenant, "refunds", body, amount, currency, operation_id, data_dir, api)
    print_json(found) if as_json else _print_wallet(found)


@app.command()
def low(
    *,
    tenant: TenantId,
    amount: Amount,
    currency: Currency = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """Tell by webhook (wallet.low_balance) when the balance falls below this; 0: never."""
    body: dict[str, Any] = {"operation_id": uuid4().hex, "low_nanos": _nanos(amount)}
    if currency is not None:
        body["currency"] = currency
    with open_api(data_dir, api) as control:
        found = control.post(f"/admin/tenants/{tenant}/wallet/threshold", body)
    print_json(found) if as_json else _print_wallet(found)


def _post(  # noqa: PLR0917 - what the verbs share, in the order of their options
    tenant: str,
    what: str,
    body: dict[str, Any],
    amount: str,
    currency: str | None,
    operation_id: str | None,
    data_dir: Any,
    api: str | None,
) -> Any:
    body = body | {"operation_id": operation_id or uuid4().hex, "amount_nanos": _nanos(amount)}
    if currency is not None:
        body["currency"] = currency
    with open_api(data_dir, api) as control:
        return control.post(f"/admin/tenants/{tenant}/wallet/{what}", body)


def _nanos(text: str) -> int:
    try:
        return parse_nanos(text)
    except MoneyError as error:
        fail(f"amount: {error}")


def _print_wallet(found: dict[str, Any]) -> None:
    shown = ("tenant", "currency", "balance", "available")
    fields = {name: found[name] for name in shown}
    print_fields(fields | {"held": format_nanos(found["held_nanos"]), "low": format_nanos(found["low_nanos"])})


def _print_top_up(made: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(made)
    else:
        print_table(TOP_UPS, [_row(made)], right=frozenset({"amount", "booked"}))
    if made["outcome"] in {"declined", "refused"}:
        raise typer.Exit(1)


def _row(one: dict[str, Any]) -> tuple[object, ...]:
    return (
        one["top_up_id"],
        one["created_at"],
        one["source"],
        one["amount"],
        one["outcome"],
        format_nanos(one["booked_nanos"]),
        one["provider"],
        one["reference"],
        one["code"],
    )
