"""An alias that moves, an approval that is given or taken back: the engine follows without losing a call."""

import asyncio
from pathlib import Path

import pytest

from gateway.engine.admission import Rules
from gateway.engine.following import Follower
from gateway.engine.overrides import read_override
from model_repo.manifest import MANIFEST, file_sha256
from model_repo.release import RELEASE
from model_repo.store import change_release
from tests.unit.engine.certified import CONFIG, FACTS, Build, approve, publish_build
from tests.unit.engine.making import EngineUnderTest, run_engine, write_model
from tests.unit.engine.test_admission import APPROVED, RULES, factor

ENSEMBLE = CONFIG.replace('"m"', '"e"').replace("onnxruntime_onnx", "ensemble") + (
    'ensemble_scheduling { step { model_name: "m" model_version: -1 '
    'input_map { key: "x" value: "x" } output_map { key: "y" value: "y" } } }'
)


def publish_two(root: Path) -> None:
    for own in (2.0, 3.0):
        publish_build(root, Build(factor=own, golden=own))


def point(root: Path, alias: str, number: int | None) -> None:
    change_release(root, "m", lambda release: release.with_alias(alias, number))


def run(root: Path, test: object, rules: Rules = RULES) -> None:
    run_engine(root, test=test, rules=rules)  # type: ignore[arg-type]


async def follow_once(follower: Follower) -> list[str]:
    changed = follower.look()
    for name in changed:
        await follower.apply(name)
    return changed


def follower_of(engine: EngineUnderTest, root: Path) -> Follower:
    follower = Follower(engine.registry, [root], engine.host)
    follower.look()
    return follower


def test_an_alias_that_moves_among_loaded_versions_needs_no_load(tmp_path: Path) -> None:
    root = tmp_path / "repo"
    publish_two(root)
    (root / "m" / "config.pbtxt").write_text(CONFIG + "version_policy { all {} }")
    point(root, "stable", 1)

    async def test(engine: EngineUnderTest) -> None:
        follower = follower_of(engine, root)
        before = engine.registry.versions_of("m")
        assert await factor(engine) == 2
        point(root, "stable", 2)
        assert await follow_once(follower) == ["m"]
        assert await factor(engine) == 3
        point(root, "stable", None)
        point(root, "canary", 1)
        assert await follow_once(follower) == ["m"]
        assert engine.registry.get("m", "canary").number == 1
        assert engine.registry.versions_of("m") == before

    run(root, test)


def test_an_alias_of_a_version_that_is_not_loaded_loads_it(tmp_path: Path) -> None:
    root = tmp_path / "repo"
    publish_two(root)

    async def test(engine: EngineUnderTest) -> None:
        follower = follower_of(engine, root)
        assert await factor(engine) == 3
        point(root, "stable", 1)
        await follow_once(follower)
        assert await factor(engine) == 2
        assert [version.number for version in engine.registry.versions_of("m")] == [1, 2]

    run(root, test)


def test_an_ensemble_follows_the_alias_of_its_step(tmp_path: Path) -> None:
    root = tmp_path / "repo"
    publish_two(root)
    point(root, "stable", 1)
    write_model(root, "e", ENSEMBLE, {"1/.keep": ""})
    body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 1]}]}

    async def test(engine: EngineUnderTest) -> None:
        follower = follower_of(engine, root)
        for wanted in (2, 3):
            point(root, "stable", wanted - 1)
            await follow_once(follower)
            exchange = await engine.infer("e", body)
            assert exchange.json()["outputs"][0]["data"] == [wanted, wanted]

    run(root, test)


def test_an_approval_lets_a_model_in_and_its_end_out(tmp_path: Path) -> None:
    root = tmp_path / "repo"
    publish_build(root, Build())
    sha256 = file_sha256(root / "m" / "1" / MANIFEST)

    async def test(engine: EngineUnderTest) -> None:
        follower = follower_of(engine, root)
        assert (await engine.infer("m", {"inputs": []})).status == 503
        approve(root, 1, sha256)
        await follow_once(follower)
        assert await factor(engine) == 2
        change_release(root, "m", lambda release: release.with_approval(1, None))
        await follow_once(follower)
        assert (await engine.infer("m", {"inputs": []})).status == 503
        approve(root, 1, sha256)
        await follow_once(follower)
        assert await factor(engine) == 2

    run(root, test, APPROVED)


def test_a_version_whose_approval_ends_gives_way_to_the_one_before(tmp_path: Path) -> None:
    root = tmp_path / "repo"
    publish_two(root)
    for number in (1, 2):
        approve(root, number, file_sha256(root / "m" / str(number) / MANIFEST))

    async def test(engine: EngineUnderTest) -> None:
        follower = follower_of(engine, root)
        assert await factor(engine) == 3
        change_release(root, "m", lambda release: release.with_approval(2, None))
        await follow_once(follower)
        assert await factor(engine) == 2

    run(root, test, APPROVED)


def test_a_model_that_was_unloaded_on_demand_stays_so(tmp_path: Path) -> None:
    root = tmp_path / "repo"
    publish_two(root)

    async def test(engine: EngineUnderTest) -> None:
        follower = follower_of(engine, root)
        await engine.registry.changes.unload("m")
        point(root, "stable", 1)
        assert await follow_once(follower) == ["m"]
        assert not engine.registry.loaded("m")
        await engine.registry.changes.load("m", read_override("m", {}))
        assert await factor(engine) == 2

    run(root, test)


def test_a_release_that_cannot_be_read_changes_nothing_that_serves(tmp_path: Path) -> None:
    root = tmp_path / "repo"
    publish_two(root)
    point(root, "stable", 1)

    async def test(engine: EngineUnderTest) -> None:
        follower = follower_of(engine, root)
        good = (root / "m" / RELEASE).read_bytes()
        (root / "m" / RELEASE).write_bytes(b"{")
        assert await follow_once(follower) == ["m"]
        assert await factor(engine) == 2
        (root / "m" / RELEASE).write_bytes(good.replace(b'"stable": 1', b'"stable": 2'))
        assert await follow_once(follower) == ["m"]
        assert await factor(engine) == 3

    run(root, test)


def test_a_signature_alone_is_no_change(tmp_path: Path) -> None:
    root = tmp_path / "repo"
    publish_two(root)
    point(root, "stable", 1)

    async def test(engine: EngineUnderTest) -> None:
        follower = follower_of(engine, root)
        assert follower.look() == []
        change_release(root, "m", lambda release: release)
        assert follower.look() == []

    run(root, test)


def test_following_ends_with_its_task_and_looks_again_and_again(tmp_path: Path) -> None:
    root = tmp_path / "repo"
    publish_two(root)

    async def test(engine: EngineUnderTest) -> None:
        follower = follower_of(engine, root)
        looked = asyncio.Semaphore(0)
        task = asyncio.create_task(follower.follow(0.001, looked.release), name="follow")
        await asyncio.wait_for(looked.acquire(), 60)
        point(root, "stable", 1)
        while await factor(engine) != 2:
            await asyncio.wait_for(looked.acquire(), 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(root, test, Rules(facts=FACTS))
