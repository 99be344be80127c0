"""The converters' bench: its networks are sound, its clock compares in pairs, its report says what was missed."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from loadtests.converters_bench import is_same_graph, join
from loadtests.converters_cases import generated_cases, showcase_cases
from loadtests.converters_models import MODELS, rows_of
from loadtests.converters_report import TARGETS, as_markdown, build_document, ratios_of
from loadtests.processes import BenchError
from loadtests.variants import compare, open_file

FACTS = {
    "date_utc": "2026-11-24T00:00:00Z",
    "machine": {"cores": 2, "cpu": "a CPU", "load_average_before": [0.5, 0.4, 0.3]},
    "git": {"commit": "0" * 40, "is_dirty": False},
    "command": "python -m loadtests.converters_bench",
}


def a_model(name: str, kind: str, ratio: float | None, *, is_source: bool = False) -> dict[str, Any]:
    figures = {"y": {"rms_rel": 0.01}}
    variant = {"engine": "onnxruntime", "precision": "int8", "status": "selected", "size_bytes": 250, "reason": ""}
    times: dict[str, Any] | None = None
    if ratio is not None:
        times = {"fp32_ms": 2.0, "selected_ms": 2 * ratio, "ratio": ratio, "speedup": 1 / ratio, "is_source": is_source}
    return {
        "name": name,
        "kind": kind,
        "selected": "onnxruntime-int8",
        "source_bytes": 1_000,
        "comparison": times,
        "variants": [{**variant, "per_output": figures}],
    }


def document(**changes: Any) -> dict[str, Any]:
    results: dict[str, Any] = {
        "selftest": {"faults": [{}] * 32, "honest": [{}] * 24, "caught": 32, "false_alarms": 0},
        "models": [a_model("a", "generated", 1.01), a_model("b", "showcase", 0.5), a_model("c", "showcase", 0.7)],
        "cached": {"wall_s": [0.9, 1.0, 3.0], "cpu_s": [0.5, 0.5, 0.5]},
        "absent": {},
        "problems": [],
    }
    return build_document(FACTS, {**results, **changes})


def test_a_run_that_reaches_everything_says_so() -> None:
    made = document()
    assert all(target["is_met"] for target in made["targets"].values())
    assert made["ratios"]["cached_s"] == 1.0
    assert made["ratios"]["showcases_faster"] == 2
    assert "**fail**" not in as_markdown(made)


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("faults_caught", {"selftest": {"faults": [{}] * 32, "honest": [{}] * 24, "caught": 31, "false_alarms": 0}}),
        ("faults_tried", {"selftest": {"faults": [{}] * 23, "honest": [{}] * 24, "caught": 23, "false_alarms": 0}}),
        ("false_alarms", {"selftest": {"faults": [{}] * 32, "honest": [{}] * 24, "caught": 32, "false_alarms": 1}}),
        ("selected_vs_fp32", {"models": [a_model("a", "generated", 1.021), a_model("b", "showcase", 0.5)]}),
        ("showcases_faster", {"models": [a_model("b", "showcase", 0.5), a_model("c", "showcase", 0.78)]}),
        ("cached_s", {"cached": {"wall_s": [1.0, 2.1, 2.2], "cpu_s": []}}),
    ],
)
def test_each_target_can_be_missed(key: str, changes: dict[str, Any]) -> None:
    made = document(**changes)
    assert made["targets"][key]["is_met"] is False
    assert f"`{key}`" in as_markdown(made)
    assert "**fail**" in as_markdown(made)


def test_the_source_itself_is_as_fast_as_itself_whatever_the_noise(tmp_path: Path) -> None:
    made = document(models=[a_model("a", "generated", 1.04, is_source=True), a_model("b", "generated", 1.01)])
    assert made["ratios"]["selected_vs_fp32"] == 1.01
    assert "(the source as it is)" in as_markdown(made)
    (tmp_path / "a.onnx").write_bytes(MODELS["tiny"][0]())
    copy = onnx.load(str(tmp_path / "a.onnx"))
    copy.graph.name = "another"
    onnx.save(copy, str(tmp_path / "b.onnx"))
    assert is_same_graph(tmp_path / "a.onnx", tmp_path / "b.onnx")
    copy.graph.node[0].name = "another"
    onnx.save(copy, str(tmp_path / "b.onnx"))
    assert not is_same_graph(tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert not is_same_graph(tmp_path / "a.onnx", tmp_path / "model.xml")


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    made = document(selftest=None, models=[a_model("a", "showcase", None)], cached=None, absent={"x": "not here"})
    verdicts = {key: target["is_met"] for key, target in made["targets"].items()}
    assert verdicts.pop("showcases_faster") is False
    assert set(verdicts.values()) == {None}
    assert "Not measured: x: not here." in as_markdown(made)
    assert ratios_of(None, [], None) == {}
    assert {target.key for target in TARGETS} == set(made["targets"])


def partial_report(path: Path, **changes: Any) -> Path:
    empty: dict[str, Any] = {"selftest": None, "models": [], "cached": None}
    path.write_text(json.dumps(document(**{**empty, **changes})))
    return path


def test_partial_reports_are_joined_and_say_where_they_come_from(tmp_path: Path) -> None:
    first = partial_report(tmp_path / "a", models=[a_model("a", "generated", 1.0)], problems=["x: y"])
    cached = {"wall_s": [1], "cpu_s": [1]}
    second = partial_report(tmp_path / "b", models=[a_model("b", "showcase", 0.5)], cached=cached)
    results, origins = join([first, second])
    assert [one["name"] for one in results.models] == ["a", "b"]
    assert (results.selftest, results.cached, results.problems) == (None, cached, ["x: y"])
    assert [one["command"] for one in origins] == [FACTS["command"]] * 2
    made = build_document({**FACTS, "joined": origins}, asdict(results))
    assert as_markdown(made).count("* Measured 2026-11-24") == 2
    with pytest.raises(BenchError, match="b was measured before"):
        join([second, partial_report(tmp_path / "c", models=[a_model("b", "showcase", 0.5)])])
    with pytest.raises(BenchError, match="cached was measured before"):
        join([second, partial_report(tmp_path / "d", cached={"wall_s": [2], "cpu_s": [2]})])


@pytest.mark.parametrize("name", MODELS)
def test_the_networks_run_and_answer_rows_one_by_one(name: str) -> None:
    build, shape = MODELS[name]
    data = build()
    assert data == build()
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    rows = rows_of(shape, 3, 1)
    (whole,) = session.run(None, {"x": rows})
    (alone,) = session.run(None, {"x": rows[1:2]})
    assert whole.shape == (3, 10)
    np.testing.assert_allclose(whole[1:2], alone, rtol=1e-3, atol=1e-4)


def test_times_are_compared_round_by_round_by_cpu_time() -> None:
    """The machine becomes five times slower half way: in pairs that does not show. Waiting is wall time only."""
    clock = {"cpu": 0.0, "wall": 0.0, "runs": 0.0}

    def run_of(cost_s: float) -> Any:
        def run() -> None:
            clock["runs"] += 1
            cost = cost_s * (5 if clock["runs"] > 60 else 1)
            clock["cpu"] += cost
            clock["wall"] += cost + 1

        return run

    result = compare(run_of(0.02), run_of(0.01), rounds=9, cpu_s=lambda: clock["cpu"], wall_s=lambda: clock["wall"])
    assert result.ratio == pytest.approx(0.5, rel=0.01)
    assert result.wall_ratio > 0.9
    assert result.rounds == 9


def test_a_file_runs_with_the_inputs_that_are_timed(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(MODELS["tiny"][0]())
    run = open_file(tmp_path / "m.onnx", {"x": rows_of((64,), 1, 0)})
    (answer,) = run()  # type: ignore[misc]
    assert answer.shape == (1, 10)  # type: ignore[has-type]


def test_cases_name_what_is_not_built(tmp_path: Path) -> None:
    cases, absent = showcase_cases(tmp_path, tmp_path)
    assert cases == []
    assert set(absent) == {"voice_network", "ocr_angle", "ocr_detect", "text_network"}
    built = tmp_path / ".cache" / "showcases"
    for path in (built / "plain" / "text_network" / "1" / "model.onnx", built / "data" / "text_network.npz"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (found,), absent = showcase_cases(tmp_path, tmp_path)
    assert (found.name, found.data) == ("text_network", path)
    assert "text_network" not in absent
    made = generated_cases(tmp_path / "sources", names=("tiny",))
    assert made[0].source.is_file()
    assert made[0].data is not None
    with np.load(made[0].data) as file:
        assert file["x"].shape == (120, 64)
