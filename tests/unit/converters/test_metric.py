"""The task metric: losses are counted on unseen labelled rows, and few rows prove nothing."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from converters.build import build
from converters.errors import UsageFault, VerificationFailed
from converters.flow import Request, convert
from converters.job import CLASS_NAMES_MAX, Job
from converters.metric import Task, make_task, score
from converters.selftest.faults import change
from converters.selftest.models import mlp, pooled, two_outputs
from converters.signature import read_signature
from model_repo.config import parse_config

JOB = Job(name="m", engines=("onnxruntime",), precisions=("fp32",), batch_rows_max=1, rounds=3)


def scores_of(classes: Any, count: int = 3) -> Any:
    return np.eye(count, dtype=np.float32)[classes]


def classes_task(labels: Any, drop: float = 0.01) -> Task:
    return Task(metric="top1", output="y", labels=np.asarray(labels, np.int64), drop=drop)


def test_equal_answers_pass_once_there_are_rows_enough_to_be_sure() -> None:
    few, many = np.zeros(100, int), np.zeros(200, int)
    assert "may be lost" in score(classes_task(few), scores_of(few), scores_of(few)).reason
    found = score(classes_task(many), scores_of(many), scores_of(many))
    assert (found.reason, found.loss, found.source, found.variant) == ("", 0.0, 1.0, 1.0)


def test_rows_lost_are_counted_against_rows_won() -> None:
    labels = np.zeros(4_000, int)
    source, variant = labels.copy(), labels.copy()
    source[:40] = 1
    variant[30:70] = 1
    found = score(classes_task(labels, drop=0.02), scores_of(source), scores_of(variant))
    assert (found.loss, found.reason) == (0.0, "")
    variant[100:200] = 2
    worse = score(classes_task(labels, drop=0.02), scores_of(source), scores_of(variant))
    assert worse.loss == pytest.approx(100 / 4_000)
    assert worse.loss_bound > worse.loss
    assert "top-1" in worse.reason


def test_the_bound_holds_in_19_of_20_samples() -> None:
    """A variant that really loses 3 % is passed at a bound of 3 % in about one sample of twenty, never in many."""
    noise = np.random.default_rng(5)
    passed = 0
    for _ in range(400):
        labels = np.zeros(600, int)
        variant = (noise.random(600) < 0.03).astype(int)
        passed += not score(classes_task(labels, drop=0.03), scores_of(labels), scores_of(variant)).reason
    assert passed <= 400 * 0.09


def test_an_error_is_judged_as_a_share_of_the_sources_own() -> None:
    noise = np.random.default_rng(1)
    labels = noise.standard_normal((500, 2))
    source = labels + noise.standard_normal((500, 2)) * 0.1
    task = Task(metric="mean_absolute_error", output="y", labels=labels, drop=0.05)
    assert score(task, source, source).reason == ""
    found = score(task, source, source + 0.05)
    assert "mean absolute error" in found.reason
    assert found.variant > found.source
    perfect = score(task, labels, labels)
    assert perfect.reason == ""
    assert score(task, labels, labels + 1e-3).reason


def test_labels_find_the_output_they_are_of() -> None:
    classes, numbers = np.zeros(9, np.int64), np.zeros((9, 6))
    assert make_task(classes, read_signature(mlp()), "", 0.01).output == "y"
    assert make_task(classes, read_signature(two_outputs()), "b", 0.01).output == "b"
    assert make_task(numbers, read_signature(two_outputs()), "", 0.01).metric == "mean_absolute_error"
    assert make_task(classes, read_signature(pooled()), "label", 0.01).output == "label"


@pytest.mark.parametrize(
    ("labels", "output"),
    [
        (np.zeros((9, 5)), ""),
        (np.zeros(9, np.int64), "nothing"),
        (np.asarray(["a"] * 9), ""),
        (np.zeros((9, 7, 7)), "y"),
    ],
)
def test_labels_that_fit_nothing_are_refused(labels: Any, output: str) -> None:
    with pytest.raises(UsageFault) as refused:
        make_task(labels, read_signature(mlp()), output, 0.01)
    assert refused.value.rule == "labels"


def labelled(folder: Path, rows: int, *, count: int | None = None) -> Path:
    """Rows for `mlp`, each with the class that the model itself gives: a teacher's labels."""
    model = mlp()
    x = np.random.default_rng(2).standard_normal((rows, 24)).astype(np.float32)
    (y,) = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    np.savez(folder / "data.npz", x=x, truth=y.argmax(axis=1)[:count])
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "data.npz"


