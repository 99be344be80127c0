"""Ensembles: data flow, whose fault is whose, cancellation of steps under way, and what load refuses."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from model_repo.onnx_builder import Node, Value, encode_model
from tests.unit.engine.making import (
    EngineUnderTest,
    config_text,
    python_step,
    run_engine,
    write_identity,
    write_model,
    write_python,
)


def write_unary(root: Path, name: str, op: str, dims: tuple[int, ...] = (2,), *, rows_max: int = 8) -> None:
    """x → y = op(x)."""
    shape = ("b", *(f"d{axis}" if size == -1 else size for axis, size in enumerate(dims)))
    model = encode_model(
        [Node(op=op, inputs=("x",), outputs=("y",))],
        [Value(name="x", datatype="FP32", shape=shape)],
        [Value(name="y", datatype="FP32", shape=shape)],
    )
    config = config_text(name, [("x", "FP32", dims)], [("y", "FP32", dims)], rows_max=rows_max)
    write_model(root, name, config, {"1/model.onnx": model})


def write_add(root: Path) -> None:
    """a, b → y = a + b."""
    model = encode_model(
        [Node(op="Add", inputs=("a", "b"), outputs=("y",))],
        [Value(name=name, datatype="FP32", shape=("n", 2)) for name in "ab"],
        [Value(name="y", datatype="FP32", shape=("n", 2))],
    )
    config = config_text("add", [(name, "FP32", (2,)) for name in "ab"], [("y", "FP32", (2,))], rows_max=8)
    write_model(root, "add", config, {"1/model.onnx": model})


def step(model: str, inputs: dict[str, str], outputs: dict[str, str]) -> str:
    maps = "".join(f'input_map {{ key: "{key}" value: "{value}" }} ' for key, value in inputs.items())
    maps += "".join(f'output_map {{ key: "{key}" value: "{value}" }} ' for key, value in outputs.items())
    return f'step {{ model_name: "{model}" model_version: -1 {maps} }}\n'


def write_ensemble(
    root: Path,
    name: str,
    *steps: str,
    dims: tuple[int, ...] = (2,),
    rows_max: int = 8,
    output: str = "FP32",
    extra: str = "",
) -> None:
    config = config_text(
        name,
        [("IN", "FP32", dims)],
        [("OUT", output, dims)],
        platform="ensemble",
        rows_max=rows_max,
        extra="ensemble_scheduling {\n" + "".join(steps) + "}\n" + extra,
    )
    write_model(root, name, config, {"1/.keep": ""})


def request(data: list[float], shape: list[int]) -> dict[str, Any]:
    return {"inputs": [{"name": "IN", "datatype": "FP32", "shape": shape, "data": data}]}


def test_tensors_flow_through_branches_and_meet_again(tmp_path: Path) -> None:
    write_unary(tmp_path, "neg", "Neg")
    write_unary(tmp_path, "exp", "Exp")
    write_add(tmp_path)
    write_ensemble(
        tmp_path,
        "e",
        step("add", {"a": "n", "b": "x"}, {"y": "OUT"}),  # written first, runs last
        step("neg", {"x": "IN"}, {"y": "n"}),
        step("exp", {"x": "IN"}, {"y": "x"}),
    )

    async def test(engine: EngineUnderTest) -> None:
        reply = await engine.infer("e", request([0, 1, 0, 0], [2, 2]))
        assert reply.json()["outputs"][0]["data"] == pytest.approx([1, 1.71828, 1, 1], rel=1e-4)
        assert reply.headers[b"tollway-rows"] == b"2"
        stats = (await engine.get("/v2/models/stats")).json()["model_stats"]
        steps_ns = sum(own["inference_stats"]["compute_infer"]["ns"] for own in stats if own["name"] != "e")
        assert int(reply.headers[b"tollway-compute-ns"]) == steps_ns
        assert (await engine.get("/v2/models/e")).json()["platform"] == "ensemble"

    run_engine(tmp_path, test=test)


def test_ensembles_may_contain_ensembles(tmp_path: Path) -> None:
    write_unary(tmp_path, "neg", "Neg")
    write_ensemble(tmp_path, "a_outer", step("inner", {"IN": "IN"}, {"OUT": "OUT"}))
    write_ensemble(tmp_path, "inner", step("neg", {"x": "IN"}, {"y": "OUT"}))

    async def test(engine: EngineUnderTest) -> None:
        reply = await engine.infer("a_outer", request([1, 2], [1, 2]))
        assert reply.json()["outputs"][0]["data"] == [-1, -2]

    run_engine(tmp_path, test=test)


def test_an_ensemble_without_batch_axis_feeds_steps_that_have_one(tmp_path: Path) -> None:
    write_unary(tmp_path, "neg", "Neg")
    write_ensemble(tmp_path, "e", step("neg", {"x": "IN"}, {"y": "OUT"}), dims=(-1, 2), rows_max=0)

    async def test(engine: EngineUnderTest) -> None:
        reply = await engine.infer("e", request([1, 2, 3, 4], [2, 2]))
        assert reply.json()["outputs"][0]["data"] == [-1, -2, -3, -4]
        too_many = await engine.infer("e", request([1] * 18, [9, 2]))
        assert (too_many.status, too_many.json()["code"]) == (400, "invalid_tensor")  # the caller's own tensor

    run_engine(tmp_path, test=test)


def test_a_steps_misshapen_result_is_the_models_fault(tmp_path: Path) -> None:
    write_python(
        tmp_path, "grow", python_step("y = np.zeros((x.shape[0], 3), np.float32)"), outputs=[("y", "FP32", (-1,))]
    )
    write_unary(tmp_path, "neg", "Neg")
    write_ensemble(tmp_path, "e", step("grow", {"x": "IN"}, {"y": "m"}), step("neg", {"x": "m"}, {"y": "OUT"}))

    async def test(engine: EngineUnderTest) -> None:
        reply = await engine.infer("e", request([1, 2], [1, 2]))
        assert (reply.status, reply.json()["code"]) == (500, "backend_fault")
        assert "has shape [1, 3]" in reply.json()["error"]

    run_engine(tmp_path, test=test)


def test_an_output_that_differs_from_the_ensembles_configuration_is_a_backend_fault(tmp_path: Path) -> None:
    write_python(
        tmp_path, "grow", python_step("y = np.zeros((x.shape[0], 3), np.float32)"), outputs=[("y", "FP32", (-1,))]
    )
    write_ensemble(tmp_path, "e", step("grow", {"x": "IN"}, {"y": "OUT"}))

    async def test(engine: EngineUnderTest) -> None:
        reply = await engine.infer("e", request([1, 2], [1, 2]))
        assert (reply.status, reply.json()["code"]) == (500, "backend_fault")
        assert "output 'OUT' has shape [1, 3]" in reply.json()["error"]

    run_engine(tmp_path, test=test)


def test_a_failing_step_ends_the_ensemble_and_withdraws_the_others(tmp_path: Path) -> None:
    write_python(tmp_path, "bad", python_step("raise ValueError('secret')"))
    write_python(tmp_path, "slow", python_step("time.sleep(0.05)\ny = x"))
    write_add(tmp_path)
    write_ensemble(
        tmp_path,
        "e",
        step("slow", {"x": "IN"}, {"y": "a"}),
        step("bad", {"x": "IN"}, {"y": "b"}),
        step("add", {"a": "a", "b": "b"}, {"y": "OUT"}),
    )

    async def test(engine: EngineUnderTest) -> None:
        reply = await engine.infer("e", request([1, 2], [1, 2]))
        assert reply.status == 500
        assert reply.json()["error"] == "model 'bad' raised ValueError"
        stats = {own["name"]: own for own in (await engine.get("/v2/models/stats")).json()["model_stats"]}
        assert stats["e"]["inference_stats"]["fail"]["count"] == 1
        assert stats["add"]["inference_stats"]["success"]["count"] == 0

    run_engine(tmp_path, test=test)


def test_a_caller_that_leaves_stops_the_steps_to_come(tmp_path: Path) -> None:
    write_python(tmp_path, "slow", python_step("time.sleep(0.05)\ny = x"))
    write_unary(tmp_path, "neg", "Neg")
    write_ensemble(tmp_path, "e", step("slow", {"x": "IN"}, {"y": "a"}), step("neg", {"x": "a"}, {"y": "OUT"}))

    async def test(engine: EngineUnderTest) -> None:
        exchange = engine.begin("POST", "/v2/models/e/infer", json.dumps(request([1, 2], [1, 2])).encode())
        await asyncio.sleep(0)
        engine.engine.on_abort(exchange)
        direct = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}
        assert (await engine.infer("slow", direct)).status == 200  # behind the one that was withdrawn
        stats = {own["name"]: own for own in (await engine.get("/v2/models/stats")).json()["model_stats"]}
        assert exchange.replies == 0
        assert stats["neg"]["inference_stats"]["success"]["count"] == 0

    run_engine(tmp_path, test=test)


def test_a_deadline_passes_on_to_the_steps(tmp_path: Path) -> None:
    write_python(tmp_path, "slow", python_step("time.sleep(0.2)\ny = x"))
    write_ensemble(tmp_path, "e", step("slow", {"x": "IN"}, {"y": "OUT"}))

    async def test(engine: EngineUnderTest) -> None:
        reply = await engine.infer("e", {**request([1, 2], [1, 2]), "parameters": {"timeout": 1000}})
        assert (reply.status, reply.json()["code"]) == (504, "deadline_exceeded")

    run_engine(tmp_path, test=test)


def test_an_ensemble_warms_up_through_its_steps(tmp_path: Path) -> None:
    write_unary(tmp_path, "neg", "Neg")
    tensor = 'inputs { key: "IN" value { data_type: TYPE_FP32 dims: 2 zero_data: true } }'
    sample = f'model_warmup {{ name: "w" batch_size: 2 count: 3 {tensor} }}'
    write_ensemble(tmp_path, "e", step("neg", {"x": "IN"}, {"y": "OUT"}), extra=sample)

    async def test(engine: EngineUnderTest) -> None:
        stats = {own["name"]: own for own in (await engine.get("/v2/models/stats")).json()["model_stats"]}
        assert stats["e"]["execution_count"] == 3
        assert stats["e"]["inference_count"] == 6

    run_engine(tmp_path, test=test)


@pytest.mark.parametrize(
    ("steps", "output", "reason"),
    [
        ([step("nope", {"x": "IN"}, {"y": "OUT"})], "FP32", "ensemble step 'nope': model 'nope' is not found"),
        ([step("neg", {"q": "IN"}, {"y": "OUT"})], "FP32", "its model has no tensor 'q'"),
        ([step("neg", {"x": "IN"}, {"q": "OUT"})], "FP32", "its model has no tensor 'q'"),
        ([step("neg", {"x": "IN"}, {"x": "OUT"})], "FP32", "its model has no output 'x'"),
        ([step("add", {"a": "IN"}, {"y": "OUT"})], "FP32", "its input 'b' is not mapped"),
        ([step("int", {"x": "IN"}, {"y": "OUT"})], "INT32", "tensor 'IN' is FP32, not INT32"),
        ([step("neg", {"x": "IN"}, {"y": "OUT"})], "INT32", "tensor 'OUT' is FP32, not INT32"),
        ([step("broken", {"x": "IN"}, {"y": "OUT"})], "FP32", "model.onnx: ONNX Runtime cannot load it"),
        ([step("e", {"IN": "IN"}, {"OUT": "OUT"})], "FP32", "ensembles that contain each other"),
    ],
)
def test_an_ensemble_that_does_not_fit_its_steps_is_not_served(
    tmp_path: Path, steps: list[str], output: str, reason: str
) -> None:
    write_unary(tmp_path, "neg", "Neg")
    write_add(tmp_path)
    write_identity(tmp_path, "int", "INT32", (2,))
    write_identity(tmp_path, "broken", "FP32", (2,))
    (tmp_path / "broken" / "1" / "model.onnx").write_bytes(b"nonsense")
    write_ensemble(tmp_path, "e", *steps, output=output)

    async def test(engine: EngineUnderTest) -> None:
        rows = {row["name"]: row for row in (await engine.call("POST", "/v2/repository/index")).json()}
        assert rows["e"]["state"] == "UNAVAILABLE"
        assert reason in rows["e"]["reason"]
        reply = await engine.infer("e", request([1, 2], [1, 2]))
        assert reply.status == 503
        assert (await engine.get("/v2/health/ready")).status == 503

    run_engine(tmp_path, test=test)
