"""The engine's process: start, stop, arguments, and what survives what."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.integration.engine_process import running_process
from tests.unit.engine.making import python_step, write_identity, write_model, write_python

BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}).encode()


def test_it_answers_while_loading_and_says_that_it_is_not_ready(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    write_python(tmp_path / "repo", "p", python_step("y = x", f"open({str(gate)!r}).read()"))
    with running_process(tmp_path, tmp_path / "repo", wait=False) as engine:
        assert engine.get("/v2/health/live") == (200, b'{"live":true}')
        assert engine.get("/v2/health/ready")[0] == 503
        gate.write_text("go")
        engine.wait_models()
        assert engine.get("/v2/health/ready")[0] == 200
        assert engine.stop() == 0
        assert "Traceback" not in engine.log


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_call_under_way_is_answered_before_the_end(tmp_path: Path, name: str) -> None:
    marker = tmp_path / "busy"
    write_python(tmp_path / "repo", "p", python_step(f'open("{marker}", "w").close()\ntime.sleep(0.3)\ny = x'))
    answers: list[tuple[int, bytes]] = []
    with running_process(tmp_path, tmp_path / "repo") as engine:
        caller = threading.Thread(
            target=lambda: answers.append(engine.get("/v2/models/p/infer", method="POST", body=BODY))
        )
        caller.start()
        while not marker.exists():
            time.sleep(0.005)
        engine.process.send_signal(signal.Signals[name])
        assert engine.process.wait(60) == 0
        caller.join(60)
    assert [status for status, _ in answers] == [200]


def test_it_stops_while_loading(tmp_path: Path) -> None:
    write_python(tmp_path / "repo", "p", python_step("y = x", "time.sleep(60)"))
    with running_process(tmp_path, tmp_path / "repo", wait=False) as engine:
        while not (children := _children(engine.process.pid)):
            time.sleep(0.005)
        assert engine.stop() == 0
        assert not [pid for pid in children if _state(pid) != "Z"]


def _children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def test_a_killed_engine_leaves_no_process_and_starts_again_on_its_socket(tmp_path: Path) -> None:
    write_python(tmp_path / "repo", "p", python_step("time.sleep(60)\ny = x"))
    write_identity(tmp_path / "repo", "m", "FP32", (2,))
    with running_process(tmp_path, tmp_path / "repo") as engine:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(engine.path))
            head = b"POST /v2/models/p/infer HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(BODY)
            sock.sendall(head + BODY)  # the step is busy, and would not see its parent hang up
            while not (children := _children(engine.process.pid)):
                time.sleep(0.005)
            assert engine.get("/v2/models/m/infer", method="POST", body=BODY)[0] == 200
            engine.process.kill()
            engine.process.wait()
        while any(Path(f"/proc/{pid}").exists() and _state(pid) != "Z" for pid in children):
            time.sleep(0.005)
    with running_process(tmp_path, tmp_path / "repo") as engine:
        assert engine.get("/v2/models/m/infer", method="POST", body=BODY)[0] == 200
        assert engine.stop() == 0


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


def test_a_model_that_cannot_be_served_does_not_stop_the_others(tmp_path: Path) -> None:
    write_identity(tmp_path / "repo", "m", "FP32", (2,))
    write_model(tmp_path / "repo", "broken", "nonsense", {})
    with running_process(tmp_path, tmp_path / "repo") as engine:
        assert engine.get("/v2/models/m/infer", method="POST", body=BODY)[0] == 200
        assert engine.get("/v2/health/ready")[0] == 503
        assert "name=broken version= state=UNAVAILABLE reason=not a model configuration" in engine.log
        assert engine.stop() == 0


def test_a_missing_repository_is_one_clear_line(tmp_path: Path) -> None:
    read_fd, write_fd = os.pipe()
    command = [sys.executable, "-m", "gateway.engine", "--socket", str(tmp_path / "s"), "--ready-fd", str(write_fd)]
    command += ["--repository", str(tmp_path / "nowhere")]
    ran = subprocess.run(command, check=False, capture_output=True, pass_fds=(write_fd,), timeout=60)
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as ready:
        assert ready.read() == b""
    assert ran.returncode == 1
    assert ran.stderr.decode().count("\n") == 1
    assert "is no folder" in ran.stderr.decode()


def test_python_needs_the_repository_to_be_allowed(tmp_path: Path) -> None:
    write_python(tmp_path / "repo", "p", python_step("y = x"))
    path = tmp_path / "s"
    command = [sys.executable, "-m", "gateway.engine", "--socket", str(path), "--repository", str(tmp_path / "repo")]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        line = process.stderr.readline().decode()
        assert "not listed in python_models_allowed" in line
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
