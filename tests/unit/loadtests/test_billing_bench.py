"""The bench of money: medians, targets, what is missing and why; and the measurement itself, small."""

import asyncio
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from loadtests import billing_bench
from loadtests.billing.figures import SOURCES, Figure, measure
from loadtests.billing.leases import run_leases
from loadtests.billing.posting import median_of, run_posting
from loadtests.billing.report import TARGETS, as_markdown, build_document
from loadtests.processes import BenchError
from tests.perf.leases import PLAN
from tests.perf.leases import measure as measure_leases
from tests.perf.meter import measure_pump, text_of

FACTS = {
    "date_utc": "2026-11-24T00:00:00Z",
    "git": {"commit": "0123456789abcdef", "is_dirty": True},
    "command": "make bench-billing",
    "machine": {"cores": 2, "cpu": "some CPU", "load_average_before": [0.5, 0.4, 0.3]},
    "file_system": "ext4",
}


def one_round(rate: float, size: float = 90.0) -> dict[str, Any]:
    return {
        "store": "sqlite",
        "events_per_core_s": rate,
        "meter_us": 1e6 / rate,
        "server_us": 0.0,
        "wall_us": 9.0,
        "ledger_bytes_per_call": size,
    }


def test_medians_are_of_rounds_and_keep_the_extremes() -> None:
    found = median_of([one_round(30.0), one_round(10.0, 50.0), one_round(20.0, 70.0)])
    assert found["events_per_core_s"] == 20.0
    assert found["ledger_bytes_per_call"] == 70.0
    assert (found["events_per_core_s_min"], found["events_per_core_s_max"], found["rounds"]) == (10.0, 30.0, 3)
    assert "store" not in found
    with pytest.raises(BenchError, match="no round"):
        median_of([])


def test_report_judges_each_target_and_says_why_a_figure_is_missing() -> None:
    stores = {"sqlite": median_of([one_round(25_000.0)]), "postgresql": median_of([one_round(9_000.0, 310.0)])}
    figures = {"prepaid_us_per_call": Figure(2.5), "lease_refill_commands": Figure(None, "not here")}
    document = build_document(FACTS, stores, figures, ["something failed"])
    assert document["meter_sqlite_eps"] == 25_000.0
    assert document["ledger_bytes_per_call"] == 310.0
    assert {key: one["is_met"] for key, one in document["targets"].items()} == {
        "meter_sqlite_eps": True,
        "meter_postgres_eps": False,
        "ledger_bytes_per_call": False,
        "prepaid_us_per_call": True,
        "lease_refill_commands": None,
    }
    text = as_markdown(document)
    assert "`meter_postgres_eps` | 9,000.0 | ≥ 10000 | **fail** |" in text
    assert "– (not here)" in text
    assert "Problem: something failed" in text


def test_report_without_any_store_names_no_rate() -> None:
    document = build_document(FACTS, {}, {key: Figure(None, "x") for key in SOURCES}, [])
    assert [document[target.key] for target in TARGETS] == [None] * len(TARGETS)
    assert "– (failed)" in as_markdown(document)


def test_figures_of_others_are_found_by_name_or_told_as_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("loadtests.some_figure")
    module.__spec__ = __import__("importlib.machinery", fromlist=["ModuleSpec"]).ModuleSpec(module.__name__, None)
    vars(module)["good"], vars(module)["bad"] = (lambda: 2), (lambda: "two")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    sources = {name: (module.__name__, name) for name in ("good", "bad", "absent")} | {
        "none": ("loadtests.no_such", "f")
    }
    assert measure("good", sources) == Figure(2.0)
    assert measure("absent", sources) == Figure(None, "loadtests.some_figure has no absent")
    assert measure("none", sources) == Figure(None, "loadtests.no_such is not in this release")
    with pytest.raises(BenchError, match="str instead of a number"):
        measure("bad", sources)


def test_failing_run_is_a_problem_and_the_other_store_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def run(_root: Path, _folder: Path, store: str, _calls: int) -> dict[str, Any]:
        if store == "postgresql":
            raise BenchError("posting on postgresql failed: no server")
        return one_round(25_000.0)

    monkeypatch.setattr(billing_bench, "run_posting", run)
    said: list[str] = []
    stores, problems = billing_bench.run(tmp_path, 2, 100, said.append)
    assert stores.keys() == {"sqlite"}
    assert problems == ["posting on postgresql failed: no server"] * 2
    assert any(text.startswith("PROBLEM") for text in said)


def test_a_run_that_cannot_be_says_what_it_was_told(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"(?s)posting on stone failed: .*invalid choice"):
        run_posting(Path(billing_bench.__file__).parent.parent, tmp_path, "stone", 10)


def test_report_names_the_command_as_it_was_given() -> None:
    assert billing_bench._command(is_quick=False, rounds=None) == "make bench-billing"
    assert billing_bench._command(is_quick=True, rounds=3) == "make bench-billing ARGS='--quick --rounds 3'"


def test_measured_run_posts_every_call_and_counts_growth_of_the_ledger(tmp_path: Path) -> None:
    figures = measure_pump("sqlite", tmp_path, calls=1_600, pass_calls=800)
    assert figures.calls == 1_600
    assert figures.meter_us > 0
    assert figures.server_us == 0
    assert 30 < figures.ledger_bytes_per_call < 400
    assert figures.events_per_core_s == pytest.approx(1e6 / figures.meter_us)
    assert "1600 calls" in text_of(figures)


def test_calls_out_of_leases_are_counted_to_cost_no_command() -> None:
    figures = run_leases(2_000)
    assert figures["commands_per_free_call"] == 0
    assert figures["free_calls"] + figures["refills"] == figures["calls"] == 2_000
    assert figures["host_commands"] > 0


def test_calls_decided_one_by_one_are_no_calls_out_of_leases() -> None:
    small = msgspec.structs.replace(PLAN, calls_per_day=100_000_000, concurrency=20)
    with pytest.raises(RuntimeError, match="of 320 calls waited for the store: leases do not carry them"):
        asyncio.run(measure_leases(320, small))
