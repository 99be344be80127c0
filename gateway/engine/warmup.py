"""Owns warm-up: runs a model before it is called ready, and measures whether its batches are short.

A short batch runs on the loop's thread, where a call costs 8 us instead of 49 in an executor (DATAPATH.md "Engine").
"""

from collections.abc import Iterator
from typing import Final

import numpy as np

from gateway.engine.interface import Accepted, Interface, Tensor, zero_tensor
from gateway.engine.runner import Runner
from gateway.engine.tensors import DTYPES, Array, from_raw
from gateway.errors import TollwayError
from model_repo.config import ModelConfig, Warmup, WarmupInput
from model_repo.errors import RepositoryError
from model_repo.repository import ModelFolder, read_member

#: A batch that takes longer would make every connection of the loop wait for it.
SHORT_NS: Final = 200_000
#: No first run of a short one takes this long: more would only delay the load of a large model.
_HOPELESS_NS: Final = 50 * SHORT_NS
#: Nor does a second one take this long.
_LONG_NS: Final = 10 * SHORT_NS
_SAMPLE_BYTES_MAX: Final = 64 << 20
_TIMED_RUNS: Final = 5
_FILE_BYTES_MAX: Final = 256 << 20


def run_warmups(runner: Runner, interface: Interface, config: ModelConfig, folder: ModelFolder) -> None:
    """Run the configured samples. Blocks.

    Raises:
        RepositoryError: a sample's file is missing or does not fit, or the model fails on a sample.
    """
    for warmup in config.warmups:
        accepted = warmup_sample(warmup, interface, folder)
        for _ in range(warmup.runs):
            _run(runner, accepted, f"model_warmup '{warmup.name}'")


def measure_short_rows(runner: Runner, interface: Interface) -> int:
    """The most rows whose batch took less than `SHORT_NS`; 0 where a size may vary, for then one tells nothing.

    Raises:
        RepositoryError: the model fails on zeros of its own shape.
    """
    specs = interface.inputs
    if not interface.is_fixed or any(spec.datatype == "BYTES" for spec in specs):
        return 0
    short = 0
    for rows in _row_counts(max(interface.rows_max, 1)):
        feeds = {spec.name: zero_tensor(spec, rows, has_batch_axis=interface.has_batch_axis) for spec in specs}
        accepted = Accepted(feeds, rows, None, sum(array.nbytes for array in feeds.values()))
        # The first run allocates; the median ignores it and what else the machine does.
        if accepted.nbytes > _SAMPLE_BYTES_MAX or not _is_short(runner, accepted):
            break
        short = rows
    return short


def _is_short(runner: Runner, accepted: Accepted) -> bool:
    """Whether the median of `_TIMED_RUNS` is below `SHORT_NS`; ends as soon as that is decided."""
    long = short = 0
    while max(long, short) <= _TIMED_RUNS // 2:
        took_ns = _run(runner, accepted, "a run on zeros")
        if took_ns >= (_LONG_NS if long or short else _HOPELESS_NS):
            return False
        if took_ns < SHORT_NS:
            short += 1
        else:
            long += 1
    return short > long


def _row_counts(rows_max: int) -> Iterator[int]:
    """1, 2, 4 … and `rows_max` itself."""
    rows = 1
    while rows < rows_max:
        yield rows
        rows *= 2
    yield rows_max


def _run(runner: Runner, accepted: Accepted, what: str) -> int:
    executed = runner.run([accepted.feeds], [accepted.rows])
    result = executed.results[0]
    if isinstance(result, TollwayError):
        raise RepositoryError(f"{what} failed: {result.message}")
    return executed.input_ns + executed.infer_ns + executed.output_ns


def warmup_sample(warmup: Warmup, interface: Interface, folder: ModelFolder) -> Accepted:
    """The tensors of a configured sample, checked like a caller's.

    Raises:
        RepositoryError: a file is missing, or the sample does not fit the model.
    """
    rows = max(warmup.batch_rows, 1)
    tensors = []
    try:
        for own in warmup.inputs:
            shape = (rows, *own.dims) if interface.has_batch_axis else own.dims
            array = _fill(own, shape, folder)
            tensors.append(Tensor(own.name, own.datatype, shape, array))
        return interface.accept(tensors)
    except TollwayError as error:
        raise RepositoryError(f"model_warmup '{warmup.name}': {error.message}") from error


def _fill(own: WarmupInput, shape: tuple[int, ...], folder: ModelFolder) -> Array:
    if own.source == "file":
        data = read_member(folder, "warmup", own.file, bytes_max=_FILE_BYTES_MAX)
        return from_raw(own.name, own.datatype, shape, data)
    if own.datatype == "BYTES":
        return np.full(shape, b"", dtype=object)
    dtype = DTYPES[own.datatype]
    if own.source == "zero":
        return np.zeros(shape, dtype=dtype)
    noise = np.random.default_rng(1)
    return noise.random(shape).astype(dtype) if dtype.kind == "f" else noise.integers(0, 2, shape).astype(dtype)
