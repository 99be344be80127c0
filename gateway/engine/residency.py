"""Owns which models are in memory, where a byte budget or an idle time is set: loads on demand, unloads the least used.

Every model is loaded once at start, so that one that cannot be loaded is known; after that it comes and goes. A model
that runs is never unloaded. One load at a time, so that the growth of the process is the model's.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final, Protocol

from gateway.engine.memory import resident_bytes, return_free_memory
from gateway.engine.tensors import Array
from gateway.engine.threads import BatchThreads, Done, Task
from gateway.engine.work import Feeds
from gateway.errors import Code, TollwayError
from model_repo.errors import RepositoryError

_LOG: Final = logging.getLogger("tollway.engine")
_RETRY_MS: Final = 1000
_SWEEPS_AN_IDLE_TIME: Final = 4
_SWEEP_S_MIN: Final = 0.05


class Unloadable(Protocol):
    """A loaded model."""

    description: str

    def run(self, feeds: Feeds) -> list[Array]: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """`nbytes_max` 0: no budget. `idle_ns` 0: a model is never unloaded for being idle.

    `room_wait_s`: how long a load waits until models that run have left it room.
    """

    nbytes_max: int = 0
    idle_ns: int = 0
    room_wait_s: float = 10.0

    @property
    def is_set(self) -> bool:
        return bool(self.nbytes_max or self.idle_ns)


@dataclass(frozen=True, slots=True)
class Held:
    """A model in memory, as the choice of what goes sees it."""

    nbytes: int
    used_ns: int
    is_busy: bool


def choose_victims(held: Sequence[Held], need: int, nbytes_max: int) -> list[int] | None:
    """Positions of the models to unload so that `need` more bytes fit, longest unused first; None: they cannot fit.

    No more than needed: each one chosen was necessary with those before it.
    """
    excess = sum(one.nbytes for one in held) + need - nbytes_max
    victims = []
    for position in sorted(range(len(held)), key=lambda place: held[place].used_ns):
        if excess <= 0:
            break
        if not held[position].is_busy:
            victims.append(position)
            excess -= held[position].nbytes
    return victims if excess <= 0 else None


class ResidentModel:
    """A `Runtime` whose model may be out of memory between runs. `nbytes`: held when loaded, as last measured."""

    def __init__(self, name: str, load: Callable[[], Unloadable], nbytes_min: int, residency: "Residency") -> None:
        self.name = name
        self.load = load
        self.nbytes = nbytes_min
        self.nbytes_min = nbytes_min
        self.description = ""
        self.loaded: Unloadable | None = None
        self.users = 0
        self.used_ns = 0
        self._residency = residency

    def run(self, feeds: Feeds) -> list[Array]:
        loaded = self._residency.acquire(self)
        try:
            return loaded.run(feeds)
        finally:
            self._residency.release(self)

    def load_now(self) -> None:
        """Load it ahead of a run. Raises: TollwayError, as `Residency.acquire`."""
        self._residency.acquire(self)
        self._residency.release(self)

    def close(self) -> None:
        self._residency.remove(self)


class Residency:
    """All models that come and go. Thread-safe; whatever loads or unloads blocks, and is not for the loop's thread."""

    def __init__(
        self,
        bounds: Bounds,
        now_ns: Callable[[], int],
        *,
        measure: Callable[[], int] = resident_bytes,
        give_back: Callable[[], None] = return_free_memory,
    ) -> None:
        self.bounds = bounds
        self._now = now_ns
        self._measure = measure
        self._give_back = give_back
        self._models: list[ResidentModel] = []
        #: Notified when a model is no longer in use.
        self._lock = threading.Condition()
        self._loading = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Held by all models that are loaded."""
        with self._lock:
            return sum(model.nbytes for model in self._models if model.loaded is not None)

    def add(self, name: str, load: Callable[[], Unloadable], nbytes_min: int) -> ResidentModel:
        """A new model, loaded. `nbytes_min`: the size of its file, counted where the process grows by less.

        Raises:
            RepositoryError: it cannot be loaded, or is larger than the whole budget.
        """
        if 0 < self.bounds.nbytes_max < nbytes_min:
            raise RepositoryError(f"its file has {nbytes_min} bytes, more than the budget of all models")
        model = ResidentModel(name, load, nbytes_min, self)
        with self._lock:
            self._models.append(model)
            model.users += 1
        try:
            with self._loading:
                self._make_room(model)
                self._load(model)
            if 0 < self.bounds.nbytes_max < model.nbytes:
                raise RepositoryError(f"needs {model.nbytes} bytes of memory, more than the budget of all models")
        except TollwayError as error:
            self.remove(model)
            raise RepositoryError(error.message) from error
        except BaseException:
            self.remove(model)
            raise
        finally:
            self.release(model)
        return model

    def acquire(self, model: ResidentModel) -> Unloadable:
        """The loaded model, which stays so until `release`; loads it if need be.

        Raises:
            TollwayError: overloaded, where what must stay leaves no room; model_not_ready, where its file is no longer
                what it was.
        """
        with self._lock:
            model.users += 1
            model.used_ns = self._now()
            if model.loaded is not None:
                return model.loaded
        try:
            with self._loading:
                # Somebody else may have loaded it meanwhile.
                if model.loaded is None:
                    self._make_room(model)
                    self._load(model)
                assert model.loaded is not None
                return model.loaded
        except RepositoryError as error:
            self.release(model)
            _LOG.error("model_reload_failed model=%s reason=%s", model.name, error)
            message = f"model '{model.name}' cannot be loaded again"
            raise TollwayError(Code.MODEL_NOT_READY, message, retry_after_ms=_RETRY_MS) from error
        except BaseException:
            self.release(model)
            raise

    def release(self, model: ResidentModel) -> None:
        with self._lock:
            model.users -= 1
            model.used_ns = self._now()
            self._lock.notify_all()

    def remove(self, model: ResidentModel) -> None:
        """Unload for good. Idempotent; no run is under way."""
        with self._lock:
            if model in self._models:
                self._models.remove(model)
            victims = self._detach([model])
        self._unload(victims, "removed")

    def sweep(self) -> None:
        """Unload what was not used for the idle time."""
        if not self.bounds.idle_ns:
            return
        with self._lock:
            before_ns = self._now() - self.bounds.idle_ns
            victims = self._detach([model for model in self._models if not model.users and model.used_ns <= before_ns])
        self._unload(victims, "idle")

    def _make_room(self, model: ResidentModel) -> None:
        if not self.bounds.nbytes_max:
            return
        victims: list[tuple[ResidentModel, Unloadable]] = []

        def has_room() -> bool:
            loaded, held = self._held()
            chosen = choose_victims(held, min(model.nbytes, self.bounds.nbytes_max), self.bounds.nbytes_max)
            if chosen is not None:
                victims.extend(self._detach([loaded[place] for place in chosen]))
            return chosen is not None

        with self._lock:
            if not self._lock.wait_for(has_room, self.bounds.room_wait_s):
                message = f"no memory for model '{model.name}': the models in use leave too little of the budget"
                raise TollwayError(Code.OVERLOADED, message, retry_after_ms=_RETRY_MS)
        self._unload(victims, "budget")

    def _load(self, model: ResidentModel) -> None:
        """Under the lock of loads. What it really took may ask for more room than its file said."""
        before = self._measure()
        loaded = model.load()
        with self._lock:
            model.description = loaded.description
            model.nbytes = max(self._measure() - before, model.nbytes_min)
            model.loaded = loaded
            victims = self._detach(self._surplus()) if self.bounds.nbytes_max else []
        self._unload(victims, "budget")
        _LOG.info("model_loaded model=%s nbytes=%d", model.name, model.nbytes)

    def _surplus(self) -> list[ResidentModel]:
        """Under the lock: what must go to be within the budget, or, where that cannot be reached, all that may go."""
        loaded, held = self._held()
        chosen = choose_victims(held, 0, self.bounds.nbytes_max)
        if chosen is None:
            return [other for other in loaded if not other.users]
        return [loaded[place] for place in chosen]

    def _held(self) -> tuple[list[ResidentModel], list[Held]]:
        loaded = [other for other in self._models if other.loaded is not None]
        return loaded, [Held(other.nbytes, other.used_ns, bool(other.users)) for other in loaded]

    def _detach(self, models: Sequence[ResidentModel]) -> list[tuple[ResidentModel, Unloadable]]:
        """Under the lock: nobody gets these any more."""
        victims = [(model, model.loaded) for model in models if model.loaded is not None]
        for model, _ in victims:
            model.loaded = None
        return victims

    def _unload(self, victims: list[tuple[ResidentModel, Unloadable]], reason: str) -> None:
        """Close them, and measure for each by how much the process shrank."""
        while victims:
            model, loaded = victims.pop()
            before = self._measure()
            loaded.close()
            del loaded
            self._give_back()
            returned = before - self._measure()
            text = "model_unloaded model=%s reason=%s nbytes=%d returned=%d"
            _LOG.info(text, model.name, reason, model.nbytes, returned)


class ResidentPlace:
    """Where batches of such a model run: never on the loop, and its load takes none of the threads of batches."""

    def __init__(self, model: ResidentModel, batches: BatchThreads, loading: Executor, slots: int) -> None:
        self._model = model
        self._batches = batches
        self._loading = loading
        self._slots = slots

    def slots(self) -> int:
        return self._slots

    def is_short(self, rows: int) -> bool:
        return False

    def launch(self, task: Task, done: Done) -> None:
        if self._model.loaded is not None:
            self._batches.run(task, done)
        else:
            self._loading.submit(self._load_first, task, done)

    def _load_first(self, task: Task, done: Done) -> None:
        # What goes wrong here is met again, and told, by the run itself.
        with contextlib.suppress(TollwayError):
            self._model.load_now()
        self._batches.run(task, done)


async def sweep_forever(residency: Residency, loop: asyncio.AbstractEventLoop, pool: Executor) -> None:
    """Unload idle models until cancelled."""
    wait_s = max(residency.bounds.idle_ns / 1e9 / _SWEEPS_AN_IDLE_TIME, _SWEEP_S_MIN)
    while True:
        await asyncio.sleep(wait_s)
        await loop.run_in_executor(pool, residency.sweep)
