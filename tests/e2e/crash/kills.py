"""Owns the killing: which process dies when, at a named failpoint or at any moment, all of it drawn from one seed."""

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from tests.e2e.harness import Tollway

SUPERVISOR: Final = "supervisor"
WORKER: Final = "worker-0"
SECOND_WORKER: Final = "worker-1"
FAILPOINTS: Final[dict[str, tuple[str, ...]]] = {
    WORKER: ("after_append", "before_sync", "after_sync", "before_send", "after_send_before_mark", "after_first_chunk"),
    "meter": ("before_commit", "after_commit_before_ack", "before_segment_delete"),
    "quota": ("lease_granted",),
}
#: Hits before an armed point kills: somewhere in the first second of load.
_NTH_MAX: Final = {WORKER: 30, "meter": 6, "quota": 6}
#: With the longest pause before a restart and a busy machine; reached at once where the load runs.
_POINT_S: Final = 120.0


@dataclass(slots=True)
class Tally:
    """What died: by (role, how). With the supervisor die all `workers`."""

    workers: int
    kills: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        return self.kills.total()

    @property
    def worker_deaths(self) -> int:
        weights = {SUPERVISOR: self.workers, WORKER: 1, SECOND_WORKER: 1}
        return sum(weights.get(role, 0) * count for (role, _), count in self.kills.items())

    def lines(self) -> list[str]:
        return [f"{role:<12} {how:<24} {count:>4}" for (role, how), count in sorted(self.kills.items())]


class Killer:
    """Kills parts of `tollway`. Every method returns when the replacement has been started or was seen to serve."""

    def __init__(self, tollway: Tollway, seed: int) -> None:
        self.tollway = tollway
        self.seed = seed
        self.random = random.Random(seed)
        self.tally = Tally(workers=int(tollway.settings.get("workers", "1")))

    def at_random(self, role: str) -> None:
        """`kill -9` at any moment of a serving process."""
        self._pause()
        if role == SUPERVISOR:
            self.tollway.kill_supervisor()
            self.tally.kills[role, "random"] += 1
            self.tollway.start()
            return
        self.tollway.wait(lambda: self.tollway.does_answer(role), f"{role} to serve")
        pid = self.tollway.kill(role)
        self.tally.kills[role, "random"] += 1
        self.tollway.wait(lambda: self.tollway.pids().get(role, pid) != pid, f"a new {role}")

    def at_failpoint(self, role: str, point: str, nth: int | None = None) -> None:
        """Replace `role` by an armed process and see it die at `point`."""
        nth = nth or self.random.randint(1, 1 if point == "after_first_chunk" else _NTH_MAX[role])
        self.tollway.order_failpoint(role, f"{point}:{nth}")
        self.at_random(role)
        armed = self.tollway.pid_of(role)
        self.tollway.wait(
            lambda: self.tollway.pids().get(role, armed) != armed, f"{role} to die at {point}:{nth}", _POINT_S
        )
        self.tally.kills[role, point] += 1

    def let_run(self, seconds: float) -> None:
        """Kill nothing for a while, so that the load gets somewhere."""
        time.sleep(seconds)

    def _pause(self) -> None:
        """Let the load run for a while: a seeded moment, not a wait for anything."""
        time.sleep(self.random.uniform(0.05, 0.4))


def plan(seed: int, kills: int) -> list[Callable[[Killer], None]]:
    """Steps worth at least `kills` deaths: every failpoint (two deaths each), every role at random, in seeded order.

    For a Tollway with two workers.
    """
    choice = random.Random(seed)
    steps: list[tuple[int, Callable[[Killer], None]]] = []
    total = 0
    while total < kills:
        one_round: list[tuple[int, Callable[[Killer], None]]] = [
            (2, lambda killer, role=role, point=point: killer.at_failpoint(role, point))  # type: ignore[misc]
            for role, points in FAILPOINTS.items()
            for point in points
        ]
        one_round += [
            (1, lambda killer, role=role: killer.at_random(role))  # type: ignore[misc]
            for role in ("engine", "control", SUPERVISOR, "engine", SECOND_WORKER, "quota", "meter")
        ]
        # Workers in between the others: one that dies all the time is started later and later.
        workers, others = one_round[:6], one_round[6:]
        choice.shuffle(workers)
        choice.shuffle(others)
        for index, worker_step in enumerate(workers):
            others.insert(3 * index, worker_step)
        for worth, step in others:
            if total < kills:
                steps.append((worth, step))
                total += worth
    return [step for _, step in steps]
