"""Owns counting what a test leaves open in its process.

The process is shared with all other tests: what they left to the collector closes meanwhile, and a library's own thread
may open a descriptor or two. So a test repeats what it does, and looks for one left behind by each round.
"""

import os
import threading
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What this process holds at one instant."""

    descriptors: int
    threads: int


def held() -> Held:
    """Now."""
    return Held(descriptors=len(os.listdir("/proc/self/fd")), threads=threading.active_count())


def assert_none_left(before: Held, rounds: int) -> None:
    """Fails if every second of `rounds`, or more, left a descriptor or a thread behind. `rounds` is 10 or more."""
    assert rounds >= 10, "fewer would not stand out"
    now = held()
    assert now.descriptors - before.descriptors < rounds // 2, (before, now)
    assert now.threads - before.threads < rounds // 2, (before, now)
