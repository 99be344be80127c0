"""Owns the verbs of `tollway plans` that are about money: catalogue, subscriptions, credit, coupons, rated months."""

import time
from typing import Annotated, Any
from uuid import uuid4

import typer

from billing.money import MoneyError, format_nanos, parse_nanos
from gateway.commands.client import DEFAULT_DATA_DIR, ApiUrl, AsJson, DataDir, fail, open_api
from gateway.commands.files import File, file_body
from gateway.commands.invoices import OperationId, TenantId, Zone, run_command
from gateway.commands.output import (
    parse_day_ns,
    parse_duration_s,
    print_answer,
    print_fields,
    print_json,
    print_list,
    print_table,
)

PlanName = Annotated[str, typer.Argument(help="Name of the plan.", show_default=False)]
_AMOUNTS = frozenset({"amount", "left", "list", "net"})


def apply(*, file: File, data_dir: DataDir = DEFAULT_DATA_DIR, api: ApiUrl = None, as_json: AsJson = False) -> None:
    """Apply a file of plans and coupons: all of it or nothing. What is equal already makes no new version."""
    body = file_body(file)
    with open_api(data_dir, api) as control:
        applied = control.post("/admin/catalogue", body)
    if as_json:
        print_json(applied)
        return
    rows = [("plan", one["name"], one["version"], _news(is_new=one["is_new_version"])) for one in applied["plans"]]
    rows += [("coupon", code, "", _news(is_new=True)) for code in applied["coupons"]]
    print_table(("kind", "name", "version", "state"), rows)


def terms(*, name: PlanName, data_dir: DataDir = DEFAULT_DATA_DIR, api: ApiUrl = None, as_json: AsJson = False) -> None:
    """Show the money of every version of a plan."""
    with open_api(data_dir, api) as control:
        found = control.get(f"/admin/plans/{name}/terms")["items"]
    if as_json:
        print_json(found)
        return
    for one in found:
        print_fields({"version": one["version"], "created_at": one["created_at"]} | (one["terms"] or {"terms": None}))


