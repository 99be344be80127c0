"""Owns report.html: what was tried, what came of it and why, on one page without scripts or outside files."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

from converters.report_plot import comparison_plot, label_of

_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: #1b1f24; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; font-size: 14px; }
th, td { text-align: left; padding: .4rem .6rem; border-bottom: 1px solid #d8dee4; vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.selected { color: #1a7f37; font-weight: 600; } .accepted { color: #0550ae; } .refused { color: #b42318; }
svg { width: 100%; height: auto; margin: .5rem 0 1.5rem; } svg text { font: 12px system-ui, sans-serif; fill: #1b1f24; }
dt { font-weight: 600; } dd { margin: 0 0 .4rem 0; overflow-wrap: anywhere; }
.error { border-left: 4px solid #b42318; padding-left: 1rem; }
"""
_COLOURS: Final = ("#0550ae", "#1a7f37", "#9a6700", "#8250df", "#b42318", "#57606a")
_WIDTH: Final = 860
_LABEL: Final = 190
_BAR: Final = 480


def render_report(report: Mapping[str, Any]) -> str:
    """The page of a report, of a conversion that failed too."""
    name = escape(str(report.get("name", "")))
    variants: Sequence[Mapping[str, Any]] = report.get("variants", [])
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Conversion of {name}</title><style>{_STYLE}</style>",
        f"<h1>Conversion of {name}</h1>",
        _summary(report),
    ]
    if variants:
        parts += ["<h2>Variants</h2>", _table(variants, report.get("plain", []))]
        source_bytes = report.get("source", {}).get("bytes")
        parts.append(comparison_plot(variants, report.get("plain", []), source_bytes))
        parts.append(_batch_plot(variants, report.get("plain", [])))
        parts += ["<h2>Parity</h2>", _parity(variants)]
    parts += ["<h2>Facts</h2>", _facts(report), "</html>"]
    return "\n".join(part for part in parts if part) + "\n"


def _summary(report: Mapping[str, Any]) -> str:
    error = report.get("error")
    if error is not None:
        message, step = escape(error["message"]), escape(error["next_step"])
        return f"<p class=error><b>Nothing was published</b> ({escape(error['rule'])}): {message}.<br>Next: {step}.</p>"
    published = report["published"]
    said = "published as" if published["is_new"] else "is already"
    ratio = report["speedup"]
    speed = "not measured: it needs a GPU"
    if ratio is not None:
        speed = f"{ratio:.2f} times as fast as the plain source in ONNX Runtime"
    return f"<p><b>{escape(report['selected'])}</b> {said} version {published['version']}; {speed}.</p>"


