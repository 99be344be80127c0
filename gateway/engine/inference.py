"""HOT PATH. Owns what every transport turns a request into: tensors, what is to be returned and how, and bounds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gateway.engine.context import Context, read_context
from gateway.engine.interface import Interface, Tensor
from gateway.engine.labels import classify
from gateway.engine.model import ModelVersion
from gateway.engine.tensors import Array, invalid
from gateway.errors import Code, TollwayError

#: A caller's `timeout` above this (a year) would overflow nothing, but means nothing either.
_TIMEOUT_US_MAX: Final = 365 * 24 * 3600 * 1_000_000
_CLASSES_MAX: Final = 1 << 20
_NO_PARAMETERS: Final[Mapping[str, Any]] = {}


@dataclass(frozen=True, slots=True)
class Wanted:
    """One output to return: its position in the model's configuration, raw bytes or not, and top-k classes (0: no)."""

    position: int
    is_binary: bool
    classes: int


class InferRequest:
    """A decoded request."""

    __slots__ = ("id", "is_binary_default", "outputs", "parameters", "tensors", "timeout_ns")

    def __init__(
        self,
        id_: str,
        tensors: list[Tensor],
        outputs: list[Wanted] | None,
        timeout_ns: int,
        *,
        is_binary_default: bool = False,
        parameters: Mapping[str, Any] = _NO_PARAMETERS,
    ) -> None:
        self.id = id_
        self.tensors = tensors
        #: None: all outputs, as `is_binary_default` says.
        self.outputs = outputs
        self.timeout_ns = timeout_ns
        self.is_binary_default = is_binary_default
        #: As they came, reserved ones included.
        self.parameters = parameters

    def context(self, interface: Interface) -> Context:
        """What the request says beside its tensors.

        Raises:
            TollwayError: bad_request.
        """
        requested = tuple(interface.outputs[item.position].name for item in self.outputs or ())
        return read_context(self.id, self.parameters, requested, timeout_us=self.timeout_ns // 1000)


def timeout_ns(value: Any) -> int:
    """The request parameter `timeout` (microseconds) in nanoseconds; 0 and absent mean none.

    Raises:
        TollwayError: bad_request, for anything but a whole number from 0 on.
    """
    if value is None:
        return 0
    if type(value) is not int or not 0 <= value <= _TIMEOUT_US_MAX:
        raise TollwayError(Code.BAD_REQUEST, "parameter 'timeout' must be a whole number of microseconds")
    return value * 1_000


def class_count(value: Any) -> int:
    """The output parameter `classification`.

    Raises:
        TollwayError: bad_request, for anything but a whole number from 1 on.
    """
    if value is None:
        return 0
    if type(value) is not int or not 1 <= value <= _CLASSES_MAX:
        raise TollwayError(Code.BAD_REQUEST, "parameter 'classification' must be a whole number of at least 1")
    return value


def flag(name: str, value: Any, default: bool) -> bool:
    """A boolean parameter.

    Raises:
        TollwayError: bad_request, for anything but true and false.
    """
    if value is None:
        return default
    if type(value) is not bool:
        raise TollwayError(Code.BAD_REQUEST, f"parameter '{name}' must be true or false")
    return value


def wanted_outputs(interface: Interface, named: list[tuple[str, bool, int]]) -> list[Wanted]:
    """From (name, is_binary, classes).

    Raises:
        TollwayError: invalid_tensor, for an unknown or doubled name.
    """
    positions = interface.output_indexes([name for name, _, _ in named])
    if len(set(positions)) != len(positions):
        raise invalid("an output is requested twice")
    return [
        Wanted(position, is_binary, classes) for position, (_, is_binary, classes) in zip(positions, named, strict=True)
    ]


def returned(version: ModelVersion, wanted: Wanted, outputs: Sequence[Array | None]) -> tuple[str, Array]:
    """(datatype, array) of a wanted output, which is there, as callers see it.

    Raises:
        TollwayError: invalid_tensor, where it cannot be classified.
    """
    interface = version.interface
    spec = interface.outputs[wanted.position]
    array = outputs[wanted.position]
    assert array is not None
    if spec.reshape is not None:
        array = interface.outward(wanted.position, array)
    if not wanted.classes:
        return spec.datatype, array
    labels = version.labels.get(spec.name, ())
    has_batch_axis = interface.has_batch_axis
    return "BYTES", classify(spec.name, array, wanted.classes, labels, has_batch_axis=has_batch_axis)
