"""Owns `tollway admin`: the admin token, the state of control, the audit trail."""

from typing import Annotated

import typer

from gateway.commands.client import DEFAULT_DATA_DIR, ApiUrl, AsJson, DataDir, open_api
from gateway.commands.output import parse_duration_s, print_fields, print_json, print_list

app = typer.Typer(help="Control itself.", no_args_is_help=True)
COLUMNS = ("seq", "at", "actor", "action", "subject")


@app.command("rotate-token")
def rotate_token(
    *,
    expires: Annotated[str | None, typer.Option(help="Lifetime: 12h, 90d; default: none.")] = None,
    overlap: Annotated[str, typer.Option(help="How long the old token stays valid: 0, 15m, 1h.")] = "0",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """Make a new admin token and show it, this once. Through the socket it works without the old one."""
    body = {
        "expires_s": parse_duration_s("--expires", expires),
        "overlap_s": parse_duration_s("--overlap", overlap),
    }
    with open_api(data_dir, api) as control:
        answer = control.post("/admin/token/rotate", body)
    if as_json:
        print_json(answer)
        return
    print_fields({"token": answer["token"], "expires_at": answer["expires_at"]})
    typer.echo("Keep the token now: it is not shown again.", err=True)


@app.command()
def status(*, data_dir: DataDir = DEFAULT_DATA_DIR, api: ApiUrl = None, as_json: AsJson = False) -> None:
    """What control knows about itself."""
    with open_api(data_dir, api) as control:
        answer = control.get("/admin/status")
    if as_json:
        print_json(answer)
    else:
        print_fields(answer)


@app.command()
def audit(
    *,
    limit: Annotated[int, typer.Option(min=1, help="Most rows to list.")] = 1_000,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """Who changed what and when; --json also shows before and after."""
    with open_api(data_dir, api) as control:
        rows = control.get_all("/admin/audit", {}, limit)
    print_list(rows, COLUMNS, as_json=as_json)
