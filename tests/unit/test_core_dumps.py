"""I29: a process that dies by a fault leaves no core file, and what a dump handler would get holds no memory."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

CANARY: Final = "canary-of-a-secret"
#: Dies by SIGABRT with the canary in its memory; the word is made there, so that it is on no command line.
ABORT: Final = "import os; held = '-'.join(('canary', 'of', 'a', 'secret')) * 1000; os.abort()"
FORBID: Final = "from gateway.core_dumps import forbid_core_dumps; forbid_core_dumps(); "
#: The second lock alone, as where cores go to a program that the limit does not stop.
FILTER: Final = "from gateway.core_dumps import keep_memory_out_of_dumps; keep_memory_out_of_dumps(); "
ALLOW: Final = "import resource as r; r.setrlimit(r.RLIMIT_CORE, r.getrlimit(r.RLIMIT_CORE)[1:] * 2); "
ROOT: Final = Path(__file__).parents[2]


def _writes_cores_here() -> bool:
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    return not pattern.startswith(("|", "/")) and resource.getrlimit(resource.RLIMIT_CORE)[1] == resource.RLIM_INFINITY


cores_are_files = pytest.mark.skipif(not _writes_cores_here(), reason="this system keeps core files elsewhere")


def die(code: str, folder: Path) -> bool:
    """Run `code` with cores allowed; whether the kernel dumped core. Where it did, the file is in `folder`."""
    command = [sys.executable, "-c", ALLOW + code]
    process = subprocess.Popen(command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)})
    _, status = os.waitpid(process.pid, 0)
    process.returncode = -os.WTERMSIG(status)
    assert process.returncode == -signal.SIGABRT
    return os.WCOREDUMP(status)


def core_bytes(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir() if path.name.startswith("core"))


@cores_are_files
def test_a_process_without_it_dumps_its_secrets(tmp_path: Path) -> None:
    assert die(ABORT, tmp_path)
    assert CANARY.encode() in core_bytes(tmp_path)


def test_a_process_with_it_dumps_nothing(tmp_path: Path) -> None:
    assert not die(FORBID + ABORT, tmp_path)
    assert list(tmp_path.iterdir()) == []


@cores_are_files
def test_a_dump_that_ignores_the_limit_holds_no_memory(tmp_path: Path) -> None:
    assert die(FILTER + ABORT, tmp_path)
    dumped = core_bytes(tmp_path)
    assert len(dumped) > 100
    assert CANARY.encode() not in dumped


def test_children_of_the_process_are_bound_as_well(tmp_path: Path) -> None:
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {ABORT!r}]); import os; os.abort()"
    assert not die(FORBID + child, tmp_path)
    assert list(tmp_path.iterdir()) == []
