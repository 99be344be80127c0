"""Owns a model's interface as its graph declares it: tensors, axes, and which axis could be the batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import onnx

from converters.errors import UsageFault

#: TensorProto.DataType → our name. Strings are outputs only; complex numbers and 8-bit floats have no form in the
#: runtimes used here.
DATATYPES: Final = {
    onnx.TensorProto.FLOAT: "FP32",
    onnx.TensorProto.FLOAT16: "FP16",
    onnx.TensorProto.DOUBLE: "FP64",
    onnx.TensorProto.INT8: "INT8",
    onnx.TensorProto.INT16: "INT16",
    onnx.TensorProto.INT32: "INT32",
    onnx.TensorProto.INT64: "INT64",
    onnx.TensorProto.UINT8: "UINT8",
    onnx.TensorProto.UINT16: "UINT16",
    onnx.TensorProto.UINT32: "UINT32",
    onnx.TensorProto.UINT64: "UINT64",
    onnx.TensorProto.BOOL: "BOOL",
    onnx.TensorProto.STRING: "STRING",
}
DTYPES: Final = {
    "FP32": np.float32, "FP16": np.float16, "FP64": np.float64, "BOOL": np.bool_,
    "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64,
    "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """`shape`: a number is fixed, a string names a variable axis (`?` with a number where the graph gives no name)."""

    name: str
    datatype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """`is_batched` False: the first axis was found to be no batch, whatever the graph looks like."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    is_batched: bool = True

    @property
    def batch_axis(self) -> str | None:
        """The variable first axis that all inputs share and every output has a variable axis in its place; or None."""
        if not self.is_batched:
            return None
        firsts = {tensor.shape[0] if tensor.shape else 0 for tensor in self.inputs}
        first = firsts.pop() if len(firsts) == 1 else 0
        are_outputs_variable = all(tensor.shape and isinstance(tensor.shape[0], str) for tensor in self.outputs)
        return first if isinstance(first, str) and are_outputs_variable else None

    @property
    def variable_axes(self) -> tuple[str, ...]:
        """Names of the inputs' variable axes but the batch, in order of appearance."""
        names = dict.fromkeys(size for tensor in self.inputs for size in tensor.shape if isinstance(size, str))
        return tuple(name for name in names if name != self.batch_axis)

    def narrowed(self, shapes: Mapping[str, Sequence[int | None]]) -> "Signature":
        """With the outputs' fixed sizes of a file that knows more than the source's graph says."""
        return replace(self, outputs=tuple(_narrow(tensor, shapes.get(tensor.name, ())) for tensor in self.outputs))


def _narrow(tensor: Tensor, shape: Sequence[int | None]) -> Tensor:
    if len(shape) != len(tensor.shape):
        return tensor
    pairs = zip(tensor.shape, shape, strict=True)
    return replace(tensor, shape=tuple(size if own is None else own for size, own in pairs))


def read_signature(model: Any) -> Signature:
    """Raises: UsageFault: a tensor of a type or form that is not converted."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if not inputs or not model.graph.output:
        raise UsageFault("no_io", "the model has no input or no output", next_step="export it with both")
    firsts = [_first_symbol(value) for value in inputs]
    for value in inputs:
        if value.type.tensor_type.elem_type == onnx.TensorProto.STRING:
            text = f"'{value.name}': inputs of strings are not converted"
            raise UsageFault("datatype", text, next_step="turn texts into numbers before the model")
    # Exporters that name no axis leave it empty: then all unnamed first axes are taken for one.
    shared = firsts[0] if len(set(firsts)) == 1 else None
    return Signature(
        inputs=tuple(_tensor(value, shared) for value in inputs),
        outputs=tuple(_tensor(value, shared) for value in model.graph.output),
    )


def _first_symbol(value: Any) -> str | None:
    dims = value.type.tensor_type.shape.dim
    if not dims or (dims[0].HasField("dim_value") and dims[0].dim_value > 0):
        return None
    return _symbol(dims[0]) or "batch"


def _symbol(dim: Any) -> str:
    """The name of a variable axis; empty where the graph only marks it as unknown."""
    return "" if dim.dim_param in {"?", "-1", "None"} else str(dim.dim_param)


def _tensor(value: Any, shared: str | None) -> Tensor:
    kind = value.type.tensor_type
    datatype = DATATYPES.get(kind.elem_type)
    if datatype is None:
        number = kind.elem_type
        text = f"'{value.name}': tensors of ONNX element type {number} are not converted"
        raise UsageFault("datatype", text, next_step="convert a model whose tensors are numbers")
    return Tensor(name=value.name, datatype=datatype, shape=_shape(value.name, kind.shape.dim, shared))


def _shape(name: str, dims: Sequence[Any], shared: str | None) -> tuple[int | str, ...]:
    sizes: list[int | str] = []
    for place, dim in enumerate(dims):
        if dim.HasField("dim_value") and dim.dim_value > 0:
            sizes.append(int(dim.dim_value))
            continue
        symbol = _symbol(dim)
        if place == 0 and not symbol and shared:
            sizes.append(shared)
        else:
            sizes.append(symbol or f"{name}.{place}")
    return tuple(sizes)
