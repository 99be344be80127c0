"""Owns PaddlePaddle inference models: a graph file with its parameters beside it, exported by paddle2onnx.

paddle2onnx is known to write some layers wrongly; the answers are Paddle's own, so that the gate sees it.
"""

import importlib.metadata
import shutil
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx

from converters.errors import ToolFailed
from converters.importers.code import name_outputs
from converters.importers.exchange import Array, Feeds
from converters.importers.graphs import keep_outputs, name_axes
from converters.importers.protocol import Asked, Export

OPSET: Final = 17


def open_source(asked: Asked) -> "PaddleSource":
    """`asked.source`: the folder, or its graph file."""
    import paddle

    paddle.set_device("cpu")
    found = [asked.source] if asked.source.is_file() else sorted(asked.source.iterdir())
    graph = next(path for path in found if path.suffix in {".json", ".pdmodel"})
    # The loader lists the folder, of which no more than these two may be read.
    folder = Path(tempfile.mkdtemp(prefix="paddle-"))
    for path in (graph, graph.with_suffix(".pdiparams")):
        shutil.copyfile(path, folder / f"model{path.suffix}")
    return PaddleSource(folder / f"model{graph.suffix}")


class PaddleSource:
    def __init__(self, graph: Path) -> None:
        import paddle

        self._graph = graph
        self._layer = paddle.jit.load(str(graph.with_suffix("")))
        self._layer.eval()
        specs = self._layer._input_spec()
        self._inputs: dict[str, tuple[int | str, ...]] = {
            one.name: tuple("batch" if place == 0 and size < 0 else f"{one.name}_{place}" if size < 0 else int(size)
                            for place, size in enumerate(one.shape))
            for one in specs
        }  # fmt: skip

    def versions(self) -> dict[str, str]:
        return {name: importlib.metadata.version(name) for name in ("paddlepaddle", "paddle2onnx", "onnx")}

    def answer(self, feeds: Feeds) -> dict[str, Array]:
        import paddle

        with paddle.no_grad():
            found = self._layer(*(paddle.to_tensor(feeds[name]) for name in self._inputs))
        return {name: np.asarray(value.numpy()) for name, value in name_outputs(found, ()).items()}

    def export(self, path: Path) -> Export:
        import paddle2onnx

        paddle2onnx.export(
            str(self._graph),
            str(self._graph.with_suffix(".pdiparams")),
            str(path),
            opset_version=OPSET,
            auto_upgrade_opset=True,
            enable_onnx_checker=True,
            optimize_tool="None",
            verbose=False,
        )
        model: Any = onnx.load(str(path))
        own = [value.name for value in model.graph.input]
        if own != list(self._inputs):
            text = f"the exported graph has the inputs {own}, the model {list(self._inputs)}"
            raise ToolFailed("export", text, next_step="let the model use all of its inputs")
        count = len(model.graph.output)
        names = ("output",) if count == 1 else tuple(f"output_{place}" for place in range(count))
        keep_outputs(model, dict(zip((one.name for one in model.graph.output), names, strict=True)))
        name_axes(model, self._inputs)
        onnx.save_model(model, str(path))
        return Export(method="paddle2onnx")
