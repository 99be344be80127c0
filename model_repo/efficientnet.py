"""Owns EfficientNet-lite0 as an ONNX graph, from its published PyTorch weights."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from model_repo.checkpoints import Array, read_torch
from model_repo.onnx_builder import Node, Value, Weight, encode_model
from model_repo.onnx_graft import GraftError

IMAGE_SIZE: Final = 224
CLASSES: Final = 1_000
_EPSILON: Final = 1e-3
#: Of the depthwise convolution of each block, in order; everything else about a block is in its weights' shapes.
_STRIDES: Final = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)


def image_network(members: Mapping[str, bytes]) -> bytes:
    """`PIXELS: float32[batch, 3, 224, 224]` (RGB, ImageNet's mean and deviation) → `SCORES: float32[batch, 1000]`.

    Scores are before the softmax.

    Raises:
        GraftError: the weights are not this network's.
    """
    (data,) = members.values()
    tensors = read_torch(data)
    graph = _Graph(tensors)
    try:
        last = graph.build()
    except KeyError as error:
        raise GraftError(f"the weights lack {error.args[0]}: they are not EfficientNet-lite0's") from error
    if last != (CLASSES, graph.channels):
        raise GraftError(f"the last layer is {last}, not that of {CLASSES} classes")
    return encode_model(
        graph.nodes,
        [Value(name="PIXELS", datatype="FP32", shape=("batch", 3, IMAGE_SIZE, IMAGE_SIZE))],
        [Value(name="SCORES", datatype="FP32", shape=("batch", CLASSES))],
        graph.weights,
        name="efficientnet_lite0",
    )


class _Graph:
    """Nodes and weights as they are added; `size` and `channels` are those of the image so far."""

    def __init__(self, tensors: Mapping[str, Array]) -> None:
        self._tensors = tensors
        self.nodes: list[Node] = []
        self.weights: list[Weight] = [_floats("zero", np.float32(0)), _floats("six", np.float32(6))]
        self.size = IMAGE_SIZE
        self.channels = 3

    def build(self) -> tuple[int, ...]:
        """All layers. Returns the shape of the last one's weights."""
        last = self._convolve("PIXELS", "_conv_stem", "_bn0", stride=2)
        for number, stride in enumerate(_STRIDES):
            last = self._block(last, f"_blocks.{number}.", stride)
        last = self._convolve(last, "_conv_head", "_bn1")
        self.nodes += [
            Node(op="GlobalAveragePool", inputs=(last,), outputs=("pooled",)),
            Node(op="Flatten", inputs=("pooled",), outputs=("features",)),
            Node(op="Gemm", inputs=("features", "fc", "fc_bias"), outputs=("SCORES",), attributes={"transB": 1}),
        ]
        matrix = self._tensors["_fc.weight"]
        self.weights += [_floats("fc", matrix), _floats("fc_bias", self._tensors["_fc.bias"])]
        return matrix.shape

    def _block(self, source: str, prefix: str, stride: int) -> str:
        """Widen, filter each channel, narrow; the source is added where the shape stays."""
        channels, last = self.channels, source
        if f"{prefix}_expand_conv.weight" in self._tensors:
            last = self._convolve(last, f"{prefix}_expand_conv", f"{prefix}_bn0")
        last = self._convolve(last, f"{prefix}_depthwise_conv", f"{prefix}_bn1", stride=stride)
        last = self._convolve(last, f"{prefix}_project_conv", f"{prefix}_bn2", is_linear=True)
        if stride != 1 or channels != self.channels:
            return last
        self.nodes.append(Node(op="Add", inputs=(last, source), outputs=(f"{prefix}sum",)))
        return f"{prefix}sum"

    def _convolve(self, source: str, name: str, norm: str, *, stride: int = 1, is_linear: bool = False) -> str:
        kernel = self._tensors[f"{name}.weight"]
        group = self.channels if kernel.shape[1] == 1 and self.channels > 1 else 1
        self.weights.append(_floats(name, kernel))
        width = kernel.shape[2]
        out = -(-self.size // stride)
        spare = max((out - 1) * stride + width - self.size, 0)
        pads = (spare // 2, spare // 2, spare - spare // 2, spare - spare // 2)
        shape: dict[str, int | Sequence[int]] = {"kernel_shape": (width, width), "strides": (stride, stride)}
        attributes = {**shape, "pads": pads, "group": group}
        self.nodes.append(Node(op="Conv", inputs=(source, name), outputs=(f"{name}.y",), attributes=attributes))
        self.size, self.channels = out, kernel.shape[0]
        return self._normalise(f"{name}.y", name, norm, is_linear=is_linear)

    def _normalise(self, source: str, name: str, norm: str, *, is_linear: bool) -> str:
        parts = [f"{norm}.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
        self.weights += [_floats(part, self._tensors[part]) for part in parts]
        target = f"{name}.n"
        self.nodes.append(
            Node(
                op="BatchNormalization",
                inputs=(source, *parts),
                outputs=(target,),
                attributes={"epsilon": _EPSILON},
            )
        )
        if is_linear:
            return target
        self.nodes.append(Node(op="Clip", inputs=(target, "zero", "six"), outputs=(f"{name}.r",)))
        return f"{name}.r"


def _floats(name: str, array: "Array | np.float32") -> Weight:
    plain = np.ascontiguousarray(array, dtype="<f4")
    return Weight(name=name, datatype="FP32", shape=np.shape(array), data=plain.tobytes())
