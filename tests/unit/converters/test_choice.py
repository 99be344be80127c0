"""Measurement is interleaved and takes medians; what is not faster is refused, and why is said."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from converters.build import build
from converters.engines import Feeds
from converters.errors import VerificationFailed
from converters.job import Job
from converters.measure import RUNS_MAX, Speed, measure
from converters.select import PLAIN, Candidate, best_batch, select
from converters.selftest.models import mlp


class FakeEngine:
    """Takes a fixed time a run and a row on a clock that all share; `hiccups` are added to its first runs."""

    def __init__(self, world: "World", name: str, row_ns: int, hiccups: Sequence[int] = (), *, run_ns: int = 0) -> None:
        self._world, self._name, self._row_ns, self._hiccups = world, name, row_ns, list(hiccups)
        self._run_ns = run_ns

    def run(self, feeds: Feeds) -> dict[str, Any]:
        self._world.order.append(self._name)
        late = self._hiccups.pop(0) if self._hiccups else 0
        self._world.now_ns += self._run_ns + self._row_ns * len(feeds["x"]) + late
        return {}

    def output_shapes(self) -> dict[str, tuple[int | None, ...]]:
        return {}


class World:
    def __init__(self) -> None:
        self.now_ns = 0
        self.order: list[str] = []


def run(
    world: World, engines: dict[str, FakeEngine], batches: tuple[int, ...], rounds: int = 5
) -> dict[str, list[Speed]]:
    return measure(
        engines,
        lambda rows: {"x": np.zeros(max(rows, 1))},
        batches=batches,
        rounds=rounds,
        seed=0,
        on_batch=lambda rows: None,
        clock_ns=lambda: world.now_ns,
    )


def test_one_slow_round_does_not_move_the_median() -> None:
    world = World()
    engine = FakeEngine(world, "a", 30_000_000, [0, 0, 900_000_000])
    speed = run(world, {"a": engine}, (1,))["a"][0]
    assert (speed.median_ns, speed.worst_ns, speed.rounds) == (30_000_000, 930_000_000, 5)


def test_engines_take_turns_in_every_round() -> None:
    world = World()
    engines = {name: FakeEngine(world, name, 30_000_000) for name in "abc"}
    run(world, engines, (1,), rounds=4)
    rounds = [world.order[6:][start : start + 3] for start in range(0, 12, 3)]
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len({tuple(one) for one in rounds}) > 1


def test_a_round_has_as_many_runs_as_its_time_holds() -> None:
    world = World()
    run(world, {"a": FakeEngine(world, "a", 1)}, (1,), rounds=3)
    assert len(world.order) == 2 + 3 * RUNS_MAX


def test_the_batch_search_ends_where_rows_per_second_do_not_grow() -> None:
    world = World()
    speeds = run(world, {"a": FakeEngine(world, "a", 30_000_000)}, (1, 2, 4, 8), rounds=3)
    assert [speed.rows for speed in speeds["a"]] == [1, 2, 4]


def test_the_batch_search_goes_on_while_any_engine_gains_by_batches() -> None:
    world = World()
    # At one row the steady one leads by far; from eight rows on the other does.
    engines = {
        "steady": FakeEngine(world, "steady", 30_000_000),
        "batched": FakeEngine(world, "batched", 15_000_000, run_ns=100_000_000),
    }
    speeds = run(world, engines, (1, 2, 4, 8, 16), rounds=3)
    assert [speed.rows for speed in speeds["batched"]] == [1, 2, 4, 8, 16]
    assert speeds["batched"][0].rows_per_s < speeds["steady"][0].rows_per_s
    assert speeds["batched"][-1].rows_per_s > speeds["steady"][-1].rows_per_s


def test_one_batch_size_without_gain_does_not_end_the_search() -> None:
    world = World()
    # Late at the first and measured runs of two rows alone.
    engine = FakeEngine(world, "a", 10_000_000, [0] * 5 + [90_000_000] * 5, run_ns=60_000_000)
    assert [speed.rows for speed in run(world, {"a": engine}, (1, 2, 4), rounds=3)["a"]] == [1, 2, 4]


def speed(median_ns: int, rows: int = 1) -> Speed:
    return Speed(rows=rows, median_ns=median_ns, worst_ns=median_ns, rounds=5)


def candidate(precision: str, *speeds: Speed, engine: str = "onnxruntime") -> Candidate:
    return Candidate(key=f"{engine}-{precision}", engine=engine, precision=precision, speeds=speeds)


def test_the_fastest_is_selected() -> None:
    choice = select([candidate("fp32", speed(1000)), candidate("int8", speed(500))], [speed(1000)], "latency")
    assert (choice.selected, choice.speedup, choice.refused) == ("onnxruntime-int8", 2.0, {})


def test_less_precision_that_is_hardly_faster_is_refused() -> None:
    just, hardly = candidate("int8", speed(952)), candidate("int8", speed(953))
    full = candidate("fp32", speed(1000))
    assert select([full, just], [speed(1000)], "latency").selected == "onnxruntime-int8"
    choice = select([full, hardly], [speed(1000)], "latency")
    assert choice.selected == "onnxruntime-fp32"
    assert choice.refused["onnxruntime-int8"].startswith("not faster: 1.05x of fp32")


def test_less_precision_is_compared_with_its_own_engine() -> None:
    full = [candidate("fp32", speed(1000)), candidate("fp32", speed(600), engine="openvino")]
    choice = select([*full, candidate("fp16", speed(600), engine="openvino")], [speed(1000)], "latency")
    assert choice.selected == "openvino-fp32"
    assert list(choice.refused) == ["openvino-fp16"]


def test_nothing_slower_than_the_plain_source_is_selected() -> None:
    at, above = candidate("fp32", speed(1020)), candidate("fp32", speed(1021))
    assert select([at], [speed(1000)], "latency").selected == "onnxruntime-fp32"
    choice = select([above], [speed(1000)], "latency")
    assert choice.selected is None
    assert "slower than the plain source: 1.02" in choice.refused["onnxruntime-fp32"]


def test_throughput_looks_at_the_best_batch() -> None:
    fast_alone = candidate("fp32", speed(1000), speed(8000, rows=8))
    fast_together = candidate("fp32", speed(1010), speed(4000, rows=8), engine="openvino")
    plain = [speed(1000), speed(8000, rows=8)]
    assert select([fast_alone, fast_together], plain, "latency").selected == "onnxruntime-fp32"
    assert select([fast_alone, fast_together], plain, "throughput").selected == "openvino-fp32"
    assert best_batch(fast_together.speeds) == 8


def test_less_precision_that_wins_too_few_rounds_is_refused() -> None:
    def rounds(*means_ns: float) -> Speed:
        return Speed(rows=1, median_ns=int(sorted(means_ns)[2]), worst_ns=0, rounds=4, means_ns=means_ns)

    full = candidate("fp32", rounds(1000, 1000, 1000, 1000))
    surely, hardly = candidate("int8", rounds(800, 800, 800, 1200)), candidate("int8", rounds(800, 800, 1200, 1200))
    assert select([full, surely], [speed(1000)], "latency").selected == "onnxruntime-int8"
    choice = select([full, hardly], [speed(1000)], "latency")
    assert choice.refused["onnxruntime-int8"] == "not surely faster: in 50% of the rounds, 75% are asked"


def test_rounds_at_other_batch_sizes_do_not_make_a_slower_variant_pass() -> None:
    def speeds(*rows_and_ns: tuple[int, int]) -> list[Speed]:
        return [replace(speed(ns, rows), means_ns=(float(ns),) * 5) for rows, ns in rows_and_ns]

    # Slower for one row, faster by batches: for the least time of one row it is not taken.
    slower = Candidate(
        key="openvino-fp32", engine="openvino", precision="fp32", speeds=speeds((1, 115), (2, 150), (4, 200))
    )
    plain = speeds((1, 100), (2, 190), (4, 380))
    assert "slower" in select([slower], plain, "latency").refused["openvino-fp32"]
    assert select([slower], plain, "throughput").selected == "openvino-fp32"


def test_an_equal_variant_is_not_refused_for_a_median_that_noise_moved() -> None:
    plain = [Speed(rows=1, median_ns=1000, worst_ns=0, rounds=4, means_ns=(900, 1000, 1000, 1100))]
    noisy = Speed(rows=1, median_ns=1050, worst_ns=0, rounds=4, means_ns=(890, 990, 1200, 1200))
    slower = Speed(rows=1, median_ns=1050, worst_ns=0, rounds=4, means_ns=(890, 1100, 1200, 1200))
    assert select([candidate("fp32", noisy)], plain, "latency").selected == "onnxruntime-fp32"
    assert select([candidate("fp32", slower)], plain, "latency").selected is None


@pytest.mark.parametrize("times", [(1_000, 2_000), (1_000, 1_000), (1_000, 985)])
def test_where_nothing_is_faster_the_source_itself_is_published(times: tuple[int, int], tmp_path: Path) -> None:
    """Measured times are given, as a real machine decides otherwise each time; everything else is real."""
    model = mlp()
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())

    def slower(engines: Any, *_: Any, **__: Any) -> dict[str, list[Speed]]:
        own = {key: times[0] if key == PLAIN else times[1] for key in engines}
        return {key: [Speed(rows=1, median_ns=ns, worst_ns=ns, rounds=3)] for key, ns in own.items()}

    job = Job(name="m", engines=("onnxruntime",), precisions=("fp32", "fp16"), batch_rows_max=1, rounds=3)
    report = build(job, tmp_path / "m.onnx", None, tmp_path, sha256="", progress=lambda *_: None, timing=slower)
    assert (report["selected"], report["speedup"]) == ("onnxruntime-fp32", 1.0)
    published = onnx.load(str(tmp_path / "bundle" / "model.onnx"))
    assert published.SerializeToString() == model.SerializeToString()
    chosen = next(one for one in report["variants"] if one["status"] == "selected")
    assert "as it is" in chosen["method"]
    assert chosen["cases_judged"]
    without = replace(job, precisions=("fp16",))
    (tmp_path / "other").mkdir()
    with pytest.raises(VerificationFailed, match="every variant was refused"):
        build(
            without, tmp_path / "m.onnx", None, tmp_path / "other", sha256="", progress=lambda *_: None, timing=slower
        )
