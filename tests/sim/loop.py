"""A loop that runs one callback when told to, in virtual time: the scheduler of a simulation owns the order."""

from collections import deque
from collections.abc import Callable
from typing import Any

from gateway.clock import FakeClock


class SimLoop:
    """The few verbs of an event loop that the usage log needs."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self._ready: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._timers: list[tuple[int, int, Callable[..., object], tuple[Any, ...]]] = []
        self._count = 0
        self.problems: list[dict[str, Any]] = []

    def call_soon(self, callback: Callable[..., object], *args: object) -> None:
        self._ready.append((callback, args))

    call_soon_threadsafe = call_soon

    def call_later(self, delay_s: float, callback: Callable[..., object], *args: object) -> None:
        self._count += 1
        due_ns = self._clock.monotonic_ns() + int(delay_s * 1e9)
        self._timers.append((due_ns, self._count, callback, args))
        self._timers.sort(key=lambda timer: timer[:2])

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.problems.append(context)

    def run_one(self) -> bool:
        """Run the oldest due callback; False if there is none."""
        while self._timers and self._timers[0][0] <= self._clock.monotonic_ns():
            _, _, callback, args = self._timers.pop(0)
            self._ready.append((callback, args))
        if not self._ready:
            return False
        callback, args = self._ready.popleft()
        callback(*args)
        return True

    def run_all(self) -> None:
        """Run until nothing is due."""
        while self.run_one():
            pass
