"""Owns `tollway ledger`: trial balance, entries, one call's way into the ledger, and the closing of periods."""

from typing import Annotated

import typer

from gateway.commands.client import DEFAULT_DATA_DIR, ApiUrl, AsJson, DataDir, open_api
from gateway.commands.invoices import OperationId, run_command
from gateway.commands.output import parse_day_ns, print_fields, print_json, print_table

app = typer.Typer(help="The double-entry ledger.", no_args_is_help=True)

BALANCES = ("account", "currency", "balance", "debit_nanos", "credit_nanos", "calls")
PERIODS = ("period_id", "start", "end", "closed_at", "through_tx", "hash")
ENTRIES = ("tx", "line", "posted_at", "tenant", "account", "amount", "currency", "calls")


@app.command("trial-balance")
def trial_balance(*, data_dir: DataDir = DEFAULT_DATA_DIR, api: ApiUrl = None, as_json: AsJson = False) -> None:
    """Every account and its balance; exit 1 unless they sum to zero per currency."""
    with open_api(data_dir, api) as control:
        answer = control.get("/admin/ledger/trial-balance")
    if as_json:
        print_json(answer)
    else:
        right = frozenset(BALANCES[2:])
        print_table(BALANCES, ([line[column] for column in BALANCES] for line in answer["lines"]), right=right)
        typer.echo("balanced" if answer["is_balanced"] else f"NOT balanced: {answer['totals_nanos']}")
    if not answer["is_balanced"]:
        raise typer.Exit(1)


@app.command()
def periods(*, data_dir: DataDir = DEFAULT_DATA_DIR, api: ApiUrl = None, as_json: AsJson = False) -> None:
    """Closed periods: they take no entry any more."""
    with open_api(data_dir, api) as control:
        found = control.get("/admin/ledger/periods")
    if as_json:
        print_json(found)
    else:
        print_table(PERIODS, ([one[column] for column in PERIODS] for one in found))


@app.command()
def close(
    *,
    before: Annotated[str, typer.Option(help="Close all days before this one, such as 2026-02-01.")],
    zone: Annotated[str, typer.Option(help="IANA time zone of that day.")] = "UTC",
    operation_id: OperationId = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """Close a period for good: nothing can be posted into it afterwards, late calls go to the open one."""
    body = {"end_ns": parse_day_ns("--before", before, zone)}
    with open_api(data_dir, api) as control:
        made = run_command(control, "period.close", body, operation_id)
    print_json(made) if as_json else print_fields(made)


@app.command()
def entries(
    *,
    account: Annotated[str | None, typer.Option(help="Only of this account.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    tx: Annotated[int | None, typer.Option(help="Only of this journal transaction.")] = None,
    call: Annotated[str | None, typer.Option(help="Only those that carry this call (tollway-call-id).")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most entries to list.")] = 100,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """Journal entries in posting order; debits positive, credits negative."""
    query = {"account": account, "tenant": tenant, "tx": tx, "call_id": call}
    with open_api(data_dir, api) as control:
        found = control.get_all("/admin/ledger/entries", query, limit)
    if as_json:
        print_json(found)
    else:
        print_table(
            ENTRIES, ([entry[column] for column in ENTRIES] for entry in found), right=frozenset({"amount", "calls"})
        )


@app.command()
def call(
    *,
    call_id: Annotated[str, typer.Argument(help="The tollway-call-id of a reply.", show_default=False)],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """One posted call, and the entries of the transaction that carries it."""
    with open_api(data_dir, api) as control:
        found = control.get(f"/admin/ledger/calls/{call_id}")
    if as_json:
        print_json(found)
        return
    print_fields({name: value for name, value in found.items() if name != "entries"})
    print_table(ENTRIES, ([entry[column] for column in ENTRIES] for entry in found["entries"]))
