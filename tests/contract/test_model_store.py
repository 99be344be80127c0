"""One suite over all places where published models lie: a folder, an object store in memory, an S3 over HTTP."""

import shutil
import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from obstore.store import MemoryStore, S3Store

from model_repo import lifecycle
from model_repo.errors import ConfigError, RepositoryError
from model_repo.host import read_host
from model_repo.manifest import MANIFEST, check_files, describe_files, read_manifest
from model_repo.object_index import INDEX, Index, parse_index
from model_repo.object_store import ORPHAN_AGE, ObjectModelStore
from model_repo.signing import create_key, parse_trusted
from model_repo.stores import FileStore, ModelStore, open_store
from tests.contract.moto_server import create_bucket
from tests.contract.s3_server import Objects, serving_s3
from tests.unit.engine import certified
from tests.unit.model_repo.test_release import LABELLED
from tests.unit.model_repo.test_store import config, stage

NOW = datetime(2026, 11, 24, tzinfo=UTC)


def s3_store(address: str, bucket: str = "models") -> ObjectModelStore:
    raw = S3Store(
        bucket,
        prefix="team/a",
        conditional_put="etag",
        aws_endpoint=address,
        aws_access_key_id="key",
        aws_secret_access_key="secret",
        aws_region="local",
        client_options={"allow_http": True},
        retry_config={"max_retries": 2, "retry_timeout": timedelta(seconds=20)},
    )
    return ObjectModelStore(raw, f"s3://{bucket}/team/a")


