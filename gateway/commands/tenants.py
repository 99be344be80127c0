"""Owns `tollway tenants`: create, list, set-plan, suspend, resume."""

from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.commands.client import DEFAULT_DATA_DIR, ApiUrl, AsJson, DataDir, open_api
from gateway.commands.output import print_fields, print_json, print_table

app = typer.Typer(help="Tenants: the customers of the gateway.", no_args_is_help=True)

TenantId = Annotated[str, typer.Argument(help="Id of the tenant.", show_default=False)]
COLUMNS = ("tenant", "name", "plan", "zone", "currency", "is_suspended", "created_at")


@app.command()
def create(
    *,
    tenant: TenantId,
    name: Annotated[str, typer.Option(help="A name for people.")] = "",
    plan: Annotated[str, typer.Option(help="Its plan.")] = "free",
    zone: Annotated[str, typer.Option(help="IANA time zone in which its days begin.")] = "UTC",
    currency: Annotated[str, typer.Option(help="ISO 4217 code; the price book's.")] = "USD",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """Create a tenant. Its id, zone and currency never change."""
    body = {"tenant": tenant, "name": name, "plan": plan, "zone": zone, "currency": currency}
    _change("/admin/tenants", body, data_dir=data_dir, api=api, as_json=as_json)


@app.command("list")
def list_(
    *,
    limit: Annotated[int, typer.Option(min=1, help="Most tenants to list.")] = 1_000,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """List tenants by id."""
    with open_api(data_dir, api) as control:
        tenants = control.get_all("/admin/tenants", {}, limit)
    if as_json:
        print_json(tenants)
    else:
        print_table(COLUMNS, ([tenant[column] for column in COLUMNS] for tenant in tenants))


@app.command("set-plan")
def set_plan(
    *,
    tenant: TenantId,
    plan: Annotated[str, typer.Argument(help="Name of the plan.", show_default=False)],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """Put a tenant on another plan, from its next call on."""
    _change(f"/admin/tenants/{tenant}/plan", {"plan": plan}, data_dir=data_dir, api=api, as_json=as_json)


@app.command()
def suspend(
    *, tenant: TenantId, data_dir: DataDir = DEFAULT_DATA_DIR, api: ApiUrl = None, as_json: AsJson = False
) -> None:
    """Refuse every call of a tenant until it is resumed."""
    _change(f"/admin/tenants/{tenant}/suspend", None, data_dir=data_dir, api=api, as_json=as_json)


@app.command()
def resume(
    *, tenant: TenantId, data_dir: DataDir = DEFAULT_DATA_DIR, api: ApiUrl = None, as_json: AsJson = False
) -> None:
    """End a suspension."""
    _change(f"/admin/tenants/{tenant}/resume", None, data_dir=data_dir, api=api, as_json=as_json)


def _change(path: str, body: dict[str, Any] | None, *, data_dir: Path, api: str | None, as_json: bool) -> None:
    with open_api(data_dir, api) as control:
        tenant = control.post(path, body)
    if as_json:
        print_json(tenant)
    else:
        print_fields({column: tenant[column] for column in COLUMNS})
