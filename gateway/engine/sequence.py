"""Owns requests that belong together: their order, what the model is told of it, the state between them.

A scheduler in front of the model's batcher. Requests of one sequence run one after another, those of different
sequences share batches. A sequence has a place from its first request to its last, or until it has been idle for too
long; where no place is free a new sequence is refused, never queued. All methods belong to the loop's thread.
"""

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np

from gateway.clock import Clock
from gateway.engine.interface import Interface
from gateway.engine.tensors import DTYPES, Array, from_raw, invalid
from gateway.engine.work import Servable, Work
from gateway.errors import Code, TollwayError
from model_repo.config import ModelConfig, TensorSpec
from model_repo.repository import ModelFolder, read_member
from model_repo.scheduling import DynamicBatching
from model_repo.sequences import Control, SequenceBatching, State

#: Requests of one sequence that may wait for the one before them.
WAITING_MAX: Final = 128
_STATE_BYTES_MAX: Final = 256 << 20


class _Sequence:
    """One sequence that has a place."""

    __slots__ = ("has_end", "idle_since_ns", "key", "running", "state", "waiting")

    def __init__(self, key: tuple[bytes, int | str]) -> None:
        self.key = key
        self.waiting: deque[Work] = deque()
        self.running: Work | None = None
        self.state: dict[str, Array] = {}
        #: Its last request is here: another needs a start.
        self.has_end = False
        self.idle_since_ns = 0


def initial_states(config: ModelConfig, folder: ModelFolder) -> dict[str, Array]:
    """Input name → what a sequence begins with, one row. Blocks.

    Raises:
        RepositoryError: a file is missing.
        TollwayError: invalid_tensor, where a file does not fit.
    """
    sequences = config.sequences
    assert sequences is not None
    return {state.input_name: _initial(state, config.batch_rows_max > 0, folder) for state in sequences.states}


def _initial(state: State, has_batch_axis: bool, folder: ModelFolder) -> Array:
    shape = (1, *state.initial_dims) if has_batch_axis else state.initial_dims
    if not state.file:
        return np.zeros(shape, dtype=DTYPES[state.datatype])
    data = read_member(folder, "initial_state", state.file, bytes_max=_STATE_BYTES_MAX)
    return from_raw(state.input_name, state.datatype, shape, data)


def inner_config_of(config: ModelConfig) -> ModelConfig:
    """What the model itself takes and returns: the caller's tensors, controls and states."""
    sequences = config.sequences
    assert sequences is not None
    inputs = [*config.inputs]
    inputs += [TensorSpec(name=one.name, datatype=one.datatype, dims=(1,)) for one in sequences.controls]
    inputs += [TensorSpec(name=one.input_name, datatype=one.datatype, dims=one.dims) for one in sequences.states]
    outputs = [TensorSpec(name=one.output_name, datatype=one.datatype, dims=one.dims) for one in sequences.states]
    batching = None
    if config.batch_rows_max:
        batching = DynamicBatching(preferred_rows=sequences.preferred_rows, delay_ns_max=sequences.delay_ns_max)
    return replace(config, inputs=tuple(inputs), outputs=(*config.outputs, *outputs), batching=batching)


