"""Owns JAX functions: code that builds one, with weights from safetensors or none; exported by jax2onnx."""

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx

from converters.importers.code import Code, name_outputs
from converters.importers.exchange import Array, Feeds
from converters.importers.graphs import keep_outputs, name_axes
from converters.importers.protocol import DTYPES, Asked, Export

OPSET: Final = 21


def open_source(asked: Asked) -> "JaxSource":
    """Raises: UsageFault: the code does not build a function, or the inputs are not stated."""
    code = Code(asked)
    weights: dict[str, Array] | None = None
    if asked.format == "jax_weights":
        from safetensors.numpy import load_file

        weights = load_file(str(asked.source))
    return JaxSource(code.build(weights), code)


class JaxSource:
    def __init__(self, function: Callable[..., Any], code: Code) -> None:
        import jax

        self._function = function
        self._compiled = jax.jit(function)
        self._code = code

    def versions(self) -> dict[str, str]:
        return {name: importlib.metadata.version(name) for name in ("jax", "jax2onnx", "onnx")}

    def answer(self, feeds: Feeds) -> dict[str, Array]:
        found = self._compiled(*(feeds[one.name] for one in self._code.inputs))
        return {name: np.asarray(value) for name, value in name_outputs(found, self._code.outputs).items()}

    def export(self, path: Path) -> Export:
        import jax
        import jax2onnx

        inputs = self._code.inputs
        symbols = sorted({size for one in inputs for size in one.shape if isinstance(size, str)})
        sizes = dict(zip(symbols, jax.export.symbolic_shape(",".join(symbols)) if symbols else (), strict=True))
        shapes = [
            jax.ShapeDtypeStruct(
                tuple(sizes[size] if isinstance(size, str) else size for size in one.shape), DTYPES[one.datatype]
            )
            for one in inputs
        ]
        model = jax2onnx.to_onnx(
            self._function, inputs=shapes, model_name="model", opset=OPSET, input_names=[one.name for one in inputs]
        )
        names = tuple(self.answer(self._code.example()))
        keep_outputs(model, dict(zip((one.name for one in model.graph.output), names, strict=True)))
        name_axes(model, {one.name: one.shape for one in inputs})
        onnx.save_model(model, str(path))
        return Export(method="jax2onnx")
