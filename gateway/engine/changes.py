"""Owns loads and unloads while calls are served (model repository extension).

One change at a time. New versions come up beside the old ones and take their place in one step, together with every
ensemble made of them; the old ones are given back when their last work has ended. So no call fails for a reload: a
call found either the old version, which answers it, or the new one. A load that fails changes nothing that serves.
"""

import asyncio
import logging
from collections.abc import Coroutine, Iterable
from typing import TYPE_CHECKING, Any, Final

from gateway.engine.bring_up import bring_up, is_up
from gateway.engine.host import Host
from gateway.engine.model import ModelVersion, State
from gateway.engine.overrides import Override, remove_files, write_files
from gateway.errors import Code, TollwayError
from model_repo.ensembles import EnsembleStep
from model_repo.errors import RepositoryError
from model_repo.repository import ModelFolder

if TYPE_CHECKING:
    from gateway.engine.registry import Registry

_LOG: Final = logging.getLogger("tollway.engine")
#: Works of a version that was replaced or unloaded have so long to end.
RETIRE_S: Final = 30.0
_LOOK_S: Final = 0.01

#: Name → number → version.
Staged = dict[str, dict[int, ModelVersion]]


class Changes:
    """The changes of one registry. All methods belong to the loop's thread."""

    def __init__(self, registry: "Registry", host: Host, *, retire_s: float = RETIRE_S) -> None:
        self._registry = registry
        self._host = host
        self._retire_s = retire_s
        self._one_at_a_time = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        #: Folders that loads brought with them.
        self._brought: list[ModelFolder] = []

    def start(self, change: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None]":
        """Run a change to its end, whether or not its caller waits: half a change is none."""
        task = self._host.loop.create_task(change, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def load(self, name: str, override: Override) -> None:
        """Load, or load anew.

        Raises:
            TollwayError: model_not_found; bad_request, for an override that cannot be; backend_fault with the reason,
                where the model does not come up.
        """
        async with self._one_at_a_time:
            staged: Staged = {}
            try:
                await self._stage(name, override, staged)
                await self._bring_up(staged)
            except BaseException as error:
                await self._discard(staged)
                if isinstance(error, RepositoryError):
                    _LOG.error("load_failed model=%s reason=%s", name, error)
                    self._registry.note(name, str(error))
                    raise TollwayError(Code.BACKEND_FAULT, f"failed to load '{name}': {error}") from error
                raise
            replaced = self._registry.replace(staged)
            _LOG.info("loaded model=%s versions=%s", name, ",".join(map(str, staged[name])))
            self.start(self._retire(replaced), f"retire {name}")

    async def unload(self, name: str, *, is_with_steps: bool = False, reason: str = "") -> None:
        """Refuse new calls, let those under way end, give the memory back.

        `is_with_steps`: of an ensemble, its steps too, but for those that another loaded ensemble needs. `reason`:
        why, where nobody asked for it.

        Raises:
            TollwayError: model_not_found.
        """
        async with self._one_at_a_time:
            names = self._steps_of(name) if is_with_steps else [name]
            if not self._registry.is_known(name):
                raise TollwayError(Code.MODEL_NOT_FOUND, f"model '{name[:200]}' is not found")
            leaving = [version for own in names for version in self._registry.loaded(own)]
            for version in leaving:
                version.state = State.UNLOADING
            await self._wait_for(leaving)
            await self._give_back(leaving)
            for own in names:
                self._registry.forget(own, reason or self._registry.unloaded)
            await self._remove_unused()
            _LOG.info("unloaded models=%s", ",".join(names))

    async def aclose(self) -> None:
        """End what is under way, and remove what loads brought."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for folder in self._brought:
            await self._host.loop.run_in_executor(self._host.pool, remove_files, folder)
        self._brought.clear()

    # -- load ----------------------------------------------------------------------------------------------------------

    async def _stage(self, name: str, override: Override, staged: Staged) -> None:
        """Versions of `name`, of steps that are missing, and of the ensembles that are made of them; none is loaded."""
        run = self._host.loop.run_in_executor
        if override.files:
            folder: ModelFolder | None = await run(self._host.pool, write_files, name, override)
            assert folder is not None
            self._brought.append(folder)
        else:
            folder = await run(self._host.pool, self._registry.find_folder, name)
        if folder is None:
            raise TollwayError(Code.MODEL_NOT_FOUND, f"model '{name[:200]}' is in no repository")
        config = await run(self._host.pool, self._registry.read, folder, override.config)
        staged[name] = await self._registry.make_versions(folder, config)
        for step in config.steps:
            if step.model not in staged and not self._registry.loaded(step.model):
                await self._stage(step.model, Override(), staged)
        self._stage_dependents(staged)

    def _stage_dependents(self, staged: Staged) -> None:
        """Ensembles hold their steps: they are made anew with what they are made of."""
        is_growing = True
        while is_growing:
            is_growing = False
            for version in self._registry.versions():
                is_made_of = any(step.model in staged for step in version.config.steps)
                if is_made_of and version.name not in staged:
                    staged[version.name] = {
                        other.number: other.renewed() for other in self._registry.loaded(version.name)
                    }
                    is_growing = True

    async def _bring_up(self, staged: Staged) -> None:
        """Raises: RepositoryError: one does not come up, and its like serves now, or was asked for."""

        def find_step(step: EnsembleStep) -> ModelVersion:
            own = staged.get(step.model)
            if own is None:
                return self._registry.find_step(step)
            number = self._registry.default_number(own) if step.version < 0 else step.version
            if number not in own:
                raise RepositoryError(f"ensemble step '{step.model}': has no version {number}")
            return own[number]

        versions = [version for of_name in staged.values() for version in of_name.values()]
        await bring_up(versions, self._host, find_step)
        for version in versions:
            if not is_up(version) and not self._was_down(version):
                where = (
                    f"version {version.number}" if len(staged) == 1 else f"'{version.name}' version {version.number}"
                )
                raise RepositoryError(f"{where}: {version.reason}")

    def _was_down(self, version: ModelVersion) -> bool:
        """An ensemble that did not serve before either keeps no step from being loaded."""
        return any(
            old.number == version.number and not is_up(old) and old.config is version.config
            for old in self._registry.loaded(version.name)
        )

    async def _discard(self, staged: Staged) -> None:
        await self._give_back(version for of_name in staged.values() for version in of_name.values())
        await self._remove_unused()

    # -- unload --------------------------------------------------------------------------------------------------------

    def _steps_of(self, name: str) -> list[str]:
        """`name` and its steps, at any depth, without those that other ensembles need."""
        names = [name]
        for own in names:
            steps = [step.model for version in self._registry.loaded(own) for step in version.config.steps]
            names += [step for step in dict.fromkeys(steps) if step not in names]
        needed = {
            step.model
            for version in self._registry.versions()
            if version.name not in names
            for step in version.config.steps
        }
        return [own for own in names if own == name or own not in needed]

    async def _retire(self, versions: list[ModelVersion]) -> None:
        await self._wait_for(versions)
        await self._give_back(versions)
        await self._remove_unused()

    async def _wait_for(self, versions: list[ModelVersion]) -> None:
        """Until no work is under way in them, nor in what is made of them, or `retire_s` is over."""
        involved = set(versions)
        added = 1
        while added:
            made = {version for version in self._registry.versions() if involved.intersection(version.steps)}
            added = len(made - involved)
            involved |= made
        end_ns = self._host.clock.monotonic_ns() + int(self._retire_s * 1e9)
        # A work ends in one of five places, and a change is rare: looking is cheaper than telling.
        while any(version.open_works for version in involved) and self._host.clock.monotonic_ns() < end_ns:
            await asyncio.sleep(_LOOK_S)

    async def _give_back(self, versions: Iterable[ModelVersion]) -> None:
        for version in versions:
            await version.unload()

    async def _remove_unused(self) -> None:
        """Folders that loads brought, and whose models are gone."""
        used = {version.folder.path for version in self._registry.versions()}
        unused = [folder for folder in self._brought if folder.path not in used]
        self._brought = [folder for folder in self._brought if folder.path in used]
        for folder in unused:
            await self._host.loop.run_in_executor(self._host.pool, remove_files, folder)
