"""Owns the choice among the builds of one version: the best that fits this host and comes up here."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

from gateway.engine.admission import Build, admit
from gateway.engine.host import Host
from gateway.engine.loading import Loaded, Source
from model_repo.errors import RepositoryError

_LOG: Final = logging.getLogger("tollway.engine")


async def load_version(source: Source, host: Host, load: Callable[[Source], Awaitable[Loaded]]) -> Loaded:
    """Admit a version and load the best of its builds that comes up on this host, by `load`.

    Raises:
        RepositoryError: it is not admitted, or none comes up.
    """
    builds = await host.loop.run_in_executor(host.pool, admit, source.folder, source.number, source.config, host.rules)
    faults = []
    for build in builds:
        config = build.config or source.config
        try:
            loaded = await load(replace(source, config=config, build=build))
            await _check_seal(loaded, build, host)
        except RepositoryError as error:
            faults.append(f"variant {build.name}: {error}" if build.name else str(error))
            _LOG.warning("build_refused model=%s build=%s reason=%s", config.name, build.name or "own", error)
            continue
        if build.name:
            return replace(loaded, description=f"{loaded.description}; variant {build.name}")
        return loaded
    raise RepositoryError("; ".join(faults))


async def _check_seal(loaded: Loaded, build: Build, host: Host) -> None:
    try:
        await host.loop.run_in_executor(host.pool, build.seal.check)
    except RepositoryError:
        await loaded.close()
        raise
