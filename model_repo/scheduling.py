"""Owns `dynamic_batching` of config.pbtxt: how works gather, who leaves first, how long and how many may wait."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from model_repo.errors import ConfigError

PRIORITY_LEVELS_MAX: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuePolicy:
    """0 means no bound of its own. A caller's `timeout` can only shorten, and only if it may override.

    `is_delaying`: what waits longer is not refused, but goes behind all others of its level.
    """

    requests_max: int = 0
    timeout_ns: int = 0
    is_timeout_overridable: bool = True
    is_delaying: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicBatching:
    """`priority_levels` 0: none, else 1 (first) to it; who names none, or another, has `default_level`.

    `level_policies` holds for its level instead of the default policy.
    """

    preferred_rows: tuple[int, ...] = ()
    delay_ns_max: int = 0
    priority_levels: int = 0
    default_level: int = 0
    level_policies: Mapping[int, QueuePolicy] = field(default_factory=dict)


def bounded(field: str, value: int, low: int, high: int) -> int:
    """`value`. Raises: ConfigError: it is out of bounds."""
    if not low <= value <= high:
        raise ConfigError(f"{field}: {value} is outside {low}..{high}")
    return value


def read_batching(message: Any, rows_max: int) -> DynamicBatching | None:
    """Raises: ConfigError: a setting is out of its bounds."""
    if not message.HasField("dynamic_batching"):
        return None
    if rows_max == 0:
        raise ConfigError("dynamic_batching: needs max_batch_size of at least 1")
    batching = message.dynamic_batching
    for rows in batching.preferred_batch_size:
        bounded("dynamic_batching.preferred_batch_size", rows, 1, rows_max)
    return DynamicBatching(
        preferred_rows=tuple(sorted(set(batching.preferred_batch_size))),
        delay_ns_max=batching.max_queue_delay_microseconds * 1_000,
        priority_levels=bounded("dynamic_batching.priority_levels", batching.priority_levels, 0, PRIORITY_LEVELS_MAX),
        default_level=_default_level(batching),
        level_policies=_level_policies(batching),
    )


def _level_policies(batching: Any) -> dict[int, QueuePolicy]:
    where = "dynamic_batching.priority_queue_policy (its level)"
    return {
        bounded(where, level, 1, batching.priority_levels): read_queue(policy)
        for level, policy in sorted(batching.priority_queue_policy.items())
    }


def _default_level(batching: Any) -> int:
    if not batching.priority_levels:
        return bounded("dynamic_batching.default_priority_level", batching.default_priority_level, 0, 0)
    where = "dynamic_batching.default_priority_level"
    return bounded(where, batching.default_priority_level, 1, batching.priority_levels)


def read_queue(policy: Any) -> QueuePolicy:
    """From a ModelQueuePolicy message."""
    timeout_ns = policy.default_timeout_microseconds * 1_000
    return QueuePolicy(
        requests_max=policy.max_queue_size,
        timeout_ns=timeout_ns,
        is_timeout_overridable=timeout_ns == 0 or policy.allow_timeout_override,
        is_delaying=policy.timeout_action == policy.DELAY,
    )
