"""Owns the report: one document with every figure, as JSON and as Markdown, and the table for the terminal."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from loadtests.checks import Check
from loadtests.contenders import Contender
from loadtests.engine import EngineResult
from loadtests.measure import Sample, Summary, summarise
from loadtests.memory import MemoryResult
from loadtests.ratios import TARGETS, added_latencies, flat_ratios

SCHEMA: Final = 1
_DIGITS: Final = 4


def build_document(
    facts: Mapping[str, Any],
    *,
    samples: list[Sample],
    contenders: Iterable[Contender],
    engine: EngineResult | None,
    memory: MemoryResult | None,
    checks: list[Check],
    problems: list[str],
) -> dict[str, Any]:
    """Everything known of a run. `facts`: date, commit, command, mode, machine, tools."""
    summaries = summarise(samples)
    ratios = flat_ratios(summaries, engine.ratio if engine else None, memory.rss_mb if memory else None)
    added = added_latencies(summaries)
    document = {
        "schema": SCHEMA,
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
        "beside": _beside(added, engine),
        "contenders": {contender.name: contender.note for contender in contenders},
        "medians": {
            scenario: {name: asdict(summary) for name, summary in group.items()}
            for scenario, group in summaries.items()
        },
        "added_p50_us_at_c1": added,
        "engine": asdict(engine) if engine else None,
        "memory": {**asdict(memory), "is_flat": memory.is_flat} if memory else None,
        "checks": [asdict(check) for check in checks],
        "problems": problems,
        "samples": [asdict(sample) for sample in samples],
    }
    return dict(_rounded(document))


def _beside(added: Mapping[str, float], engine: EngineResult | None) -> dict[str, float]:
    """Figures that stand beside a ratio: with the usage log on disk; per second of CPU instead of clock time."""
    found = {}
    if added.get("nginx", 0.0) > 0 and "tollway_all" in added:
        found["http_c1_added_vs_nginx_log_on_disk"] = added["tollway_all"] / added["nginx"]
    if engine is not None:
        found["engine_conv_vs_raw_by_cpu"] = engine.cpu_ratio
    return found


def _rounded(value: Any) -> Any:
    """Floats with four decimals: more would be noise, and would bloat every diff."""
    if isinstance(value, float):
        return round(value, _DIGITS)
    if isinstance(value, Mapping):
        return {str(key): _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value


def ratio_lines(document: Mapping[str, Any]) -> list[str]:
    """The table of targets, one line each."""
    lines = [f"{'ratio':<28} {'value':>8}  {'target':<8} result"]
    for target in TARGETS:
        value = document["ratios"].get(target.key)
        if value is None:
            lines.append(f"{target.key:<28} {'–':>8}  {target.text:<8} not measured")
        else:
            verdict = "pass" if target.is_met(value) else "FAIL"
            lines.append(f"{target.key:<28} {value:>8.3f}  {target.text:<8} {verdict}")
    return lines


def scenario_lines(scenario: str, group: Mapping[str, Summary]) -> list[str]:
    """One scenario's medians as a plain table."""
    lines = [f"{scenario:<20} {'CPU µs':>8} {'calls/s':>9} {'p50 µs':>9} {'p99 µs':>9}"]
    for name, s in group.items():
        lines.append(
            f"  {name:<18} {_number(s.cpu_us, 1):>8} {s.calls_per_s:>9,.0f} {_number(s.p50_us):>9} "
            f"{_number(s.p99_us):>9}"
        )
    return lines


