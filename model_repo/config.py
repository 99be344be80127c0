"""Owns config.pbtxt: text ⇄ Triton's ModelConfig message ⇄ a checked, frozen value.

What has no effect in this engine is refused by name instead of being ignored: a model that loads behaves as its
configuration says. Checks that need the model's own file (its real tensor names and shapes) belong to the runtime.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from model_repo.ensembles import EnsembleStep, check_flow
from model_repo.errors import ConfigError
from model_repo.ragged import BatchInput, BatchOutput, check_ragged, read_batch_inputs, read_batch_outputs
from model_repo.scheduling import DynamicBatching, QueuePolicy, bounded, read_batching, read_queue
from model_repo.sequences import SequenceBatching, read_sequences
from model_repo.settings_used import check_settings_used

Platform = Literal["onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "python", "ensemble"]

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
#: What `platform` or `backend` may say → who runs it.
PLATFORMS: Final[dict[str, Platform]] = {
    "onnxruntime": "onnxruntime",
    "onnxruntime_onnx": "onnxruntime",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
    "tensorrt_plan": "tensorrt",
    "tensorrt_rtx": "tensorrt_rtx",
    "python": "python",
    "ensemble": "ensemble",
}
#: As Triton's backends name them.
_DEFAULT_FILES: Final[dict[Platform, str]] = {
    "onnxruntime": "model.onnx",
    "openvino": "model.xml",
    "tensorrt": "model.plan",
    "tensorrt_rtx": "model.plan",
    "python": "model.py",
    "ensemble": "",
}
BATCH_ROWS_MAX: Final = 1 << 16
_INSTANCES_MAX: Final = 64
_TENSORS_MAX: Final = 64
_RANK_MAX: Final = 16
_WARMUP_RUNS_MAX: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """A configured input or output. `dims` has no batch axis; -1 is a variable size.

    `reshape`, where given, is the shape that the model itself sees or returns instead of `dims`.
    """

    name: str
    datatype: str
    dims: tuple[int, ...]
    reshape: tuple[int, ...] | None = None
    is_optional: bool = False
    #: Requests of different sizes share a batch.
    is_ragged: bool = False
    label_filename: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmupInput:
    """One input of a warm-up sample, filled with zeros, seeded noise or the bytes of a file below `warmup/`."""

    name: str
    datatype: str
    dims: tuple[int, ...]
    source: Literal["zero", "random", "file"]
    file: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Warmup:
    name: str
    batch_rows: int
    runs: int
    inputs: tuple[WarmupInput, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionPolicy:
    """Which versions on disk are served: the `latest` n, those in `specific`, or (both empty) all."""

    latest: int = 0
    specific: tuple[int, ...] = ()

    def choose(self, on_disk: Sequence[int]) -> tuple[int, ...]:
        """The versions to serve, ascending.

        Raises:
            ConfigError: a version asked for is not there.
        """
        versions = sorted(on_disk)
        if self.latest:
            return tuple(versions[-self.latest :])
        for version in self.specific:
            if version not in versions:
                raise ConfigError(f"version_policy: version {version} is not in the model's folder")
        return tuple(sorted(self.specific)) if self.specific else tuple(versions)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A model's checked configuration. `batch_rows_max` 0: the model has no batch axis.

    `instances` 0: not configured. `message` is the configuration as written, for the config endpoints.
    """

    name: str
    platform: Platform
    batch_rows_max: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batching: DynamicBatching | None
    queue: QueuePolicy
    instances: int
    is_decoupled: bool
    is_cached: bool
    sequences: SequenceBatching | None
    steps: tuple[EnsembleStep, ...]
    warmups: tuple[Warmup, ...]
    versions: VersionPolicy
    parameters: Mapping[str, str]
    model_filename: str
    message: Any
    batch_inputs: tuple[BatchInput, ...] = ()
    batch_outputs: tuple[BatchOutput, ...] = ()


def parse_config(text: str, *, name: str) -> ModelConfig:
    """The checked configuration of the model in folder `name`.

    Raises:
        ConfigError: the text is malformed, contradicts itself, or sets what has no effect here.
    """
    message = model_config_pb2.ModelConfig()
    try:
        text_format.Parse(text, message)
    except (text_format.ParseError, ValueError) as error:
        # protobuf lets a ValueError through for a number that no enum can hold.
        raise ConfigError(f"not a model configuration: {error}") from error
    if not message.name:
        message.name = name
    if message.name != name:
        raise ConfigError(f"name: '{message.name}' differs from the model's folder '{name}'")
    return check_config(message)


def format_config(config: ModelConfig) -> str:
    """The configuration as config.pbtxt text; `parse_config` of it gives an equal value."""
    return str(text_format.MessageToString(config.message))


