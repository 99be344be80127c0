"""Owns ONNX Runtime: sessions from model files, checked against the configuration, and one blocking run.

The border to the library: its exceptions become ours here and nowhere else.
"""

import ctypes
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from gateway.engine.runtimes.bound_run import BoundRuns
from gateway.engine.runtimes.checks import FileTensor, check_tensors, first_line
from gateway.engine.runtimes.providers import CPU_PROVIDER, check_providers, wanted_providers
from gateway.engine.tensors import Array
from gateway.engine.work import Feeds
from gateway.errors import Code, TollwayError
from model_repo.config import ModelConfig
from model_repo.errors import RepositoryError

_LOG: Final = logging.getLogger("tollway.engine")

#: The library's names of element types.
_DATATYPES: Final[Mapping[str, str]] = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(bfloat16)": "BF16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
#: TensorProto.BFLOAT16
_BFLOAT16: Final = 16
_FAULTS: Final = (
    ort_state.Fail,
    ort_state.InvalidArgument,
    ort_state.InvalidGraph,
    ort_state.InvalidProtobuf,
    ort_state.NoModel,
    ort_state.NoSuchFile,
    ort_state.NotImplemented,
    ort_state.RuntimeException,
    ort_state.EPFail,
    RuntimeError,
    ValueError,
    MemoryError,
)


class OnnxRuntime:
    """One session. `run` is thread-safe: the library allows concurrent runs of one session."""

    def __init__(self, session: Any, config: ModelConfig) -> None:
        self._session = session
        self._model = config.name
        self._outputs = [spec.name for spec in config.outputs]
        wide = {spec.name for spec in (*config.inputs, *config.outputs) if spec.datatype == "BF16"}
        self._bfloat16 = frozenset(wide)
        self._strings = frozenset(spec.name for spec in config.inputs if spec.datatype == "BYTES")
        self.description = f"onnxruntime {ort.__version__}; {', '.join(session.get_providers())}"
        # The wrapper's own checks cost 2 of 10 us on a tiny model and repeat what the interface has checked.
        self._run = session._sess.run
        self._bound: BoundRuns | None = None if self._bfloat16 else BoundRuns(session, self._outputs)

    def run(self, feeds: Feeds) -> list[Array]:
        bound = self._bound
        if bound is not None:
            try:
                found = bound.run(feeds)
            except _FAULTS as error:
                _LOG.warning("bound_run_failed model=%s reason=%s", self._model, str(error)[:500])
                found = None
            if found is not None:
                return found
        try:
            if self._strings:
                feeds = self._decode(feeds)
            if self._bfloat16:
                return self._run_values(feeds)
            outputs: list[Array] = self._run(self._outputs, feeds, None)
            if bound is not None:
                bound.note(feeds, outputs)
        except UnicodeDecodeError as error:
            message = f"model '{self._model}' takes UTF-8 text in its BYTES inputs"
            raise TollwayError(Code.INVALID_TENSOR, message) from error
        except _FAULTS as error:
            _LOG.error("model_failed model=%s reason=%s", self._model, str(error)[:500])
            raise TollwayError(Code.BACKEND_FAULT, f"model '{self._model}' failed to run") from error
        return outputs

    def _decode(self, feeds: Feeds) -> Feeds:
        """The library's strings are UTF-8 text."""
        decoded = dict(feeds)
        for name in self._strings:
            if name in decoded:
                array = decoded[name]
                texts = np.empty(array.size, dtype=object)
                for index, item in enumerate(array.ravel()):
                    texts[index] = item.decode() if isinstance(item, bytes) else item
                decoded[name] = texts.reshape(array.shape)
        return decoded

    def _run_values(self, feeds: Feeds) -> list[Array]:
        """The way for BF16, which numpy cannot name: values carry the type, arrays only the bits."""
        values = {
            name: ort.OrtValue.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(array), _BFLOAT16)
            if name in self._bfloat16
            else ort.OrtValue.ortvalue_from_numpy(array)
            for name, array in feeds.items()
        }
        outputs = self._session.run_with_ort_values(self._outputs, values)
        return [
            self._bits(output) if name in self._bfloat16 else output.numpy()
            for name, output in zip(self._outputs, outputs, strict=True)
        ]

    @staticmethod
    def _bits(value: Any) -> Array:
        """A copy of the value's memory: the library hands BF16 out in no other way."""
        shape = value.shape()
        count = math.prod(shape)
        if not count:
            return np.empty(shape, dtype=np.uint16)
        memory = (ctypes.c_uint16 * count).from_address(value.data_ptr())
        return np.frombuffer(memory, dtype=np.uint16).reshape(shape).copy()

    def close(self) -> None:
        if self._bound is not None:
            self._bound.close()
        self._bound = None
        self._session = None
        self._run = None


def load_onnx(path: Path, config: ModelConfig, *, threads: int) -> OnnxRuntime:
    """Read a model file and check it against its configuration. Blocks; call it off the loop.

    Raises:
        RepositoryError: the file cannot be read, its tensors differ from the configured ones, or a provider that must
            run it did not load.
    """
    wanted = wanted_providers(config)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Spinning threads would take the core from the loop that feeds them.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # The library complains at each provider that this build of it lacks; whether that matters is decided below.
    known = [name for name, _ in wanted if name in ort.get_available_providers()]
    try:
        session = ort.InferenceSession(str(path), options, providers=known or [CPU_PROVIDER])
    except _FAULTS as error:
        _LOG.error("model_unreadable model=%s reason=%s", config.name, str(error)[:500])
        raise RepositoryError(f"{path.name}: ONNX Runtime cannot load it: {first_line(error)}") from error
    check_providers(wanted, session.get_providers())
    # An initializer that is an input as well: the model's own value where a caller gives none.
    defaults = _file_tensors(session.get_overridable_initializers())
    check_tensors(config, _file_tensors(session.get_inputs()), _file_tensors(session.get_outputs()), defaults)
    return OnnxRuntime(session, config)


def read_tensors(path: Path) -> tuple[list[FileTensor], list[FileTensor]]:
    """Inputs and outputs as a model file declares them. Blocks.

    Raises:
        RepositoryError: the file cannot be read.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(str(path), options, providers=[CPU_PROVIDER])
    except _FAULTS as error:
        raise RepositoryError(f"{path.name}: ONNX Runtime cannot load it: {first_line(error)}") from error
    return _file_tensors(session.get_inputs()), _file_tensors(session.get_outputs())


def _file_tensors(arguments: Sequence[Any]) -> list[FileTensor]:
    return [
        FileTensor(
            name=argument.name,
            datatype=_DATATYPES.get(argument.type, argument.type),
            shape=tuple(size if isinstance(size, int) else None for size in argument.shape),
        )
        for argument in arguments
    ]
