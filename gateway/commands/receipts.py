"""Owns `tollway receipts`: signed heads, receipts and proofs by control; their verification without any Tollway."""

import sqlite3
import time
from pathlib import Path
from typing import Annotated
from uuid import UUID

import msgspec
import typer

from billing.invoices.assemble import InvoiceError
from billing.invoices.store import get_document
from billing.ledger.opening import open_ledger_reader
from billing.ledger.port import LedgerError
from billing.receipts.bill import make_proof
from billing.receipts.heads import decode_consistency, decode_head, verify_consistency
from billing.receipts.keys import ReceiptKeyError, key_id_of, open_signer
from billing.receipts.receipt import ReceiptError, decode_receipt, verify_receipt
from gateway.commands.client import DEFAULT_DATA_DIR, ApiUrl, AsJson, DataDir, fail, open_api
from gateway.commands.output import print_fields, print_json, print_list

app = typer.Typer(help="Proofs that calls are in the books, signed.", no_args_is_help=True)

Tenant = Annotated[str, typer.Option(help="Id of the tenant.")]
PublicKeys = Annotated[list[str], typer.Option("--public-key", help="Trusted public key (hex); may be repeated.")]
COLUMNS = ("size", "root", "at_ns", "key_id")


@app.command()
def head(*, tenant: Tenant, data_dir: DataDir = DEFAULT_DATA_DIR, api: ApiUrl = None) -> None:
    """A published head over all posted calls of a tenant."""
    with open_api(data_dir, api) as control:
        print_json(control.get("/admin/receipts/head", {"tenant": tenant}))


@app.command()
def heads(
    *,
    tenant: Tenant,
    limit: Annotated[int, typer.Option(min=1, help="Most heads to list.")] = 1_000,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """Every published head of a tenant, smallest first."""
    with open_api(data_dir, api) as control:
        found = control.get_all("/admin/receipts/heads", {"tenant": tenant}, limit)
    print_list(found, COLUMNS, as_json=as_json, right=frozenset({"size"}))


@app.command()
def show(
    *,
    call_id: Annotated[str, typer.Argument(help="The tollway-call-id of a reply.", show_default=False)],
    tenant: Tenant,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
) -> None:
    """The receipt of one posted call, to give to its tenant."""
    try:
        wanted = UUID(call_id)
    except ValueError:
        fail(f"{call_id!r} is not the tollway-call-id of a reply")
    with open_api(data_dir, api) as control:
        typer.echo(control.get_bytes(f"/admin/receipts/calls/{wanted}", {"tenant": tenant}).decode())


@app.command()
def consistency(
    *,
    tenant: Tenant,
    first: Annotated[int, typer.Option(min=1, help="Size of the head that the tenant holds.")],
    second: Annotated[int | None, typer.Option(min=1, help="Of a newer head; default: the newest.")] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
) -> None:
    """What shows that a tenant's newer head continues the older one; for `compare`."""
    with open_api(data_dir, api) as control:
        query: dict[str, str | int | None] = {"tenant": tenant, "first": first, "second": second}
        typer.echo(control.get_bytes("/admin/receipts/consistency", {**query}).decode())


@app.command()
def bill(
    *,
    invoice: Annotated[str, typer.Argument(help="Number or id of the invoice.", show_default=False)],
    local: Annotated[
        bool, typer.Option("--local", help="Read the ledger of --data-dir here: for tenants too large for control.")
    ] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
) -> None:
    """The proof of one invoice, to give to its tenant for `tollway verify-bill`."""
    if local:
        typer.echo(_local_proof(data_dir, invoice).decode())
        return
    with open_api(data_dir, api) as control:
        typer.echo(control.get_bytes(f"/admin/receipts/bills/{invoice}").decode())


@app.command()
def keys(*, data_dir: DataDir = DEFAULT_DATA_DIR, api: ApiUrl = None) -> None:
    """The public keys of all heads ever signed here: what verifiers need."""
    with open_api(data_dir, api) as control:
        print_json(control.get("/admin/receipts/keys"))


@app.command("rotate-key")
def rotate_key(*, data_dir: DataDir = DEFAULT_DATA_DIR, api: ApiUrl = None) -> None:
    """Sign with a new key from now on; what the old one signed stays valid."""
    with open_api(data_dir, api) as control:
        typer.echo(control.post("/admin/receipts/rotate-key")["key_id"])


@app.command()
def verify(
    *,
    receipt: Annotated[Path, typer.Argument(help="File with a receipt.", show_default=False)],
    public_key: PublicKeys,
) -> None:
    """Verify a receipt with nothing but itself and public keys; exit 1 unless it holds."""
    try:
        served = verify_receipt(decode_receipt(receipt.read_bytes()), _trusted(public_key))
    except (ReceiptError, OSError, ValueError) as error:
        fail(f"{receipt}: {error}")
    print_json({**msgspec.structs.asdict(served), "call_id": served.call_id.hex()})


@app.command()
def compare(
    *,
    held: Annotated[Path, typer.Argument(help="File with a head, or a receipt, got earlier.", show_default=False)],
    proof: Annotated[Path, typer.Argument(help="File that `receipts consistency` gave now.", show_default=False)],
    public_key: PublicKeys,
) -> None:
    """Check offline that the books still begin with what was once signed; exit 1 unless they do."""
    try:
        newer = decode_consistency(proof.read_bytes())
        added = verify_consistency(newer, decode_head(held.read_bytes()), _trusted(public_key))
    except (ReceiptError, OSError, ValueError) as error:
        fail(f"{held}, {proof}: {error}")
    print_fields({"tenant": newer.first.tenant, "size": newer.second.size, "transactions_since": added})


def _trusted(public_key: list[str]) -> dict[str, bytes]:
    return {key_id_of(public): public for public in map(bytes.fromhex, public_key)}


def _local_proof(data_dir: Path, invoice: str) -> bytes:
    try:
        db = open_ledger_reader(data_dir)
        try:
            made = make_proof(db, get_document(db, invoice), open_signer(data_dir), time.time_ns())
        finally:
            db.close()
    except (LedgerError, InvoiceError, ReceiptKeyError, sqlite3.Error, OSError) as error:
        fail(str(error))
    return msgspec.json.encode(made, order="deterministic")
