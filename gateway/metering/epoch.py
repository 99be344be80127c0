"""Owns the opening of a new epoch: its number, its folder and the lock whose holder is its writer."""

import os
from dataclasses import dataclass
from pathlib import Path

from billing.usagelog.disk import Disk
from billing.usagelog.framing import HEADER_BYTES, encode_header
from billing.usagelog.segment import LOCK_NAME, epoch_name, segment_name

_LAST_NAME = "last-epoch"
_NEW_PREFIX = ".new-"
_LAST_BYTES_MAX = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """An epoch we write: segment 1 is begun. Closing `lock` tells readers that its writer is gone."""

    instance: str
    number: int
    folder: Path
    lock: int


def open_epoch(disk: Disk, folder: Path, wall_ns: int, segment_bytes: int) -> Epoch:
    """A new epoch in `folder` (named after the instance), with its first segment begun.

    Blocks for as long as one segment takes to write. Raises OSError if the disk is full or fails; ValueError for an
    instance name that no header can hold.
    """
    instance = folder.name
    disk.make_folder(folder)
    names = disk.list_folder(folder)
    number = _next_number(disk, folder, names, wall_ns)
    # Never used again, even if this epoch is removed and the clock steps back: the ledger's watermarks name it.
    disk.replace_file(folder / _LAST_NAME, str(number).encode())
    _remove_unpublished(disk, folder, names)
    # Built under a name that readers ignore, so that they never see an epoch before its writer holds the lock.
    hidden = folder / f"{_NEW_PREFIX}{epoch_name(number)}-{os.getpid()}"
    disk.make_folder(hidden)
    lock = disk.lock(hidden / LOCK_NAME)
    try:
        first = hidden / segment_name(1)
        disk.preallocate(first, segment_bytes)
        _begin(disk, first, encode_header(instance, number, 1, 1, segment_bytes))
        published = folder / epoch_name(number)
        disk.rename(hidden, published)
    except BaseException:
        disk.close(lock)
        raise
    return Epoch(instance=instance, number=number, folder=published, lock=lock)


def _begin(disk: Disk, segment: Path, header: bytes) -> None:
    assert len(header) == HEADER_BYTES
    handle = disk.open(segment, is_writable=True)
    try:
        disk.pwrite(handle, header, 0)
        disk.fdatasync(handle)
    finally:
        disk.close(handle)


def _next_number(disk: Disk, folder: Path, names: list[str], wall_ns: int) -> int:
    """Milliseconds of wall time, but above every number this instance has ever used."""
    used = [int(name) for name in names if name.isdecimal() and name.isascii()]
    if _LAST_NAME in names:
        used.append(_read_last(disk, folder / _LAST_NAME))
    return max([wall_ns // 1_000_000, *(number + 1 for number in used)])


def _read_last(disk: Disk, path: Path) -> int:
    handle = disk.open(path, is_writable=False)
    try:
        text = disk.pread(handle, _LAST_BYTES_MAX, 0).decode(errors="replace")
    finally:
        disk.close(handle)
    if not (text.isdecimal() and text.isascii()):
        raise ValueError(f"{path.name} of {path.parent.name} holds {text!r}, not a number: restore it or remove it")
    return int(text)


def _remove_unpublished(disk: Disk, folder: Path, names: list[str]) -> None:
    """Remove what a writer left that died before it published its epoch; nothing was ever recorded there."""
    for name in names:
        leftover = folder / name
        if name.startswith(_NEW_PREFIX) and not disk.is_locked(leftover / LOCK_NAME):
            for inner in disk.list_folder(leftover):
                disk.unlink(leftover / inner)
            disk.remove_folder(leftover)
