"""Supervised children: readiness belongs to one process, failpoint orders are taken once."""

import asyncio
import signal
import sys
from pathlib import Path

import pytest

from gateway.children import FAILPOINT_DIR_VARIABLE, Child

LIMIT_S = 60.0


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


def run_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first_end: str) -> tuple[list[list[str]], list[str]]:
    """What path two processes of a child with compiled modules saw, whose first ends so; and what was said."""
    monkeypatch.setenv("PYTHONPATH", "known")
    seen, go, said = tmp_path / "seen", tmp_path / "go", list[str]()
    text = (
        "import sys\n"
        f"is_first = not os.path.exists({str(seen)!r})\n"
        f"with open({str(seen)!r}, 'a') as file: print(sys.flags.safe_path, os.environ['PYTHONPATH'], file=file)\n"
        "def ready(): os.write({fd}, b'ready'); os.close({fd})\n"
        f"def end(): {first_end}\n"
        "def heard():\n"
        "    ready()\n"
        f"    while not os.path.exists({str(go)!r}): time.sleep(0.01)\n"
        "if is_first: end()\n"
        "ready(); signal.pause()"
    )

    async def scene() -> None:
        child = Child("w", lambda fd: script(text.format(fd=fd)), say=said.append, compiled=tmp_path / "built")
        async with asyncio.timeout(LIMIT_S):
            child.start()
            while child.restarts == 0:
                if child.is_ready.is_set():
                    go.touch()
                await asyncio.sleep(0.01)
            await child.is_ready.wait()
            await child.stop(signal.SIGTERM, LIMIT_S)

    asyncio.run(scene())
    return [line.split() for line in seen.read_text().splitlines()], said


@pytest.mark.parametrize("first_end", ["os._exit(1)", "heard(); os.kill(os.getpid(), signal.SIGSEGV)"])
def test_a_child_that_compiled_modules_fail_goes_on_from_the_sources_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first_end: str
) -> None:
    seen, said = run_compiled(tmp_path, monkeypatch, first_end)
    assert seen == [["True", f"{tmp_path / 'built'}:known"], ["False", "known"]]
    assert "w: the compiled modules do not run here; it uses their sources from now on" in said


def test_a_child_that_ends_for_another_reason_keeps_its_compiled_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = "heard(); os._exit(1)"
    seen, said = run_compiled(tmp_path, monkeypatch, end)
    assert seen == [["True", f"{tmp_path / 'built'}:known"]] * 2
    assert len(said) == 1


def test_a_child_leaves_no_core_file(tmp_path: Path) -> None:
    """I29, tests/unit/test_core_dumps.py: what holds for the process holds for what the supervisor starts."""
    told = tmp_path / "told"

    async def scene() -> None:
        text = "import resource\nbound = resource.getrlimit(resource.RLIMIT_CORE)\n"
        text += "kept = open('/proc/self/coredump_filter').read().strip('0\\n')\n"
        text += f"open({str(told)!r}, 'w').write(f'{{bound}} {{kept}}')\nos.write({{}}, b'ready'); signal.pause()"
        child = Child("child", lambda fd: script(text.replace("{}", str(fd))), say=lambda _: None)
        async with asyncio.timeout(LIMIT_S):
            child.start()
            await child.is_ready.wait()
            assert await child.stop(signal.SIGTERM, LIMIT_S)

    asyncio.run(scene())
    assert told.read_text() == "(0, 0) "
