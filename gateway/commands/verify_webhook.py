"""Owns `tollway verify-webhook`: checks the signature of a received webhook, offline, with the endpoint's secret."""

import os
import time
from pathlib import Path
from typing import Annotated, Final

import typer

from billing.webhooks.signing import (
    ID_HEADER,
    SIGNATURE_HEADER,
    TIMESTAMP_HEADER,
    SignatureError,
    decode_secret,
    verify,
)
from gateway.commands.client import fail

#: Where the secret is read from: arguments are seen by everybody on the machine.
SECRET_VARIABLE: Final = "TOLLWAY_WEBHOOK_SECRET"  # noqa: S105 - a name, not a secret


def verify_webhook(
    *,
    body: Annotated[Path, typer.Argument(help="File with the message's body, byte for byte.", show_default=False)],
    message_id: Annotated[str, typer.Option("--id", help="The header webhook-id.")],
    timestamp: Annotated[str, typer.Option(help="The header webhook-timestamp.")],
    signature: Annotated[str, typer.Option(help="The header webhook-signature.")],
    ignore_age: Annotated[bool, typer.Option("--ignore-age", help="Accept a message of any age.")] = False,
) -> None:
    """Verify a webhook as its receiver has to; exit 1 unless the signature fits and the message is fresh."""
    secret = os.environ.get(SECRET_VARIABLE, "")
    if not secret:
        fail(f"{SECRET_VARIABLE} is not set: export the endpoint's secret, which was shown when it was made")
    headers = {ID_HEADER: message_id, TIMESTAMP_HEADER: timestamp, SIGNATURE_HEADER: signature}
    try:
        now_s = int(timestamp) if ignore_age and timestamp.isdigit() else int(time.time())
        verify([decode_secret(secret)], headers, body.read_bytes(), now_s)
    except (SignatureError, OSError, ValueError) as error:
        fail(f"{body}: {error}")
    typer.echo(f"{message_id}: verified")
