"""`kill -9` of a real writer at every failpoint and at any time: what it was told is found again, nothing is torn."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from billing.events import Sent, Served
from billing.usagelog.reader import UsageReader
from tests.sim.stepped import ends_of, read_all, records_of

CALLS = 400
CALLERS = 8


def run_writer(root: Path, *, failpoint: str = "", kill_after: int = 0) -> tuple[int, list[int]]:
    """The writer's exit status and the numbers it was told to be durable; killed after `kill_after` of them."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.sim.writer_process", str(root), str(CALLS), str(CALLERS)],
        stdout=subprocess.PIPE,
        env={**os.environ, "TOLLWAY_FAILPOINT": failpoint},
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    with process.stdout:
        told = []
        for line in process.stdout:
            told.append(int(line))
            if len(told) == kill_after:
                process.kill()
    return process.wait(), told


def check(root: Path, told: list[int], *, is_clean: bool | None) -> None:
    """`is_clean=None`: the kill may have come after the log was closed."""
    results = read_all(UsageReader(root), 7)
    records = dict(records_of(results))
    (end,) = ends_of(results)
    assert is_clean is None or end.is_clean is is_clean
    assert end.last_seq == len(records)
    assert list(records) == list(range(1, len(records) + 1)), "no gap (I15)"
    assert told == sorted(told)
    assert all(isinstance(records[seq], Served) for seq in told), "acknowledged and lost"
    served = [record for record in records.values() if isinstance(record, Served)]
    assert [record.t_ns for record in served] == list(range(CALLS - 1, CALLS - 1 - len(served), -1))
    marked = {
        seq
        for record in records.values()
        if isinstance(record, Sent)
        for seq in range(record.first_seq, record.last_seq + 1)
        if isinstance(records[seq], Served)
    }
    assert marked <= set(told), "marked as sent, but nobody was told (R8)"
    assert len(set(told) - marked) <= 2 * CALLERS, "voids are bounded by the calls in flight at the kill"


def test_a_writer_that_is_not_killed_ends_cleanly(tmp_path: Path) -> None:
    status, told = run_writer(tmp_path)
    assert status == 0
    assert len(told) == CALLS
    check(tmp_path, told, is_clean=True)


@pytest.mark.parametrize("nth", [1, 2, 17, 40])
@pytest.mark.parametrize("name", ["after_append", "before_sync", "after_sync", "after_send_before_mark"])
def test_kill_at_a_failpoint_loses_nothing_acknowledged(tmp_path: Path, name: str, nth: int) -> None:
    status, told = run_writer(tmp_path, failpoint=f"{name}:{nth}")
    assert status == -signal.SIGKILL, "the failpoint was never reached"
    check(tmp_path, told, is_clean=False)


@pytest.mark.parametrize("kill_after", [1, 9, 100, 333])
def test_kill_at_any_time_loses_nothing_acknowledged(tmp_path: Path, kill_after: int) -> None:
    status, told = run_writer(tmp_path, kill_after=kill_after)
    assert status in (-signal.SIGKILL, 0)
    check(tmp_path, told, is_clean=True if status == 0 else None)


def test_epochs_after_kills_are_all_read(tmp_path: Path) -> None:
    statuses = [run_writer(tmp_path, failpoint=f"after_sync:{nth}")[0] for nth in (1, 2)]
    assert statuses == [-signal.SIGKILL] * 2
    reader = UsageReader(tmp_path)
    ends = ends_of(read_all(reader))
    assert len(ends) == 2
    for end in ends:
        reader.ack(end.instance, end.epoch, end.last_seq)
    assert os.listdir(tmp_path / "w0") == ["last-epoch"]
