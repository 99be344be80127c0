"""Ragged batches: requests of different shapes run together, each gets the answer it would get alone."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.clock import SystemClock
from gateway.engine.interface import Interface
from gateway.engine.ragged import batch_tensor, find_ragged
from gateway.engine.runner import TensorRunner
from gateway.engine.tensors import Array
from gateway.engine.work import Feeds
from gateway.errors import Code, TollwayError
from model_repo.config import parse_config
from model_repo.errors import ConfigError
from model_repo.onnx_builder import Node, Value, Weight, encode_model
from model_repo.ragged import BATCH_INPUTS_MAX, BatchInput
from tests.unit.engine.making import EngineUnderTest, config_text, run_engine, write_model, write_python

KINDS = (
    "BATCH_ELEMENT_COUNT",
    "BATCH_ACCUMULATED_ELEMENT_COUNT",
    "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO",
    "BATCH_MAX_ELEMENT_COUNT_AS_SHAPE",
    "BATCH_ITEM_SHAPE",
    "BATCH_ITEM_SHAPE_FLATTEN",
)
#: A batch leaves at four rows, or after long enough that four calls which begin together are in it.
BATCHING = "dynamic_batching { preferred_batch_size: 4 max_queue_delay_microseconds: 20000000 }"
TOGETHER = 4


def batch_input(kind: str, name: str, source: str = "x", datatype: str = "INT32") -> str:
    return f'batch_input {{ kind: {kind} target_name: "{name}" data_type: TYPE_{datatype} source_input: "{source}" }}\n'


def ragged_config(name: str, outputs: list[tuple[str, str, tuple[int, ...]]], extra: str, **more: Any) -> str:
    text = config_text(name, [("x", "FP32", (-1,))], outputs, rows_max=4, extra=f"{BATCHING}\n{extra}", **more)
    return text.replace('input { name: "x"', 'input { allow_ragged_batch: true name: "x"')


def constant(name: str, values: list[int], *, datatype: str = "INT64") -> Weight:
    dtype = np.int64 if datatype == "INT64" else np.float32
    return Weight(name=name, datatype=datatype, shape=(len(values),), data=np.array(values, dtype=dtype).tobytes())


def write_segments(root: Path) -> None:
    """total: the sum of each request's x; twice: 2x, cut by the shape of x; shape: what the model was told of x."""
    axis = Weight(name="axis", datatype="INT64", shape=(), data=np.array(0, dtype=np.int64).tobytes())
    weights = [
        axis,
        constant("zero", [0], datatype="FP32"),
        *(constant(name, [value]) for name, value in (("i0", 0), ("i1", 1), ("last", -1), ("end", 1 << 40))),
    ]
    nodes = [
        Node(op="CumSum", inputs=("x", "axis"), outputs=("sums",)),
        Node(op="Concat", inputs=("zero", "sums"), outputs=("padded",), attributes={"axis": 0}),
        Node(op="Slice", inputs=("begins", "i1", "end"), outputs=("to",)),
        Node(op="Slice", inputs=("begins", "i0", "last"), outputs=("from",)),
        Node(op="Gather", inputs=("padded", "to"), outputs=("a",)),
        Node(op="Gather", inputs=("padded", "from"), outputs=("b",)),
        Node(op="Sub", inputs=("a", "b"), outputs=("flat",)),
        Node(op="Unsqueeze", inputs=("flat", "i1"), outputs=("total",)),
        Node(op="Add", inputs=("x", "x"), outputs=("twice",)),
        Node(op="Identity", inputs=("items",), outputs=("shape",)),
    ]
    model = encode_model(
        nodes,
        [
            Value(name="x", datatype="FP32", shape=("n",)),
            Value(name="begins", datatype="INT32", shape=("m",)),
            Value(name="items", datatype="INT32", shape=("rows", 1)),
        ],
        [
            Value(name="total", datatype="FP32", shape=("batch", 1)),
            Value(name="twice", datatype="FP32", shape=("n",)),
            Value(name="shape", datatype="INT32", shape=("batch", 1)),
        ],
        weights,
    )
    extra = batch_input(KINDS[2], "begins") + batch_input(KINDS[4], "items")
    extra += 'batch_output { target_name: "twice" kind: BATCH_SCATTER_WITH_INPUT_SHAPE source_input: "x" }'
    outputs: list[tuple[str, str, tuple[int, ...]]] = [
        ("total", "FP32", (1,)),
        ("twice", "FP32", (-1,)),
        ("shape", "INT32", (1,)),
    ]
    write_model(root, "segments", ragged_config("segments", outputs, extra), {"1/model.onnx": model})


def request(values: list[float], name: str = "x") -> dict[str, Any]:
    return {"inputs": [{"name": name, "datatype": "FP32", "shape": [1, len(values)], "data": values}]}


async def batch_sizes(engine: EngineUnderTest, model: str) -> set[int]:
    stats = (await engine.get(f"/v2/models/{model}/stats")).json()["model_stats"][0]
    return {entry["batch_size"] for entry in stats["batch_stats"]}


