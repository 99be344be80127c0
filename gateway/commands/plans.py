"""Owns `tollway plans`: list, show, add, and the mount of the verbs about money and of the simulator."""

import json
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.commands import plan_money
from gateway.commands.client import DEFAULT_DATA_DIR, ApiUrl, AsJson, DataDir, fail, open_api
from gateway.commands.output import print_json, print_table
from gateway.commands.simulate import simulate

app = typer.Typer(help="Plans: what a tenant may do, and whether it pays.", no_args_is_help=True)

FILE_BYTES_MAX = 1024 * 1024
COLUMNS = (
    "name",
    "version",
    "pricing",
    "rate",
    "burst",
    "concurrency",
    "calls_per_day",
    "calls_per_month",
    "store_down",
)
NUMBERS = frozenset({"version", "burst", "concurrency", "calls_per_day", "calls_per_month"})


@app.command("list")
def list_(
    *,
    limit: Annotated[int, typer.Option(min=1, help="Most plans to list.")] = 1_000,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """List the newest version of each plan."""
    with open_api(data_dir, api) as control:
        _print(control.get_all("/admin/plans", {}, limit), as_json=as_json)


@app.command()
def show(
    *,
    name: Annotated[str, typer.Argument(help="Name of the plan.", show_default=False)],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """Show every version of a plan; the last one applies."""
    with open_api(data_dir, api) as control:
        _print(control.get(f"/admin/plans/{name}")["items"], as_json=as_json)


@app.command()
def add(
    *,
    file: Annotated[Path, typer.Argument(help="TOML or JSON: one plan, or a list `plans`.", show_default=False)],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """Add plans from a file. A known name with other values becomes its next version."""
    wanted = read_plans(file)
    with open_api(data_dir, api) as control:
        _print([control.post("/admin/plans", plan) for plan in wanted], as_json=as_json)


for _verb in (
    plan_money.apply,
    plan_money.terms,
    plan_money.coupons,
    plan_money.subscribe,
    plan_money.redeem,
    plan_money.grant,
    plan_money.credit,
    plan_money.settle,
    plan_money.months,
    simulate,
):
    app.command()(_verb)


def read_plans(file: Path) -> list[Any]:
    """The plans in `file`; control checks their fields. Ends the command when it is not TOML or JSON."""
    try:
        data = file.read_bytes()
        if len(data) > FILE_BYTES_MAX:
            fail(f"{file} is larger than {FILE_BYTES_MAX} bytes")
        raw = json.loads(data) if file.suffix.lower() == ".json" else tomllib.loads(data.decode())
    except OSError as error:
        fail(f"{file}: {error.strerror}")
    except ValueError as error:
        fail(f"{file} is not valid {'JSON' if file.suffix.lower() == '.json' else 'TOML'}: {error}")
    plans = raw.get("plans", [raw]) if isinstance(raw, dict) else raw
    if not isinstance(plans, list) or not plans:
        fail(f"{file} holds no plan: write one table, or a list `plans` of them")
    return plans


def _print(plans: list[Any], *, as_json: bool) -> None:
    if as_json:
        print_json(plans)
        return
    print_table(COLUMNS, ([_rate(plan) if c == "rate" else plan[c] for c in COLUMNS] for plan in plans), right=NUMBERS)


def _rate(plan: dict[str, Any]) -> str | None:
    if plan["rate_calls"] is None:
        return None
    window_s = plan["rate_window_s"]
    return f"{plan['rate_calls']}/{'' if window_s == 1 else window_s}s"
