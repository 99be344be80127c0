"""Owns the list of settings that have an effect, and refuses every other one by its name.

The list is positive: a setting that a later Triton adds is refused until someone gives it a meaning here.
"""

from collections.abc import Iterator
from typing import Any, Final

from model_repo.errors import ConfigError

#: Message type → fields with an effect. A type that is absent here is taken whole.
_USED: Final[dict[str, frozenset[str]]] = {
    "ModelConfig": frozenset(
        {
            "name",
            "platform",
            "backend",
            "max_batch_size",
            "input",
            "output",
            "dynamic_batching",
            "instance_group",
            "ensemble_scheduling",
            "model_warmup",
            "version_policy",
            "parameters",
            "default_model_filename",
            "model_transaction_policy",
            "response_cache",
            "sequence_batching",
            "batch_input",
            "batch_output",
        }
    ),
    "ModelInput": frozenset({"name", "data_type", "dims", "reshape", "optional", "allow_ragged_batch"}),
    "BatchInput": frozenset({"kind", "target_name", "data_type", "source_input"}),
    "BatchOutput": frozenset({"kind", "target_name", "source_input"}),
    "ModelOutput": frozenset({"name", "data_type", "dims", "reshape", "label_filename"}),
    "ModelDynamicBatching": frozenset(
        {
            "preferred_batch_size",
            "max_queue_delay_microseconds",
            "default_queue_policy",
            "priority_levels",
            "default_priority_level",
            "priority_queue_policy",
        }
    ),
    "ModelQueuePolicy": frozenset(
        {"timeout_action", "default_timeout_microseconds", "allow_timeout_override", "max_queue_size"}
    ),
    "ModelInstanceGroup": frozenset({"name", "kind", "count"}),
    "ModelSequenceBatching": frozenset(
        {"max_sequence_idle_microseconds", "control_input", "state", "direct", "oldest"}
    ),
    "StrategyDirect": frozenset({"max_queue_delay_microseconds"}),
    "StrategyOldest": frozenset({"max_candidate_sequences", "preferred_batch_size", "max_queue_delay_microseconds"}),
    "State": frozenset({"input_name", "output_name", "data_type", "dims", "initial_state"}),
    "ModelEnsembling": frozenset({"step"}),
    "Step": frozenset({"model_name", "model_version", "input_map", "output_map"}),
}

#: Settings whose written-out default (`response_cache { enable: false }`) says nothing, and so is harmless.
_EMPTY_IS_DEFAULT: Final = frozenset(
    {"optimization", "response_cache", "model_transaction_policy", "model_operations", "rate_limiter"}
)


def check_settings_used(message: Any) -> None:
    """Refuse settings without effect.

    Raises:
        ConfigError: names the first such setting.
    """
    for path in unused_settings(message):
        raise ConfigError(f"{path}: has no effect in this engine; remove it, or serve the model by another backend")


def unused_settings(message: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of the set fields that nothing here reads."""
    used = _USED.get(message.DESCRIPTOR.name)
    for field, value in message.ListFields():
        path = f"{prefix}{field.name}"
        if used is not None and field.name not in used:
            if not (field.name in _EMPTY_IS_DEFAULT and not value.ListFields()):
                yield path
        elif field.message_type is not None and not field.message_type.GetOptions().map_entry:
            for part in value if field.is_repeated else (value,):
                yield from unused_settings(part, f"{path}.")
