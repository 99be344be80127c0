"""From a repository to ready models: what is served, what is not and why, and when the server calls itself ready."""

import asyncio
import json
import os
from pathlib import Path

import numpy as np
import pytest

from gateway.clock import SystemClock
from gateway.engine.interface import Interface
from gateway.engine.runner import Executed, TensorRunner
from gateway.engine.tensors import Array
from gateway.engine.warmup import SHORT_NS, measure_short_rows
from gateway.engine.work import Feeds
from model_repo.config import parse_config
from model_repo.errors import RepositoryError
from tests.leaks import assert_none_left, held
from tests.unit.engine.making import (
    EngineUnderTest,
    FakeExchange,
    config_text,
    identity_onnx,
    python_step,
    run_engine,
    running_engine,
    write_identity,
    write_model,
    write_python,
)

X = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}


def test_a_server_without_models_is_not_ready(tmp_path: Path) -> None:
    async def test(engine: EngineUnderTest) -> None:
        assert (await engine.get("/v2/health/live")).status == 200
        reply = await engine.get("/v2/health/ready")
        assert (reply.status, reply.json()["code"]) == (503, "model_not_ready")
        assert reply.headers[b"retry-after"] == b"1"

    run_engine(tmp_path, test=test)


def test_nothing_is_ready_while_loading(tmp_path: Path) -> None:
    write_identity(tmp_path, "m", "FP32", (2,))

    async def main() -> None:
        async with running_engine() as empty:
            from gateway.engine.registry import Registry

            registry = Registry([tmp_path], empty.host)
            loading = asyncio.create_task(registry.load())
            seen = set()
            while not loading.done():
                seen.add(registry.is_ready)
                for row in registry.index():
                    assert row["state"] in {"LOADING", "READY"}
                await asyncio.sleep(0)
            await loading
            assert seen == {False}
            assert registry.is_ready
            await registry.unload()

    asyncio.run(main())


def test_versions_are_served_by_policy_and_the_latest_by_default(tmp_path: Path) -> None:
    write_identity(tmp_path, "m", "FP32", (2,))
    for version in ("2", "3"):
        write_identity(tmp_path, "m", "FP32", (2,))
        (tmp_path / "m" / version).mkdir()
        (tmp_path / "m" / version / "model.onnx").write_bytes((tmp_path / "m" / "1" / "model.onnx").read_bytes())
    with (tmp_path / "m" / "config.pbtxt").open("a") as file:
        file.write("version_policy { latest { num_versions: 2 } }")

    async def test(engine: EngineUnderTest) -> None:
        assert (await engine.get("/v2/models/m")).json()["versions"] == ["2", "3"]
        assert (await engine.infer("m", X)).json()["model_version"] == "3"
        assert (await engine.infer("m/versions/2", X)).json()["model_version"] == "2"
        assert (await engine.infer("m/versions/1", X)).status == 404

    run_engine(tmp_path, test=test)


def test_the_latest_version_that_works_is_the_default(tmp_path: Path) -> None:
    write_identity(tmp_path, "m", "FP32", (2,))
    with (tmp_path / "m" / "config.pbtxt").open("a") as file:
        file.write("version_policy { all { } }")
    (tmp_path / "m" / "2").mkdir()
    (tmp_path / "m" / "2" / "model.onnx").write_bytes(b"nonsense")

    async def test(engine: EngineUnderTest) -> None:
        assert (await engine.infer("m", X)).json()["model_version"] == "1"
        reply = await engine.infer("m/versions/2", X)
        assert (reply.status, reply.json()["code"]) == (503, "model_not_ready")

    run_engine(tmp_path, test=test)


def test_the_first_repository_wins_and_the_second_is_named(tmp_path: Path) -> None:
    write_identity(tmp_path / "a", "m", "FP32", (2,))
    write_identity(tmp_path / "b", "m", "INT32", (2,))

    async def test(engine: EngineUnderTest) -> None:
        assert (await engine.infer("m", X)).status == 200
        assert [row["reason"] for row in engine.registry.index()] == [
            "",
            "is in two repositories; the first one's is served",
        ]

    run_engine(tmp_path / "a", tmp_path / "b", test=test)


def sample(value: str) -> str:
    return f'model_warmup {{ name: "w" inputs {{ key: "x" value {{ data_type: TYPE_FP32 {value} }} }} }}'


GOOD = config_text("m", [("x", "FP32", (2,))], [("y", "FP32", (2,))], rows_max=8)


