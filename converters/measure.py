"""Owns timing variants side by side: interleaved rounds, the median of rounds, over a search of batch sizes."""

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from converters.engines import Engine, Feeds

ROUND_NS: Final = 20_000_000
RUNS_MAX: Final = 2_000
_GAIN_MIN: Final = 1.03
#: The search ends after so many batch sizes in a row at which no engine is faster than it was: one may be a dip.
_FLAT_SIZES_MAX: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """`median_ns` and `worst_ns` of one run, of the rounds' means. `rows` 0: no batch, one run is one answer.

    `means_ns`: of each round, so that rounds, which follow one another closely, can be compared in pairs.
    """

    rows: int
    median_ns: int
    worst_ns: int
    rounds: int
    means_ns: tuple[float, ...] = ()

    @property
    def rows_per_s(self) -> float:
        return max(self.rows, 1) * 1e9 / self.median_ns

    def to_json(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "median_ns": self.median_ns,
            "worst_round_ns": self.worst_ns,
            "rounds": self.rounds,
            "rows_per_s": round(self.rows_per_s, 1),
        }


def measure(
    engines: Mapping[str, Engine],
    feeds_of: Callable[[int], Feeds],
    *,
    batches: tuple[int, ...],
    rounds: int,
    seed: int,
    on_batch: Callable[[int], None],
    clock_ns: Callable[[], int] = time.perf_counter_ns,
) -> dict[str, list[Speed]]:
    """Speeds of each engine at each batch size, ascending, until no engine's own rows per second grow by 3 % any more.

    The fastest at one row need not be the one that gains by batches: each is compared with itself.
    """
    speeds: dict[str, list[Speed]] = {key: [] for key in engines}
    best = dict.fromkeys(engines, 0.0)
    flat = 0
    for rows in batches:
        on_batch(rows)
        order = random.Random(seed)  # noqa: S311 - an order of runs, not a secret
        at_rows = _measure_batch(engines, feeds_of(rows), rows, rounds=rounds, order=order, clock_ns=clock_ns)
        for key, speed in at_rows.items():
            speeds[key].append(speed)
        has_grown = any(speed.rows_per_s >= best[key] * _GAIN_MIN for key, speed in at_rows.items())
        best = {key: max(best[key], speed.rows_per_s) for key, speed in at_rows.items()}
        flat = 0 if has_grown else flat + 1
        if flat == _FLAT_SIZES_MAX:
            break
    return speeds


def _measure_batch(
    engines: Mapping[str, Engine],
    feeds: Feeds,
    rows: int,
    *,
    rounds: int,
    order: random.Random,
    clock_ns: Callable[[], int],
) -> dict[str, Speed]:
    repeats = {key: _warm(engine, feeds, clock_ns) for key, engine in engines.items()}
    means: dict[str, list[float]] = {key: [] for key in engines}
    keys = list(engines)
    for _ in range(rounds):
        order.shuffle(keys)
        for key in keys:
            started = clock_ns()
            for _ in range(repeats[key]):
                engines[key].run(feeds)
            means[key].append((clock_ns() - started) / repeats[key])
    return {
        key: Speed(
            rows=rows,
            median_ns=max(1, round(statistics.median(values))),
            worst_ns=max(1, round(max(values))),
            rounds=rounds,
            means_ns=tuple(values),
        )
        for key, values in means.items()
    }


def _warm(engine: Engine, feeds: Feeds, clock_ns: Callable[[], int]) -> int:
    """Run it a few times; how many runs make up a round."""
    engine.run(feeds)
    started = clock_ns()
    engine.run(feeds)
    once = max(1, clock_ns() - started)
    return max(1, min(RUNS_MAX, ROUND_NS // once))
