"""Owns running a model file by ONNX Runtime or OpenVINO on the CPU, for reference, verification and measurement.

The border to both libraries: their exceptions become `ToolFailed` here.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from converters.errors import ToolFailed

Array: TypeAlias = npt.NDArray[Any]
Feeds: TypeAlias = Mapping[str, Array]
_LOG_FATAL: Final = 4


class Engine(Protocol):
    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Outputs by name, copies of their own. Raises: ToolFailed."""

    def output_shapes(self) -> dict[str, tuple[int | None, ...]]:
        """As the file itself declares them; None is a variable size. Outputs of unknown rank are left out."""


class OnnxEngine:
    def __init__(self, session: Any) -> None:
        self._session = session
        self._names = [output.name for output in session.get_outputs()]

    def run(self, feeds: Feeds) -> dict[str, Array]:
        try:
            outputs = self._session.run(self._names, dict(feeds))
        except Exception as error:
            # The library raises classes of its own without a common base but Exception.
            raise ToolFailed("run", f"ONNX Runtime: {first_line(error)}", next_step="check the shapes") from error
        return {name: _plain(array) for name, array in zip(self._names, outputs, strict=True)}

    def output_shapes(self) -> dict[str, tuple[int | None, ...]]:
        return {
            output.name: tuple(size if isinstance(size, int) else None for size in output.shape)
            for output in self._session.get_outputs()
            if output.shape
        }


def _plain(array: Array) -> Array:
    """Strings as an array of text, not of objects: that can be compared, copied and kept without pickles."""
    return array.astype(np.str_) if array.dtype.kind == "O" else array


class OpenVinoEngine:
    def __init__(self, compiled: Any, names: Sequence[str]) -> None:
        self._request = compiled.create_infer_request()
        own = [port.get_names() for port in compiled.outputs]
        self._places = {name: next(place for place, names in enumerate(own) if name in names) for name in names}
        self._ports = {name: compiled.outputs[place] for name, place in self._places.items()}
        self._inputs = [(port.get_names(), place) for place, port in enumerate(compiled.inputs)]

    def run(self, feeds: Feeds) -> dict[str, Array]:
        places = {place: array for name, array in feeds.items() for names, place in self._inputs if name in names}
        try:
            results = self._request.infer(places, share_outputs=False)
        except Exception as error:
            raise ToolFailed("run", f"OpenVINO: {first_line(error)}", next_step="check the shapes") from error
        return {name: np.array(results[place]) for name, place in self._places.items()}

    def output_shapes(self) -> dict[str, tuple[int | None, ...]]:
        shapes = {name: port.get_partial_shape() for name, port in self._ports.items()}
        return {
            name: tuple(None if size.is_dynamic else size.get_length() for size in shape)
            for name, shape in shapes.items()
            if shape.rank.is_static
        }


def open_onnx(
    model: Path | bytes, *, threads: int = 1, is_optimised: bool = True, save_to: Path | None = None
) -> OnnxEngine:
    """A session; `save_to` also writes the optimised graph: standard operators only. Fusions and layouts of
    this CPU are left to each load, as a saved fusion can keep a later one from being made.

    Raises:
        ToolFailed: the library does not take the model.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _LOG_FATAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    levels = ort.GraphOptimizationLevel
    if not is_optimised:
        options.graph_optimization_level = levels.ORT_DISABLE_ALL
    if save_to is not None:
        options.graph_optimization_level = levels.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(save_to)
    source = model if isinstance(model, bytes) else str(model)
    try:
        return OnnxEngine(ort.InferenceSession(source, options, providers=["CPUExecutionProvider"]))
    except Exception as error:
        raise ToolFailed("load", f"ONNX Runtime: {first_line(error)}", next_step="see the message") from error


def import_openvino() -> Any:
    """The library, without the companion that reports its use to the maker. Raises: ToolFailed."""
    if "openvino_telemetry" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # None: an import of it fails
    try:
        import openvino  # type: ignore[import-untyped]
    except ImportError as error:
        step = "install tollway[openvino], or --to onnxruntime"
        raise ToolFailed("missing", "the package openvino is not installed", next_step=step) from error
    return openvino


def open_openvino(path: Path, outputs: Sequence[str], *, threads: int = 1) -> OpenVinoEngine:
    """An IR or ONNX file compiled for the CPU in float32, as the serving engine does. Raises: ToolFailed."""
    library = import_openvino()
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    try:
        return OpenVinoEngine(library.Core().compile_model(str(path), "CPU", hints), outputs)
    except ToolFailed:
        raise
    except Exception as error:
        raise ToolFailed("load", f"OpenVINO: {first_line(error)}", next_step="see the message") from error


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return (said or lines or [type(error).__name__])[0][:300]
