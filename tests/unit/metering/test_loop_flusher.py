"""The group commit on the loop: who is told what when, with a sync that ends on demand, and with the kernel's own."""

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from billing.events import Served, encode
from billing.usagelog.disk import LocalDisk
from billing.usagelog.reader import UsageReader
from gateway.clock import SystemClock
from gateway.metering.kernel_sync import KernelSync
from gateway.metering.log import LogLimits, UsageLog
from gateway.metering.loop_flusher import make_kernel_sync
from tests.leaks import assert_none_left, held
from tests.sim.stepped import ends_of, read_all, records_of
from tests.sim.world import served


class HeldSync:
    """Syncs that end by `finish`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_done: Callable[[OSError | None], object]) -> None:
        self.on_done = on_done
        self.handle = -1
        self.starts = 0
        self.is_closed = False

    def start(self, handle: int) -> None:
        assert self.handle < 0, "one at a time"
        self.handle = handle
        self.starts += 1

    def finish(self, error: OSError | None = None) -> None:
        handle, self.handle = self.handle, -1
        os.fdatasync(handle)
        self.on_done(error)

    def close(self) -> None:
        self.is_closed = True


class Bench:
    """A log on the loop with a held sync."""

    def __init__(self, folder: Path, **limits: int) -> None:
        self.syncs: list[HeldSync] = []
        self.acked: list[int] = []
        self.fatal: list[Exception] = []
        self.log = UsageLog(
            folder / "w0",
            asyncio.get_running_loop(),
            SystemClock(),
            LogLimits(**{"segment_bytes": 4096, "mark_delay_s": 0, **limits}),
            self.fatal.append,
            make_sync=self._make,
        )

    def _make(self, loop: asyncio.AbstractEventLoop, on_done: Callable[[OSError | None], object]) -> HeldSync:
        self.syncs.append(HeldSync(loop, on_done))
        return self.syncs[0]

    @property
    def sync(self) -> HeldSync:
        return self.syncs[0]

    def append(self, count: int = 1) -> None:
        for _ in range(count):
            self.log.append(encode(served(1, 30)), self.acked.append)


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not is_so():
            await asyncio.sleep(0.001)


def test_nobody_is_told_before_the_sync_and_what_comes_meanwhile_is_the_next_group(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        bench.append(2)
        await turns()
        assert (bench.acked, bench.sync.starts) == ([], 1)
        bench.append(3)
        await turns()
        assert (bench.acked, bench.sync.starts) == ([], 1), "one sync at a time"
        bench.sync.finish()
        assert bench.acked == [1, 2]
        assert bench.sync.starts == 2, "the next group at once"
        bench.sync.finish()
        assert bench.acked == [1, 2, 3, 4, 5]
        closing = asyncio.create_task(bench.log.close())
        await until(lambda: bench.sync.handle >= 0)
        bench.sync.finish()
        await closing
        assert bench.sync.is_closed

    asyncio.run(main())
    results = read_all(UsageReader(tmp_path))
    assert [seq for seq, record in records_of(results) if isinstance(record, Served)] == [1, 2, 3, 4, 5]
    assert ends_of(results)[0].is_clean


def test_closing_with_a_record_on_its_way_is_an_orderly_end(tmp_path: Path) -> None:
    async def main() -> None:
        acked: list[int] = []
        fatal: list[Exception] = []
        loop = asyncio.get_running_loop()
        log = UsageLog(tmp_path / "w0", loop, SystemClock(), LogLimits(segment_bytes=4096), fatal.append)
        assert log.is_on_loop
        log.append(encode(served(1, 30)), acked.append)
        await log.close()
        assert (acked, fatal) == ([1], [])

    asyncio.run(main())
    assert ends_of(read_all(UsageReader(tmp_path)))[0].is_clean


def test_a_failed_sync_stops_everything_and_calls_nobody_back(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        bench.append(2)
        await turns()
        bench.append(1)
        await turns()
        bench.sync.finish(OSError(errno.EIO, "the disk is gone"))
        assert [str(error) for error in bench.fatal] == ["[Errno 5] the disk is gone"]
        assert bench.acked == []
        assert not bench.log.is_accepting
        assert bench.sync.is_closed
        await until(lambda: not LocalDisk().is_locked(bench.log.epoch.folder / "lock"))
        for thread in bench.log.threads:
            await asyncio.to_thread(thread.join)

    asyncio.run(main())


def test_a_sync_that_cannot_be_begun_is_as_fatal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)

        def refuse(handle: int) -> None:
            raise OSError(errno.EAGAIN, "no room")

        monkeypatch.setattr(bench.sync, "start", refuse)
        bench.append()
        await turns()
        assert len(bench.fatal) == 1
        assert bench.acked == []
        for thread in bench.log.threads:
            await asyncio.to_thread(thread.join)

    asyncio.run(main())


def test_a_full_segment_is_synced_before_its_successor_is_begun(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path, segment_bytes=600)
        await asyncio.sleep(0)
        for at in range(1, 30):
            bench.append()
            await until(lambda: bench.sync.handle >= 0)
            bench.sync.finish()
            await until(lambda at=at: len(bench.acked) == at or bench.sync.handle >= 0)  # type: ignore[misc]
            while len(bench.acked) < at:
                bench.sync.finish()
                await until(lambda at=at: len(bench.acked) == at or bench.sync.handle >= 0)  # type: ignore[misc]
        closing = asyncio.create_task(bench.log.close())
        while not closing.done():
            if bench.sync.handle >= 0:
                bench.sync.finish()
            await asyncio.sleep(0.001)

    asyncio.run(main())
    results = read_all(UsageReader(tmp_path))
    assert len([record for _, record in records_of(results) if isinstance(record, Served)]) == 29
    assert ends_of(results)[0].is_clean


def test_an_abandoned_log_ends_when_its_sync_does(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        bench.append()
        await turns()
        bench.log.abandon()
        assert LocalDisk().is_locked(bench.log.epoch.folder / "lock"), "while the disk works, the epoch lives"
        bench.sync.finish()
        await until(lambda: not LocalDisk().is_locked(bench.log.epoch.folder / "lock"))
        for thread in bench.log.threads:
            await asyncio.to_thread(thread.join)

    asyncio.run(main())


def test_without_kernel_sync_a_thread_does_it(tmp_path: Path) -> None:
    def refuse(loop: asyncio.AbstractEventLoop, on_done: object) -> HeldSync:
        raise OSError(errno.ENOSYS, "no such call")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        log = UsageLog(tmp_path / "w0", loop, SystemClock(), LogLimits(), print, make_sync=refuse)
        assert not log.is_on_loop
        done = asyncio.Event()
        log.append(encode(served(1, 30)), lambda _: done.set())
        await done.wait()
        await log.close()

    asyncio.run(main())


def test_the_kernel_tells_of_a_file_that_cannot_be_synced(tmp_path: Path) -> None:
    async def main() -> None:
        reader, writer = os.pipe()
        loop = asyncio.get_running_loop()
        before = held()
        for _ in range(10):
            with pytest.raises(OSError, match="Invalid argument"):
                make_kernel_sync(writer, loop, print)
        assert_none_left(before, 10)
        os.close(reader)
        os.close(writer)
        with pytest.raises(OSError, match="Bad file descriptor"):
            make_kernel_sync(writer, loop, print)

    asyncio.run(main())


def test_the_kernel_syncs_again_and_again(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "file"
        path.write_bytes(bytes(4096))
        handle = os.open(path, os.O_RDWR)
        done: asyncio.Queue[OSError | None] = asyncio.Queue()
        sync = KernelSync(asyncio.get_running_loop(), done.put_nowait)
        sync.probe(handle)
        for at in range(100):
            os.pwrite(handle, b"x", at)
            sync.start(handle)
            assert sync.is_busy
            assert await done.get() is None
        sync.close()
        sync.close()
        os.close(handle)

    asyncio.run(main())