@pytest.mark.parametrize(
    ("config", "files", "reason"),
    [
        ("nonsense", {"1/model.onnx": b""}, "not a model configuration"),
        (GOOD, {}, "has no version folder"),
        (GOOD, {"1/other": b""}, "1/model.onnx: missing"),
        (GOOD, {"1/model.onnx": b"nonsense"}, "model.onnx: ONNX Runtime cannot load it"),
        (
            config_text("m", [("z", "FP32", (2,))], [("y", "FP32", (2,))], rows_max=8),
            {"1/model.onnx": identity_onnx("FP32", ("b", 2))},
            "input 'x' of the model file is not configured",
        ),
        (
            config_text("m", [("x", "FP32", (2,)), ("z", "FP32", (2,))], [("y", "FP32", (2,))], rows_max=8),
            {"1/model.onnx": identity_onnx("FP32", ("b", 2))},
            "input 'z' is not in the model file",
        ),
        (
            config_text("m", [("x", "FP32", (2,))], [("z", "FP32", (2,))], rows_max=8),
            {"1/model.onnx": identity_onnx("FP32", ("b", 2))},
            "output 'z' is not in the model file",
        ),
        (GOOD, {"1/model.onnx": identity_onnx("INT32", ("b", 2))}, "configured as FP32, the model file has INT32"),
        (GOOD, {"1/model.onnx": identity_onnx("FP32", ("b", 3))}, "configured dims [2] do not fit [3]"),
        (GOOD, {"1/model.onnx": identity_onnx("FP32", ("b", 2, 2))}, "do not fit"),
        (GOOD, {"1/model.onnx": identity_onnx("FP32", (1, 2))}, "not variable; set max_batch_size to 0"),
        (
            GOOD.replace('input { name: "x"', 'input { optional: true name: "x"'),
            {"1/model.onnx": identity_onnx("FP32", ("b", 2))},
            "optional, but the model file has no default for it",
        ),
        (
            GOOD.replace('output { name: "y"', 'output { label_filename: "labels" name: "y"'),
            {"1/model.onnx": identity_onnx("FP32", ("b", 2))},
            "labels: No such file",
        ),
        (
            GOOD.replace('output { name: "y"', 'output { label_filename: "labels" name: "y"'),
            {"1/model.onnx": identity_onnx("FP32", ("b", 2)), "labels": b"\xff"},
            "labels: is not UTF-8 text",
        ),
        (
            GOOD + sample('dims: 2 input_data_file: "f"'),
            {"1/model.onnx": identity_onnx("FP32", ("b", 2)), "warmup/f": b"123"},
            "needs 8 bytes, got 3",
        ),
        (
            GOOD
            + 'model_warmup { name: "w" inputs { key: "x" value { data_type: TYPE_FP32 dims: 3 zero_data: true } } }',
            {"1/model.onnx": identity_onnx("FP32", ("b", 2))},
            "model_warmup 'w': input 'x' of model 'm' has shape [1, 3]",
        ),
    ],
)
def test_what_cannot_be_served_is_unavailable_with_the_reason(
    tmp_path: Path, config: str, files: dict[str, bytes], reason: str
) -> None:
    write_model(tmp_path, "m", config, files)
    write_identity(tmp_path, "good", "FP32", (2,))

    async def test(engine: EngineUnderTest) -> None:
        row = next(row for row in engine.registry.index() if row["name"] == "m")
        assert row["state"] == "UNAVAILABLE"
        assert reason in row["reason"]
        # The others are served all the same; the server does not call itself ready.
        assert (await engine.infer("good", X)).status == 200
        assert (await engine.infer("m", X)).status in {404, 503}
        assert (await engine.get("/v2/health/ready")).status == 503

    run_engine(tmp_path, test=test)


def test_warmups_of_every_kind_run_before_ready(tmp_path: Path) -> None:
    tensor = 'inputs { key: "x" value { data_type: TYPE_FP32 dims: 2 %s } }'
    samples = "".join(
        f'model_warmup {{ name: "{name}" count: 2 {tensor % data} }}'
        for name, data in (
            ("z", "zero_data: true"),
            ("r", "random_data: true"),
            ("f", 'input_data_file: "raw"'),
        )
    )
    write_model(
        tmp_path,
        "m",
        GOOD + samples,
        {"1/model.onnx": identity_onnx("FP32", ("b", 2)), "warmup/raw": b"\0" * 8},
    )

    async def test(engine: EngineUnderTest) -> None:
        assert engine.registry.is_ready

    run_engine(tmp_path, test=test)


@pytest.mark.parametrize(("value", "state"), [("2", "READY"), ("many", "UNAVAILABLE")])
def test_a_model_may_ask_for_threads_of_its_own(tmp_path: Path, value: str, state: str) -> None:
    parameter = f'parameters {{ key: "intra_op_thread_count" value {{ string_value: "{value}" }} }}'
    write_model(tmp_path, "m", GOOD + parameter, {"1/model.onnx": identity_onnx("FP32", ("b", 2))})

    async def test(engine: EngineUnderTest) -> None:
        (row,) = engine.registry.index()
        assert row["state"] == state
        assert state == "READY" or "intra_op_thread_count: 'many'" in row["reason"]

    run_engine(tmp_path, test=test)


class _SeeingRuntime:
    """Keeps what it was given."""

    def __init__(self) -> None:
        self.seen: list[Array] = []

    def run(self, feeds: Feeds) -> list[Array]:
        self.seen += feeds.values()
        return list(feeds.values())

    def close(self) -> None: ...