def coupons(
    *,
    limit: Annotated[int, typer.Option(min=1, help="Most coupons to list.")] = 1_000,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """List coupons."""
    with open_api(data_dir, api) as control:
        found = control.get_all("/admin/coupons", {}, limit)

    def cells(one: dict[str, Any]) -> list[object]:
        return [one["code"], _off(one), one["applies_to"], one["months"], one["redemptions_max"], one["plans"]]

    print_list(found, ("code", "off", "applies_to", "months", "redemptions_max", "plans"), as_json=as_json, cells=cells)


def subscribe(
    *,
    tenant: TenantId,
    plan: PlanName,
    packs: Annotated[int, typer.Option(min=0, help="QPS packs of the plan.")] = 0,
    operation_id: OperationId = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """Put a tenant on a plan with its fee, packs and trial credit; prorated by the second. Safe to repeat."""
    body = {"operation_id": _operation(operation_id), "plan": plan, "packs": packs}
    with open_api(data_dir, api) as control:
        found = control.post(f"/admin/tenants/{tenant}/subscribe", body)
    print_answer(found, as_json=as_json)


def redeem(
    *,
    tenant: TenantId,
    code: Annotated[str, typer.Argument(help="The coupon's code.", show_default=False)],
    operation_id: OperationId = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """Redeem a coupon for a tenant."""
    body = {"operation_id": _operation(operation_id), "code": code}
    with open_api(data_dir, api) as control:
        found = control.post(f"/admin/tenants/{tenant}/coupons", body)
    print_answer(found, as_json=as_json)


def grant(
    *,
    tenant: TenantId,
    source: Annotated[str, typer.Option(help="Your own name of it: granted once per tenant.")],
    amount: Annotated[str, typer.Option(help='Decimal text of the major unit, such as "5".')],
    expires: Annotated[str | None, typer.Option(help="Until its end, such as 30d.")] = None,
    priority: Annotated[int, typer.Option(help="Low burns first.")] = 100,
    model: Annotated[list[str] | None, typer.Option(help="Only for this model; may be repeated.")] = None,
    rollovers: Annotated[int, typer.Option(help="How often what is left at its end lives on.")] = 0,
    operation_id: OperationId = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """Give a tenant promotional credit."""
    try:
        nanos = parse_nanos(amount)
    except MoneyError as error:
        fail(f"--amount: {error}")
    body: dict[str, Any] = {"tenant": tenant, "source": source, "amount_nanos": nanos, "priority": priority}
    body |= {"models": model or [], "rollovers": rollovers}
    life_s = parse_duration_s("--expires", expires)
    if life_s is not None:
        body["expires_ns"] = time.time_ns() + life_s * 1_000_000_000
    with open_api(data_dir, api) as control:
        found = run_command(control, "credit.grant", body, operation_id)
    print_answer(found, as_json=as_json)


def credit(
    *, tenant: TenantId, data_dir: DataDir = DEFAULT_DATA_DIR, api: ApiUrl = None, as_json: AsJson = False
) -> None:
    """Show a tenant's promotional credit, first what burns first, and its coupons."""
    with open_api(data_dir, api) as control:
        found = control.get(f"/admin/tenants/{tenant}/credit")
    if as_json:
        print_json(found)
        return
    print_table(
        ("grant", "amount", "left", "currency", "priority", "expires", "models"),
        (
            (
                one["grant_id"],
                format_nanos(one["amount_nanos"]),
                format_nanos(one["left_nanos"]),
                *(one[column] for column in ("currency", "priority", "expires_at", "models")),
            )
            for one in found["grants"]
        ),
        right=_AMOUNTS,
    )
    rows = ((one["code"], _off(one), one["applies_to"], one["months"], one["redeemed_at"]) for one in found["coupons"])
    print_table(("coupon", "off", "applies_to", "months", "redeemed"), rows)


def settle(
    *,
    tenant: TenantId,
    month: Annotated[str, typer.Option(help="Any day of the charge month, such as 2026-01-15.")],
    zone: Zone = "UTC",
    operation_id: OperationId = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """Rate a month that is over, again if it was rated: items over the differences come with the next invoice."""
    body = {"operation_id": _operation(operation_id), "at_ns": parse_day_ns("--month", month, zone)}
    with open_api(data_dir, api) as control:
        run = control.post(f"/admin/tenants/{tenant}/months", body)
    print_json(run) if as_json else _print_runs([run])


def months(
    *, tenant: TenantId, data_dir: DataDir = DEFAULT_DATA_DIR, api: ApiUrl = None, as_json: AsJson = False
) -> None:
    """Show the ratings of a tenant's months, newest first."""
    with open_api(data_dir, api) as control:
        runs = control.get(f"/admin/tenants/{tenant}/months")
    print_json(runs) if as_json else _print_runs(runs)


def _print_runs(runs: list[dict[str, Any]]) -> None:
    rows = []
    for run in runs:
        rows.append((run["start_ns"], run["n"], "list prices", format_nanos(run["list_nanos"])))
        rows += [
            (run["start_ns"], run["n"], one["description"], format_nanos(one["amount_nanos"])) for one in run["lines"]
        ]
        rows.append((run["start_ns"], run["n"], "net", format_nanos(run["net_nanos"])))
    print_table(("month", "run", "line", "amount"), rows, right=_AMOUNTS)


def _operation(given: str | None) -> str:
    return given or f"cli-{uuid4()}"


def _news(*, is_new: bool) -> str:
    return "new" if is_new else "unchanged"


def _off(coupon: dict[str, Any]) -> str:
    if coupon["percent_ppm"]:
        return f"{format_nanos(coupon['percent_ppm'] * 100_000)} %"
    return f"{format_nanos(coupon['amount_nanos'])} {coupon['currency']}"
