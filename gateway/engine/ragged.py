"""HOT PATH. Owns ragged batches of models in a file: requests of different shapes as flat tensors, and back.

A ragged input `x` of requests of shapes [1, 3] and [2, 2] reaches the model as x: dtype[7]; tensors made from the
shapes tell it what is whose (`model_repo.ragged`). Counts are of all elements of a request, its rows included.
"""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from gateway.engine.interface import Interface
from gateway.engine.tensors import DTYPES, Array
from gateway.engine.work import Feeds
from gateway.errors import Code, TollwayError
from model_repo.config import ModelConfig
from model_repo.ragged import (
    ACCUMULATED,
    ACCUMULATED_WITH_ZERO,
    ELEMENT_COUNT,
    ITEM_SHAPE,
    ITEM_SHAPE_FLATTEN,
    BatchInput,
    BatchOutput,
)


class Ragged:
    """How one model's batches are joined and cut."""

    def __init__(self, config: ModelConfig, interface: Interface) -> None:
        self._flat = frozenset(spec.name for spec in config.inputs if spec.is_ragged)
        self._made = config.batch_inputs
        self._interface = interface
        self._scattered: dict[int, BatchOutput] = {
            interface.output_positions[one.name]: one for one in config.batch_outputs
        }

    def join(self, feeds: Sequence[Feeds]) -> dict[str, Array]:
        """What the model is fed for a batch."""
        joined: dict[str, Array] = {}
        for name in feeds[0]:
            arrays = [own[name] for own in feeds]
            if name in self._flat:
                arrays = [array.ravel() for array in arrays]
            joined[name] = np.concatenate(arrays)
        for made in self._made:
            # An optional source that nobody sent: nothing can be told of it.
            if made.source in feeds[0]:
                joined[made.name] = batch_tensor(made, [own[made.source].shape for own in feeds])
        return joined

    def split(
        self, outputs: Sequence[Array], feeds: Sequence[Feeds], rows: Sequence[int]
    ) -> Sequence[list[Array] | TollwayError]:
        """Each request's outputs; a fault for all where they cannot be told apart: nobody gets another's."""
        results: list[list[Array]] = [[] for _ in rows]
        for position, output in enumerate(outputs):
            scattered = self._scattered.get(position)
            if scattered is None:
                shapes = [(count, *output.shape[1:]) for count in rows]
                is_fitting = output.ndim > 0 and output.shape[0] == sum(rows)
            else:
                dims = (-1, *self._interface.outputs[position].dims)
                shapes = [_filled(dims, own[scattered.source].shape) for own in feeds]
                is_fitting = output.size == sum(_size(shape) for shape in shapes)
            if not is_fitting:
                return [self._misshapen(position, output, rows)] * len(rows)
            begin = 0
            flat = output.reshape(-1) if scattered is not None else output
            for result, shape in zip(results, shapes, strict=True):
                length = _size(shape) if scattered is not None else shape[0]
                result.append(flat[begin : begin + length].reshape(shape))
                begin += length
        return results

    def _misshapen(self, position: int, output: Array, rows: Sequence[int]) -> TollwayError:
        name = self._interface.outputs[position].name
        message = (
            f"model '{self._interface.model}' returned output '{name}' of shape {list(output.shape)} "
            f"for a ragged batch of {len(rows)} requests with {sum(rows)} rows"
        )
        return TollwayError(Code.BACKEND_FAULT, message)


def find_ragged(config: ModelConfig, interface: Interface) -> Ragged | None:
    """For a model whose batches are no plain joins along the first axis."""
    is_ragged = any(spec.is_ragged for spec in config.inputs) or config.batch_inputs or config.batch_outputs
    return Ragged(config, interface) if is_ragged else None


def batch_tensor(made: BatchInput, shapes: Sequence[tuple[int, ...]]) -> Array:
    """The tensor that tells a model of a batch; `shapes` are those of the source, rows first, request by request."""
    dtype = DTYPES[made.datatype]
    counts = [_size(shape) for shape in shapes]
    if made.kind == ELEMENT_COUNT:
        return np.array(counts, dtype=dtype)
    if made.kind == ACCUMULATED:
        return np.array(list(accumulate(counts)), dtype=dtype)
    if made.kind == ACCUMULATED_WITH_ZERO:
        return np.array(list(accumulate(counts, initial=0)), dtype=dtype)
    if made.kind in (ITEM_SHAPE, ITEM_SHAPE_FLATTEN):
        items = np.array([shape[1:] for shape in shapes for _ in range(shape[0])], dtype=dtype)
        return items if made.kind == ITEM_SHAPE else items.reshape(-1)
    # Only its shape says something: Triton leaves its data undefined.
    return np.zeros(max(counts), dtype=dtype)


def _filled(dims: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """A variable size of the output is the same axis of the input."""
    return tuple(shape[axis] if size == -1 and axis < len(shape) else max(size, 0) for axis, size in enumerate(dims))


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for one in shape:
        size *= one
    return size
