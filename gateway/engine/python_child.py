"""Owns the process of one Python model instance: loads `TritonPythonModel`, executes batches until its parent hangs up.

Started by `gateway.engine.python_process` with nothing but a socket. It imports frames, tensors, numpy and the
standard library besides the model itself, so that an instance costs no more memory than its own.
"""

import asyncio
import ctypes
import importlib.util
import inspect
import json
import resource
import signal
import socket
import sys
import threading
import traceback
import weakref
from collections.abc import Coroutine
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    SourceFileLoader,
    SourcelessFileLoader,
)
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NoReturn

from gateway.engine.frames import Blob, FrameError, receive_frame, send_frame
from gateway.engine.python_channel import Asked, Channel, read_tensors, write_tensors
from gateway.engine.python_outbox import Gone

_PR_SET_PDEATHSIG: Final = 1
_OPEN_FILES_MAX: Final = 1024
_TEXT_CHARS_MAX: Final = 4000


def main(arguments: list[str]) -> None:
    """`FD`: the socket to the engine."""
    # A parent that is killed cannot hang up on a model that is busy or stuck.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sock = socket.socket(fileno=int(arguments[0]))
    try:
        head, _ = receive_frame(sock)
        _limit(head["memory_bytes_max"])
        if "complete" in head:
            _complete(sock, head)
        else:
            _serve(sock, head)
    except (FrameError, OSError, Gone):
        sys.exit(1)


def _limit(memory_bytes_max: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES_MAX, _OPEN_FILES_MAX))
    if memory_bytes_max:
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes_max, memory_bytes_max))


class _Sources(SourceFileLoader):
    """Compiles a source each time: a cache beside it is checked by nobody, and a version is never written to."""

    def path_stats(self, path: object) -> NoReturn:
        raise OSError("no cache")


def _load(file: Path) -> Any:
    """The model's class."""
    folder = str(file.parent)
    kinds = ((ExtensionFileLoader, EXTENSION_SUFFIXES), (_Sources, SOURCE_SUFFIXES))
    sys.path_importer_cache[folder] = FileFinder(folder, *kinds, (SourcelessFileLoader, BYTECODE_SUFFIXES))
    sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location("model", file, loader=_Sources("model", str(file)))
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    sys.modules["model"] = module
    spec.loader.exec_module(module)
    return module.TritonPythonModel


def _complete(sock: socket.socket, start: dict[str, Any]) -> None:
    """Let the model complete its configuration; `None` where it has nothing to say."""
    import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found,unused-ignore]

    try:
        complete = getattr(_load(Path(start["file"])), "auto_complete_config", None)
        config = None
        if complete is not None:
            completed = complete(pb_utils.ModelConfig(json.dumps(start["complete"])))
            if not isinstance(completed, pb_utils.ModelConfig):
                raise TypeError("auto_complete_config must return the configuration that it was given")
            config = completed.as_dict()
    except BaseException as error:
        send_frame(sock, _raised(error))
        raise SystemExit(1) from error
    send_frame(sock, {"ok": True, "config": config})


def _serve(sock: socket.socket, start: dict[str, Any]) -> None:
    import triton_python_backend_utils as pb_utils

    channel = Channel(sock)
    pb_utils.bind(channel, start["arguments"]["model_name"], is_decoupled=start["is_decoupled"])
    # Before the model's own code: it may call other models while it initialises.
    channel.start()
    try:
        model = _load(Path(start["file"]))()
        if hasattr(model, "initialize"):
            model.initialize(start["arguments"])
    except BaseException as error:
        channel.send(_raised(error))
        raise SystemExit(1) from error
    channel.send({"ok": True})
    instance = _Instance(model, channel, pb_utils, start)
    while (batch := channel.executes.get()) is not None:
        instance.run(*batch)
        del batch
    if hasattr(model, "finalize"):
        model.finalize()


def _raised(error: BaseException) -> dict[str, Any]:
    """The engine logs the text; callers see the exception's type only."""
    text = "".join(traceback.format_exception(error, limit=-5))
    return {"ok": False, "type": type(error).__name__, "detail": text[-_TEXT_CHARS_MAX:]}


