"""HOT PATH. Owns the counts and times of one model version, and their form in Triton's statistics extension."""

from typing import Any, Final

#: Batch sizes told apart; further ones are counted under the largest known (labels must stay bounded).
_BATCH_SIZES_MAX: Final = 256


class Statistics:
    """Sums since load. Times are ns; `queue_ns` and `success_ns` sum over requests, the compute times over batches."""

    __slots__ = (
        "_batches",
        "cache_hit_count",
        "cache_hit_ns",
        "cache_miss_count",
        "cache_miss_ns",
        "executions",
        "fail_count",
        "fail_ns",
        "infer_ns",
        "input_ns",
        "last_wall_ms",
        "output_ns",
        "queue_ns",
        "rows",
        "success_count",
        "success_ns",
    )

    def __init__(self) -> None:
        self.success_count = 0
        self.success_ns = 0
        self.fail_count = 0
        self.fail_ns = 0
        self.queue_ns = 0
        self.input_ns = 0
        self.infer_ns = 0
        self.output_ns = 0
        self.rows = 0
        self.executions = 0
        self.last_wall_ms = 0
        self.cache_hit_count = 0
        self.cache_hit_ns = 0
        self.cache_miss_count = 0
        self.cache_miss_ns = 0
        #: rows in a batch → [count, input ns, infer ns, output ns]
        self._batches: dict[int, list[int]] = {}

    def on_batch(self, rows: int, input_ns: int, infer_ns: int, output_ns: int) -> None:
        """A batch ran to its end."""
        self.executions += 1
        self.rows += rows
        self.input_ns += input_ns
        self.infer_ns += infer_ns
        self.output_ns += output_ns
        batch = self._batches.get(rows)
        if batch is None:
            batch = self._batch_of(rows)
        batch[0] += 1
        batch[1] += input_ns
        batch[2] += infer_ns
        batch[3] += output_ns

    def _batch_of(self, rows: int) -> list[int]:
        if len(self._batches) >= _BATCH_SIZES_MAX:
            rows = max(self._batches)
        return self._batches.setdefault(rows, [0, 0, 0, 0])

    def on_cache_hit(self, rows: int, lookup_ns: int, wall_ms: int) -> None:
        """An inference that nothing ran for: it counts as one, and as a success, but as no execution."""
        self.cache_hit_count += 1
        self.cache_hit_ns += lookup_ns
        self.rows += rows
        self.success_count += 1
        self.success_ns += lookup_ns
        self.last_wall_ms = wall_ms

    def on_cache_miss(self, lookup_ns: int) -> None:
        self.cache_miss_count += 1
        self.cache_miss_ns += lookup_ns

    def on_success(self, total_ns: int, queue_ns: int) -> None:
        self.success_count += 1
        self.success_ns += total_ns
        self.queue_ns += queue_ns

    def on_fail(self, total_ns: int) -> None:
        self.fail_count += 1
        self.fail_ns += total_ns

    def as_json(self, name: str, version: str) -> dict[str, Any]:
        """One element of `model_stats`, with the field names of Triton's ModelStatistics message."""
        count = self.success_count
        ran = count - self.cache_hit_count
        return {
            "name": name,
            "version": version,
            "last_inference": self.last_wall_ms,
            "inference_count": self.rows,
            "execution_count": self.executions,
            "inference_stats": {
                "success": _duration(count, self.success_ns),
                "fail": _duration(self.fail_count, self.fail_ns),
                "queue": _duration(ran, self.queue_ns),
                "compute_input": _duration(ran, self.input_ns),
                "compute_infer": _duration(ran, self.infer_ns),
                "compute_output": _duration(ran, self.output_ns),
                "cache_hit": _duration(self.cache_hit_count, self.cache_hit_ns),
                "cache_miss": _duration(self.cache_miss_count, self.cache_miss_ns),
            },
            "batch_stats": [
                {
                    "batch_size": rows,
                    "compute_input": _duration(batch[0], batch[1]),
                    "compute_infer": _duration(batch[0], batch[2]),
                    "compute_output": _duration(batch[0], batch[3]),
                }
                for rows, batch in sorted(self._batches.items())
            ],
        }


def _duration(count: int, ns: int) -> dict[str, int]:
    return {"count": count, "ns": ns}
