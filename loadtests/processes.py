"""Owns child processes: started on chosen cores, their CPU time and memory read from /proc, ended by pid.

CPU time of a server is that of its whole tree. `cpu_ns` is conserved: when a child ends and is reaped, its time moves
into its parent's `children` figure, so the difference of two readings never loses work.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

_TICK_NS: Final = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_STOP_S: Final = 15.0


class BenchError(Exception):
    """Something the bench needs did not work; the message says what and where to look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cores:
    """Which cores run what. With two cores the engine has the load generator's, and that moves to the server's."""

    server: int
    load: int
    engine: int
    engine_load: int

    @classmethod
    def of_machine(cls) -> "Cores":
        """Raises BenchError on a machine with one core: nothing could be told apart there."""
        usable = sorted(os.sched_getaffinity(0))
        if len(usable) < 2:
            raise BenchError("the bench needs two cores: one for the server, one for the load")
        if len(usable) == 2:
            return cls(server=usable[0], load=usable[1], engine=usable[1], engine_load=usable[0])
        return cls(server=usable[0], load=usable[1], engine=usable[2], engine_load=usable[1])


def spawn(
    command: Sequence[str],
    *,
    core: int,
    log: Path,
    stdout: int | IO[bytes] | None = None,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start `command` on `core`, its output in `log`. taskset becomes the command, so the pid is the server's own."""
    with log.open("ab") as output:
        return subprocess.Popen(
            ["taskset", "-c", str(core), *command],
            stdin=subprocess.DEVNULL,
            stdout=output if stdout is None else stdout,
            stderr=output,
            cwd=cwd,
            env=env,
            # Ctrl-C reaches the bench alone, which then stops its servers in order.
            start_new_session=True,
        )


def stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, wait, and SIGKILL to whatever of its tree is left."""
    pids = [pid for pid, _ in tree(process.pid)]
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pid in pids[1:]:
        if _parent_of(pid) is not None and pid != process.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _read(path: str) -> bytes | None:
    """None when the process or thread is gone."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None


def _stat_fields(pid: int) -> list[bytes] | None:
    """The fields of /proc/PID/stat from `state` (field 3) on; the name before may hold spaces and brackets."""
    data = _read(f"/proc/{pid}/stat")
    return None if data is None else data[data.rindex(b")") + 2 :].split()


def _parent_of(pid: int) -> int | None:
    fields = _stat_fields(pid)
    return None if fields is None else int(fields[1])


def tree(root: int) -> list[tuple[int, str]]:
    """(pid, role) of `root` and all its living descendants, root first."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            parent = _parent_of(int(name))
            if parent is not None:
                children.setdefault(parent, []).append(int(name))
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        role = role_of(_read(f"/proc/{pid}/cmdline") or b"")
        found.append((pid, role))
        waiting += children.get(pid, [])
    return found


def role_of(cmdline: bytes) -> str:
    """A short name of a process: `-m gateway.worker` is "worker", `nginx: worker process` is "nginx"."""
    words = cmdline.split(b"\0")
    if b"-m" in words[:-1]:
        module = words[words.index(b"-m") + 1].decode()
        # The command line that starts everything stays as the supervisor.
        return "supervisor" if module == "gateway.cli" else module.rpartition(".")[2]
    return os.path.basename(words[0].decode(errors="replace").split(":")[0]) or "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuReading:
    """CPU time of one process: its own threads, and children it has reaped."""

    role: str
    own_ns: int
    children_ns: int


def read_cpu(root: int) -> dict[int, CpuReading]:
    """CPU time so far of every living process of a tree."""
    readings = {}
    for pid, role in tree(root):
        fields = _stat_fields(pid)
        if fields is None:
            continue
        utime, stime, cutime, cstime = (int(field) for field in fields[11:15])
        # schedstat counts in nanoseconds but forgets ended threads; stat remembers them but counts in ticks.
        own_ns = max(_threads_ns(pid), (utime + stime) * _TICK_NS)
        readings[pid] = CpuReading(role=role, own_ns=own_ns, children_ns=(cutime + cstime) * _TICK_NS)
    return readings


def _threads_ns(pid: int) -> int:
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    texts = (_read(f"/proc/{pid}/task/{thread}/schedstat") for thread in threads)
    return sum(int(text.split()[0]) for text in texts if text)


def cpu_ns_by_role(before: dict[int, CpuReading], after: dict[int, CpuReading]) -> dict[str, int]:
    """CPU time spent between two readings, by role; the values' sum is the tree's."""
    spent: dict[str, int] = {}
    for sign, readings in ((1, after), (-1, before)):
        for reading in readings.values():
            spent[reading.role] = spent.get(reading.role, 0) + sign * (reading.own_ns + reading.children_ns)
    return spent


def rss_bytes(pid: int) -> int:
    """Resident memory of one process. Raises BenchError when it is gone."""
    for line in (_read(f"/proc/{pid}/status") or b"").splitlines():
        if line.startswith(b"VmRSS:"):
            return int(line.split()[1]) * 1024
    raise BenchError(f"process {pid} has ended")


def find_role(root: int, role: str) -> int:
    """The pid of the one process with `role` in a tree. Raises BenchError."""
    pids = [pid for pid, name in tree(root) if name == role]
    if len(pids) != 1:
        raise BenchError(f"expected one {role!r} process, found {len(pids)}")
    return pids[0]


def pin_all_threads(pid: int, core: int) -> None:
    """Move every thread of a running process to `core`; threads started later inherit it from their parent."""
    for thread in os.listdir(f"/proc/{pid}/task"):
        os.sched_setaffinity(int(thread), {core})


def stray_threads(pid: int, core: int) -> int:
    """How many threads of a process may run elsewhere than on `core`."""
    return sum(os.sched_getaffinity(int(thread)) != {core} for thread in os.listdir(f"/proc/{pid}/task"))


def wait_until(
    what: str, is_done: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, limit_s: float = 20.0
) -> None:
    """Poll until `is_done()`. Raises BenchError with the log's end when the process dies or time is up."""
    end = time.monotonic() + limit_s
    while not is_done():
        if process.poll() is not None or time.monotonic() > end:
            state = "is still not" if process.poll() is None else f"ended with {process.returncode} before it was"
            tail = log.read_text(errors="replace")[-2000:] if log.exists() else ""
            raise BenchError(f"{what} {state} ready; the end of {log.name}:\n{tail}")
        time.sleep(0.02)