def test_requests_of_different_shapes_share_a_batch_and_get_their_own_answers(tmp_path: Path) -> None:
    write_segments(tmp_path)
    rows = [[1.0], [2.0, 3.0], [4.0, 5.0, 6.0], [7.0] * 9]

    async def test(engine: EngineUnderTest) -> None:
        replies = await asyncio.gather(*(engine.infer("segments", request(values)) for values in rows))
        for values, reply in zip(rows, replies, strict=True):
            assert reply.status == 200, reply.body
            outputs = {one["name"]: one for one in reply.json()["outputs"]}
            assert outputs["total"]["data"] == [sum(values)]
            assert (outputs["twice"]["shape"], outputs["twice"]["data"]) == ([1, len(values)], [2 * v for v in values])
            assert outputs["shape"]["data"] == [len(values)]
        assert await batch_sizes(engine, "segments") == {TOGETHER}

    run_engine(tmp_path, test=test)


def test_requests_of_a_python_model_keep_their_shapes(tmp_path: Path) -> None:
    """Such a model is given each request by itself, so it needs to be told nothing."""
    write_python(
        tmp_path,
        "p",
        """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            y = np.array([[x.shape[1], len(requests)]], dtype=np.float32)
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", y)]))
        return answers
""",
        inputs=[("x", "FP32", (-1,))],
        rows_max=4,
        extra=BATCHING,
    )
    path = tmp_path / "p" / "config.pbtxt"
    path.write_text(path.read_text().replace('input { name: "x"', 'input { allow_ragged_batch: true name: "x"'))

    async def test(engine: EngineUnderTest) -> None:
        replies = await asyncio.gather(*(engine.infer("p", request([1.0] * size)) for size in (1, 2, 3, 7)))
        assert [reply.json()["outputs"][0]["data"] for reply in replies] == [[size, 4] for size in (1, 2, 3, 7)]

    run_engine(tmp_path, test=test)


def test_without_the_declaration_shapes_never_mix(tmp_path: Path) -> None:
    write_python(
        tmp_path,
        "p",
        """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        y = np.array([[len(requests), 0]], dtype=np.float32)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", y)]) for _ in requests]
""",
        inputs=[("x", "FP32", (-1,))],
        rows_max=2,
        extra="dynamic_batching { max_queue_delay_microseconds: 20000000 }",
    )

    async def test(engine: EngineUnderTest) -> None:
        replies = await asyncio.gather(*(engine.infer("p", request([1.0] * size)) for size in (1, 2, 1, 2)))
        assert [reply.json()["outputs"][0]["data"][0] for reply in replies] == [2, 2, 2, 2]

    run_engine(tmp_path, test=test)


# -- what a model is told ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("BATCH_ELEMENT_COUNT", [6, 4]),
        ("BATCH_ACCUMULATED_ELEMENT_COUNT", [6, 10]),
        ("BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO", [0, 6, 10]),
        ("BATCH_MAX_ELEMENT_COUNT_AS_SHAPE", [0] * 6),
        ("BATCH_ITEM_SHAPE", [[3, 1], [3, 1], [2, 2]]),
        ("BATCH_ITEM_SHAPE_FLATTEN", [3, 1, 3, 1, 2, 2]),
    ],
)
@pytest.mark.parametrize("datatype", ["FP32", "INT32"])
def test_batch_tensors_are_as_tritons_configuration_describes_them(
    kind: str, expected: list[Any], datatype: str
) -> None:
    """Its own example: a request of two rows of [3, 1] and one of one row of [2, 2]."""
    made = batch_tensor(BatchInput(kind=kind, name="i", datatype=datatype, source="x"), [(2, 3, 1), (1, 2, 2)])
    assert made.tolist() == expected
    assert made.dtype == (np.float32 if datatype == "FP32" else np.int32)


class EchoRuntime:
    """Returns x, flat as it came."""

    def __init__(self, cut: int = 0) -> None:
        self.cut = cut
        self.fed: Feeds = {}

    def run(self, feeds: Feeds) -> list[Array]:
        self.fed = feeds
        return [feeds["x"][self.cut :]]

    def close(self) -> None:
        """Holds nothing."""


def scatter_runner(runtime: EchoRuntime) -> TensorRunner:
    """x: any number of pairs of any length → y of the same shape."""
    text = config_text("m", [("x", "FP32", (-1, 2))], [("y", "FP32", (-1, 2))], rows_max=8, extra=BATCHING)
    text = text.replace('input { name: "x"', 'input { allow_ragged_batch: true name: "x"')
    text += 'batch_output { target_name: "y" kind: BATCH_SCATTER_WITH_INPUT_SHAPE source_input: "x" }'
    config = parse_config(text, name="m")
    interface = Interface(config)
    return TensorRunner(runtime, interface, SystemClock(), find_ragged(config, interface))


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 5)), min_size=1, max_size=6))
def test_joining_and_cutting_are_inverse(shapes: list[tuple[int, int]]) -> None:
    """Oracle: every request's own tensor, of its own shape, whatever is in the batch; also alone, also empty."""
    runtime = EchoRuntime()
    arrays = [
        np.arange(rows * length * 2, dtype=np.float32).reshape(rows, length, 2) + 100 * number
        for number, (rows, length) in enumerate(shapes)
    ]
    executed = scatter_runner(runtime).run([{"x": array} for array in arrays], [rows for rows, _ in shapes])
    assert runtime.fed["x"].shape == (sum(array.size for array in arrays),)
    for array, result in zip(arrays, executed.results, strict=True):
        assert isinstance(result, list)
        np.testing.assert_array_equal(result[0], array)


