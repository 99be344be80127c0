"""Runs over memory that stays: the same results as by names, owned by who asked, and given up where they do not fit."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.engine.runtimes.bound_run import BOUND_BYTES_MAX, MISSES_MAX
from gateway.engine.runtimes.onnx import OnnxRuntime, load_onnx
from gateway.engine.tensors import Array
from gateway.errors import TollwayError
from model_repo.config import parse_config
from model_repo.onnx_builder import Node, Value, build_mlp, encode_model
from tests.unit.engine.making import identity_onnx

MLP = 'input { name: "x" data_type: TYPE_FP32 dims: 64 } output { name: "y" data_type: TYPE_FP32 dims: 10 }'


def load(folder: Path, model: bytes, tensors: str, rows_max: int = 64) -> OnnxRuntime:
    path = folder / "model.onnx"
    path.write_bytes(model)
    text = f'name: "m" backend: "onnxruntime" max_batch_size: {rows_max} {tensors}'
    return load_onnx(path, parse_config(text, name="m"), threads=1)


def mlp(folder: Path) -> OnnxRuntime:
    return load(folder, build_mlp(), MLP)


def rows(count: int, seed: int = 1) -> dict[str, Array]:
    return {"x": np.random.default_rng(seed).standard_normal((count, 64), dtype=np.float32)}


def is_bound(runtime: OnnxRuntime, feeds: dict[str, Array]) -> bool:
    assert runtime._bound is not None
    return runtime._bound.run(feeds) is not None


def bind(runtime: OnnxRuntime, feeds: dict[str, Array]) -> None:
    for _ in range(MISSES_MAX):
        runtime.run(feeds)


def test_a_shape_that_keeps_coming_is_bound_and_answers_are_equal_to_the_bit(tmp_path: Path) -> None:
    runtime = mlp(tmp_path)
    wanted = [runtime.run(rows(1, seed))[0] for seed in range(MISSES_MAX - 1)]
    assert not is_bound(runtime, rows(1))
    bind(runtime, rows(1))
    assert is_bound(runtime, rows(1))
    found = [runtime.run(rows(1, seed))[0] for seed in range(MISSES_MAX - 1)]
    # All of them are still there: whoever asked owns its outputs.
    for one, other in zip(wanted, found, strict=True):
        assert one.tobytes() == other.tobytes()


def test_other_shapes_run_by_names_and_take_over_where_they_keep_coming(tmp_path: Path) -> None:
    runtime = mlp(tmp_path)
    bind(runtime, rows(1))
    assert runtime.run(rows(3))[0].shape == (3, 10)
    assert is_bound(runtime, rows(1))
    bind(runtime, rows(2))
    assert is_bound(runtime, rows(2))
    assert not is_bound(runtime, rows(1))


def test_an_array_of_another_type_is_not_converted(tmp_path: Path) -> None:
    runtime = mlp(tmp_path)
    bind(runtime, rows(1))
    with pytest.raises(TollwayError):
        runtime.run({"x": rows(1)["x"].astype(np.float64)})


def test_rows_that_lie_apart_are_taken_as_they_are(tmp_path: Path) -> None:
    runtime = mlp(tmp_path)
    bind(runtime, rows(1))
    apart = np.zeros((1, 128), np.float32)
    apart[:, ::2] = rows(1)["x"]
    assert runtime.run({"x": apart[:, ::2]})[0].tobytes() == runtime.run(rows(1))[0].tobytes()


@pytest.mark.parametrize(("over", "is_kept"), [(0, True), (1, False)])
def test_large_tensors_are_never_bound(tmp_path: Path, over: int, is_kept: bool) -> None:
    size = BOUND_BYTES_MAX // 8 + over  # input and output, four bytes each
    tensors = "".join(f'{kind} {{ name: "{name}" data_type: TYPE_FP32 dims: [ -1 ] }}' for kind, name in IO)
    runtime = load(tmp_path, identity_onnx("FP32", ["rows", "size"]), tensors)
    feeds = {"x": np.zeros((1, size), np.float32)}
    bind(runtime, feeds)
    assert is_bound(runtime, feeds) is is_kept


IO = (("input", "x"), ("output", "y"))


def test_texts_are_never_bound(tmp_path: Path) -> None:
    tensors = "".join(f'{kind} {{ name: "{name}" data_type: TYPE_STRING dims: [ 1 ] }}' for kind, name in IO)
    runtime = load(tmp_path, identity_onnx("BYTES", ["rows", 1]), tensors)
    feeds = {"x": np.array([[b"a"]], dtype=object)}
    bind(runtime, feeds)
    assert runtime.run(feeds)[0].tolist() == [["a"]]
    assert not is_bound(runtime, feeds)


def test_outputs_whose_shape_the_values_settle_are_never_bound(tmp_path: Path) -> None:
    model = encode_model(
        [Node(op="NonZero", inputs=["x"], outputs=["y"])],
        [Value(name="x", datatype="FP32", shape=["rows"])],
        [Value(name="y", datatype="INT64", shape=[1, "found"])],
    )
    tensors = (
        'input { name: "x" data_type: TYPE_FP32 dims: -1 } output { name: "y" data_type: TYPE_INT64 dims: 1 dims: -1 }'
    )
    runtime = load(tmp_path, model, tensors, rows_max=0)
    bind(runtime, {"x": np.array([1, 1], np.float32)})
    assert runtime.run({"x": np.array([0, 1], np.float32)})[0].tolist() == [[1]]


def test_threads_at_once_get_each_its_own_answer(tmp_path: Path) -> None:
    runtime = mlp(tmp_path)
    bind(runtime, rows(1))
    wanted = [runtime.run(rows(1, seed))[0].tobytes() for seed in range(4)]
    wrong: list[int] = []

    def ask(seed: int) -> None:
        feeds = rows(1, seed)
        for _ in range(300):
            if runtime.run(feeds)[0].tobytes() != wanted[seed]:
                wrong.append(seed)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


class Failing:
    """A session's run over bound memory that fails."""

    def __call__(self, *_arguments: Any) -> None:
        raise RuntimeError("shape verification failed")


def test_a_bound_run_that_fails_is_done_by_names_and_not_tried_again(tmp_path: Path) -> None:
    runtime = mlp(tmp_path)
    bind(runtime, rows(1))
    wanted = runtime.run(rows(1))[0].tobytes()
    assert runtime._bound is not None
    runtime._bound._run = Failing()
    assert runtime.run(rows(1))[0].tobytes() == wanted
    bind(runtime, rows(1))
    assert not is_bound(runtime, rows(1))