def check_config(message: Any) -> ModelConfig:
    """Turn a ModelConfig message into a checked value.

    Raises:
        ConfigError: as `parse_config`.
    """
    if NAME.fullmatch(message.name) is None:
        raise ConfigError(f"name: '{message.name[:140]}' must match {NAME.pattern}")
    check_settings_used(message)
    platform = _platform(message)
    rows_max = bounded("max_batch_size", message.max_batch_size, 0, BATCH_ROWS_MAX)
    inputs = _tensors("input", message.input)
    outputs = _tensors("output", message.output)
    steps = _steps(message, platform)
    if steps:
        for spec in (*inputs, *outputs):
            if spec.is_optional or spec.reshape is not None:
                raise ConfigError(f"'{spec.name}': optional and reshape have no effect on an ensemble's own tensors")
        check_flow(steps, [spec.name for spec in inputs], [spec.name for spec in outputs])
    for spec in inputs:
        if spec.is_ragged:
            check_ragged(message, spec.name, spec.dims, platform, has_reshape=spec.reshape is not None)
    names = [spec.name for spec in inputs]
    return ModelConfig(
        name=message.name,
        platform=platform,
        batch_rows_max=rows_max,
        inputs=inputs,
        outputs=outputs,
        batching=read_batching(message, rows_max),
        queue=read_queue(message.dynamic_batching.default_queue_policy),
        instances=_instances(message, platform),
        is_decoupled=_is_decoupled(message, platform),
        is_cached=_is_cached(message, platform),
        sequences=_sequences(message, rows_max, platform),
        steps=steps,
        warmups=tuple(_warmup(sample, rows_max, inputs) for sample in message.model_warmup),
        versions=_versions(message.version_policy),
        parameters={key: value.string_value for key, value in message.parameters.items()},
        model_filename=_filename("default_model_filename", message.default_model_filename) or default_file(platform),
        message=message,
        batch_inputs=read_batch_inputs(message, names, platform),
        batch_outputs=read_batch_outputs(message, names, [spec.name for spec in outputs], platform),
    )


def default_file(platform: Platform) -> str:
    """What Triton's backend for it calls its file; empty where it has none."""
    return _DEFAULT_FILES[platform]


def _platform(message: Any) -> Platform:
    named = {field: getattr(message, field) for field in ("platform", "backend") if getattr(message, field)}
    if not named:
        raise ConfigError("platform: missing; set platform or backend")
    found = set()
    for field, value in named.items():
        platform = PLATFORMS.get(value)
        if platform is None:
            raise ConfigError(f"{field}: '{value}' is not served here; served are {', '.join(sorted(PLATFORMS))}")
        found.add(platform)
    if len(found) > 1:
        raise ConfigError(f"platform '{message.platform}' and backend '{message.backend}' contradict each other")
    return found.pop()


def _filename(field: str, value: str) -> str:
    """A bare file name: nothing that leaves the folder it is looked up in."""
    if value and (value in {".", ".."} or "/" in value or "\\" in value or "\0" in value):
        raise ConfigError(f"{field}: '{value}' must be a plain file name")
    return value


def datatype_name(value: int) -> str:
    """`TYPE_FP32` → `FP32`; Triton writes strings as TYPE_STRING in configurations and BYTES on the wire.

    Raises:
        ConfigError: a number that no type has (text may give numbers, and protobuf keeps unknown ones).
    """
    known = model_config_pb2.DataType.DESCRIPTOR.values_by_number.get(value)
    if known is None:
        raise ConfigError(f"data_type: {value} is no data type")
    name = str(known.name).removeprefix("TYPE_")
    return "BYTES" if name == "STRING" else name


def _tensors(field: str, messages: Sequence[Any]) -> tuple[TensorSpec, ...]:
    bounded(f"number of {field}s", len(messages), 1, _TENSORS_MAX)
    specs = tuple(_tensor(field, message) for message in messages)
    if len({spec.name for spec in specs}) != len(specs):
        raise ConfigError(f"{field}: two have the same name")
    return specs


def _tensor(field: str, message: Any) -> TensorSpec:
    if not message.name:
        raise ConfigError(f"{field}: one has no name")
    where = f"{field} '{message.name}'"
    datatype = datatype_name(message.data_type)
    if datatype == "INVALID":
        raise ConfigError(f"{where}: data_type is missing")
    dims = _dims(f"{where}: dims", message.dims)
    if not dims:
        raise ConfigError(f"{where}: dims are missing")
    reshape = None
    if message.HasField("reshape"):
        reshape = _dims(f"{where}: reshape", message.reshape.shape)
        _check_reshape(where, dims, reshape)
    is_input = field == "input"
    return TensorSpec(
        name=message.name,
        datatype=datatype,
        dims=dims,
        reshape=reshape,
        is_optional=is_input and message.optional,
        is_ragged=is_input and message.allow_ragged_batch,
        label_filename="" if is_input else _filename(f"{where}: label_filename", message.label_filename),
    )


def _dims(where: str, dims: Sequence[int]) -> tuple[int, ...]:
    bounded(f"{where} (their number)", len(dims), 0, _RANK_MAX)
    for size in dims:
        if size != -1 and not 1 <= size < 1 << 31:
            raise ConfigError(f"{where}: {size} is neither -1 nor a size of at least 1")
    return tuple(dims)


def _check_reshape(where: str, dims: tuple[int, ...], reshape: tuple[int, ...]) -> None:
    """The k-th variable size of one shape is the k-th of the other, so the fixed sizes must multiply alike."""
    if dims.count(-1) != reshape.count(-1) or _fixed_product(dims) != _fixed_product(reshape):
        raise ConfigError(f"{where}: reshape {list(reshape)} does not hold as many elements as dims {list(dims)}")


