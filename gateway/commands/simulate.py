"""Owns `tollway plans simulate`: recorded usage against another plan, as a table, JSON or a picture."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from billing.money import format_nanos
from gateway.commands.client import DEFAULT_DATA_DIR, Api, ApiUrl, AsJson, DataDir, fail, open_api
from gateway.commands.files import file_body
from gateway.commands.invoices import Zone
from gateway.commands.output import parse_day_ns, parse_duration_s, print_fields, print_json, print_table

_TOTALS: Final = ("calls", "admitted", "recorded_nanos", "would_be_nanos", "change_nanos")
#: As many as an installation may have.
TENANTS_MAX: Final = 10_000
_ADMITTED: Final = "#15803d"
_REFUSED: Final = "#b91c1c"
_BEFORE: Final = "#94a3b8"
_AFTER: Final = "#c2410c"


def simulate(
    *,
    tenant: Annotated[
        list[str] | None, typer.Argument(help="Tenants; default: all that are on the plan.", show_default=False)
    ] = None,
    since: Annotated[str, typer.Option(help="First day, such as 2026-01-01.")],
    until: Annotated[str, typer.Option(help="The day behind the last.")],
    zone: Zone = "UTC",
    plan: Annotated[str | None, typer.Option(help="A plan by name; default: the tenant's own.")] = None,
    file: Annotated[Path | None, typer.Option(help="Take the plan from this catalogue file instead.")] = None,
    prices: Annotated[Path | None, typer.Option(help="A price book; default: the one in force.")] = None,
    packs: Annotated[int, typer.Option(min=0, help="QPS packs of the plan.")] = 0,
    limit: Annotated[
        list[str] | None, typer.Option("--set", help="Replace a limit, such as calls_per_day=500; none lifts it.")
    ] = None,
    step: Annotated[str, typer.Option(help="Time per point of the series, such as 1h.")] = "1h",
    plot: Annotated[Path | None, typer.Option(help="Write a picture (PNG) here; needs matplotlib.")] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    api: ApiUrl = None,
    as_json: AsJson = False,
) -> None:
    """Replay recorded usage against another plan: who would be refused, when, and what revenue changes."""
    body = {
        "since_ns": parse_day_ns("--since", since, zone),
        "until_ns": parse_day_ns("--until", until, zone),
        "plan": plan,
        "packs": packs,
        "limits": _limits(limit or []),
        "bucket_s": parse_duration_s("--step", step),
        "file": None if file is None else file_body(file),
        "prices": None if prices is None else file_body(prices),
    }
    with open_api(data_dir, api) as control:
        names = tenant or _on_plan(control, plan)
        found = [control.post("/admin/plans/simulate", body | {"tenant": name}) for name in names]
    if plot is not None:
        draw(merge(found), plot)
    if as_json:
        print_json(found[0] if tenant is not None and len(tenant) == 1 else found)
        return
    if len(found) == 1:
        _print(found[0])
    else:
        _print_all(found)
    if plot is not None:
        typer.echo(f"wrote {plot}")


def _on_plan(control: Api, plan: str | None) -> list[str]:
    """Every tenant on `plan`, or every tenant. Ends the command when there is none."""
    everyone = control.get_all("/admin/tenants", {}, TENANTS_MAX)
    names = [str(one["tenant"]) for one in everyone if plan in {None, one["plan"]}]
    if not names:
        fail(f"no tenant is on plan {plan!r}: name tenants to simulate")
    return names


def merge(found: list[dict[str, Any]]) -> dict[str, Any]:
    """One simulation of many tenants: calls and money added up, step by step."""
    if len(found) == 1:
        return found[0]
    steps: dict[int, list[int]] = {}
    for one in found:
        for step in one["series"]:
            sums = steps.setdefault(step["at_ns"], [0, 0])
            sums[0] += step["admitted"]
            sums[1] += step["refused"]
    totals = {name: sum(one[name] for one in found) for name in _TOTALS}
    series = [{"at_ns": at_ns, "admitted": sums[0], "refused": sums[1]} for at_ns, sums in sorted(steps.items())]
    would_be = format_nanos(totals["would_be_nanos"])
    return found[0] | totals | {"tenant": f"{len(found)} tenants", "series": series, "would_be": would_be}


def _print_all(found: list[dict[str, Any]]) -> None:
    columns = ("tenant", "calls", "refused", "by", "first refused", "recorded", "under the plan", "change")
    rows = [_row(one) for one in found]
    total = merge(found)
    rows.append(_row(total | {"refused": {}}))
    print_table(columns, rows, right=frozenset(columns) - {"tenant", "by", "first refused"})


def _row(one: dict[str, Any]) -> tuple[object, ...]:
    first = min((limit["first_at"] for limit in one["refused"].values()), default=None)
    return (
        one["tenant"],
        one["calls"],
        one["calls"] - one["admitted"],
        list(one["refused"]),
        first,
        format_nanos(one["recorded_nanos"]),
        one["would_be"],
        format_nanos(one["change_nanos"]),
    )


def _limits(given: list[str]) -> dict[str, int | None]:
    limits: dict[str, int | None] = {}
    for text in given:
        name, _, value = text.partition("=")
        if value != "none" and not value.isdecimal():
            fail(f"--set {text!r}: write NAME=NUMBER, such as calls_per_day=500, or NAME=none")
        limits[name] = None if value == "none" else int(value)
    return limits


def _print(found: dict[str, Any]) -> None:
    fields = {name: found[name] for name in ("tenant", "since", "until", "currency", "price_version")}
    fields |= {"plan": found["plan"]["name"], "calls": found["calls"], "admitted": found["admitted"]}
    print_fields(fields)
    refused = found["refused"]
    print_table(
        ("refused by", "calls", "first", "last"),
        ((code, one["calls"], one["first_at"], one["last_at"]) for code, one in refused.items()),
        right=frozenset({"calls"}),
    )
    rows = []
    for month in found["months"]:
        rows.append((month["start"], "list prices", format_nanos(month["list_nanos"])))
        rows += [(month["start"], line["description"], line["amount"]) for line in month["lines"]]
        rows.append((month["start"], "fees", format_nanos(month["fee_nanos"])))
        rows.append((month["start"], "total", month["total"]))
    print_table(("month", "line", "amount"), rows, right=frozenset({"amount"}))
    print_fields(
        {
            "recorded at list prices": format_nanos(found["recorded_nanos"]),
            "under this plan": found["would_be"],
            "change": format_nanos(found["change_nanos"]),
        }
    )


def draw(found: dict[str, Any], file: Path) -> None:
    """Write the picture of a simulation: calls admitted and refused over time, money recorded and simulated."""
    try:
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
        from matplotlib.figure import Figure
    except ImportError:
        fail("--plot needs matplotlib: install it beside tollway (pip install matplotlib), or leave --plot out")
    figure = Figure(figsize=(12, 5), layout="constrained")
    calls, money = figure.subplots(1, 2, width_ratios=[3, 1])
    series = found["series"]
    at = [float(date2num(datetime.fromtimestamp(one["at_ns"] / 1e9, UTC))) for one in series]
    width = found["bucket_s"] / 86_400
    admitted = [one["admitted"] for one in series]
    calls.bar(at, admitted, width, align="edge", color=_ADMITTED, label="admitted")
    calls.bar(at, [one["refused"] for one in series], width, admitted, align="edge", color=_REFUSED, label="refused")
    locator = AutoDateLocator()
    calls.xaxis.set_major_locator(locator)
    calls.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    calls.set_ylabel(f"calls per {found['bucket_s']} s")
    calls.set_title(f"{found['calls']} calls, {found['calls'] - found['admitted']} refused")
    # Room above the bars: the legend must not hide a peak.
    calls.set_ylim(top=1.2 * max((one["admitted"] + one["refused"] for one in series), default=1))
    calls.legend(loc="upper right", ncols=2)
    bars = money.bar(
        ["recorded", "under the plan"],
        [found["recorded_nanos"] / 1e9, found["would_be_nanos"] / 1e9],
        color=[_BEFORE, _AFTER],
    )
    money.bar_label(bars, [format_nanos(found["recorded_nanos"]), found["would_be"]], padding=2)
    money.margins(y=0.12)
    money.set_ylabel(found["currency"])
    money.set_title("revenue")
    figure.suptitle(f"{found['tenant']} on plan {found['plan']['name']}, prices {found['price_version']}")
    try:
        figure.savefig(file, dpi=110, format="png")
    except OSError as error:
        fail(f"--plot {file}: {error.strerror}")
