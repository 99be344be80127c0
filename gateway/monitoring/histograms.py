"""HOT PATH. Owns the histogram of durations and the form in which a worker's counters travel to the supervisor."""

from typing import Final

import msgspec

#: Upper bounds of the duration histogram in seconds; the last bucket is +Inf.
DURATION_BOUNDS_S: Final = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
#: The same in nanoseconds.
BOUNDS_NS: Final = tuple(int(bound * 1e9) for bound in DURATION_BOUNDS_S)
BUCKETS: Final = len(BOUNDS_NS) + 1


class Histogram(msgspec.Struct):
    """Counts per bucket (not cumulative) and the sum in nanoseconds."""

    buckets: list[int]
    sum_ns: int = 0

    @classmethod
    def empty(cls) -> "Histogram":
        return cls(buckets=[0] * BUCKETS)

    def merge(self, other: "Histogram") -> None:
        self.buckets = [mine + theirs for mine, theirs in zip(self.buckets, other.buckets, strict=True)]
        self.sum_ns += other.sum_ns


class WorkerMetrics(msgspec.Struct):
    """What one worker hands to the supervisor at a scrape (msgpack). Keys: (protocol, model, code)."""

    calls: dict[str, int]
    durations: dict[str, Histogram]
    record_wait: Histogram
    gauges: dict[str, float]
    backends: dict[str, float]
