"""The framework's answers become the reference, and an export that answers otherwise is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters.build import write_source_cases
from converters.engines import Array, open_onnx
from converters.errors import ToolFailed, VerificationFailed
from converters.importers.exchange import file_of, read_arrays, read_index, write_arrays, write_index
from converters.importers.protocol import Export
from converters.importers.steps import answer_cases, export_source
from converters.job import Job
from converters.origin import Origin, anchor, extra_cases
from converters.selftest.models import mlp
from converters.signature import Signature, read_signature
from converters.verify import Answers, answer_all, observe, open_moved

JOB = Job(name="m", engines=("onnxruntime",), precisions=("fp32",))
Change = Callable[[dict[str, Array], dict[str, Array]], dict[str, Array]]


class Framework:
    """The graph itself in the framework's place, its answers changed on the way."""

    def __init__(self, model: Any, change: Change = lambda feeds, outputs: outputs) -> None:
        self._model = model
        self._engine = open_onnx(model.SerializeToString(), is_optimised=False)
        self._change = change

    def export(self, path: Path) -> Export:
        path.write_bytes(self._model.SerializeToString())
        rows = np.random.default_rng(3).standard_normal((6, 24)).astype(np.float32)
        return Export(method="itself", extra=({self._model.graph.input[0].name: rows},))

    def answer(self, feeds: Any) -> dict[str, Array]:
        return self._change(feeds, self._engine.run(feeds))

    def versions(self) -> dict[str, str]:
        return {"itself": "1"}


def judge(work: Path, change: Change) -> tuple[Answers, dict[str, Any], Answers, Signature]:
    """The steps of an import in one process: export, cases, the framework's answers, and the comparison."""
    model = mlp()
    source = Framework(model, change)
    export_source(source, work)
    write_source_cases(JOB, work / "export" / "model.onnx", None, work)
    answer_cases(source, work, lambda step, done, total: None)
    reference = open_onnx(model.SerializeToString(), is_optimised=False)
    signature = observe(read_signature(model), reference, JOB)
    extra = extra_cases(work, signature)
    own = answer_all(signature, reference, open_moved(model, JOB), JOB, None, extra=extra)
    found, facts = anchor(own, Origin(work=work, facts={}), signature)
    return found, facts, own, signature


def output_name() -> str:
    return str(mlp().graph.output[0].name)


def plus(share: float) -> Change:
    return lambda feeds, outputs: {name: value * np.float32(1 + share) for name, value in outputs.items()}


def test_the_framework_s_own_answers_are_the_reference(tmp_path: Path) -> None:
    """They differ from the graph's by less than the budget, and are kept as they are."""
    found, facts, own, _ = judge(tmp_path, plus(2e-6))
    assert 0 < facts["budget_used"][output_name()] <= 1
    assert facts["cases"] == len(found.known) == len(own.known)
    for mine, graphs in zip(found.known, own.known, strict=True):
        wanted = graphs.outputs[output_name()] * np.float32(1 + 2e-6)
        assert np.array_equal(mine.outputs[output_name()], wanted, equal_nan=True)


def test_the_extra_cases_are_judged_without_any_allowance(tmp_path: Path) -> None:
    found, _, _, _ = judge(tmp_path, plus(0.0))
    extra = [one for one in found.known if one.case.kind == "threshold"]
    assert [one.case.rows for one in extra] == [6]
    assert np.array_equal(extra[0].moved["fp32"][output_name()], extra[0].outputs[output_name()])


def test_how_far_the_input_moves_an_answer_is_not_blurred_by_the_export_s_error(tmp_path: Path) -> None:
    found, _, own, _ = judge(tmp_path, plus(1e-5))
    name = output_name()
    for mine, graphs in zip(found.known, own.known, strict=True):
        if mine.case.kind != "normal":
            continue
        wanted = np.abs(graphs.moved["fp32"][name].astype(np.float64) - graphs.outputs[name])
        shift = np.abs(mine.moved["fp32"][name].astype(np.float64) - mine.outputs[name])
        np.testing.assert_allclose(shift, wanted, atol=1e-6)


