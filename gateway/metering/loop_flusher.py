"""HOT PATH. Owns the group commit on the loop's own thread: it writes, the kernel syncs, the loop is told.

A pwrite goes to the page cache of a prewritten segment: it waits for no disk, but when the machine is short of memory.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

from gateway.metering.group_commit import GroupCommit, Message
from gateway.metering.kernel_sync import KernelSync


class Sync(Protocol):
    """`KernelSync`, or a twin of it in tests."""

    def start(self, handle: int) -> None: ...

    def close(self) -> None: ...


#: Makes a `Sync` that calls its second argument, with None or the error, when a sync is done.
SyncMaker = Callable[[asyncio.AbstractEventLoop, Callable[[OSError | None], object]], Sync]


def make_kernel_sync(
    handle: int, loop: asyncio.AbstractEventLoop, on_done: Callable[[OSError | None], object]
) -> KernelSync:
    """A `KernelSync` that is known to work for the file behind `handle`. Raises OSError otherwise."""
    sync = KernelSync(loop, on_done)
    try:
        sync.probe(handle)
    except OSError:
        sync.close()
        raise
    return sync


class LoopFlusher:
    """Drives a commit with what `hand` is given. Everything happens on the loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, make_sync: SyncMaker) -> None:
        """Raises OSError if `make_sync` does."""
        self._sync = make_sync(loop, self._on_synced)
        self._commit: GroupCommit | None = None
        self._is_syncing = False

    def drive(self, commit: GroupCommit) -> None:
        """Set what is driven; before the first `hand`."""
        self._commit = commit

    def hand(self, message: Message) -> None:
        """Take a message; write at once unless a sync is under way."""
        assert self._commit is not None
        self._commit.take(message)
        if not self._is_syncing:
            self._go()

    def _on_synced(self, error: OSError | None) -> None:
        assert self._commit is not None
        # Still "syncing" while replies are told: what they hand over is only taken, and written once they are through.
        if error is not None:
            self._commit.fail(error)
        else:
            self._commit.complete()
        self._is_syncing = False
        self._go()

    def _go(self) -> None:
        commit, sync = self._commit, self._sync
        assert commit is not None
        try:
            if commit.begin():
                sync.start(commit.writer.handle)
                self._is_syncing = True
        except Exception as error:  # noqa: BLE001 - whatever it is, see `GroupCommit.fail`
            commit.fail(error)
        if not commit.is_running:
            sync.close()
