"""Counters of the hot path: exact, with labels from bounded sets."""

import msgspec
import pytest

from gateway.monitoring.histograms import DURATION_BOUNDS_S, WorkerMetrics
from gateway.monitoring.metrics import METRICS, MODELS_MAX, CallCounters, Cell


def bucket_of(duration_ns: int) -> int:
    histogram = Cell()
    histogram.observe_ns(duration_ns)
    assert sum(histogram.buckets) == 1
    return histogram.buckets.index(1)


@pytest.mark.parametrize(("index", "bound_s"), list(enumerate(DURATION_BOUNDS_S)))
def test_a_bound_belongs_to_its_own_bucket(index: int, bound_s: float) -> None:
    bound_ns = int(bound_s * 1e9)
    assert bucket_of(bound_ns) == index
    assert bucket_of(bound_ns + 1) == index + 1


def test_the_first_and_the_last_bucket_take_everything_beyond() -> None:
    assert bucket_of(0) == 0
    assert bucket_of(10**15) == len(DURATION_BOUNDS_S)


def test_histograms_add_up() -> None:
    first, second = Cell(), Cell()
    for duration_ns in (1, 10**6, 10**9):
        first.observe_ns(duration_ns)
        second.observe_ns(duration_ns * 2)
    one, other = first.histogram(), second.histogram()
    first.observe_ns(1)  # a scrape's copy is not the cell
    one.merge(other)
    assert sum(one.buckets) == 6
    assert one.sum_ns == 3 * (1 + 10**6 + 10**9)
    assert sum(other.buckets) == 3


def test_calls_are_counted_by_protocol_model_and_code() -> None:
    counters = CallCounters()
    for _ in range(3):
        counters.observe("http", "m", "ok", 1000)
    counters.observe("grpc", "m", "ok", 2000)
    counters.observe("http", "m", "rate_exceeded", 1)
    made = counters.export({"tollway_connections": 2.0}, {"engine": 1.0})
    assert made.calls == {"http\0m\0ok": 3, "grpc\0m\0ok": 1, "http\0m\0rate_exceeded": 1}
    assert made.durations["http\0m\0ok"].sum_ns == 3000
    assert (made.gauges, made.backends) == ({"tollway_connections": 2.0}, {"engine": 1.0})


def test_the_model_label_is_bounded_and_no_call_is_lost() -> None:
    counters = CallCounters()
    for number in range(MODELS_MAX * 2):
        counters.observe("http", f"m{number}", "ok", 1)
        counters.observe("http", f"m{number}", "ok", 1)
    made = counters.export({}, {})
    models = {key.split("\0")[1] for key in made.calls}
    assert len(models) == MODELS_MAX + 1
    assert made.calls["http\0other\0ok"] == 2 * MODELS_MAX
    assert sum(made.calls.values()) == 4 * MODELS_MAX


def test_a_known_model_keeps_its_name_when_the_table_is_full() -> None:
    counters = CallCounters()
    for number in range(MODELS_MAX):
        counters.observe("http", f"m{number}", "ok", 1)
    counters.observe("http", "m0", "internal", 1)
    counters.observe("http", "new", "ok", 1)
    made = counters.export({}, {})
    assert made.calls["http\0m0\0internal"] == 1
    assert made.calls["http\0other\0ok"] == 1


def test_a_scrape_travels_as_msgpack() -> None:
    counters = CallCounters()
    counters.observe("http", "m", "ok", 5)
    counters.record_wait.observe_ns(7)
    made = counters.export({"g": 1.5}, {})
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(made), type=WorkerMetrics) == made


def test_names_and_kinds_follow_the_rules_of_prometheus() -> None:
    for name, (kind, text) in METRICS.items():
        assert name.startswith("tollway_")
        assert kind in ("counter", "gauge", "histogram")
        assert name.endswith("_total") == (kind == "counter")
        assert text.endswith(".")
