"""Owns `tollway billing`: the seller, billing accounts, pending items and subscriptions."""

import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.commands.client import DEFAULT_DATA_DIR, ApiUrl, AsJson, DataDir, fail, open_api
from gateway.commands.invoices import OperationId, TenantId, do_command
from gateway.commands.output import print_fields, print_json, print_table

app = typer.Typer(help="Who is billed, for what, and by whom.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(help="TOML file with the fields (docs/billing-api.md).", show_default=False)]
SubscriptionId = Annotated[str, typer.Argument(help="Id of the subscription.", show_default=False)]
Fee = Annotated[int, typer.Option("--fee-minor", help="Fee per period in minor units (cents).")]


@app.command()
def seller(
    *,
    file: File,
    operation_id: OperationId = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """Set who sells: name, address, tax table, number series."""
    do_command("seller.set", _load(file), operation_id, data_dir=data_dir, api=api, as_json=as_json)


@app.command()
def account(
    *,
    file: File,
    operation_id: OperationId = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """Create or replace a tenant's billing account."""
    do_command("account.set", _load(file), operation_id, data_dir=data_dir, api=api, as_json=as_json)


@app.command()
def show(
    *, tenant: TenantId, data_dir: DataDir = DEFAULT_DATA_DIR, api: ApiUrl = None, as_json: AsJson = False
) -> None:
    """A tenant's account, pending items, subscriptions and draft."""
    with open_api(data_dir, api) as control:
        found = control.get(f"/admin/billing/accounts/{tenant}")
    if as_json:
        print_json(found)
        return
    print_fields(found["account"] | {"billed_until": found["billed_until"]})
    columns = ("item_id", "kind", "description", "amount_nanos")
    print_table(columns, ([item[column] for column in columns] for item in found["pending_items"]))
    names = ("subscription_id", "name", "fee_minor", "interval", "status")
    print_table(names, ([one[name] for name in names] for one in found["subscriptions"]))


@app.command()
def item(
    *,
    tenant: TenantId,
    source: Annotated[str, typer.Option(help="Your own id of it: the same one is added once.")],
    description: Annotated[str, typer.Option(help="Printed on the invoice.")],
    amount_nanos: Annotated[int, typer.Option(help="1e-9 of the major unit; negative reduces the invoice.")],
    kind: Annotated[str, typer.Option(help="adjustment, minimum, promo or coupon.")] = "adjustment",
    operation_id: OperationId = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """Add something to a tenant's next invoice by hand."""
    body = {
        "tenant": tenant,
        "source": source,
        "kind": kind,
        "description": description,
        "amount_nanos": amount_nanos,
    }
    do_command("item.add", body, operation_id, data_dir=data_dir, api=api, as_json=as_json)


@app.command()
def subscribe(
    *,
    tenant: TenantId,
    name: Annotated[str, typer.Option(help="What is printed on the invoice.")],
    fee_minor: Fee,
    interval: Annotated[str, typer.Option(help="month or year.")] = "month",
    trial_days: Annotated[int, typer.Option(help="Days before the first fee.")] = 0,
    operation_id: OperationId = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """Start a subscription, now or after a trial."""
    body = {"tenant": tenant, "name": name, "fee_minor": fee_minor, "interval": interval, "trial_days": trial_days}
    do_command("subscription.start", body, operation_id, data_dir=data_dir, api=api, as_json=as_json)


@app.command()
def change(
    *,
    subscription: SubscriptionId,
    fee_minor: Fee,
    name: Annotated[str | None, typer.Option(help="Another name; default: as before.")] = None,
    operation_id: OperationId = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """Change a fee from now on; both sides are prorated by the second."""
    body = {"subscription_id": subscription, "fee_minor": fee_minor} | ({} if name is None else {"name": name})
    do_command("subscription.change", body, operation_id, data_dir=data_dir, api=api, as_json=as_json)


@app.command()
def cancel(
    *,
    subscription: SubscriptionId,
    now: Annotated[bool, typer.Option("--now", help="At once, not with the paid period.")] = False,
    operation_id: OperationId = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """End a subscription with its paid period, or now."""
    body = {"subscription_id": subscription, "when": "now" if now else "period_end"}
    do_command("subscription.cancel", body, operation_id, data_dir=data_dir, api=api, as_json=as_json)


@app.command()
def pause(
    *,
    subscription: SubscriptionId,
    operation_id: OperationId = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """Stop asking fees; the rest of the paid period is given back."""
    body = {"subscription_id": subscription}
    do_command("subscription.pause", body, operation_id, data_dir=data_dir, api=api, as_json=as_json)


@app.command()
def resume(
    *,
    subscription: SubscriptionId,
    operation_id: OperationId = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """End a pause."""
    body = {"subscription_id": subscription}
    do_command("subscription.resume", body, operation_id, data_dir=data_dir, api=api, as_json=as_json)


def _load(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        fail(f"{file}: {error.strerror}: name a readable TOML file")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        fail(f"{file}: not readable as TOML: {error}")
