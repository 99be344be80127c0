"""Owns `tollway finance`: deferred revenue, ageing of receivables, margin, and the check that all figures agree."""

from typing import Annotated

import typer

from gateway.commands.client import DEFAULT_DATA_DIR, ApiUrl, AsJson, DataDir, open_api
from gateway.commands.output import parse_day_ns, print_json, print_table

app = typer.Typer(help="Reports for finance.", no_args_is_help=True)

ROLL = ("account", "currency", "opening_nanos", "added_nanos", "recognised_nanos", "other_nanos", "closing_nanos")
AGES = (
    "tenant",
    "currency",
    "not_due_minor",
    "days_1_30_minor",
    "days_31_60_minor",
    "days_61_90_minor",
    "over_90_minor",
    "owed_back_minor",
)
MARGIN = ("group", "currency", "calls", "compute_ns", "revenue_nanos", "cost_nanos", "margin_nanos")

Zone = Annotated[str, typer.Option(help="IANA time zone of the days.")]


@app.command()
def deferred(
    *,
    since: Annotated[str, typer.Option(help="First day.")],
    until: Annotated[str, typer.Option(help="First day behind.")],
    zone: Zone = "UTC",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """Roll-forward of contract liabilities: opening + added - recognised - other = closing."""
    query = {"since_ns": parse_day_ns("--since", since, zone), "until_ns": parse_day_ns("--until", until, zone)}
    with open_api(data_dir, api) as control:
        rows = control.get("/admin/billing/reports/deferred", query)["items"]
    if as_json:
        print_json(rows)
    else:
        print_table(ROLL, ([row[column] for column in ROLL] for row in rows), right=frozenset(ROLL[2:]))


@app.command()
def ageing(*, data_dir: DataDir = DEFAULT_DATA_DIR, api: ApiUrl = None, as_json: AsJson = False) -> None:
    """What is owed, by tenant and days past the due date."""
    with open_api(data_dir, api) as control:
        rows = control.get("/admin/billing/reports/ageing")["items"]
    if as_json:
        print_json(rows)
    else:
        print_table(AGES, ([row[column] for column in AGES] for row in rows), right=frozenset(AGES[2:]))


@app.command()
def check(*, data_dir: DataDir = DEFAULT_DATA_DIR, api: ApiUrl = None, as_json: AsJson = False) -> None:
    """Compare usage, invoices and ledger of every tenant; exit 1 unless they say the same."""
    with open_api(data_dir, api) as control:
        found = control.get("/admin/billing/reports/equality")
    if as_json:
        print_json(found)
    else:
        columns = ("tenant", "currency", "what", "expected_nanos", "found_nanos")
        if found["differences"]:
            print_table(columns, ([one[column] for column in columns] for one in found["differences"]))
        typer.echo(f"{found['tenants']} tenants: {'equal' if found['is_ok'] else 'NOT equal'}")
    if not found["is_ok"]:
        raise typer.Exit(1)


@app.command()
def margin(
    *,
    cost: Annotated[int, typer.Option("--cost-nanos", help="What a second of compute costs, 1e-9 of the major unit.")],
    by: Annotated[list[str] | None, typer.Option(help="model, tenant, day, key or plan.")] = None,
    since: Annotated[str | None, typer.Option(help="First day.")] = None,
    until: Annotated[str | None, typer.Option(help="First day behind.")] = None,
    zone: Zone = "UTC",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """List-price revenue less metered compute."""
    query: dict[str, str | int | list[str] | None] = {
        "cost_nanos_per_compute_s": cost,
        "by": by or ["model"],
        "since_ns": parse_day_ns("--since", since, zone),
        "until_ns": parse_day_ns("--until", until, zone),
    }
    with open_api(data_dir, api) as control:
        rows = control.get("/admin/billing/reports/margin", query)["items"]
    if as_json:
        print_json(rows)
    else:
        print_table(MARGIN, ([row[column] for column in MARGIN] for row in rows), right=frozenset(MARGIN[2:]))
