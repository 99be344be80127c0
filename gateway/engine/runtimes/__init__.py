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


class Load(Protocol):
    """Makes a runtime from a file."""

    def __call__(self, path: Path, config: ModelConfig, *, threads: int) -> FileRuntime:
        """The model in `path`. Blocks.

        Raises:
            RepositoryError: driver or file is missing or unfit.
        """


def find_load(config: ModelConfig) -> Load:
    """How the library that the configuration names loads a file. Blocks: ONNX Runtime is imported here, once."""
    if config.platform == "onnxruntime":
        from gateway.engine.runtimes.onnx import load_onnx

        return load_onnx
    if config.platform == "openvino":
        from gateway.engine.runtimes.openvino import load_openvino

        return load_openvino
    from gateway.engine.runtimes.plans import load_plan

    return load_plan


def load_runtime(path: Path, config: ModelConfig, *, threads: int) -> FileRuntime:
    """`find_load`, and the model. Blocks. Raises: RepositoryError."""
    return find_load(config)(path, config, threads=threads)
