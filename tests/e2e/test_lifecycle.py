"""The life of a whole Tollway: reload, drain, quick stop, bad starts, restarts and revocation, with real processes."""

import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.e2e.crash.load import Lane, Load, fixed, request_of
from tests.e2e.crash.truth import Truth
from tests.e2e.harness import Tollway, children_of, is_running
from tests.e2e.raw import Connection, infer_body, post

pytestmark = pytest.mark.timeout(400)

#: The promise is 5 s; a busy machine, on which a round of twelve questions takes its time, gets more.
REVOKED_WITHIN_S = 20.0
QUICK_STOP_S = 3.0


@pytest.fixture
def stopped() -> Iterator[Tollway]:
    """An installation that nobody has started yet."""
    tollway = Tollway()
    try:
        yield tollway
    finally:
        tollway.close()


@pytest.fixture(scope="module")
def pair() -> Iterator[Tollway]:
    """Two workers behind the same ports."""
    with Tollway(settings={"workers": "2"}) as tollway:
        yield tollway


@pytest.fixture
def truth(tmp_path: Path) -> Iterator[Truth]:
    kept = Truth(tmp_path / "truth.jsonl")
    yield kept
    kept.close()


def _load(tollway: Tollway, truth: Truth, key: str) -> Load:
    lane = Lane(next_key=fixed("acme", key), pause_s=0.002)
    load = Load(truth, ("127.0.0.1", tollway.ports["http_port"]), tollway.grpc_address, seed=1)
    load.start([lane] * 4, [lane] * 2)
    return load


def _key(tollway: Tollway, tenant: str, plan: str = "internal") -> str:
    tollway.create_tenant(tenant, plan)
    return _settled(tollway, tollway.create_key(tenant))


def _settled(tollway: Tollway, key: str) -> str:
    """`key`, once every worker knows it: a fresh connection meets either of them."""
    tollway.wait(lambda: all(tollway.read_models(key) == 200 for _ in range(12)), "the key to reach the workers")
    return key


# -- reload and restart ------------------------------------------------------------------------------------------------


def test_reload_under_load_loses_no_call(pair: Tollway, truth: Truth) -> None:
    key = _key(pair, "acme")
    load = _load(pair, truth, key)
    assert pair.process is not None
    for _ in range(2):
        before = {role: pid for role, pid in pair.pids().items() if role.startswith("worker")}
        said = pair.says().count("every worker was replaced")
        pair.process.send_signal(signal.SIGHUP)
        pair.wait(lambda said=said: pair.says().count("every worker was replaced") > said, "the reload")  # type: ignore[misc]
        assert not set(before.values()) & set(pair.pids().values())
    load.stop()
    lost = [attempt for attempt in truth.attempts if not attempt.is_good]
    assert not lost, lost[:5]
    assert len(truth.good()) > 100
    pair.wait_until_posted()
    assert pair.tollway("reconcile").returncode == 0


def test_restart_of_the_only_worker_loses_no_connection(stopped: Tollway) -> None:
    """The supervisor keeps the sockets: who connects while no worker lives waits in the backlog and is served."""
    stopped.start()
    key = _key(stopped, "acme")
    pid = stopped.kill("worker-0")
    stopped.wait(lambda: not is_running(pid), "the worker's end")
    waiting = [socket.create_connection(("127.0.0.1", stopped.ports["http_port"]), timeout=60) for _ in range(20)]
    for connection in waiting:
        connection.sendall(request_of("mlp", key))
    replies = [connection.recv(65536) for connection in waiting]
    for connection in waiting:
        connection.close()
    # The engine's readiness must first be probed by the new worker; a 503 is an answer, a lost connection is none.
    assert {reply[:12] for reply in replies} <= {b"HTTP/1.1 200", b"HTTP/1.1 503"}
    assert all(b"tollway-call-id" in reply for reply in replies)


# -- stop --------------------------------------------------------------------------------------------------------------


def test_sigterm_finishes_calls_in_flight(stopped: Tollway) -> None:
    stopped.start()
    key = _key(stopped, "acme")
    pids = list(stopped.pids().values())
    assert stopped.process is not None
    request = request_of("mlp", key)
    with _connect(stopped) as half, _connect(stopped) as idle:
        idle.sendall(request)
        assert idle.recv(65536).startswith(b"HTTP/1.1 200")
        half.sendall(request[:-10])
        stopped.wait(lambda: _in_flight(stopped) >= 1, "the call to be seen")
        stopped.process.send_signal(signal.SIGTERM)
        assert idle.recv(65536) == b"", "a drain closes idle connections; then it waits for calls only"
        half.sendall(request[-10:])
        reply = half.recv(65536)
    assert reply.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in reply
    assert stopped.process.wait(60) == 0
    assert not any(is_running(pid) for pid in pids)
    stopped.start()
    stopped.wait_until_posted()
    status = stopped.meter_status()
    assert status is not None
    assert (status["posted"], status["voided"]) == (2, 0)


def _connect(tollway: Tollway) -> socket.socket:
    return socket.create_connection(("127.0.0.1", tollway.ports["http_port"]), timeout=60)


