"""What an operator sees of a shared quota store: `tollway doctor`'s finding, the owner's figures as metrics."""

import asyncio
import tempfile
from pathlib import Path

import pytest

from gateway.commands.doctor import examine
from gateway.errors import SettingsError
from gateway.monitoring.exporter import QUOTA_STATUS_SOCKET, MachineCollector
from gateway.quota.probe_redis import CLOCK_S_MAX, check_store, judge, read_info
from gateway.quota.status import serve_figures
from gateway.quota.store_keeper import Figures
from gateway.settings import Settings
from tests.unit.quota.valkey import valkey


def test_doctor_reaches_the_store_and_names_what_is_wrong(tmp_path: Path) -> None:
    def finding() -> tuple[bool, str]:
        settings = Settings(data_dir=tmp_path / "d", quota_store=url, engine=False)
        (found,) = (one for one in examine(settings) if one.name == "quota_store")
        return found.is_good, found.text

    with valkey("--requirepass", "hidden") as one:
        url = f"redis+unix://:hidden@{one.socket}"
        is_good, text = finding()
        assert is_good, text
        assert "valkey 9" in text
        with one.client(password="hidden") as client:
            client.config_set("maxmemory", 10**8)
            client.config_set("maxmemory-policy", "allkeys-lru")
        is_good, text = finding()
        assert not is_good
        assert "noeviction" in text
        url = f"redis+unix://:wrong@{one.socket}"
        is_good, text = finding()
        assert not is_good
        assert "wrong" not in text
        url = f"redis+unix://{one.socket}.gone"
        assert finding()[0] is False


def test_a_store_that_does_not_answer_says_what_to_do() -> None:
    with valkey("--requirepass", "hidden") as one, pytest.raises(SettingsError, match="correct quota_store"):
        check_store(one.address)


@pytest.mark.parametrize(
    ("facts", "store_s", "words"),
    [
        ({}, 10.0, []),
        ({"redis_version": "6.0.9"}, 10.0, ["too old"]),
        ({"redis_version": "6.2.0"}, 10.0, []),
        ({"role": "slave"}, 10.0, ["it is a replica"]),
        ({"cluster_enabled": "1"}, 10.0, ["cluster node"]),
        ({"maxmemory": "1", "maxmemory_policy": "volatile-ttl"}, 10.0, ["set noeviction"]),
        ({"maxmemory": "0", "maxmemory_policy": "volatile-ttl"}, 10.0, []),
        ({}, 10.5 + CLOCK_S_MAX, []),
        ({}, 10.6 + CLOCK_S_MAX, ["s apart"]),
        ({}, 8.9, ["s apart"]),
    ],
)
def test_facts_are_judged(facts: dict[str, str], store_s: float, words: list[str]) -> None:
    problems = judge({"redis_version": "7.2.4"} | facts, store_s, 10.0, 10.5)
    assert len(problems) == len(words)
    assert all(word in problem for word, problem in zip(words, problems, strict=True))


def test_info_is_read_whatever_is_in_it() -> None:
    assert read_info(b"# Server\r\na:1\r\nb:x:y\r\n\r\n\xff:2\r\n") == {"a": "1", "b": "x:y", "�": "2"}


def test_the_owners_figures_are_metrics() -> None:
    folder = Path(tempfile.mkdtemp(prefix="qs"))
    figures = Figures(is_up=True, hosts=3, commands=40, round_trips=7, wait_ns=2_500_000_000, losses=2, failures=1)

    def collect() -> dict[str, float]:
        collector = MachineCollector(folder, folder / "meter.sock", list)
        return {
            sample.name: sample.value
            for metric in collector.collect()
            for sample in metric.samples
            if sample.name.startswith("tollway_quota_store")
        }

    async def main() -> dict[str, float]:
        server = await serve_figures(folder / QUOTA_STATUS_SOCKET, figures)
        try:
            return await asyncio.get_running_loop().run_in_executor(None, collect)
        finally:
            server.close()
            await server.wait_closed()

    assert asyncio.run(main()) == {
        "tollway_quota_store_up": 1.0,
        "tollway_quota_store_hosts": 3.0,
        "tollway_quota_store_commands_total": 40.0,
        "tollway_quota_store_round_trips_total": 7.0,
        "tollway_quota_store_wait_seconds_total": 2.5,
        "tollway_quota_store_losses_total": 2.0,
        "tollway_quota_store_failures_total": 1.0,
    }
    (folder / QUOTA_STATUS_SOCKET).unlink(missing_ok=True)
    assert collect() == {}
    folder.rmdir()
