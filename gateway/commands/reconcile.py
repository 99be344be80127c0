"""Owns `tollway reconcile`: the proof that answered = recorded = posted. Exit 1 when it does not hold."""

import typer

from gateway.commands.client import DEFAULT_DATA_DIR, ApiUrl, AsJson, DataDir, open_api
from gateway.commands.output import print_fields, print_json, print_table

FIGURES = (
    "answered",
    "recorded",
    "posted",
    "voided",
    "quarantined",
    "dismissed",
    "duplicates",
    "pending",
    "unposted",
    "transactions",
)


def reconcile(*, data_dir: DataDir = DEFAULT_DATA_DIR, api: ApiUrl = None, as_json: AsJson = False) -> None:
    """Compare usage logs and ledger; exit 1 unless every answered call is recorded and posted."""
    with open_api(data_dir, api) as control:
        report = control.get("/admin/reconcile")
    if as_json:
        print_json(report)
    else:
        print_fields({name: report[name] for name in FIGURES} | {"head": report["head"]})
        if report["problems"]:
            columns = ("kind", "where", "detail")
            print_table(columns, ([problem[column] for column in columns] for problem in report["problems"]))
        typer.echo("ok" if report["is_ok"] else "NOT ok")
    if not report["is_ok"]:
        raise typer.Exit(1)
