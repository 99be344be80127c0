"""Owns writing below a repository's root so that a crash at any moment leaves old or new: staging, flush, rename.

`.staging-*` folders are nobody's once the lock is free; whoever takes it next removes them.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from uuid import uuid4

STAGING: Final = ".staging-"
_LOCK: Final = ".publish.lock"
_CHUNK: Final = 1 << 20


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """One writer at a time; the kernel lets go of the lock with the process."""
    descriptor = os.open(root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        for left in root.glob(f"{STAGING}*"):
            shutil.rmtree(left)
        yield
    finally:
        os.close(descriptor)


def new_staging(root: Path) -> Path:
    """An empty folder that readers pass over."""
    staging = root / f"{STAGING}{uuid4().hex}"
    staging.mkdir(mode=0o755)
    return staging


def copy_tree(source: Path, target: Path) -> None:
    """Copy a folder of files and folders, each flushed. What is neither is an error of `open`."""
    target.mkdir(mode=0o755)
    for path in sorted(source.iterdir()):
        if path.is_dir() and not path.is_symlink():
            copy_tree(path, target / path.name)
            continue
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as reader, (target / path.name).open("xb") as writer:
            shutil.copyfileobj(reader, writer, _CHUNK)
            writer.flush()
            os.fsync(writer.fileno())
    sync(target)


def write_new(path: Path, data: bytes) -> None:
    """A file that is not there yet, flushed."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(root: Path, path: Path, data: bytes) -> None:
    """`path` holds its old bytes or `data`, at any moment. `root`: where the staging folder goes; same file system."""
    staging = new_staging(root)
    write_new(staging / path.name, data)
    (staging / path.name).replace(path)
    sync(path.parent)
    staging.rmdir()


def remove_folder(root: Path, folder: Path) -> None:
    """The whole folder is there or, from one moment on, nothing of it."""
    gone = new_staging(root)
    folder.rename(gone / folder.name)
    sync(folder.parent)
    shutil.rmtree(gone)


def sync(folder: Path) -> None:
    """Flush a folder's names."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
