"""Optional inputs of ONNX models: the file's own value where a caller gives none; batches never mix who gave what."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_repo.onnx_builder import Node, Value, Weight, encode_model
from tests.unit.engine.making import EngineUnderTest, config_text, run_engine, write_model

DEFAULT = 100.0
BATCHING = "dynamic_batching { preferred_batch_size: 4 max_queue_delay_microseconds: 20000000 }"


def write_sum(
    root: Path, *, rows_max: int = 4, extra: str = BATCHING, optional: str = "b", datatype: str = "FP32"
) -> None:
    """y = a + b; b is 100 where a caller does not give it."""
    shape: tuple[str | int, ...] = ("batch", 1) if rows_max else (1,)
    default = Weight(
        name="b",
        datatype="FP32",
        shape=(1,) * len(shape),
        data=np.full((1,) * len(shape), DEFAULT, dtype=np.float32).tobytes(),
    )
    names = ("a", "b", "y")
    a, b, y = (Value(name=name, datatype="FP32", shape=shape) for name in names)
    model = encode_model([Node(op="Add", inputs=("a", "b"), outputs=("y",))], [a, b], [y], [default])
    text = config_text(
        "sum", [("a", "FP32", (1,)), ("b", datatype, (1,))], [("y", "FP32", (1,))], rows_max=rows_max, extra=extra
    )
    text = text.replace(f'input {{ name: "{optional}"', f'input {{ optional: true name: "{optional}"')
    write_model(root, "sum", text, {"1/model.onnx": model})


def request(values: dict[str, float], *, rows_max: int = 4) -> dict[str, Any]:
    shape = [1, 1] if rows_max else [1]
    return {
        "inputs": [
            {"name": name, "datatype": "FP32", "shape": shape, "data": [value]} for name, value in values.items()
        ]
    }


@pytest.mark.parametrize("rows_max", [0, 4])
def test_an_input_left_out_has_the_files_value(tmp_path: Path, rows_max: int) -> None:
    write_sum(tmp_path, rows_max=rows_max, extra="")

    async def test(engine: EngineUnderTest) -> None:
        for values, expected in (({"a": 1.0}, 101.0), ({"a": 1.0, "b": 5.0}, 6.0), ({"a": 2.0}, 102.0)):
            reply = await engine.infer("sum", request(values, rows_max=rows_max))
            assert reply.json()["outputs"][0]["data"] == [expected]
        missing = await engine.infer("sum", request({"b": 1.0}, rows_max=rows_max))
        assert (missing.status, missing.json()["code"]) == (400, "invalid_tensor")

    run_engine(tmp_path, test=test)


def test_requests_with_other_inputs_present_never_share_a_batch(tmp_path: Path) -> None:
    """Four of each kind, mixed: two batches of four, and everybody has his own answer."""
    write_sum(tmp_path)

    async def test(engine: EngineUnderTest) -> None:
        asked: list[dict[str, float]] = [
            {"a": float(number)} | ({"b": 7.0} if number % 2 else {}) for number in range(8)
        ]
        replies = await asyncio.gather(*(engine.infer("sum", request(values)) for values in asked))
        for values, reply in zip(asked, replies, strict=True):
            assert reply.json()["outputs"][0]["data"] == [values["a"] + values.get("b", DEFAULT)]
        [stats] = (await engine.get("/v2/models/sum/stats")).json()["model_stats"]
        batches = {entry["batch_size"]: entry["compute_infer"]["count"] for entry in stats["batch_stats"]}
        assert batches == {4: 2}

    run_engine(tmp_path, test=test)


def test_an_input_with_a_default_may_be_demanded_all_the_same(tmp_path: Path) -> None:
    """Not declared optional: every request must have it, though the file could do without."""
    write_sum(tmp_path, optional="nothing", extra="")

    async def test(engine: EngineUnderTest) -> None:
        assert (await engine.infer("sum", request({"a": 1.0}))).status == 400
        assert (await engine.infer("sum", request({"a": 1.0, "b": 2.0}))).json()["outputs"][0]["data"] == [3.0]

    run_engine(tmp_path, test=test)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"optional": "a"}, "input 'a': optional, but the model file has no default for it"),
        ({"datatype": "INT32"}, "input 'b': configured as INT32, the model file has FP32"),
    ],
)
def test_what_the_file_cannot_do_without_is_refused_at_load(
    tmp_path: Path, fields: dict[str, Any], reason: str
) -> None:
    write_sum(tmp_path, **fields)

    async def test(engine: EngineUnderTest) -> None:
        [entry] = (await engine.call("POST", "/v2/repository/index", b"{}")).json()
        assert entry["state"] == "UNAVAILABLE"
        assert reason in entry["reason"]

    run_engine(tmp_path, test=test)


def test_an_ensemble_need_not_map_an_optional_input(tmp_path: Path) -> None:
    write_sum(tmp_path, extra="")
    maps = 'input_map { key: "a" value: "x" } output_map { key: "y" value: "z" }'
    step = f'step {{ model_name: "sum" model_version: -1 {maps} }}'
    config = config_text(
        "all",
        [("x", "FP32", (1,))],
        [("z", "FP32", (1,))],
        platform="ensemble",
        rows_max=4,
        extra=f"ensemble_scheduling {{ {step} }}",
    )
    write_model(tmp_path, "all", config, {})
    (tmp_path / "all" / "1").mkdir()

    async def test(engine: EngineUnderTest) -> None:
        reply = await engine.infer("all", request({"x": 1.0}))
        assert reply.json()["outputs"][0]["data"] == [101.0]

    run_engine(tmp_path, test=test)
