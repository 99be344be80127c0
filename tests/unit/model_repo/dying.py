"""A process of one thread that does a thing again and again, each time in a fork that dies at a given step of it.

A step is a flush, rename, removal or new folder. `python -m tests.unit.model_repo.dying` reads one JSON list a line:
the thing's name, its arguments and the step. It answers with the fork's exit code: 9 where it died, 0 where it ended.
"""

import contextlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cryptography.hazmat.primitives.asymmetric.ed25519
import cryptography.hazmat.primitives.serialization  # noqa: F401 - else each fork would import it anew

from model_repo.mirror import pull
from model_repo.signing import read_key
from model_repo.store import change_release, publish, remove_versions
from model_repo.stores import FileStore

DIED = 9
_STEPS = ("fsync", "rename", "replace", "mkdir", "rmdir", "unlink")


def publish_alias_collect(root: str, staged: str, key: str, config: str) -> None:
    """A signed version comes, `stable` moves to it, the first version goes."""
    path = Path(root)
    publish(path, "m", Path(staged), config, signer=read_key(Path(key)))
    change_release(path, "m", lambda release: release.with_alias("stable", 2))
    remove_versions(path, "m", lambda versions, release: {1})


def bring_in_line(store: str, mirror: str) -> None:
    faults = [one.fault for one in pull(FileStore(Path(store)), Path(mirror)) if one.fault]
    assert not faults, faults


THINGS: dict[str, Callable[..., None]] = {"publish": publish_alias_collect, "pull": bring_in_line}


def _die_after(steps: int) -> None:
    left = [steps]

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **names: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                os._exit(DIED)
            return real(*arguments, **names)

        return call

    for name in _STEPS:
        setattr(os, name, counted(getattr(os, name)))


def _fork(thing: str, arguments: list[str], step: int) -> int:
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = 1
    try:
        _die_after(step)
        THINGS[thing](*arguments)
        code = 0
    except BaseException:  # noqa: BLE001 - a fork must not return into its parent's code
        traceback.print_exc()
    finally:
        os._exit(code)


def main() -> None:
    for line in sys.stdin:
        thing, arguments, step = json.loads(line)
        print(_fork(thing, arguments, step), flush=True)


@contextlib.contextmanager
def dying() -> Iterator[Callable[[str, list[str], int], int]]:
    """(thing, arguments, step) → exit code, from the process above."""
    command = [sys.executable, "-m", "tests.unit.model_repo.dying"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def run(thing: str, arguments: list[str], step: int) -> int:
            stdin.write(json.dumps([thing, arguments, step]) + "\n")
            stdin.flush()
            return int(stdout.readline())

        yield run
        stdin.close()
        assert process.wait(60) == 0


if __name__ == "__main__":
    main()
