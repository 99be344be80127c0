"""Importing any module opens no socket or file for writing, starts nothing, and reads no environment of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("gateway", "billing", "converters", "model_repo")
#: Not importable here: Python steps run in a child that gives them Triton's module, `pystub` is that module's folder.
NOT_OURS_TO_IMPORT = ("model_repo/showcases/steps", "model_repo/models", "gateway/engine/pystub")

#: Runs in a process of its own: audit hooks cannot be taken away again.
WATCHER = r'''
import _thread, importlib, json, os, sys, sysconfig, threading

ours, current, found = sys.argv[1], "", []
STARTS = {
    "socket.__new__", "socket.bind", "socket.connect", "subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn",
    "os.exec", "os.system", "os.mkdir", "os.remove", "os.rename", "shutil.rmtree",
}
STDLIB = ("<frozen", sysconfig.get_path("stdlib") + "/os.py")

def hook(event, arguments):
    if event in STARTS:
        found.append([current, event, ""])
    elif event == "open" and (isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")):
        found.append([current, "open for writing", str(arguments[0])])

def caller():
    """The first frame outside the standard library: whoever asked for the variable."""
    frame = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename.startswith(STDLIB):
        frame = frame.f_back
    return "" if frame is None else frame.f_code.co_filename

environ = type(os.environ)
read = environ.__getitem__

def watched(self, name):
    path = caller()
    if path.startswith(ours) and "site-packages" not in path:
        found.append([current, "environment", name])
    return read(self, name)

def started(*arguments):
    found.append([current, "thread", ""])
    return start(*arguments)

environ.__getitem__ = watched
# Python 3.11 has no audit event for threads.
start = _thread.start_new_thread
_thread.start_new_thread = threading._start_new_thread = started
sys.addaudithook(hook)
for current in sys.argv[2:]:
    importlib.import_module(current)
print(json.dumps(found))
'''


def modules() -> list[str]:
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = path.relative_to(ROOT)
            if not str(name).startswith(NOT_OURS_TO_IMPORT):
                found.append(".".join(name.with_suffix("").parts).removesuffix(".__init__"))
    return found


def watch(*names: str, root: Path = ROOT) -> list[list[str]]:
    """What the modules did while they were imported: (module, what, detail)."""
    command = [sys.executable, "-B", "-c", WATCHER, f"{root}/", *names]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    found: list[list[str]] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_importing_every_module_does_nothing() -> None:
    names = modules()
    assert len(names) > 150
    assert watch(*names) == []


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("import socket; socket.socket()", "socket.__new__"),
        ("import threading; threading.Thread(target=print).start()", "thread"),
        ("import subprocess; subprocess.run(['true'])", "subprocess.Popen"),
        ("import os; os.environ.get('HOME')", "environment"),
        ("import os; os.getenv('HOME')", "environment"),
        ("import os; os.environ['PATH']", "environment"),
        ("open('made', 'w').close()", "open for writing"),
    ],
)
def test_the_watcher_sees_work(tmp_path: Path, line: str, what: str) -> None:
    (tmp_path / "busy.py").write_text(line + "\n")
    assert what in [event for _, event, _ in watch("busy", root=tmp_path)]