def _table(variants: Sequence[Mapping[str, Any]], plain: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    base = plain[0]["median_ns"] if plain else 0
    for one in variants:
        speeds = one["speeds"]
        latency = f"{speeds[0]['median_ns'] / 1e6:.3f}" if speeds else "–"
        ratio = f"{base / speeds[0]['median_ns']:.2f}x" if speeds and base else "–"
        best = f"{max(speed['rows_per_s'] for speed in speeds):,.0f}" if speeds else "–"
        why = escape(one["reason"] or one["method"]) + _task(one.get("task"))
        rows.append(
            f"<tr><td>{escape(label_of(one))}<td class={one['status']}>{one['status']}"
            f"<td class=n>{latency}<td class=n>{ratio}<td class=n>{best}<td class=n>{_size(one['size_bytes'])}<td>{why}"
        )
    head = "<tr><th>Variant<th>Result<th class=n>ms, least batch<th class=n>against plain<th class=n>rows/s, best"
    return f"<table>{head}<th class=n>Size<th>Why{''.join(rows)}</table>"


def _task(task: Mapping[str, Any] | None) -> str:
    if task is None:
        return ""
    shown = "{:.2%}" if task["metric"] == "top1" else "{:.4g}"
    own, other = shown.format(task["source"]), shown.format(task["variant"])
    bound = f"at most {task['loss_bound_95']:.2%} lost, by 95 %; {task['loss_max']:.2%} allowed"
    return f"<br>{escape(task['metric'])} on {task['rows']} rows: {other}, source {own}; {bound}"


def _size(size_bytes: int) -> str:
    if not size_bytes:
        return "–"
    return f"{size_bytes / 1e6:.2f} MB" if size_bytes >= 100_000 else f"{size_bytes / 1e3:.1f} kB"


def _measured(
    variants: Sequence[Mapping[str, Any]], plain: Sequence[Mapping[str, Any]]
) -> list[tuple[str, Sequence[Mapping[str, Any]]]]:
    found = [(label_of(one), one["speeds"]) for one in variants if one["speeds"]]
    return [("plain source", plain), *found] if plain else found


def _batch_plot(variants: Sequence[Mapping[str, Any]], plain: Sequence[Mapping[str, Any]]) -> str:
    """Lines: rows per second by batch size; batch sizes are evenly spaced, as they double."""
    series = _measured(variants, plain)
    if not series or len(series[0][1]) < 2:
        return ""
    height, left, top = 260, 80, 12
    batches = [speed["rows"] for speed in series[0][1]]
    highest = max(speed["rows_per_s"] for _, speeds in series for speed in speeds)
    step = (_LABEL + _BAR - left - 40) / (len(batches) - 1)

    def at(place: int, value: float) -> tuple[float, float]:
        return left + place * step, top + height * (1 - value / highest)

    parts = [f'<path d="M{left},{top}V{top + height}H{left + step * (len(batches) - 1)}" fill=none stroke="#57606a"/>']
    for share in (0, 0.5, 1):
        _, y = at(0, highest * share)
        parts.append(f"<text x={left - 6} y={y + 4:.0f} text-anchor=end>{highest * share:,.0f}</text>")
    for place, rows in enumerate(batches):
        parts.append(f"<text x={left + place * step:.0f} y={top + height + 18} text-anchor=middle>{rows}</text>")
    for place, (label, speeds) in enumerate(series):
        colour = _COLOURS[-1] if label == "plain source" else _COLOURS[place % (len(_COLOURS) - 1)]
        points = " ".join("{:.1f},{:.1f}".format(*at(x, speed["rows_per_s"])) for x, speed in enumerate(speeds))
        x, y = _LABEL + _BAR, top + 16 + place * 20
        parts.append(f'<polyline points="{points}" fill=none stroke="{colour}" stroke-width=2 />')
        parts.append(f'<rect x={x} y={y - 9} width=12 height=10 fill="{colour}"/>')
        parts.append(f"<text x={x + 18} y={y}>{escape(label)}</text>")
    head = "<h3>Rows per second by batch size (more is better)</h3>"
    return f'{head}<svg viewBox="0 0 {_WIDTH} {top + height + 28}" role=img>{"".join(parts)}</svg>'


def _parity(variants: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for one in variants:
        for name, figures in one["per_output"].items():
            cells = "".join(
                f"<td class=n>{_figure(figures[key])}" for key in ("max_abs", "rms_rel", "cosine", "budget_used")
            )
            label = escape(label_of(one))
            rows.append(f"<tr><td>{label}<td>{escape(name)}<td class=n>{figures['cases']}{cells}")
    head = "<tr><th>Variant<th>Output<th class=n>Cases<th class=n>Greatest error<th class=n>Relative RMS error"
    return f"<table>{head}<th class=n>Cosine<th class=n>Share of budget{''.join(rows)}</table>" if rows else ""


def _figure(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3g}" if value != 1 else "1"


def _facts(report: Mapping[str, Any]) -> str:
    shown = ("source", "normal", "interface", "evidence", "host", "tools", "shapes_refused_by_source", "sandbox_gaps")
    items = [f"<dt>{escape(key)}<dd>{escape(_words(report[key]))}" for key in shown if key in report]
    return f"<dl>{''.join(items)}</dl>"


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_words(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(_words(item) for item in value) or "none"
    return "none" if value is None else str(value)