def _in_flight(tollway: Tollway) -> float:
    text = httpx.get(f"http://127.0.0.1:{tollway.ports['metrics_port']}/metrics", trust_env=False, timeout=60).text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("tollway_calls_in_flight"))


def test_ctrl_c_ends_at_once_and_leaves_no_process(stopped: Tollway, truth: Truth) -> None:
    stopped.start()
    key = _key(stopped, "acme")
    load = _load(stopped, truth, key)
    stopped.wait(lambda: len(truth.good()) > 20, "some calls")
    pids = [pid for child in stopped.pids().values() for pid in (child, *children_of(child))]
    # The promise is 3 s, enforced by the supervisor's own limits, which end in SIGKILL; a busy machine gets more here.
    assert stopped.stop(signal.SIGINT, 10 * QUICK_STOP_S) == 0
    assert not any(is_running(pid) for pid in pids)
    load.stop()


# -- starts that cannot be ---------------------------------------------------------------------------------------------


def _refused_start(tollway: Tollway, *words: str) -> str:
    """The one line that a start which cannot be says."""
    process = tollway.launch()
    assert process.wait(60) == 2
    lines = [line for line in tollway.says().splitlines() if line]
    assert len(lines) == 1, lines
    assert all(word in lines[0] for word in words), lines
    return lines[0]


@pytest.mark.parametrize("name", ["http_port", "grpc_port", "metrics_port", "api_port"])
def test_port_in_use_is_one_clear_line(stopped: Tollway, name: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", stopped.ports[name]))
        taken.listen()
        _refused_start(stopped, name, str(stopped.ports[name]), "in use", "--set")


def test_missing_model_repository_is_one_clear_line(stopped: Tollway) -> None:
    stopped.settings["model_repositories"] = f'["{stopped.folder / "nowhere"}"]'
    _refused_start(stopped, "nowhere", "does not exist", "make models")


def test_empty_model_repository_is_one_clear_line(stopped: Tollway) -> None:
    empty = stopped.folder / "empty"
    empty.mkdir()
    stopped.settings["model_repositories"] = f'["{empty}"]'
    _refused_start(stopped, "no model in", "make models")


@pytest.mark.parametrize(
    ("name", "value", "word"), [("workers", "0", "workers"), ("nonsense", "1", "nonsense"), ("workers", "many", "int")]
)
def test_broken_configuration_is_one_clear_line(stopped: Tollway, name: str, value: str, word: str) -> None:
    stopped.settings[name] = value
    _refused_start(stopped, word)


def test_second_start_on_one_data_directory_is_refused(pair: Tollway) -> None:
    second = Tollway(data_dir=pair.data_dir)
    try:
        assert second.launch(clear_ready=False).wait(60) == 2
        assert "already runs" in second.says().splitlines()[0]
    finally:
        second.process = None
        second.close()
    assert pair.is_serving()


# -- policy over several workers ---------------------------------------------------------------------------------------


def test_revocation_reaches_every_worker_in_time(pair: Tollway) -> None:
    pair.create_tenant("leaver")
    made = pair.create_key_whole("leaver")
    key = _settled(pair, str(made["key"]))
    pair.admin("POST", f"/admin/keys/{made['details']['key_id']}/revoke")
    revoked_s = time.monotonic()
    last_good_s = revoked_s
    # Twelve fresh connections in a row meet both workers; all of them must refuse.
    while any(status == 200 for status in [pair.read_models(key) for _ in range(12)]):
        last_good_s = time.monotonic()
        assert last_good_s - revoked_s < REVOKED_WITHIN_S
    assert {pair.read_models(key) for _ in range(12)} == {401}


def test_two_workers_share_one_limit_exactly(pair: Tollway) -> None:
    cap = 23
    pair.create_plan("few", "free", calls_per_day=cap)
    key = _key(pair, "few", "few")
    with ThreadPoolExecutor(8) as pool:
        statuses = [response.status_code for response in pool.map(lambda _: pair.infer(key), range(4 * cap))]
    assert statuses.count(200) == cap
    assert statuses.count(429) == 3 * cap
    pair.wait_until_posted()


def test_two_workers_share_the_free_plan(pair: Tollway) -> None:
    """5 calls a second, burst 10, counted over both workers by their own clock: never one more."""
    key = _key(pair, "free-rider", "free")
    begin_s = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        statuses = [status for some in pool.map(lambda _: _pipelined(pair, key, 40), range(8)) for status in some]
    took_s = time.monotonic() - begin_s
    assert 10 <= statuses.count(200) <= 11 + 5 * took_s
    assert set(statuses) == {200, 429}


def _pipelined(tollway: Tollway, key: str, count: int) -> list[int]:
    """So many calls in one go: no round trip of ours is slower than the bucket refills."""
    with Connection(tollway.ports["http_port"]) as connection:
        connection.send(post("/v2/models/mlp/infer", key, infer_body()) * count)
        return [connection.read().status for _ in range(count)]


def test_data_directory_is_private(pair: Tollway) -> None:
    assert pair.data_dir.stat().st_mode & 0o777 == 0o700
    sockets = [path for path in Path(pair.data_dir, "run").iterdir() if path.is_socket()]
    assert {path.stat().st_mode & 0o777 for path in sockets} == {0o600}
