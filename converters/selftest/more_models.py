"""Owns the other half of the self-test's honest models: recurrent, depthwise, normalised and reshaped ones."""

from typing import Any

import numpy as np

from converters.selftest.models import model_of, node, weight


def gru_rows() -> Any:
    """x: float32[batch, seq, 4] → y: float32[batch, 6], the last state."""
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        node("GRU", ["t", "w", "r", "b"], ["all", "last"], hidden_size=6),
        node("Squeeze", ["last", "first"], ["y"]),
    ]
    weights = {
        "w": weight(1, 18, 4, scale=0.4), "r": weight(1, 18, 6, scale=0.4), "b": weight(1, 36, scale=0.2),
        "first": np.asarray([0], np.int64),
    }  # fmt: skip
    return model_of(nodes, {"x": ("batch", "seq", 4)}, {"y": ("batch", 6)}, weights)


def lstm_rows() -> Any:
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        node("LSTM", ["t", "w", "r", "b"], ["all", "last"], hidden_size=5),
        node("Squeeze", ["last", "first"], ["s"]),
        node("Gemm", ["s", "v"], ["y"]),
    ]
    weights = {
        "w": weight(1, 20, 4, scale=0.4), "r": weight(1, 20, 5, scale=0.4), "b": weight(1, 40, scale=0.2),
        "first": np.asarray([0], np.int64), "v": weight(5, 3, seed=1),
    }  # fmt: skip
    return model_of(nodes, {"x": ("batch", "seq", 4)}, {"y": ("batch", 3)}, weights)


def depthwise() -> Any:
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["d"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], group=6),
        node("HardSwish", ["d"], ["h"]),
        node("Conv", ["h", "w2", "b2"], ["p"], kernel_shape=[1, 1]),
        node("GlobalMaxPool", ["p"], ["m"]),
        node("Flatten", ["m"], ["y"]),
    ]
    weights = {
        "w1": weight(6, 1, 3, 3, scale=0.4), "b1": weight(6, scale=0.3), "w2": weight(4, 6, 1, 1, scale=0.4, seed=1),
        "b2": weight(4, scale=0.3),
    }  # fmt: skip
    return model_of(nodes, {"x": ("batch", 6, 9, 9)}, {"y": ("batch", 4)}, weights)


