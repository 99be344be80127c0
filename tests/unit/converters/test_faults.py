"""The gate catches every seeded wrong conversion, names the node, and raises no alarm at an honest one."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from converters.bisect import find_bad_node
from converters.engines import open_onnx
from converters.job import Job
from converters.normalise import normalise
from converters.samples import Data, read_data
from converters.selftest.faults import FAULTS, Fault
from converters.selftest.models import CLEAN
from converters.signature import DTYPES, Signature, read_signature
from converters.variants import build_variant
from converters.verify import Answers, answer_all, observe, open_moved, verify

JOB = Job(name="model", precisions=("fp32", "fp16", "int8"), dims={})
#: OpenVINO 2026.4 is left out for `attention`: having run a sequence of length 1, it answers longer ones wrongly.
HONEST = [
    (name, engine, precision)
    for name in CLEAN
    for engine in ("onnxruntime", "openvino")
    for precision in ("fp32", "fp16")
    if (name, engine) != ("attention", "openvino")
]


def answers_of(model: Any, data: Data | None = None) -> tuple[Answers, Signature]:
    reference = open_onnx(model.SerializeToString(), is_optimised=False)
    signature = observe(read_signature(model), reference, JOB)
    return answer_all(signature, reference, open_moved(model, JOB), JOB, data), signature


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "_"))
def test_a_seeded_fault_is_caught_and_its_node_is_named(fault: Fault, tmp_path: Path) -> None:
    source = fault.model()
    spoilt = onnx.ModelProto()
    spoilt.CopyFrom(source)
    fault.spoil(spoilt)
    onnx.checker.check_model(spoilt)
    answers, _ = answers_of(source)
    verdict = verify(answers, open_onnx(spoilt.SerializeToString()), "fp32")
    assert verdict.reason
    assert verdict.worst is not None
    bad = find_bad_node(source, spoilt, verdict.worst.case.feeds, "fp32", tmp_path / "repro")
    assert bad is not None
    assert bad.node == fault.node
    assert bad.repro is not None
    repro = onnx.load(str(bad.repro / "repro.onnx"))
    assert len(repro.graph.node) == 1
    with np.load(bad.repro / "inputs.npz") as file:
        feeds = dict(file)
    found = ort.InferenceSession(repro.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)
    with np.load(bad.repro / "expected.npz") as file:
        expected = {name: file[name] for name in file.files}
    name = repro.graph.output[0].name
    assert not np.allclose(found[0], expected[name], rtol=1e-4, atol=1e-7, equal_nan=True)


@pytest.mark.parametrize(("name", "engine", "precision"), HONEST)
def test_an_honest_conversion_raises_no_alarm(name: str, engine: str, precision: str, tmp_path: Path) -> None:
    model = CLEAN[name]()
    answers, signature = answers_of(model)
    batched = signature.batch_axis is not None
    variant = build_variant(engine, precision, normalise(model), tmp_path / "v", None, batched=batched)
    outputs = tuple(tensor.name for tensor in signature.outputs)
    verdict = verify(answers, variant.open(outputs, 1), precision)
    assert verdict.reason == ""
    assert verdict.cases_judged


@pytest.mark.parametrize("name", ["mlp", "convnet", "attention"])
def test_an_honest_quantisation_is_accepted_on_rows_it_was_not_calibrated_with(name: str, tmp_path: Path) -> None:
    model = CLEAN[name]()
    signature = read_signature(model)
    data = read_data(write_data(signature, tmp_path, rows=200), signature, 0)
    answers, signature = answers_of(model, data)
    variant = build_variant("onnxruntime", "int8", normalise(model), tmp_path / "v", data, batched=True)
    verdict = verify(answers, variant.open(tuple(one.name for one in signature.outputs), 1), "int8")
    assert verdict.reason == ""


def test_a_quantisation_with_the_wrong_ranges_is_caught(tmp_path: Path) -> None:
    """Calibrated on inputs a hundred times too small, so that real ones saturate."""
    model = CLEAN["convnet"]()
    signature = read_signature(model)
    data = read_data(write_data(signature, tmp_path, rows=60), signature, 0)
    wrong = Data(
        calibration={name: array * np.float32(0.01) for name, array in data.calibration.items()},
        judged=data.judged,
        rows_calibration=data.rows_calibration,
        rows_judged=data.rows_judged,
        duplicates=0,
        sha256="",
    )
    answers, _ = answers_of(model, data)
    variant = build_variant("onnxruntime", "int8", normalise(model), tmp_path / "v", wrong, batched=True)
    assert verify(answers, variant.open(("y",), 1), "int8").reason


def write_data(signature: Signature, folder: Path, *, rows: int) -> Path:
    noise = np.random.default_rng(7)
    arrays: dict[str, Any] = {}
    for tensor in signature.inputs:
        shape = [size if isinstance(size, int) else 9 for size in tensor.shape[1:]]
        arrays[tensor.name] = noise.standard_normal((rows, *shape)).astype(DTYPES[tensor.datatype])
    np.savez(folder / "data.npz", **arrays)
    return folder / "data.npz"


def test_a_runtime_that_answers_wrongly_only_after_other_shapes_is_refused(tmp_path: Path) -> None:
    """The gate runs all shapes in one session, so state left by one shows in the next: OpenVINO's fused attention."""
    model = CLEAN["attention"]()
    answers, _ = answers_of(model)
    variant = build_variant("openvino", "fp32", normalise(model), tmp_path / "v", None, batched=True)
    engine = variant.open(("y",), 1)
    wrong = [
        known.case.label
        for known in answers.known
        if known.case.kind == "normal"
        and not np.allclose(engine.run(known.case.feeds)["y"], known.outputs["y"], atol=1e-3)
    ]
    assert bool(verify(answers, variant.open(("y",), 1), "fp32").reason) == bool(wrong)
