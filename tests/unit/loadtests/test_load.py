"""What the load generators print becomes figures; what they cannot print becomes an error."""

import pytest

from loadtests.load import parse_h2load, parse_wrk, percentile
from loadtests.processes import BenchError

_WRK = """Running 1s test @ http://127.0.0.1:1/
  1 threads and 64 connections
BENCH {"calls":1000,"duration_us":2000000,"p50_us":150,"p99_us":900,"not_ok":3,"broken":2}
"""
_H2LOAD = """starting benchmark...
finished in 240.43ms, 2079.64 req/s, 2.11MB/s
requests: 500 total, 500 started, 500 done, 498 succeeded, 2 failed, 0 errored, 0 timeout
"""


def test_wrk_counts_refused_and_broken_calls_as_failed() -> None:
    result = parse_wrk(_WRK)
    assert (result.calls, result.failed) == (997, 5)
    assert (result.seconds, result.p50_us, result.p99_us) == (2.0, 150.0, 900.0)


def test_wrk_without_figures_is_an_error() -> None:
    with pytest.raises(BenchError, match="no figures"):
        parse_wrk("unable to connect")


def test_h2load_takes_percentiles_from_its_log() -> None:
    log = "".join(f"1700000000000000\t200\t{duration}\n" for duration in range(100, 0, -1))
    result = parse_h2load(_H2LOAD, log)
    assert (result.calls, result.failed) == (498, 2)
    assert result.seconds == pytest.approx(0.24043)
    assert (result.p50_us, result.p99_us) == (50.0, 99.0)


def test_h2load_without_log_has_no_percentiles() -> None:
    assert parse_h2load(_H2LOAD, "").p50_us is None


def test_h2load_without_figures_is_an_error() -> None:
    with pytest.raises(BenchError, match="no figures"):
        parse_h2load("could not connect", "")


@pytest.mark.parametrize(("percent", "expected"), [(1, 1.0), (50, 2.0), (75, 3.0), (99, 4.0), (100, 4.0)])
def test_percentile_is_the_nearest_rank(percent: int, expected: float) -> None:
    assert percentile([1, 2, 3, 4], percent) == expected


def test_percentile_of_nothing_is_none() -> None:
    assert percentile([], 50) is None
