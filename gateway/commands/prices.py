"""Owns `tollway prices` and `tollway price`: price books and what calls would cost."""

from typing import Annotated, Any

import typer

from billing.money import format_nanos
from gateway.commands.client import DEFAULT_DATA_DIR, ApiUrl, AsJson, DataDir, open_api
from gateway.commands.files import File, file_body
from gateway.commands.output import print_fields, print_json, print_table

app = typer.Typer(help="Price books: what each call costs, by version.", no_args_is_help=True)
BOOKS = ("version", "currency", "models", "is_in_force", "created_at")
_NUMBERS = frozenset({"per call", "per row", "per compute ms", "version", "models", "amount"})


@app.command()
def apply(*, file: File, data_dir: DataDir = DEFAULT_DATA_DIR, api: ApiUrl = None, as_json: AsJson = False) -> None:
    """Put a price book with a higher version in force. Recorded calls keep the version that they name."""
    body = file_body(file)
    with open_api(data_dir, api) as control:
        found = control.post("/admin/prices", body)
    if as_json:
        print_json(found)
        return
    print_fields(found)


@app.command("list")
def list_(
    *,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="Most versions to list.")] = 100,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """List every price book ever given, newest first."""
    with open_api(data_dir, api) as control:
        found = control.get("/admin/prices/versions", {"limit": limit})["items"]
    if as_json:
        print_json(found)
        return
    print_table(BOOKS, ([one[column] for column in BOOKS] for one in found), right=_NUMBERS)


@app.command()
def show(*, data_dir: DataDir = DEFAULT_DATA_DIR, api: ApiUrl = None, as_json: AsJson = False) -> None:
    """Show the price book in force."""
    with open_api(data_dir, api) as control:
        found = control.get("/admin/prices")
    if as_json:
        print_json(found)
        return
    print_fields({"version": found["version"], "currency": found["currency"]})
    models = {"(all others)": found["default"]} | found["models"]
    columns = ("model", "per call", "per row", "per compute ms", "compute ms at most")
    print_table(columns, map(_row, models.items()), right=_NUMBERS)


def quote(
    *,
    model: Annotated[str, typer.Argument(help="Name of the model.", show_default=False)],
    rows: Annotated[int, typer.Option(min=0, help="Rows (images, tokens) of one call.")] = 1,
    compute_ms: Annotated[int, typer.Option(min=0, help="Compute milliseconds of one call.")] = 0,
    byte_count: Annotated[int, typer.Option("--bytes", min=0, help="Bytes of request and reply of one call.")] = 0,
    calls: Annotated[int, typer.Option(min=0, help="Such calls in a month.")] = 1,
    plan: Annotated[str | None, typer.Option(help="Under this plan; default: list prices.")] = None,
    packs: Annotated[int, typer.Option(min=0, help="QPS packs of the plan.")] = 0,
    version: Annotated[int | None, typer.Option(min=1, help="Price book; default: the one in force.")] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """Say what calls would cost, by the code that bills them."""
    body: dict[str, Any] = {"model": model, "rows": rows, "compute_ms": compute_ms, "byte_count": byte_count}
    body |= {"calls": calls, "plan": plan, "packs": packs, "version": version}
    with open_api(data_dir, api) as control:
        found = control.post("/admin/prices/quote", body)
    if as_json:
        print_json(found)
        return
    print_fields({"model": model, "plan": plan, "price book": found["price_version"], "one call": found["call"]})
    lines = [(f"{calls} calls at list price", format_nanos(found["list_nanos"]))]
    lines += [(line["description"], line["amount"]) for line in found["lines"]]
    lines += [("monthly fees", format_nanos(found["fee_nanos"])), (f"total {found['currency']}", found["total"])]
    print_table(("line", "amount"), lines, right=_NUMBERS)


def _row(entry: tuple[str, dict[str, int]]) -> list[str]:
    model, price = entry
    prices = (price[f"per_{unit}_nanos"] for unit in ("call", "row", "compute_ms"))
    return [model, *(format_nanos(nanos) for nanos in prices), str(price["compute_ms_max"] or "-")]
