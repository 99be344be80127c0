"""The ratios: names and bounds as the issue sets them, quotients of the right figures, absence of what is missing."""

import pytest

from loadtests.measure import Sample, Summary, summarise
from loadtests.ratios import TARGETS, added_latencies, flat_ratios


def _sample(
    scenario: str, contender: str, *, cpu_us: float | None = None, p50_us: float = 1.0, round_: int = 0
) -> Sample:
    return Sample(
        scenario=scenario,
        contender=contender,
        round=round_,
        calls=10,
        calls_per_s=10.0,
        p50_us=p50_us,
        p99_us=2 * p50_us,
        cpu_us=cpu_us,
        cpu_us_by_role={"worker": cpu_us} if cpu_us is not None else {},
    )


def _summaries() -> dict[str, dict[str, Summary]]:
    cpu = {
        "http_1k_c64": {"tollway_all": 40.0, "nginx": 25.0, "nginx_lua": 32.0, "envoy_policy": 100.0},
        "grpc_1k_c64": {"tollway_all": 30.0, "envoy": 40.0, "grpc_aio": 600.0},
    }
    samples = [
        _sample(scenario, contender, cpu_us=us) for scenario, group in cpu.items() for contender, us in group.items()
    ]
    p50 = {"direct": 20.0, "nginx": 120.0, "tollway_all": 520.0, "tollway_all_tmpfs": 220.0}
    samples += [_sample("http_1k_c1", contender, cpu_us=1.0, p50_us=us) for contender, us in p50.items()]
    return summarise(samples)


def test_keys_and_bounds_are_those_of_the_issue() -> None:
    assert {target.key: (target.bound, target.is_upper) for target in TARGETS} == {
        "http_all_on_vs_nginx": (2.0, True),
        "http_all_on_vs_nginx_lua": (1.6, True),
        "http_all_on_vs_envoy_policy": (0.6, True),
        "grpc_all_on_vs_envoy": (1.0, True),
        "grpc_all_on_vs_grpcaio": (0.1, True),
        "http_c1_added_vs_nginx": (2.5, True),
        "engine_conv_vs_raw": (0.85, False),
        "worker_rss_mb": (80.0, True),
    }


def test_every_ratio_divides_the_right_figures() -> None:
    assert flat_ratios(_summaries(), 0.9, 61.5) == pytest.approx(
        {
            "http_all_on_vs_nginx": 1.6,
            "http_all_on_vs_nginx_lua": 1.25,
            "http_all_on_vs_envoy_policy": 0.4,
            "grpc_all_on_vs_envoy": 0.75,
            "grpc_all_on_vs_grpcaio": 0.05,
            "http_c1_added_vs_nginx": 2.0,
            "engine_conv_vs_raw": 0.9,
            "worker_rss_mb": 61.5,
        }
    )


def test_added_latency_is_over_direct_and_names_the_log_on_disk() -> None:
    assert added_latencies(_summaries()) == {"nginx": 100.0, "tollway_all": 500.0, "tollway_all_tmpfs": 200.0}


def test_a_ratio_whose_part_was_not_measured_is_absent() -> None:
    summaries = _summaries()
    del summaries["grpc_1k_c64"]["envoy"]
    del summaries["http_1k_c1"]["direct"]
    found = flat_ratios(summaries, None, None)
    assert set(found) == {
        "http_all_on_vs_nginx",
        "http_all_on_vs_nginx_lua",
        "http_all_on_vs_envoy_policy",
        "grpc_all_on_vs_grpcaio",
    }


def test_a_peer_that_adds_nothing_gives_no_ratio_instead_of_a_division_by_zero() -> None:
    same = [_sample("http_1k_c1", name, p50_us=20.0) for name in ("direct", "nginx", "tollway_all_tmpfs")]
    assert flat_ratios(summarise(same), None, None) == {}


def test_bounds_count_as_met() -> None:
    by_key = {target.key: target for target in TARGETS}
    assert by_key["http_all_on_vs_nginx"].is_met(2.0)
    assert not by_key["http_all_on_vs_nginx"].is_met(2.01)
    assert by_key["engine_conv_vs_raw"].is_met(0.85)
    assert not by_key["engine_conv_vs_raw"].is_met(0.84)


def test_medians_not_means_and_roles_apart() -> None:
    samples = [_sample("s", "nginx", cpu_us=us, round_=round_) for round_, us in enumerate((10.0, 12.0, 500.0))]
    summary = summarise(samples)["s"]["nginx"]
    assert (summary.cpu_us, summary.cpu_us_range, summary.rounds) == (12.0, (10.0, 500.0), 3)
    assert summary.cpu_us_by_role == {"worker": 12.0}
