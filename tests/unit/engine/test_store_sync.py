"""An engine serves what a store holds: what comes is loaded, what is silent changes nothing."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gateway.engine.following import Follower
from gateway.engine.store_sync import StoreSync
from model_repo import lifecycle
from model_repo.errors import RepositoryError
from model_repo.stores import FileStore
from tests.unit.engine.certified import Build, publish_build
from tests.unit.engine.making import EngineUnderTest, running_engine
from tests.unit.engine.test_admission import RULES, factor


class World:
    """A store, its mirror and the engine over the mirror; `pull` is one turn of its loop."""

    def __init__(self, engine: EngineUnderTest, store: Path, mirror: Path, sync: StoreSync) -> None:
        self.engine = engine
        self.store = store
        self.sync = sync
        self._follower = Follower(engine.registry, [mirror], engine.host)

    async def turn(self) -> None:
        pulled = asyncio.Event()
        keeping = asyncio.create_task(self.sync.keep(self.engine.registry, 3600, pulled.set))
        await asyncio.wait_for(pulled.wait(), 60)
        keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping
        for name in self._follower.look():
            await self._follower.apply(name)


@contextlib.asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    store, mirror = folder / "store", folder / "mirror"
    mirror.mkdir(exist_ok=True)
    with ThreadPoolExecutor(1) as pool:
        async with running_engine(mirror, rules=RULES) as engine:
            yield World(engine, store, mirror, StoreSync(f"file://{store}", mirror, pool, engine.host))


def run(folder: Path, test: Callable[[World], Any]) -> None:
    async def main() -> None:
        async with world(folder) as own:
            await test(own)

    asyncio.run(main())


def test_models_and_versions_that_come_are_served_and_aliases_followed(tmp_path: Path) -> None:
    async def test(own: World) -> None:
        assert own.sync.is_empty
        await own.turn()
        assert not list(own.engine.registry.versions())
        publish_build(own.store, Build())
        await own.turn()
        assert await factor(own.engine) == 2
        publish_build(own.store, Build(factor=3, golden=3))
        await own.turn()
        assert await factor(own.engine) == 3
        lifecycle.name_version(FileStore(own.store), "m", "stable", 1)
        await own.turn()
        assert await factor(own.engine) == 2

    run(tmp_path, test)


def test_a_store_that_cannot_be_read_and_a_version_that_does_not_come_up_change_nothing(tmp_path: Path) -> None:
    publish_build(tmp_path / "store", Build())

    async def test(own: World) -> None:
        await own.turn()
        assert await factor(own.engine) == 2
        publish_build(own.store, Build(factor=3, golden=4))
        await own.turn()
        assert await factor(own.engine) == 2
        own.store.rename(tmp_path / "gone")
        own.store.write_text("no folder")
        await own.turn()
        assert await factor(own.engine) == 2

    run(tmp_path, test)


def test_a_model_that_was_unloaded_on_demand_stays_so(tmp_path: Path) -> None:
    publish_build(tmp_path / "store", Build())

    async def test(own: World) -> None:
        await own.turn()
        await own.engine.registry.changes.unload("m")
        publish_build(own.store, Build(factor=3, golden=3))
        await own.turn()
        assert not own.engine.registry.loaded("m")

    run(tmp_path, test)


def test_an_engine_that_starts_again_serves_its_mirror_at_once(tmp_path: Path) -> None:
    publish_build(tmp_path / "store", Build())

    async def first(own: World) -> None:
        await own.turn()

    async def second(own: World) -> None:
        assert not own.sync.is_empty
        assert await factor(own.engine) == 2

    run(tmp_path, first)
    (tmp_path / "store").rename(tmp_path / "gone")
    run(tmp_path, second)


def test_an_address_that_is_none_is_refused_at_start(tmp_path: Path) -> None:
    async def test(own: World) -> None:
        with pytest.raises(RepositoryError, match="neither a path nor"):
            StoreSync("ftp://host", tmp_path, ThreadPoolExecutor(1), own.engine.host)

    run(tmp_path, test)
