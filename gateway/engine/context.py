"""Owns what a request says beside its tensors, for those who ask: Python models, sequences, streams.

Request parameters come in by REST and by gRPC alike as `name → bool | int | float | str`. Those with a meaning of
their own (Triton's reserved names) are read here once and are not among `Context.parameters`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from gateway.errors import Code, TollwayError

#: Set by the protocol, not by the model's author.
RESERVED: Final = frozenset(
    {
        "sequence_id",
        "sequence_start",
        "sequence_end",
        "priority",
        "timeout",
        "headers",
        "binary_data_output",
        "triton_enable_empty_final_response",
    }
)
PARAMETERS_MAX: Final = 256
CORRELATION_CHARS_MAX: Final = 128
_U64_MAX: Final = (1 << 64) - 1
SEQUENCE_START: Final = 1
SEQUENCE_END: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """`correlation_id` 0 or "": the request belongs to no sequence. `timeout_us`, `priority` 0: none given.

    `requested`: names of the outputs asked for; empty for all.
    """

    request_id: str = ""
    correlation_id: int | str = 0
    is_start: bool = False
    is_end: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)
    timeout_us: int = 0
    priority: int = 0
    requested: tuple[str, ...] = ()
    wants_empty_final: bool = False

    @property
    def flags(self) -> int:
        """Triton's request flags: 1 a sequence starts, 2 it ends."""
        return SEQUENCE_START * self.is_start | SEQUENCE_END * self.is_end

    def of_step(self) -> "Context":
        """For a step of an ensemble, whose outputs are others."""
        return replace(self, requested=()) if self.requested else self


EMPTY: Final = Context()


def read_context(
    request_id: str, parameters: Mapping[str, Any], requested: tuple[str, ...], *, timeout_us: int = 0
) -> Context:
    """Read a request's parameters.

    Raises:
        TollwayError: bad_request, for a reserved parameter of the wrong type, or too many.
    """
    if not parameters:
        return Context(request_id=request_id, requested=requested, timeout_us=timeout_us)
    if len(parameters) > PARAMETERS_MAX:
        raise _bad(f"more than {PARAMETERS_MAX} request parameters")
    for name, value in parameters.items():
        if name not in RESERVED and type(value) not in (bool, int, float, str):
            raise _bad(f"parameter '{name[:200]}' must be a boolean, a number or a text")
    return Context(
        request_id=request_id,
        correlation_id=_correlation_id(parameters.get("sequence_id", 0)),
        is_start=_flag("sequence_start", parameters),
        is_end=_flag("sequence_end", parameters),
        parameters={name: value for name, value in parameters.items() if name not in RESERVED},
        timeout_us=timeout_us,
        priority=_whole("priority", parameters),
        requested=requested,
        wants_empty_final=_flag("triton_enable_empty_final_response", parameters),
    )


def _correlation_id(value: Any) -> int | str:
    if type(value) is str:
        if len(value.encode()) > CORRELATION_CHARS_MAX:
            raise _bad(f"parameter 'sequence_id' is longer than {CORRELATION_CHARS_MAX} bytes")
        return value
    if type(value) is int and 0 <= value <= _U64_MAX:
        return value
    raise _bad("parameter 'sequence_id' must be a text or a whole number of 64 bits")


def _flag(name: str, parameters: Mapping[str, Any]) -> bool:
    value = parameters.get(name, False)
    if type(value) is not bool:
        raise _bad(f"parameter '{name}' must be true or false")
    return value


def _whole(name: str, parameters: Mapping[str, Any]) -> int:
    value = parameters.get(name, 0)
    if type(value) is not int or not 0 <= value <= _U64_MAX:
        raise _bad(f"parameter '{name}' must be a whole number from 0 on")
    return value


def _bad(message: str) -> TollwayError:
    return TollwayError(Code.BAD_REQUEST, message)
