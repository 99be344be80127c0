"""Owns `tollway receipts`: signed heads, receipts of calls, their verification without any Tollway, key rotation."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
from billing.receipts.keys import ReceiptKeyError, key_id_of, open_signer, public_keys, rotate
from billing.receipts.prover import make_head, make_receipt
from billing.receipts.receipt import ReceiptError, decode_receipt, encode_receipt, verify_receipt
from gateway.commands.client import DEFAULT_DATA_DIR, DataDir, fail
from gateway.commands.output import print_json

app = typer.Typer(help="Proofs that calls are in the books, signed.", no_args_is_help=True)

Tenant = Annotated[str, typer.Option(help="Id of the tenant.")]


@app.command()
def head(*, tenant: Tenant, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """The signed head of a tenant's tree as it is now."""
    with _reading(data_dir) as db:
        made = make_head(db, tenant, open_signer(data_dir), time.time_ns())
    print_json(msgspec.to_builtins(made))


@app.command()
def show(
    *,
    call_id: Annotated[str, typer.Argument(help="The tollway-call-id of a reply.", show_default=False)],
    tenant: Tenant,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """The receipt of one posted call, to give to its tenant."""
    try:
        wanted = UUID(call_id).bytes
    except ValueError:
        fail(f"{call_id!r} is not the tollway-call-id of a reply")
    with _reading(data_dir) as db:
        receipt = make_receipt(db, tenant, wanted, open_signer(data_dir), time.time_ns())
    if receipt is None:
        fail(f"{call_id}: tenant {tenant!r} has no such posted call")
    typer.echo(encode_receipt(receipt).decode())


@app.command()
def bill(
    *,
    invoice: Annotated[str, typer.Argument(help="Number or id of the invoice.", show_default=False)],
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """The proof of one invoice, to give to its tenant for `tollway verify-bill`."""
    with _reading(data_dir) as db:
        made = make_proof(db, get_document(db, invoice), open_signer(data_dir), time.time_ns())
    typer.echo(msgspec.json.encode(made, order="deterministic").decode())


@app.command()
def keys(*, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """The public keys of all heads ever signed here: what verifiers need."""
    with _translated():
        print_json({key_id: public.hex() for key_id, public in public_keys(data_dir).items()})


@app.command("rotate-key")
def rotate_key(*, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Sign with a new key from now on; what the old one signed stays valid."""
    with _translated():
        typer.echo(rotate(data_dir).key_id)


@app.command()
def verify(
    *,
    receipt: Annotated[Path, typer.Argument(help="File with a receipt.", show_default=False)],
    public_key: Annotated[list[str], typer.Option("--public-key", help="Trusted public key (hex); may be repeated.")],
) -> None:
    """Verify a receipt with nothing but itself and public keys; exit 1 unless it holds."""
    try:
        trusted = {key_id_of(public): public for public in map(bytes.fromhex, public_key)}
        served = verify_receipt(decode_receipt(receipt.read_bytes()), trusted)
    except (ReceiptError, OSError, ValueError) as error:
        fail(f"{receipt}: {error}")
    print_json({**msgspec.structs.asdict(served), "call_id": served.call_id.hex()})


@contextmanager
def _reading(data_dir: Path) -> Iterator[sqlite3.Connection]:
    with _translated():
        db = open_ledger_reader(data_dir)
        try:
            yield db
        finally:
            db.close()


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (LedgerError, InvoiceError, ReceiptKeyError, sqlite3.Error, OSError) as error:
        fail(str(error))
