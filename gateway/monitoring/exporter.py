"""Owns :8002: merges what workers, meter and supervisor know into the Prometheus text of one machine.

Exposition is prometheus_client's; it calls `collect` in its own thread at each scrape. A worker that does not answer in
time is left out of that scrape and `tollway_workers` says so.
"""

import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gateway.monitoring.histograms import DURATION_BOUNDS_S, Histogram, WorkerMetrics
from gateway.monitoring.metrics import METRICS

#: In the run directory, while limits are decided at a store that hosts share.
QUOTA_STATUS_SOCKET: Final = "quota-status.sock"
_QUOTA_BYTES_MAX: Final = 64 * 1024
_SCRAPE_S: Final = 2.0
_ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
#: A process that is gone, or whose answer is no answer.
_UNREADABLE: Final = (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def read_worker(path: Path) -> WorkerMetrics:
    """Ask one worker. Raises OSError or msgspec.DecodeError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(_SCRAPE_S)
        sock.connect(str(path))
        data = bytearray()
        while chunk := sock.recv(65536):
            data += chunk
            if len(data) > _ANSWER_BYTES_MAX:
                raise OSError("metrics answer too large")
    return msgspec.msgpack.decode(data, type=WorkerMetrics)


def read_meter_status(path: Path) -> dict[str, Any]:
    """The meter's `status` answer. Raises OSError or msgspec.DecodeError."""
    request = msgspec.msgpack.encode({"op": "status"})
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(_SCRAPE_S)
        sock.connect(str(path))
        sock.sendall(struct.pack("<I", len(request)) + request)
        (size,) = struct.unpack("<I", _read_exactly(sock, 4))
        if size > _ANSWER_BYTES_MAX:
            raise OSError("meter answer too large")
        return msgspec.msgpack.decode(_read_exactly(sock, size), type=dict[str, Any])


def _read_exactly(sock: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        chunk = sock.recv(count - len(data))
        if not chunk:
            raise OSError("the meter closed the connection")
        data += chunk
    return bytes(data)


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """Cumulative buckets as the exposition wants them."""
    bounds = [*(str(bound) for bound in DURATION_BOUNDS_S), "+Inf"]
    total = 0
    rows = []
    for bound, count in zip(bounds, histogram.buckets, strict=True):
        total += count
        rows.append((bound, float(total)))
    return rows


class MachineCollector(Collector):
    """Merges at scrape time; keeps nothing but the totals of workers that ended, so that counters never fall."""

    def __init__(
        self,
        run_dir: Path,
        meter_socket: Path,
        restarts: Callable[[], Iterable[tuple[str, int]]],
    ) -> None:
        self._run_dir = run_dir
        self._meter_socket = meter_socket
        self._restarts = restarts
        self._last: dict[str, WorkerMetrics] = {}
        self._gone: dict[str, Histogram] = {}
        self._gone_wait = Histogram.empty()

    def collect(self) -> Iterator[Metric]:
        alive = self._read_workers()
        yield from self._calls(alive)
        yield from self._gauges(alive)
        yield from self._meter()
        yield from self._quota_store()
        restarts = _counter("tollway_process_restarts_total", ["role"])
        for role, count in self._restarts():
            restarts.add_metric([role], float(count))
        yield restarts

    def _read_workers(self) -> dict[str, WorkerMetrics]:
        alive: dict[str, WorkerMetrics] = {}
        for path in sorted(self._run_dir.glob("worker-*.sock")):
            try:
                alive[path.name] = read_worker(path)
            except _UNREADABLE:
                continue  # ended or ending: what it last said is kept below
        for name in [one for one in self._last if one not in alive]:
            gone = self._last.pop(name)
            for key, histogram in gone.durations.items():
                self._gone.setdefault(key, Histogram.empty()).merge(histogram)
            self._gone_wait.merge(gone.record_wait)
        self._last.update(alive)
        return alive

    def _calls(self, alive: dict[str, WorkerMetrics]) -> Iterator[Metric]:
        merged: dict[str, Histogram] = {}
        wait = Histogram.empty()
        wait.merge(self._gone_wait)
        for key, histogram in self._gone.items():
            merged.setdefault(key, Histogram.empty()).merge(histogram)
        for worker in alive.values():
            wait.merge(worker.record_wait)
            for key, histogram in worker.durations.items():
                merged.setdefault(key, Histogram.empty()).merge(histogram)
        calls = _counter("tollway_calls_total", ["protocol", "model", "code"])
        durations = _histogram("tollway_call_duration_seconds", ["protocol", "model", "code"])
        for key, histogram in sorted(merged.items()):
            labels = key.split("\0")
            calls.add_metric(labels, float(sum(histogram.buckets)))
            durations.add_metric(labels, _buckets(histogram), histogram.sum_ns / 1e9)
        yield calls
        yield durations
        record_wait = _histogram("tollway_record_wait_seconds", [])
        record_wait.add_metric([], _buckets(wait), wait.sum_ns / 1e9)
        yield record_wait

    def _gauges(self, alive: dict[str, WorkerMetrics]) -> Iterator[Metric]:
        names = sorted({name for worker in alive.values() for name in worker.gauges})
        for name in names:
            gauge = _gauge(name, ["worker"])
            for path, worker in alive.items():
                gauge.add_metric([path.removesuffix(".sock")], worker.gauges.get(name, 0.0))
            yield gauge
        up = _gauge("tollway_backend_up", ["worker", "backend"])
        for path, worker in alive.items():
            for backend, value in worker.backends.items():
                up.add_metric([path.removesuffix(".sock"), backend], value)
        yield up
        count = _gauge("tollway_workers", [])
        count.add_metric([], float(len(alive)))
        yield count

    def _meter(self) -> Iterator[Metric]:
        try:
            status = read_meter_status(self._meter_socket)
        except _UNREADABLE:
            return  # no meter (metering off) or it is restarting: absent series say so
        lag = _gauge("tollway_meter_lag_records", [])
        lag.add_metric([], float(status.get("lag_records", 0)))
        yield lag
        events = _counter("tollway_meter_events_total", ["fate"])
        for fate in ("posted", "voided", "quarantined"):
            events.add_metric([fate], float(status.get(fate, 0)))
        yield events

    def _quota_store(self) -> Iterator[Metric]:
        try:
            status = read_quota_status(self._run_dir / QUOTA_STATUS_SOCKET)
        except _UNREADABLE:
            return  # limits are this machine's own, or the owner is restarting: absent series say so
        for name in ("up", "hosts"):
            gauge = _gauge(f"tollway_quota_store_{name}", [])
            gauge.add_metric([], float(status.get("is_up" if name == "up" else name, 0)))
            yield gauge
        for name in ("round_trips", "commands", "losses", "failures"):
            counter = _counter(f"tollway_quota_store_{name}_total", [])
            counter.add_metric([], float(status.get(name, 0)))
            yield counter
        wait = _counter("tollway_quota_store_wait_seconds_total", [])
        wait.add_metric([], status.get("wait_ns", 0) / 1e9)
        yield wait


def read_quota_status(path: Path) -> dict[str, Any]:
    """The quota owner's figures of a shared store. Raises OSError or msgspec.DecodeError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(_SCRAPE_S)
        sock.connect(str(path))
        data = bytearray()
        while chunk := sock.recv(4096):
            data += chunk
            if len(data) > _QUOTA_BYTES_MAX:
                raise OSError("the quota owner's answer is too large")
    return msgspec.msgpack.decode(data, type=dict[str, Any])


def _counter(name: str, labels: list[str]) -> CounterMetricFamily:
    return CounterMetricFamily(name, METRICS[name][1], labels=labels)


def _gauge(name: str, labels: list[str]) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, METRICS[name][1], labels=labels)


def _histogram(name: str, labels: list[str]) -> HistogramMetricFamily:
    return HistogramMetricFamily(name, METRICS[name][1], labels=labels)


def serve_metrics(host: str, port: int, collector: MachineCollector) -> Callable[[], None]:
    """Serve /metrics in a thread; returns what stops it. Raises OSError when the port is taken."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    server, thread = start_http_server(port, addr=host, registry=registry)

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join(timeout=2)

    return stop
