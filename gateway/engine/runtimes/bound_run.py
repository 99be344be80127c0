"""HOT PATH. Owns runs of ONNX Runtime over memory that stays: small tensors of one shape, again and again.

A run by names makes a value of each array, looks each name up and takes memory for each output: for a tiny model half
of its time. Here all of that is bound once; a run copies the inputs in and the outputs out. Where a tensor is not of
the bound shape, or another thread is in the middle of a bound run, the caller runs by names instead.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnxruntime as ort

from gateway.engine.tensors import Array
from gateway.engine.work import Feeds

#: Of all inputs and outputs: copying more costs more than binding saves.
BOUND_BYTES_MAX: Final = 32 * 1024
#: So many runs of one other shape in a row, and it is bound instead.
MISSES_MAX: Final = 64


class _Binding:
    """Inputs and outputs of one shape each, with their memory."""

    __slots__ = ("binding", "inputs", "outputs")

    def __init__(self, session: Any, feeds: Feeds, names: Sequence[str], outputs: Sequence[Array]) -> None:
        binding = session.io_binding()
        self.inputs = [(name, array.shape, np.empty(array.shape, array.dtype)) for name, array in feeds.items()]
        self.outputs = [np.empty(array.shape, array.dtype) for array in outputs]
        for name, _, memory in self.inputs:
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(memory))
        for name, memory in zip(names, self.outputs, strict=True):
            binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(memory))
        self.binding = binding._iobinding


class BoundRuns:
    """Bound runs of one session; `run` is thread-safe."""

    def __init__(self, session: Any, names: Sequence[str]) -> None:
        self._session: Any = session
        self._run: Any = session._sess.run_with_iobinding
        self._names = list(names)
        #: Empty while a thread runs it, or there is none: whoever pops it has it.
        self._free: list[_Binding] = []
        self._missed: tuple[tuple[int, ...], ...] = ()
        self._misses = 0
        self._is_off = not _has_fixed_shapes(session)

    def run(self, feeds: Feeds) -> list[Array] | None:
        """The outputs, or None: run by names, and tell `note` of it.

        Raises:
            Exception: what the library raises. Nothing is bound any more: the run by names tells whose fault it is.
        """
        try:
            bound = self._free.pop()
        except IndexError:
            return None
        if len(feeds) == len(bound.inputs):
            for name, shape, memory in bound.inputs:
                array = feeds.get(name)
                if array is None or array.shape != shape or array.dtype != memory.dtype:
                    break
                memory[...] = array
            else:
                self._execute(bound)
                outputs = [memory.copy() for memory in bound.outputs]
                self._misses = 0
                self._free.append(bound)
                return outputs
        self._free.append(bound)
        return None

    def _execute(self, bound: _Binding) -> None:
        is_well = False
        try:
            self._run(bound.binding, None)
            is_well = True
        finally:
            if not is_well:
                self._is_off = True

    def note(self, feeds: Feeds, outputs: Sequence[Array]) -> None:
        """A run by names has gone well: bind its shapes if they keep coming."""
        if self._is_off:
            return
        shapes = tuple([array.shape for array in feeds.values()])
        if shapes != self._missed:
            self._missed, self._misses = shapes, 0
        self._misses += 1
        if self._misses < MISSES_MAX:
            return
        self._misses = 0
        arrays = (*feeds.values(), *outputs)
        if any(array.dtype.hasobject or not array.size for array in arrays):
            return
        if sum(array.nbytes for array in arrays) > BOUND_BYTES_MAX:
            return
        bound = _Binding(self._session, feeds, self._names, outputs)
        self._free.clear()
        self._free.append(bound)

    def close(self) -> None:
        self._is_off = True
        self._free.clear()
        self._session = None
        self._run = None


def _has_fixed_shapes(session: Any) -> bool:
    """Whether the shapes of the inputs settle those of the outputs, as the file declares them; on the CPU only."""
    if session.get_providers() != ["CPUExecutionProvider"]:
        return False
    known = {size for one in session.get_inputs() for size in one.shape if isinstance(size, str)}
    return all(isinstance(size, int) or size in known for one in session.get_outputs() for size in one.shape)
