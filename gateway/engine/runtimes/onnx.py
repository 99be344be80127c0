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

from gateway.engine.tensors import Array
from gateway.engine.work import Feeds
from gateway.errors import Code, TollwayError
from model_repo.config import ModelConfig, TensorSpec
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
        # The wrapper's own checks cost 2 of 10 us on a tiny model and repeat what the interface has checked.
        self._run = session._sess.run

    def run(self, feeds: Feeds) -> list[Array]:
        try:
            if self._strings:
                feeds = self._decode(feeds)
            if self._bfloat16:
                return self._run_values(feeds)
            outputs: list[Array] = self._run(self._outputs, feeds, None)
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
        self._session = None
        self._run = None


def load_onnx(path: Path, config: ModelConfig, *, threads: int) -> OnnxRuntime:
    """Read a model file and check it against its configuration. Blocks; call it off the loop.

    Raises:
        RepositoryError: the file cannot be read, or its tensors differ from the configured ones.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Spinning threads would take the core from the loop that feeds them.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except _FAULTS as error:
        _LOG.error("model_unreadable model=%s reason=%s", config.name, str(error)[:500])
        raise RepositoryError(f"{path.name}: ONNX Runtime cannot load it: {_first_line(error)}") from error
    _check(config, session.get_inputs(), session.get_outputs())
    return OnnxRuntime(session, config)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _check(config: ModelConfig, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
    real_inputs = {arg.name: arg for arg in inputs}
    configured = {spec.name for spec in config.inputs}
    for name in real_inputs:
        if name not in configured:
            raise RepositoryError(f"input '{name}' of the model file is not configured")
    for spec in config.inputs:
        if spec.is_optional:
            raise RepositoryError(f"input '{spec.name}': optional inputs are not served for ONNX models")
        _check_tensor("input", spec, real_inputs.get(spec.name), config)
    real_outputs = {arg.name: arg for arg in outputs}
    for spec in config.outputs:
        _check_tensor("output", spec, real_outputs.get(spec.name), config)


def _check_tensor(kind: str, spec: TensorSpec, real: Any, config: ModelConfig) -> None:
    where = f"{kind} '{spec.name}'"
    if real is None:
        raise RepositoryError(f"{where} is not in the model file")
    datatype = _DATATYPES.get(real.type)
    if datatype != spec.datatype:
        raise RepositoryError(f"{where}: configured as {spec.datatype}, the model file has {datatype or real.type}")
    dims = spec.dims if spec.reshape is None else spec.reshape
    shape = list(real.shape)
    has_batch_axis = config.batch_rows_max > 0
    if not shape and (dims or has_batch_axis) and kind == "output":
        return  # The file does not say the rank of every output; the rows are checked on each run.
    if has_batch_axis:
        if not shape or isinstance(shape[0], int):
            raise RepositoryError(
                f"{where}: its first axis in the model file is {shape[0] if shape else 'missing'}, not variable; "
                "set max_batch_size to 0 and give whole shapes"
            )
        shape = shape[1:]
    if len(shape) != len(dims) or any(
        isinstance(size, int) and size != wanted for size, wanted in zip(shape, dims, strict=True)
    ):
        raise RepositoryError(f"{where}: configured dims {list(dims)} do not fit {shape} of the model file")
