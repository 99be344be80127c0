"""Owns the usage log's access to files: the `Disk` seam and the machine's own disk.

The seam exists so that a simulated disk (tests/sim) can drop unsynced bytes, tear writes, flip bits and fail. Writer
and reader touch files through it only. Handles are small integers, owned by whoever opened them.
"""

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Protocol

_ZEROS = bytes(256 * 1024)


class Disk(Protocol):
    """Files as the log needs them. Every method blocks; all raise OSError.

    Changes of names (`make_folder`, `preallocate`, `rename`, `replace_file`, removals) are durable when they return.
    """

    def open(self, path: Path, *, is_writable: bool) -> int:
        """A handle on an existing file; it survives the file's removal. Raises FileNotFoundError."""

    def close(self, handle: int) -> None: ...

    def pread(self, handle: int, length_bytes: int, offset: int) -> bytes:
        """Fewer bytes only at the file's end."""

    def pwrite(self, handle: int, data: bytes, offset: int) -> None:
        """Write all of `data`; durable only after the next `fdatasync`."""

    def fdatasync(self, handle: int) -> None:
        """Everything written so far is durable. After an error the state is unknown: never call it again (R5)."""

    def preallocate(self, path: Path, size_bytes: int) -> None:
        """A new file of zeros, blocks and name durable; removed again if it fails. Raises FileExistsError."""

    def list_folder(self, path: Path) -> list[str]:
        """Names in no order; empty if there is no such folder."""

    def make_folder(self, path: Path) -> None:
        """With its parents; fine if it exists."""

    def rename(self, old: Path, new: Path) -> None: ...

    def unlink(self, path: Path) -> None:
        """Fine if there is no such file."""

    def remove_folder(self, path: Path) -> None:
        """An empty folder; fine if there is none."""

    def replace_file(self, path: Path, data: bytes) -> None:
        """Write a small file as a whole: readers see the old or the new content, never a part."""

    def lock(self, path: Path) -> int:
        """Create `path` and hold its exclusive lock until `close` or the process's end.

        Raises BlockingIOError if another holder lives.
        """

    def is_locked(self, path: Path) -> bool:
        """Whether somebody holds `path`'s lock; False if there is no such file. Never disturbs the holder."""


class LocalDisk:
    """The machine's disk, any file system: preallocation writes zeros and syncs, so no block is allocated later."""

    def open(self, path: Path, *, is_writable: bool) -> int:
        return os.open(path, (os.O_RDWR if is_writable else os.O_RDONLY) | os.O_CLOEXEC)

    close = staticmethod(os.close)
    pread = staticmethod(os.pread)
    fdatasync = staticmethod(os.fdatasync)

    def pwrite(self, handle: int, data: bytes, offset: int) -> None:
        written = os.pwrite(handle, data, offset)
        # A short write is legal (signals, quotas at the edge); the rest either fits or says why not.
        while written < len(data):
            written += os.pwrite(handle, memoryview(data)[written:], offset + written)

    def preallocate(self, path: Path, size_bytes: int) -> None:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            for offset in range(0, size_bytes, len(_ZEROS)):
                self.pwrite(handle, _ZEROS[: size_bytes - offset], offset)
            os.fsync(handle)
            _sync_folder(path.parent)
        except OSError:
            path.unlink()
            raise
        finally:
            os.close(handle)

    def list_folder(self, path: Path) -> list[str]:
        try:
            return os.listdir(path)
        except FileNotFoundError:
            return []

    def make_folder(self, path: Path) -> None:
        if path.is_dir():
            return
        self.make_folder(path.parent)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        _sync_folder(path.parent)

    def rename(self, old: Path, new: Path) -> None:
        old.rename(new)
        _sync_folder(new.parent)

    def unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        _sync_folder(path.parent)

    def remove_folder(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            path.rmdir()
        _sync_folder(path.parent)

    def replace_file(self, path: Path, data: bytes) -> None:
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            self.pwrite(handle, data, 0)
            os.fsync(handle)
        finally:
            os.close(handle)
        self.rename(temporary, path)

    def lock(self, path: Path) -> int:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            raise
        return handle

    def is_locked(self, path: Path) -> bool:
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            # Shared, so that two readers who probe at once do not take each other for a living writer.
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
