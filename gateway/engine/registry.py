"""Owns the models of an engine: finds them in their repositories, loads them, and looks them up by name and version."""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from gateway.engine.admission import Unapproved, choose_versions
from gateway.engine.auto_config import complete_file_config
from gateway.engine.bring_up import bring_up, is_up
from gateway.engine.changes import Changes
from gateway.engine.host import Host
from gateway.engine.model import ModelVersion, State
from gateway.engine.observing import Observer
from gateway.engine.python_complete import complete_config
from gateway.errors import Code, TollwayError
from model_repo.config import ModelConfig, parse_config
from model_repo.ensembles import EnsembleStep
from model_repo.errors import RepositoryError
from model_repo.release import STABLE
from model_repo.repository import ModelFolder, find_model, read_config, scan_repository

_LOG: Final = logging.getLogger("tollway.engine")


class Registry:
    """Model versions by name and number, and what could not become one."""

    #: The reason to `forget` a model with that is taken out of service.
    unloaded: Final = "unloaded"

    def __init__(self, repositories: Iterable[Path], host: Host) -> None:
        # Absolute: a step's process has another working directory.
        self._repositories = tuple(root.absolute() for root in repositories)
        self._host = host
        host.directory.find = self.get
        self._models: dict[str, dict[int, ModelVersion]] = {}
        #: Name → why there is no version of it.
        self._refused: dict[str, str] = {}
        #: Name → (versions, why): unloaded on demand, or not come up when asked to. Their absence is no fault.
        self._absent: dict[str, tuple[tuple[str, ...], str]] = {}
        self._is_loaded = False
        self.changes = Changes(self, host)
        self.observer = Observer(host.clock.monotonic_ns)

    @property
    def is_ready(self) -> bool:
        """Loading has ended, there is a model, and none has failed to load or to warm up.

        A step that restarts makes its own model not ready, not the engine: one caller's poison must not take every
        model from everyone.
        """
        versions = list(self.versions())
        return (
            self._is_loaded
            and bool(versions)
            and not self._refused
            and all(version.state in (State.READY, State.UNLOADING) for version in versions)
            and any(is_up(version) for version in versions)
        )

    def versions(self) -> Iterable[ModelVersion]:
        """All versions, by name and ascending number."""
        for _, versions in sorted(self._models.items()):
            yield from (version for _, version in sorted(versions.items()))

    def versions_of(self, name: str) -> list[ModelVersion]:
        """Ascending.

        Raises:
            TollwayError: model_not_found.
        """
        versions = self._models.get(name)
        if versions is None:
            raise self._not_here(name)
        return [version for _, version in sorted(versions.items())]

    def get(self, name: str, version: str = "") -> ModelVersion:
        """A version by number or alias, ready or not; without either the one called `stable`, else the latest ready
        one, else the latest.

        Raises:
            TollwayError: model_not_found, version_not_found.
        """
        versions = self._models.get(name)
        if versions is None:
            raise self._not_here(name)
        if version:
            found = (
                versions.get(int(version)) if version.isascii() and version.isdigit() else _aliased(versions, version)
            )
            if found is None:
                raise TollwayError(Code.VERSION_NOT_FOUND, f"model '{name}' has no version '{version[:40]}'")
            return found
        if not versions:
            raise TollwayError(Code.VERSION_NOT_FOUND, f"model '{name}' has no version: {self._refused.get(name, '')}")
        if len(versions) == 1:
            return next(iter(versions.values()))
        stable = _aliased(versions, STABLE)
        if stable is not None:
            return stable
        ready = [number for number, candidate in versions.items() if candidate.is_ready]
        return versions[max(ready or versions)]

    def aliases_of(self, name: str, version: str) -> list[str]:
        """Of a version as the index names it, sorted."""
        found = self._models.get(name, {}).get(int(version) if version else 0)
        return sorted(found.aliases) if found is not None else []

    def _not_here(self, name: str) -> TollwayError:
        if name in self._absent:
            return TollwayError(Code.MODEL_NOT_READY, f"model '{name}' is not loaded: {self._absent[name][1]}")
        return TollwayError(Code.MODEL_NOT_FOUND, f"model '{name[:200]}' is not found")

    def index(self, *, is_ready_only: bool = False) -> list[dict[str, str]]:
        """Triton's repository index. A version whose step is down is UNAVAILABLE while it is."""
        rows = [
            {
                "name": version.name,
                "version": version.version,
                "state": version.shown_state.value,
                "reason": version.reason or ("" if version.is_ready else "not ready"),
            }
            for version in self.versions()
            if version.is_ready or not is_ready_only
        ]
        if is_ready_only:
            return rows
        rows += [
            {"name": name, "version": "", "state": State.UNAVAILABLE.value, "reason": reason}
            for name, reason in sorted(self._refused.items())
        ]
        rows += [
            {"name": name, "version": version, "state": State.UNAVAILABLE.value, "reason": reason}
            for name, (versions, reason) in sorted(self._absent.items())
            for version in versions or ("",)
        ]
        return rows

    async def load(self) -> None:
        """Scan and load everything; returns when each version is READY or UNAVAILABLE.

        Raises:
            RepositoryError: a repository itself cannot be read.
        """
        for root in self._repositories:
            scan = await self._host.loop.run_in_executor(self._host.pool, scan_repository, root)
            self._refused.update(scan.refused)
            for folder in scan.models:
                await self._add(folder)
        await bring_up(list(self.versions()), self._host, self.find_step)
        self._is_loaded = True
        for row in self.index():
            log = _LOG.info if row["state"] == State.READY else _LOG.error
            log("model name=%s version=%s state=%s reason=%s", *row.values())

    async def _add(self, folder: ModelFolder) -> None:
        if folder.name in self._models:
            self._refused[folder.name] = "is in two repositories; the first one's is served"
            return
        self._models[folder.name] = {}
        try:
            config = await self._host.loop.run_in_executor(self._host.pool, self.read, folder)
            versions = await self.make_versions(folder, config)
        except Unapproved as error:
            del self._models[folder.name]
            self._absent[folder.name] = ((), str(error))
            return
        except RepositoryError as error:
            self._refused[folder.name] = str(error)
            return
        self._models[folder.name] = versions

    async def make_versions(self, folder: ModelFolder, config: ModelConfig) -> dict[int, ModelVersion]:
        """The versions of a model that are to be served, not loaded yet; at least one.

        Raises:
            RepositoryError: there is none; `Unapproved`, where one only waits for its approval.
        """
        run = self._host.loop.run_in_executor
        chosen = await run(self._host.pool, choose_versions, folder, config, self._host.rules)
        return {number: ModelVersion(folder, config, number, aliases) for number, aliases in chosen.items()}

    def is_unloaded(self, name: str) -> bool:
        """Taken out of service on demand, and not loaded since."""
        return self._absent.get(name, ((), ""))[1] == self.unloaded

    async def rename(self, name: str) -> bool:
        """Take over a model's aliases where they need no load; False, and nothing done, where they do.

        Raises:
            RepositoryError: its release or its configuration cannot be read.
        """
        loaded = self._models.get(name)
        is_step = any(step.model == name for version in self.versions() for step in version.config.steps)
        # Ensembles hold the versions that they are made of: they are made anew with them.
        if not loaded or is_step or any(not is_up(version) for version in loaded.values()):
            return False
        folder = next(iter(loaded.values())).folder
        found = await self._host.loop.run_in_executor(self._host.pool, self.find_folder, name)
        if found is None or found.path != folder.path:
            return False
        config = next(iter(loaded.values())).config
        run = self._host.loop.run_in_executor
        chosen = await run(self._host.pool, choose_versions, found, config, self._host.rules)
        if set(chosen) != set(loaded) or loaded is not self._models.get(name):
            return False
        for number, aliases in chosen.items():
            loaded[number].aliases = aliases
        return True

    def find_step(self, step: EnsembleStep) -> ModelVersion:
        """Raises: RepositoryError: there is no such model or version."""
        try:
            return self.get(step.model, "" if step.version < 0 else str(step.version))
        except TollwayError as error:
            raise RepositoryError(f"ensemble step '{step.model}': {error.message}") from error

    @staticmethod
    def default_number(versions: Mapping[int, ModelVersion]) -> int:
        """Of the version that a step without a number means, of versions that are not loaded yet."""
        stable = _aliased(versions, STABLE)
        return max(versions) if stable is None else stable.number

    # -- changes (gateway.engine.changes) ------------------------------------------------------------------------------

    def find_folder(self, name: str) -> ModelFolder | None:
        """Where a model lies; of two repositories that have it, the first. Blocks."""
        return next((folder for root in self._repositories if (folder := find_model(root, name))), None)

    def read(self, folder: ModelFolder, text: str = "") -> ModelConfig:
        """The configuration of a model: `text`, or config.pbtxt, or (if the rules let it) what its file says. Blocks.

        Raises:
            RepositoryError: there is none, or it cannot be served.
        """
        if self._host.rules.is_strict:
            # Completing a configuration runs the version's code, or reads its file, before it is admitted.
            return parse_config(text or read_config(folder), name=folder.name)
        text = complete_file_config(text, folder)
        completed = complete_config(text, folder, self._host.python_allowed, self._host.python_limits)
        return completed or parse_config(text, name=folder.name)

    def is_known(self, name: str) -> bool:
        return name in self._models or name in self._absent or name in self._refused

    def loaded(self, name: str) -> list[ModelVersion]:
        """Versions of a model, ascending, in whatever state; none if it is not there."""
        return [version for _, version in sorted(self._models.get(name, {}).items())]

    def replace(self, models: Mapping[str, dict[int, ModelVersion]]) -> list[ModelVersion]:
        """Serve these from now on; returns those that they replace."""
        replaced = [version for name in models for version in self.loaded(name)]
        for name, versions in models.items():
            self._models[name] = versions
            self._refused.pop(name, None)
            self._absent.pop(name, None)
        return replaced

    def note(self, name: str, reason: str) -> None:
        """A load failed: said in the index, unless an older version of the model serves on."""
        if not self._models.get(name):
            self.forget(name, reason)

    def forget(self, name: str, reason: str) -> None:
        """Serve a model no more."""
        versions = tuple(version.version for version in self.loaded(name))
        self._models.pop(name, None)
        self._refused.pop(name, None)
        self._absent[name] = (versions or self._absent.get(name, ((), ""))[0], reason)

    async def unload(self) -> None:
        """Give everything back; the caller has waited for works under way."""
        self._is_loaded = False
        await self.changes.aclose()
        self.observer.close()
        async with asyncio.TaskGroup() as group:
            for version in self.versions():
                group.create_task(version.unload(), name=f"unload {version.name}")


def _aliased(versions: Mapping[int, ModelVersion], alias: str) -> ModelVersion | None:
    return next((version for version in versions.values() if alias in version.aliases), None)


def model_stats(versions: Iterable[ModelVersion]) -> dict[str, Any]:
    """Triton's statistics extension."""
    return {"model_stats": [version.statistics.as_json(version.name, version.version) for version in versions]}
