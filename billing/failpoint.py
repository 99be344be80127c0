"""Owns named crash points: `hit("after_append")` kills this process with SIGKILL when that point is armed.

Used by the crash suites only; disarmed it is one attribute test at the call site:
`if failpoint.armed: failpoint.hit("after_sync")`. Armed by composition roots from TOLLWAY_FAILPOINT="name:nth".
Points: after_append, before_sync, after_sync, before_send, after_send_before_mark, after_first_chunk,
after_stream_part, before_stream_end (worker);
before_commit, after_commit_before_ack, before_segment_delete, after_invoice_number, after_lease_commit (meter);
lease_granted (quota owner).
"""

import os
import signal
from typing import Final

POINTS: Final = frozenset(
    {
        "after_append",
        "before_sync",
        "after_sync",
        "before_send",
        "after_send_before_mark",
        "after_first_chunk",
        "before_commit",
        "after_commit_before_ack",
        "before_segment_delete",
        "lease_granted",
        "after_lease_commit",
        "after_invoice_number",
        "after_stream_part",
        "before_stream_end",
    }
)

armed: bool = False
_name = ""
_hits_left = 0


def arm(spec: str) -> None:
    """Arm one point: `name` or `name:nth` (the nth hit kills). An empty spec disarms.

    Raises ValueError for an unknown name, so that a suite cannot silently test nothing.
    """
    global armed, _name, _hits_left
    name, _, nth = spec.partition(":")
    if name and name not in POINTS:
        raise ValueError(f"unknown failpoint {name!r}; known: {', '.join(sorted(POINTS))}")
    _name, _hits_left = name, int(nth or "1")
    armed = bool(name)


def hit(name: str) -> None:
    """Count one pass of `name`; the armed nth pass ends the process as `kill -9` would."""
    global _hits_left
    if name != _name:
        return
    _hits_left -= 1
    if _hits_left <= 0:
        os.kill(os.getpid(), signal.SIGKILL)
