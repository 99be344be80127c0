import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from gateway.errors import Code
from gateway.snapshot import HEARTBEAT_FILE, SNAPSHOT_FILE, Snapshot, touch_heartbeat, write_snapshot
from gateway.snapshot_watcher import SnapshotWatcher
from tests.unit.auth.policies import snapshot_of

#: Long enough never to fire: tests look with `refresh`.
_NEVER_S = 3600.0


class Heard:
    """What a watcher told, and an event per message."""

    def __init__(self) -> None:
        self.versions: list[int] = []
        self.event = asyncio.Event()

    def __call__(self, snapshot: Snapshot) -> None:
        self.versions.append(snapshot.version)
        self.event.set()


Scenario = Callable[[SnapshotWatcher, Heard], Awaitable[None]]


def run(data_dir: Path, scenario: Scenario, poll_s: float = _NEVER_S) -> None:
    async def main() -> None:
        heard = Heard()
        watcher = SnapshotWatcher(data_dir, asyncio.get_running_loop(), heard, poll_s)
        try:
            await scenario(watcher, heard)
        finally:
            await watcher.close()

    asyncio.run(main())


def test_start_returns_the_first_snapshot_and_tells_only_newer_ones(tmp_path: Path) -> None:
    async def scenario(watcher: SnapshotWatcher, heard: Heard) -> None:
        write_snapshot(tmp_path, snapshot_of(version=1))
        assert (await watcher.start()).version == 1
        await watcher.refresh()
        assert heard.versions == []
        write_snapshot(tmp_path, snapshot_of(version=2))
        await asyncio.gather(watcher.refresh(), watcher.refresh())
        assert heard.versions == [2]
        assert watcher.snapshot is not None
        assert watcher.snapshot.version == 2

    run(tmp_path, scenario)


def test_polling_notices_a_new_snapshot_by_itself(tmp_path: Path) -> None:
    async def scenario(watcher: SnapshotWatcher, heard: Heard) -> None:
        write_snapshot(tmp_path, snapshot_of(version=1))
        await watcher.start()
        write_snapshot(tmp_path, snapshot_of(version=2))
        await heard.event.wait()
        assert heard.versions == [2]

    run(tmp_path, scenario, poll_s=0.001)


def test_start_waits_for_a_good_snapshot(tmp_path: Path) -> None:
    async def scenario(watcher: SnapshotWatcher, heard: Heard) -> None:
        (tmp_path / SNAPSHOT_FILE).write_bytes(b"\xc1")
        await watcher.refresh()
        assert watcher.problem == "the snapshot is damaged: DecodeError"
        starting = asyncio.create_task(watcher.start())
        await asyncio.sleep(0)
        write_snapshot(tmp_path, snapshot_of(version=3))
        assert (await starting).version == 3

    run(tmp_path, scenario, poll_s=0.001)


def test_a_damaged_snapshot_keeps_the_old_one_and_says_so(tmp_path: Path) -> None:
    async def scenario(watcher: SnapshotWatcher, heard: Heard) -> None:
        write_snapshot(tmp_path, snapshot_of(version=1))
        first = await watcher.start()
        (tmp_path / SNAPSHOT_FILE).write_bytes(b"not msgpack at all")
        await watcher.refresh()
        assert watcher.snapshot is first
        assert watcher.problem is not None
        assert "damaged" in watcher.problem
        write_snapshot(tmp_path, snapshot_of(version=2))
        await watcher.refresh()
        assert heard.versions == [2]
        assert watcher.problem is None

    run(tmp_path, scenario)


def test_a_vanished_snapshot_keeps_the_old_one_and_says_so(tmp_path: Path) -> None:
    async def scenario(watcher: SnapshotWatcher, heard: Heard) -> None:
        write_snapshot(tmp_path, snapshot_of(version=1))
        first = await watcher.start()
        (tmp_path / SNAPSHOT_FILE).unlink()
        await watcher.refresh()
        assert watcher.snapshot is first
        assert watcher.problem == "there is no snapshot"

    run(tmp_path, scenario)


def test_an_older_version_is_not_taken(tmp_path: Path) -> None:
    async def scenario(watcher: SnapshotWatcher, heard: Heard) -> None:
        write_snapshot(tmp_path, snapshot_of(version=5))
        await watcher.start()
        write_snapshot(tmp_path, snapshot_of(version=4))
        await watcher.refresh()
        assert heard.versions == []
        assert watcher.problem == "the snapshot went back from version 5 to 4"

    run(tmp_path, scenario)


def test_age_is_the_heartbeats_and_decides_by_the_declared_bound(tmp_path: Path) -> None:
    async def scenario(watcher: SnapshotWatcher, heard: Heard) -> None:
        assert watcher.age_s() == float("inf")
        touch_heartbeat(tmp_path)
        assert watcher.refusal_when_stale(60.0) is None
        os.utime(tmp_path / HEARTBEAT_FILE, (1.0, 1.0))
        refusal = watcher.refusal_when_stale(60.0)
        assert refusal is not None
        assert refusal.code is Code.POLICY_STALE

    run(tmp_path, scenario)


def test_a_consumer_that_fails_ends_the_watch_loudly(tmp_path: Path) -> None:
    async def main() -> None:
        failed = asyncio.Event()

        def fail(snapshot: Snapshot) -> None:
            failed.set()
            raise RuntimeError("cannot use it")

        watcher = SnapshotWatcher(tmp_path, asyncio.get_running_loop(), fail, 0.001)
        write_snapshot(tmp_path, snapshot_of(version=1))
        touch_heartbeat(tmp_path)
        await watcher.start()
        write_snapshot(tmp_path, snapshot_of(version=2))
        await failed.wait()
        await asyncio.sleep(0)
        assert watcher.age_s() == float("inf")
        with pytest.raises(RuntimeError, match="cannot use it"):
            await watcher.close()

    asyncio.run(main())


def test_cancelling_start_leaves_nothing_behind(tmp_path: Path) -> None:
    async def scenario(watcher: SnapshotWatcher, heard: Heard) -> None:
        starting = asyncio.create_task(watcher.start())
        await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert watcher.snapshot is None

    run(tmp_path, scenario)
