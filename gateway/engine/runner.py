"""HOT PATH. Owns running a batch: joins the works' tensors, runs the model, splits and checks what it returned.

`run` blocks and is called on the loop's thread (short models) or on a pool's; it touches nothing shared.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from gateway.clock import Clock
from gateway.engine.interface import Interface
from gateway.engine.ragged import Ragged
from gateway.engine.tensors import Array
from gateway.engine.work import Feeds
from gateway.errors import Code, TollwayError


class Runtime(Protocol):
    """A loaded model that runs tensors. Thread-safe."""

    def run(self, feeds: Feeds) -> list[Array]:
        """Block until the outputs are there, in the order of the configuration; the caller owns them.

        Raises:
            TollwayError: backend_fault, where the model failed.
        """

    def close(self) -> None:
        """Give the memory back. Idempotent; no `run` is under way."""


class Executed:
    """What became of a batch: one list of outputs or one fault per work, and where the time went."""

    __slots__ = ("infer_ns", "input_ns", "output_ns", "results")

    def __init__(
        self, results: Sequence[list[Array] | TollwayError], input_ns: int, infer_ns: int, output_ns: int
    ) -> None:
        self.results = results
        self.input_ns = input_ns
        self.infer_ns = infer_ns
        self.output_ns = output_ns


class Runner(Protocol):
    """Runs batches of one model version."""

    def run(self, feeds: list[Feeds], rows: list[int]) -> Executed:
        """Block until the batch has run. Never raises a model's fault: it is a result of each work."""

    def close(self) -> None: ...


class TensorRunner:
    """Runs a batch as one tensor per input, the works' rows behind one another, or as `ragged` joins them."""

    def __init__(self, runtime: Runtime, interface: Interface, clock: Clock, ragged: Ragged | None = None) -> None:
        self._runtime = runtime
        self._ragged = ragged
        self._interface = interface
        self._now = clock.monotonic_ns

    def run(self, feeds: list[Feeds], rows: list[int]) -> Executed:
        now = self._now
        begun_ns = now()
        ragged = self._ragged
        if len(feeds) == 1 and ragged is None:
            return self._run_one(feeds[0], rows[0], begun_ns)
        merged = _join(feeds) if ragged is None else ragged.join(feeds)
        fed_ns = now()
        try:
            outputs = self._runtime.run(merged)
        except TollwayError as error:
            done_ns = now()
            return Executed([error] * len(feeds), fed_ns - begun_ns, done_ns - fed_ns, 0)
        done_ns = now()
        results = self._split(outputs, rows) if ragged is None else ragged.split(outputs, feeds, rows)
        return Executed(results, fed_ns - begun_ns, done_ns - fed_ns, now() - done_ns)

    def _run_one(self, feeds: Feeds, rows: int, begun_ns: int) -> Executed:
        """A batch of one needs no joining and no splitting, but aligned arrays, which joining would have made."""
        for name, array in feeds.items():
            if not array.flags.aligned:
                feeds = {**feeds, name: array.copy()}
        try:
            outputs = self._runtime.run(feeds)
        except TollwayError as error:
            return Executed([error], 0, self._now() - begun_ns, 0)
        infer_ns = self._now() - begun_ns
        if self._interface.has_batch_axis:
            for position, output in enumerate(outputs):
                if not output.ndim or output.shape[0] != rows:
                    return Executed([self._misshapen(position, output, rows)], 0, infer_ns, 0)
        return Executed([outputs], 0, infer_ns, 0)

    def _misshapen(self, position: int, output: Array, rows: int) -> TollwayError:
        """The rows cannot be told apart: nobody gets another's answer, the whole batch fails."""
        name = self._interface.outputs[position].name
        fault = (
            f"model '{self._interface.model}' returned output '{name}' of shape {list(output.shape)} for {rows} rows"
        )
        return TollwayError(Code.BACKEND_FAULT, fault)

    def _split(self, outputs: list[Array], rows: list[int]) -> Sequence[list[Array] | TollwayError]:
        total = sum(rows)
        for position, output in enumerate(outputs):
            if not output.ndim or output.shape[0] != total:
                return [self._misshapen(position, output, total)] * len(rows)
        results = []
        begin = 0
        for count in rows:
            results.append([output[begin : begin + count] for output in outputs])
            begin += count
        return results

    def close(self) -> None:
        self._runtime.close()


def _join(feeds: list[Feeds]) -> Feeds:
    return {name: np.concatenate([own[name] for own in feeds]) for name in feeds[0]}
