"""Owns the comparison of a model file's tensors with the configured ones, the same for every library."""

from collections.abc import Sequence
from dataclasses import dataclass

from model_repo.config import ModelConfig, TensorSpec
from model_repo.errors import RepositoryError
from model_repo.ragged import BatchInput


@dataclass(frozen=True, slots=True, kw_only=True)
class FileTensor:
    """A tensor as a model file declares it.

    `datatype` is ours, or the library's own word where we have none. `shape`: None is a variable size; an empty shape
    of an output may also mean that the file does not say.
    """

    name: str
    datatype: str
    shape: tuple[int | None, ...]


def check_tensors(
    config: ModelConfig,
    inputs: Sequence[FileTensor],
    outputs: Sequence[FileTensor],
    defaults: Sequence[FileTensor] = (),
) -> None:
    """Every input of the file is configured, every configured tensor is in the file, types and shapes agree.

    `defaults`: inputs of the file that it has a value for, where a caller gives none.

    Raises:
        RepositoryError: names the tensor and both sides.
    """
    made = {one.name: one for one in config.batch_inputs}
    configured = {spec.name for spec in config.inputs}
    real_inputs = {tensor.name: tensor for tensor in inputs}
    for name in real_inputs:
        if name not in configured and name not in made:
            raise RepositoryError(f"input '{name}' of the model file is not configured")
    may_be_missing = {tensor.name: tensor for tensor in defaults}
    for spec in config.inputs:
        if spec.is_optional and spec.name not in may_be_missing:
            reason = "the model file has no default for it, so every request must have it"
            raise RepositoryError(f"input '{spec.name}': optional, but {reason}")
        _check("input", spec, real_inputs.get(spec.name) or may_be_missing.get(spec.name), config)
    for one in made.values():
        _check_made(one, real_inputs.get(one.name))
    real_outputs = {tensor.name: tensor for tensor in outputs}
    for spec in config.outputs:
        _check("output", spec, real_outputs.get(spec.name), config)


def _check_made(one: BatchInput, real: FileTensor | None) -> None:
    where = f"batch_input '{one.name}'"
    if real is None:
        raise RepositoryError(f"{where} is not in the model file")
    if real.datatype != one.datatype:
        raise RepositoryError(f"{where}: configured as {one.datatype}, the model file has {real.datatype}")
    if len(real.shape) != one.rank or real.shape[0] is not None:
        raise RepositoryError(f"{where}: the model file must have {one.rank} axes, the first of variable size")


def _check(kind: str, spec: TensorSpec, real: FileTensor | None, config: ModelConfig) -> None:
    where = f"{kind} '{spec.name}'"
    if real is None:
        raise RepositoryError(f"{where} is not in the model file")
    if real.datatype != spec.datatype:
        raise RepositoryError(f"{where}: configured as {spec.datatype}, the model file has {real.datatype}")
    if spec.is_ragged or (kind == "output" and any(one.name == spec.name for one in config.batch_outputs)):
        # An output's rank may be left open by the file; its size is checked on each run.
        if real.shape != (None,) and (kind == "input" or real.shape):
            raise RepositoryError(f"{where}: ragged, so the model file must have one axis, of variable size")
        return
    dims = spec.dims if spec.reshape is None else spec.reshape
    shape = real.shape
    has_batch_axis = config.batch_rows_max > 0
    if not shape and (dims or has_batch_axis) and kind == "output":
        return  # The file does not say the rank of every output; the rows are checked on each run.
    if has_batch_axis:
        if not shape or shape[0] is not None:
            raise RepositoryError(
                f"{where}: its first axis in the model file is {shape[0] if shape else 'missing'}, not variable; "
                "set max_batch_size to 0 and give whole shapes"
            )
        shape = shape[1:]
    if len(shape) != len(dims) or any(
        size is not None and size != wanted for size, wanted in zip(shape, dims, strict=True)
    ):
        shown = [-1 if size is None else size for size in shape]
        raise RepositoryError(f"{where}: configured dims {list(dims)} do not fit {shown} of the model file")


def first_line(error: BaseException) -> str:
    """The first line that says something, for a message of ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:300]
