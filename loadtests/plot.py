"""Owns the picture of a report: CPU per call for HTTP and gRPC, ratios against their bounds, the worker's memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from matplotlib.figure import Figure

from loadtests.ratios import TARGETS

_OURS: Final = "#c2410c"
_THEIRS: Final = "#94a3b8"
_GOOD: Final = "#15803d"
_BAD: Final = "#b91c1c"
_ROLE_COLOURS: Final = {
    "worker": "#c2410c",
    "meter": "#ea9a5b",
    "quota": "#f2c199",
    "control": "#7c2d12",
    "supervisor": "#431407",
}


def draw(document: Mapping[str, Any], file: Path) -> None:
    """Write the picture; parts that were not measured say so."""
    figure = Figure(figsize=(13, 8.5), layout="constrained")
    axes = figure.subplots(2, 2)
    _draw_cpu(axes[0][0], document, "http_1k_c64", "HTTP/1.1, 1 KB, c=64")
    _draw_cpu(axes[0][1], document, "grpc_1k_c64", "gRPC, 1 KB, c=64")
    _draw_ratios(axes[1][0], document)
    _draw_memory(axes[1][1], document)
    git = document["git"]["commit"][:12]
    figure.suptitle(f"Tollway side by side, {document['date_utc']}, commit {git}, {document['machine']['cpu']}")
    figure.savefig(file, dpi=110)


def _say_nothing(axis: Any, title: str) -> None:
    axis.set_title(f"{title}: not measured")
    axis.set_axis_off()


def _draw_cpu(axis: Any, document: Mapping[str, Any], scenario: str, title: str) -> None:
    group = document["medians"].get(scenario, {})
    bars = sorted(
        ((s["cpu_us"], name, s["cpu_us_by_role"]) for name, s in group.items() if s["cpu_us"] is not None), reverse=True
    )
    if not bars:
        _say_nothing(axis, title)
        return
    # One slow peer would squeeze all others to nothing: its bar is cut and its figure written beside it.
    ordered = sorted(cpu for cpu, _, _ in bars)
    limit = 3 * ordered[len(ordered) // 2]
    for name_at, (cpu, name, roles) in enumerate(bars):
        if name.startswith("tollway"):
            left = 0.0
            for role in sorted(roles, key=lambda r: list(_ROLE_COLOURS).index(r) if r in _ROLE_COLOURS else 99):
                width = min(roles[role], limit - left)
                axis.barh(name_at, width, left=left, color=_ROLE_COLOURS.get(role, _OURS), label=role)
                left += width
        else:
            axis.barh(name_at, min(cpu, limit), color=_THEIRS)
        text = f" {cpu:,.1f}" + (" (cut)" if cpu > limit else "")
        axis.text(min(cpu, limit), name_at, text, va="center", fontsize=9)
    axis.set_yticks(range(len(bars)), [name for _, name, _ in bars])
    axis.set_xlim(0, 1.25 * min(limit, bars[0][0]))
    axis.set_xlabel("CPU µs per call, whole process tree (median)")
    axis.set_title(title)
    handles, labels = axis.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    if unique:
        axis.legend(unique.values(), unique.keys(), fontsize=8, loc="upper right")


def _draw_ratios(axis: Any, document: Mapping[str, Any]) -> None:
    known = [target for target in reversed(TARGETS) if target.key in document["ratios"]]
    if not known:
        _say_nothing(axis, "Ratios")
        return
    for at, target in enumerate(known):
        value = document["ratios"][target.key]
        # Share of the bound that is used up: 1 is just met, whichever way the bound points.
        share = value / target.bound if target.is_upper else target.bound / value
        axis.barh(at, min(share, 2.0), color=_GOOD if target.is_met(value) else _BAD)
        axis.text(min(share, 2.0), at, f" {value:.3g} ({target.text})", va="center", fontsize=9)
    axis.axvline(1.0, color="black", linewidth=1)
    axis.set_yticks(range(len(known)), [target.key for target in known])
    axis.set_xlim(0, 2.6)
    axis.set_xlabel("share of the bound that is used up (left of the line: met; cut at 2)")
    axis.set_title("Targets")


def _draw_memory(axis: Any, document: Mapping[str, Any]) -> None:
    memory = document["memory"]
    if memory is None:
        _say_nothing(axis, "Worker memory")
        return
    calls = [at / 1000 for at, _ in memory["points"]]
    axis.plot(calls, [mb for _, mb in memory["points"]], color=_OURS, marker="o", markersize=3)
    axis.axhline(80, color="black", linewidth=1, linestyle="--", label="bound")
    axis.set_ylim(0, max(90.0, 1.1 * memory["rss_mb"]))
    axis.set_xlabel("thousand calls")
    axis.set_ylabel("worker RSS, MB")
    axis.set_title("Worker memory, all on")
    axis.legend(fontsize=8)
