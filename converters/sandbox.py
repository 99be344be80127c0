"""Owns the limits that a child puts on itself before it reads a model: memory, time, file size, network, write paths.

What the kernel or the rights of the user do not allow is reported by name, never passed over in silence.
"""

import ctypes
import os
import resource
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_CLONE_NEWNET: Final = 0x40000000
_CLONE_NEWUSER: Final = 0x10000000
_PR_SET_NO_NEW_PRIVS: Final = 38
#: Of Landlock (x86-64 and arm64 share these numbers).
_CREATE_RULESET: Final = 444
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446
_RULE_PATH_BENEATH: Final = 1
#: LANDLOCK_ACCESS_FS_*: WRITE_FILE, REMOVE_DIR, REMOVE_FILE and all MAKE_*, as in ABI 1.
_WRITE_ACCESS: Final = (1 << 1) | sum(1 << bit for bit in range(4, 13))


def restrict(*, write_folders: Sequence[Path], memory_bytes_max: int, cpu_s_max: int, file_bytes_max: int) -> list[str]:
    """Limit this process for good. Returns what could not be enforced, in words for a reader."""
    gaps = []
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes_max, file_bytes_max))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s_max, cpu_s_max))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes_max, memory_bytes_max))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0 and libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        gaps.append(f"network: not cut off (unshare: {os.strerror(ctypes.get_errno())})")
    reason = _limit_writes(libc, write_folders)
    if reason:
        gaps.append(f"write paths: not limited ({reason})")
    return gaps


def _limit_writes(libc: ctypes.CDLL, folders: Sequence[Path]) -> str:
    """By Landlock: from now on files are made, changed and removed below `folders` only. A reason if it cannot be."""
    attributes = ctypes.create_string_buffer(struct.pack("=Q", _WRITE_ACCESS), 8)
    ruleset = libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(8), 0)
    if ruleset < 0:
        return f"Landlock: {os.strerror(ctypes.get_errno())}"
    try:
        for folder in (*folders, Path("/dev/null")):
            access = _WRITE_ACCESS if folder.is_dir() else 1 << 1
            descriptor = os.open(folder, os.O_PATH | os.O_CLOEXEC)
            rule = ctypes.create_string_buffer(struct.pack("=Qi", access, descriptor), 12)
            done = libc.syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0)
            os.close(descriptor)
            if done != 0:
                return f"Landlock: {os.strerror(ctypes.get_errno())}"
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if libc.syscall(_RESTRICT_SELF, ruleset, 0) != 0:
            return f"Landlock: {os.strerror(ctypes.get_errno())}"
    finally:
        os.close(ruleset)
    return ""
