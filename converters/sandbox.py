"""Owns the limits that a child puts on itself before it reads a model: memory, time, file size, network, write paths.

What the kernel or the rights of the user do not allow is reported by name, never passed over in silence.
"""

import ctypes
import os
import resource
import signal
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_CLONE_NEWNET: Final = 0x40000000
_CLONE_NEWUSER: Final = 0x10000000
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38
#: Of Landlock (x86-64 and arm64 share these numbers).
_CREATE_RULESET: Final = 444
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446
_RULE_PATH_BENEATH: Final = 1
#: LANDLOCK_ACCESS_FS_*: WRITE_FILE, REMOVE_DIR, REMOVE_FILE and all MAKE_*, as in ABI 1.
_WRITE_ACCESS: Final = (1 << 1) | sum(1 << bit for bit in range(4, 13))
#: EXECUTE, READ_FILE, READ_DIR; of a single file the first two.
_READ_ACCESS: Final = (1 << 0) | (1 << 2) | (1 << 3)
_READ_FILE_ACCESS: Final = (1 << 0) | (1 << 2)


def die_with(parent_pid: int) -> None:
    """From now on the kernel ends this process with the one that started it; at once if that is gone already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGKILL)


def restrict(
    *,
    write_folders: Sequence[Path],
    memory_bytes_max: int,
    cpu_s_max: int,
    file_bytes_max: int,
    read_paths: Sequence[Path] = (),
) -> list[str]:
    """Limit this process for good. Returns what could not be enforced, in words for a reader.

    `read_paths`: all that may be read; nothing is said of reading if there are none.
    """
    gaps = []
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes_max, file_bytes_max))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s_max, cpu_s_max))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes_max, memory_bytes_max))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0 and libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        gaps.append(f"network: not cut off (unshare: {os.strerror(ctypes.get_errno())})")
    reason = _limit_paths(libc, write_folders, read_paths)
    if reason:
        gaps.append(f"{'paths' if read_paths else 'write paths'}: not limited ({reason})")
    return gaps


def _limit_paths(libc: ctypes.CDLL, folders: Sequence[Path], read_paths: Sequence[Path]) -> str:
    """By Landlock: from now on files are made, changed and removed below `folders` only, and read there and below
    `read_paths` only, if there are any. A reason if it cannot be."""
    reads = _READ_ACCESS if read_paths else 0
    attributes = ctypes.create_string_buffer(struct.pack("=Q", _WRITE_ACCESS | reads), 8)
    ruleset = libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(8), 0)
    if ruleset < 0:
        return f"Landlock: {os.strerror(ctypes.get_errno())}"
    rules = [(path, _WRITE_ACCESS | reads) for path in folders]
    rules += [(Path("/dev/null"), 1 << 1), *((path, reads) for path in read_paths if path.exists())]
    try:
        for path, access in rules:
            if not _allow(libc, ruleset, path, access):
                return f"Landlock: {os.strerror(ctypes.get_errno())}"
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if libc.syscall(_RESTRICT_SELF, ruleset, 0) != 0:
            return f"Landlock: {os.strerror(ctypes.get_errno())}"
    finally:
        os.close(ruleset)
    return ""


def _allow(libc: ctypes.CDLL, ruleset: int, path: Path, access: int) -> bool:
    allowed = access if path.is_dir() else access & (_READ_FILE_ACCESS | 1 << 1)
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = ctypes.create_string_buffer(struct.pack("=Qi", allowed, descriptor), 12)
        return bool(libc.syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0) == 0)
    finally:
        os.close(descriptor)
