"""Owns the report of the converters' bench: what must be reached, the document for machines, the page for people."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from loadtests.ratios import Target

FASTER: Final = 1.3
TARGETS: Final = (
    Target(key="faults_caught", what="share of the seeded faults that are refused", bound=1.0, is_upper=False),
    Target(key="faults_tried", what="seeded faults", bound=24, is_upper=False),
    Target(key="false_alarms", what="honest models that are refused", bound=0),
    Target(key="honest_tried", what="honest models", bound=24, is_upper=False),
    Target(key="selected_vs_fp32", what="time of the selected variant ÷ plain fp32, worst model", bound=1.02),
    Target(key="showcases_faster", what=f"showcase networks ≥ {FASTER} x faster than fp32", bound=2, is_upper=False),
    Target(key="cached_s", what="conversion of a cached model, seconds", bound=2.0),
)


def ratios_of(
    selftest: Mapping[str, Any] | None, models: Sequence[Mapping[str, Any]], cached: Mapping[str, Any] | None
) -> dict[str, float]:
    """The figures that this run can tell, by target."""
    found: dict[str, float] = {}
    if selftest is not None:
        found["faults_tried"], found["honest_tried"] = len(selftest["faults"]), len(selftest["honest"])
        found["faults_caught"] = selftest["caught"] / max(1, len(selftest["faults"]))
        found["false_alarms"] = selftest["false_alarms"]
    timed = [one["comparison"] for one in models if one["comparison"] is not None]
    if timed:
        # The source itself is as fast as itself.
        found["selected_vs_fp32"] = max(1.0 if one.get("is_source") else one["ratio"] for one in timed)
    showcases = [one for one in models if one["kind"] == "showcase"]
    if showcases:
        fast = [one for one in showcases if one["comparison"] and one["comparison"]["speedup"] >= FASTER]
        found["showcases_faster"] = len(fast)
    if cached is not None:
        found["cached_s"] = sorted(cached["wall_s"])[len(cached["wall_s"]) // 2]
    return found


def build_document(facts: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
    """Everything known of a run. `results`: "selftest", "models", "cached", "absent" and "problems"."""
    ratios = ratios_of(results["selftest"], results["models"], results["cached"])
    document = {
        "schema": 1,
        **facts,
        "ratios": ratios,
        "targets": {
            target.key: {
                "bound": target.text,
                "what": target.what,
                "is_met": target.is_met(ratios[target.key]) if target.key in ratios else None,
            }
            for target in TARGETS
        },
        **results,
    }
    rounded: dict[str, Any] = json.loads(json.dumps(document), parse_float=lambda text: round(float(text), 5))
    return rounded


def as_markdown(document: Mapping[str, Any]) -> str:
    """The targets, and the figures behind them."""
    machine, git = document["machine"], document["git"]
    lines = [
        "# The converters' bench",
        "",
        f"{document['date_utc']}, commit `{str(git['commit'])[:12]}`{' (changed)' if git['is_dirty'] else ''}, "
        f"`{document['command']}`. {machine['cores']} × {machine['cpu']}, load average before "
        f"{machine['load_average_before'][0]:.1f}. One thread a run, CPU time, medians of paired rounds.",
        "",
        "| what | `ratios` key | value | target |  |",
        "|---|---|--:|---|---|",
    ]
    for key, target in document["targets"].items():
        value = document["ratios"].get(key)
        shown = f"{value:.3f}".rstrip("0").rstrip(".") if value is not None else "– (not measured)"
        verdict = {True: "pass", False: "**fail**", None: ""}[target["is_met"]]
        lines.append(f"| {target['what']} | `{key}` | {shown} | {target['bound']} | {verdict} |")
    lines += _model_lines(document["models"])
    lines += ["", *(f"* Not measured: {name}: {why}." for name, why in document["absent"].items())]
    lines += [f"* Problem: {problem}" for problem in document["problems"]]
    for part in document.get("joined", []):
        commit = f"{str(part['git']['commit'])[:12]}{' (changed)' if part['git']['is_dirty'] else ''}"
        lines.append(f"* Measured {part['date_utc']}, commit `{commit}`: `{part['command']}`.")
    return "\n".join(lines).rstrip() + "\n"


def _model_lines(models: Sequence[Mapping[str, Any]]) -> list[str]:
    if not models:
        return []
    lines = ["", "## Models", "", "| model | selected | fp32 ms | selected ms | faster | size | error | refused |"]
    lines.append("|---|---|--:|--:|--:|--:|---|---|")
    for one in models:
        chosen = next((v for v in one["variants"] if v["status"] == "selected"), None)
        times = one["comparison"]
        shown = ("–", "–", "–") if times is None else _times(times)
        size = f"{chosen['size_bytes'] / one['source_bytes']:.2f}" if chosen else "–"
        refused = ", ".join(f"{v['engine']} {v['precision']}" for v in one["variants"] if v["status"] == "refused")
        selected = one["selected"] or "none"
        if times is not None and times.get("is_source"):
            selected += " (the source as it is)"
        cells = (one["name"], selected, *shown, size, _error(chosen), refused)
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", "Size is a share of the source's. Error: the worst output's relative RMS error where judged."]


def _times(times: Mapping[str, Any]) -> tuple[str, str, str]:
    return f"{times['fp32_ms']:.3f}", f"{times['selected_ms']:.3f}", f"{times['speedup']:.2f}x"


def _error(chosen: Mapping[str, Any] | None) -> str:
    if chosen is None or not chosen["per_output"]:
        return "–"
    return f"{max(figures['rms_rel'] or 0.0 for figures in chosen['per_output'].values()):.2g}"
