"""Owns the memory scenario: a fresh Tollway with everything on, many calls in chunks, the worker's RSS after each."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loadtests.contenders import Contender
from loadtests.contenders.direct import MODEL
from loadtests.contenders.tollway import start_tollway
from loadtests.load import run_count
from loadtests.payloads import GRPC_PATH, HTTP_PATH, Body
from loadtests.plan import Plan
from loadtests.processes import Cores, find_role, rss_bytes, stop

_MB: Final = 1_000_000
#: Every fifth chunk is gRPC, from the second on: what a protocol takes once is taken in the first half.
_GRPC_EVERY: Final = 5
#: "Flat": the second half of the calls adds no more than this.
GROWTH_MB_MAX: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryResult:
    """(calls so far, RSS in MB of 10^6 bytes) along the way; `growth_mb` is that of the second half."""

    calls: int
    points: list[tuple[int, float]]
    rss_mb: float
    growth_mb: float
    rss_mb_by_role: dict[str, float]
    calls_per_s: float
    problems: tuple[str, ...]

    @property
    def is_flat(self) -> bool:
        return self.growth_mb <= GROWTH_MB_MAX


def growth_of_second_half(points: list[tuple[int, float]]) -> float:
    """RSS at the end minus RSS at the first point at or past half of the calls."""
    calls = points[-1][0]
    middle = next(rss for at, rss in points if 2 * at >= calls)
    return points[-1][1] - middle


def run_memory(plan: Plan, bodies: dict[str, Body], backend: Contender, workdir: Path, cores: Cores) -> MemoryResult:
    """Drive `plan.memory_calls` calls through one worker; c=64, 1 KB."""
    tollway = start_tollway("all", backend.extras["address"], workdir, core=cores.server, name="tollway_memory")
    assert tollway.process is not None
    try:
        worker = find_role(tollway.process.pid, "worker")
        points = [(0, rss_bytes(worker) / _MB)]
        failed, seconds, done, number = 0, 0.0, 0, 0
        while done < plan.memory_calls:
            is_grpc = number % _GRPC_EVERY == 1
            url = f"{tollway.grpc}{GRPC_PATH}" if is_grpc else f"{tollway.http}{HTTP_PATH.format(model=MODEL)}"
            result = run_count(
                url,
                bodies["grpc" if is_grpc else "http"],
                tollway.headers,
                calls=plan.memory_chunk,
                is_grpc=is_grpc,
                core=cores.load,
            )
            number += 1
            done += plan.memory_chunk
            failed += result.failed
            seconds += result.seconds
            points.append((done, rss_bytes(worker) / _MB))
        roles = {
            role: rss_bytes(find_role(tollway.process.pid, role)) / _MB
            for role in ("worker", "meter", "quota", "control", "supervisor")
        }
    finally:
        stop(tollway.process)
    return MemoryResult(
        calls=done,
        points=points,
        rss_mb=points[-1][1],
        growth_mb=growth_of_second_half(points),
        rss_mb_by_role=roles,
        calls_per_s=done / seconds,
        problems=(f"{failed} calls failed",) if failed else (),
    )
