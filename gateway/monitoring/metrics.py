"""HOT PATH. Owns metric names and the worker's counters: plain integers, merged and rendered elsewhere.

Labels come from bounded sets: `protocol` (http, grpc), `model` (names some backend lists, at most `MODELS_MAX`, else
"other"), `code` (errors.Code values or "ok"). Tenants are never a label.
"""

from bisect import bisect_left
from typing import Final

from gateway.monitoring.histograms import BOUNDS_NS, BUCKETS, Histogram, WorkerMetrics

MODELS_MAX: Final = 200

#: name → (type, help). Every name here is in docs/metrics.md (a test walks both).
METRICS: Final = {
    "tollway_calls_total": ("counter", "Calls answered, by protocol, model and code."),
    "tollway_call_duration_seconds": ("histogram", "From request head to reply handed to the socket."),
    "tollway_record_wait_seconds": ("histogram", "Time a reply waited for its usage record to be durable."),
    "tollway_calls_in_flight": ("gauge", "Calls being served."),
    "tollway_connections": ("gauge", "Open client connections."),
    "tollway_buffered_bytes": ("gauge", "Bytes of bodies and replies held in memory."),
    "tollway_usage_log_accepting": ("gauge", "1 while usage can be recorded; 0 refuses calls with 503."),
    "tollway_policy_age_seconds": ("gauge", "Seconds since control's last heartbeat."),
    "tollway_policy_stale": ("gauge", "1 while control's heartbeat is older than limits.policy_stale_s."),
    "tollway_policy_version": ("gauge", "Version of the policy snapshot in force."),
    "tollway_backend_up": ("gauge", "1 while the backend answers its health probe, by backend."),
    "tollway_worker_resident_bytes": ("gauge", "Resident memory of the worker process."),
    "tollway_call_log_dropped_lines": (
        "gauge",
        "Call log lines lost since the worker began.",
    ),
    "tollway_workers": ("gauge", "Workers that answered this scrape."),
    "tollway_process_restarts_total": ("counter", "Restarts of child processes, by role."),
    "tollway_meter_lag_records": ("gauge", "Usage records read from no log yet or waiting to be posted."),
    "tollway_quota_store_up": ("gauge", "1 while the store that hosts share can be asked about limits."),
    "tollway_quota_store_hosts": ("gauge", "Hosts with a living session at the store."),
    "tollway_quota_store_round_trips_total": ("counter", "Batches carried to the store."),
    "tollway_quota_store_commands_total": ("counter", "Runs of the store's script."),
    "tollway_quota_store_wait_seconds_total": ("counter", "Time that batches waited for the store."),
    "tollway_quota_store_losses_total": ("counter", "Sessions at the store that were lost."),
    "tollway_quota_store_failures_total": ("counter", "Commands that the store answered with an error."),
    "tollway_meter_events_total": ("counter", "Usage events by fate: posted, voided, quarantined."),
}


class Cell:
    """A `Histogram` as the hot side keeps it: structs cannot be compiled."""

    __slots__ = ("_above_ns", "_at", "_to_ns", "buckets", "sum_ns")

    def __init__(self) -> None:
        self.buckets: list[int] = [0] * BUCKETS
        self.sum_ns = 0
        #: The bucket used last, which is mostly the next one as well: it counts what is above one bound, to the other.
        self._at = 0
        self._above_ns = -1
        self._to_ns = BOUNDS_NS[0]

    def observe_ns(self, duration_ns: int) -> None:
        """Count one duration (in the first bucket if a clock stepped and it is negative)."""
        if not self._above_ns < duration_ns <= self._to_ns:
            self._turn_to(duration_ns)
        self.buckets[self._at] += 1
        self.sum_ns += duration_ns

    def _turn_to(self, duration_ns: int) -> None:
        at = bisect_left(BOUNDS_NS, duration_ns)
        self._at = at
        self._above_ns = BOUNDS_NS[at - 1] if at else -1
        self._to_ns = BOUNDS_NS[at] if at < len(BOUNDS_NS) else duration_ns

    def histogram(self) -> Histogram:
        """A copy for a scrape."""
        return Histogram(buckets=list(self.buckets), sum_ns=self.sum_ns)


class CallCounters:
    """The hot side: one `observe` per call. `known_models` bounds the model label."""

    __slots__ = ("_cells", "_models", "record_wait")

    def __init__(self) -> None:
        self._cells: dict[tuple[str, str, str], Cell] = {}
        self._models: set[str] = set()
        self.record_wait = Cell()

    def observe(self, protocol: str, model: str, code: str, duration_ns: int) -> None:
        """Count one finished call."""
        self.cell(protocol, model, code).observe_ns(duration_ns)

    def cell(self, protocol: str, model: str, code: str) -> Cell:
        """Where calls with these labels are counted."""
        cell = self._cells.get((protocol, model, code))
        return self._new_cell(protocol, model, code) if cell is None else cell

    def _new_cell(self, protocol: str, model: str, code: str) -> Cell:
        if model not in self._models and len(self._models) >= MODELS_MAX:
            model = "other"
        self._models.add(model)
        return self._cells.setdefault((protocol, model, code), Cell())

    def export(self, gauges: dict[str, float], backends: dict[str, float]) -> WorkerMetrics:
        """A copy for a scrape; the key is the three labels joined by NUL (they never contain it)."""
        return WorkerMetrics(
            calls={"\0".join(key): sum(cell.buckets) for key, cell in self._cells.items()},
            durations={"\0".join(key): cell.histogram() for key, cell in self._cells.items()},
            record_wait=self.record_wait.histogram(),
            gauges=gauges,
            backends=backends,
        )
