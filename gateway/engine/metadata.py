"""Owns the JSON answers that describe the server and its models; gRPC's are made from the same values."""

from typing import Any, Final

from gateway.engine.messages import message_json
from gateway.engine.model import ModelVersion
from gateway.engine.registry import Registry

SERVER_NAME: Final = "tollway"
#: What is truly served, by the names of Triton's protocol extensions.
EXTENSIONS: Final = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "sequence",
    "statistics",
    "trace",
    "logging",
    "parameters",
)
_PLATFORMS: Final = {"onnxruntime": "onnxruntime_onnx", "tensorrt": "tensorrt_plan"}


def server_metadata(version: str) -> dict[str, Any]:
    return {"name": SERVER_NAME, "version": version, "extensions": list(EXTENSIONS)}


def model_metadata(version: ModelVersion, registry: Registry) -> dict[str, Any]:
    """Shapes have -1 for the batch axis and for every variable size."""
    interface = version.interface
    batch = [-1] if interface.has_batch_axis else []
    tensors = {
        kind: [{"name": spec.name, "datatype": spec.datatype, "shape": [*batch, *spec.dims]} for spec in specs]
        for kind, specs in (("inputs", interface.inputs), ("outputs", interface.outputs))
    }
    return {
        "name": version.name,
        "versions": [other.version for other in registry.versions_of(version.name)],
        "platform": _PLATFORMS.get(version.config.platform, version.config.platform),
        **tensors,
    }


def shown_config(version: ModelVersion) -> Any:
    """The ModelConfig message in force. Parameter `tollway_runtime` says what really runs it, as its library tells,
    `tollway_aliases` what calls may name the version by."""
    runtime = version.runtime
    if not runtime and not version.aliases:
        return version.config.message
    message = type(version.config.message)()
    message.CopyFrom(version.config.message)
    if runtime:
        message.parameters["tollway_runtime"].string_value = runtime
    if version.aliases:
        message.parameters["tollway_aliases"].string_value = ",".join(sorted(version.aliases))
    return message


def model_config(version: ModelVersion) -> dict[str, Any]:
    return message_json(shown_config(version))
