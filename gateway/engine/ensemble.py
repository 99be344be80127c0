"""HOT PATH. Owns running an ensemble: each step starts when its tensors are there, and what one makes feeds the next.

No queue and no thread of its own: the steps are works of their models. A step's fault ends the ensemble's work and
withdraws the steps still under way; so does the caller's leaving.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.clock import Clock
from gateway.engine.interface import Interface, Tensor
from gateway.engine.statistics import Statistics
from gateway.engine.tensors import Array, datatype_of
from gateway.engine.work import Servable, Work
from gateway.errors import Code, TollwayError
from model_repo.ensembles import EnsembleStep


@dataclass(frozen=True, slots=True)
class Step:
    """A configured step with the model it names."""

    config: EnsembleStep
    interface: Interface
    servable: Servable


class _Progress:
    """How far one work of the ensemble has come."""

    __slots__ = ("running", "tensors", "waiting")

    def __init__(self, tensors: dict[str, Array], waiting: list[Step]) -> None:
        self.tensors = tensors
        self.waiting = waiting
        self.running: dict[Work, Step] = {}


class Ensemble:
    """A `Servable` made of others."""

    def __init__(self, interface: Interface, steps: Sequence[Step], statistics: Statistics, clock: Clock) -> None:
        self._interface = interface
        self._steps = list(steps)
        self._statistics = statistics
        self._clock = clock
        #: Works under way.
        self.open_works = 0
        self._inputs = frozenset(spec.name for spec in interface.inputs)

    def submit(self, work: Work) -> None:
        work.enqueued_ns = self._clock.monotonic_ns()
        if work.timeout_ns:
            at_ns = work.enqueued_ns + work.timeout_ns
            work.deadline_ns = min(work.deadline_ns or at_ns, at_ns)
        progress = work.progress = _Progress(dict(work.feeds), list(self._steps))
        self.open_works += 1
        self._advance(work, progress)

    def cancel(self, work: Work) -> None:
        if not work.is_done:
            work.withdraw()
            self.open_works -= 1
            self._withdraw_steps(work)

    def _advance(self, work: Work, progress: _Progress) -> None:
        """Start every step whose tensors are there; finish when none is left."""
        ready = [step for step in progress.waiting if progress.tensors.keys() >= set(step.config.inputs.values())]
        for step in ready:
            # A step that ran at once may have started those after it, or ended the work.
            if work.is_done:
                return
            if step in progress.waiting:
                progress.waiting.remove(step)
                self._start(work, progress, step)
        if not progress.waiting and not progress.running and not work.is_done:
            self._finish(work, progress)

    def _start(self, work: Work, progress: _Progress, step: Step) -> None:
        tensors = [
            _tensor(name, progress.tensors[source], step.interface) for name, source in step.config.inputs.items()
        ]
        try:
            accepted = step.interface.accept(tensors)
        except TollwayError as error:
            is_callers = self._inputs.issuperset(step.config.inputs.values())
            self._fail(work, error if is_callers else TollwayError(Code.BACKEND_FAULT, error.message))
            return
        own = Work(
            accepted.feeds,
            self._on_step,
            self._on_step_error,
            rows=accepted.rows,
            signature=accepted.signature,
            deadline_ns=work.deadline_ns,
            nbytes=accepted.nbytes,
            context=work.context.of_step(),
            tenant=work.tenant,
            weight=work.weight,
            priority_best=work.priority_best,
        )
        own.owner = work
        progress.running[own] = step
        step.servable.submit(own)

    def _on_step(self, own: Work, outputs: list[Array]) -> None:
        work: Work = own.owner
        progress: _Progress = work.progress
        step = progress.running.pop(own)
        work.compute_ns += own.compute_ns
        work.queue_ns += own.queue_ns
        for name, target in step.config.outputs.items():
            position = step.interface.output_positions[name]
            progress.tensors[target] = step.interface.outward(position, outputs[position])
        self._advance(work, progress)

    def _on_step_error(self, own: Work, error: TollwayError) -> None:
        work: Work = own.owner
        progress: _Progress = work.progress
        progress.running.pop(own)
        work.compute_ns += own.compute_ns
        self._fail(work, error)

    def _finish(self, work: Work, progress: _Progress) -> None:
        outputs = [progress.tensors[spec.name] for spec in self._interface.outputs]
        for position, output in enumerate(outputs):
            fault = self._interface.find_output_fault(position, output, work.rows)
            if fault is not None:
                self._fail(work, TollwayError(Code.BACKEND_FAULT, f"ensemble '{self._interface.model}': {fault}"))
                return
        total_ns = self._clock.monotonic_ns() - work.enqueued_ns
        self._statistics.on_batch(work.rows, 0, work.compute_ns, 0)
        self._statistics.on_success(total_ns, work.queue_ns)
        self._statistics.last_wall_ms = self._clock.wall_ns() // 1_000_000
        self.open_works -= 1
        work.resolve(outputs)

    def _fail(self, work: Work, error: TollwayError) -> None:
        if not work.is_done:
            self._statistics.on_fail(self._clock.monotonic_ns() - work.enqueued_ns)
            self.open_works -= 1
            self._withdraw_steps(work)
            work.fail(error)

    def _withdraw_steps(self, work: Work) -> None:
        progress: _Progress = work.progress
        running, progress.running = progress.running, {}
        progress.waiting.clear()
        for own, step in running.items():
            step.servable.cancel(own)


def _tensor(name: str, array: Array, interface: Interface) -> Tensor:
    datatype = datatype_of(array, interface.input_named(name).datatype)
    return Tensor(name, datatype or str(array.dtype), array.shape, array)
