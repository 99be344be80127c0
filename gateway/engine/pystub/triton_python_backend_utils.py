"""Owns the names that a Triton Python model imports as `pb_utils`: tensors, requests, responses, senders, errors.

Written against Triton's published interface, so that a model.py runs here and there unchanged. What this engine has no
counterpart for (GPU tensors, custom metrics, loading other models) is refused by name.
"""

import asyncio
import json
import queue
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NoReturn

import numpy as np
from triton_config import (  # type: ignore[import-not-found,unused-ignore]
    ModelConfig,
    get_input_config_by_name,
    get_output_config_by_name,
    numpy_to_triton_type,
    triton_string_to_numpy,
    triton_to_numpy_type,
    using_decoupled_model_transaction_policy,
)
from triton_faults import TritonError, TritonModelException  # type: ignore[import-not-found,unused-ignore]

from gateway.engine.frames import Blob, FrameError
from gateway.engine.python_channel import Channel, write_tensors
from gateway.engine.python_outbox import Gone

TRITONSERVER_REQUEST_FLAG_SEQUENCE_START: Final = 1
TRITONSERVER_REQUEST_FLAG_SEQUENCE_END: Final = 2
TRITONSERVER_RESPONSE_COMPLETE_FINAL: Final = 1
TRITONSERVER_REQUEST_RELEASE_ALL: Final = 1
TRITONSERVER_REQUEST_RELEASE_RESCHEDULE: Final = 2
TRITONSERVER_MEMORY_CPU: Final = 0
TRITONSERVER_MEMORY_CPU_PINNED: Final = 1
TRITONSERVER_MEMORY_GPU: Final = 2

__all__ = [
    "InferenceRequest",
    "InferenceResponse",
    "InferenceResponseSender",
    "Logger",
    "ModelConfig",
    "PreferredMemory",
    "Tensor",
    "TritonError",
    "TritonModelException",
    "get_input_config_by_name",
    "get_input_tensor_by_name",
    "get_output_config_by_name",
    "get_output_tensor_by_name",
    "is_model_ready",
    "numpy_to_triton_type",
    "triton_string_to_numpy",
    "triton_to_numpy_type",
    "using_decoupled_model_transaction_policy",
]


class _Process:
    """What the child told this module about itself."""

    channel: Channel | None = None
    model_name = ""
    is_decoupled = False


def bind(channel: Channel, model_name: str, *, is_decoupled: bool) -> None:
    """Called once by the child before the model's code runs."""
    _Process.channel, _Process.model_name, _Process.is_decoupled = channel, model_name, is_decoupled


def _channel() -> Channel:
    if _Process.channel is None:
        raise TritonModelException("there is no engine to call while a configuration is completed")
    return _Process.channel


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

    def triton_dtype(self) -> Any:
        """The number of the type in Triton's enumeration."""
        return self._dtype

    def shape(self) -> list[int]:
        return list(self._array.shape)

    def is_cpu(self) -> bool:
        return True

    def to_dlpack(self) -> Any:
        """A DLPack capsule over the same memory."""
        return self.__dlpack__()

    def __dlpack__(self, *, stream: Any = None, **_options: Any) -> Any:
        if stream is not None:
            raise TritonModelException("tensors of this engine are in CPU memory: there is no stream")
        return np.ascontiguousarray(self._array).__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    @staticmethod
    def from_dlpack(name: str, source: Any) -> "Tensor":
        """From a capsule, or an object that gives one, in CPU memory, without a copy."""
        owner = source if hasattr(source, "__dlpack__") else _Capsule(source)
        return Tensor(name, np.from_dlpack(owner))


class _Capsule:
    """A bare DLPack capsule as an object that numpy takes."""

    def __init__(self, capsule: Any) -> None:
        self._capsule = capsule

    def __dlpack__(self, **_options: Any) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


class PreferredMemory:
    """Where the answer of another model should lie: CPU memory only."""

    def __init__(self, preferred_memory_type: int, preferred_device_id: int = 0) -> None:
        if preferred_memory_type == TRITONSERVER_MEMORY_GPU:
            raise TritonModelException("this engine has no GPU memory for tensors of Python models")
        self.memory_type = preferred_memory_type
        self.device_id = preferred_device_id


