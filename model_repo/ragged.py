"""Owns `batch_input` and `batch_output` of config.pbtxt: what a model with ragged inputs is told of a batch.

A ragged input (`allow_ragged_batch`) of a model in a file is one flat tensor: all elements of all requests of a batch,
one behind another. The model learns from tensors that the server makes where a request begins and what its shape was.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from model_repo.errors import ConfigError

ELEMENT_COUNT: Final = "BATCH_ELEMENT_COUNT"
ACCUMULATED: Final = "BATCH_ACCUMULATED_ELEMENT_COUNT"
ACCUMULATED_WITH_ZERO: Final = "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO"
MAX_AS_SHAPE: Final = "BATCH_MAX_ELEMENT_COUNT_AS_SHAPE"
ITEM_SHAPE: Final = "BATCH_ITEM_SHAPE"
ITEM_SHAPE_FLATTEN: Final = "BATCH_ITEM_SHAPE_FLATTEN"
#: By their numbers in inference.DataType: what Triton knows here.
_TYPES: Final = {11: "FP32", 8: "INT32"}
BATCH_INPUTS_MAX: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchInput:
    """Input `name` of the model's file, made for each batch from the shapes of the callers' input `source`."""

    kind: str
    name: str
    datatype: str
    source: str

    @property
    def rank(self) -> int:
        return 2 if self.kind == ITEM_SHAPE else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOutput:
    """Output `name`, flat in the model's file, is cut by the shapes of the callers' input `source`."""

    name: str
    source: str


def read_batch_inputs(message: Any, inputs: Sequence[str], platform: str) -> tuple[BatchInput, ...]:
    """From a ModelConfig message.

    Raises:
        ConfigError: an unknown input, a type that Triton does not have here, or a setting without effect.
    """
    if message.batch_input:
        _check_place("batch_input", message, platform)
    made = tuple(_batch_input(one, inputs) for one in message.batch_input)
    names = [one.name for one in made]
    if len(made) > BATCH_INPUTS_MAX or len({*names, *inputs}) != len(names) + len(inputs):
        raise ConfigError(f"batch_input: there are more than {BATCH_INPUTS_MAX}, or two have the same target_name")
    return made


def _batch_input(one: Any, inputs: Sequence[str]) -> BatchInput:
    if len(one.target_name) != 1 or len(one.source_input) != 1:
        raise ConfigError("batch_input: each has one target_name and one source_input")
    name, source = one.target_name[0], one.source_input[0]
    where = f"batch_input '{name}'"
    if source not in inputs:
        raise ConfigError(f"{where}: source_input '{source}' is no input of the model")
    kind = type(one).Kind.DESCRIPTOR.values_by_number.get(one.kind)
    datatype = _TYPES.get(one.data_type)
    if kind is None or datatype is None:
        raise ConfigError(f"{where}: its kind is unknown, or its data_type none of {', '.join(_TYPES.values())}")
    return BatchInput(kind=kind.name, name=name, datatype=datatype, source=source)


def read_batch_outputs(
    message: Any, inputs: Sequence[str], outputs: Sequence[str], platform: str
) -> tuple[BatchOutput, ...]:
    """From a ModelConfig message.

    Raises:
        ConfigError: an unknown tensor, or a setting without effect.
    """
    if message.batch_output:
        _check_place("batch_output", message, platform)
    made: list[BatchOutput] = []
    for one in message.batch_output:
        if len(one.target_name) != 1 or len(one.source_input) != 1:
            raise ConfigError("batch_output: each has one target_name and one source_input")
        name, source = one.target_name[0], one.source_input[0]
        if name not in outputs or source not in inputs or name in [other.name for other in made]:
            raise ConfigError(f"batch_output '{name}' of '{source}': names an output twice, or no tensor of the model")
        if one.kind != one.BATCH_SCATTER_WITH_INPUT_SHAPE:
            raise ConfigError(f"batch_output '{name}': kind {one.kind} is not served")
        made.append(BatchOutput(name=name, source=source))
    return tuple(made)


def _check_place(field: str, message: Any, platform: str) -> None:
    if platform not in ("onnxruntime", "openvino"):
        raise ConfigError(f"{field}: only for a model in an ONNX or OpenVINO file; others see each request by itself")
    if not message.max_batch_size or message.HasField("sequence_batching"):
        raise ConfigError(f"{field}: needs max_batch_size of at least 1, and no sequence_batching")


def check_ragged(message: Any, name: str, dims: Sequence[int], platform: str, *, has_reshape: bool) -> None:
    """Whether input `name` may be ragged.

    Raises:
        ConfigError: `allow_ragged_batch` would have no effect, or none that is served.
    """
    where = f"input '{name}': allow_ragged_batch"
    if platform not in ("onnxruntime", "openvino", "python"):
        raise ConfigError(f"{where}: not served for platform '{platform}'")
    if not message.max_batch_size or not message.HasField("dynamic_batching"):
        raise ConfigError(f"{where}: has no effect without max_batch_size and dynamic_batching")
    if -1 not in dims:
        raise ConfigError(f"{where}: has no effect on dims without a variable size")
    if has_reshape:
        raise ConfigError(f"{where}: reshape has no effect beside it")
