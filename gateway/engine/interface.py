"""HOT PATH. Owns what a model accepts and returns: checks a caller's tensors against the configuration.

Nothing here runs a model. Every refusal names the tensor, what was expected and what came.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np

from gateway.engine.tensors import DTYPES, Array, count_elements, invalid
from model_repo.config import ModelConfig, TensorSpec

#: Counted for a BYTES element in a queue's byte bound: its object and a pointer.
_OBJECT_BYTES: Final = 64


class Tensor:
    """A named tensor as a caller sent it. `array` has already the number of elements that `shape` asks for."""

    __slots__ = ("array", "datatype", "name", "shape")

    def __init__(self, name: str, datatype: str, shape: tuple[int, ...], array: Array) -> None:
        self.name = name
        self.datatype = datatype
        self.shape = shape
        self.array = array


class Accepted:
    """Tensors ready to run: `feeds` in the model's own shapes, `rows` in the batch (1 without a batch axis)."""

    __slots__ = ("feeds", "nbytes", "rows", "signature")

    def __init__(self, feeds: dict[str, Array], rows: int, signature: Any, nbytes: int) -> None:
        self.feeds = feeds
        self.rows = rows
        self.signature = signature
        self.nbytes = nbytes


class _Port:
    """One input, with what is needed per call worked out once."""

    __slots__ = ("datatype", "dims", "name", "reshape", "spec")

    def __init__(self, spec: TensorSpec) -> None:
        self.spec = spec
        self.name = spec.name
        self.datatype = spec.datatype
        self.dims = spec.dims
        self.reshape = spec.reshape


