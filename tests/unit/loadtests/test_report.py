"""The report: a flat map of ratios, every figure, and the same in words; a missed target is said, not hidden."""

import json
from pathlib import Path
from typing import Any

from loadtests.checks import Check
from loadtests.contenders import Contender
from loadtests.engine import EngineResult
from loadtests.measure import Sample
from loadtests.memory import MemoryResult, growth_of_second_half
from loadtests.plot import draw
from loadtests.ratios import TARGETS
from loadtests.report import build_document, ratio_lines, to_markdown, write_report

_FACTS: dict[str, Any] = {
    "date_utc": "2026-11-24T00:00:00Z",
    "git": {"commit": "0123456789abcdef", "is_dirty": False},
    "command": "python -m loadtests.bench",
    "mode": "full",
    "machine": {
        "cpu": "a CPU",
        "cores": 2,
        "system": "Linux",
        "kernel": "6",
        "python": "3.11",
        "work_file_system": "ext4",
    },
    "tools": {"nginx": "1.22"},
}
_CPU: dict[str, dict[str, float | None]] = {
    "http_1k_c64": {"direct": None, "nginx": 25.0, "nginx_lua": 33.0, "envoy_policy": 100.0, "tollway_all": 60.0},
    "grpc_1k_c64": {"envoy": 40.0, "grpc_aio": 600.0, "tollway_all": 30.0},
    "http_1k_c1": {"direct": None, "nginx": 60.0, "tollway_all": 90.0, "tollway_all_tmpfs": 80.0},
}
_P50 = {"direct": 20.0, "nginx": 120.0, "tollway_all": 520.0, "tollway_all_tmpfs": 220.0}


def _samples() -> list[Sample]:
    return [
        Sample(
            scenario=scenario,
            contender=contender,
            round=0,
            calls=100,
            calls_per_s=1000.0,
            p50_us=_P50.get(contender, 100.0),
            p99_us=900.0,
            cpu_us=cpu_us,
            cpu_us_by_role={"worker": 0.75 * cpu_us, "meter": 0.25 * cpu_us} if cpu_us else {},
        )
        for scenario, group in _CPU.items()
        for contender, cpu_us in group.items()
    ]


def _document(problems: list[str]) -> dict[str, Any]:
    engine = EngineResult(
        raw_by_batch={1: 1000.0, 8: 1100.0},
        raw_batch=8,
        raw=1100.0,
        served={1: 900.0, 8: 990.0},
        served_p50_us={1: 1.0, 8: 2.0},
        rounds=[{"raw": 1100.0, "served_1": 900.0}],
        ratio=0.9,
        raw_per_cpu_s=1200.0,
        served_per_cpu_s={1: 960.0, 8: 1080.0},
        cpu_ratio=0.9,
        problems=(),
    )
    memory = MemoryResult(
        calls=100,
        points=[(0, 50.0), (50, 60.0), (100, 60.5)],
        rss_mb=60.5,
        growth_mb=0.5,
        rss_mb_by_role={"worker": 60.5},
        calls_per_s=1.0,
        problems=(),
    )
    checks = [
        Check(contender="tollway_all", name="key", is_passed=True, detail=""),
        Check(contender="tollway_all", name="trace", is_passed=False, detail="none"),
    ]
    return build_document(
        _FACTS,
        samples=_samples(),
        contenders=[Contender(name="nginx", note="plain")],
        engine=engine,
        memory=memory,
        checks=checks,
        problems=problems,
    )


def test_ratios_are_a_flat_map_with_every_key() -> None:
    ratios = _document([])["ratios"]
    assert set(ratios) == {target.key for target in TARGETS}
    assert all(isinstance(value, float) for value in ratios.values())


def test_the_log_on_disk_stands_beside_the_ratio_on_tmpfs() -> None:
    document = _document([])
    assert document["ratios"]["http_c1_added_vs_nginx"] == 2.0
    assert document["beside"]["http_c1_added_vs_nginx_log_on_disk"] == 5.0


def test_a_missed_target_fails_in_table_and_markdown() -> None:
    document = _document([])
    line = next(line for line in ratio_lines(document) if line.startswith("http_all_on_vs_nginx "))
    assert line.endswith("FAIL")
    assert "| `http_all_on_vs_nginx` | 2.400 | ≤ 2 | **fail** |" in to_markdown(document)
    assert document["targets"]["http_all_on_vs_nginx"]["is_met"] is False


def test_failed_checks_and_problems_are_named() -> None:
    text = to_markdown(_document(["grpc_1k_c64: envoy: 3 calls failed"]))
    assert "1 of 2 passed" in text
    assert "FAILED tollway_all: trace" in text
    assert "PROBLEM grpc_1k_c64: envoy: 3 calls failed" in text


def test_what_was_not_measured_says_so() -> None:
    document = build_document(_FACTS, samples=[], contenders=[], engine=None, memory=None, checks=[], problems=[])
    assert document["ratios"] == {}
    assert all(line.endswith("not measured") for line in ratio_lines(document)[1:])
    assert to_markdown(document).count("not measured") == len(TARGETS)


def test_written_json_reads_back_and_the_picture_is_drawn(tmp_path: Path) -> None:
    document = _document([])
    write_report(document, tmp_path)
    assert json.loads((tmp_path / "latest.json").read_text()) == document
    draw(document, tmp_path / "latest.png")
    assert (tmp_path / "latest.png").read_bytes().startswith(b"\x89PNG")


def test_growth_is_that_of_the_second_half_only() -> None:
    assert growth_of_second_half([(0, 40.0), (25, 60.0), (50, 62.0), (75, 62.5), (100, 63.0)]) == 1.0
