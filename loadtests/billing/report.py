"""Owns the report of the money bench: its figures beside their targets, as JSON and Markdown."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from loadtests.billing.figures import Figure
from loadtests.ratios import Target

TARGETS: Final = (
    Target(
        key="meter_sqlite_eps", what="rating and posting on SQLite, events/s per core", bound=20_000, is_upper=False
    ),
    Target(
        key="meter_postgres_eps",
        what="the same on PostgreSQL, meter and server on one core",
        bound=10_000,
        is_upper=False,
    ),
    Target(key="ledger_bytes_per_call", what="growth of the ledger per call, the larger of both, bytes", bound=300),
    Target(key="prepaid_us_per_call", what="CPU that prepaid adds to a worker per call, µs", bound=3),
    Target(key="lease_refill_commands", what="commands to Valkey per call that needs no refill", bound=0),
)


def build_document(
    facts: Mapping[str, Any],
    stores: Mapping[str, Mapping[str, float]],
    figures: Mapping[str, Figure],
    problems: Sequence[str],
) -> dict[str, Any]:
    """Everything known of a run. `stores`: medians by store; `figures`: those that other measurements brought in."""
    values: dict[str, float | None] = {
        "meter_sqlite_eps": _of(stores, "sqlite", "events_per_core_s"),
        "meter_postgres_eps": _of(stores, "postgresql", "events_per_core_s"),
        "ledger_bytes_per_call": max((one["ledger_bytes_per_call"] for one in stores.values()), default=None),
        **{key: figure.value for key, figure in figures.items()},
    }
    document = {
        "schema": 1,
        **facts,
        **values,
        "targets": {
            target.key: {
                "bound": target.text,
                "what": target.what,
                "is_met": None if (value := values.get(target.key)) is None else target.is_met(value),
            }
            for target in TARGETS
        },
        "not_measured": {key: figure.reason for key, figure in figures.items() if figure.value is None},
        "stores": stores,
        "problems": list(problems),
    }
    rounded: dict[str, Any] = json.loads(json.dumps(document), parse_float=lambda text: round(float(text), 3))
    return rounded


def _of(stores: Mapping[str, Mapping[str, float]], store: str, key: str) -> float | None:
    return stores[store][key] if store in stores else None


def as_markdown(document: Mapping[str, Any]) -> str:
    """The targets, and the figures behind them."""
    machine, git = document["machine"], document["git"]
    lines = [
        "# The bench of money",
        "",
        f"{document['date_utc']}, commit `{str(git['commit'])[:12]}`{' (changed files)' if git['is_dirty'] else ''}, "
        f"`{document['command']}`. {machine['cores']} × {machine['cpu']}, load average before "
        f"{machine['load_average_before'][0]:.1f}; ledgers on {document['file_system']}. Rounds alternate, medians. "
        "Rates are per CPU second, of the meter and, on PostgreSQL, the server together.",
        "",
        "| what | key | value | target |  |",
        "|---|---|--:|---|---|",
    ]
    for key, target in document["targets"].items():
        value = document[key]
        shown = f"{value:,.1f}" if value is not None else f"– ({document['not_measured'].get(key, 'failed')})"
        verdict = {True: "pass", False: "**fail**", None: ""}[target["is_met"]]
        lines.append(f"| {target['what']} | `{key}` | {shown} | {target['bound']} | {verdict} |")
    lines += [
        "",
        "| store | events/s per core (rounds: lowest, highest) | meter µs | server µs | wall µs | ledger bytes |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for store, one in document["stores"].items():
        lines.append(
            f"| {store} | {one['events_per_core_s']:,.0f} ({one['events_per_core_s_min']:,.0f}, "
            f"{one['events_per_core_s_max']:,.0f}) | {one['meter_us']:.2f} | {one['server_us']:.2f} | "
            f"{one['wall_us']:.2f} | {one['ledger_bytes_per_call']:.0f} |"
        )
    lines += ["", *(f"Problem: {problem}" for problem in document["problems"])]
    return "\n".join(lines).rstrip() + "\n"
