"""Owns `tollway rerate`: recorded calls priced again, as a run with its differences."""

from typing import Annotated

import typer

from billing.money import format_nanos
from gateway.commands.client import DEFAULT_DATA_DIR, ApiUrl, AsJson, DataDir, open_api
from gateway.commands.invoices import Zone
from gateway.commands.output import parse_day_ns, print_fields, print_json, print_table

COLUMNS = ("tenant", "model", "price_version", "calls", "posted", "rerated", "difference", "currency")


def rerate(
    *,
    since: Annotated[str, typer.Option("--from", help="First day, such as 2026-01-01.")],
    until: Annotated[str, typer.Option("--to", help="The day behind the last.")],
    zone: Zone = "UTC",
    against: Annotated[int | None, typer.Option(help="Price book version; default: each call's own.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's calls.")] = None,
    model: Annotated[str | None, typer.Option(help="Only this model's calls.")] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """Price recorded calls again and show the differences; posts nothing. Exit 1 if one differs from its own book."""
    body = {
        "since_ns": parse_day_ns("--from", since, zone),
        "until_ns": parse_day_ns("--to", until, zone),
        "against": against,
        "tenant": tenant,
        "model": model,
    }
    with open_api(data_dir, api) as control:
        run = control.post("/admin/prices/rerate", body)
    if as_json:
        print_json(run)
    else:
        print_table(
            COLUMNS,
            (
                [
                    *(line[column] for column in COLUMNS[:4]),
                    *(format_nanos(line[f"{column}_nanos"]) for column in COLUMNS[4:7]),
                    line["currency"],
                ]
                for line in run["lines"]
            ),
            right=frozenset(COLUMNS[2:7]),
        )
        print_fields({"digest": run["digest"], "calls up to event": run["last_event_id"]})
    if against is None and any(line["difference_nanos"] for line in run["lines"]):
        raise typer.Exit(1)