class InferenceRequest:
    """A caller's request in a batch, or one that the model makes to another model (`exec`, `async_exec`)."""

    def __init__(  # noqa: PLR0917 - Triton's signature
        self,
        model_name: str = "",
        requested_output_names: Sequence[str] = (),
        inputs: Sequence[Tensor] = (),
        request_id: str = "",
        correlation_id: int | str = 0,
        model_version: int = -1,
        flags: int = 0,
        timeout: int = 0,
        preferred_memory: PreferredMemory | None = None,
        trace: Any = None,
        parameters: Mapping[str, Any] | None = None,
        priority: int = 0,
    ) -> None:
        if not all(isinstance(tensor, Tensor) for tensor in inputs):
            raise TritonModelException("InferenceRequest: inputs must be pb_utils.Tensor")
        self._inputs = list(inputs)
        self._outputs = list(requested_output_names)
        self._model_name = model_name
        self._model_version = int(model_version)
        self._request_id = request_id
        self._correlation_id = correlation_id
        self._flags = flags
        self._timeout = timeout
        self._priority = priority
        self._parameters = dict(parameters or {})
        self._asked: Any = None
        del preferred_memory, trace  # CPU memory and the caller's trace: there is no other.

    def attach(self, asked: Any) -> None:
        """Called by the child: this is a caller's request."""
        self._asked = asked

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

    def correlation_id(self) -> int | str:
        return self._correlation_id

    def flags(self) -> int:
        return self._flags

    def set_flags(self, flags: int) -> None:
        self._flags = flags

    def timeout(self) -> int:
        """Microseconds; 0: none."""
        return self._timeout

    def priority(self) -> int:
        return self._priority

    def parameters(self) -> str:
        """A JSON object."""
        return json.dumps(self._parameters)

    def trace(self) -> None:
        """Traces end at the engine."""

    def set_release_flags(self, flags: int) -> None:
        if flags != TRITONSERVER_REQUEST_RELEASE_ALL:
            raise TritonModelException("rescheduling of requests is not served by this engine")

    def is_cancelled(self) -> bool:
        return bool(self._asked is not None and self._asked.is_cancelled)

    def get_response_sender(self) -> "InferenceResponseSender":
        if self._asked is None:
            raise TritonModelException("only a request that came to the model has a response sender")
        self._asked.is_sender_taken = True
        return InferenceResponseSender(self._asked)

    def exec(self, decoupled: bool = False) -> Any:
        """Run on the model that the request names; blocks. Decoupled: an iterator over its responses."""
        answers: queue.SimpleQueue[tuple[Any, bool]] = queue.SimpleQueue()
        number = self._call(lambda answer, is_final: answers.put((answer, is_final)), is_decoupled=decoupled)
        if decoupled:
            return _Responses(answers, number)
        return _response(answers.get()[0])

    async def async_exec(self, decoupled: bool = False) -> Any:
        """As `exec`, without blocking the event loop of the caller; decoupled: gives the same blocking iterator."""
        if decoupled:
            return self.exec(decoupled=True)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def on_answer(answer: Any, _is_final: bool) -> None:
            loop.call_soon_threadsafe(lambda: None if future.done() else future.set_result(answer))

        number = self._call(on_answer, is_decoupled=False)
        try:
            return _response(await future)
        except asyncio.CancelledError:
            _channel().drop_call(number)
            raise

    def _call(self, on_answer: Callable[[Any, bool], None], *, is_decoupled: bool) -> int:
        blob = Blob()
        head = {
            "do": "infer",
            "model": self._model_name,
            "version": self._model_version,
            "inputs": write_tensors(((tensor.name(), tensor.as_numpy()) for tensor in self._inputs), blob),
            "requested": self._outputs,
            "id": self._request_id,
            "corr": self._correlation_id,
            "flags": self._flags,
            "timeout": self._timeout,
            "priority": self._priority,
            "parameters": self._parameters,
            "decoupled": is_decoupled,
        }
        try:
            return _channel().call(head, blob, on_answer)
        except (FrameError, Gone) as error:
            raise TritonModelException(f"the call of model '{self._model_name}' failed: {error}") from error


class _Responses:
    """The responses of a decoupled call; closing it, or forgetting it, withdraws the call."""

    def __init__(self, answers: "queue.SimpleQueue[tuple[Any, bool]]", number: int) -> None:
        self._answers = answers
        self._number = number
        self._is_over = False

    def __iter__(self) -> Iterator["InferenceResponse"]:
        return self

    def __next__(self) -> "InferenceResponse":
        while not self._is_over:
            answer, self._is_over = self._answers.get()
            if answer is not None:
                return _response(answer)
        raise StopIteration

    def cancel(self) -> None:
        """Nobody waits for what is left."""
        if not self._is_over:
            self._is_over = True
            _channel().drop_call(self._number)

    def __del__(self) -> None:
        try:
            self.cancel()
        except Gone:
            self._is_over = True  # The engine is gone, and so is the call.


