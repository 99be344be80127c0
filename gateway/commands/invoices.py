"""Owns `tollway invoices`: drafts, invoices, credit notes, payments and refunds of one tenant or of all."""

from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import typer

from gateway.commands.client import DEFAULT_DATA_DIR, Api, ApiUrl, AsJson, DataDir, fail, open_api
from gateway.commands.output import parse_day_ns, print_answer, print_fields, print_json, print_list, print_table

app = typer.Typer(help="Invoices and credit notes.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Number or id of the invoice.", show_default=False)]
TenantId = Annotated[str, typer.Argument(help="Id of the tenant.", show_default=False)]
Until = Annotated[str, typer.Option(help="First day that is not billed any more, such as 2026-02-01.")]
Zone = Annotated[str, typer.Option(help="IANA time zone of that day.")]
Minor = Annotated[int, typer.Option(help="Amount in minor units (cents), tax included.")]
Provider = Annotated[str, typer.Option(help="Where the money moved, such as bank or stripe.")]
Reference = Annotated[str, typer.Option(help="The payment's id there; it is booked once.")]
OperationId = Annotated[
    str | None, typer.Option("--operation-id", help="To repeat a command safely; default: a new one.")
]
COLUMNS = ("number", "kind", "tenant", "total_minor", "due_minor", "currency", "status", "issued_at", "due_at")
#: Members of an answer that `tollway invoices show` prints.
_DOCUMENTS = frozenset({"invoice", "credit_note", "document"})
LINES = ("description", "quantity", "unit", "amount_minor", "tax_category")