def _fixed_product(dims: tuple[int, ...]) -> int:
    product = 1
    for size in dims:
        product *= size if size != -1 else 1
    return product


def _instances(message: Any, platform: Platform) -> int:
    if message.instance_group and platform == "ensemble":
        raise ConfigError("instance_group: an ensemble has none; configure it on its steps")
    total = 0
    for group in message.instance_group:
        if group.kind not in (group.KIND_AUTO, group.KIND_CPU):
            known = type(group).Kind.DESCRIPTOR.values_by_number.get(group.kind)
            kind = group.kind if known is None else known.name
            raise ConfigError(f"instance_group.kind: {kind} is not served here; use KIND_CPU")
        total += bounded("instance_group.count", group.count or 1, 1, _INSTANCES_MAX)
    return bounded("instance_group.count (all groups)", total, 0, _INSTANCES_MAX)


def _sequences(message: Any, rows_max: int, platform: Platform) -> SequenceBatching | None:
    sequences = read_sequences(message, rows_max, datatype_name)
    if sequences is None:
        return None
    if platform == "ensemble" or message.model_transaction_policy.decoupled:
        raise ConfigError("sequence_batching: an ensemble, or a decoupled model, serves no sequences")
    if platform == "python" and _instances(message, platform) > 1:
        raise ConfigError("sequence_batching: a Python model with sequences has one instance, which knows them all")
    if message.model_warmup:
        raise ConfigError("model_warmup: has no effect on a model with sequence_batching; it is run on zeros at load")
    return sequences


def _is_decoupled(message: Any, platform: Platform) -> bool:
    is_decoupled = bool(message.model_transaction_policy.decoupled)
    if is_decoupled and platform != "python":
        raise ConfigError("model_transaction_policy.decoupled: only a Python model can send many responses")
    return is_decoupled


def _is_cached(message: Any, platform: Platform) -> bool:
    is_cached = bool(message.response_cache.enable)
    if is_cached and message.HasField("sequence_batching"):
        raise ConfigError("response_cache: a sequence's answers depend on what came before")
    if is_cached and platform in ("python", "ensemble"):
        raise ConfigError("response_cache: only for a model in a file; what a program answers may change")
    return is_cached


def _steps(message: Any, platform: Platform) -> tuple[EnsembleStep, ...]:
    steps = tuple(EnsembleStep.of(step) for step in message.ensemble_scheduling.step)
    if platform == "ensemble" and not steps:
        raise ConfigError("ensemble_scheduling: an ensemble needs at least one step")
    if platform != "ensemble" and message.HasField("ensemble_scheduling"):
        raise ConfigError("ensemble_scheduling: only for platform 'ensemble'")
    return steps


def _warmup(sample: Any, rows_max: int, inputs: tuple[TensorSpec, ...]) -> Warmup:
    where = f"model_warmup '{sample.name}'"
    rows = bounded(f"{where}: batch_size", sample.batch_size, 0, max(rows_max, 1))
    known = {spec.name: spec.datatype for spec in inputs}
    tensors = []
    for name, tensor in sorted(sample.inputs.items()):
        datatype = datatype_name(tensor.data_type)
        if known.get(name) != datatype:
            raise ConfigError(f"{where}: input '{name}' of type {datatype} is not an input of the model")
        dims = _dims(f"{where}: input '{name}'", tensor.dims)
        if -1 in dims:
            raise ConfigError(f"{where}: input '{name}' needs fixed dims")
        source = tensor.WhichOneof("input_data_type")
        if source is None:
            raise ConfigError(f"{where}: input '{name}' needs zero_data, random_data or input_data_file")
        kind: Literal["zero", "random", "file"] = (
            "file" if source == "input_data_file" else "zero" if source == "zero_data" else "random"
        )
        file = _filename(f"{where}: input_data_file", tensor.input_data_file)
        tensors.append(WarmupInput(name=name, datatype=datatype, dims=dims, source=kind, file=file))
    missing = {spec.name for spec in inputs if not spec.is_optional} - {tensor.name for tensor in tensors}
    if missing:
        raise ConfigError(f"{where}: input '{min(missing)}' is missing")
    runs = bounded(f"{where}: count", sample.count or 1, 1, _WARMUP_RUNS_MAX)
    return Warmup(name=sample.name, batch_rows=rows, runs=runs, inputs=tuple(tensors))


def _versions(policy: Any) -> VersionPolicy:
    chosen = policy.WhichOneof("policy_choice")
    if chosen is None:
        return VersionPolicy(latest=1)
    if chosen == "latest":
        return VersionPolicy(latest=bounded("version_policy.latest", policy.latest.num_versions or 1, 1, 1 << 20))
    if chosen == "specific":
        versions = tuple(policy.specific.versions)
        if not versions or min(versions) < 1:
            raise ConfigError("version_policy.specific: needs versions of at least 1")
        return VersionPolicy(specific=versions)
    return VersionPolicy()