def test_a_model_that_returns_another_size_fails_the_batch() -> None:
    runner = scatter_runner(EchoRuntime(cut=1))
    executed = runner.run([{"x": np.zeros((1, 2, 2), np.float32)}, {"x": np.zeros((1, 1, 2), np.float32)}], [1, 1])
    assert len(executed.results) == 2
    for result in executed.results:
        assert isinstance(result, TollwayError)
        assert result.code is Code.BACKEND_FAULT


# -- refusals at load -------------------------------------------------------------------------------------------------

GOOD = ragged_config("m", [("y", "FP32", (1,))], batch_input(KINDS[0], "count"))


def test_the_good_one_is_read() -> None:
    config = parse_config(GOOD, name="m")
    assert config.inputs[0].is_ragged
    assert [one.name for one in config.batch_inputs] == ["count"]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (BATCHING, "", "no effect without max_batch_size and dynamic_batching"),
        ("dims: [-1]", "dims: [3]", "no effect on dims without a variable size"),
        ("max_batch_size: 4", "max_batch_size: 0", "max_batch_size"),
        ('platform: "onnxruntime_onnx"', 'backend: "tensorrt"', "allow_ragged_batch: not served for platform"),
        ('platform: "onnxruntime_onnx"', 'backend: "python"', "batch_input: only for a model in an ONNX"),
        ("TYPE_INT32", "TYPE_INT64", "its data_type none of FP32, INT32"),
        ("BATCH_ELEMENT_COUNT", "17", "kind is unknown"),
        ('source_input: "x"', 'source_input: "z"', "'z' is no input of the model"),
        ('source_input: "x"', 'source_input: "x" source_input: "x"', "one source_input"),
        ('target_name: "count"', 'target_name: "x"', "the same target_name"),
        ('target_name: "count"', "", "one target_name"),
        ("batch_input", 'batch_output { target_name: "z" source_input: "x" } batch_input', "no tensor of the model"),
        ("batch_input", 'batch_output { target_name: "y" } batch_input', "one source_input"),
        (
            "batch_input",
            'batch_output { target_name: "y" kind: 9 source_input: "x" } batch_input',
            "kind 9 is not served",
        ),
    ],
)
def test_what_would_have_no_effect_is_refused_by_name(old: str, new: str, reason: str) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError, match=reason):
        parse_config(GOOD.replace(old, new), name="m")


def test_batch_inputs_are_bounded() -> None:
    def text(count: int) -> str:
        extra = "".join(batch_input(KINDS[0], f"i{number}") for number in range(count))
        return ragged_config("m", [("y", "FP32", (1,))], extra)

    assert len(parse_config(text(BATCH_INPUTS_MAX), name="m").batch_inputs) == BATCH_INPUTS_MAX
    with pytest.raises(ConfigError, match="more than 64"):
        parse_config(text(BATCH_INPUTS_MAX + 1), name="m")


@pytest.mark.parametrize(
    ("shape", "made", "reason"),
    [
        (("batch", "n"), [("count", "INT32", ("m",))], "ragged, so the model file must have one axis"),
        ((4,), [("count", "INT32", ("m",))], "ragged, so the model file must have one axis"),
        (("n",), [], "batch_input 'count' is not in the model file"),
        (("n",), [("count", "FP32", ("m",))], "configured as INT32, the model file has FP32"),
        (("n",), [("count", "INT32", (2,))], "must have 1 axes, the first of variable size"),
        (("n",), [("count", "INT32", ("m",)), ("more", "FP32", ("m",))], "input 'more' of the model file is not conf"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    tmp_path: Path, shape: tuple[Any, ...], made: list[tuple[str, str, tuple[Any, ...]]], reason: str
) -> None:
    nodes = [
        Node(op="ReduceSum", inputs=("x",), outputs=("s",)),
        Node(op="Reshape", inputs=("s", "one"), outputs=("y",)),
    ]
    nodes += [Node(op="Identity", inputs=(name,), outputs=(f"unused_{name}",)) for name, _, _ in made]
    inputs = [Value(name="x", datatype="FP32", shape=shape)]
    inputs += [Value(name=name, datatype=datatype, shape=own) for name, datatype, own in made]
    outputs = [Value(name="y", datatype="FP32", shape=("batch", 1))]
    model = encode_model(nodes, inputs, outputs, [constant("one", [1, 1])])
    write_model(tmp_path, "m", GOOD, {"1/model.onnx": model})

    async def test(engine: EngineUnderTest) -> None:
        reply = await engine.call("POST", "/v2/repository/index", b"{}")
        [entry] = reply.json()
        assert entry["state"] == "UNAVAILABLE"
        assert reason in entry["reason"]

    run_engine(tmp_path, test=test)
