"""Owns one model version: its life from LOADING to READY or UNAVAILABLE, and whether it can run now.

`is_ready` never lies: a version is ready after its warm-up, and not while its Python step, or a step of it, is down.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final

from gateway.engine.builds import load_version
from gateway.engine.host import Host
from gateway.engine.interface import Interface
from gateway.engine.labels import read_labels
from gateway.engine.loading import (
    Loaded,
    Source,
    has_ranks,
    load_ensemble_version,
    load_file_version,
    load_python_version,
    load_sequence_version,
)
from gateway.engine.statistics import Statistics
from gateway.engine.work import Servable
from gateway.errors import Code, TollwayError
from model_repo.config import ModelConfig
from model_repo.ensembles import EnsembleStep
from model_repo.errors import RepositoryError
from model_repo.repository import ModelFolder

_LOADING_RETRY_MS: Final = 1000


class State(StrEnum):
    """The states of Triton's repository index."""

    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


class ModelVersion:
    """A version of a model as the service sees it."""

    def __init__(
        self, folder: ModelFolder, config: ModelConfig, number: int, aliases: frozenset[str] = frozenset()
    ) -> None:
        self.name = config.name
        self.number = number
        self.version = str(number)
        #: Names under which it is asked for beside its number.
        self.aliases = aliases
        self.config = config
        self.interface = Interface(config)
        #: Whether one request may have any number of responses.
        self.is_decoupled = config.is_decoupled
        #: Whether its works need what their requests say beside their tensors; an ensemble hands it to its steps.
        self.reads_context = config.platform in ("python", "ensemble") or has_ranks(config)
        self.reads_context = self.reads_context or config.sequences is not None
        self.statistics = Statistics()
        #: What each protocol writes replies with, and knows requests by; they go with the version.
        self.rest_writer: Any = None
        self.rest_forms: Any = None
        self.rpc_writer: Any = None
        self.labels: dict[str, tuple[str, ...]] = {}
        self.state = State.LOADING
        self.reason = ""
        self._source = Source(
            folder=folder, config=config, number=number, interface=self.interface, statistics=self.statistics
        )
        self._loaded: Loaded | None = None
        self._steps: list[ModelVersion] = []

    @property
    def is_ready(self) -> bool:
        loaded = self._loaded
        if loaded is None or self.state is not State.READY:
            return False
        if loaded.python is not None:
            return loaded.python.slots() > 0
        return all(step.is_ready for step in self._steps)

    @property
    def shown_state(self) -> State:
        """READY only if it is."""
        return State.UNAVAILABLE if self.state is State.READY and not self.is_ready else self.state

    @property
    def folder(self) -> ModelFolder:
        """Where its files lie."""
        return self._source.folder

    @property
    def steps(self) -> list["ModelVersion"]:
        """What an ensemble is made of; empty for other models and before it is loaded."""
        return self._steps

    @property
    def open_works(self) -> int:
        """Works that wait or run in it."""
        return self._loaded.open_works() if self._loaded is not None else 0

    def renewed(self) -> "ModelVersion":
        """The same version, not loaded yet."""
        return ModelVersion(self._source.folder, self.config, self.number, self.aliases)

    def refuse(self, reason: str) -> None:
        """It cannot be served."""
        self.reason = reason
        self.state = State.UNAVAILABLE

    @property
    def runtime(self) -> str:
        """What runs it: library, version, providers or device; empty for Python steps and ensembles."""
        return self._loaded.description if self._loaded is not None else ""

    @property
    def pids(self) -> list[int]:
        """Processes of a Python step; empty for other models."""
        return self._loaded.python.pids if self._loaded is not None and self._loaded.python is not None else []

    def servable(self) -> Servable:
        """What runs this version's works.

        Raises:
            TollwayError: model_not_ready, with the time after which a retry makes sense.
        """
        loaded = self._loaded
        if loaded is None or not self.is_ready:
            raise self.not_ready()
        return loaded.servable

    def not_ready(self) -> TollwayError:
        python = self._loaded.python if self._loaded is not None else None
        retry_ms = python.retry_after_ms if python is not None else _LOADING_RETRY_MS
        message = f"model '{self.name}' version {self.version} is not ready"
        return TollwayError(Code.MODEL_NOT_READY, message, retry_after_ms=retry_ms)

    async def load(self, host: Host, find_step: Callable[[EnsembleStep], "ModelVersion"]) -> None:
        """Load, warm up and become READY; or UNAVAILABLE with the reason. What lies on disk makes it raise nothing."""
        try:
            self.labels = await host.loop.run_in_executor(host.pool, read_labels, self._source.folder, self.config)
            self._loaded = await self._load(host, find_step)
        except RepositoryError as error:
            self.refuse(str(error))
            return
        if self._loaded.python is not None:
            self._loaded.python.on_change = self._on_python_change
        self.state = State.READY

    async def _load(self, host: Host, find_step: Callable[[EnsembleStep], "ModelVersion"]) -> Loaded:
        return await load_version(self._source, host, lambda source: self._load_build(source, host, find_step))

    async def _load_build(
        self, source: Source, host: Host, find_step: Callable[[EnsembleStep], "ModelVersion"]
    ) -> Loaded:
        if source.config.sequences is not None:
            return await load_sequence_version(source, host)
        if source.config.platform == "python":
            return await load_python_version(source, host)
        if source.config.platform != "ensemble":
            return await load_file_version(source, host)
        self._steps = [find_step(step) for step in self.config.steps]

        def ready_step(step: EnsembleStep) -> tuple[Interface, Servable]:
            version = find_step(step)
            if version._loaded is None:
                raise RepositoryError(f"ensemble step '{step.model}': {version.reason or 'is not loaded'}")
            if version.is_decoupled:
                raise RepositoryError(f"ensemble step '{step.model}': a decoupled model cannot be a step")
            return version.interface, version._loaded.servable

        return await load_ensemble_version(source, host, ready_step)

    def _on_python_change(self) -> None:
        """A process ended or came up: queued works must not wait for one that may never come."""
        loaded = self._loaded
        if loaded is None or loaded.batcher is None or loaded.python is None or self.state is not State.READY:
            return
        if loaded.python.slots():
            loaded.batcher.open()
            loaded.batcher.wake()
        else:
            loaded.batcher.close(self.not_ready)

    async def unload(self) -> None:
        """Refuse what is queued, and give everything back; the caller has waited for works under way."""
        self.state = State.UNLOADING
        loaded = self._loaded
        if loaded is not None:
            if loaded.batcher is not None:
                loaded.batcher.close(self.not_ready)
            self._loaded = None
            await loaded.close()
        self.state = State.UNAVAILABLE
        self.reason = self.reason or "unloaded"
