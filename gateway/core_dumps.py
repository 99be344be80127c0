"""Owns that our processes leave no core file with keys in it (MONEY.md I29). Linux.

Two locks: no file is written (RLIMIT_CORE 0, hard), and where the system hands cores to a program, which ignores that
limit (core(5)), none of our memory goes along (coredump_filter 0). Both are inherited by every child and over exec.
"""

import resource
from pathlib import Path

_FILTER = Path("/proc/self/coredump_filter")


def forbid_core_dumps() -> None:
    """For this process and all that it starts from now on. Idempotent; safe between fork and exec.

    Raises OSError where the filter exists and cannot be set: to start with keys in dumps would be worse.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    keep_memory_out_of_dumps()


def keep_memory_out_of_dumps() -> None:
    """The second lock alone."""
    if _FILTER.exists():
        _FILTER.write_text("0", encoding="ascii")