def _response(answer: Any) -> "InferenceResponse":
    if isinstance(answer, tuple):
        message, code = answer
        return InferenceResponse(error=TritonError(message, code))
    return InferenceResponse([Tensor(name, array) for name, array in answer])


class InferenceResponse:
    """The answer to one request: tensors, or an error."""

    def __init__(self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None) -> None:
        if error is not None and not isinstance(error, TritonError):
            raise TritonModelException("InferenceResponse: error must be a TritonError")
        if not all(isinstance(tensor, Tensor) for tensor in output_tensors):
            raise TritonModelException("InferenceResponse: output_tensors must be pb_utils.Tensor")
        self._tensors = list(output_tensors)
        self._error = error

    def output_tensors(self) -> list[Tensor]:
        return self._tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error


class InferenceResponseSender:
    """Sends the responses of one request: many of a decoupled model, exactly one otherwise."""

    def __init__(self, asked: Any) -> None:
        self._asked = asked

    def is_cancelled(self) -> bool:
        return bool(self._asked.is_cancelled)

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        """Send a response, the end, or both; waits while the caller of a decoupled model is slow."""
        if flags not in (0, TRITONSERVER_RESPONSE_COMPLETE_FINAL):
            raise TritonModelException(f"InferenceResponseSender: unknown flags {flags}")
        if response is None and not flags:
            raise TritonModelException("InferenceResponseSender: neither a response nor the final flag was given")
        if response is not None and not isinstance(response, InferenceResponse):
            raise TritonModelException("InferenceResponseSender: response must be an InferenceResponse")
        asked = self._asked
        if asked.is_final:
            raise TritonModelException("InferenceResponseSender: the final response has been sent")
        if not asked.is_decoupled:
            self._send_only(response, flags)
            return
        from gateway.engine.python_child import describe

        blob = Blob()
        described = None if response is None else describe(response, blob)
        try:
            asked.send(described, blob, is_final=bool(flags))
        except FrameError as error:
            raise TritonModelException(f"InferenceResponseSender: {error}") from error

    def _send_only(self, response: InferenceResponse | None, flags: int) -> None:
        asked = self._asked
        if response is None or not flags or asked.response is not None:
            raise TritonModelException("a model that is not decoupled sends one response, with the final flag")
        asked.response, asked.is_final = response, True
        asked.answered.set()


class Logger:
    """Writes to the engine's log by way of standard error, one line each."""

    INFO: Final = 0
    WARNING: Final = 1
    ERROR: Final = 2
    VERBOSE: Final = 3
    _NAMES: Final = ("info", "warning", "error", "verbose")

    @staticmethod
    def log(message: str, level: int = 0) -> None:
        text = str(message).replace("\r", "\\r").replace("\n", "\\n")
        name = Logger._NAMES[level] if 0 <= level < len(Logger._NAMES) else str(level)
        sys.stderr.write(f"python_model level={name} model={_Process.model_name} {text}\n")
        sys.stderr.flush()

    @staticmethod
    def log_info(message: str) -> None:
        Logger.log(message, Logger.INFO)

    @staticmethod
    def log_warn(message: str) -> None:
        Logger.log(message, Logger.WARNING)

    @staticmethod
    def log_error(message: str) -> None:
        Logger.log(message, Logger.ERROR)

    @staticmethod
    def log_verbose(message: str) -> None:
        Logger.log(message, Logger.VERBOSE)


def get_input_tensor_by_name(inference_request: InferenceRequest, name: str) -> Tensor | None:
    return next((tensor for tensor in inference_request.inputs() if tensor.name() == name), None)


def get_output_tensor_by_name(inference_response: InferenceResponse, name: str) -> Tensor | None:
    return next((tensor for tensor in inference_response.output_tensors() if tensor.name() == name), None)


def is_model_ready(model_name: str, model_version: str = "") -> bool:
    """Whether a model of the engine can be called now."""
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    head = {"do": "ready", "model": model_name, "version": int(model_version or -1)}
    _channel().call(head, Blob(), lambda answer, _is_final: answers.put(answer))
    return not isinstance(answers.get(), tuple)


def load_model(*_arguments: Any, **_options: Any) -> NoReturn:
    raise TritonModelException("a Python model may not load models in this engine; use the repository endpoints")


def unload_model(*_arguments: Any, **_options: Any) -> NoReturn:
    raise TritonModelException("a Python model may not unload models in this engine; use the repository endpoints")


class MetricFamily:
    """Custom metrics are not served."""

    def __init__(self, *_arguments: Any, **_options: Any) -> None:
        raise TritonModelException("custom metrics of Python models are not served by this engine")
