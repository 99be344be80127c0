"""The engine scenario's arithmetic: best of both sides, and what makes its figure doubtful."""

from loadtests.engine import EngineResult, _result
from loadtests.load import LoadResult


def _served(calls: int, *, failed: int = 0) -> LoadResult:
    return LoadResult(calls=calls, seconds=1.0, failed=failed, p50_us=1.0, p99_us=2.0)


def _run(calls: int, *, failed: int = 0, strays: int = 0) -> EngineResult:
    """Raw: 1,000 items/s at batch 8. Served: `calls` at one item, half a second of engine CPU; 10 at eight."""
    return _result(
        {1: (900.0, 950.0), 8: (1010.0, 1000.0)},
        8,
        [(1000.0, 1000.0)] * 3,
        {1: [(_served(calls, failed=failed), 500_000_000)] * 3, 8: [(_served(10), 500_000_000)] * 3},
        strays,
    )


def test_best_items_per_call_is_divided_by_the_best_batch() -> None:
    result = _run(900)
    assert result.served == {1: 900.0, 8: 80.0}
    assert (result.ratio, result.cpu_ratio) == (0.9, 1.8)
    assert result.problems == ()


def test_more_than_the_ceiling_is_a_problem_not_a_record() -> None:
    assert "not quiet" in _run(1200).problems[0]


def test_failed_calls_and_threads_off_the_core_are_problems() -> None:
    assert _run(900, failed=1, strays=2).problems == (
        "3 calls failed",
        "2 threads of the engine may leave its core",
    )
