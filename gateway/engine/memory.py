"""Owns what the engine knows of its own memory: how much is resident, and giving free memory back to the system."""

import ctypes
import os
from typing import Final

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


def resident_bytes() -> int:
    """Resident memory of this process, shared pages of libraries included."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * _PAGE


def return_free_memory() -> None:
    """Give what was freed back to the system. Blocks for milliseconds.

    The C library keeps freed memory for the next allocation, and after a model is unloaded that may be a lot. Garbage
    is not collected for it: sessions go by their reference counts, and a collection would stop the loop.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))
