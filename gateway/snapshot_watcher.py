"""Owns following the policy snapshot of a running control: load, poll by stat, and how old the policy is.

The loop only ever stats two files; reading and decoding run in the default executor. A damaged or older file keeps the
snapshot in use and says so in `problem`. Staleness is the age of control's heartbeat: the mode is "serve until it is
older than the caller's bound, then refuse" (`refusal_when_stale`).
"""

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from gateway.errors import Code, Refusal
from gateway.snapshot import HEARTBEAT_FILE, SNAPSHOT_FILE, Snapshot, read_snapshot

POLL_S: Final = 0.25
_STALE_RETRY_MS: Final = 5000

OnSnapshot = Callable[[Snapshot], None]
#: inode, mtime and size: a rename always changes the inode.
_Mark = tuple[int, int, int]


class SnapshotWatcher:
    """Follows `data_dir`'s snapshot. `on_change` runs on the loop, once per newer version, never from `start`.

    An exception of `on_change` or of the poll itself ends the task and is re-raised by `close`: a worker whose policy
    cannot be followed must not look healthy, so its `age_s` is infinite from then on.
    """

    def __init__(
        self, data_dir: Path, loop: asyncio.AbstractEventLoop, on_change: OnSnapshot, poll_s: float = POLL_S
    ) -> None:
        self._data_dir = data_dir
        self._loop = loop
        self._on_change = on_change
        self._poll_s = poll_s
        self._mark: _Mark | None = None
        self._task: asyncio.Task[None] | None = None
        self._refreshing = asyncio.Lock()
        self.snapshot: Snapshot | None = None
        #: What is wrong with the file that was last looked at; None when it is in use.
        self.problem: str | None = None

    async def start(self) -> Snapshot:
        """Load the first snapshot (waiting until there is a good one) and begin to poll. Cancelling stops the wait."""
        while self.snapshot is None:
            await self._load()
            if self.snapshot is None:
                await asyncio.sleep(self._poll_s)
        self._task = self._loop.create_task(self._poll(), name="snapshot watcher")
        return self.snapshot

    async def refresh(self) -> None:
        """Look now instead of at the next poll. A look that began before this call may have missed."""
        async with self._refreshing:
            before = self.snapshot
            await self._load()
            if self.snapshot is not None and self.snapshot is not before and before is not None:
                self._on_change(self.snapshot)

    def age_s(self) -> float:
        """Seconds since control's last heartbeat; infinite when there never was one or the poll has died."""
        if self._task is not None and self._task.done():
            return float("inf")
        try:
            beat_ns = os.stat(self._data_dir / HEARTBEAT_FILE).st_mtime_ns
        except OSError:
            return float("inf")
        return max(0.0, (time.time_ns() - beat_ns) / 1e9)

    def refusal_when_stale(self, stale_max_s: float) -> Refusal | None:
        """Why calls are refused now: the policy is older than `stale_max_s`. None: serve."""
        if self.age_s() <= stale_max_s:
            return None
        return Refusal(
            code=Code.POLICY_STALE, message="the policy is too old to serve by", retry_after_ms=_STALE_RETRY_MS
        )

    async def wait_closed(self) -> None:
        """Wait until the poll ends. Raises what ended it."""
        assert self._task is not None
        await asyncio.shield(self._task)

    async def close(self) -> None:
        """Stop polling. Raises what ended the poll early, if anything did."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        # `wait` does not raise the task's own cancellation, so a cancellation that arrives here is the closer's.
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            await self.refresh()

    async def _load(self) -> None:
        mark = self._look()
        if mark is None or mark == self._mark:
            return
        try:
            snapshot = await self._loop.run_in_executor(None, read_snapshot, self._data_dir)
        except FileNotFoundError:
            self.problem = "there is no snapshot"
            return
        except (msgspec.DecodeError, OSError) as error:
            # Keep what is in use; look again only when the file changes.
            self._mark, self.problem = mark, f"the snapshot is damaged: {type(error).__name__}"
            return
        # A file replaced between stat and read is read again at the next poll: harmless, and never missed.
        self._mark = mark
        current = self.snapshot
        if current is not None and snapshot.version < current.version:
            self.problem = f"the snapshot went back from version {current.version} to {snapshot.version}"
            return
        self.problem = None
        if current is None or snapshot.version > current.version:
            self.snapshot = snapshot

    def _look(self) -> _Mark | None:
        try:
            status = os.stat(self._data_dir / SNAPSHOT_FILE)
        except OSError:
            self.problem = "there is no snapshot"
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size