def only(kind: str, change: Change) -> Change:
    """In the case of three rows whose first value is of that kind alone."""

    def changed(feeds: dict[str, Array], outputs: dict[str, Array]) -> dict[str, Array]:
        first = next(iter(feeds.values()))
        is_kind = {"zeros": not first.any(), "rows 7": len(first) == 7}[kind]
        return change(feeds, outputs) if is_kind else outputs

    return changed


def swapped(feeds: dict[str, Array], outputs: dict[str, Array]) -> dict[str, Array]:
    return {name: value[::-1].copy() + np.float32(0.1) for name, value in outputs.items()}


@pytest.mark.parametrize(
    "change",
    [
        plus(0.01),
        only("zeros", swapped),
        only("rows 7", swapped),
        lambda feeds, outputs: {name: value[:, :-1] for name, value in outputs.items()},
        lambda feeds, outputs: {f"other_{name}": value for name, value in outputs.items()},
    ],
    ids=["1 percent", "zeros alone", "seven rows alone", "another shape", "another name"],
)
def test_an_export_that_answers_otherwise_is_refused(change: Change, tmp_path: Path) -> None:
    with pytest.raises(VerificationFailed) as refused:
        judge(tmp_path, change)
    assert refused.value.rule == "export_differs"


def refusing(kind: str) -> Change:
    def refuse(feeds: dict[str, Array], outputs: dict[str, Array]) -> dict[str, Array]:
        raise ValueError(f"no {kind} here")

    return only(kind, refuse)


def test_a_case_that_the_framework_refuses_does_not_count(tmp_path: Path) -> None:
    found, _, own, _ = judge(tmp_path, refusing("zeros"))
    assert len(found.known) == len(own.known) - 1
    assert [reason for reason in found.refused if "zeros" in reason and "framework" in reason]


def test_a_number_of_rows_that_the_framework_refuses_is_a_frozen_batch(tmp_path: Path) -> None:
    with pytest.raises(VerificationFailed) as refused:
        judge(tmp_path, refusing("rows 7"))
    assert refused.value.rule == "frozen_batch"


def test_a_framework_that_answers_nothing_is_an_error(tmp_path: Path) -> None:
    def refuse(feeds: dict[str, Array], outputs: dict[str, Array]) -> dict[str, Array]:
        raise ValueError("never")

    with pytest.raises(ToolFailed) as failed:
        judge(tmp_path, refuse)
    assert (failed.value.rule, "never" in str(failed.value)) == ("no_answer", True)


def test_answers_in_more_precision_are_judged_in_the_graph_s(tmp_path: Path) -> None:
    found, _, _, _ = judge(tmp_path, lambda feeds, outputs: {n: v.astype(np.float64) for n, v in outputs.items()})
    assert {one.outputs[output_name()].dtype for one in found.known} == {np.dtype(np.float32)}


def test_arrays_pass_whole_and_never_as_objects(tmp_path: Path) -> None:
    values = {"file": np.arange(3), "a/b:0": np.asarray([[True]])}
    write_arrays(file_of(tmp_path, 7), list(values), values)
    found = read_arrays(tmp_path / "00007.npz", list(values))
    assert all(np.array_equal(found[name], values[name]) for name in values)
    np.savez(tmp_path / "00008.npz", a0=np.asarray([{}], dtype=object))
    with pytest.raises(ToolFailed, match="allow_pickle"):
        read_arrays(tmp_path / "00008.npz", ["x"])


def test_extra_cases_of_another_form_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "extra").mkdir()
    write_index(tmp_path / "extra", {"inputs": ["x"], "count": 1})
    (tmp_path / "extra" / "00000.npz").write_bytes(b"PK\x03\x04 no archive")
    signature = read_signature(mlp())
    with pytest.raises(ToolFailed) as failed:
        extra_cases(tmp_path, signature)
    assert failed.value.rule == "exchange"
    assert read_index(tmp_path / "extra")["count"] == 1
