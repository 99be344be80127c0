"""Owns what is run: scenarios, their contenders, rounds and lengths, for a full and for a quick run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

HTTP_PEERS: Final = ("direct", "nginx", "nginx_lua", "envoy", "envoy_policy", "haproxy")
GRPC_PEERS: Final = ("direct", "nginx", "envoy", "envoy_policy", "haproxy", "grpc_aio")
TOLLWAYS: Final = ("tollway_bare", "tollway_policy", "tollway_all")
#: The usage log on tmpfs: measured where the disk's own latency would be the figure.
TOLLWAY_TMPFS: Final = "tollway_all_tmpfs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One load, given to every contender in turn, `rounds` times."""

    name: str
    protocol: str
    size: str
    concurrency: int
    rounds: int
    seconds: int
    contenders: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything of one run. The engine and memory scenarios have their own modules."""

    scenarios: tuple[Scenario, ...]
    warm_up_s: int
    engine_rounds: int
    engine_s: int
    #: Items per call that the engine is offered; raw `session.run` is swept over `raw_batches`.
    engine_items: tuple[int, ...]
    raw_batches: tuple[int, ...]
    memory_calls: int
    memory_chunk: int
    has_engine: bool = True
    has_memory: bool = True


def _scenario(protocol: str, size: str, concurrency: int, rounds: int, seconds: int) -> Scenario:
    contenders: tuple[str, ...] = (HTTP_PEERS if protocol == "http" else GRPC_PEERS) + TOLLWAYS
    if (protocol, size, concurrency) == ("http", "1k", 1):
        contenders += (TOLLWAY_TMPFS,)
    return Scenario(
        name=f"{protocol}_{size}_c{concurrency}",
        protocol=protocol,
        size=size,
        concurrency=concurrency,
        rounds=rounds,
        seconds=seconds,
        contenders=contenders,
    )


def full_plan() -> Plan:
    """At most 15 minutes. Eleven rounds where most ratios come from: on a shared machine rounds differ by a third."""
    shapes = (
        ("http", "1k", 64, 11, 2),
        ("grpc", "1k", 64, 7, 2),
        ("http", "1k", 1, 5, 1),
        ("grpc", "1k", 1, 3, 1),
        ("http", "1k", 256, 3, 1),
        ("grpc", "1k", 256, 3, 1),
        ("http", "600k", 64, 3, 1),
        ("grpc", "600k", 64, 3, 1),
    )
    return Plan(
        scenarios=tuple(_scenario(*shape) for shape in shapes),
        warm_up_s=1,
        engine_rounds=5,
        engine_s=2,
        engine_items=(1, 4, 8),
        raw_batches=(1, 2, 4, 8, 16, 32),
        memory_calls=1_000_000,
        memory_chunk=50_000,
    )


def quick_plan() -> Plan:
    """Two to three minutes: every ratio, fewer rounds, and the memory scenario with a twentieth of the calls."""
    shapes = (
        ("http", "1k", 64, 3, 1),
        ("grpc", "1k", 64, 3, 1),
        ("http", "1k", 1, 3, 1),
        ("http", "600k", 64, 1, 1),
    )
    return Plan(
        scenarios=tuple(_scenario(*shape) for shape in shapes),
        warm_up_s=0,
        engine_rounds=3,
        engine_s=1,
        engine_items=(1, 8),
        raw_batches=(1, 8, 32),
        memory_calls=50_000,
        memory_chunk=10_000,
    )


def narrow(plan: Plan, only: Sequence[str], contenders: Sequence[str]) -> Plan:
    """Keep the scenarios whose name starts with one of `only`, and of their contenders those named. Empty keeps all.

    Raises ValueError when a word matches nothing.
    """
    names = [scenario.name for scenario in plan.scenarios] + ["engine", "memory"]
    known = set(HTTP_PEERS + GRPC_PEERS + TOLLWAYS + (TOLLWAY_TMPFS,))
    for word in only:
        if not any(name.startswith(word) for name in names):
            raise ValueError(f"--only {word}: no such scenario; there are {', '.join(names)}")
    for word in contenders:
        if word not in known:
            raise ValueError(f"--contenders {word}: no such contender; there are {', '.join(sorted(known))}")

    def is_wanted(name: str) -> bool:
        return not only or any(name.startswith(word) for word in only)

    kept = []
    for scenario in plan.scenarios:
        chosen = tuple(name for name in scenario.contenders if not contenders or name in contenders)
        if is_wanted(scenario.name) and chosen:
            kept.append(replace(scenario, contenders=chosen))
    return replace(
        plan,
        scenarios=tuple(kept),
        has_engine=is_wanted("engine") and not contenders,
        has_memory=is_wanted("memory") and not contenders,
    )


def rotated(contenders: Sequence[str], round_: int) -> list[str]:
    """Each round begins with another contender, so that none always follows the same one."""
    turn = round_ % len(contenders)
    return [*contenders[turn:], *contenders[:turn]]
