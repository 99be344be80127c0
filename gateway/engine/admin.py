"""Owns the calls that change an engine while it serves: load and unload, trace and log settings; REST and gRPC alike.

Who may make them is the gateway's to decide (scope `operate`); the engine's socket is its owner's alone.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

import msgspec
from tritonclient.grpc import service_pb2

from gateway.call import Data
from gateway.engine.overrides import read_override
from gateway.engine.registry import Registry
from gateway.errors import Code, TollwayError

_UNLOAD: Final = frozenset({"unload_dependents"})
Settled = Callable[[], None]
Failed = Callable[[BaseException], None]


class Admin:
    """What both protocols do with such a call. All methods belong to the loop's thread."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._observer = registry.observer

    def trace(self, model: str, changes: dict[str, Any]) -> dict[str, Any]:
        """Settings in force after `changes`, which may be empty. `model` "": of all models.

        Raises:
            TollwayError: model_not_found, bad_request.
        """
        if model:
            self._registry.versions_of(model)
        if changes:
            self._observer.update_trace(model, changes)
        return self._observer.trace_settings(model)

    def log(self, changes: dict[str, Any]) -> dict[str, Any]:
        """As `trace`."""
        if changes:
            self._observer.update_log(changes)
        return self._observer.log_settings()

    def load(self, model: str, parameters: dict[str, Any], done: Settled, fail: Failed) -> None:
        """Start a load; `done` or `fail` is called when it has ended.

        Raises:
            TollwayError: bad_request.
        """
        override = read_override(model, parameters)
        self._start(self._registry.changes.load(model, override), f"load {model}", done, fail)

    def unload(self, model: str, parameters: dict[str, Any], done: Settled, fail: Failed) -> None:
        """As `load`."""
        unknown = parameters.keys() - _UNLOAD
        if unknown:
            raise _bad(f"parameter '{min(unknown)[:200]}' of an unload is unknown; known is 'unload_dependents'")
        is_with_steps = parameters.get("unload_dependents", False)
        if type(is_with_steps) is not bool:
            raise _bad("parameter 'unload_dependents' must be true or false")
        change = self._registry.changes.unload(model, is_with_steps=is_with_steps)
        self._start(change, f"unload {model}", done, fail)

    def _start(self, change: Coroutine[Any, Any, None], name: str, done: Settled, fail: Failed) -> None:
        def on_end(task: "asyncio.Task[None]") -> None:
            if task.cancelled():
                fail(TollwayError(Code.SHUTTING_DOWN, "the engine is shutting down", retry_after_ms=1000))
                return
            error = task.exception()
            if error is None:
                done()
            else:
                fail(error)

        self._registry.changes.start(change, name).add_done_callback(on_end)


def shared_memory_refused() -> TollwayError:
    return TollwayError(
        Code.NOT_IMPLEMENTED,
        "shared memory regions are not served: callers are other hosts, or other tenants of this one, and a region's "
        "name would be all that keeps them apart; send tensors as binary data",
    )


def trace_changes(request: Any) -> dict[str, Any]:
    """Of a TraceSettingRequest: a setting without a value is taken away."""
    return {name: list(setting.value) or None for name, setting in request.settings.items()}


def trace_answer(settings: dict[str, Any]) -> Any:
    answer = service_pb2.TraceSettingResponse()
    for name, value in settings.items():
        answer.settings[name].value.extend(value if isinstance(value, list) else [value])
    return answer


def log_answer(settings: dict[str, Any]) -> Any:
    answer = service_pb2.LogSettingsResponse()
    for name, value in settings.items():
        member = "bool_param" if type(value) is bool else "uint32_param" if type(value) is int else "string_param"
        setattr(answer.settings[name], member, value)
    return answer


def read_settings(body: Data) -> dict[str, Any]:
    """The JSON object of a settings call; an empty body changes nothing.

    Raises:
        TollwayError: bad_request.
    """
    try:
        return msgspec.json.decode(body, type=dict[str, Any]) if len(body) else {}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _bad(f"malformed JSON: {error}") from error


def parameter_value(parameter: Any) -> Any:
    """Of a ModelRepositoryParameter or a SettingValue, whichever member is set; None if none is."""
    member = parameter.WhichOneof("parameter_choice")
    return None if member is None else getattr(parameter, member)


def _bad(message: str) -> TollwayError:
    return TollwayError(Code.BAD_REQUEST, message)