def upsampling() -> Any:
    nodes = [
        node("ConvTranspose", ["x", "w", "b"], ["c"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Sigmoid", ["c"], ["y"]),
    ]
    weights = {"w": weight(3, 2, 2, 2, scale=0.4), "b": weight(2, scale=0.3)}
    return model_of(nodes, {"x": ("batch", 3, 5, 5)}, {"y": ("batch", 2, 10, 10)}, weights)


def gelu() -> Any:
    """The activation as exporters write it: 0.5 · h · (1 + erf(h / √2))."""
    nodes = [
        node("Gemm", ["x", "w1", "b1"], ["h"]),
        node("Div", ["h", "root"], ["s"]),
        node("Erf", ["s"], ["e"]),
        node("Add", ["e", "one"], ["o"]),
        node("Mul", ["h", "o"], ["m"]),
        node("Mul", ["m", "half"], ["g"]),
        node("Gemm", ["g", "w2"], ["y"]),
    ]
    weights = {
        "w1": weight(12, 16), "b1": weight(16, scale=0.3), "root": np.float32(np.sqrt(2)), "one": np.float32(1),
        "half": np.float32(0.5), "w2": weight(16, 4, seed=1),
    }  # fmt: skip
    return model_of(nodes, {"x": ("batch", 12)}, {"y": ("batch", 4)}, weights)


def squeeze_excite() -> Any:
    nodes = [
        node("GlobalAveragePool", ["x"], ["a"]),
        node("Conv", ["a", "w1", "b1"], ["n"], kernel_shape=[1, 1]),
        node("Relu", ["n"], ["r"]),
        node("Conv", ["r", "w2", "b2"], ["u"], kernel_shape=[1, 1]),
        node("Sigmoid", ["u"], ["s"]),
        node("Mul", ["x", "s"], ["y"]),
    ]
    weights = {
        "w1": weight(2, 4, 1, 1, scale=0.5), "b1": weight(2, scale=0.3), "w2": weight(4, 2, 1, 1, scale=0.5, seed=1),
        "b2": weight(4, scale=0.3),
    }  # fmt: skip
    return model_of(nodes, {"x": ("batch", 4, 6, 6)}, {"y": ("batch", 4, 6, 6)}, weights)


def log_softmax() -> Any:
    nodes = [node("Gemm", ["x", "w", "b"], ["g"], transB=1), node("LogSoftmax", ["g"], ["y"], axis=1)]
    return model_of(
        nodes, {"x": ("batch", 10)}, {"y": ("batch", 7)}, {"w": weight(7, 10, scale=0.3), "b": weight(7, scale=0.3)}
    )


def concat_skip() -> Any:
    nodes = [
        node("Conv", ["x", "w1"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Elu", ["c"], ["e"], alpha=1.0),
        node("Concat", ["x", "e"], ["k"], axis=1),
        node("Conv", ["k", "w2"], ["y"], kernel_shape=[1, 1]),
    ]
    weights = {"w1": weight(3, 2, 3, 3, scale=0.3), "w2": weight(2, 5, 1, 1, scale=0.4)}
    return model_of(nodes, {"x": ("batch", 2, 7, 7)}, {"y": ("batch", 2, 7, 7)}, weights)


def einsum_project() -> Any:
    nodes = [node("Einsum", ["x", "w"], ["p"], equation="bsd,de->bse"), node("Tanh", ["p"], ["y"])]
    return model_of(nodes, {"x": ("batch", "seq", 6)}, {"y": ("batch", "seq", 5)}, {"w": weight(6, 5)})


def group_norm() -> Any:
    """Two groups of two channels, by the reshapes that exporters write."""
    nodes = [
        node("Reshape", ["x", "grouped"], ["g"]),
        node("InstanceNormalization", ["g", "ones", "zeros"], ["n"], epsilon=1e-4),
        node("Reshape", ["n", "whole"], ["h"]),
        node("Mul", ["h", "scale"], ["s"]),
        node("Add", ["s", "bias"], ["y"]),
    ]
    weights = {
        "grouped": np.asarray([0, 2, -1], np.int64), "ones": np.ones(2, np.float32), "zeros": np.zeros(2, np.float32),
        "whole": np.asarray([-1, 4, 5, 5], np.int64), "scale": 1 + weight(4, 1, 1, scale=0.3),
        "bias": weight(4, 1, 1, scale=0.3, seed=1),
    }  # fmt: skip
    return model_of(nodes, {"x": ("batch", 4, 5, 5)}, {"y": ("batch", 4, 5, 5)}, weights)


def unit_length() -> Any:
    """An embedding brought to length 1; the floor keeps zeros from dividing by zero."""
    nodes = [
        node("MatMul", ["x", "w"], ["h"]),
        node("ReduceL2", ["h"], ["l"], axes=[1], keepdims=1),
        node("Max", ["l", "floor"], ["m"]),
        node("Div", ["h", "m"], ["y"]),
    ]
    return model_of(
        nodes, {"x": ("batch", 8)}, {"y": ("batch", 6)}, {"w": weight(8, 6), "floor": np.asarray([1e-3], np.float32)}
    )


def conv1d() -> Any:
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c"], kernel_shape=[3], dilations=[2], pads=[2, 2]),
        node("Relu", ["c"], ["r"]),
        node("ReduceMean", ["r"], ["m"], axes=[2], keepdims=0),
        node("Gemm", ["m", "w2"], ["y"]),
    ]
    weights = {"w1": weight(6, 3, 3, scale=0.4), "b1": weight(6, scale=0.3), "w2": weight(6, 2, seed=1)}
    return model_of(nodes, {"x": ("batch", 3, 20)}, {"y": ("batch", 2)}, weights)


MORE = {
    one.__name__: one
    for one in (
        gru_rows,
        lstm_rows,
        depthwise,
        upsampling,
        gelu,
        squeeze_excite,
        log_softmax,
        concat_skip,
        einsum_project,
        group_norm,
        unit_length,
        conv1d,
    )
}
