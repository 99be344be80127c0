"""Owns the names that a Triton Python model imports as `pb_utils`: tensors, requests, responses, errors, type tables.

Written against Triton's published interface. What needs more than one answer to one request (response senders,
decoupled models) or calls other models (BLS) is refused here by name.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any, Final, NoReturn

import numpy as np

_NUMPY: Final[dict[str, Any]] = {
    "TYPE_BOOL": np.bool_,
    "TYPE_UINT8": np.uint8,
    "TYPE_UINT16": np.uint16,
    "TYPE_UINT32": np.uint32,
    "TYPE_UINT64": np.uint64,
    "TYPE_INT8": np.int8,
    "TYPE_INT16": np.int16,
    "TYPE_INT32": np.int32,
    "TYPE_INT64": np.int64,
    "TYPE_FP16": np.float16,
    "TYPE_FP32": np.float32,
    "TYPE_FP64": np.float64,
    "TYPE_STRING": np.object_,
}


class TritonModelException(Exception):
    """What a model raises to fail a call; its text is logged, not sent to the caller."""


class TritonError:
    """A fault that a response carries; its message is shown to the caller."""

    UNKNOWN = 0
    INTERNAL = 1
    NOT_FOUND = 2
    INVALID_ARG = 3
    UNAVAILABLE = 4
    UNSUPPORTED = 5
    ALREADY_EXISTS = 6
    CANCELLED = 7

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self._message = str(message)
        self._code = int(code)

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class Tensor:
    """A named array in this process's memory."""

    def __init__(self, name: str, array: Any) -> None:
        self._name = name
        self._array = np.asarray(array)
        self._dtype = numpy_to_triton_type(self._array.dtype)

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Any:
        return self._array

    def triton_dtype(self) -> str:
        return self._dtype

    def shape(self) -> list[int]:
        return list(self._array.shape)

    def is_cpu(self) -> bool:
        return True


class InferenceRequest:
    """One caller's request in a batch."""

    def __init__(
        self,
        *,
        inputs: Sequence[Tensor],
        requested_output_names: Sequence[str],
        model_name: str = "",
        model_version: int = -1,
        request_id: str = "",
    ) -> None:
        self._inputs = list(inputs)
        self._outputs = list(requested_output_names)
        self._model_name = model_name
        self._model_version = model_version
        self._request_id = request_id

    def inputs(self) -> list[Tensor]:
        return self._inputs

    def requested_output_names(self) -> list[str]:
        return self._outputs

    def model_name(self) -> str:
        return self._model_name

    def model_version(self) -> int:
        return self._model_version

    def request_id(self) -> str:
        return self._request_id

    def correlation_id(self) -> int:
        return 0

    def parameters(self) -> str:
        return "{}"

    def is_cancelled(self) -> bool:
        return False

    def get_response_sender(self) -> NoReturn:
        raise TritonModelException("response senders (decoupled models) are not served by this engine")

    def exec(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise TritonModelException("calls to other models (BLS) are not served by this engine")

    def async_exec(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise TritonModelException("calls to other models (BLS) are not served by this engine")


class InferenceResponse:
    """The answer to one request: tensors, or an error."""

    def __init__(self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None) -> None:
        if error is not None and not isinstance(error, TritonError):
            raise TritonModelException("InferenceResponse: error must be a TritonError")
        self._tensors = list(output_tensors)
        self._error = error

    def output_tensors(self) -> list[Tensor]:
        return self._tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error


class Logger:
    """Writes to the engine's log by way of standard error."""

    @staticmethod
    def log(message: str, level: int = 0) -> None:
        sys.stderr.write(f"python_step level={level} {message}\n")

    log_info = log_warn = log_error = log_verbose = log


def get_input_tensor_by_name(inference_request: InferenceRequest, name: str) -> Tensor | None:
    return next((tensor for tensor in inference_request.inputs() if tensor.name() == name), None)


def get_output_tensor_by_name(inference_response: InferenceResponse, name: str) -> Tensor | None:
    return next((tensor for tensor in inference_response.output_tensors() if tensor.name() == name), None)


def get_input_config_by_name(model_config: Any, name: str) -> Any:
    return _by_name(model_config, "input", name)


def get_output_config_by_name(model_config: Any, name: str) -> Any:
    return _by_name(model_config, "output", name)


def _by_name(model_config: Any, field: str, name: str) -> Any:
    config = json.loads(model_config) if isinstance(model_config, str) else model_config
    return next((item for item in config.get(field, ()) if item["name"] == name), None)


def triton_to_numpy_type(data_type: str | int) -> Any:
    """From `TYPE_FP32` or its number in Triton's DataType."""
    if isinstance(data_type, int):
        data_type = [
            "TYPE_INVALID",
            "TYPE_BOOL",
            "TYPE_UINT8",
            "TYPE_UINT16",
            "TYPE_UINT32",
            "TYPE_UINT64",
            "TYPE_INT8",
            "TYPE_INT16",
            "TYPE_INT32",
            "TYPE_INT64",
            "TYPE_FP16",
            "TYPE_FP32",
            "TYPE_FP64",
            "TYPE_STRING",
        ][data_type]
    return _NUMPY[data_type]


def triton_string_to_numpy(triton_type_string: str) -> Any:
    return _NUMPY[triton_type_string]


def numpy_to_triton_type(data_type: Any) -> str:
    dtype = np.dtype(data_type)
    if dtype.kind in "OSU":
        return "TYPE_STRING"
    for name, numpy_type in _NUMPY.items():
        if np.dtype(numpy_type) == dtype:
            return name
    raise TritonModelException(f"numpy type {dtype} has no Triton type")


def using_decoupled_model_transaction_policy(_model_config: Any) -> bool:
    return False
