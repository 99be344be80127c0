"""Owns `tollway usage`: what was called and what it cost, from the ledger."""

from typing import Annotated, Any

import typer

from gateway.commands.client import DEFAULT_DATA_DIR, ApiUrl, AsJson, DataDir, open_api
from gateway.commands.output import parse_day_ns, print_json, print_table

FIGURES = ("calls", "ok_calls", "failed_calls", "rows", "charge", "currency")


def usage(
    *,
    by: Annotated[
        list[str] | None, typer.Option(help="day, model, key, tenant or plan; repeatable; default: day.")
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    model: Annotated[str | None, typer.Option(help="Only of this model.")] = None,
    key: Annotated[str | None, typer.Option(help="Only by this key (key_…).")] = None,
    since: Annotated[str | None, typer.Option(help="First day, 2026-01-31.")] = None,
    until: Annotated[str | None, typer.Option(help="Day after the last one.")] = None,
    zone: Annotated[str, typer.Option(help="IANA time zone of the days.")] = "UTC",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """Usage of posted calls, grouped."""
    dimensions = by or ["day"]
    query = {
        "by": dimensions,
        "tenant": tenant,
        "model": model,
        "key": key,
        "since_ns": parse_day_ns("--since", since, zone),
        "until_ns": parse_day_ns("--until", until, zone),
        "zone": zone,
    }
    rows: list[Any] = []
    after: str | None = "0"
    with open_api(data_dir, api) as control:
        while after is not None:
            answer = control.get("/admin/usage", {**query, "after": after})
            rows += answer["rows"]
            after = answer["next"]
    if as_json:
        print_json(rows)
        return
    columns = (*dimensions, *FIGURES)
    print_table(
        columns, ([row["group"].get(c, row.get(c)) for c in columns] for row in rows), right=frozenset(FIGURES[:5])
    )