class Interface:
    """The inputs and outputs of one model."""

    def __init__(self, config: ModelConfig) -> None:
        self.model = config.name
        self.rows_max = config.batch_rows_max
        self.has_batch_axis = config.batch_rows_max > 0
        self.inputs = config.inputs
        self.outputs = config.outputs
        self.output_positions = {spec.name: position for position, spec in enumerate(config.outputs)}
        self.is_fixed = all(-1 not in spec.dims and not spec.is_optional for spec in config.inputs)
        self._ports = {spec.name: _Port(spec) for spec in config.inputs}
        self._ragged = frozenset(spec.name for spec in config.inputs if spec.is_ragged)
        self._required = frozenset(spec.name for spec in config.inputs if not spec.is_optional)

    def input_named(self, name: str) -> TensorSpec:
        """Raises: TollwayError: invalid_tensor, for a name that is no input."""
        return self._port(name).spec

    def _port(self, name: str) -> _Port:
        port = self._ports.get(name)
        if port is None:
            known = ", ".join(f"'{known}'" for known in self._ports)
            raise invalid(f"model '{self.model}' has no input '{name[:200]}'; it has {known}")
        return port

    def accept(self, tensors: Sequence[Tensor]) -> Accepted:
        """Check a caller's tensors.

        Raises:
            TollwayError: invalid_tensor, for a missing, unknown or doubled input, a wrong type, a wrong shape, or too
                many rows.
        """
        feeds: dict[str, Array] = {}
        rows = 0
        nbytes = 0
        for tensor in tensors:
            port = self._port(tensor.name)
            if tensor.datatype != port.datatype:
                raise invalid(
                    f"input '{port.name}' of model '{self.model}' has datatype {tensor.datatype[:40]}, "
                    f"the model expects {port.datatype}"
                )
            if port.name in feeds:
                raise invalid(f"input '{port.name}' is given twice")
            own_rows = self._check_shape(port, tensor.shape)
            if self.has_batch_axis:
                if rows and own_rows != rows:
                    raise invalid(f"input '{port.name}' has {own_rows} rows, another input of the request has {rows}")
                rows = own_rows
            array = tensor.array
            if port.reshape is not None:
                array = array.reshape(self._reshaped(port, tensor.shape))
            feeds[port.name] = array
            nbytes += array.nbytes if port.datatype != "BYTES" else _bytes_held(array)
        if len(feeds) != len(self._ports) and not self._required.issubset(feeds):
            raise invalid(f"input '{min(self._required.difference(feeds))}' of model '{self.model}' is missing")
        return Accepted(feeds, rows or 1, None if self.is_fixed else self._signature(feeds), nbytes)

    def _check_shape(self, port: _Port, shape: tuple[int, ...]) -> int:
        """The number of rows (1 without a batch axis)."""
        dims = port.dims
        if not self.has_batch_axis:
            if shape != dims and not _fits(dims, shape):
                raise self._bad_shape(port, shape)
            return 1
        if not shape or (shape[1:] != dims and not _fits(dims, shape[1:])):
            raise self._bad_shape(port, shape)
        rows = shape[0]
        if not 1 <= rows <= self.rows_max:
            raise invalid(
                f"input '{port.name}' has {rows} rows; model '{self.model}' takes 1 to {self.rows_max} (max_batch_size)"
            )
        return rows

    def _bad_shape(self, port: _Port, shape: tuple[int, ...]) -> Exception:
        expected = [-1, *port.dims] if self.has_batch_axis else list(port.dims)
        return invalid(
            f"input '{port.name}' of model '{self.model}' has shape {list(shape)}, the model expects {expected}"
        )

    def _reshaped(self, port: _Port, shape: tuple[int, ...]) -> tuple[int, ...]:
        assert port.reshape is not None
        return _translate(shape, port.dims, port.reshape, has_batch_axis=self.has_batch_axis)

    def _signature(self, feeds: dict[str, Array]) -> Any:
        """Equal for requests that may share a batch: the same inputs, and of all but ragged ones the same shapes."""
        first = 1 if self.has_batch_axis else 0
        ragged = self._ragged
        return tuple((name, None if name in ragged else array.shape[first:]) for name, array in sorted(feeds.items()))

    def outward(self, position: int, array: Array) -> Array:
        """An output as callers see it: the configured `dims` where the model returns `reshape`."""
        spec = self.outputs[position]
        if spec.reshape is None:
            return array
        return array.reshape(_translate(array.shape, spec.reshape, spec.dims, has_batch_axis=self.has_batch_axis))

    def find_output_fault(self, position: int, array: Array, rows: int) -> str | None:
        """What is wrong with an output that code we do not trust has made; None if nothing is."""
        spec = self.outputs[position]
        if array.dtype != DTYPES[spec.datatype]:
            return f"output '{spec.name}' has numpy type {array.dtype}, not {spec.datatype}"
        dims = spec.dims if spec.reshape is None else spec.reshape
        shape = array.shape
        expected = (rows, *dims) if self.has_batch_axis else dims
        if not _fits(expected, shape):
            return f"output '{spec.name}' has shape {list(shape)}, expected {list(expected)}"
        return None

    def output_indexes(self, names: Iterable[str]) -> list[int]:
        """Raises: TollwayError: invalid_tensor, for a name that is no output."""
        found = []
        for name in names:
            position = self.output_positions.get(name)
            if position is None:
                known = ", ".join(f"'{known}'" for known in self.output_positions)
                raise invalid(f"model '{self.model}' has no output '{name[:200]}'; it has {known}")
            found.append(position)
        return found


def _fits(dims: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return len(dims) == len(shape) and all(
        size == wanted or (wanted == -1 and size >= 0) for wanted, size in zip(dims, shape, strict=True)
    )


def _translate(
    shape: tuple[int, ...], source: tuple[int, ...], target: tuple[int, ...], *, has_batch_axis: bool
) -> tuple[int, ...]:
    """`target` with its variable sizes filled in from `shape`, which fits `source`."""
    first = 1 if has_batch_axis else 0
    sizes = iter([size for wanted, size in zip(source, shape[first:], strict=True) if wanted == -1])
    inner = tuple(next(sizes) if wanted == -1 else wanted for wanted in target)
    return (*shape[:first], *inner)


def _bytes_held(array: Array) -> int:
    return sum(len(item) for item in array.ravel()) + _OBJECT_BYTES * array.size


def zero_tensor(spec: TensorSpec, rows: int, *, has_batch_axis: bool) -> Array:
    """A tensor of zeros (or empty strings) in the model's own shape; variable sizes become 1."""
    dims = spec.dims if spec.reshape is None else spec.reshape
    inner = tuple(1 if size == -1 else size for size in dims)
    shape = (rows, *inner) if has_batch_axis else inner
    count_elements(spec.name, shape)
    if spec.datatype == "BYTES":
        return np.full(shape, b"", dtype=object)
    return np.zeros(shape, dtype=DTYPES[spec.datatype])
