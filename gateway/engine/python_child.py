"""Owns the process of one Python step: loads `TritonPythonModel`, answers frames until its parent hangs up.

Started by `gateway.engine.python_process` with nothing but a socket. It imports frames, tensors, numpy and the
standard library besides the step itself, so that a step costs no more memory than its own.
"""

import ctypes
import importlib.util
import resource
import signal
import socket
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from gateway.engine.frames import FrameError, receive_frame, send_frame
from gateway.engine.tensors import DTYPES, Array, from_raw, to_raw

_PR_SET_PDEATHSIG: Final = 1
_OPEN_FILES_MAX: Final = 1024


def main(arguments: list[str]) -> None:
    """`FD`: the socket to the engine."""
    # A parent that is killed cannot hang up on a step that is busy or stuck.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sock = socket.socket(fileno=int(arguments[0]))
    try:
        head, _ = receive_frame(sock)
        _serve(sock, head)
    except (FrameError, OSError):
        sys.exit(1)


def _serve(sock: socket.socket, start: dict[str, Any]) -> None:
    _limit(start["memory_bytes_max"])
    try:
        model = _load(Path(start["file"]), start["arguments"])
    except BaseException as error:
        _report(sock, error)
        raise SystemExit(1) from error
    send_frame(sock, {"ok": True}, ())
    while True:
        try:
            head, blob = receive_frame(sock)
        except FrameError:
            break  # The engine hung up: an orderly stop.
        try:
            reply, blobs = _execute(model, head, blob, start)
        except MemoryError as error:
            # What the step holds now is unknown; a fresh process is the only clean state.
            _report(sock, error)
            raise SystemExit(1) from error
        except Exception as error:  # noqa: BLE001 - the step's own code: whatever it raises fails this call only
            _report(sock, error)
            continue
        send_frame(sock, reply, blobs)
    if hasattr(model, "finalize"):
        model.finalize()


def _limit(memory_bytes_max: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES_MAX, _OPEN_FILES_MAX))
    if memory_bytes_max:
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes_max, memory_bytes_max))


def _load(file: Path, arguments: dict[str, str]) -> Any:
    sys.path.insert(0, str(file.parent))
    spec = importlib.util.spec_from_file_location("model", file)
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    sys.modules["model"] = module
    spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    if hasattr(model, "initialize"):
        model.initialize(arguments)
    return model


def _report(sock: socket.socket, error: BaseException) -> None:
    """The engine logs the text; callers see the exception's type only."""
    text = "".join(traceback.format_exception(error, limit=-5))
    send_frame(sock, {"ok": False, "type": type(error).__name__, "detail": text[-4000:]}, ())


def _execute(
    model: Any, head: dict[str, Any], blob: memoryview, start: dict[str, Any]
) -> tuple[dict[str, Any], list[bytes | memoryview]]:
    import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found,unused-ignore]

    requests = []
    offset = 0
    for request in head["requests"]:
        tensors = []
        for name, datatype, shape, size in request:
            data = blob[offset : offset + size]
            offset += size
            tensors.append(pb_utils.Tensor(name, from_raw(name, datatype, shape, data)))
        requests.append(
            pb_utils.InferenceRequest(
                inputs=tensors,
                requested_output_names=start["outputs"],
                model_name=start["arguments"]["model_name"],
                model_version=int(start["arguments"]["model_version"]),
            )
        )
    responses = model.execute(requests)
    if not isinstance(responses, list) or len(responses) != len(requests):
        raise TypeError(f"execute must return a list of {len(requests)} responses, got {responses!r:.100}")
    blobs: list[bytes | memoryview] = []
    return {"ok": True, "responses": [_describe(response, blobs) for response in responses]}, blobs


def _describe(response: Any, blobs: list[bytes | memoryview]) -> dict[str, Any]:
    if response.has_error():
        error = response.error()
        return {"error": error.message()[:4000], "code": error.code()}
    outputs = []
    for tensor in response.output_tensors():
        array = _travelling(tensor.as_numpy())
        data = to_raw(array)
        outputs.append([tensor.name(), _datatype(array), list(array.shape), len(data)])
        blobs.append(data)
    return {"outputs": outputs}


def _travelling(array: Array) -> Array:
    """Fixed-width text of numpy as objects; everything else little-endian."""
    if array.dtype.kind in "SU":
        return array.astype(object)
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _datatype(array: Array) -> str:
    for name, dtype in DTYPES.items():
        if dtype == array.dtype:
            return name
    raise TypeError(f"numpy type {array.dtype} cannot be returned")
