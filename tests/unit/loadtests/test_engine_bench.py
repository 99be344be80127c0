"""The engine's bench: ratios, what is absent, and the report. Pure arithmetic, no server."""

import json
from pathlib import Path
from typing import Any

import pytest

from loadtests.contenders.model_servers import STARTERS, VENVS_VARIABLE, NotInstalled, environment_of
from loadtests.engine_bench import TARGETS, Results, as_markdown, build_engine_document
from loadtests.load_time import read_load_ms, summarise_load_time
from loadtests.mlp import MlpResult, MlpSample, litserve_body, oip_body, read_outputs, summarise_mlp
from loadtests.processes import BenchError

FACTS = {
    "date_utc": "2026-11-24T00:00:00Z",
    "git": {"commit": "0123456789abcdef"},
    "command": "python -m loadtests.engine_bench",
    "machine": {"cores": 2, "cpu": "some CPU", "load_average_before": [0.5, 0.4, 0.3]},
}


def sample(server: str, cpu_us: float, round_: int = 0) -> MlpSample:
    return MlpSample(
        server=server,
        round=round_,
        calls=1000,
        calls_per_s=1e6 / cpu_us,
        p50_us=100.0,
        p99_us=200.0,
        cpu_us=cpu_us,
        cpu_us_by_role={"engine": cpu_us},
    )


def mlp(*samples: MlpSample) -> MlpResult:
    return summarise_mlp(samples, {one.server: "note" for one in samples}, {"litserve": "is not installed"}, [])


def results() -> Results:
    found = Results()
    found.mlp = mlp(
        sample("tollway", 60), sample("tollway", 90, 1), sample("tollway", 80, 2), sample("mlserver", 800),
        sample("triton", 100),
    )  # fmt: skip
    found.load = summarise_load_time(105_000_000, [(100, 110), (90, 120), (110, 105)])
    found.absent["ocr_vs_source"] = "rapidocr is not installed"
    return found


def test_ratios_are_of_medians_and_only_of_what_was_measured() -> None:
    assert results().ratios() == {"mlp_vs_triton": 0.8, "mlp_vs_mlserver": 0.1, "load_vs_session": 1.1}


def test_every_target_is_in_the_report_met_missed_or_absent_with_a_reason() -> None:
    document = build_engine_document(FACTS, results())
    verdicts = {key: target["is_met"] for key, target in document["targets"].items()}
    assert verdicts == {
        "conv_vs_raw": None,
        "mlp_vs_mlserver": True,
        "mlp_vs_litserve": None,
        "mlp_vs_triton": True,
        "load_vs_session": True,
        "stream_vs_raw": None,
        "ocr_vs_source": None,
    }
    assert document["not_measured"] == {
        "mlp_vs_litserve": "is not installed",
        "ocr_vs_source": "rapidocr is not installed",
    }
    assert json.loads(json.dumps(document)) == document


def test_a_missed_target_is_shown_as_failed() -> None:
    slow = results()
    slow.mlp = mlp(sample("tollway", 300), sample("triton", 100))
    text = as_markdown(build_engine_document(FACTS, slow))
    assert "2 × some CPU, load average before 0.5; compiled modules: no." in text
    assert "| `mlp_vs_triton` | 3.000 | ≤ 1 | **fail** |" in text
    assert "| `mlp_vs_litserve` | – (is not installed) |" in text
    assert "| `ocr_vs_source` | – (rapidocr is not installed) |" in text
    assert "Load of 105 MB: session 100 ms, engine 110 ms." in text


def test_an_empty_run_still_reports() -> None:
    document = build_engine_document(FACTS, Results())
    assert document["ratios"] == {}
    assert {target.key for target in TARGETS} == set(document["targets"])
    assert "not asked for" in as_markdown(document)


def test_problems_reach_the_report() -> None:
    found = Results()
    found.problems.append("mlp: nothing answers")
    assert "* Problem: mlp: nothing answers" in as_markdown(build_engine_document(FACTS, found))


@pytest.mark.parametrize(
    "answer",
    [
        {"y": [1] * 10},
        {"outputs": [{"name": "y", "data": [1.0] * 10}]},
        {"outputs": [{"name": "y", "data": [[1.0] * 10]}]},
    ],
)
def test_answers_of_every_server_are_read(answer: Any) -> None:
    assert read_outputs(answer) == [1.0] * 10


@pytest.mark.parametrize("answer", [{}, {"outputs": []}, {"y": []}, {"y": ["a"]}, {"y": [1] * 9}])
def test_an_answer_without_ten_numbers_is_none(answer: Any) -> None:
    with pytest.raises(BenchError):
        read_outputs(answer)


def test_everybody_gets_the_same_numbers(tmp_path: Path) -> None:
    oip = json.loads(oip_body(tmp_path).file.read_text())
    lit = json.loads(litserve_body(tmp_path).file.read_text())
    assert oip["inputs"][0]["data"] == lit["x"]
    assert len(lit["x"]) == 64


def test_the_engines_own_time_is_read_from_its_log() -> None:
    log = "2026 INFO tollway.engine model_ready model=wide load_ms=123 runtime=onnxruntime 1.0; CPU\n"
    assert read_load_ms(log) == 123
    with pytest.raises(BenchError, match="did not load the model"):
        read_load_ms("model name=wide version=1 state=UNAVAILABLE")


@pytest.mark.parametrize("name", sorted(STARTERS))
def test_a_server_that_is_not_installed_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VENVS_VARIABLE, raising=False)
    with pytest.raises(NotInstalled, match=f"{name} is not installed"):
        environment_of(name, tmp_path)
    (tmp_path / "own" / name / "bin").mkdir(parents=True)
    (tmp_path / "own" / name / "bin" / "python").touch()
    monkeypatch.setenv(VENVS_VARIABLE, str(tmp_path / "own"))
    assert environment_of(name, tmp_path) == tmp_path / "own" / name
