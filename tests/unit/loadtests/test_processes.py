"""CPU and memory of process trees from /proc, and starting and stopping them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from loadtests.processes import (
    BenchError,
    CpuReading,
    cpu_ns_by_role,
    find_role,
    pin_all_threads,
    read_cpu,
    role_of,
    rss_bytes,
    spawn,
    stop,
    tree,
    wait_until,
)

#: Burns 50 ms of CPU in a child, reaps it, then says so and waits.
_PARENT = """
import subprocess, sys
burn = "import time\\nwhile time.process_time() < 0.05: pass"
subprocess.run([sys.executable, "-S", "-c", burn])
print("done", flush=True)
sys.stdin.read()
"""
_SLEEPER = "import signal; print('up', flush=True); signal.pause()"


def test_time_of_a_reaped_child_is_not_lost() -> None:
    process = subprocess.Popen([sys.executable, "-S", "-c", _PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"done\n"
        spent = sum(cpu_ns_by_role({}, read_cpu(process.pid)).values())
    finally:
        process.communicate()
    # The kernel hands a child's time on in ticks of 10 ms.
    assert spent >= 40_000_000


def test_difference_is_by_role_and_survives_the_end_of_a_child() -> None:
    before = {
        1: CpuReading(role="supervisor", own_ns=10, children_ns=0),
        2: CpuReading(role="worker", own_ns=5, children_ns=0),
    }
    after = {1: CpuReading(role="supervisor", own_ns=12, children_ns=9)}
    spent = cpu_ns_by_role(before, after)
    assert spent == {"supervisor": 11, "worker": -5}
    assert sum(spent.values()) == 6


@pytest.mark.parametrize(
    ("cmdline", "role"),
    [
        (b"python\0-m\0gateway.worker\0--index\x000\0", "worker"),
        (b"python\0-m\0gateway.cli\0up\0", "supervisor"),
        (b"python\0-m\0billing.meter\0", "meter"),
        (b"nginx: worker process\0", "nginx"),
        (b"/usr/sbin/haproxy\0-db\0", "haproxy"),
        (b"", "ended"),
    ],
)
def test_roles_are_read_from_the_command(cmdline: bytes, role: str) -> None:
    assert role_of(cmdline) == role


def test_a_spawned_tree_is_pinned_seen_and_ended(tmp_path: Path) -> None:
    core = min(os.sched_getaffinity(0))
    log = tmp_path / "log"
    process = spawn([sys.executable, "-S", "-c", _SLEEPER], core=core, log=log)
    try:
        wait_until("the sleeper", lambda: log.read_bytes() == b"up\n", process, log)
        assert os.sched_getaffinity(process.pid) == {core}
        assert [pid for pid, _ in tree(process.pid)] == [process.pid]
        assert rss_bytes(process.pid) > 1_000_000
        role = tree(process.pid)[0][1]
        assert find_role(process.pid, role) == process.pid
        other = max(os.sched_getaffinity(0))
        pin_all_threads(process.pid, other)
        assert os.sched_getaffinity(process.pid) == {other}
    finally:
        stop(process)
    assert process.returncode == -15
    assert read_cpu(process.pid) == {}
    with pytest.raises(BenchError, match="has ended"):
        rss_bytes(process.pid)


def test_a_server_that_dies_says_its_last_words(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-S", "-c", "import sys; sys.exit('port in use')"]
    process = spawn(command, core=min(os.sched_getaffinity(0)), log=log)
    try:
        with pytest.raises(BenchError, match=r"ended with 1(.|\n)*port in use"):
            wait_until("it", lambda: False, process, log)
    finally:
        stop(process)
