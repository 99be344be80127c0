"""Owns `tollway ledger`: trial balance, entries, one call's way into the ledger, closing periods, exports."""

import sqlite3
from pathlib import Path
from typing import Annotated

import typer

from billing.exports.rows import Selection
from billing.exports.writing import Format, write_export
from billing.ledger.opening import open_ledger_reader
from billing.ledger.port import LedgerError
from gateway.commands.client import DEFAULT_DATA_DIR, ApiUrl, AsJson, DataDir, fail, open_api
from gateway.commands.invoices import OperationId, run_command
from gateway.commands.output import parse_day_ns, print_fields, print_json, print_list, print_table

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


QUARANTINE = (
    "quarantine_id",
    "reason",
    "field",
    "call_id",
    "tenant",
    "model",
    "at",
    "charge",
    "currency",
    "fate",
    "note",
)
Ids = Annotated[list[int], typer.Argument(help="Quarantine ids.", show_default=False)]
Note = Annotated[str, typer.Option(help="Why; kept beside the record.")]


@app.command()
def quarantine(
    *,
    ended: Annotated[bool, typer.Option("--ended", help="Also those that were decided.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Most records to list.")] = 100,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """Recorded calls that must not be posted as they are, and wait for a decision."""
    with open_api(data_dir, api) as control:
        found = control.get_all("/admin/ledger/quarantine", {"ended": ended}, limit)
    print_list(found, QUARANTINE, as_json=as_json, right=frozenset({"charge"}))


@app.command()
def release(
    *,
    ids: Ids,
    note: Note,
    operation_id: OperationId = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """Post records out of quarantine, if what was wrong is right by now; all of them or none."""
    _decide("quarantine.release", ids, note, operation_id, data_dir=data_dir, api=api, as_json=as_json)


@app.command()
def dismiss(
    *,
    ids: Ids,
    note: Note,
    operation_id: OperationId = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """Decide that records in quarantine are never posted."""
    _decide("quarantine.dismiss", ids, note, operation_id, data_dir=data_dir, api=api, as_json=as_json)


def _decide(
    verb: str, ids: list[int], note: str, operation_id: str | None, *, data_dir: Path, api: str | None, as_json: bool
) -> None:
    with open_api(data_dir, api) as control:
        made = run_command(control, verb, {"quarantine_ids": ids, "note": note}, operation_id)
    print_json(made) if as_json else print_fields(made)


@app.command()
def export(
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")],
    form: Annotated[Format, typer.Option("--format", help="beancount, csv or parquet.")] = "beancount",
    since: Annotated[str | None, typer.Option(help="First day of posting, such as 2026-01-01.")] = None,
    before: Annotated[str | None, typer.Option(help="First day that is left out.")] = None,
    zone: Annotated[str, typer.Option(help="IANA time zone of those days.")] = "UTC",
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's transactions.")] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Write all entries to a file for other tools. Reads the ledger itself: on the machine of the data directory."""
    selection = Selection(
        since_ns=parse_day_ns("--since", since, zone) or 0,
        until_ns=parse_day_ns("--before", before, zone) or 2**63 - 1,
        tenant=tenant,
    )
    try:
        db = open_ledger_reader(data_dir)
        try:
            count = write_export(db, selection, form, out)
        finally:
            db.close()
    except (LedgerError, OSError, sqlite3.Error) as error:
        fail(f"{out}: {error}")
    typer.echo(f"{count} entries written to {out}")


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
    print_list(found, ENTRIES, as_json=as_json, right=frozenset({"amount", "calls"}))


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
