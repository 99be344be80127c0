"""What is said while a part is missing: no engine, no room for usage records. Declared, and over without a restart."""

import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.e2e.harness import Tollway
from tests.e2e.stage import read_gauge

pytestmark = pytest.mark.timeout(400)

SEGMENT_BYTES = 64 * 1024
ROOM_BYTES = 1024 * 1024


@pytest.fixture
def tollway() -> Iterator[Tollway]:
    with Tollway() as running:
        yield running


@pytest.fixture
def cramped() -> Iterator[Tollway]:
    """A Tollway whose usage logs live on a disk of their own of one MiB."""
    tollway = Tollway(settings={"usage_segment_bytes": str(SEGMENT_BYTES), "limits.drain_s": "2"})
    usage = tollway.data_dir / "usage"
    usage.mkdir(parents=True)
    options = f"size={ROOM_BYTES},mode=700"
    words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(usage)]
    mounted = subprocess.run(words, capture_output=True, check=False)
    try:
        if mounted.returncode != 0:
            pytest.skip(f"no right to mount a small disk: {mounted.stderr.decode().strip()}")
        tollway.start()
        yield tollway
    finally:
        if tollway.process is not None and tollway.process.poll() is None:
            tollway.kill_supervisor()
        if mounted.returncode == 0:
            # The last threads of a killed process may hold files for a moment longer than its first one.
            unmount = ["umount", str(usage)]
            tollway.wait(lambda: subprocess.run(unmount, capture_output=True, check=False).returncode == 0, "umount")
        tollway.close()


def _key(tollway: Tollway, plan: str = "internal") -> str:
    tollway.create_tenant("acme", plan)
    key = tollway.create_key("acme")
    tollway.wait_for_key(key)
    return key


def _is_retryable(response: httpx.Response, code: str) -> bool:
    is_named = response.status_code == 503 and response.json()["code"] == code
    return is_named and int(response.headers["retry-after"]) >= 1


# -- the engine --------------------------------------------------------------------------------------------------------


def test_without_engine_calls_get_503_and_ready_says_so_until_it_is_back(tollway: Tollway) -> None:
    key = _key(tollway)
    assert tollway.infer(key).status_code == 200
    pid = tollway.kill("engine")
    tollway.wait(lambda: tollway.pids().get("engine", pid) != pid, "the next engine")
    # Held while it starts, so that it cannot be back before anybody has looked.
    os.kill(tollway.pid_of("engine"), signal.SIGSTOP)
    refused = tollway.infer(key)
    assert _is_retryable(refused, "backend_unavailable"), refused.text
    assert not tollway.is_serving()
    assert tollway.is_live(), "an engine that died is no reason to restart the gateway"
    os.kill(tollway.pid_of("engine"), signal.SIGCONT)
    # Ready means that some model is: the one that is asked may come a moment later.
    tollway.wait(lambda: tollway.infer(key).status_code == 200, "the model's return")
    assert tollway.is_serving()
    tollway.wait_until_posted()
    status = tollway.meter_status()
    assert status is not None
    assert (status["posted"], status["voided"]) == (2, 0), "a refused call is not recorded"


def test_a_call_that_dies_with_its_engine_is_answered_and_free(tollway: Tollway) -> None:
    """A stopped engine holds the call; killed, it takes the call with it."""
    key = _key(tollway)
    os.kill(tollway.pid_of("engine"), signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(tollway.infer, key)
        tollway.wait(
            lambda: answer.done() or read_gauge(tollway, "tollway_calls_in_flight") >= 1, "the call to be under way"
        )
        tollway.kill("engine")
        response = answer.result()
    assert response.status_code in (502, 503), response.text
    assert response.json()["code"] in ("backend_protocol", "backend_unavailable")
    assert "tollway-call-id" in response.headers
    tollway.wait_until_posted()
    status = tollway.meter_status()
    assert status is not None
    assert (status["posted"], status["voided"]) == (0, 0)


# -- the disk ----------------------------------------------------------------------------------------------------------


def _fill(folder: Path) -> Path:
    """Take every byte that is left of its disk, under a name that readers pass over."""
    ballast = folder / ".ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return ballast


def _call_until_refused(tollway: Tollway, key: str) -> int:
    """Calls that were answered before the first refusal, which has to be the declared one."""
    answered = 0
    with httpx.Client(trust_env=False, timeout=60, headers={"authorization": f"Bearer {key}"}) as client:
        body = {"inputs": [{"name": "x", "shape": [1, 64], "datatype": "FP32", "data": [0.5] * 64}]}
        for _ in range(5_000):
            response = client.post(f"{tollway.http_url}/v2/models/mlp/infer", json=body)
            if response.status_code != 200:
                assert _is_retryable(response, "metering_unavailable"), response.text
                return answered
            answered += 1
    raise AssertionError("the disk is full and calls are still served")


def test_full_disk_refuses_calls_and_recovers_without_restart(cramped: Tollway) -> None:
    """MONEY.md I33: never served unmetered."""
    key = _key(cramped)
    # The meter would delete what it has posted, and so make room.
    meter = cramped.pid_of("meter")
    os.kill(meter, signal.SIGSTOP)
    ballast = _fill(cramped.data_dir / "usage" / "w0")
    answered = _call_until_refused(cramped, key)
    assert not cramped.is_serving()
    assert cramped.read_models(key) == 200, "reads cost nothing and go on"
    pids = cramped.pids()
    ballast.unlink()
    cramped.wait(lambda: cramped.infer(key).status_code == 200, "calls to be served again")
    assert cramped.pids() == pids
    os.kill(meter, signal.SIGCONT)
    cramped.wait_until_posted()
    status = cramped.meter_status()
    assert status is not None
    assert (status["posted"], status["voided"]) == (answered + 1, 0)
    assert cramped.tollway("reconcile").returncode == 0


def test_full_disk_does_not_hold_up_the_end(cramped: Tollway) -> None:
    key = _key(cramped)
    os.kill(cramped.pid_of("meter"), signal.SIGSTOP)
    _fill(cramped.data_dir / "usage" / "w0")
    _call_until_refused(cramped, key)
    os.kill(cramped.pid_of("meter"), signal.SIGCONT)
    assert cramped.stop(signal.SIGINT, 30) == 0
