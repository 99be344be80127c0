"""What must hold however a worker is treated: it lives, it stays small, and it bills what was answered well."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.e2e.stage import Stage

MIB = 1024 * 1024


def memory_bytes(pid: int, field: str = "VmRSS") -> int:
    """A figure of /proc/<pid>/status: VmRSS now, VmHWM at its highest."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {field} of {pid}")


def billed_calls(stage: Stage) -> int:
    """Calls in the ledger, once everything is posted."""
    stage.tollway.wait_until_posted()
    rows: list[dict[str, Any]] = stage.tollway.admin("GET", "/admin/usage?by=day")["rows"]
    return sum(int(row["calls"]) for row in rows)


@contextmanager
def unharmed(stage: Stage, *, growth_mib: int = 24, billed: int = 0) -> Iterator[None]:
    """Whatever the block does: the same worker serves afterwards, is no larger, holds nothing, billed `billed`."""
    assert stage.tollway.infer(stage.key).status_code == 200
    pids = stage.tollway.pids()
    worker = pids["worker-0"]
    before_bytes, before_calls = memory_bytes(worker), billed_calls(stage)
    yield
    reply = stage.tollway.infer(stage.key)
    assert reply.status_code == 200, reply.text
    assert stage.tollway.pids() == pids, f"a process died:\n{stage.tollway.says()}"
    stage.tollway.wait(lambda: stage.gauge("tollway_calls_in_flight") == 0, "calls to end")
    stage.tollway.wait(lambda: stage.gauge("tollway_buffered_bytes") == 0, "buffers to be freed")
    now_calls = billed_calls(stage)
    assert now_calls - before_calls - 1 == billed
    assert stage.tollway.admin("GET", "/admin/reconcile")["is_ok"]
    assert memory_bytes(worker) <= before_bytes + growth_mib * MIB
