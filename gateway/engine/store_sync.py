"""Owns keeping the engine's mirror in line with a model store, and serving what came or went.

A store that does not answer changes nothing: what the mirror holds serves on. Aliases and approvals that came along
are followed as on any other disk (`gateway.engine.following`).
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from gateway.engine.host import Host
from gateway.engine.overrides import Override
from gateway.engine.registry import Registry
from gateway.errors import TollwayError
from model_repo.errors import RepositoryError
from model_repo.mirror import Pulled, pull
from model_repo.stores import open_store

_LOG: Final = logging.getLogger("tollway.engine")


class StoreSync:
    """One store and its mirror. `pool` has a thread of its own: a store that is slow keeps no other work waiting."""

    def __init__(self, address: str, mirror: Path, pool: ThreadPoolExecutor, host: Host) -> None:
        self._store = open_store(address)
        self._mirror = mirror
        self._pool = pool
        self._host = host
        #: Whether the mirror held no model when the engine started.
        self.is_empty = not any(mirror.glob("*/config.pbtxt"))

    async def pull(self) -> list[str]:
        """Bring the mirror in line; the models of which versions came or went. Faults are logged."""
        try:
            pulled = await self._host.loop.run_in_executor(self._pool, pull, self._store, self._mirror)
        except RepositoryError as error:
            _LOG.error("store_not_read store=%s reason=%s", self._store.address, error)
            return []
        return [one.model for one in pulled if self._is_changed(one)]

    def _is_changed(self, pulled: Pulled) -> bool:
        if pulled.fault:
            _LOG.error("model_not_pulled model=%s reason=%s", pulled.model, pulled.fault)
            return False
        if pulled.added or pulled.removed:
            _LOG.info("model_pulled model=%s added=%s removed=%s", pulled.model, pulled.added, pulled.removed)
        return bool(pulled.added or pulled.removed)

    async def keep(self, registry: Registry, poll_s: float, on_pull: Callable[[], None] = lambda: None) -> None:
        """Pull now and every `poll_s` seconds until cancelled, and load what changed; `on_pull`: after each."""
        while True:
            for name in await self.pull():
                await self._load(registry, name)
            on_pull()
            await asyncio.sleep(poll_s)

    async def _load(self, registry: Registry, name: str) -> None:
        """As its configuration's version policy, aliases and approvals say. What was unloaded on demand stays so."""
        if registry.is_unloaded(name):
            return
        try:
            change = registry.changes.load(name, Override())
            await asyncio.shield(registry.changes.start(change, f"sync {name}"))
        except TollwayError as error:
            _LOG.error("model_not_synced model=%s reason=%s", name, error)