def _number(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def to_markdown(document: Mapping[str, Any]) -> str:
    """The report for people."""
    machine, git = document["machine"], document["git"]
    dirty = " with local changes" if git["is_dirty"] else ""
    lines = [
        "# Side by side",
        "",
        f"{document['date_utc']}, commit `{git['commit'][:12]}`{dirty}, `{document['command']}` ({document['mode']}). "
        f"{machine['cores']} × {machine['cpu']}, {machine['system']}, kernel {machine['kernel']}, "
        f"Python {machine['python']}; work folder on {machine['work_file_system']}.",
        "",
        "Server on one core, backend and load generator on another; rounds alternate, medians are shown. CPU is that "
        "of the server's whole process tree per call, until the tree is at rest again. Compare only within one table.",
        "",
        "![CPU per call](latest.png)",
        "",
        "## Targets",
        "",
        *_target_rows(document),
        "",
        *_scenario_sections(document),
        *_engine_section(document),
        *_memory_section(document),
        "## Checks",
        "",
        f"{sum(check['is_passed'] for check in document['checks'])} of {len(document['checks'])} passed.",
        "",
        *(
            f"* FAILED {check['contender']}: {check['name']} ({check['detail']})"
            for check in document["checks"]
            if not check["is_passed"]
        ),
        *(f"* PROBLEM {problem}" for problem in document["problems"]),
        "",
        "## Contenders",
        "",
        *(f"* {name}: {note}" for name, note in document["contenders"].items()),
        "",
        ", ".join(f"{tool} {version}" for tool, version in document["tools"].items()),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _target_rows(document: Mapping[str, Any]) -> list[str]:
    rows = [_row(("what", "`ratios` key", "value", "target", "")), "|---|---|--:|---|---|"]
    for target in TARGETS:
        value = document["ratios"].get(target.key)
        shown = "not measured" if value is None else f"{value:.3f}"
        verdict = "" if value is None else ("pass" if target.is_met(value) else "**fail**")
        rows.append(_row((target.what, f"`{target.key}`", shown, target.text, verdict)))
    rows += [
        _row((key.replace("_", " "), "(beside)", f"{value:.3f}", "", "")) for key, value in document["beside"].items()
    ]
    return rows


def _scenario_sections(document: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    for scenario, group in document["medians"].items():
        lines += [f"## {scenario}", ""]
        lines += [_row(("", "CPU µs/call", "range", "calls/s", "p50 µs", "p99 µs", "settled after s", "by process"))]
        lines += ["|---|--:|---|--:|--:|--:|--:|---|"]
        for name, s in group.items():
            spread = "–" if s["cpu_us_range"] is None else "–".join(f"{value:.1f}" for value in s["cpu_us_range"])
            roles = s["cpu_us_by_role"]
            by_role = ", ".join(f"{role} {us:.1f}" for role, us in roles.items()) if len(roles) > 1 else ""
            figures = (_number(s["calls_per_s"]), _number(s["p50_us"]), _number(s["p99_us"]))
            lines.append(_row((name, _number(s["cpu_us"], 1), spread, *figures, f"{s['settle_s']:.1f}", by_role)))
        lines.append("")
    if document["added_p50_us_at_c1"]:
        pairs = ", ".join(f"{name} {us:.0f}" for name, us in document["added_p50_us_at_c1"].items())
        lines += [f"Added p50 at c=1 over direct, HTTP 1 KB, µs: {pairs}.", ""]
    return lines


def _engine_section(document: Mapping[str, Any]) -> list[str]:
    engine = document["engine"]
    if engine is None:
        return []
    served = ", ".join(f"{items} a call {rate:,.0f}" for items, rate in engine["served"].items())
    sweep = ", ".join(f"{batch}: {rate:,.0f}" for batch, rate in engine["raw_by_batch"].items())
    return [
        "## Engine: convnet, items/s",
        "",
        f"Raw `session.run` on one core at its best batch ({engine['raw_batch']}): {engine['raw']:,.0f}. "
        f"Through the gateway, all on, the engine on that core, c=16: {served}. Ratio {engine['ratio']:.3f} "
        f"(best of both); per second of CPU of engine and raw loop {engine['cpu_ratio']:.3f}. "
        f"Raw sweep by batch: {sweep}.",
        "",
    ]


def _memory_section(document: Mapping[str, Any]) -> list[str]:
    memory = document["memory"]
    if memory is None:
        return []
    roles = ", ".join(f"{role} {mb:.0f}" for role, mb in memory["rss_mb_by_role"].items())
    flat = "flat" if memory["is_flat"] else "NOT flat"
    return [
        "## Memory",
        "",
        f"Worker after {memory['calls']:,} calls (a fifth gRPC): {memory['rss_mb']:.1f} MB of 10^6 bytes, {flat}: "
        f"{memory['growth_mb']:+.2f} MB over the second half. Others: {roles}. {memory['calls_per_s']:,.0f} calls/s.",
        "",
    ]


def write_report(document: Mapping[str, Any], folder: Path) -> None:
    """latest.json and latest.md in `folder` (the plot is `loadtests.plot`'s)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "latest.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    (folder / "latest.md").write_text(to_markdown(document))
