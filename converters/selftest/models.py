"""Owns small ONNX graphs of many kinds, with seeded weights: what the self-test converts, and spoils."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def model_of(
    nodes: list[Any],
    inputs: dict[str, tuple[int | str, ...]],
    outputs: dict[str, tuple[int | str, ...]],
    weights: dict[str, Any],
    *,
    opset: int = 17,
    kinds: dict[str, int] | None = None,
) -> Any:
    """Float tensors, but those in `kinds`. Nodes are named by their first output."""
    for node in nodes:
        node.name = f"node_{node.output[0]}"
    types = kinds or {}

    def values(shapes: dict[str, tuple[int | str, ...]]) -> list[Any]:
        return [
            helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), list(shape))
            for name, shape in shapes.items()
        ]

    constants = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "graph", values(inputs), values(outputs), constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def weight(*shape: int, seed: int = 0, scale: float | None = None) -> Any:
    spread = scale if scale is not None else 1 / np.sqrt(max(1, shape[0]))
    return (np.random.default_rng([seed, *shape]).standard_normal(shape) * spread).astype(np.float32)


node = helper.make_node


def mlp(wide: int = 24) -> Any:
    nodes = [
        node("Gemm", ["x", "w1", "b1"], ["h"]),
        node("Relu", ["h"], ["r"]),
        node("Gemm", ["r", "w2", "b2"], ["s"]),
        node("Tanh", ["s"], ["t"]),
        node("Gemm", ["t", "w3", "b3"], ["y"]),
    ]
    weights = {
        "w1": weight(wide, wide, seed=1), "b1": weight(wide, scale=0.3, seed=2), "w2": weight(wide, wide, seed=3),
        "b2": weight(wide, scale=0.3, seed=4), "w3": weight(wide, 6, seed=5), "b3": weight(6, scale=0.3, seed=6),
    }  # fmt: skip
    return model_of(nodes, {"x": ("batch", wide)}, {"y": ("batch", 6)}, weights)


def layer_norm(epsilon: float = 1e-5) -> Any:
    nodes = [
        node("MatMul", ["x", "w1"], ["h"]),
        node("LayerNormalization", ["h", "scale", "bias"], ["n"], axis=-1, epsilon=epsilon),
        node("Erf", ["n"], ["e"]),
        node("MatMul", ["e", "w2"], ["y"]),
    ]
    weights = {
        "w1": weight(16, 16, seed=1), "scale": 1 + weight(16, scale=0.4, seed=2),
        "bias": weight(16, scale=0.4, seed=3), "w2": weight(16, 5, seed=4),
    }  # fmt: skip
    return model_of(nodes, {"x": ("batch", 16)}, {"y": ("batch", 5)}, weights)


def convnet() -> Any:
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["c", "g", "o", "m", "v"], ["n"], epsilon=1e-3),
        node("Relu", ["n"], ["r"]),
        node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["p", "w2", "b2"], ["d"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], group=2),
        node("GlobalAveragePool", ["d"], ["a"]),
        node("Flatten", ["a"], ["y"]),
    ]
    weights = {
        "w1": weight(8, 3, 3, 3, scale=0.3), "b1": weight(8, scale=0.3), "g": 1 + weight(8, scale=0.3, seed=1),
        "o": weight(8, scale=0.3, seed=2), "m": weight(8, scale=0.3, seed=3), "v": np.abs(weight(8, seed=4)) + 0.1,
        "w2": weight(8, 4, 3, 3, scale=0.3, seed=5), "b2": weight(8, scale=0.3, seed=6),
    }  # fmt: skip
    return model_of(nodes, {"x": ("batch", 3, 12, 12)}, {"y": ("batch", 8)}, weights)


def attention() -> Any:
    """x: float32[batch, seq, 8] → y: float32[batch, seq, 8], one head."""
    nodes = [
        node("MatMul", ["x", "wq"], ["q"]),
        node("MatMul", ["x", "wk"], ["k"]),
        node("MatMul", ["x", "wv"], ["v"]),
        node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        node("MatMul", ["q", "kt"], ["scores"]),
        node("Mul", ["scores", "shrink"], ["scaled"]),
        node("Softmax", ["scaled"], ["p"], axis=-1),
        node("MatMul", ["p", "v"], ["mixed"]),
        node("Add", ["mixed", "x"], ["y"]),
    ]
    weights = {f"w{name}": weight(8, 8, seed=place) for place, name in enumerate("qkv")}
    weights["shrink"] = np.float32(0.35)
    return model_of(nodes, {"x": ("batch", "seq", 8)}, {"y": ("batch", "seq", 8)}, weights)


def two_outputs() -> Any:
    nodes = [
        node("Gemm", ["x", "w1", "b1"], ["h"]),
        node("Sigmoid", ["h"], ["a"]),
        node("Gemm", ["h", "w2", "b2"], ["b"]),
    ]
    weights = {"w1": weight(8, 6), "b1": weight(6, scale=0.3), "w2": weight(6, 6, seed=1), "b2": weight(6, scale=0.3)}
    return model_of(nodes, {"x": ("batch", 8)}, {"a": ("batch", 6), "b": ("batch", 6)}, weights)


def pooled() -> Any:
    """x: float32[batch, seq, 6] → y: float32[batch, 6], label: int64[batch]."""
    nodes = [
        node("ReduceMean", ["x"], ["m"], axes=[1], keepdims=0),
        node("Gemm", ["m", "w", "b"], ["g"]),
        node("Clip", ["g", "low", "high"], ["y"]),
        node("ArgMax", ["y"], ["label"], axis=1, keepdims=0),
    ]
    weights = {"w": weight(6, 6), "b": weight(6, scale=0.2), "low": np.float32(-3), "high": np.float32(3)}
    shapes: dict[str, tuple[int | str, ...]] = {"y": ("batch", 6), "label": ("batch",)}
    return model_of(nodes, {"x": ("batch", "seq", 6)}, shapes, weights, kinds={"label": TensorProto.INT64})


def embedding() -> Any:
    """ids: int64[batch, seq] → y: float32[batch, 4]."""
    nodes = [
        node("Gather", ["table", "ids"], ["e"], axis=0),
        node("ReduceMax", ["e"], ["m"], axes=[1], keepdims=0),
        node("Gemm", ["m", "w", "b"], ["y"]),
    ]
    weights = {"table": weight(10, 8, scale=1), "w": weight(8, 4), "b": weight(4, scale=0.3)}
    return model_of(nodes, {"ids": ("batch", "seq")}, {"y": ("batch", 4)}, weights, kinds={"ids": TensorProto.INT64})


def fixed() -> Any:
    """No batch axis: x: float32[4, 5] → y: float32[5]."""
    nodes = [
        node("Mul", ["x", "w"], ["h"]),
        node("ReduceSum", ["h", "axes"], ["s"], keepdims=0),
        node("Exp", ["s"], ["y"]),
    ]
    return model_of(nodes, {"x": (4, 5)}, {"y": (5,)}, {"w": weight(4, 5), "axes": np.asarray([0], np.int64)})


def resized() -> Any:
    nodes = [
        node("Resize", ["x", "", "scales"], ["u"], mode="linear", coordinate_transformation_mode="half_pixel"),
        node("Conv", ["u", "w", "b"], ["c"], kernel_shape=[3, 3]),
        node("LeakyRelu", ["c"], ["l"], alpha=0.1),
        node("AveragePool", ["l"], ["y"], kernel_shape=[2, 2], strides=[2, 2]),
    ]
    weights = {
        "scales": np.asarray([1, 1, 2, 2], np.float32),
        "w": weight(4, 2, 3, 3, scale=0.3),
        "b": weight(4, scale=0.3),
    }
    return model_of(nodes, {"x": ("batch", 2, 6, 6)}, {"y": ("batch", 4, 5, 5)}, weights)


def recurrent() -> Any:
    """x: float32[5, batch, 4] has its batch in the middle: no batch axis for the engine."""
    nodes = [node("GRU", ["x", "w", "r", "b"], ["", "y"], hidden_size=6)]
    weights = {"w": weight(1, 18, 4, scale=0.4), "r": weight(1, 18, 6, scale=0.4), "b": weight(1, 36, scale=0.2)}
    nodes[0].output[0] = "all"
    return model_of(nodes, {"x": (5, 2, 4)}, {"y": (1, 2, 6)}, weights)


def mixed_rows() -> Any:
    """A variable first axis that is no batch: each row is divided by the sum of all."""
    nodes = [node("ReduceSum", ["x", "axes"], ["s"], keepdims=1), node("Div", ["x", "s"], ["y"])]
    return model_of(nodes, {"x": ("n", 3)}, {"y": ("n", 3)}, {"axes": np.asarray([0], np.int64)})


def residual() -> Any:
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c"], kernel_shape=[1, 1]),
        node("InstanceNormalization", ["c", "g", "o"], ["n"], epsilon=1e-4),
        node("Add", ["n", "x"], ["s"]),
        node("Softplus", ["s"], ["y"]),
    ]
    weights = {
        "w1": weight(4, 4, 1, 1, scale=0.6),
        "b1": weight(4, scale=0.2),
        "g": 1 + weight(4, scale=0.3),
        "o": weight(4),
    }
    return model_of(nodes, {"x": ("batch", 4, 5, 5)}, {"y": ("batch", 4, 5, 5)}, weights)


CLEAN: dict[str, Callable[[], Any]] = {
    one.__name__: one
    for one in (
        mlp,
        layer_norm,
        convnet,
        attention,
        two_outputs,
        pooled,
        embedding,
        fixed,
        resized,
        recurrent,
        mixed_rows,
        residual,
    )
}
