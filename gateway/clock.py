"""Owns time: the one place that reads clocks. Everything else is given a `Clock`."""

import time
from typing import Protocol


class Clock(Protocol):
    """Source of instants. Durations use `monotonic_ns`; facts (records, windows, expiry) use `wall_ns` (UTC)."""

    def monotonic_ns(self) -> int: ...

    def wall_ns(self) -> int: ...


class SystemClock:
    """The machine's clocks."""

    # Bound as attributes: one C call on the hot path, no Python frame.
    monotonic_ns = staticmethod(time.monotonic_ns)
    wall_ns = staticmethod(time.time_ns)


class FakeClock:
    """A clock that moves only when told; the in-memory twin used by tests and simulations.

    `monotonic_ns` and `wall_ns` advance together; `step_wall` moves only the wall clock, as NTP would.
    """

    def __init__(self, wall_ns: int = 1_767_225_600_000_000_000, monotonic_ns: int = 1_000_000_000) -> None:
        self._wall_ns = wall_ns
        self._monotonic_ns = monotonic_ns

    def monotonic_ns(self) -> int:
        return self._monotonic_ns

    def wall_ns(self) -> int:
        return self._wall_ns

    def advance(self, duration_ns: int) -> None:
        """Let `duration_ns` pass on both clocks."""
        self._monotonic_ns += duration_ns
        self._wall_ns += duration_ns

    def step_wall(self, delta_ns: int) -> None:
        """Step the wall clock by `delta_ns` (may be negative) without time passing."""
        self._wall_ns += delta_ns
