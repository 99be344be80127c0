"""Owns TensorRT and TensorRT-RTX plans: engines built for one kind of GPU, run on the first device.

Both libraries have one Python interface. Neither is installed with Tollway (NVIDIA's own licence), and a plan needs the
driver: what is missing is said by name at load.
"""

import contextlib
import importlib
import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from gateway.engine.runtimes.checks import FileTensor, check_tensors, first_line
from gateway.engine.runtimes.cuda_driver import Cuda, CudaError, open_driver
from gateway.engine.tensors import DTYPES, Array
from gateway.engine.work import Feeds
from gateway.errors import Code, TollwayError
from model_repo.config import ModelConfig
from model_repo.errors import RepositoryError

_LOG: Final = logging.getLogger("tollway.engine")
#: Backend → (Python module, package).
_LIBRARIES: Final[Mapping[str, tuple[str, str]]] = {
    "tensorrt": ("tensorrt", "tensorrt"),
    "tensorrt_rtx": ("tensorrt_rtx", "tensorrt-rtx-cu12"),
}
#: trt.DataType by its name. FP8 and the 4-bit types have no form on the wire.
_DATATYPES: Final[Mapping[str, str]] = {
    "BOOL": "BOOL",
    "UINT8": "UINT8",
    "INT8": "INT8",
    "INT32": "INT32",
    "INT64": "INT64",
    "HALF": "FP16",
    "BF16": "BF16",
    "FLOAT": "FP32",
}
_PLAN_BYTES_MAX: Final = 64 << 30


class PlanRuntime:
    """One plan with one execution context: runs follow one another, whatever thread asks."""

    def __init__(self, engine: Any, cuda: Cuda, config: ModelConfig, description: str) -> None:
        self.description = description
        self._model = config.name
        self._engine = engine
        self._context = engine.create_execution_context()
        if self._context is None:
            raise RepositoryError("the plan's memory cannot be had on the device")
        self._cuda = cuda
        self._stream = cuda.new_stream()
        self._outputs = [(spec.name, DTYPES[spec.datatype]) for spec in config.outputs]
        #: Tensor → (address on the device, bytes there); grows, and is reused from run to run.
        self._memory: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()

    def run(self, feeds: Feeds) -> list[Array]:
        with self._lock:
            try:
                self._cuda.attach()
                return self._run(feeds)
            except CudaError as error:
                self._abandon()
                _LOG.error("model_failed model=%s reason=%s", self._model, error)
                raise TollwayError(Code.BACKEND_FAULT, f"model '{self._model}' failed to run") from error

    def _run(self, feeds: Feeds) -> list[Array]:
        context, cuda, stream = self._context, self._cuda, self._stream
        for name, array in feeds.items():
            if not context.set_input_shape(name, array.shape):
                message = f"input '{name}' of shape {list(array.shape)} is outside of what the plan was built for"
                raise TollwayError(Code.INVALID_TENSOR, message)
        # Held until the stream was awaited: the copies may still be under way.
        held = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        for name, array in held.items():
            cuda.copy_in(self._place(name, array.nbytes), array, stream)
        outputs = []
        for name, dtype in self._outputs:
            array = np.empty(tuple(context.get_tensor_shape(name)), dtype=dtype)
            self._place(name, array.nbytes)
            outputs.append(array)
        if not context.execute_async_v3(stream):
            raise CudaError("execute_async_v3: the plan did not run")
        for (name, _), array in zip(self._outputs, outputs, strict=True):
            cuda.copy_out(array, self._memory[name][0], stream)
        cuda.wait(stream)
        return outputs

    def _abandon(self) -> None:
        """Copies of a run that failed may still be under way, and must not meet memory that was freed."""
        with contextlib.suppress(CudaError):
            self._cuda.wait(self._stream)

    def _place(self, name: str, nbytes: int) -> int:
        """Memory for a tensor on the device, known to the context."""
        address, size = self._memory.get(name, (0, 0))
        if nbytes > size or not size:
            if size:
                del self._memory[name]
                self._cuda.free(address)
            size = max(nbytes, 1)
            address = self._cuda.allocate(size)
            self._memory[name] = (address, size)
            self._context.set_tensor_address(name, address)
        return address

    def close(self) -> None:
        with self._lock:
            if self._context is None:
                return
            self._cuda.attach()
            memory, self._memory = self._memory, {}
            for address, _ in memory.values():
                self._cuda.free(address)
            self._context = None
            self._engine = None


def load_plan(path: Path, config: ModelConfig, *, threads: int) -> PlanRuntime:
    """Read a plan and check it against its configuration. Blocks; call it off the loop. `threads`: a GPU needs none.

    Raises:
        RepositoryError: library, driver or device is missing, the plan was built for another, or it does not fit.
    """
    return open_plan(path, config, importlib.import_module, open_driver)


def open_plan(
    path: Path, config: ModelConfig, import_module: Callable[[str], Any], open_cuda: Callable[[], Cuda]
) -> PlanRuntime:
    """`load_plan` over any library and device. Raises: RepositoryError."""
    module, package = _LIBRARIES[config.platform]
    try:
        library = import_module(module)
    except (ImportError, OSError) as error:
        # OSError and odd ImportErrors: the package is there, one of the shared libraries it needs is not.
        raise RepositoryError(
            f"backend '{config.platform}': the package {package} is not usable here ({first_line(error)}); it comes "
            "under NVIDIA's licence and is installed by hand"
        ) from error
    cuda = open_cuda()
    if path.stat().st_size > _PLAN_BYTES_MAX:
        raise RepositoryError(f"{path.name}: more than {_PLAN_BYTES_MAX} bytes")
    engine = _deserialize(library, path)
    inputs, outputs = _file_tensors(library, engine)
    check_tensors(config, inputs, outputs)
    try:
        return PlanRuntime(engine, cuda, config, f"{config.platform} {library.__version__}; device 0")
    except CudaError as error:
        raise RepositoryError(f"{path.name}: {error}") from error


def _deserialize(library: Any, path: Path) -> Any:
    try:
        engine = library.Runtime(library.Logger(library.Logger.ERROR)).deserialize_cuda_engine(path.read_bytes())
    except (RuntimeError, TypeError, ValueError) as error:
        # TypeError is how the binding says that the library made no object at all.
        raise RepositoryError(f"{path.name}: {library.__name__} cannot load it: {first_line(error)}") from error
    if engine is None:
        raise RepositoryError(
            f"{path.name}: {library.__name__} {library.__version__} cannot load it: damaged, or built by another "
            "version or for another kind of GPU"
        )
    return engine


def _file_tensors(library: Any, engine: Any) -> tuple[list[FileTensor], list[FileTensor]]:
    inputs: list[FileTensor] = []
    outputs: list[FileTensor] = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        datatype = engine.get_tensor_dtype(name).name
        shape = tuple(None if size < 0 else int(size) for size in engine.get_tensor_shape(name))
        tensor = FileTensor(name=name, datatype=_DATATYPES.get(datatype, datatype), shape=shape)
        is_input = engine.get_tensor_mode(name) == library.TensorIOMode.INPUT
        (inputs if is_input else outputs).append(tensor)
    return inputs, outputs
