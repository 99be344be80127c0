"""Owns what the models of one engine share: loop, clock, threads, and which Python code may run."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from gateway.clock import Clock
from gateway.engine.admission import Rules
from gateway.engine.python_calls import Callee
from gateway.engine.python_process import DEFAULT_LIMITS, PythonLimits
from gateway.engine.residency import Residency
from gateway.engine.threads import BatchThreads, Done, Task
from gateway.errors import Code, TollwayError


class Directory:
    """How Python models find the models that they call; the registry sets `find`."""

    def __init__(self) -> None:
        self.find: Callable[[str, str], Callee] = _find_nothing


def _find_nothing(name: str, _version: str) -> Callee:
    raise TollwayError(Code.MODEL_NOT_FOUND, f"model '{name[:200]}' is not found")


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """`threads` is how many `batches` has; `pool` loads and codes; `python_allowed` are resolved folders."""

    loop: asyncio.AbstractEventLoop
    pool: ThreadPoolExecutor
    batches: BatchThreads
    threads: int
    clock: Clock
    python_allowed: tuple[Path, ...] = ()
    python_limits: PythonLimits = DEFAULT_LIMITS
    intra_op_threads: int = 1
    #: Where a memory budget or an idle time is set; None: models stay until they are unloaded.
    residency: Residency | None = None
    directory: Directory = field(default_factory=Directory)
    #: What versions must be to be loaded.
    rules: Rules = field(default_factory=Rules)


class PoolPlace:
    """The shared threads; batches of up to `short_rows` run on the loop's thread instead."""

    def __init__(self, batches: BatchThreads, slots: int, short_rows: int) -> None:
        self._batches = batches
        self._slots = slots
        self._short_rows = short_rows

    def slots(self) -> int:
        return self._slots

    def is_short(self, rows: int) -> bool:
        return rows <= self._short_rows

    def launch(self, task: Task, done: Done) -> None:
        self._batches.run(task, done)
