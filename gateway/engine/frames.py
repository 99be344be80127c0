"""Owns the frames between the engine and a Python model's process: a JSON head and tensors over a socket pair.

Used on both sides, so it imports nothing but the standard library, and trusts neither side: every length is bounded
before memory is taken. A frame: head length (u32), blob length (u64), place (u8), head, blob. A blob of 64 KiB or more
lies in shared memory: a sealed memfd whose descriptor travels with the frame's first byte; the seals keep its sender
from shrinking it under the reader (SIGBUS) or changing it. Tensors begin at multiples of 64 bytes of the blob.
"""

import array
import fcntl
import json
import mmap
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any, Final

_PREFIX: Final = struct.Struct("<IQB")
HEAD_BYTES_MAX: Final = 16 << 20
BLOB_BYTES_MAX: Final = 1 << 30
#: Below it two copies through the socket cost less than a mapping.
SHARED_BYTES_MIN: Final = 64 << 10
_IOVEC_MAX: Final = 512
_ALIGNMENT: Final = 64
_INLINE: Final = 0
_SHARED: Final = 1
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_INT_BYTES: Final = array.array("i").itemsize


class FrameError(Exception):
    """The other side is gone, or does not speak frames."""


class Blob:
    """Tensors one behind another, each on a boundary; `parts` are views: what they show must stay unchanged."""

    __slots__ = ("parts", "size")

    def __init__(self) -> None:
        self.parts: list[bytes | memoryview] = []
        self.size = 0

    def add(self, data: bytes | memoryview) -> int:
        """Append a tensor's bytes; returns where they begin."""
        gap = -self.size % _ALIGNMENT
        if gap:
            self.parts.append(bytes(gap))
        begin = self.size + gap
        self.parts.append(data)
        self.size = begin + len(data)
        return begin


class Frame:
    """One frame on its way out. Written once, by `write`, perhaps in several steps; `close` if it is given up."""

    __slots__ = ("_fd", "_pending")

    def __init__(self, head: dict[str, Any], blob: Blob | None = None) -> None:
        """Copies a large blob into shared memory.

        Raises:
            FrameError: the frame is larger than the other side would take.
            OSError: no shared memory can be had.
        """
        text = json.dumps(head, separators=(",", ":")).encode()
        size = blob.size if blob is not None else 0
        if len(text) > HEAD_BYTES_MAX or size > BLOB_BYTES_MAX:
            raise FrameError(f"frame of {len(text)} + {size} bytes is too large")
        self._fd = -1
        parts: Sequence[bytes | memoryview] = blob.parts if blob is not None else ()
        place = _INLINE
        if size >= SHARED_BYTES_MIN:
            place = _SHARED
            self._fd = _share(parts)
            parts = ()
        self._pending = [memoryview(_PREFIX.pack(len(text), size, place) + text)]
        self._pending += [memoryview(part) for part in parts if len(part)]

    def write(self, sock: socket.socket, *, is_waiting: bool = True) -> bool:
        """Send what is left; False if it did not all fit into the socket's buffer and `is_waiting` is False.

        Raises:
            OSError: the other side is gone.
        """
        pending = self._pending
        flags = 0 if is_waiting else socket.MSG_DONTWAIT
        while pending:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [self._fd]))] if self._fd >= 0 else []
            try:
                sent = sock.sendmsg(pending[:_IOVEC_MAX], rights, flags)
            except BlockingIOError:
                return False
            self.close()  # The descriptor left with the first byte.
            while pending and sent >= len(pending[0]):
                sent -= len(pending[0])
                del pending[0]
            if sent:
                pending[0] = pending[0][sent:]
        return True

    def close(self) -> None:
        """Give the shared memory back. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def send_frame(sock: socket.socket, head: dict[str, Any], blob: Blob | None = None) -> None:
    """Send one frame, blocking.

    Raises:
        OSError: the other side is gone.
        FrameError: the frame is larger than the other side would take.
    """
    frame = Frame(head, blob)
    try:
        frame.write(sock)
    finally:
        frame.close()


def _share(parts: Sequence[bytes | memoryview]) -> int:
    """A sealed memfd that holds `parts`."""
    fd = os.memfd_create("tensors", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        pending = [memoryview(part) for part in parts if len(part)]
        while pending:
            wrote = os.writev(fd, pending[:_IOVEC_MAX])
            while pending and wrote >= len(pending[0]):
                wrote -= len(pending[0])
                del pending[0]
            if wrote:
                pending[0] = pending[0][wrote:]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def receive_frame(sock: socket.socket) -> tuple[dict[str, Any], memoryview]:
    """Receive one frame; the blob may be written to, which nobody else sees.

    Raises:
        OSError: nothing came within the socket's time limit (TimeoutError), or the connection broke.
        FrameError: the other side has closed, or sent no frame.
    """
    prefix, fd = _receive_prefix(sock)
    try:
        head_size, blob_size, place = _PREFIX.unpack(prefix)
        if head_size > HEAD_BYTES_MAX or blob_size > BLOB_BYTES_MAX:
            raise FrameError(f"frame of {head_size} + {blob_size} bytes is too large")
        if (place == _SHARED) != (fd >= 0) or place > _SHARED:
            raise FrameError("frame whose blob is in no known place")
        text = _receive(sock, head_size)
        blob = _map(fd, blob_size) if place == _SHARED else _receive(sock, blob_size)
    finally:
        if fd >= 0:
            os.close(fd)
    try:
        head = json.loads(bytes(text))
    except ValueError as error:
        raise FrameError("frame without a JSON head") from error
    except RecursionError as error:
        raise FrameError("frame nested too deeply") from error
    if not isinstance(head, dict):
        raise FrameError("frame without a JSON object")
    return head, blob


def _receive_prefix(sock: socket.socket) -> tuple[bytes, int]:
    """The prefix, and the descriptor that came with it or -1."""
    data, rights, _, _ = sock.recvmsg(_PREFIX.size, socket.CMSG_SPACE(_INT_BYTES), socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, payload in rights:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % _INT_BYTES])
    for extra in fds[1:]:
        os.close(extra)
    fd = fds[0] if fds else -1
    try:
        if not data:
            raise FrameError("the other side has closed")
        if len(data) < _PREFIX.size:
            data += bytes(_receive(sock, _PREFIX.size - len(data)))
    except BaseException:
        if fd >= 0:
            os.close(fd)
        raise
    return data, fd


def _map(fd: int, size: int) -> memoryview:
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        raise FrameError("a blob's descriptor is no shared memory") from error
    if seals & _SEALS != _SEALS or os.fstat(fd).st_size < size or size == 0:
        raise FrameError("shared memory that could change or is too short")
    # Private: whoever writes gets a copy of the page.
    return memoryview(mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE))


def _receive(sock: socket.socket, size: int) -> memoryview:
    view = memoryview(bytearray(size))
    have = 0
    while have < size:
        count = sock.recv_into(view[have:])
        if count == 0:
            raise FrameError("the other side has closed")
        have += count
    return view
