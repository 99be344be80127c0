"""Owns the targets: which figures are divided, and what the quotient must reach. Pure arithmetic over summaries."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from loadtests.measure import Summary

Summaries = Mapping[str, Mapping[str, Summary]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A ratio's bound. `is_upper`: at most `bound`, else at least."""

    key: str
    what: str
    bound: float
    is_upper: bool = True

    def is_met(self, value: float) -> bool:
        return value <= self.bound if self.is_upper else value >= self.bound

    @property
    def text(self) -> str:
        return f"{'≤' if self.is_upper else '≥'} {self.bound:g}"


TARGETS: Final = (
    Target(key="http_all_on_vs_nginx", what="HTTP 1 KB all on, CPU ÷ nginx plain", bound=2.0),
    Target(key="http_all_on_vs_nginx_lua", what="HTTP 1 KB all on, CPU ÷ nginx + Lua", bound=1.6),
    Target(key="http_all_on_vs_envoy_policy", what="HTTP 1 KB all on, CPU ÷ Envoy with policy", bound=0.6),
    Target(key="grpc_all_on_vs_envoy", what="gRPC 1 KB all on, CPU ÷ Envoy plain", bound=1.0),
    Target(key="grpc_all_on_vs_grpcaio", what="gRPC 1 KB all on, CPU ÷ grpc.aio proxy", bound=0.1),
    Target(key="http_c1_added_vs_nginx", what="added p50 at c=1, log on tmpfs, ÷ nginx's", bound=2.5),
    Target(key="engine_conv_vs_raw", what="convnet items/s through the gateway ÷ raw loop", bound=0.85, is_upper=False),
    Target(key="worker_rss_mb", what="worker RSS after the memory scenario, MB", bound=80.0),
)
#: ratio → (scenario, contender divided by). The dividend is "tollway_all".
_CPU_RATIOS: Final = {
    "http_all_on_vs_nginx": ("http_1k_c64", "nginx"),
    "http_all_on_vs_nginx_lua": ("http_1k_c64", "nginx_lua"),
    "http_all_on_vs_envoy_policy": ("http_1k_c64", "envoy_policy"),
    "grpc_all_on_vs_envoy": ("grpc_1k_c64", "envoy"),
    "grpc_all_on_vs_grpcaio": ("grpc_1k_c64", "grpc_aio"),
}
_C1: Final = "http_1k_c1"


def _cpu(summaries: Summaries, scenario: str, contender: str) -> float | None:
    summary = summaries.get(scenario, {}).get(contender)
    return None if summary is None else summary.cpu_us


def added_p50_us(summaries: Summaries, contender: str, scenario: str = _C1) -> float | None:
    """Latency at c=1 that a contender adds to the backend's own."""
    found = summaries.get(scenario, {})
    if contender not in found or "direct" not in found:
        return None
    p50, direct = found[contender].p50_us, found["direct"].p50_us
    return None if p50 is None or direct is None else p50 - direct


def _quotient(dividend: float | None, divisor: float | None) -> float | None:
    return None if dividend is None or divisor is None or divisor <= 0 else dividend / divisor


def flat_ratios(summaries: Summaries, engine_ratio: float | None, rss_mb: float | None) -> dict[str, float]:
    """The ratios that this run can tell; one whose parts were not measured is absent."""
    found: dict[str, float | None] = {
        key: _quotient(_cpu(summaries, scenario, "tollway_all"), _cpu(summaries, scenario, peer))
        for key, (scenario, peer) in _CPU_RATIOS.items()
    }
    nginx = added_p50_us(summaries, "nginx")
    found["http_c1_added_vs_nginx"] = _quotient(added_p50_us(summaries, "tollway_all_tmpfs"), nginx)
    found["engine_conv_vs_raw"] = engine_ratio
    found["worker_rss_mb"] = rss_mb
    return {key: value for key, value in found.items() if value is not None}


def added_latencies(summaries: Summaries) -> dict[str, float]:
    """contender → added p50 at c=1 in µs, HTTP; "tollway_all" has its usage log on disk."""
    added = {name: added_p50_us(summaries, name) for name in summaries.get(_C1, {}) if name != "direct"}
    return {name: value for name, value in added.items() if value is not None}
