"""The supervisor without its children: what it takes, how it refuses, in which order it stops."""

import asyncio
import json
import os
import signal
import socket
import stat
from itertools import pairwise
from pathlib import Path
from typing import cast

import pytest

from gateway.children import Child
from gateway.errors import SettingsError
from gateway.net.tls import tls_context
from gateway.settings import Backend, Settings, parse_settings
from gateway.supervisor import (
    AlreadyRunning,
    Supervisor,
    bind_socket,
    check_models,
    check_port_free,
    make_folders,
    running_pid,
)
from tests.e2e.harness import free_ports
from tests.leaks import assert_none_left, held


def settings_of(tmp_path: Path, **changes: object) -> Settings:
    """No engine, free ports: nothing needs a model."""
    values: dict[str, object] = {
        "data_dir": tmp_path / "data",
        "engine": False,
        "backends": (Backend(name="b", http="http://127.0.0.1:1"),),
        "http_port": 0,
        "grpc_port": 0,
        "metrics_port": free_ports(1)[0],
        "api_port": free_ports(1)[0],
    }
    return Settings(**(values | changes))  # type: ignore[arg-type]


def supervisor_of(tmp_path: Path, **changes: object) -> Supervisor:
    return Supervisor(settings_of(tmp_path, **changes), lambda text: None)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_listening_socket_can_be_shared_by_workers(host: str) -> None:
    with bind_socket(host, 0, "http_port") as first, bind_socket(host, first.getsockname()[1], "http_port") as second:
        assert second.getsockname()[1] == first.getsockname()[1]
        with socket.create_connection((host, first.getsockname()[1]), timeout=60):
            pass


def test_a_port_in_use_is_named_with_the_remedy() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for refuse in (bind_socket, check_port_free):
            with pytest.raises(SettingsError, match=f"http_port = {port}.*--set http_port"):
                refuse("127.0.0.1", port, "http_port")


def test_a_shared_port_is_refused_though_the_system_would_share_it() -> None:
    with bind_socket("127.0.0.1", 0, "http_port") as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match="in use"):
            check_port_free("127.0.0.1", port, "http_port")
    check_port_free("127.0.0.1", port, "http_port")
    check_port_free("127.0.0.1", 0, "http_port")


def test_prepared_is_private_and_tells_where_it_listens(tmp_path: Path) -> None:
    supervisor = supervisor_of(tmp_path, workers=2)
    supervisor.prepare()
    try:
        settings = supervisor.settings
        for folder in (settings.data_dir, settings.run_dir, settings.usage_root, settings.data_dir / "log"):
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        file = settings.run_dir / "settings.json"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert parse_settings(file.read_bytes()) == settings
        ports = json.loads((settings.run_dir / "ports.json").read_bytes())
        assert (ports["http"], ports["grpc"]) == (supervisor.http_port, supervisor.grpc_port)
        assert len(supervisor.http_sockets) == len(supervisor.grpc_sockets) == 2
        assert {sock.getsockname()[1] for sock in supervisor.http_sockets} == {supervisor.http_port}
    finally:
        supervisor.release()


def test_a_data_directory_has_one_supervisor(tmp_path: Path) -> None:
    first, second = supervisor_of(tmp_path), supervisor_of(tmp_path)
    data_dir = first.settings.data_dir
    assert running_pid(data_dir) is None
    first.prepare()
    try:
        assert running_pid(data_dir) == os.getpid()
        with pytest.raises(AlreadyRunning, match=f"pid {os.getpid()}.*tollway down"):
            second.prepare()
    finally:
        first.release()
    assert running_pid(data_dir) is None
    second.prepare()
    second.release()


def test_release_may_be_called_at_any_time_and_leaves_nothing_open(tmp_path: Path) -> None:
    supervisor = supervisor_of(tmp_path)
    supervisor.release()
    before = held()
    for _ in range(50):
        again = supervisor_of(tmp_path, workers=3)
        again.prepare()
        again.release()
        again.release()
    assert_none_left(before, 50)


