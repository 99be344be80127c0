"""The response cache: what counts as the same, what is kept, and what the statistics say."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.clock import FakeClock
from gateway.engine.response_cache import ResponseCache, fingerprint
from gateway.engine.statistics import Statistics
from gateway.engine.work import Work
from gateway.errors import Code, TollwayError
from model_repo.config import parse_config
from model_repo.errors import ConfigError
from tests.unit.engine.making import EngineUnderTest, config_text, new_work, run_engine, write_identity

CACHED = "response_cache { enable: true }"


class Echo:
    """Answers at once with what it is fed."""

    def __init__(self) -> None:
        self.works: list[Work] = []
        self.cancelled: list[Work] = []
        self.fault: TollwayError | None = None

    def submit(self, work: Work) -> None:
        self.works.append(work)
        if self.fault is not None:
            work.fail(self.fault)
        else:
            work.resolve([work.feeds["x"]])

    def cancel(self, work: Work) -> None:
        self.cancelled.append(work)


def new_cache(**bounds: int) -> tuple[ResponseCache, Echo, Statistics]:
    echo, statistics = Echo(), Statistics()
    return ResponseCache(echo, statistics, FakeClock(), **bounds), echo, statistics


def test_the_same_tensors_run_once() -> None:
    cache, echo, statistics = new_cache()
    for fill, runs in ((1.0, 1), (1.0, 1), (2.0, 2), (1.0, 2)):
        work, outcome = new_work(2, fill=fill)
        cache.submit(work)
        assert outcome.calls == 1
        assert outcome.outputs is not None
        assert (outcome.outputs[0] == fill).all()
        assert len(echo.works) == runs
    assert work.compute_ns == 0
    assert (statistics.cache_hit_count, statistics.cache_miss_count, statistics.rows) == (2, 2, 4)


@pytest.mark.parametrize(
    "feeds",
    [
        {"x": np.array([[1, 2]], np.float32)},
        {"x": np.array([1, 2], np.float32)},
        {"x": np.array([[1, 2]], np.int32)},
        {"x": np.array([[1, 2]], np.float32).view(np.int32)},
        {"y": np.array([[1, 2]], np.float32)},
        {"x": np.array([[b"a", b"bc"]], object)},
        {"x": np.array([[b"ab", b"c"]], object)},
        {"x": np.array([[1, 2]], np.float32), "z": np.array([[1]], np.float32)},
    ],
)
def test_other_names_types_shapes_and_bytes_are_other_tensors(feeds: dict[str, Any]) -> None:
    def of(own: dict[str, Any]) -> bytes:
        return fingerprint(Work(own, lambda *_: None, lambda *_: None))

    assert of(feeds) == of({name: array.copy() for name, array in reversed(feeds.items())})
    assert of(feeds) != of({"x": np.array([[1, 3]], np.float32)})
    if list(feeds) != ["x"] or feeds["x"].dtype != np.float32 or feeds["x"].ndim != 2:
        assert of(feeds) != of({"x": np.array([[1, 2]], np.float32)})
    assert of({"x": np.array([[b"a", b"bc"]], object)}) != of({"x": np.array([[b"ab", b"c"]], object)})


def test_the_least_used_goes_and_what_is_too_large_is_not_kept() -> None:
    # An entry of one row of two floats counts 264 bytes.
    cache, echo, _ = new_cache(nbytes_max=264 * 4)
    for fill in (1.0, 2.0, 3.0, 4.0, 1.0, 5.0, 1.0, 2.0):
        cache.submit(new_work(1, fill=fill)[0])
        assert cache.nbytes <= 264 * 4
    # 2 has gone for 5, for 1 was used after it.
    assert [float(work.feeds["x"][0, 0]) for work in echo.works] == [1, 2, 3, 4, 5, 2]
    for _ in range(2):
        cache.submit(new_work(100, fill=9.0)[0])
    assert len(echo.works) == 8


def test_a_fault_is_not_kept() -> None:
    cache, echo, _ = new_cache()
    echo.fault = TollwayError(Code.BACKEND_FAULT, "failed")
    cache.submit(new_work()[0])
    echo.fault = None
    work, outcome = new_work()
    cache.submit(work)
    assert outcome.outputs is not None
    assert len(echo.works) == 2


def test_what_is_kept_is_nobodys_memory() -> None:
    cache, _, _ = new_cache()
    work, _ = new_work(fill=1.0)
    cache.submit(work)
    array: Any = work.feeds["x"]
    array[:] = 7
    again, outcome = new_work(fill=1.0)
    cache.submit(again)
    assert outcome.outputs is not None
    assert (outcome.outputs[0] == 1).all()


def test_a_cancelled_work_is_cancelled_behind_it() -> None:
    cache, echo, _ = new_cache()
    work, _ = new_work()
    cache.cancel(work)
    assert echo.cancelled == [work]


def test_a_cached_model_answers_alike_and_counts_hits(tmp_path: Path) -> None:
    write_identity(tmp_path, "m", "FP32", (2,))
    with (tmp_path / "m" / "config.pbtxt").open("a") as file:
        file.write(CACHED)
    request = {"inputs": [{"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, 4]}]}

    async def test(engine: EngineUnderTest) -> None:
        first, second = [await engine.infer("m", request) for _ in range(2)]
        assert first.body == second.body
        assert (second.headers[b"tollway-rows"], second.headers[b"tollway-compute-ns"]) == (b"2", b"0")
        [stats] = (await engine.get("/v2/models/m/stats")).json()["model_stats"]
        assert (stats["inference_count"], stats["execution_count"]) == (4, 1)
        counts = {name: one["count"] for name, one in stats["inference_stats"].items()}
        assert counts == {
            "success": 2, "fail": 0, "queue": 1, "compute_input": 1, "compute_infer": 1, "compute_output": 1,
            "cache_hit": 1, "cache_miss": 1,
        }  # fmt: skip
        # Another version of the model has a cache of its own.
        assert (await engine.call("POST", "/v2/repository/models/m/load")).status == 200
        assert int((await engine.infer("m", request)).headers[b"tollway-compute-ns"]) > 0
        assert json.loads(first.body)["outputs"][0]["data"] == [1.0, 2.0, 3.0, 4.0]

    run_engine(tmp_path, test=test)


@pytest.mark.parametrize("platform", ["python", "ensemble"])
def test_what_may_answer_differently_is_not_cached(platform: str) -> None:
    extra = CACHED
    if platform == "ensemble":
        maps = 'input_map { key: "x" value: "x" } output_map { key: "y" value: "y" }'
        extra += f'ensemble_scheduling {{ step {{ model_name: "s" model_version: -1 {maps} }} }}'
    text = config_text("m", [("x", "FP32", [2])], [("y", "FP32", [2])], platform=platform, rows_max=2, extra=extra)
    with pytest.raises(ConfigError, match="response_cache"):
        parse_config(text, name="m")


def test_a_sequence_is_not_cached() -> None:
    extra = CACHED + "sequence_batching { }"
    text = config_text("m", [("x", "FP32", [2])], [("y", "FP32", [2])], rows_max=2, extra=extra)
    with pytest.raises(ConfigError, match="response_cache: a sequence"):
        parse_config(text, name="m")
