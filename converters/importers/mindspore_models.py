"""Owns MindSpore cells: code that builds one, with a checkpoint or none. Its exporter fixes every axis, as is said."""

import importlib.metadata
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx

from converters.errors import ToolFailed, UsageFault
from converters.importers.code import Code, name_outputs
from converters.importers.exchange import Array, Feeds
from converters.importers.graphs import keep_outputs, rename_inputs
from converters.importers.protocol import Asked, Export

_NOTE: Final = "MindSpore's exporter fixes all axes: the model is served without batching"


def open_source(asked: Asked) -> "MindsporeSource":
    """Raises: UsageFault: variable axes, or the code does not build a cell."""
    import mindspore

    mindspore.set_context(device_target="CPU")
    code = Code(asked)
    named = [size for one in code.inputs for size in one.shape if isinstance(size, str)]
    if named:
        text = f"MindSpore exports fixed shapes only, and '{named[0]}' is named variable"
        raise UsageFault("frozen_axis", text, next_step="give a number for each axis in --input")
    weights = mindspore.load_checkpoint(str(asked.source)) if asked.format == "mindspore_weights" else None
    cell = code.build(weights)
    cell.set_train(False)
    return MindsporeSource(cell, code)


class MindsporeSource:
    def __init__(self, cell: Any, code: Code) -> None:
        self._cell = cell
        self._code = code

    def versions(self) -> dict[str, str]:
        return {name: importlib.metadata.version(name) for name in ("mindspore", "onnx")}

    def _tensors(self, feeds: Feeds) -> list[Any]:
        import mindspore

        return [mindspore.Tensor(np.ascontiguousarray(feeds[one.name])) for one in self._code.inputs]

    def answer(self, feeds: Feeds) -> dict[str, Array]:
        found = self._cell(*self._tensors(feeds))
        return {name: np.asarray(value.asnumpy()) for name, value in name_outputs(found, self._code.outputs).items()}

    def export(self, path: Path) -> Export:
        import mindspore

        example = self._code.example()
        names = tuple(self.answer(example))
        mindspore.export(self._cell, *self._tensors(example), file_name=str(path.with_suffix("")), file_format="ONNX")
        model = onnx.load(str(path))
        own = [value.name for value in model.graph.input]
        if len(own) != len(self._code.inputs):
            text = f"the exported graph has the inputs {own}"
            raise ToolFailed("export", text, next_step="let the cell use all of its inputs")
        rename_inputs(model, dict(zip(own, (one.name for one in self._code.inputs), strict=True)))
        keep_outputs(model, dict(zip((one.name for one in model.graph.output), names, strict=True)))
        onnx.save_model(model, str(path))
        return Export(method="mindspore.export", notes=(_NOTE,))
