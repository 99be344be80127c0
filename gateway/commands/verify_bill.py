"""Owns `tollway verify-bill`: checks an invoice against its proof, offline, with nothing but public keys."""

from pathlib import Path
from typing import Annotated

import typer

from billing.receipts.bill import decode_invoice, decode_proof
from billing.receipts.bill import verify_bill as verify
from billing.receipts.keys import key_id_of
from billing.receipts.receipt import ReceiptError
from gateway.commands.client import fail


def verify_bill(
    *,
    invoice: Annotated[Path, typer.Argument(help="File with the invoice as JSON.", show_default=False)],
    receipts: Annotated[Path, typer.Option(help="File with the proof (`tollway receipts bill`).")],
    public_key: Annotated[list[str], typer.Option("--public-key", help="Trusted public key (hex); may be repeated.")],
) -> None:
    """Verify an invoice to the last call and nano; exit 1 unless everything holds."""
    try:
        trusted = {key_id_of(public): public for public in map(bytes.fromhex, public_key)}
        document = decode_invoice(invoice.read_bytes())
        calls = verify(document, decode_proof(receipts.read_bytes()), trusted)
    except (ReceiptError, OSError, ValueError) as error:
        fail(f"{invoice}: {error}")
    typer.echo(f"{document.number}: {calls} calls, {document.total_minor} minor units {document.currency}: verified")
