"""The runtimes behind `gateway.engine.runner.Runtime`; the only place of the engine that imports their libraries."""

from pathlib import Path
from typing import Protocol

from gateway.engine.tensors import Array
from gateway.engine.work import Feeds
from model_repo.config import ModelConfig


class FileRuntime(Protocol):
    """A `Runtime` made from a model file. `description`: library, version and what it runs on, as they are."""

    description: str

    def run(self, feeds: Feeds) -> list[Array]: ...
    def close(self) -> None: ...


def load_runtime(path: Path, config: ModelConfig, *, threads: int) -> FileRuntime:
    """The model in `path` by the library that the configuration names, imported on its first use. Blocks.

    Raises:
        RepositoryError: library, driver or file is missing or unfit.
    """
    if config.platform == "onnxruntime":
        from gateway.engine.runtimes.onnx import load_onnx

        return load_onnx(path, config, threads=threads)
    if config.platform == "openvino":
        from gateway.engine.runtimes.openvino import load_openvino

        return load_openvino(path, config, threads=threads)
    from gateway.engine.runtimes.plans import load_plan

    return load_plan(path, config, threads=threads)
