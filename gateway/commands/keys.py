"""Owns `tollway keys`: create, list, show, rotate, revoke."""

from typing import Annotated, Any
from uuid import uuid4

import typer

from gateway.commands.client import DEFAULT_DATA_DIR, ApiUrl, AsJson, DataDir, open_api
from gateway.commands.output import parse_duration_s, print_fields, print_json, print_list

app = typer.Typer(help="API keys.", no_args_is_help=True)

KeyId = Annotated[str, typer.Argument(help="Id of the key (key_…), from `tollway keys list`.", show_default=False)]


@app.command()
def create(
    *,
    tenant: Annotated[str, typer.Option(help="Whose key it is.")],
    name: Annotated[str, typer.Option(help="A name for people.")] = "",
    scope: Annotated[list[str] | None, typer.Option(help="infer, read, admin or operate; repeatable.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="A model it may call; repeatable; default: every.")] = None,
    expires: Annotated[str | None, typer.Option(help="Lifetime: 90s, 15m, 12h, 30d; default: none.")] = None,
    parent: Annotated[str | None, typer.Option(help="Id of the key whose rights bound it.")] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """Create a key and show it, this once."""
    body: dict[str, Any] = {"tenant": tenant, "name": name, "parent": parent}
    body["expires_s"] = parse_duration_s("--expires", expires)
    if scope:
        body["scopes"] = scope
    if model:
        body["models"] = model
    with open_api(data_dir, api) as control:
        answer = control.post("/admin/keys", body)
    if as_json:
        print_json(answer)
        return
    print_fields({"key": answer["key"], **_fields(answer["details"])})
    typer.echo("Keep the key now: it is not shown again.", err=True)


@app.command("list")
def list_(
    *,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most keys to list.")] = 1_000,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """List keys, oldest first. Secrets are never listed."""
    with open_api(data_dir, api) as control:
        keys = control.get_all("/admin/keys", {"tenant": tenant}, limit)
    columns = ("key_id", "kid", "tenant", "name", "state", "scopes", "models", "expires_at")

    def cells(key: dict[str, Any]) -> list[object]:
        return [key["models"] or "every" if column == "models" else key[column] for column in columns]

    print_list(keys, columns, as_json=as_json, cells=cells)


@app.command()
def show(*, key_id: KeyId, data_dir: DataDir = DEFAULT_DATA_DIR, api: ApiUrl = None, as_json: AsJson = False) -> None:
    """Show one key, without its secrets."""
    with open_api(data_dir, api) as control:
        key = control.get(f"/admin/keys/{key_id}")
    if as_json:
        print_json(key)
    else:
        print_fields(_fields(key))


@app.command()
def rotate(
    *,
    key_id: KeyId,
    overlap: Annotated[str, typer.Option(help="How long the old secret stays valid: 0, 15m, 1h, 7d.")] = "1h",
    operation_id: Annotated[
        str | None, typer.Option(help="Repeat with the same id: rotates once. Default: a new one.")
    ] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """Give a key a new secret and show it, this once."""
    body = {"operation_id": operation_id or str(uuid4()), "overlap_s": parse_duration_s("--overlap", overlap)}
    with open_api(data_dir, api) as control:
        answer = control.post(f"/admin/keys/{key_id}/rotate", body)
    if as_json:
        print_json(answer)
        return
    print_fields(
        {
            "key": answer["key"] or "(shown when this operation was first carried out)",
            "operation_id": answer["operation_id"],
            "old secret until": answer["old_secret_valid_until"],
        }
    )


@app.command()
def revoke(*, key_id: KeyId, data_dir: DataDir = DEFAULT_DATA_DIR, api: ApiUrl = None, as_json: AsJson = False) -> None:
    """End a key, and every key it made, for ever."""
    with open_api(data_dir, api) as control:
        key = control.post(f"/admin/keys/{key_id}/revoke")
    if as_json:
        print_json(key)
    else:
        print_fields({"key_id": key["key_id"], "state": key["state"], "revoked_at": key["revoked_at"]})


def _fields(key: dict[str, Any]) -> dict[str, object]:
    return {
        "key_id": key["key_id"],
        "kid": key["kid"],
        "tenant": key["tenant"],
        "name": key["name"] or None,
        "state": key["state"],
        "scopes": key["scopes"],
        "models": key["models"] or "every",
        "parent": key["parent"],
        "created_at": key["created_at"],
        "expires_at": key["expires_at"],
        "revoked_at": key["revoked_at"],
        "live secrets": len(key["secrets"]),
    }