@app.command("list")
def list_(
    *,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most documents to list.")] = 1_000,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """List invoices and credit notes, oldest first."""
    with open_api(data_dir, api) as control:
        found = control.get_all("/admin/billing/invoices", {"tenant": tenant}, limit)

    def cells(one: dict[str, Any]) -> list[object]:
        return [{**one, **one["state"]}[column] for column in COLUMNS]

    print_list(found, COLUMNS, as_json=as_json, cells=cells, right=frozenset({"total_minor", "due_minor"}))


@app.command()
def show(*, invoice: Name, data_dir: DataDir = DEFAULT_DATA_DIR, api: ApiUrl = None, as_json: AsJson = False) -> None:
    """One document with its lines, taxes, state and steps."""
    with open_api(data_dir, api) as control:
        found = control.get(f"/admin/billing/invoices/{invoice}")
    if as_json:
        print_json(found)
        return
    print_document(found["document"])
    print_fields(found["state"])
    columns = ("at", "kind", "amount_minor", "reference", "tx", "note")
    print_table(columns, ([step[column] for column in columns] for step in found["steps"]))


@app.command()
def draft(
    *,
    tenant: TenantId,
    until: Until,
    zone: Zone = "UTC",
    operation_id: OperationId = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """Draft an invoice over usage before a day, and everything pending. Nothing is booked."""
    body = {"tenant": tenant, "until_ns": parse_day_ns("--until", until, zone)}
    with open_api(data_dir, api) as control:
        made = run_command(control, "invoice.draft", body, operation_id)
    print_json(made) if as_json else print_document(made)


@app.command()
def finalize(
    *,
    draft_id: Annotated[str, typer.Argument(help="The draft's document_id.", show_default=False)],
    operation_id: OperationId = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """Give a draft its number and book it, for ever."""
    with open_api(data_dir, api) as control:
        made = run_command(control, "invoice.finalize", {"document": draft_id}, operation_id)
    print_json(made) if as_json else print_document(made)


@app.command()
def discard(
    *,
    draft_id: Annotated[str, typer.Argument(help="The draft's document_id.", show_default=False)],
    operation_id: OperationId = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """Drop a draft."""
    do_command("invoice.discard", {"document": draft_id}, operation_id, data_dir=data_dir, api=api, as_json=as_json)


@app.command()
def bill(
    *,
    tenant: TenantId,
    until: Until,
    zone: Zone = "UTC",
    operation_id: OperationId = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """Draft and finalize in one go, if there is anything to bill."""
    body = {"tenant": tenant, "until_ns": parse_day_ns("--until", until, zone)}
    with open_api(data_dir, api) as control:
        made = run_command(control, "invoice.bill", body, operation_id)
    if as_json:
        print_json(made)
    elif made["invoice"] is None:
        typer.echo("nothing to bill")
    else:
        print_document(made["invoice"])


@app.command()
def void(
    *,
    invoice: Name,
    operation_id: OperationId = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """Take an unpaid invoice back; what it billed comes with the next one."""
    do_command("invoice.void", {"document": invoice}, operation_id, data_dir=data_dir, api=api, as_json=as_json)


@app.command("write-off")
def write_off(
    *,
    invoice: Name,
    operation_id: OperationId = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """Give an open invoice up as uncollectible."""
    do_command("invoice.write_off", {"document": invoice}, operation_id, data_dir=data_dir, api=api, as_json=as_json)


@app.command()
def credit(
    *,
    invoice: Name,
    amount_minor: Minor,
    reason: Annotated[str, typer.Option(help="Printed on the credit note.")],
    operation_id: OperationId = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """Issue a credit note over a part of an invoice."""
    body = {"invoice": invoice, "amount_minor": amount_minor, "reason": reason}
    do_command("invoice.credit", body, operation_id, data_dir=data_dir, api=api, as_json=as_json)


@app.command()
def pay(
    *,
    invoice: Name,
    amount_minor: Minor,
    reference: Reference,
    provider: Provider = "bank",
    operation_id: OperationId = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """Book money that came in."""
    body = {"invoice": invoice, "provider": provider, "reference": reference, "amount_minor": amount_minor}
    do_command("invoice.pay", body, operation_id, data_dir=data_dir, api=api, as_json=as_json)


@app.command()
def refund(
    *,
    invoice: Name,
    amount_minor: Minor,
    reference: Reference,
    provider: Provider = "bank",
    operation_id: OperationId = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """Book money given back, at most what the invoice was overpaid by."""
    body = {"invoice": invoice, "provider": provider, "reference": reference, "amount_minor": amount_minor}
    do_command("invoice.refund", body, operation_id, data_dir=data_dir, api=api, as_json=as_json)


@app.command()
def pdf(
    *,
    invoice: Name,
    into: Annotated[Path, typer.Option("--into", help="File to write.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """Write a document's PDF to a file."""
    with open_api(data_dir, api) as control:
        content = control.get_bytes(f"/admin/billing/invoices/{invoice}/pdf")
    try:
        into.write_bytes(content)
    except OSError as error:
        fail(f"{into}: {error.strerror}: choose another --into")
    if as_json:
        print_json({"file": str(into), "bytes": len(content)})
    else:
        typer.echo(f"{into}: {len(content)} bytes")


def run_command(control: Api, verb: str, body: dict[str, Any], operation_id: str | None) -> Any:
    """Carry out a money command; without an operation id it is a new one."""
    name = operation_id or f"cli-{uuid4()}"
    return control.post(f"/admin/billing/commands/{verb}", {"operation_id": name, "body": body})


def print_document(document: dict[str, Any]) -> None:
    """Head, lines and totals of a document for people."""
    heads = ("number", "document_id", "kind", "tenant", "currency", "corrects")
    print_fields({name: document[name] for name in heads if document[name]})
    print_table(
        LINES, ([line[column] for column in LINES] for line in document["lines"]), right=frozenset({"amount_minor"})
    )
    print_fields({name: document[name] for name in ("net_minor", "tax_minor", "total_minor")})


def do_command(
    verb: str, body: dict[str, Any], operation_id: str | None, *, data_dir: Path, api: str | None, as_json: bool
) -> None:
    """Carry out a money command and print its answer; for people without the documents in it."""
    with open_api(data_dir, api) as control:
        answer = run_command(control, verb, body, operation_id)
    shown = answer if as_json else {name: value for name, value in answer.items() if name not in _DOCUMENTS}
    print_answer(shown, as_json=as_json)