class _Instance:
    """Runs batches on the process's main thread, one after another."""

    def __init__(self, model: Any, channel: Channel, pb_utils: Any, start: dict[str, Any]) -> None:
        self._model = model
        self._channel = channel
        self._pb_utils = pb_utils
        self._outputs = start["outputs"]
        self._name = start["arguments"]["model_name"]
        self._version = int(start["arguments"]["model_version"])
        self._is_decoupled = start["is_decoupled"]
        self._window = start["window"]
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, head: dict[str, Any], blob: memoryview) -> None:
        """Execute one batch and say what became of it."""
        number = head["batch"]
        asked: list[Asked] = []
        try:
            requests = [self._request(item, blob, asked) for item in head["requests"]]
            result = self._model.execute(requests)
            if self._is_decoupled:
                self._after_decoupled(result, asked)
                responses: list[dict[str, Any]] = []
                out = Blob()
            else:
                responses, out = self._collect(result, asked)
        except MemoryError as error:
            # What the model holds now is unknown; a fresh process is the only clean state.
            self._channel.send({"say": "done", "batch": number, **_raised(error)})
            raise SystemExit(1) from error
        except Gone:
            raise
        except Exception as error:  # noqa: BLE001 - the model's own code: whatever it raises fails this batch only
            self._channel.send({"say": "done", "batch": number, **_raised(error)})
            if self._is_decoupled:
                self._fail_open(asked, error)
        else:
            self._channel.send({"say": "done", "batch": number, "ok": True, "responses": responses}, out)
        finally:
            if not self._is_decoupled:
                for own in asked:
                    self._channel.forget(own.number)

    def _request(self, item: dict[str, Any], blob: memoryview, asked: list[Asked]) -> Any:
        pb_utils = self._pb_utils
        own = Asked(self._channel, item["n"], is_decoupled=self._is_decoupled, window=self._window)
        self._channel.remember(own.number, weakref.ref(own))
        asked.append(own)
        request = pb_utils.InferenceRequest(
            inputs=[pb_utils.Tensor(name, array) for name, array in read_tensors(item["inputs"], blob)],
            requested_output_names=item.get("requested") or self._outputs,
            model_name=self._name,
            model_version=self._version,
            request_id=item.get("id", ""),
            correlation_id=item.get("corr", 0),
            flags=item.get("flags", 0),
            timeout=item.get("timeout", 0),
            priority=item.get("priority", 0),
            parameters=item.get("parameters", {}),
        )
        request.attach(own)
        return request

    def _collect(self, result: Any, asked: list[Asked]) -> tuple[list[dict[str, Any]], Blob]:
        """One response for each request: returned, or given to its sender."""
        if inspect.iscoroutine(result):
            result = asyncio.run_coroutine_threadsafe(result, self._events()).result()
        if result is None and all(own.is_sender_taken for own in asked):
            result = [None] * len(asked)
        if not isinstance(result, list) or len(result) != len(asked):
            raise TypeError(f"execute must return a list of {len(asked)} responses, got {result!r:.100}")
        blob = Blob()
        return [self._describe(response, own, blob) for response, own in zip(result, asked, strict=True)], blob

    def _describe(self, response: Any, own: Asked, blob: Blob) -> dict[str, Any]:
        if response is None and own.is_sender_taken:
            own.answered.wait()
            response = own.response
        if not isinstance(response, self._pb_utils.InferenceResponse):
            raise TypeError(f"a response must be an InferenceResponse, got {response!r:.100}")
        return describe(response, blob)

    def _after_decoupled(self, result: Any, asked: list[Asked]) -> None:
        """A coroutine goes on by itself; nothing else may be returned."""
        if inspect.iscoroutine(result):
            task = asyncio.run_coroutine_threadsafe(self._guard(result, list(asked)), self._events())
            # Dropped here, so that a request lives only as long as the model holds it.
            del task
        elif result is not None:
            raise TypeError(f"execute of a decoupled model must return None, got {result!r:.100}")
        asked.clear()

    async def _guard(self, coroutine: Coroutine[Any, Any, Any], asked: list[Asked]) -> None:
        try:
            await coroutine
        except Exception as error:  # noqa: BLE001 - as in `run`
            self._fail_open(asked, error)

    def _fail_open(self, asked: list[Asked], error: Exception) -> None:
        """An exception ends the requests that have had no last response."""
        sys.stderr.write(_raised(error)["detail"])
        for own in asked:
            own.fail(f"model '{self._name}' raised {type(error).__name__}")

    def _events(self) -> asyncio.AbstractEventLoop:
        """The loop on which coroutines of the model run, in a thread of its own."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name="model-coroutines", daemon=True).start()
        return self._loop


def describe(response: Any, blob: Blob) -> dict[str, Any]:
    """A pb_utils.InferenceResponse as it travels; its tensors are added to `blob`."""
    if response.has_error():
        error = response.error()
        return {"error": error.message()[:_TEXT_CHARS_MAX], "code": error.code()}
    return {"outputs": write_tensors(((t.name(), t.as_numpy()) for t in response.output_tensors()), blob)}
