"""Models that come and go within a budget: the choice, the counting, threads, and real memory."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.engine.memory import resident_bytes, return_free_memory
from gateway.engine.residency import (
    Bounds,
    Held,
    Residency,
    ResidentModel,
    ResidentPlace,
    choose_victims,
    sweep_forever,
)
from gateway.engine.runner import Executed
from gateway.engine.tensors import Array
from gateway.engine.threads import BatchThreads, Outcome
from gateway.engine.work import Feeds
from gateway.errors import Code, TollwayError
from model_repo.errors import RepositoryError

LIMIT_S = 60.0


class World:
    """A process whose memory is a number, and the models in it."""

    def __init__(self, nbytes_max: int = 0, idle_ns: int = 0, room_wait_s: float = 0.0) -> None:
        self.now_ns = 0
        self.nbytes = 1000
        self.alive: list[str] = []
        self.loads: list[str] = []
        self.fault: Exception | None = None
        self.residency = Residency(
            Bounds(nbytes_max=nbytes_max, idle_ns=idle_ns, room_wait_s=room_wait_s),
            lambda: self.now_ns,
            measure=lambda: self.nbytes,
            give_back=lambda: None,
        )

    def add(self, name: str, nbytes: int, *, file_nbytes: int = 1) -> ResidentModel:
        return self.residency.add(name, lambda: FakeModel(self, name, nbytes), file_nbytes)

    def use(self, model: ResidentModel) -> None:
        self.now_ns += 1
        (y,) = model.run({"x": np.ones(1)})
        assert y.tolist() == [1]


class FakeModel:
    description = "fake"

    def __init__(self, world: World, name: str, nbytes: int) -> None:
        if world.fault is not None:
            raise world.fault
        self._world = world
        self._name = name
        self._nbytes = nbytes
        world.nbytes += nbytes
        world.alive.append(name)
        world.loads.append(name)

    def run(self, feeds: Feeds) -> list[Array]:
        assert self._name in self._world.alive, "ran after it was unloaded"
        return [feeds["x"]]

    def close(self) -> None:
        self._world.alive.remove(self._name)
        self._world.nbytes -= self._nbytes


# -- the choice -------------------------------------------------------------------------------------------------------

HELD = st.builds(Held, st.integers(1, 50), st.integers(0, 20), st.booleans())


@given(st.lists(HELD, max_size=8), st.integers(0, 60), st.integers(1, 200))
def test_victims_make_room_oldest_first_and_none_in_vain(held: list[Held], need: int, nbytes_max: int) -> None:
    victims = choose_victims(held, need, nbytes_max)
    idle = [one for one in held if not one.is_busy]
    busy = sum(one.nbytes for one in held if one.is_busy)
    if victims is None:
        assert busy + need > nbytes_max
        return
    left = sum(one.nbytes for place, one in enumerate(held) if place not in victims)
    assert left + need <= nbytes_max
    assert not any(held[place].is_busy for place in victims)
    ages = sorted(one.used_ns for one in idle)
    assert [held[place].used_ns for place in victims] == ages[: len(victims)]
    if victims:
        assert left + held[victims[-1]].nbytes + need > nbytes_max


# -- budget -----------------------------------------------------------------------------------------------------------


def test_the_least_used_model_gives_way_and_comes_back_on_demand() -> None:
    world = World(nbytes_max=100)
    a, b, c = (world.add(name, 40) for name in "abc")
    assert world.alive == ["b", "c"]
    world.use(b)
    world.use(a)
    assert world.alive == ["b", "a"]
    world.use(c)
    assert world.alive == ["a", "c"]
    assert world.loads == ["a", "b", "c", "a", "c"]
    assert world.residency.nbytes == 80


def test_what_a_model_really_takes_counts_not_its_file() -> None:
    world = World(nbytes_max=100)
    world.add("a", 60, file_nbytes=1)
    world.add("b", 60, file_nbytes=1)
    assert world.alive == ["b"]
    assert world.residency.nbytes == 60


def test_memory_that_was_free_already_counts_as_the_file() -> None:
    world = World(nbytes_max=100)
    model = world.add("a", 0, file_nbytes=70)
    assert model.nbytes == 70


def test_a_model_larger_than_the_budget_is_refused_at_load() -> None:
    world = World(nbytes_max=100)
    with pytest.raises(RepositoryError, match="needs 101 bytes of memory, more than the budget"):
        world.add("a", 101)
    assert world.alive == []
    assert world.residency.nbytes == 0


def test_a_model_in_use_is_never_unloaded_and_others_are_told_to_wait() -> None:
    world = World(nbytes_max=100)
    a, b = world.add("a", 60), world.add("b", 60)
    world.residency.acquire(b)
    with pytest.raises(TollwayError, match="no memory for model 'a'") as caught:
        world.use(a)
    assert caught.value.code is Code.OVERLOADED
    assert caught.value.retry_after_ms
    assert world.alive == ["b"]
    world.residency.release(b)
    world.use(a)
    assert world.alive == ["a"]


def test_a_load_waits_for_models_that_run() -> None:
    world = World(nbytes_max=100, room_wait_s=LIMIT_S)
    a, b = world.add("a", 60), world.add("b", 60)
    world.residency.acquire(b)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(world.use, a)
        while not a.users:
            pass
        assert world.alive == ["b"]
        world.residency.release(b)
        waiting.result(LIMIT_S)
    assert world.alive == ["a"]


def test_a_file_larger_than_the_budget_is_not_even_read() -> None:
    world = World(nbytes_max=100)
    with pytest.raises(RepositoryError, match="its file has 101 bytes, more than the budget"):
        world.add("a", 10, file_nbytes=101)
    assert world.loads == []


def test_a_file_that_has_changed_meanwhile_is_not_ready_and_then_is() -> None:
    world = World(nbytes_max=100)
    a = world.add("a", 60)
    world.add("b", 60)
    world.fault = RepositoryError("model.onnx: damaged")
    with pytest.raises(TollwayError) as caught:
        world.use(a)
    assert caught.value.code is Code.MODEL_NOT_READY
    world.fault = None
    world.use(a)
    assert world.alive == ["a"]


def test_a_model_that_cannot_be_loaded_at_all_leaves_nothing() -> None:
    world = World(nbytes_max=100)
    world.fault = RepositoryError("damaged")
    with pytest.raises(RepositoryError, match="damaged"):
        world.add("a", 60)
    world.fault = None
    world.add("b", 60)
    assert world.residency.nbytes == 60


# -- idle time --------------------------------------------------------------------------------------------------------


def test_an_idle_model_goes_and_a_used_one_stays() -> None:
    world = World(idle_ns=100)
    a, b = world.add("a", 10), world.add("b", 10)
    world.now_ns = 90
    world.use(b)
    world.now_ns = 100
    world.residency.sweep()
    assert world.alive == ["b"]
    world.use(a)
    assert world.alive == ["b", "a"]


def test_a_model_that_runs_is_not_idle() -> None:
    world = World(idle_ns=100)
    a = world.add("a", 10)
    world.residency.acquire(a)
    world.now_ns = 1000
    world.residency.sweep()
    assert world.alive == ["a"]
    world.residency.release(a)
    world.residency.sweep()
    assert world.alive == ["a"], "it was used just now"


def test_without_an_idle_time_nothing_goes() -> None:
    world = World(nbytes_max=100)
    world.add("a", 10)
    world.now_ns = 1 << 60
    world.residency.sweep()
    assert world.alive == ["a"]


def test_removed_models_are_unloaded_once() -> None:
    world = World(nbytes_max=100)
    a = world.add("a", 10)
    a.close()
    a.close()
    assert world.alive == []


def test_the_sweep_is_told_by_time_and_ends_with_its_task() -> None:
    async def main() -> None:
        world = World(idle_ns=1)
        world.add("a", 10)
        world.now_ns = 2
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1) as pool:
            task = loop.create_task(sweep_forever(world.residency, loop, pool), name="sweep")
            async with asyncio.timeout(LIMIT_S):
                while world.alive:
                    await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())


# -- threads ----------------------------------------------------------------------------------------------------------


def test_many_threads_and_little_room_never_run_what_is_gone() -> None:
    world = World(nbytes_max=100)
    models = [world.add(name, 40) for name in "abcd"]

    def caller(seed: int) -> int:
        rng = np.random.default_rng(seed)
        refused = 0
        for _ in range(100):
            try:
                models[rng.integers(4)].run({"x": np.ones(1)})
            except TollwayError as error:
                assert error.code is Code.OVERLOADED
                refused += 1
        return refused

    with ThreadPoolExecutor(4) as pool:
        refused = sum(pool.map(caller, range(4)))
    assert refused < 400
    assert world.residency.nbytes <= 100
    assert len(world.alive) <= 2
    assert not any(model.users for model in models)


def test_a_load_holds_up_no_batch_of_another_model() -> None:
    world = World(nbytes_max=1000, idle_ns=1)
    slow, quick = world.add("slow", 10), world.add("quick", 10)
    gate = threading.Event()
    world.now_ns = 10
    world.use(quick)
    world.residency.sweep()
    original = slow.load

    def load_slowly() -> Any:
        assert gate.wait(LIMIT_S)
        return original()

    slow.load = load_slowly
    batches = BatchThreads(1)
    with ThreadPoolExecutor(1) as loading:
        outcomes: dict[str, Outcome] = {}
        done = {name: threading.Event() for name in ("slow", "quick")}

        def launch(model: ResidentModel) -> None:
            def finish(outcome: Outcome) -> None:
                outcomes[model.name] = outcome
                done[model.name].set()

            def task() -> Executed:
                return Executed([model.run({"x": np.ones(1)})], 0, 0, 0)

            place = ResidentPlace(model, batches, loading, 1)
            assert not place.is_short(1)
            place.launch(task, finish)

        launch(slow)
        launch(quick)
        assert done["quick"].wait(LIMIT_S)
        assert not done["slow"].is_set()
        gate.set()
        assert done["slow"].wait(LIMIT_S)
        assert all(isinstance(outcome, Executed) for outcome in outcomes.values())
    batches.close()


# -- real memory ------------------------------------------------------------------------------------------------------


def test_memory_that_was_freed_is_given_back() -> None:
    # Small pieces: the C library would give back a large one at once.
    pieces = [np.ones(8_000) for _ in range(1_000)]
    held = resident_bytes()
    del pieces
    return_free_memory()
    assert resident_bytes() < held - 32_000_000
