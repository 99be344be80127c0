"""Owns fdatasync without a thread: Linux asynchronous I/O (io_submit with IOCB_CMD_FDSYNC, an eventfd when it is done).

A thread that syncs must take the interpreter's lock a few times per group, and under load each time costs two switches
of threads and the loop's caches (docs/adr/0007). The kernel's own worker needs no lock of ours.

Protocol: include/uapi/linux/aio_abi.h; io_submit(2): FDSYNC since Linux 4.18, where the file system can sync at all.
"""

import asyncio
import contextlib
import ctypes
import os
import platform
import struct
from collections.abc import Callable
from typing import Any, Final

#: System calls by `platform.machine()`: io_setup, io_destroy, io_submit, io_getevents.
_CALLS: Final = {"x86_64": (206, 207, 209, 208), "aarch64": (0, 1, 2, 4)}
_FDSYNC: Final = 3
_FLAG_RESFD: Final = 1
#: data, key, rw_flags, opcode, reqprio, fildes, buf, nbytes, offset, reserved, flags, resfd
_IOCB: Final = struct.Struct("<QIiHhIQQqQII")
#: data, obj, res, res2
_EVENT: Final = struct.Struct("<QQqq")


class KernelSync:
    """One fdatasync at a time. `on_done(None or the error)` is called on the loop; not thread-safe."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_done: Callable[[OSError | None], object]) -> None:
        """Raises OSError where there is no such thing: another system, an old kernel, a sandbox that forbids it."""
        numbers = _CALLS.get(platform.machine())
        if numbers is None or platform.system() != "Linux":
            raise OSError("no kernel AIO on this machine")
        self._loop = loop
        self._on_done = on_done
        self._setup, self._destroy, self._submit, self._getevents = map(ctypes.c_long, numbers)
        # PyDLL keeps the interpreter's lock: none of these calls blocks, and giving the lock away costs more than they.
        self._syscall: Any = ctypes.PyDLL(None, use_errno=True).syscall
        self._syscall.restype = ctypes.c_long
        self._context = ctypes.c_ulong(0)
        self._one, self._none = ctypes.c_long(1), ctypes.c_long(0)
        self._block = ctypes.create_string_buffer(_IOCB.size)
        self._blocks = (ctypes.c_void_p * 1)(ctypes.addressof(self._block))
        self._event = ctypes.create_string_buffer(_EVENT.size)
        self._at_once = ctypes.create_string_buffer(16)
        self.is_busy = False
        self._check(self._syscall(self._setup, self._one, ctypes.byref(self._context)), "io_setup")
        self._eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        loop.add_reader(self._eventfd, self._on_event)

    def probe(self, handle: int) -> None:
        """Sync `handle` and wait. Raises OSError if the file system under it cannot do it this way."""
        self._send(handle)
        self._check(self._syscall(self._getevents, self._context, self._one, self._one, self._event, None), "getevents")
        with contextlib.suppress(BlockingIOError):  # the event may be there a moment before its signal
            os.eventfd_read(self._eventfd)
        error = self._result()
        if error is not None:
            raise error

    def start(self, handle: int) -> None:
        """Begin to sync `handle`; `on_done` follows. Raises OSError if it cannot be begun."""
        assert not self.is_busy
        self._send(handle)
        self.is_busy = True

    def close(self) -> None:
        """Free everything; waits for a sync that is under way. Idempotent."""
        if self._eventfd < 0:
            return
        if not self._loop.is_closed():
            self._loop.remove_reader(self._eventfd)
        self._syscall(self._destroy, self._context)
        os.close(self._eventfd)
        self._eventfd = -1

    def _send(self, handle: int) -> None:
        _IOCB.pack_into(self._block, 0, 0, 0, 0, _FDSYNC, 0, handle, 0, 0, 0, 0, _FLAG_RESFD, self._eventfd)
        self._check(self._syscall(self._submit, self._context, self._one, self._blocks), "io_submit")

    def _on_event(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._eventfd)
        count = self._syscall(self._getevents, self._context, self._none, self._one, self._event, self._at_once)
        if count == 1:
            self.is_busy = False
            self._on_done(self._result())

    def _result(self) -> OSError | None:
        result = _EVENT.unpack(self._event.raw)[2]
        return OSError(-result, os.strerror(-result)) if result < 0 else None

    @staticmethod
    def _check(result: int, what: str) -> None:
        if result < 0:
            error = ctypes.get_errno()
            raise OSError(error, f"{what}: {os.strerror(error)}")
