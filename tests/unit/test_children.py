"""Supervised children: readiness belongs to one process, failpoint orders are taken once."""

import asyncio
import signal
import sys
from pathlib import Path

import pytest

from gateway.children import FAILPOINT_DIR_VARIABLE, Child

LIMIT_S = 30.0


def script(text: str) -> list[str]:
    return [sys.executable, "-S", "-c", f"import os, signal, time\n{text}"]


def test_end_of_one_child_leaves_the_readiness_of_another_alone(tmp_path: Path) -> None:
    """Found by the crash suite: the descriptor that the first child's end closed had become the second one's."""
    go = tmp_path / "go"

    async def scene() -> None:
        said: list[str] = []
        first = Child(
            "first", lambda fd: script(f"os.write({fd}, b'ready'); os.close({fd}); signal.pause()"), say=said.append
        )
        slow = f"while not os.path.exists({str(go)!r}): time.sleep(0.01)\nos.write({{}}, b'ready'); signal.pause()"
        second = Child("second", lambda fd: script(slow.format(fd)), say=said.append)
        async with asyncio.timeout(LIMIT_S):
            first.start()
            await first.is_ready.wait()
            second.start()
            while second.pid is None:
                await asyncio.sleep(0)
            assert await first.stop(signal.SIGTERM, LIMIT_S)
            go.touch()
            await second.is_ready.wait()
            assert await second.stop(signal.SIGTERM, LIMIT_S)
        assert said == []

    asyncio.run(scene())


def test_failpoint_order_reaches_the_next_process_of_its_role_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FAILPOINT_DIR_VARIABLE, str(tmp_path))
    (tmp_path / "meter").write_text("before_commit:3")
    seen = tmp_path / "seen"
    tell = "open({path!r}, 'a').write(os.environ.get('TOLLWAY_FAILPOINT', '-') + ' '); os.write({fd}, b'r')"

    async def scene() -> None:
        async with asyncio.timeout(LIMIT_S):
            for role in ("worker-0", "meter", "meter"):
                child = Child(
                    role, lambda fd: script(tell.format(path=str(seen), fd=fd) + "; signal.pause()"), say=lambda _: None
                )
                child.start()
                await child.is_ready.wait()
                await child.stop(signal.SIGTERM, LIMIT_S)

    asyncio.run(scene())
    assert seen.read_text().split() == ["-", "before_commit:3", "-"]
