"""A simulated disk for the usage log: what is not synced may be lost, in any combination of sectors, torn or whole.

Names are durable when a call returns, as the `Disk` seam promises. A run is decided by one `random.Random`.
"""

import errno
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from random import Random

SECTOR_BYTES = 64


class Crash(BaseException):
    """The process or the machine ended inside a disk call. No handler of the code under test may stop it."""


class Sync(Enum):
    """What `fdatasync` really does."""

    HONEST = "honest"
    #: Planted bug: the log forgets to sync.
    NEVER = "never"
    #: Planted bug: the log acknowledges before its sync is done; what it asked for happens at the next one.
    LATE = "late"


@dataclass
class SimFile:
    #: What every process sees.
    content: bytearray
    #: What a power cut leaves.
    durable: bytearray
    dirty: set[int] = field(default_factory=set)
    late: set[int] = field(default_factory=set)

    def sync(self, sectors: set[int]) -> None:
        for sector in sectors:
            part = slice(sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES)
            self.durable[part] = self.content[part]


class SimDisk:
    """An in-memory twin of LocalDisk that can crash, tear, flip, fill up and fail."""

    def __init__(self, rng: Random, *, sync: Sync = Sync.HONEST) -> None:
        self.rng = rng
        self.files: dict[Path, SimFile] = {}
        self.folders: set[Path] = set()
        self.is_full = False
        #: Preallocated segments hold the stale bytes of an older one instead of zeros.
        self.is_recycling = False
        #: Raise OSError(EIO) at the nth next fdatasync or pwrite; 0: never.
        self.eio_in = 0
        #: Crash within the nth next changing call; 0: never.
        self.crash_in = 0
        #: How many fdatasync calls were made.
        self.syncs = 0
        self._sync = sync
        self._handles: dict[int, tuple[Path, SimFile]] = {}
        self._locks: dict[int, Path] = {}
        self._next_handle = 3

    # Faults

    def kill(self) -> None:
        """`kill -9` of every process: handles and locks are gone, written bytes stay."""
        self._handles.clear()
        self._locks.clear()
        self.crash_in = self.eio_in = 0

    def power_cut(self) -> None:
        """Every unsynced sector is kept, lost or torn, each by its own luck."""
        self.kill()
        for file in self.files.values():
            for sector in sorted(file.dirty | file.late):
                self._settle(file, sector)
            file.content[:] = file.durable
            file.dirty.clear()
            file.late.clear()

    def flip_bit(self) -> tuple[Path, int] | None:
        """Flip one bit somewhere in the written part of a segment; returns where."""
        segments = sorted(path for path in self.files if path.suffix == ".seg")
        written = [path for path in segments if self.files[path].content.rstrip(b"\0")]
        if not written:
            return None
        path = self.rng.choice(written)
        file = self.files[path]
        place = self.rng.randrange(len(file.content.rstrip(b"\0")))
        bit = 1 << self.rng.randrange(8)
        file.content[place] ^= bit
        file.durable[place] ^= bit
        return path, place

    def _settle(self, file: SimFile, sector: int) -> None:
        start = sector * SECTOR_BYTES
        luck = self.rng.random()
        if luck < 0.45:
            return
        kept = SECTOR_BYTES if luck < 0.9 else self.rng.randrange(SECTOR_BYTES)
        file.durable[start : start + kept] = file.content[start : start + kept]

    def _change(self) -> bool:
        """Count one changing call; True: it is the one to crash in."""
        if self.crash_in:
            self.crash_in -= 1
            return self.crash_in == 0
        return False

    def _change_names(self) -> bool:
        """As `_change`, for calls that happen whole or not: crash before, or return True to crash after."""
        if not self._change():
            return False
        if self.rng.random() < 0.5:
            raise Crash
        return True

    def _maybe_fail(self) -> None:
        if self.eio_in:
            self.eio_in -= 1
            if self.eio_in == 0:
                raise OSError(errno.EIO, "simulated")

    # The seam

    def open(self, path: Path, *, is_writable: bool) -> int:
        file = self.files.get(path)
        if file is None:
            raise FileNotFoundError(errno.ENOENT, str(path))
        return self._handle(path, file)

    def _handle(self, path: Path, file: SimFile) -> int:
        self._next_handle += 1
        self._handles[self._next_handle] = (path, file)
        return self._next_handle

    def close(self, handle: int) -> None:
        self._locks.pop(handle, None)
        del self._handles[handle]

    def pread(self, handle: int, length_bytes: int, offset: int) -> bytes:
        return bytes(self._handles[handle][1].content[offset : offset + length_bytes])

    def pwrite(self, handle: int, data: bytes, offset: int) -> None:
        file = self._handles[handle][1]
        self._maybe_fail()
        is_last = self._change()
        if is_last:
            data = data[: self.rng.randrange(len(data) + 1)]
        assert offset + len(data) <= len(file.content), "a segment never grows"
        file.content[offset : offset + len(data)] = data
        if data:
            file.dirty.update(range(offset // SECTOR_BYTES, (offset + len(data) - 1) // SECTOR_BYTES + 1))
        if is_last:
            raise Crash

    def fdatasync(self, handle: int) -> None:
        file = self._handles[handle][1]
        self.syncs += 1
        self._maybe_fail()
        if self._change():
            for sector in sorted(file.dirty):
                self._settle(file, sector)
            raise Crash
        if self._sync is Sync.NEVER:
            return
        if self._sync is Sync.LATE:
            file.sync(file.late)
            file.late = file.dirty
        else:
            file.sync(file.dirty)
        file.dirty = set()

    def preallocate(self, path: Path, size_bytes: int) -> None:
        if path in self.files:
            raise FileExistsError(errno.EEXIST, str(path))
        if self.is_full:
            raise OSError(errno.ENOSPC, "simulated")
        is_last = self._change()
        content = self._fresh(size_bytes)
        if is_last:
            # A part of the zeros: a short file.
            del content[self.rng.randrange(size_bytes) :]
        self.files[path] = SimFile(content, bytearray(content))
        if is_last:
            raise Crash

    def _fresh(self, size_bytes: int) -> bytearray:
        if self.is_recycling:
            older = sorted(path for path in self.files if path.suffix == ".seg")
            if older:
                stale = self.files[self.rng.choice(older)].content
                return bytearray(stale[:size_bytes].ljust(size_bytes, b"\0"))
        return bytearray(size_bytes)

    def list_folder(self, path: Path) -> list[str]:
        names = {inner.name for inner in (*self.files, *self.folders) if inner.parent == path}
        listed = sorted(names)
        self.rng.shuffle(listed)
        return listed

    def make_folder(self, path: Path) -> None:
        crash_after = self._change_names()
        self.folders.update((path, *path.parents))
        if crash_after:
            raise Crash

    def rename(self, old: Path, new: Path) -> None:
        crash_after = self._change_names()
        if old in self.files:
            self.files[new] = self.files.pop(old)
        else:
            self._rename_folder(old, new)
        if crash_after:
            raise Crash

    def _rename_folder(self, old: Path, new: Path) -> None:
        assert old in self.folders
        if any(path.parent == new for path in self.files):
            raise OSError(errno.ENOTEMPTY, str(new))
        self.folders.discard(old)
        self.folders.add(new)
        for path in [path for path in self.files if path.parent == old]:
            self.files[new / path.name] = self.files.pop(path)
        self._locks = {handle: new / path.name if path.parent == old else path for handle, path in self._locks.items()}

    def unlink(self, path: Path) -> None:
        crash_after = self._change_names()
        self.files.pop(path, None)
        if crash_after:
            raise Crash

    def remove_folder(self, path: Path) -> None:
        crash_after = self._change_names()
        if self.list_folder(path):
            raise OSError(errno.ENOTEMPTY, str(path))
        self.folders.discard(path)
        if crash_after:
            raise Crash

    def replace_file(self, path: Path, data: bytes) -> None:
        crash_after = self._change_names()
        self.files[path] = SimFile(bytearray(data), bytearray(data))
        if crash_after:
            raise Crash

    def lock(self, path: Path) -> int:
        if path in self._locks.values():
            raise BlockingIOError(errno.EWOULDBLOCK, str(path))
        file = self.files.setdefault(path, SimFile(bytearray(), bytearray()))
        handle = self._handle(path, file)
        self._locks[handle] = path
        return handle

    def is_locked(self, path: Path) -> bool:
        return path in self._locks.values()
