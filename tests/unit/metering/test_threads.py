"""The usage log on a real loop and the machine's disk, synced by the kernel and by its thread."""

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from billing.events import Closed, Served, encode
from billing.usagelog.disk import LocalDisk
from billing.usagelog.reader import UsageReader
from gateway.clock import SystemClock
from gateway.metering.log import LogLimits, UsageLog
from tests.leaks import assert_none_left, held
from tests.sim.stepped import ends_of, read_all, records_of
from tests.sim.world import served

Runner = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Runner:
    return asyncio.run if request.param == "asyncio" else uvloop.run


class HeldDisk(LocalDisk):
    """A disk whose fdatasync waits for `release`, from the second log sync on."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.entered = threading.Event()

    def fdatasync(self, handle: int) -> None:  # type: ignore[override]
        if threading.current_thread() is not threading.main_thread():
            self.entered.set()
            self.release.wait()
        os.fdatasync(handle)


@pytest.fixture(params=["kernel", "thread"], autouse=True)
def is_threaded(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(sys.modules[__name__], "IS_THREADED", request.param == "thread")
    return bool(request.param == "thread")


IS_THREADED = False


def open_log(folder: Path, **limits: Any) -> UsageLog:
    limits = {"segment_bytes": 4096, **limits}
    loop = asyncio.get_running_loop()
    log = UsageLog(folder, loop, SystemClock(), LogLimits(**limits), _never, is_threaded=IS_THREADED)
    assert log.is_on_loop is not IS_THREADED
    return log


def _never(error: Exception) -> None:
    raise error


def test_concurrent_callers_are_called_back_in_order_over_many_segments(run: Runner, tmp_path: Path) -> None:
    acked: list[int] = []

    async def main() -> None:
        log = open_log(tmp_path / "w0")
        done = asyncio.Event()
        left = 2000

        def on_durable(seq: int) -> None:
            nonlocal left
            acked.append(seq)
            if left:
                left -= 1
                log.append(encode(served(left, 30)), on_durable)
            elif len(acked) == 2016:
                done.set()

        for number in range(16):
            log.append(encode(served(number, 30)), on_durable)
        await done.wait()
        assert log.groups < len(acked)
        await log.close()

    run(main())
    assert acked == sorted(acked)
    results = read_all(UsageReader(tmp_path))
    records = dict(records_of(results))
    assert [seq for seq, record in records.items() if isinstance(record, Served)] == acked
    assert ends_of(results)[0].is_clean


def test_close_waits_for_the_disk_and_calls_everybody_back(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        acked: list[int] = []
        log = open_log(tmp_path / "w0")
        for number in range(50):
            log.append(encode(served(number, 30)), acked.append)
        await log.close()
        assert acked == list(range(1, 51))
        await log.close()

    run(main())
    results = read_all(UsageReader(tmp_path))
    assert isinstance(records_of(results)[-1][1], Closed)


def test_a_cancelled_close_releases_the_epoch_when_the_disk_returns(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        acked: list[int] = []
        disk = HeldDisk()
        log = UsageLog(
            tmp_path / "w0",
            asyncio.get_running_loop(),
            SystemClock(),
            LogLimits(segment_bytes=4096),
            _never,
            disk=disk,
        )
        log.append(encode(served(1, 30)), acked.append)
        closing = asyncio.create_task(log.close())
        await asyncio.to_thread(disk.entered.wait)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        lock = log.epoch.folder / "lock"
        assert disk.is_locked(lock), "while the flusher may write, the epoch lives"
        disk.release.set()
        for thread in log.threads:
            await asyncio.to_thread(thread.join)
        assert not disk.is_locked(lock)

    run(main())
    (end,) = ends_of(read_all(UsageReader(tmp_path)))
    assert not end.is_clean


def test_the_loop_goes_on_while_the_disk_stalls(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        acked: list[int] = []
        disk = HeldDisk()
        log = UsageLog(
            tmp_path / "w0",
            asyncio.get_running_loop(),
            SystemClock(),
            LogLimits(segment_bytes=4096, unsynced_records_max=3),
            _never,
            disk=disk,
        )
        log.append(encode(served(1, 30)), acked.append)
        await asyncio.to_thread(disk.entered.wait)
        log.append(encode(served(2, 30)), acked.append)
        log.append(encode(served(3, 30)), acked.append)
        assert not log.is_accepting
        assert acked == []
        disk.release.set()
        await log.close()
        assert acked == [1, 2, 3]

    run(main())


def test_the_lock_is_held_for_the_epochs_life(tmp_path: Path) -> None:
    async def main() -> None:
        log = open_log(tmp_path / "w0")
        lock = log.epoch.folder / "lock"
        assert LocalDisk().is_locked(lock)
        reader = UsageReader(tmp_path)
        assert reader.read_batch() is None
        assert reader.live_epochs() == [("w0", log.epoch.number)]
        await log.close()
        assert not LocalDisk().is_locked(lock)

    asyncio.run(main())


def test_two_epochs_of_one_instance_may_live_at_once(tmp_path: Path) -> None:
    # A replacement starts while the old worker drains.
    async def main() -> None:
        old, new = open_log(tmp_path / "w0"), open_log(tmp_path / "w0")
        assert new.epoch.number > old.epoch.number
        for log in (old, new):
            log.append(encode(served(1, 1)), lambda _: None)
            await log.close()

    asyncio.run(main())
    assert len(ends_of(read_all(UsageReader(tmp_path)))) == 2


def test_nothing_is_left_open_after_many_logs(tmp_path: Path) -> None:
    async def main() -> None:
        for number in range(20):
            log = open_log(tmp_path / "w0")
            log.append(encode(served(number, 1)), lambda _: None)
            await log.close()

    asyncio.run(main())
    before = held()
    asyncio.run(main())
    assert_none_left(before, 20)
