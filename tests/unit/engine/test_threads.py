"""The threads that run batches."""

import queue
import threading

from gateway.engine.runner import Executed
from gateway.engine.threads import BatchThreads, Outcome

LIMIT_S = 60.0


def executed(mark: int) -> Executed:
    return Executed([], mark, 0, 0)


def test_as_many_tasks_run_side_by_side_as_there_are_threads() -> None:
    threads = BatchThreads(3)
    barrier = threading.Barrier(3)
    outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()

    def task() -> Executed:
        barrier.wait(LIMIT_S)
        return executed(1)

    for _ in range(3):
        threads.run(task, outcomes.put)
    assert all(isinstance(outcomes.get(timeout=LIMIT_S), Executed) for _ in range(3))
    threads.close()


def test_what_a_task_raises_is_its_outcome_and_the_thread_goes_on() -> None:
    threads = BatchThreads(1)
    outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
    fault = RuntimeError("defect")

    def broken() -> Executed:
        raise fault

    threads.run(broken, outcomes.put)
    threads.run(lambda: executed(7), outcomes.put)
    assert outcomes.get(timeout=LIMIT_S) is fault
    second = outcomes.get(timeout=LIMIT_S)
    assert isinstance(second, Executed)
    assert second.input_ns == 7
    threads.close()


def test_close_finishes_what_is_queued_and_leaves_no_thread() -> None:
    before = threading.active_count()
    threads = BatchThreads(2)
    outcomes: list[Outcome] = []
    for mark in range(20):
        threads.run(lambda mark=mark: executed(mark), outcomes.append)  # type: ignore[misc]
    threads.close()
    threads.close()
    assert len(outcomes) == 20
    assert threading.active_count() == before
