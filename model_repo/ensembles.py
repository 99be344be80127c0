"""Owns the shape of an ensemble: its steps, and whether every tensor comes from exactly one place.

Names on the left of a map are the step's model's own; names on the right are tensors of the ensemble.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from model_repo.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleStep:
    """One model of an ensemble. `version` -1: the latest served one."""

    model: str
    version: int
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]

    @classmethod
    def of(cls, message: Any) -> "EnsembleStep":
        """From a ModelEnsembling.Step; a version of 0 (unset) means the latest."""
        if not message.model_name:
            raise ConfigError("ensemble_scheduling.step: one has no model_name")
        if not message.input_map or not message.output_map:
            raise ConfigError(f"ensemble_scheduling.step '{message.model_name}': needs input_map and output_map")
        return cls(
            model=message.model_name,
            version=message.model_version or -1,
            inputs=dict(message.input_map),
            outputs=dict(message.output_map),
        )


def check_flow(steps: Sequence[EnsembleStep], inputs: Iterable[str], outputs: Iterable[str]) -> None:
    """Every tensor is made once, every tensor read is made, every output is made, and nothing waits for itself.

    Raises:
        ConfigError: names the tensor and the step.
    """
    inputs = list(inputs)
    made = set(inputs)
    for step in steps:
        for tensor in step.outputs.values():
            if tensor in made:
                raise ConfigError(f"ensemble_scheduling: tensor '{tensor}' is made twice (step '{step.model}')")
            made.add(tensor)
    for step in steps:
        for tensor in step.inputs.values():
            if tensor not in made:
                raise ConfigError(f"ensemble_scheduling: step '{step.model}' reads '{tensor}', which nothing makes")
    for tensor in outputs:
        if tensor not in made:
            raise ConfigError(f"ensemble_scheduling: output '{tensor}' is made by no step")
    read = {tensor for step in steps for tensor in step.inputs.values()}
    for tensor in inputs:
        if tensor not in read:
            raise ConfigError(f"ensemble_scheduling: input '{tensor}' is read by no step")
    _check_order(steps, inputs)


def _check_order(steps: Sequence[EnsembleStep], inputs: Iterable[str]) -> None:
    have = set(inputs)
    waiting = list(steps)
    while waiting:
        ready = [step for step in waiting if have.issuperset(step.inputs.values())]
        if not ready:
            raise ConfigError(f"ensemble_scheduling: step '{waiting[0].model}' waits for its own result")
        for step in ready:
            have.update(step.outputs.values())
            waiting.remove(step)
