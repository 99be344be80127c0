"""Owns what is written down of single inferences, and the settings of it: trace and logging extensions of Triton.

Traces and log lines go to the engine's log, never to a file that a caller names, and hold no tensors. A setting that
could have no effect here is refused by its name.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from gateway.engine.inference import InferRequest
from gateway.engine.model import ModelVersion
from gateway.engine.work import Work
from gateway.errors import Code, TollwayError

_LOG: Final = logging.getLogger("tollway.engine")
_LEVELS: Final = ("OFF", "TIMESTAMPS")
_NUMBER_MAX: Final = (1 << 31) - 1
_VERBOSE_MAX: Final = 1000
_DEFAULTS: Final[dict[str, Any]] = {"trace_level": ["OFF"], "trace_rate": "1000", "trace_count": "-1"}
#: Shown as Triton shows them; they have one value here.
_FIXED: Final = {"log_frequency": "0", "trace_file": "", "trace_mode": "triton"}
_LOG_FIXED: Final = {"log_file": "", "log_format": "default"}
_KINDS: Final = {"log_info": logging.INFO, "log_warning": logging.WARNING, "log_error": logging.ERROR}
_encode: Final = msgspec.json.Encoder().encode


class _Kinds(logging.Filter):
    """Drops the kinds of lines that are switched off."""

    def __init__(self) -> None:
        super().__init__()
        self.off: frozenset[int] = frozenset()

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno not in self.off


class Observer:
    """Settings of one engine. `is_on`: somebody wants to know of calls, so `note` must be called for each."""

    def __init__(self, now_ns: Callable[[], int], log: logging.Logger = _LOG) -> None:
        self._now = now_ns
        self._log = log
        self._kinds = _Kinds()
        self._verbose = 0
        self._level_before = log.level
        #: Settings of all models under "", and what single models have of their own.
        self._traces: dict[str, dict[str, Any]] = {"": dict(_DEFAULTS)}
        #: Name of whose settings count → calls since the last trace.
        self._skipped: dict[str, int] = {}
        self._next_trace = 1
        self.is_on = False

    def close(self) -> None:
        """Leave the log as it was found."""
        self._log.removeFilter(self._kinds)
        self._log.setLevel(self._level_before)

    # -- trace settings ------------------------------------------------------------------------------------------------

    def trace_settings(self, model: str) -> dict[str, Any]:
        """In force for a model, "": for all that have none of their own."""
        return {**self._traces[""], **self._traces.get(model, {}), **_FIXED}

    def update_trace(self, model: str, changes: Mapping[str, Any]) -> None:
        """Change settings; None takes a model's own away, or sets the default again. All or nothing.

        Raises:
            TollwayError: bad_request, for an unknown setting, a value it cannot have, or one without effect here.
        """
        own = dict(self._traces.get(model, {}))
        for name, value in changes.items():
            if value is None and name in _DEFAULTS:
                own.pop(name, None)
            elif name in _FIXED:
                _check_fixed(name, _one(name, value), _FIXED[name])
            else:
                own[name] = _trace_value(name, value)
        self._traces[model] = own if model else {**_DEFAULTS, **own}
        self._skipped.clear()
        self._set_on()

    def _set_on(self) -> None:
        is_tracing = any(own.get("trace_level") == ["TIMESTAMPS"] for own in self._traces.values())
        self.is_on = is_tracing or self._verbose > 0

    # -- log settings --------------------------------------------------------------------------------------------------

    def log_settings(self) -> dict[str, Any]:
        kinds = {name: level not in self._kinds.off for name, level in _KINDS.items()}
        return {**_LOG_FIXED, **kinds, "log_verbose_level": self._verbose}

    def update_log(self, changes: Mapping[str, Any]) -> None:
        """As `update_trace`."""
        off = set(self._kinds.off)
        verbose = self._verbose
        for name, value in changes.items():
            if name in _KINDS:
                if type(value) is not bool:
                    raise _bad(f"setting '{name}' must be true or false")
                off = off - {_KINDS[name]} if value else off | {_KINDS[name]}
            elif name == "log_verbose_level":
                if type(value) is not int or not 0 <= value <= _VERBOSE_MAX:
                    raise _bad(f"setting 'log_verbose_level' must be a whole number of 0 to {_VERBOSE_MAX}")
                verbose = value
            elif name in _LOG_FIXED:
                _check_fixed(name, value, _LOG_FIXED[name])
            else:
                raise _bad(f"setting '{name[:200]}' is unknown")
        self._kinds.off = frozenset(off)
        self._verbose = verbose
        self._log.addFilter(self._kinds)
        self._log.setLevel(logging.DEBUG if verbose else self._level_before)
        self._set_on()

    # -- calls ---------------------------------------------------------------------------------------------------------

    def note(self, version: ModelVersion, request: InferRequest, work: Work) -> None:
        """A call has its result."""
        if self._verbose:
            line = "call model=%s version=%s id=%s rows=%d queue_ns=%d compute_ns=%d"
            values = (version.name, version.version, request.id, work.rows, work.queue_ns, work.compute_ns)
            self._log.debug(line, *values)
        settings = self.trace_settings(version.name)
        if settings["trace_level"] == ["TIMESTAMPS"] and self._is_due(version.name, settings):
            self._trace(version, request, work)

    def _is_due(self, model: str, settings: Mapping[str, Any]) -> bool:
        """Every `trace_rate`th call, `trace_count` times."""
        owner = model if self._traces.get(model) else ""
        skipped = self._skipped.get(owner, 0) + 1
        if skipped < int(settings["trace_rate"]):
            self._skipped[owner] = skipped
            return False
        self._skipped[owner] = 0
        left = int(settings["trace_count"])
        if left > 0:
            holder = self._traces[model] if "trace_count" in self._traces.get(model, {}) else self._traces[""]
            holder["trace_count"] = str(left - 1)
        return left != 0

    def _trace(self, version: ModelVersion, request: InferRequest, work: Work) -> None:
        """One line in the form of Triton's trace file; times are monotonic."""
        number, self._next_trace = self._next_trace, self._next_trace + 1
        times = {
            "QUEUE_START": work.enqueued_ns,
            "COMPUTE_START": work.enqueued_ns + work.queue_ns,
            "REQUEST_END": self._now(),
        }
        trace = {
            "id": number,
            "model_name": version.name,
            "model_version": version.number,
            "request_id": request.id,
            "rows": work.rows,
            "compute_ns": work.compute_ns,
            "timestamps": [{"name": name, "ns": ns} for name, ns in times.items()],
        }
        self._log.info("trace %s", _encode(trace).decode())