class SequenceScheduler:
    """A `Servable`."""

    def __init__(
        self,
        interface: Interface,
        sequences: SequenceBatching,
        initial: Mapping[str, Array],
        inner: Servable,
        *,
        slots: int,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        is_id_seen: bool = False,
    ) -> None:
        """`interface`: what callers see; `inner` takes controls and states as well.

        `is_id_seen`: the model is told the ids, and may keep a state of its own by them.
        """
        self._interface = interface
        self._sequences = sequences
        self._initial = dict(initial)
        self._inner = inner
        self._slots = slots
        self._is_id_seen = is_id_seen
        self._loop = loop
        self._now = clock.monotonic_ns
        self._outputs = len(interface.outputs)
        #: By tenant and id: callers choose ids, and must not meet another tenant's state by one.
        self._by_id: dict[tuple[bytes, int | str], _Sequence] = {}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def active(self) -> int:
        """Sequences that have a place."""
        return len(self._by_id)

    def submit(self, work: Work) -> None:
        work.enqueued_ns = self._now()
        try:
            sequence = self._place_of(work)
        except TollwayError as error:
            work.fail(error)
            return
        sequence.waiting.append(work)
        self._pump(sequence)

    def cancel(self, work: Work) -> None:
        """Withdraw a work; one that runs is finished for the sequence's sake, and its answer dropped."""
        if not work.is_done:
            work.withdraw()

    def _place_of(self, work: Work) -> _Sequence:
        """Raises: TollwayError: bad_request, invalid_tensor, overloaded, queue_full."""
        context, model = work.context, self._interface.model
        correlation_id = context.correlation_id
        if not correlation_id:
            raise TollwayError(
                Code.BAD_REQUEST, f"model '{model}' serves sequences: parameter 'sequence_id' is missing"
            )
        if work.rows != 1:
            raise invalid(f"a request of a sequence of model '{model}' has one row, not {work.rows}")
        for control in self._sequences.controls:
            if control.kind == "CORRID":
                _corrid(control, correlation_id)
        key = (work.tenant, correlation_id)
        sequence = self._by_id.get(key)
        if sequence is None or (sequence.has_end and not context.is_start):
            if not context.is_start:
                message = f"sequence '{correlation_id}' of model '{model}' is not known: it begins with sequence_start"
                raise TollwayError(Code.BAD_REQUEST, message)
            sequence = self._new(key)
        if len(sequence.waiting) >= WAITING_MAX:
            raise TollwayError(Code.QUEUE_FULL, f"more than {WAITING_MAX} requests of one sequence wait")
        sequence.has_end = context.is_end
        return sequence

    def _new(self, key: tuple[bytes, int | str]) -> _Sequence:
        if len(self._by_id) >= self._slots:
            message = f"model '{self._interface.model}' serves {self._slots} sequences at once, and all have begun"
            raise TollwayError(Code.OVERLOADED, message, retry_after_ms=1000)
        if self._is_id_seen and any(known[1] == key[1] for known in self._by_id if known[0] != key[0]):
            raise TollwayError(Code.BAD_REQUEST, "this sequence_id is taken: choose another one, best at random")
        sequence = self._by_id[key] = _Sequence(key)
        return sequence

    def _pump(self, sequence: _Sequence) -> None:
        """Run the next request of a sequence that rests; let it go if its last one has run."""
        while sequence.running is None and sequence.waiting:
            work = sequence.waiting.popleft()
            if work.is_done:
                # Its caller left before it ran: what it would have told the model is told all the same.
                if work.context.is_start:
                    sequence.state = {}
                continue
            self._start(sequence, work)
        if sequence.running is None and self._by_id.get(sequence.key) is sequence:
            if sequence.has_end:
                del self._by_id[sequence.key]
            else:
                sequence.idle_since_ns = self._now()
                self._watch()

    def _start(self, sequence: _Sequence, work: Work) -> None:
        context = work.context
        if context.is_start or not sequence.state:
            sequence.state = dict(self._initial)
        feeds = {**work.feeds, **self._controls(work), **sequence.state}
        inner = Work(
            feeds,
            self._on_result,
            self._on_error,
            signature=_signature(feeds, 1 if self._interface.has_batch_axis else 0),
            deadline_ns=work.deadline_ns,
            timeout_ns=work.timeout_ns,
            nbytes=work.nbytes,
            context=context.of_step(),
            tenant=work.tenant,
            weight=work.weight,
            priority_best=work.priority_best,
        )
        inner.owner = (sequence, work)
        sequence.running = inner
        self._inner.submit(inner)

    def _controls(self, work: Work) -> dict[str, Array]:
        context = work.context
        shape = (1, 1) if self._interface.has_batch_axis else (1,)
        told = {"START": context.is_start, "END": context.is_end, "READY": True}
        feeds: dict[str, Array] = {}
        for control in self._sequences.controls:
            if control.kind == "CORRID":
                value: Any = _corrid(control, context.correlation_id)
            else:
                value = control.values[told[control.kind]]
            feeds[control.name] = np.full(shape, value, dtype=DTYPES[control.datatype])
        return feeds

    def _on_result(self, inner: Work, outputs: list[Array]) -> None:
        sequence, work = self._take(inner)
        for position, state in enumerate(self._sequences.states, self._outputs):
            # A copy: a view would keep the whole batch that it was made in.
            sequence.state[state.input_name] = outputs[position].copy()
        work.resolve(outputs[: self._outputs])
        self._pump(sequence)

    def _on_error(self, inner: Work, error: TollwayError) -> None:
        """The state is what it was; the sequence goes on."""
        sequence, work = self._take(inner)
        work.fail(error)
        self._pump(sequence)

    def _take(self, inner: Work) -> tuple[_Sequence, Work]:
        sequence, work = inner.owner
        sequence.running = None
        work.compute_ns, work.queue_ns = inner.compute_ns, inner.queue_ns
        return sequence, work

    def _watch(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(self._sequences.idle_ns_max / 1e9, self._reap)

    def _reap(self) -> None:
        """Take the places of sequences that have sent nothing for too long."""
        self._timer = None
        resting = [one for one in self._by_id.values() if one.running is None and not one.waiting]
        if not resting:
            return
        now_ns, idle_ns_max = self._now(), self._sequences.idle_ns_max
        for sequence in resting:
            if now_ns - sequence.idle_since_ns >= idle_ns_max:
                del self._by_id[sequence.key]
        left = [one.idle_since_ns for one in resting if one.key in self._by_id]
        if left:
            delay_s = (min(left) + idle_ns_max - now_ns) / 1e9
            self._timer = self._loop.call_later(max(delay_s, 0.001), self._reap)

    def close(self) -> None:
        """Forget all sequences."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._by_id.clear()


def _corrid(control: Control, correlation_id: int | str) -> Any:
    """Raises: TollwayError: invalid_tensor, where the id is not of the type that the model takes."""
    if control.datatype == "BYTES":
        if isinstance(correlation_id, str):
            return correlation_id.encode()
        raise invalid("this model's sequences have texts as sequence_id")
    if isinstance(correlation_id, str):
        raise invalid("this model's sequences have numbers as sequence_id")
    if correlation_id > np.iinfo(DTYPES[control.datatype]).max:
        raise invalid(f"sequence_id {correlation_id} does not fit {control.datatype}")
    return correlation_id


def _signature(feeds: Mapping[str, Array], first: int) -> Any:
    """Equal for requests whose arrays can be joined along the first axis."""
    return tuple((name, array.shape[first:]) for name, array in sorted(feeds.items()))
