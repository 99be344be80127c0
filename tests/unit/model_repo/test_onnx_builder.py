"""Models made by hand load in ONNX Runtime and compute what they should."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from model_repo.config import parse_config
from model_repo.onnx_builder import Node, Value, Weight, build_convnet, build_mlp, encode_model, main


def session(model: bytes) -> ort.InferenceSession:
    return ort.InferenceSession(model, providers=["CPUExecutionProvider"])


def test_the_mlp_has_its_shape_and_depends_on_its_input() -> None:
    own = session(build_mlp())
    assert own.get_inputs()[0].shape == ["batch", 64]
    zeros, ones = (own.run(None, {"x": np.full((3, 64), value, dtype=np.float32)})[0] for value in (0, 1))
    assert zeros.shape == (3, 10)
    assert not np.allclose(zeros, ones)


def test_the_convnet_has_its_shape() -> None:
    own = session(build_convnet())
    assert own.get_inputs()[0].shape == ["batch", 3, 64, 64]
    assert own.run(None, {"x": np.ones((2, 3, 64, 64), dtype=np.float32)})[0].shape == (2, 10)


def test_the_same_call_gives_the_same_bytes() -> None:
    assert build_mlp() == build_mlp()
    assert build_mlp(seed=2) != build_mlp()


def test_attributes_of_every_kind_reach_the_runtime() -> None:
    nodes = [
        Node(op="LeakyRelu", inputs=("x",), outputs=("a",), attributes={"alpha": 0.5}),
        Node(op="Transpose", inputs=("a",), outputs=("b",), attributes={"perm": (1, 0)}),
        Node(op="Add", inputs=("b", "w"), outputs=("y",)),
    ]
    weights = [Weight(name="w", datatype="FP32", shape=(1,), data=np.float32(1).tobytes())]
    model = encode_model(
        nodes,
        [Value(name="x", datatype="FP32", shape=(2, "n"))],
        [Value(name="y", datatype="FP32", shape=("n", 2))],
        weights,
    )
    (y,) = session(model).run(None, {"x": np.array([[-2, 4, 6], [1, 2, 3]], dtype=np.float32)})
    assert y.tolist() == [[0, 2], [5, 3], [7, 4]]


@pytest.mark.parametrize("name", ["mlp", "convnet"])
def test_the_command_writes_a_model_in_tritons_layout(tmp_path: Path, name: str) -> None:
    main([name, "--repository", str(tmp_path)])
    assert parse_config((tmp_path / name / "config.pbtxt").read_text(), name=name).platform == "onnxruntime"
    main([name, "--out", str(tmp_path / "file.onnx")])
    assert (tmp_path / "file.onnx").read_bytes() == (tmp_path / name / "1" / "model.onnx").read_bytes()