def _one(name: str, value: Any) -> str:
    """A setting's only text; gRPC, and REST for some, send a list."""
    texts = value if isinstance(value, list) else [value]
    if len(texts) != 1 or type(texts[0]) is not str:
        raise _bad(f"setting '{name}' must be one text")
    return str(texts[0])


def _trace_value(name: str, value: Any) -> Any:
    if name == "trace_level":
        if _one(name, value) not in _LEVELS:
            raise _bad(f"setting 'trace_level' must be one of {', '.join(_LEVELS)}: tensors are never written down")
        return [_one(name, value)]
    if name not in _DEFAULTS:
        raise _bad(f"setting '{name[:200]}' is unknown")
    text = _one(name, value)
    low = 1 if name == "trace_rate" else -1
    try:
        number = int(text)
    except ValueError as error:
        raise _bad(f"setting '{name}' must be a whole number as text") from error
    if not low <= number <= _NUMBER_MAX:
        raise _bad(f"setting '{name}' must be at least {low} and at most {_NUMBER_MAX}")
    return str(number)


def _check_fixed(name: str, value: Any, only: str) -> None:
    if value != only:
        raise _bad(f"setting '{name}' has no effect here but as '{only}': all goes to the engine's own log")


def _bad(message: str) -> TollwayError:
    return TollwayError(Code.BAD_REQUEST, message)
