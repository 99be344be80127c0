"""All workers of a machine as one Prometheus text; counters never fall, whoever comes and goes."""

import contextlib
import socket
import struct
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from gateway.monitoring.exporter import MachineCollector, read_meter_status, read_worker, serve_metrics
from gateway.monitoring.metrics import METRICS, CallCounters

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@contextlib.contextmanager
def answering(path: Path, answer: bytes, *, is_meter: bool = False) -> Iterator[None]:
    """A unix socket that gives every client `answer`; the meter's clients ask first."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def serve() -> None:
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                with client, contextlib.suppress(OSError):
                    if is_meter:
                        (size,) = struct.unpack("<I", client.recv(4, socket.MSG_WAITALL))
                        assert msgspec.msgpack.decode(client.recv(size, socket.MSG_WAITALL)) == {"op": "status"}
                    client.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            path.unlink()


def worker(calls: int, model: str = "m") -> bytes:
    counters = CallCounters()
    for _ in range(calls):
        counters.observe("http", model, "ok", 2_000_000)
        counters.record_wait.observe_ns(1_000_000)
    return msgspec.msgpack.encode(counters.export({"tollway_connections": 3.0}, {"engine": 1.0}))


def meter(**status: int) -> bytes:
    body = msgspec.msgpack.encode(status)
    return struct.pack("<I", len(body)) + body


def collector_of(tmp_path: Path) -> MachineCollector:
    return MachineCollector(tmp_path, tmp_path / "meter.sock", lambda: [("engine", 2)])


def scrape(collector: MachineCollector) -> Samples:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    return read(generate_latest(registry).decode())


def read(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


CALLS = ("tollway_calls_total", (("code", "ok"), ("model", "m"), ("protocol", "http")))


def test_workers_are_added_up_and_gauges_kept_apart(tmp_path: Path) -> None:
    with answering(tmp_path / "worker-0.sock", worker(2)), answering(tmp_path / "worker-1.sock", worker(3)):
        found = scrape(collector_of(tmp_path))
    assert found[CALLS] == 5
    assert found["tollway_connections", (("worker", "worker-0"),)] == 3
    assert found["tollway_connections", (("worker", "worker-1"),)] == 3
    assert found["tollway_backend_up", (("backend", "engine"), ("worker", "worker-1"))] == 1
    assert found["tollway_workers", ()] == 2
    assert found["tollway_process_restarts_total", (("role", "engine"),)] == 2
    labels = CALLS[1]
    assert found["tollway_call_duration_seconds_count", labels] == 5
    assert found["tollway_call_duration_seconds_sum", labels] == pytest.approx(0.01)
    assert found["tollway_record_wait_seconds_count", ()] == 5


def test_buckets_are_cumulative(tmp_path: Path) -> None:
    with answering(tmp_path / "worker-0.sock", worker(4)):
        found = scrape(collector_of(tmp_path))
    buckets = {
        dict(labels)["le"]: value
        for (name, labels), value in found.items()
        if name == "tollway_call_duration_seconds_bucket"
    }
    assert (buckets["0.001"], buckets["0.0025"], buckets["+Inf"]) == (0, 4, 4)
    assert list(buckets.values()) == sorted(buckets.values())


def test_counters_do_not_fall_when_a_worker_goes_and_another_comes(tmp_path: Path) -> None:
    collector = collector_of(tmp_path)
    with answering(tmp_path / "worker-0.sock", worker(5)):
        assert scrape(collector)[CALLS] == 5
    found = scrape(collector)
    assert found[CALLS] == 5
    assert found["tollway_record_wait_seconds_count", ()] == 5
    assert found["tollway_workers", ()] == 0
    with answering(tmp_path / "worker-1.sock", worker(2)):
        assert scrape(collector)[CALLS] == 7
        assert scrape(collector)[CALLS] == 7


@pytest.mark.parametrize("rubbish", [b"", b"\xc1", b"\xa1\xff", b"\x91" * 5000, msgspec.msgpack.encode({"calls": 1})])
def test_a_worker_that_answers_rubbish_is_left_out(tmp_path: Path, rubbish: bytes) -> None:
    with answering(tmp_path / "worker-0.sock", rubbish), answering(tmp_path / "worker-1.sock", worker(1)):
        found = scrape(collector_of(tmp_path))
    assert found["tollway_workers", ()] == 1
    assert found[CALLS] == 1


def test_a_stale_socket_file_is_no_worker(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(tmp_path / "worker-9.sock"))
    assert scrape(collector_of(tmp_path))["tollway_workers", ()] == 0


def test_the_meter_says_how_far_it_is(tmp_path: Path) -> None:
    answer = meter(lag_records=7, posted=5, voided=1, quarantined=0)
    with answering(tmp_path / "meter.sock", answer, is_meter=True):
        found = scrape(collector_of(tmp_path))
    assert found["tollway_meter_lag_records", ()] == 7
    assert found["tollway_meter_events_total", (("fate", "posted"),)] == 5
    assert found["tollway_meter_events_total", (("fate", "voided"),)] == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x01",
        meter()[:-1],
        struct.pack("<I", 1 << 31),
        struct.pack("<I", 2) + b"\xa1\xff",
        struct.pack("<I", 1) + b"\x01",
    ],
)
def test_a_meter_that_cannot_be_read_is_absent_not_an_error(tmp_path: Path, answer: bytes) -> None:
    with answering(tmp_path / "meter.sock", answer, is_meter=True):
        found = scrape(collector_of(tmp_path))
    assert not [name for name, _ in found if name.startswith("tollway_meter")]


def test_nobody_at_all_is_a_scrape_too(tmp_path: Path) -> None:
    found = scrape(collector_of(tmp_path))
    assert found["tollway_workers", ()] == 0


def test_every_exported_name_is_declared(tmp_path: Path) -> None:
    with answering(tmp_path / "worker-0.sock", worker(1)), answering(tmp_path / "meter.sock", meter(), is_meter=True):
        found = scrape(collector_of(tmp_path))
    names = {name for name, _ in found}
    bases = {name.removesuffix("_bucket").removesuffix("_count").removesuffix("_sum") for name in names}
    assert {name for name in bases if name.startswith("tollway")} <= set(METRICS)


def test_single_answers(tmp_path: Path) -> None:
    with answering(tmp_path / "worker-0.sock", worker(1)):
        assert read_worker(tmp_path / "worker-0.sock").calls == {"http\0m\0ok": 1}
    with answering(tmp_path / "meter.sock", meter(lag_records=1), is_meter=True):
        assert read_meter_status(tmp_path / "meter.sock") == {"lag_records": 1}
    with pytest.raises(OSError):
        read_worker(tmp_path / "worker-0.sock")


def test_the_page_is_served_and_ends(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    stop = serve_metrics("127.0.0.1", port, collector_of(tmp_path))
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
            assert read(answer.read().decode())["tollway_workers", ()] == 0
    finally:
        stop()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1)
