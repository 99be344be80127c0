"""Owns the order in which model versions are loaded: models side by side, then ensembles after their steps."""

import asyncio
from collections.abc import Callable, Iterable

from gateway.engine.host import Host
from gateway.engine.model import ModelVersion, State
from model_repo.ensembles import EnsembleStep

FindStep = Callable[[EnsembleStep], ModelVersion]


async def bring_up(versions: Iterable[ModelVersion], host: Host, find_step: FindStep) -> None:
    """Load each; when this returns, each is READY or UNAVAILABLE with its reason."""
    waiting = []
    async with asyncio.TaskGroup() as group:
        for version in versions:
            if version.config.platform == "ensemble":
                waiting.append(version)
            else:
                group.create_task(version.load(host, find_step), name=f"load {version.name}")
    while waiting:
        names = {version.name for version in waiting}
        next_round = [
            version for version in waiting if not names.intersection(step.model for step in version.config.steps)
        ]
        if not next_round:
            for version in waiting:
                version.refuse("ensemble_scheduling: ensembles that contain each other")
            return
        for version in next_round:
            await version.load(host, find_step)
            waiting.remove(version)


def is_up(version: ModelVersion) -> bool:
    """Loaded and warmed up; a step that restarts does not change it."""
    return version.state is State.READY
