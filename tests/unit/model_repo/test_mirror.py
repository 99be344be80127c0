"""A mirror is in line with its store or on the way there; whoever reads it meanwhile sees whole versions, signed."""

import shutil
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from model_repo import lifecycle
from model_repo.mirror import Pulled, pull
from model_repo.object_store import ObjectModelStore
from model_repo.signing import create_key, parse_trusted, read_key
from model_repo.stores import FileStore, ModelStore
from tests.unit.model_repo.dying import DIED, dying
from tests.unit.model_repo.test_release import LABELLED
from tests.unit.model_repo.test_store import config, stage


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ModelStore:
    return FileStore(tmp_path / "store") if request.param == "file" else ObjectModelStore(MemoryStore(), "memory://")


def test_models_versions_and_releases_come_and_go(store: ModelStore, tmp_path: Path) -> None:
    mirror = FileStore(tmp_path / "mirror")
    assert pull(store, mirror.root) == []
    store.publish("m", stage(tmp_path / "1", b"1"), LABELLED, shared={"labels.txt": b"cat"})
    store.publish("n", stage(tmp_path / "2", b"2"), config())
    assert pull(store, mirror.root) == [Pulled(model="m", added=(1,)), Pulled(model="n", added=(1,))]
    assert pull(store, mirror.root) == [Pulled(model="m"), Pulled(model="n")]
    store.publish("n", stage(tmp_path / "3", b"3"), config())
    store.publish("n", stage(tmp_path / "4", b"4"), config())
    lifecycle.name_version(store, "n", "stable", 3)
    store.remove("n", lambda versions, release: {1})
    assert pull(store, mirror.root)[1] == Pulled(model="n", added=(2, 3), removed=(1,), is_released=True)
    assert mirror.find("m") == store.find("m")
    assert mirror.find("n") == store.find("n")


def test_what_was_tuned_here_stays(store: ModelStore, tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    store.publish("m", stage(tmp_path / "1"), config())
    pull(store, mirror)
    tuned = config() + " dynamic_batching {}"
    (mirror / "m" / "config.pbtxt").write_text(tuned)
    store.publish("m", stage(tmp_path / "2", b"2"), config())
    pull(store, mirror)
    assert (mirror / "m" / "config.pbtxt").read_text() == tuned


def test_a_model_that_cannot_be_pulled_leaves_the_others_be(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "store")
    for name in ("a", "b"):
        store.publish(name, stage(tmp_path / name, name.encode()), config())
    (store.root / "a" / "1" / "model.onnx").write_bytes(b"x")
    first, second = pull(store, tmp_path / "mirror")
    assert "model.onnx: sha256" in first.fault
    assert second == Pulled(model="b", added=(1,))
    assert FileStore(tmp_path / "mirror").names() == ("b",)
    assert not list((tmp_path / "mirror").glob("a"))


def test_another_version_under_the_same_number_is_never_replaced(store: ModelStore, tmp_path: Path) -> None:
    mirror = FileStore(tmp_path / "mirror")
    store.publish("m", stage(tmp_path / "1", b"1"), config())
    pull(store, mirror.root)
    mirror.publish("m", stage(tmp_path / "2", b"mine"), config())
    store.publish("m", stage(tmp_path / "3", b"theirs"), config())
    (pulled,) = pull(store, mirror.root)
    assert "a mirror has one source" in pulled.fault
    assert (mirror.root / "m" / "2" / "model.onnx").read_bytes() == b"mine"


def test_a_model_that_left_the_store_stays(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "store")
    store.publish("m", stage(tmp_path / "1"), config())
    pull(store, tmp_path / "mirror")
    shutil.rmtree(store.root)
    assert pull(store, tmp_path / "mirror") == []
    assert FileStore(tmp_path / "mirror").names() == ("m",)


def test_a_pull_that_dies_at_any_step_leaves_whole_signed_versions(tmp_path: Path) -> None:
    """Each step of a pull that brings a version, moves an alias and takes a version away, one run each."""
    key = create_key(tmp_path / "key")
    trusted = parse_trusted([key.public])
    store = FileStore(tmp_path / "store")
    store.publish("m", stage(tmp_path / "1", b"1"), config(), signer=read_key(tmp_path / "key"))
    store.publish("m", stage(tmp_path / "2", b"2"), config(), signer=key)
    lifecycle.name_version(store, "m", "stable", 2)
    pull(store, tmp_path / "before")
    store.publish("m", stage(tmp_path / "3", b"3"), config(), signer=key)
    lifecycle.name_version(store, "m", "stable", 3)
    store.remove("m", lambda versions, release: {1})
    with dying() as run:
        for step in range(200):
            mirror = FileStore(tmp_path / f"mirror{step}")
            shutil.copytree(tmp_path / "before", mirror.root)
            code = run("pull", [str(store.root), str(mirror.root)], step)
            state = lifecycle.get_model(mirror, "m")
            assert state.release.aliases["stable"] in state.versions
            assert all(not lifecycle.verify(mirror, state, number, trusted).fault for number in state.versions)
            assert not pull(store, mirror.root)[0].fault
            assert mirror.find("m") == store.find("m")
            if not code:
                break
            assert code == DIED
    assert 10 < step < 199
