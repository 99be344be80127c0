"""Owns the bench's own models to convert: six kinds of networks with seeded random weights, of sizes worth timing."""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]
Shape = tuple[int | str, ...]
_OPSET: Final = 17


class _Graph:
    """Nodes and weights as they are added."""

    def __init__(self, seed: int) -> None:
        self._noise = np.random.default_rng(seed)
        self._nodes: list[Any] = []
        self._weights: list[Any] = []

    def weight(self, *shape: int, fan: int) -> str:
        return self.constant((self._noise.standard_normal(shape) / np.sqrt(fan)).astype(np.float32))

    def constant(self, array: Any) -> str:
        name = f"w{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def add(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """The name of the last output."""
        names = [f"t{len(self._nodes)}_{place}" for place in range(outputs)]
        self._nodes.append(helper.make_node(op, list(inputs), names, name=f"n{len(self._nodes)}", **attributes))
        return names[-1]

    def model(self, x: Shape, y: Shape, last: str) -> bytes:
        self._nodes.append(helper.make_node("Identity", [last], ["y"], name="answer"))
        values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(s)) for n, s in (("x", x), ("y", y))]
        graph = helper.make_graph(self._nodes, "bench", values[:1], values[1:], self._weights)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=9)
        onnx.checker.check_model(made)
        return bytes(made.SerializeToString())

    def convolve(
        self, source: str, inside: int, outside: int, *, stride: int = 1, group: int = 1, width: int = 3
    ) -> str:
        kernel = self.weight(outside, inside // group, width, width, fan=inside // group * width * width)
        pad = width // 2
        bias = self.weight(outside, fan=outside)
        shape: dict[str, Any] = {
            "kernel_shape": [width, width],
            "strides": [stride, stride],
            "pads": [pad] * 4,
            "group": group,
        }
        return self.add("Relu", self.add("Conv", source, kernel, bias, **shape))

    def dense(self, source: str, inside: int, outside: int) -> str:
        product = self.add("MatMul", source, self.weight(inside, outside, fan=inside))
        return self.add("Add", product, self.weight(outside, fan=outside))


def cnn() -> bytes:
    graph = _Graph(1)
    last = "x"
    for inside, outside, stride in ((3, 32, 2), (32, 64, 1), (64, 64, 2), (64, 128, 1), (128, 128, 2)):
        last = graph.convolve(last, inside, outside, stride=stride)
    last = graph.add("Flatten", graph.add("GlobalAveragePool", last))
    return graph.model(("batch", 3, 64, 64), ("batch", 10), graph.dense(last, 128, 10))


def depthwise() -> bytes:
    graph = _Graph(2)
    last, channels = graph.convolve("x", 3, 32, stride=2), 32
    for outside, stride in ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1)):
        last = graph.convolve(last, channels, channels, stride=stride, group=channels)
        last, channels = graph.convolve(last, channels, outside, width=1), outside
    last = graph.add("Flatten", graph.add("GlobalAveragePool", last))
    return graph.model(("batch", 3, 64, 64), ("batch", 10), graph.dense(last, 256, 10))


def mlp() -> bytes:
    graph = _Graph(3)
    last = graph.add("Relu", graph.dense("x", 1024, 2048))
    last = graph.add("Relu", graph.dense(last, 2048, 1024))
    return graph.model(("batch", 1024), ("batch", 10), graph.dense(last, 1024, 10))


def encoder() -> bytes:
    """x: float32[batch, 32, 256] → y: float32[batch, 10], three layers of four heads."""
    graph = _Graph(4)
    last = "x"
    ones, zeros = np.ones(256, np.float32), np.zeros(256, np.float32)
    heads, joined = (graph.constant(np.asarray(one, np.int64)) for one in ((0, 0, 4, 64), (0, 0, 256)))
    shrink = graph.constant(np.float32(8))
    for _ in range(3):
        parts = [graph.add("Reshape", graph.dense(last, 256, 256), heads) for _ in range(3)]
        query, value = (graph.add("Transpose", part, perm=[0, 2, 1, 3]) for part in (parts[0], parts[2]))
        key = graph.add("Transpose", parts[1], perm=[0, 2, 3, 1])
        scores = graph.add("Softmax", graph.add("Div", graph.add("MatMul", query, key), shrink), axis=-1)
        mixed = graph.add("Transpose", graph.add("MatMul", scores, value), perm=[0, 2, 1, 3])
        attended = graph.add("Add", graph.dense(graph.add("Reshape", mixed, joined), 256, 256), last)
        middle = graph.add("LayerNormalization", attended, graph.constant(ones), graph.constant(zeros), axis=-1)
        wide = graph.add("Relu", graph.dense(middle, 256, 1024))
        last = graph.add("Add", graph.dense(wide, 1024, 256), middle)
    pooled = graph.add("ReduceMean", last, axes=[1], keepdims=0)
    return graph.model(("batch", 32, 256), ("batch", 10), graph.dense(pooled, 256, 10))


def gru() -> bytes:
    graph = _Graph(5)
    weights = (graph.weight(1, 384, 64, fan=64), graph.weight(1, 384, 128, fan=128), graph.weight(1, 768, fan=128))
    turned = graph.add("Transpose", "x", perm=[1, 0, 2])
    state = graph.add("GRU", turned, *weights, outputs=2, hidden_size=128)
    last = graph.add("Squeeze", state, graph.constant(np.asarray([0], np.int64)))
    return graph.model(("batch", 20, 64), ("batch", 10), graph.dense(last, 128, 10))


def tiny() -> bytes:
    graph = _Graph(6)
    return graph.model(("batch", 64), ("batch", 10), graph.dense(graph.add("Relu", graph.dense("x", 64, 64)), 64, 10))


#: name → (bytes of the model, shape of one row of `x`).
MODELS: Final[dict[str, tuple[Callable[[], bytes], tuple[int, ...]]]] = {
    "cnn": (cnn, (3, 64, 64)),
    "depthwise": (depthwise, (3, 64, 64)),
    "mlp": (mlp, (1024,)),
    "encoder": (encoder, (32, 256)),
    "gru": (gru, (20, 64)),
    "tiny": (tiny, (64,)),
}


def rows_of(shape: tuple[int, ...], count: int, seed: int) -> Array:
    """`float32[count, *shape]`, standard normal."""
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)
