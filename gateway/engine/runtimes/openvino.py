"""Owns OpenVINO: ONNX, IR and TFLite files as they are, compiled for the CPU at a stated precision.

The library would choose bfloat16 where the CPU has it, and be 1e-2 off; here it is float32 unless the model says else.
The border to the library: its exceptions become ours here and nowhere else.
"""

import importlib
import logging
import queue
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from gateway.engine.runtimes.checks import FileTensor, check_tensors, first_line
from gateway.engine.tensors import DTYPES, Array
from gateway.engine.work import Feeds
from gateway.errors import Code, TollwayError
from model_repo.config import ModelConfig
from model_repo.errors import RepositoryError

_LOG: Final = logging.getLogger("tollway.engine")
PRECISION: Final = "tollway_precision"
_PRECISIONS: Final = ("f32", "bf16", "f16")
#: The library's names of element types. BF16 and strings have no numpy form there.
_DATATYPES: Final[Mapping[str, str]] = {
    "boolean": "BOOL",
    "u8": "UINT8",
    "u16": "UINT16",
    "u32": "UINT32",
    "u64": "UINT64",
    "i8": "INT8",
    "i16": "INT16",
    "i32": "INT32",
    "i64": "INT64",
    "f16": "FP16",
    "f32": "FP32",
    "f64": "FP64",
}
_FAULTS: Final = (RuntimeError, ValueError, TypeError, MemoryError)


class OpenVinoRuntime:
    """One compiled model. `run` is thread-safe: each run under way has an infer request of its own."""

    def __init__(self, compiled: Any, config: ModelConfig, version: str) -> None:
        self._compiled = compiled
        self._model = config.name
        names = [frozenset(port.get_names()) for port in compiled.outputs]
        #: Where each configured output is among the model's.
        self._positions = [
            next(place for place, own in enumerate(names) if spec.name in own) for spec in config.outputs
        ]
        self._dtypes = [DTYPES[spec.datatype] for spec in config.outputs]
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        precision = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        devices = ", ".join(compiled.get_property("EXECUTION_DEVICES"))
        self.description = f"openvino {version}; {devices}; {precision}"

    def run(self, feeds: Feeds) -> list[Array]:
        compiled = self._compiled
        try:
            request = self._requests.get_nowait()
        except queue.Empty:
            request = compiled.create_infer_request()
        try:
            # Inputs are read where they lie. Outputs are copied: the request's own are overwritten by its next run.
            outputs = request.infer(
                {name: np.ascontiguousarray(array) for name, array in feeds.items()}, share_inputs=True
            )
            found = [outputs[place] for place in self._positions]
        except _FAULTS as error:
            _LOG.error("model_failed model=%s reason=%s", self._model, str(error)[:500])
            raise TollwayError(Code.BACKEND_FAULT, f"model '{self._model}' failed to run") from error
        self._requests.put(request)
        return [
            array.astype(dtype) if array.dtype != dtype else array
            for array, dtype in zip(found, self._dtypes, strict=True)
        ]

    def close(self) -> None:
        self._compiled = None
        self._requests = queue.SimpleQueue()


def load_openvino(path: Path, config: ModelConfig, *, threads: int) -> OpenVinoRuntime:
    """Read a model file and check it against its configuration. Blocks; call it off the loop.

    Raises:
        RepositoryError: the library is not installed, the file cannot be read, its tensors differ from the configured
            ones, or the precision is none.
    """
    openvino = _library()
    properties = {
        "INFERENCE_PRECISION_HINT": _precision(config),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
    }
    try:
        core = openvino.Core()
        model = core.read_model(str(path))
        _name_tensors(model)
        check_tensors(config, _file_tensors(model.inputs, config), _file_tensors(model.outputs, config))
        compiled = core.compile_model(model, "CPU", properties)
        return OpenVinoRuntime(compiled, config, openvino.__version__.partition("-")[0])
    except _FAULTS as error:
        _LOG.error("model_unreadable model=%s reason=%s", config.name, str(error)[:500])
        raise RepositoryError(f"{path.name}: OpenVINO cannot load it: {_reason(error)}") from error


def _library() -> Any:
    """Imported on the first use: 0.4 s and 56 MB that an engine without such models does not pay.

    Raises:
        RepositoryError: it is not installed.
    """
    # The package reports its own import, and more, to its maker, unless this companion cannot be found.
    if "openvino_telemetry" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise RepositoryError(
            "backend 'openvino': the package openvino is not installed here; install tollway[openvino]"
        ) from error


def _precision(config: ModelConfig) -> str:
    precision = config.parameters.get(PRECISION, "f32")
    if precision not in _PRECISIONS:
        raise RepositoryError(f"parameters.{PRECISION}: '{precision[:40]}' is none of {', '.join(_PRECISIONS)}")
    return precision


def _name_tensors(model: Any) -> None:
    """A tensor that the file leaves without a name gets one by its place."""
    for kind, ports in (("input", model.inputs), ("output", model.outputs)):
        for place, port in enumerate(ports):
            if not port.get_names():
                port.get_tensor().set_names({f"{kind}_{place}"})


def _file_tensors(ports: Sequence[Any], config: ModelConfig) -> list[FileTensor]:
    """A tensor may have several names; the configured one counts."""
    configured = {spec.name for spec in (*config.inputs, *config.outputs)}
    found = []
    for port in ports:
        names = sorted(port.get_names())
        name = next((own for own in names if own in configured), names[0])
        datatype = port.get_element_type().get_type_name()
        rank = port.get_partial_shape()
        sizes = tuple(None if size.is_dynamic else size.get_length() for size in rank) if rank.rank.is_static else ()
        found.append(FileTensor(name=name, datatype=_DATATYPES.get(datatype, datatype), shape=sizes))
    return found


def _reason(error: Exception) -> str:
    """The library begins with where in its sources an exception was raised."""
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("Exception from")]
    return first_line(ValueError(lines[0])) if lines else first_line(error)