@pytest.fixture(params=["file", "memory", "s3", "moto"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ModelStore]:
    if request.param == "file":
        yield open_store(f"file://{tmp_path}/repo")
    elif request.param == "memory":
        yield ObjectModelStore(MemoryStore(), "memory://")
    elif request.param == "moto":
        address = request.getfixturevalue("moto")
        bucket = f"b{uuid.uuid4().hex}"
        create_bucket(address, bucket)
        yield s3_store(address, bucket)
    else:
        with serving_s3() as (address, _):
            yield s3_store(address)


def staged(tmp_path: Path, content: bytes = b"model") -> Path:
    return stage(tmp_path / f"staged-{len(list(tmp_path.iterdir()))}", content)


def publish(store: ModelStore, tmp_path: Path, *contents: bytes) -> list[int]:
    return [store.publish("m", staged(tmp_path, content), config()).version for content in contents]


def test_an_empty_store_has_no_models(store: ModelStore) -> None:
    assert store.names() == ()
    assert store.find("m") is None
    assert store.find("../m") is None
    with pytest.raises(RepositoryError, match="has no version 1"), store.open_version("m", 1):
        pass
    with pytest.raises(RepositoryError, match="is not in"):
        store.change_release("m", lambda release: release)
    with pytest.raises(RepositoryError, match="is not in"):
        store.remove("m", lambda versions, release: versions)


def test_versions_count_up_and_the_same_again_is_the_same_version(store: ModelStore, tmp_path: Path) -> None:
    first, second = staged(tmp_path), staged(tmp_path, b"other")
    published = [store.publish("m", one, config()) for one in (first, first, second, first)]
    assert [(one.version, one.is_new) for one in published] == [(1, True), (1, False), (2, True), (3, True)]
    state = lifecycle.get_model(store, "m")
    assert (state.name, state.versions, state.config.batch_rows_max) == ("m", (1, 2, 3), 8)
    assert store.names() == ("m",)
    with store.open_version("m", 2) as folder:
        manifest = read_manifest(folder)
        assert manifest is not None
        check_files(folder, manifest)
        assert (folder / "model.onnx").read_bytes() == b"other"


def test_files_in_folders_of_a_version_come_back(store: ModelStore, tmp_path: Path) -> None:
    files = {"source/model.onnx": b"source"}
    folder = certified.stage(tmp_path / "v", certified.Build(), {"plain": certified.Build(factor=3, golden=3)}, files)
    store.publish("m", folder, certified.CONFIG)
    with store.open_version("m", 1) as found:
        assert (found / "source" / "model.onnx").read_bytes() == b"source"
        assert (found / "variants" / "plain" / "model.onnx").is_file()


def test_another_interface_a_malformed_name_and_a_changed_file_are_refused(store: ModelStore, tmp_path: Path) -> None:
    publish(store, tmp_path, b"1")
    with pytest.raises(RepositoryError, match="publish under another name"):
        store.publish("m", staged(tmp_path, b"2"), config(wide=5))
    with pytest.raises(ConfigError):
        store.publish("../m", staged(tmp_path), config())
    broken = staged(tmp_path)
    (broken / "model.onnx").write_bytes(b"moedl")
    with pytest.raises(RepositoryError, match=r"model\.onnx: sha256"):
        store.publish("n", broken, config())
    assert store.names() == ("m",)


def test_labels_belong_to_the_model(store: ModelStore, tmp_path: Path) -> None:
    store.publish("m", staged(tmp_path), LABELLED, shared={"labels.txt": b"cat"})
    assert lifecycle.get_model(store, "m").shared == {"labels.txt": b"cat"}
    with pytest.raises(RepositoryError, match=r"another labels\.txt"):
        store.publish("m", staged(tmp_path, b"2"), LABELLED, shared={"labels.txt": b"dog"})


def test_changes_at_once_are_all_kept(store: ModelStore, tmp_path: Path) -> None:
    publish(store, tmp_path, b"1")
    folders = [staged(tmp_path, bytes([number])) for number in range(4)]
    faults: list[BaseException] = []

    def one(number: int) -> None:
        try:
            store.publish("m", folders[number], config())
            store.change_release("m", lambda release: release.with_alias(f"a{number}", 1))
        except BaseException as error:
            faults.append(error)
            raise

    threads = [threading.Thread(target=one, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    state = lifecycle.get_model(store, "m")
    assert state.versions == (1, 2, 3, 4, 5)
    assert sorted(state.release.aliases) == ["a0", "a1", "a2", "a3"]
    contents = set()
    for number in state.versions:
        with store.open_version("m", number) as folder:
            contents.add((folder / "model.onnx").read_bytes())
    assert len(contents) == 5


def point_both(store: ModelStore, number: int) -> None:
    store.change_release("m", lambda release: release.with_alias("a", number).with_alias("b", number))


def test_a_reader_sees_whole_versions_and_one_state_of_the_release(store: ModelStore, tmp_path: Path) -> None:
    """The two aliases always move together; every version that is listed can be read, byte by byte."""
    publish(store, tmp_path, b"1")
    store.change_release("m", lambda release: release.with_alias("a", 1).with_alias("b", 1))
    folders = [staged(tmp_path, bytes([number]) * 20_000) for number in range(4)]
    stopped = threading.Event()
    seen: list[int] = []
    faults: list[str] = []

    def read() -> None:
        while not stopped.is_set() or len(seen) < 2:
            state = lifecycle.get_model(store, "m")
            if state.release.aliases["a"] != state.release.aliases["b"]:
                faults.append("mixed")
            fault = lifecycle.verify(store, state, state.versions[-1], {}).fault
            if fault:
                faults.append(fault)
            seen.append(state.versions[-1])

    reader = threading.Thread(target=read)
    reader.start()
    for folder in folders:
        point_both(store, store.publish("m", folder, config()).version)
    stopped.set()
    reader.join()
    assert not faults
    assert seen


def test_signing_verifying_approving_and_naming(store: ModelStore, tmp_path: Path) -> None:
    own, other = create_key(tmp_path / "own"), create_key(tmp_path / "other")
    trusted = parse_trusted([own.public])
    store.publish("m", staged(tmp_path, b"1"), config(), signer=own)
    store.publish("m", staged(tmp_path, b"2"), config())
    store.publish("m", staged(tmp_path, b"3"), config(), signer=other)

    def faults() -> list[str]:
        state = lifecycle.get_model(store, "m")
        return [lifecycle.verify(store, state, number, trusted).fault for number in state.versions]

    first, second, third = faults()
    assert not first
    assert "is not signed" in second
    assert f"is signed by {other.key_id}" in third
    lifecycle.sign(store, "m", 2, own)
    lifecycle.sign(store, "m", 3, own)
    assert faults() == ["", "", ""]
    lifecycle.approve(store, "m", 2, by="ann", now=NOW)
    lifecycle.name_version(store, "m", "stable", 2)
    looked = list(lifecycle.look(store, lifecycle.get_model(store, "m"), read_host()))
    assert [one.is_approved for one in looked] == [False, True, False]
    assert looked[1].aliases == ("stable",)
    assert set(looked[2].keys) == {own.key_id, other.key_id}
    lifecycle.withdraw(store, "m", 2)
    assert not lifecycle.get_model(store, "m").release.approvals
    with pytest.raises(RepositoryError, match="is not approved"):
        lifecycle.withdraw(store, "m", 2)
    with pytest.raises(RepositoryError, match="has no version 9"):
        lifecycle.name_version(store, "m", "stable", 9)
    with pytest.raises(RepositoryError, match="has no version 9"):
        lifecycle.approve(store, "m", 9, by="ann", now=NOW)


def test_collecting_removes_what_nobody_needs_and_nothing_else(store: ModelStore, tmp_path: Path) -> None:
    publish(store, tmp_path, *(bytes([number]) for number in range(8)))
    lifecycle.approve(store, "m", 2, by="ann", now=NOW)
    lifecycle.approve(store, "m", 3, by="ann", now=NOW)
    lifecycle.name_version(store, "m", "canary", 4)
    fates = lifecycle.collect(store, "m", keep=2, served={5})
    assert fates == {
        1: "",
        2: "",
        3: "is the newest approved",
        4: "is canary",
        5: "is served",
        6: "",
        7: "is among the newest 2",
        8: "is among the newest 2",
    }
    state = lifecycle.get_model(store, "m")
    assert state.versions == (3, 4, 5, 7, 8)
    assert set(state.release.approvals) == {3}
    assert all(not lifecycle.verify(store, state, number, {}).fault for number in state.versions)
    lifecycle.collect(store, "m", keep=0, served=())
    assert lifecycle.get_model(store, "m").versions == (3, 4, 8)
    assert publish(store, tmp_path, b"new") == [9]


def test_what_two_versions_differ_in_is_named(store: ModelStore, tmp_path: Path) -> None:
    publish(store, tmp_path, b"1", b"22")
    found = {one.path: (one.before, one.after) for one in lifecycle.compare(store, "m", 1, 2)}
    assert found["manifest.files.model.onnx.size_bytes"] == (1, 2)
    assert set(found) == {"manifest.files.model.onnx.size_bytes", "manifest.files.model.onnx.sha256"}
    assert lifecycle.compare(store, "m", 1, 1) == []


# -- object stores only ------------------------------------------------------------------------------------------------


@pytest.fixture
def s3() -> Iterator[tuple[ObjectModelStore, Objects]]:
    with serving_s3() as (address, objects):
        yield s3_store(address), objects


def test_a_lost_answer_is_no_second_version(s3: tuple[ObjectModelStore, Objects], tmp_path: Path) -> None:
    store, objects = s3
    publish(store, tmp_path, b"1")
    objects.fail_next = 1
    again = store.publish("m", staged(tmp_path, b"2"), config())
    assert (again.version, again.is_new) == (2, True)
    objects.fail_next = 1
    store.change_release("m", lambda release: release.with_alias("stable", 2))
    state = lifecycle.get_model(store, "m")
    assert (state.versions, dict(state.release.aliases), state.release.generation) == ((1, 2), {"stable": 2}, 1)


def test_bytes_that_changed_in_the_store_are_refused(s3: tuple[ObjectModelStore, Objects], tmp_path: Path) -> None:
    store, objects = s3
    publish(store, tmp_path, b"model")
    (key,) = (key for key, (data, _, _) in objects.held.items() if data == b"model")
    for data in (b"moedl", b"model and more", b""):
        objects.put(key, data)
        fault = lifecycle.verify(store, lifecycle.get_model(store, "m"), 1, {}).fault
        assert "not what the manifest says" in fault
    del objects.held[key]
    assert lifecycle.verify(store, lifecycle.get_model(store, "m"), 1, {}).fault


def test_a_large_file_goes_and_comes_in_parts(s3: tuple[ObjectModelStore, Objects], tmp_path: Path) -> None:
    store, objects = s3
    large = bytes(range(256)) * (12 << 12)
    publish(store, tmp_path, large)
    assert not objects.parts
    with store.open_version("m", 1) as folder:
        assert (folder / "model.onnx").read_bytes() == large


def test_what_is_there_is_not_sent_again(s3: tuple[ObjectModelStore, Objects], tmp_path: Path) -> None:
    store, objects = s3
    publish(store, tmp_path, b"1")
    folder = stage(tmp_path / "more", b"1")
    manifest = read_manifest(folder)
    assert manifest is not None
    (folder / "notes").write_bytes(b"notes")
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).write_bytes(replace(manifest, files=describe_files(folder)).to_bytes())
    before = len(objects.puts)
    store.publish("m", folder, config())
    assert len(objects.puts) - before == 3


def test_blobs_that_nothing_names_go_after_a_day(s3: tuple[ObjectModelStore, Objects], tmp_path: Path) -> None:
    store, objects = s3
    publish(store, tmp_path, b"1", b"2")
    orphan = next(key for key in objects.held if "/blobs/" in key).rsplit("/", 1)[0] + "/" + "0" * 64
    objects.put(orphan, b"left by a publisher that died")
    before = set(objects.held)
    assert store.sweep("m") == 0
    later = datetime.now(UTC) + ORPHAN_AGE + timedelta(minutes=1)
    assert store.sweep("m", now=later) == 1
    assert set(objects.held) == before - {orphan}
    assert store.remove("m", lambda versions, release: {1}) == {1}
    assert store.sweep("m", now=later) == 2
    assert not lifecycle.verify(store, lifecycle.get_model(store, "m"), 2, {}).fault


def test_a_publisher_that_dies_before_the_index_leaves_what_was(tmp_path: Path) -> None:
    """At every write of a publish, one run each: readers see the version whole or not at all."""
    base = MemoryStore()
    ObjectModelStore(base, "memory://").publish("m", staged(tmp_path, b"1"), config())
    folder = staged(tmp_path, b"2")
    died = 0
    for step in range(100):
        raw = MemoryStore()
        store = ObjectModelStore(raw, "memory://")
        store.publish("m", staged(tmp_path, b"1"), config())
        dying = Dying(raw, step)
        try:
            dying.publish("m", folder, config())
        except Died:
            died += 1
        state = lifecycle.get_model(store, "m")
        assert state.versions == ((1, 2) if dying.has_index else (1,))
        assert all(not lifecycle.verify(store, state, number, {}).fault for number in state.versions)
        assert store.publish("m", folder, config()).version == 2
        if dying.left > 0:
            break
    assert died == 3


class Died(BaseException):
    """The process is gone."""


class Dying(ObjectModelStore):
    """Dies before its n-th write."""

    def __init__(self, raw: MemoryStore, left: int) -> None:
        super().__init__(raw, "memory://")
        self.left = left
        self.has_index = False

    def _put(self, path: str, data: bytes | Path, mode: object = "overwrite") -> None:
        if not self.left:
            raise Died
        self.left -= 1
        super()._put(path, data, mode)
        self.has_index |= path.endswith(INDEX)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'{"schema": 2}',
        b'{"schema": 1}',
        Index(versions={1: "0" * 64}).to_bytes().replace(b"0" * 64, b"../../etc"),
        Index(versions={1: "0" * 64}).to_bytes().replace(b'"1"', b'"01"'),
        Index(shared={"labels.txt": "0" * 64}).to_bytes().replace(b"labels.txt", b"../labels.txt"),
        Index(shared={"labels.txt": "0" * 64}).to_bytes().replace(b"labels.txt", b"a/b/c"),
    ],
)
def test_a_malformed_index_is_refused(data: bytes) -> None:
    with pytest.raises(RepositoryError, match=r"index\.json"):
        parse_index(data)


def test_an_index_survives_the_round_trip() -> None:
    index = Index(versions={1: "0" * 64, 12: "a" * 64}, shared={"config.pbtxt": "b" * 64, "initial_state/s": "c" * 64})
    assert parse_index(index.to_bytes()) == index


@pytest.mark.parametrize("address", ["http://host/models", "s3://", "file://host/x", "ftp://x", "file://"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(RepositoryError, match="neither a path nor"):
        open_store(address)


def test_addresses_choose_the_store(tmp_path: Path) -> None:
    plain, url = open_store(str(tmp_path)), open_store(f"file://{tmp_path}/with%20space")
    assert isinstance(plain, FileStore)
    assert isinstance(url, FileStore)
    assert url.root == tmp_path / "with space"
    assert open_store("s3://models/team/a").address == "s3://models/team/a"
    shutil.rmtree(tmp_path)