def test_a_failed_prepare_can_be_released_and_tried_again(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        supervisor = supervisor_of(tmp_path, api_port=taken.getsockname()[1])
        with pytest.raises(SettingsError, match="api_port"):
            supervisor.prepare()
        supervisor.release()
    other = supervisor_of(tmp_path)
    other.prepare()
    other.release()


def test_missing_models_are_told_with_the_remedy(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    settings = settings_of(tmp_path, model_repositories=(repository,))
    with pytest.raises(SettingsError, match=r"does not exist.*make models"):
        check_models(settings)
    repository.mkdir()
    (repository / "README.md").touch()
    with pytest.raises(SettingsError, match=r"no model in .*make models"):
        check_models(settings)
    (repository / "m").mkdir()
    (repository / "m" / "config.pbtxt").touch()
    check_models(settings)


def test_the_engine_is_told_its_repositories(tmp_path: Path) -> None:
    supervisor = supervisor_of(
        tmp_path,
        model_repositories=(tmp_path / "a", tmp_path / "b"),
        python_models_allowed=(tmp_path / "a",),
        engine_threads=3,
    )
    command = supervisor._engine_command(7)
    pairs = list(pairwise(command))
    assert ("--ready-fd", "7") in pairs
    assert [value for option, value in pairs if option == "--repository"] == [str(tmp_path / "a"), str(tmp_path / "b")]
    assert ("--python-models-allowed", str(tmp_path / "a")) in pairs
    assert ("--threads", "3") in pairs
    assert "--threads" not in supervisor_of(tmp_path)._engine_command(7)


def test_the_engine_is_told_what_it_asks_of_versions(tmp_path: Path) -> None:
    key = "ed25519:" + "A" * 43 + "="
    supervisor = supervisor_of(
        tmp_path,
        trusted_model_keys=(key,),
        approval_required=True,
        engine_golden_check_s=1.5,
        engine_release_poll_s=0.0,
    )
    command = supervisor._engine_command(7)
    pairs = list(pairwise(command))
    assert ("--trusted-model-key", key) in pairs
    assert "--approval-required" in command
    assert ("--golden-check-s", "1.5") in pairs
    assert ("--release-poll-s", "0.0") in pairs
    stored = list(pairwise(supervisor_of(tmp_path, model_store="s3://bucket/models")._engine_command(7)))
    assert ("--model-store", "s3://bucket/models") in stored
    assert ("--model-store-poll-s", "30.0") in stored
    assert any(option == "--mirror" and value.endswith("/models") for option, value in stored)
    plain = supervisor_of(tmp_path)._engine_command(7)
    assert "--model-store" not in plain
    assert "--approval-required" not in plain
    assert "--trusted-model-key" not in plain


def test_meter_and_engine_run_compiled_modules_until_they_are_switched_off(tmp_path: Path) -> None:
    supervisor = supervisor_of(tmp_path, compiled="off")
    supervisor._compiled = tmp_path / "built"
    meter = supervisor.children["meter"] = supervisor._meter()
    engine = supervisor.children["engine"] = supervisor._engine()
    assert meter.compiled == engine.compiled == tmp_path / "built"
    supervisor._look_for_compiled()
    assert meter.compiled is None
    assert engine.compiled is None


class StubbornChild:
    """Writes down when it was stopped and how."""

    def __init__(self, role: str, journal: list[tuple[str, int, float]]) -> None:
        self.role = role
        self._journal = journal

    async def stop(self, number: int, limit_s: float) -> bool:
        self._journal.append((self.role, number, limit_s))
        await asyncio.sleep(0)
        self._journal.append((f"{self.role} ended", number, limit_s))
        return True


def stopped(tmp_path: Path, number: int) -> list[tuple[str, int, float]]:
    journal: list[tuple[str, int, float]] = []

    async def run() -> None:
        supervisor = supervisor_of(tmp_path)
        supervisor.prepare()
        for role in ("control", "meter", "quota", "engine"):
            supervisor.children[role] = cast("Child", StubbornChild(role, journal))
        for index in range(2):
            supervisor.workers[index] = cast("Child", StubbornChild(f"worker-{index}", journal))
        supervisor.stop_signal = number
        await supervisor.stop()
        assert running_pid(supervisor.settings.data_dir) is None

    asyncio.run(run())
    return journal


def test_an_orderly_stop_ends_workers_first_and_the_meter_last(tmp_path: Path) -> None:
    order = [role for role, *_ in stopped(tmp_path, signal.SIGTERM)]
    assert order.index("worker-1") < order.index("worker-0 ended"), "workers drain side by side"
    assert max(order.index(f"worker-{index} ended") for index in range(2)) < order.index("engine")
    for role in ("engine", "quota"):
        assert order.index(f"{role} ended") < order.index("meter")
        assert order.index(f"{role} ended") < order.index("control")


def test_an_orderly_stop_gives_calls_their_time_and_ctrl_c_does_not(tmp_path: Path) -> None:
    patient = {role: (number, limit_s) for role, number, limit_s in stopped(tmp_path, signal.SIGTERM)}
    assert patient["worker-0"][0] == signal.SIGTERM
    assert patient["worker-0"][1] > Settings().limits.drain_s
    quick = {role: (number, limit_s) for role, number, limit_s in stopped(tmp_path, signal.SIGINT)}
    assert quick["worker-0"][0] == signal.SIGINT
    # All within the three seconds that Ctrl-C is promised to take.
    assert quick["worker-0"][1] + max(quick[role][1] for role in ("engine", "quota", "control", "meter")) <= 3


def test_a_second_signal_changes_nothing(tmp_path: Path) -> None:
    async def run() -> None:
        supervisor = supervisor_of(tmp_path)
        supervisor._stop = asyncio.get_running_loop().create_future()
        supervisor._on_stop(signal.SIGTERM, None)
        supervisor._on_stop(signal.SIGTERM, None)
        assert await supervisor._stop == 0

    asyncio.run(run())


def test_a_signal_while_starting_cancels_the_start(tmp_path: Path) -> None:
    async def run() -> None:
        supervisor = supervisor_of(tmp_path)

        async def start() -> int:
            await asyncio.get_running_loop().create_future()
            return 0

        task = asyncio.create_task(start())
        await asyncio.sleep(0)
        supervisor._on_stop(signal.SIGINT, task)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert supervisor.stop_signal == signal.SIGINT

    asyncio.run(run())


def test_a_second_reload_waits_for_the_first(tmp_path: Path) -> None:
    """Two at once would each start a worker, and one of them would be nobody's."""

    async def run() -> None:
        supervisor = supervisor_of(tmp_path)
        running, most = 0, 0
        gate = asyncio.Event()
        rounds = 0

        async def reload() -> None:
            nonlocal running, most, rounds
            running += 1
            rounds += 1
            most = max(most, running)
            await gate.wait()
            running -= 1

        supervisor.reload = reload  # type: ignore[method-assign]  # only the order of reloads is looked at
        supervisor._on_hup()
        await asyncio.sleep(0)
        supervisor._on_hup()
        supervisor._on_hup()
        gate.set()
        assert supervisor._reloading is not None
        await supervisor._reloading
        assert (most, rounds) == (1, 2)

    asyncio.run(run())


def test_a_path_too_long_for_sockets_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="too long"):
        make_folders(settings_of(tmp_path, data_dir=tmp_path / ("d" * 90)))


def test_tls_files_that_cannot_be_used_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="tls_certificate"):
        tls_context(tmp_path / "none.pem", tmp_path / "none.key")