def run_build(folder: Path, data: Path, job: Job, **options: Any) -> dict[str, Any]:
    (folder / "work").mkdir()
    return build(job, folder / "m.onnx", data, folder / "work", sha256="", progress=lambda *_: None, **options)


def test_a_conversion_reports_the_metric_of_unseen_rows(tmp_path: Path) -> None:
    data = labelled(tmp_path, 1_200)
    report = run_build(tmp_path, data, replace(JOB, labels="truth", metric_drop=0.02))
    (variant,) = report["variants"]
    assert variant["status"] == "selected"
    assert variant["task"]["rows"] == report["evidence"]["rows_judged"] == 300
    assert (variant["task"]["source"], variant["task"]["variant"]) == (1.0, 1.0)
    certificate = json.loads((tmp_path / "work" / "bundle" / "certificate.json").read_bytes())
    assert certificate["parity"]["task"]["metric"] == "top1"


def test_a_variant_within_the_numbers_that_loses_the_task_is_refused(tmp_path: Path) -> None:
    """The budget of the numbers is opened, so that only the labels can tell the one from the other."""
    data = labelled(tmp_path, 2_000)
    job = replace(JOB, precisions=("fp32", "int8"), labels="truth", budgets={"int8": 10.0}, metric_drop=0.06)
    (tmp_path / "honest").mkdir()
    (tmp_path / "honest" / "m.onnx").write_bytes((tmp_path / "m.onnx").read_bytes())
    honest = run_build(tmp_path / "honest", data, job)
    assert not honest["variants"][1]["reason"].startswith("task")
    spoilt = onnx.ModelProto()
    spoilt.CopyFrom(mlp())
    change("b3", lambda bias: bias + np.asarray([0.3, 0, 0, 0, 0, 0]))(spoilt)
    with pytest.raises(VerificationFailed):
        run_build(tmp_path, data, job, simplify=lambda _: spoilt)
    report = json.loads((tmp_path / "work" / "report.json").read_bytes())
    assert report["variants"][1]["reason"].startswith("task: top-1")
    assert report["variants"][1]["task"]["loss"] > 0.03


def test_labels_of_another_length_or_without_data_are_refused(tmp_path: Path) -> None:
    data = labelled(tmp_path, 40, count=39)
    with pytest.raises(UsageFault, match="shape"):
        run_build(tmp_path, data, replace(JOB, labels="truth"))
    asked = Request(
        source=tmp_path / "m.onnx",
        job=replace(JOB, labels="truth"),
        data=None,
        repository=tmp_path / "repo",
        cache=tmp_path / "cache",
        out=tmp_path / "out",
    )
    with pytest.raises(UsageFault, match="--labels"):
        convert(asked, lambda event: None)


def test_class_names_become_the_models_label_file(tmp_path: Path) -> None:
    labelled(tmp_path, 40)
    names = tuple(f"class {number}" for number in range(6))
    asked = Request(
        source=tmp_path / "m.onnx",
        job=replace(JOB, class_names=names),
        data=None,
        repository=tmp_path / "repo",
        cache=tmp_path / "cache",
        out=tmp_path / "out",
    )
    convert(asked, lambda event: None)
    text = (tmp_path / "repo" / "m" / "config.pbtxt").read_text()
    message = model_config_pb2.ModelConfig()
    text_format.Parse(text, message)
    assert message.output[0].label_filename == "labels.txt"
    assert parse_config(text, name="m").outputs[0].label_filename == "labels.txt"
    assert (tmp_path / "repo" / "m" / "labels.txt").read_text().splitlines() == list(names)
    assert "--class-names labels.txt" in (tmp_path / "out" / "reproduce.sh").read_text()


@pytest.mark.parametrize("names", [("a",) * 5, ("a", "b", "c", "d", "e", ""), ("a\n",) * 6, ("x" * 201,) * 6])
def test_class_names_that_do_not_fit_are_refused(names: tuple[str, ...], tmp_path: Path) -> None:
    data = labelled(tmp_path, 40)
    with pytest.raises(UsageFault) as refused:
        run_build(tmp_path, data, replace(JOB, class_names=names))
    assert refused.value.rule == "class_names"


def test_the_number_of_class_names_is_limited() -> None:
    assert replace(JOB, class_names=("a",) * CLASS_NAMES_MAX).class_names
    with pytest.raises(UsageFault, match="more than"):
        replace(JOB, class_names=("a",) * (CLASS_NAMES_MAX + 1))
    with pytest.raises(UsageFault, match="metric-drop"):
        replace(JOB, metric_drop=1.01)