def test_a_runtime_sees_aligned_arrays_only() -> None:
    interface = Interface(parse_config(GOOD, name="m"))
    runtime = _SeeingRuntime()
    runner = TensorRunner(runtime, interface, SystemClock())
    odd = np.frombuffer(bytes(9), dtype=np.float32, count=2, offset=1).reshape(1, 2)
    assert not odd.flags.aligned
    runner.run([{"x": odd}], [1])
    runner.run([{"x": odd}, {"x": odd}], [1, 1])
    assert [array.flags.aligned for array in runtime.seen] == [True, True]
    assert [array.shape for array in runtime.seen] == [(1, 2), (2, 2)]


class _TimedRunner:
    """Takes as long as told for each number of rows."""

    def __init__(self, ns_per_row: int) -> None:
        self.ns_per_row = ns_per_row
        self.runs = 0

    def run(self, feeds: object, rows: list[int]) -> Executed:
        self.runs += 1
        return Executed([[]], 0, self.ns_per_row * rows[0], 0)

    def close(self) -> None: ...


@pytest.mark.parametrize(
    ("ns_per_row", "rows_max", "short_rows"),
    [
        (1, 64, 64),
        (1, 48, 48),
        (1, 0, 1),
        (SHORT_NS // 8 + 1, 64, 4),
        (SHORT_NS, 64, 0),
        (SHORT_NS // 64 - 1, 100, 64),
        (SHORT_NS // 200, 100, 100),
    ],
)
def test_short_is_what_was_measured_to_be(ns_per_row: int, rows_max: int, short_rows: int) -> None:
    text = config_text("m", [("x", "FP32", (2,))], [("y", "FP32", (2,))], rows_max=rows_max)
    interface = Interface(parse_config(text, name="m"))
    assert measure_short_rows(_TimedRunner(ns_per_row), interface) == short_rows


@pytest.mark.parametrize(
    ("ns_per_row", "run_count"), [(SHORT_NS, 3), (10 * SHORT_NS - 1, 3), (10 * SHORT_NS, 2), (50 * SHORT_NS, 1)]
)
def test_a_long_model_is_not_run_more_often_than_it_takes_to_see_that(ns_per_row: int, run_count: int) -> None:
    text = config_text("m", [("x", "FP32", (2,))], [("y", "FP32", (2,))], rows_max=64)
    runner = _TimedRunner(ns_per_row)
    assert measure_short_rows(runner, Interface(parse_config(text, name="m"))) == 0
    assert runner.runs == run_count


@pytest.mark.parametrize("spec", [("x", "FP32", (-1,)), ("x", "BYTES", (2,))])
def test_a_model_whose_work_depends_on_the_call_is_never_short(spec: tuple[str, str, tuple[int, ...]]) -> None:
    interface = Interface(parse_config(config_text("m", [spec], [spec], rows_max=8), name="m"))
    assert measure_short_rows(_TimedRunner(1), interface) == 0


def test_a_missing_repository_is_an_error_of_its_own(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(RepositoryError, match="No such file"):
            async with running_engine(tmp_path / "nowhere"):
                raise AssertionError

    asyncio.run(main())


def test_loading_and_unloading_leaves_nothing_open(tmp_path: Path) -> None:
    write_identity(tmp_path, "m", "FP32", (2,))

    async def nothing(_engine: EngineUnderTest) -> None: ...

    run_engine(tmp_path, test=nothing)
    before = held()
    for _ in range(10):
        run_engine(tmp_path, test=nothing)
    assert_none_left(before, 10)


def test_the_request_parameter_priority_reaches_the_queue(tmp_path: Path) -> None:
    """One slot, taken by a step that waits: of those behind it, who comes last but first in rank is answered first."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    batching = "dynamic_batching { priority_levels: 2 default_priority_level: 2 }"
    wait = f"y = x\nif x[0, 0] == 0: open({str(gate)!r}).read()"
    write_python(tmp_path / "repository", "m", python_step(wait), rows_max=1, extra=batching)

    async def test(engine: EngineUnderTest) -> None:
        def begin(value: int, **parameters: int) -> FakeExchange:
            tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [value, 0]}
            body = json.dumps({"parameters": parameters, "inputs": [tensor]}).encode()
            return engine.begin("POST", "/v2/models/m/infer", body)

        order: list[str] = []

        async def note(name: str, exchange: FakeExchange) -> None:
            await exchange.replied.wait()
            assert exchange.status == 200
            order.append(name)

        first = begin(0)
        await asyncio.sleep(0)
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for name, exchange in (("late", begin(1)), ("low", begin(1, priority=2)), ("high", begin(1, priority=1))):
                group.create_task(note(name, exchange))
            await asyncio.to_thread(gate.write_text, "go")
        assert first.status == 200
        assert order == ["high", "late", "low"]
        assert begin(1, priority=-1).json()["code"] == "bad_request"

    run_engine(tmp_path / "repository", test=test)
