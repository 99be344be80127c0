"""Owns wrong conversions, one each: the model that is spoilt, how, and the node that is the first to be wrong."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from converters.selftest import models


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """`node` is the name that the finding has to say."""

    name: str
    model: Callable[[], Any]
    spoil: Callable[[Any], None]
    node: str


def node_of(model: Any, name: str) -> Any:
    return next(one for one in model.graph.node if one.name == name)


def change(weight: str, how: Callable[[Any], Any]) -> Callable[[Any], None]:
    def spoil(model: Any) -> None:
        tensor = next(one for one in model.graph.initializer if one.name == weight)
        array = np.asarray(how(numpy_helper.to_array(tensor).copy()), dtype=numpy_helper.to_array(tensor).dtype)
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), weight))

    return spoil


def attribute(node: str, **values: Any) -> Callable[[Any], None]:
    def spoil(model: Any) -> None:
        found = node_of(model, node)
        kept = [one for one in found.attribute if one.name not in values]
        del found.attribute[:]
        found.attribute.extend([*kept, *(helper.make_attribute(name, value) for name, value in values.items())])

    return spoil


def replace(node: str, op: str, inputs: list[str] | None = None) -> Callable[[Any], None]:
    def spoil(model: Any) -> None:
        found = node_of(model, node)
        found.op_type = op
        del found.attribute[:]
        if inputs is not None:
            del found.input[:]
            found.input.extend(inputs)

    return spoil


def rewire(node: str, inputs: list[str]) -> Callable[[Any], None]:
    def spoil(model: Any) -> None:
        found = node_of(model, node)
        del found.input[:]
        found.input.extend(inputs)

    return spoil


def swap_outputs(model: Any) -> None:
    first, second = model.graph.output
    for node in model.graph.node:
        for place, name in enumerate(node.output):
            if name in {first.name, second.name}:
                node.output[place] = second.name if name == first.name else first.name


def old_softmax(model: Any) -> None:
    """Softmax as operator set 12 meant it: over all axes from 1 on together."""
    nodes = list(model.graph.node)
    place = next(index for index, node in enumerate(nodes) if node.op_type == "Softmax")
    own = nodes[place]
    before = helper.make_node("Reshape", [own.input[0], "flat"], ["flat_scores"], name="flatten")
    after = helper.make_node("Reshape", ["flat_p", "shape"], [own.output[0]], name=own.name)
    shape = helper.make_node("Shape", [own.input[0]], ["shape"], name="shape_of")
    middle = helper.make_node("Softmax", ["flat_scores"], ["flat_p"], name="softmax_flat", axis=-1)
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:place], shape, before, middle, after, *nodes[place + 1 :]])
    model.graph.initializer.append(numpy_helper.from_array(np.asarray([0, -1], np.int64), "flat"))


def round_tf32(array: Any) -> Any:
    """10 bits of mantissa are kept."""
    return (array.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def overflow(model: Any) -> None:
    """A product beyond what float16 holds, as an unguarded fp16 conversion makes it."""
    nodes = list(model.graph.node)
    place = next(index for index, node in enumerate(nodes) if node.name == "node_h")
    own = nodes[place]
    out = own.output[0]
    own.output[0] = "h_wide"
    more = [
        helper.make_node("Mul", ["h_wide", "much"], ["h_much"], name="much_times"),
        helper.make_node("Cast", ["h_much"], ["h_half"], name="to_half", to=onnx.TensorProto.FLOAT16),
        helper.make_node("Cast", ["h_half"], ["h_back"], name="from_half", to=onnx.TensorProto.FLOAT),
        helper.make_node("Div", ["h_back", "much"], [out], name="node_h"),
    ]
    own.name = "gemm"
    del model.graph.node[:]
    model.graph.node.extend([*nodes[: place + 1], *more, *nodes[place + 1 :]])
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(1e5, np.float32), "much"))


def sum_for_mean(model: Any) -> None:
    found = node_of(model, "node_m")
    found.op_type = "ReduceSum"
    kept = [one for one in found.attribute if one.name != "axes"]
    del found.attribute[:]
    found.attribute.extend(kept)
    found.input.append("sum_axes")
    model.graph.initializer.append(numpy_helper.from_array(np.asarray([1], np.int64), "sum_axes"))


def average_pool(model: Any) -> None:
    node_of(model, "node_p").op_type = "AveragePool"


def one_sign(array: Any) -> Any:
    return array * (1 - 2 * (array == array.max()))


M = models
FAULTS = [
    Fault(name="transposed weight", model=M.mlp, spoil=change("w1", np.transpose), node="node_h"),
    Fault(name="weight of another layer", model=M.mlp, spoil=rewire("node_s", ["r", "w1", "b2"]), node="node_s"),
    Fault(name="dropped bias", model=M.mlp, spoil=rewire("node_h", ["x", "w1"]), node="node_h"),
    Fault(name="dropped activation", model=M.mlp, spoil=replace("node_r", "Identity"), node="node_r"),
    Fault(name="other activation", model=M.mlp, spoil=replace("node_t", "Sigmoid"), node="node_t"),
    Fault(name="rounded as TF32", model=M.mlp, spoil=change("w1", round_tf32), node="node_h"),
    Fault(name="half overflow", model=M.mlp, spoil=overflow, node="node_h"),
    Fault(name="one weight of another sign", model=M.mlp, spoil=change("w2", one_sign), node="node_s"),
    Fault(name="alpha of a Gemm", model=M.mlp, spoil=attribute("node_y", alpha=0.999), node="node_y"),
    Fault(name="scale of ones", model=M.layer_norm, spoil=change("scale", np.ones_like), node="node_n"),
    Fault(name="bias of zeros", model=M.layer_norm, spoil=change("bias", np.zeros_like), node="node_n"),
    Fault(name="epsilon too great", model=M.layer_norm, spoil=attribute("node_n", epsilon=1e-3), node="node_n"),
    Fault(name="epsilon too small", model=M.layer_norm, spoil=attribute("node_n", epsilon=1e-6), node="node_n"),
    Fault(name="tanh for erf", model=M.layer_norm, spoil=replace("node_e", "Tanh"), node="node_e"),
    Fault(name="epsilon of batch norm", model=M.convnet, spoil=attribute("node_n", epsilon=1e-5), node="node_n"),
    Fault(name="variance for mean", model=M.convnet, spoil=rewire("node_n", ["c", "g", "o", "v", "v"]), node="node_n"),
    Fault(name="padding off by one", model=M.convnet, spoil=attribute("node_c", pads=[2, 2, 0, 0]), node="node_c"),
    Fault(name="average for maximum pool", model=M.convnet, spoil=average_pool, node="node_p"),
    Fault(name="kernel flipped", model=M.convnet, spoil=change("w2", lambda a: a[:, :, ::-1, ::-1]), node="node_d"),
    Fault(name="softmax of an old operator set", model=M.attention, spoil=old_softmax, node="node_p"),
    Fault(name="softmax over the wrong axis", model=M.attention, spoil=attribute("node_p", axis=1), node="node_p"),
    Fault(name="keys for queries", model=M.attention, spoil=rewire("node_q", ["x", "wk"]), node="node_q"),
    Fault(name="scale of attention", model=M.attention, spoil=change("shrink", lambda a: a * 1.01), node="node_scaled"),
    Fault(name="dropped residual", model=M.attention, spoil=replace("node_y", "Identity", ["mixed"]), node="node_y"),
    Fault(name="outputs swapped", model=M.two_outputs, spoil=swap_outputs, node="node_a"),
    Fault(name="bound of a clip", model=M.pooled, spoil=change("high", lambda a: a * 0.5), node="node_y"),
    Fault(name="sum for mean", model=M.pooled, spoil=sum_for_mean, node="node_m"),
    Fault(
        name="table off by one",
        model=M.embedding,
        spoil=change("table", lambda a: np.roll(a, 1, axis=0)),
        node="node_e",
    ),
    Fault(
        name="coordinates of resize",
        model=M.resized,
        spoil=attribute("node_u", coordinate_transformation_mode="asymmetric"),
        node="node_u",
    ),
    Fault(name="slope of a leaky relu", model=M.resized, spoil=attribute("node_l", alpha=0.01), node="node_l"),
    Fault(name="epsilon of instance norm", model=M.residual, spoil=attribute("node_n", epsilon=1e-2), node="node_n"),
    Fault(
        name="reset gate after the product",
        model=M.recurrent,
        spoil=attribute("node_all", linear_before_reset=1),
        node="node_all",
    ),
]
