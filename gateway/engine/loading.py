"""Owns bringing one model version up: reads its files off the loop, warms it up, and wires runner, place and queue."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from gateway.engine.admission import OWN, Build
from gateway.engine.batcher import Batcher, Dispatcher, Place
from gateway.engine.ensemble import Ensemble, Step
from gateway.engine.golden import check_answers
from gateway.engine.host import Host, PoolPlace
from gateway.engine.interface import Accepted, Interface
from gateway.engine.memory import resident_bytes, return_free_memory
from gateway.engine.messages import message_json
from gateway.engine.plan import PlanConfig
from gateway.engine.python_instance import WINDOW
from gateway.engine.python_model import PythonModel
from gateway.engine.python_process import PythonLimits, PythonProcess
from gateway.engine.queue_limits import QUEUE_REQUESTS_MAX, Levels, QueueLimits
from gateway.engine.ragged import find_ragged
from gateway.engine.residency import ResidentModel, ResidentPlace
from gateway.engine.response_cache import ResponseCache
from gateway.engine.runner import Runner, TensorRunner
from gateway.engine.runtimes import FileRuntime, find_load
from gateway.engine.sequence import SequenceScheduler, initial_states, inner_config_of
from gateway.engine.statistics import Statistics
from gateway.engine.tensors import Array
from gateway.engine.warmup import measure_short_rows, run_warmups, warmup_sample
from gateway.engine.work import Servable, Work
from gateway.errors import TollwayError
from model_repo.config import ModelConfig
from model_repo.ensembles import EnsembleStep
from model_repo.errors import RepositoryError
from model_repo.repository import ModelFolder, find_member
from model_repo.scheduling import DynamicBatching, QueuePolicy

_LOG: Final = logging.getLogger("tollway.engine")
#: Parameters of config.pbtxt that this engine reads itself.
CALL_MS: Final = "tollway_call_ms_max"
MEMORY_BYTES: Final = "tollway_memory_bytes_max"
#: By the name that Triton's ONNX Runtime backend gives it: threads of one run; for models whose latency matters more
#: than how many run side by side.
INTRA_OP_THREADS: Final = "intra_op_thread_count"
_INTRA_OP_THREADS_MAX: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What is to be loaded: one version of a model on disk."""

    folder: ModelFolder
    config: ModelConfig
    number: int
    interface: Interface
    statistics: Statistics
    #: Which files of the version; see `gateway.engine.admission`.
    build: Build = OWN


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A version that runs. `close` gives back what it holds; no work is under way then."""

    servable: Servable
    close: Callable[[], Awaitable[None]]
    batcher: Batcher | None = None
    python: PythonModel | None = None
    ensemble: Ensemble | None = None
    #: Of a model in one file: library, version and what it runs on.
    description: str = ""

    def open_works(self) -> int:
        """Works that wait or run; a batch under way counts as one."""
        count = 0
        if self.batcher is not None:
            count += self.batcher.queued + self.batcher.running
        if self.python is not None:
            count += self.python.open_requests
        if self.ensemble is not None:
            count += self.ensemble.open_works
        return count


async def load_sequence_version(source: Source, host: Host) -> Loaded:
    """A model whose requests belong to sequences: it sees controls and states beside a caller's tensors.

    Raises:
        RepositoryError: as for any model, or an initial state does not fit.
    """
    config, sequences = source.config, source.config.sequences
    assert sequences is not None
    try:
        initial = await host.loop.run_in_executor(host.pool, initial_states, config, source.folder)
    except TollwayError as error:
        raise RepositoryError(f"sequence_batching: {error.message}") from error
    inner_config = inner_config_of(config)
    inner = replace(source, config=inner_config, interface=Interface(inner_config))
    load = load_python_version if config.platform == "python" else load_file_version
    loaded = await load(inner, host)
    scheduler = SequenceScheduler(
        source.interface,
        sequences,
        initial,
        loaded.servable,
        slots=sequences.slots * max(config.instances, 1),
        loop=host.loop,
        clock=host.clock,
        is_id_seen=config.platform == "python" or any(one.kind == "CORRID" for one in sequences.controls),
    )

    async def close() -> None:
        scheduler.close()
        await loaded.close()

    return replace(loaded, servable=scheduler, close=close)


async def load_file_version(source: Source, host: Host) -> Loaded:
    """A model in one file, run by a library of `gateway.engine.runtimes`.

    Raises:
        RepositoryError: the file is missing or does not fit, its library is missing, or a warm-up fails.
    """
    config = source.config
    # The first model of a kind brings its library into the process: not a part of what this model takes.
    load_runtime = await host.loop.run_in_executor(host.pool, find_load, config)
    begun_ns = host.clock.monotonic_ns()
    path = _file(source)
    threads = min(_positive(config, INTRA_OP_THREADS) or host.intra_op_threads, _INTRA_OP_THREADS_MAX)

    def load() -> FileRuntime:
        runtime = load_runtime(path, config, threads=threads)
        # A model that comes and goes is checked each time it comes.
        try:
            source.build.seal.check()
        except RepositoryError:
            runtime.close()
            raise
        return runtime

    runtime = await host.loop.run_in_executor(host.pool, _resident(load, path, config, host))
    runner = TensorRunner(runtime, source.interface, host.clock, find_ragged(config, source.interface))
    short_rows = await host.loop.run_in_executor(host.pool, _prove, runtime, runner, source, host)
    slots = config.instances or host.threads
    place: Place = PoolPlace(host.batches, slots, short_rows)
    if isinstance(runtime, ResidentModel):
        place = ResidentPlace(runtime, host.batches, host.pool, slots)

    def release() -> None:
        before = resident_bytes()
        runner.close()
        return_free_memory()
        _LOG.info("model_closed model=%s returned=%d", config.name, before - resident_bytes())

    async def close() -> None:
        await host.loop.run_in_executor(host.pool, release)

    batcher = _batcher(source, runner, place, host)
    load_ms = (host.clock.monotonic_ns() - begun_ns) // 1_000_000
    _LOG.info("model_ready model=%s load_ms=%d runtime=%s", config.name, load_ms, runtime.description)
    servable: Servable = ResponseCache(batcher, source.statistics, host.clock) if config.is_cached else batcher
    return Loaded(servable=servable, batcher=batcher, close=close, description=runtime.description)


def _resident(
    load: Callable[[], FileRuntime], path: Path, config: ModelConfig, host: Host
) -> Callable[[], FileRuntime]:
    """`load`, or where models come and go, making one that does."""
    residency = host.residency
    if residency is None:
        return load
    return lambda: residency.add(config.name, load, path.stat().st_size)


def _prove(runtime: FileRuntime, runner: Runner, source: Source, host: Host) -> int:
    """Golden answers, then warm-ups; gives the memory back where one fails."""
    try:
        check_answers(runtime, source.config, source.folder.path / str(source.number), source.build, host)
        run_warmups(runner, source.interface, source.config, source.folder)
        return measure_short_rows(runner, source.interface)
    except BaseException:
        runner.close()
        raise


async def load_python_version(source: Source, host: Host) -> Loaded:
    """Raises: RepositoryError: not allowed here, does not start, or a warm-up fails."""
    config = source.config
    folder = source.folder.path.resolve()
    if not any(folder.is_relative_to(allowed) for allowed in host.python_allowed):
        raise RepositoryError("backend 'python': this repository is not listed in python_models_allowed")
    path = _file(source)
    limits = python_limits(config, host.python_limits)
    arguments = {
        "model_config": json.dumps(message_json(config.message)),
        "model_instance_kind": "CPU",
        "model_instance_device_id": "0",
        "model_instance_name": f"{config.name}_0",
        "model_repository": str(folder),
        "model_version": str(source.number),
        "model_name": config.name,
    }
    python = PythonModel(
        lambda events, executor: PythonProcess(path, config.name, limits, events, executor),
        source.interface,
        config.instances or 1,
        host.loop,
        clock=host.clock,
        statistics=source.statistics,
        arguments={
            "arguments": arguments,
            "outputs": [spec.name for spec in config.outputs],
            "is_decoupled": config.is_decoupled,
            "window": WINDOW,
        },
        find_model=host.directory.find,
        limits=limits,
        is_decoupled=config.is_decoupled,
    )
    try:
        await python.start()
        await host.loop.run_in_executor(python.executor(), run_warmups, python, source.interface, config, source.folder)
    except RepositoryError:
        await python.aclose()
        raise
    except asyncio.CancelledError:
        # The engine is told to stop: a step that is still starting must not keep it.
        python.close()
        raise
    batcher = _batcher(source, python, python, host, dispatcher=python)
    return Loaded(servable=batcher, batcher=batcher, python=python, close=python.aclose)


def python_limits(config: ModelConfig, default: PythonLimits) -> PythonLimits:
    """The model's own bounds from its parameters; the memory bound can only be lowered.

    Raises:
        RepositoryError: a parameter is no positive number.
    """
    call_ms = _positive(config, CALL_MS)
    memory = _positive(config, MEMORY_BYTES)
    highest = default.memory_bytes_max
    return PythonLimits(
        memory_bytes_max=min(memory, highest or memory) if memory else highest,
        call_s=call_ms / 1000 if call_ms else default.call_s,
        start_s=default.start_s,
    )


def _positive(config: ModelConfig, name: str) -> int:
    text = config.parameters.get(name)
    if text is None:
        return 0
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 1 << 53):
        raise RepositoryError(f"parameters.{name}: '{text}' is no positive whole number")
    return int(text)


async def load_ensemble_version(
    source: Source, host: Host, find_step: Callable[[EnsembleStep], tuple[Interface, Servable]]
) -> Loaded:
    """Raises: RepositoryError: a step is missing, not ready or does not fit, or a warm-up fails."""
    steps = [Step(step, *find_step(step)) for step in source.config.steps]
    check_steps(source.config, steps)
    ensemble = Ensemble(source.interface, steps, source.statistics, host.clock)
    for warmup in source.config.warmups:
        for _ in range(warmup.runs):
            await _run_once(ensemble, source, warmup_sample(warmup, source.interface, source.folder), host)
    return Loaded(servable=ensemble, ensemble=ensemble, close=_nothing)


async def _run_once(ensemble: Ensemble, source: Source, accepted: Accepted, host: Host) -> None:
    done: asyncio.Future[None] = host.loop.create_future()

    def on_result(work: Work, outputs: list[Array]) -> None:
        if not done.done():
            done.set_result(None)

    def on_error(work: Work, error: TollwayError) -> None:
        if not done.done():
            done.set_exception(RepositoryError(f"model_warmup failed: {error.message}"))

    work = Work(accepted.feeds, on_result, on_error, rows=accepted.rows, signature=accepted.signature)
    ensemble.submit(work)
    try:
        await done
    finally:
        ensemble.cancel(work)


def check_steps(config: ModelConfig, steps: Sequence[Step]) -> None:
    """The tensors that steps name exist, are all fed, and have one type wherever they appear.

    Raises:
        RepositoryError: names the step and the tensor.
    """
    types = {spec.name: spec.datatype for spec in config.inputs}
    wanted = [(spec.name, spec.datatype, "the ensemble's output") for spec in config.outputs]
    for step in steps:
        inputs = {spec.name: spec for spec in step.interface.inputs}
        outputs = {spec.name: spec for spec in step.interface.outputs}
        where = f"ensemble step '{step.config.model}'"
        for name in (*step.config.inputs, *step.config.outputs):
            if name not in inputs and name not in outputs:
                raise RepositoryError(f"{where}: its model has no tensor '{name}'")
        for name, spec in inputs.items():
            if name in step.config.inputs:
                wanted.append((step.config.inputs[name], spec.datatype, f"{where}, input '{name}'"))
            elif not spec.is_optional:
                raise RepositoryError(f"{where}: its input '{name}' is not mapped")
        for name, tensor in step.config.outputs.items():
            if name not in outputs:
                raise RepositoryError(f"{where}: its model has no output '{name}'")
            types[tensor] = outputs[name].datatype
    for tensor, datatype, where in wanted:
        if types[tensor] != datatype:
            raise RepositoryError(f"{where}: tensor '{tensor}' is {types[tensor]}, not {datatype}")


def _file(source: Source) -> Path:
    version = str(source.number)
    parts = (version, *source.build.parts)
    path = find_member(source.folder, *parts, source.config.model_filename)
    if path is None:
        raise RepositoryError(f"{'/'.join(parts)}/{source.config.model_filename}: missing")
    if path.suffix == ".xml":
        # The weights of an IR lie beside it; the library would follow a link out of the repository.
        find_member(source.folder, *parts, f"{path.stem}.bin")
    return path


def _batcher(
    source: Source, runner: Runner, place: Place, host: Host, *, dispatcher: Dispatcher | None = None
) -> Batcher:
    config = source.config
    batching = config.batching
    plan_config = PlanConfig(is_batching=False)
    if batching is not None:
        plan_config = PlanConfig(
            is_batching=True,
            rows_max=config.batch_rows_max,
            preferred_rows=batching.preferred_rows,
            delay_ns_max=batching.delay_ns_max,
            has_ranks=has_ranks(config),
        )
    return Batcher(
        model=config.name,
        config=plan_config,
        limits=_limits(config.queue),
        levels=_levels(batching),
        runner=runner,
        place=place,
        statistics=source.statistics,
        loop=host.loop,
        clock=host.clock,
        dispatcher=dispatcher,
    )


def has_ranks(config: ModelConfig) -> bool:
    """Whether works of a model may leave in another order than they came."""
    batching = config.batching
    if batching is None:
        return False
    return bool(batching.priority_levels) or config.queue.is_delaying


def _limits(policy: QueuePolicy) -> QueueLimits:
    return QueueLimits(
        requests_max=policy.requests_max or QUEUE_REQUESTS_MAX,
        timeout_ns=policy.timeout_ns,
        is_timeout_overridable=policy.is_timeout_overridable,
        is_delaying=policy.is_delaying,
    )


def _levels(batching: DynamicBatching | None) -> Levels | None:
    if batching is None or not batching.priority_levels:
        return None
    limits = {level: _limits(policy) for level, policy in batching.level_policies.items()}
    return Levels(count=batching.priority_levels, default=batching.default_level, limits=limits)


async def _nothing() -> None:
    """An ensemble holds nothing of its own."""
