"""Aliases, approvals and signatures change as one; what was signed or approved is these bytes and no others."""

import shutil
import threading
from pathlib import Path

import pytest

from model_repo import signing
from model_repo.config import parse_config
from model_repo.config_digest import config_sha256, folder_config_sha256
from model_repo.errors import ConfigError, RepositoryError
from model_repo.manifest import MANIFEST, file_sha256
from model_repo.release import (
    ALIASES_MAX,
    RELEASE,
    RELEASE_BYTES_MAX,
    SIGNATURES_MAX,
    Approval,
    Release,
    Signature,
    parse_release,
    read_release,
)
from model_repo.repository import find_model
from model_repo.signing import Statement, check_signature, create_key, parse_trusted, read_key
from model_repo.store import change_release, publish, remove_versions
from tests.unit.model_repo.dying import DIED, dying
from tests.unit.model_repo.test_store import config, stage

FULL = Release(
    generation=7,
    aliases={"stable": 2, "canary": 3},
    approvals={2: Approval(by="ann", at="2026-11-24T00:00:00+00:00", manifest_sha256="0" * 64)},
    signatures={2: (Signature(key_id="k", signature="s"),)},
)
STATEMENT = Statement(model="m", version=1, manifest_sha256="a" * 64, config_sha256="b" * 64)


def test_a_release_survives_the_round_trip() -> None:
    assert parse_release(FULL.to_bytes()) == FULL


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"schema": 2}',
        b'{"schema": 1}',
        FULL.to_bytes().replace(b'"canary": 3', b'"canary": "3"'),
        FULL.to_bytes().replace(b'"canary": 3', b'"canary": true'),
        FULL.to_bytes().replace(b'"canary": 3', b'"Canary": 3'),
        FULL.to_bytes().replace(b'"canary": 3', b'"7": 3'),
        FULL.to_bytes().replace(b'"generation": 7', b'"generation": -1'),
        FULL.to_bytes().replace(b'"by": "ann"', b'"by": 4'),
        FULL.to_bytes().replace(b'"2": {', b'"02": {'),
        b'{"schema": 1, "generation": ' + b"[" * 5000 + b"}",
    ],
)
def test_a_malformed_release_is_refused(data: bytes) -> None:
    with pytest.raises(RepositoryError, match=r"release\.json|^alias"):
        parse_release(data)


def test_a_link_and_an_endless_file_are_refused(tmp_path: Path) -> None:
    assert read_release(tmp_path) == Release()
    (tmp_path / RELEASE).symlink_to("/etc/hostname")
    with pytest.raises(RepositoryError, match="a link"):
        read_release(tmp_path)
    (tmp_path / RELEASE).unlink()
    (tmp_path / RELEASE).write_bytes(b" " * (RELEASE_BYTES_MAX + 1))
    with pytest.raises(RepositoryError, match="more than 1048576 bytes"):
        read_release(tmp_path)


def test_the_limits_of_a_release() -> None:
    release = Release()
    for number in range(ALIASES_MAX):
        release = release.with_alias(f"a{number}", 1)
    assert parse_release(release.to_bytes()) == release
    with pytest.raises(RepositoryError, match="at most 32 aliases"):
        release.with_alias("more", 1)
    for number in range(SIGNATURES_MAX):
        release = release.with_signature(1, Signature(key_id=f"k{number}", signature=""))
    with pytest.raises(RepositoryError, match="at most 8 signatures"):
        release.with_signature(1, Signature(key_id="more", signature=""))
    again = release.with_signature(1, Signature(key_id="k0", signature="new"))
    assert len(again.signatures[1]) == SIGNATURES_MAX


@pytest.mark.parametrize("alias", ["", "1", "Stable", "a b", "a" * 33, "latest/1", "é"])
def test_an_alias_that_could_be_a_version_or_a_path_is_refused(alias: str) -> None:
    with pytest.raises(RepositoryError, match="must match"):
        Release().with_alias(alias, 1)


def test_an_approval_holds_for_the_bytes_that_were_approved() -> None:
    assert FULL.is_approved(2, "0" * 64)
    assert not FULL.is_approved(2, "1" * 64)
    assert not FULL.is_approved(3, "0" * 64)
    assert not FULL.with_approval(2, None).is_approved(2, "0" * 64)


def test_changes_at_once_are_all_kept(tmp_path: Path) -> None:
    root = tmp_path / "repo"
    publish(root, "m", stage(tmp_path / "a"), config())
    threads = [
        threading.Thread(
            target=change_release, args=(root, "m", lambda release, own=number: release.with_alias(f"a{own}", 1))
        )
        for number in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    release = read_release(root / "m")
    assert release.generation == 12
    assert sorted(release.aliases) == sorted(f"a{number}" for number in range(12))


def test_a_change_that_is_refused_changes_nothing(tmp_path: Path) -> None:
    root = tmp_path / "repo"
    publish(root, "m", stage(tmp_path / "a"), config())
    change_release(root, "m", lambda release: release.with_alias("stable", 1))
    before = (root / "m" / RELEASE).read_bytes()
    with pytest.raises(RepositoryError):
        change_release(root, "m", lambda release: release.with_alias("NO", 1))
    assert (root / "m" / RELEASE).read_bytes() == before
    with pytest.raises(RepositoryError, match="is not in"):
        change_release(root, "other", lambda release: release)


def test_versions_go_whole_with_all_that_is_said_of_them_and_the_newest_never(tmp_path: Path) -> None:
    root = tmp_path / "repo"
    for number in range(3):
        publish(root, "m", stage(tmp_path / f"s{number}", bytes([number])), config())
    change_release(root, "m", lambda release: release.with_alias("old", 1).with_alias("stable", 2))
    assert remove_versions(root, "m", lambda versions, release: {1, 9}) == {1}
    folder = find_model(root, "m")
    assert folder is not None
    assert folder.versions == (2, 3)
    assert read_release(root / "m").aliases == {"stable": 2}
    with pytest.raises(RepositoryError, match="newest version is never removed"):
        remove_versions(root, "m", lambda versions, release: {3})
    assert publish(root, "m", stage(tmp_path / "s9", b"9"), config()).version == 4


# -- signatures --------------------------------------------------------------------------------------------------------


def test_a_signature_of_a_trusted_key_is_accepted_and_of_no_other(tmp_path: Path) -> None:
    own, other = create_key(tmp_path / "own"), create_key(tmp_path / "other")
    trusted = parse_trusted([own.public])
    assert check_signature(STATEMENT, [other.sign(STATEMENT), own.sign(STATEMENT)], trusted) == own.key_id
    with pytest.raises(RepositoryError, match="is not signed"):
        check_signature(STATEMENT, [], trusted)
    with pytest.raises(RepositoryError, match=f"signed by {other.key_id}, trusted are {own.key_id}"):
        check_signature(STATEMENT, [other.sign(STATEMENT)], trusted)


@pytest.mark.parametrize(
    "changed",
    [
        Statement(model="n", version=1, manifest_sha256="a" * 64, config_sha256="b" * 64),
        Statement(model="m", version=2, manifest_sha256="a" * 64, config_sha256="b" * 64),
        Statement(model="m", version=1, manifest_sha256="c" * 64, config_sha256="b" * 64),
        Statement(model="m", version=1, manifest_sha256="a" * 64, config_sha256="c" * 64),
    ],
)
def test_a_signature_of_another_statement_is_refused(changed: Statement, tmp_path: Path) -> None:
    key = create_key(tmp_path / "key")
    with pytest.raises(RepositoryError, match="is not of this"):
        check_signature(changed, [key.sign(STATEMENT)], parse_trusted([key.public]))


def test_a_forged_signature_under_a_trusted_id_is_refused(tmp_path: Path) -> None:
    own, other = create_key(tmp_path / "own"), create_key(tmp_path / "other")
    trusted = parse_trusted([own.public])
    for text in (other.sign(STATEMENT).signature, "", "no base64!", "AAAA"):
        with pytest.raises(RepositoryError, match="is not of this"):
            check_signature(STATEMENT, [Signature(key_id=own.key_id, signature=text)], trusted)


def test_a_key_file_is_its_owners_alone_and_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "key"
    key = create_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_key(path).public == key.public
    with pytest.raises(RepositoryError, match="File exists"):
        create_key(path)
    path.chmod(0o640)
    with pytest.raises(RepositoryError, match="others may read it"):
        read_key(path)
    (tmp_path / "text").touch(mode=0o600)
    with pytest.raises(RepositoryError, match="no private key"):
        read_key(tmp_path / "text")
    with pytest.raises(RepositoryError, match="No such file"):
        read_key(tmp_path / "none")


@pytest.mark.parametrize("text", ["", "ed25519:", "ed25519:AAAA", "rsa:" + "A" * 44, "ed25519:" + "!" * 44])
def test_a_trusted_key_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(RepositoryError, match="trusted_model_keys"):
        parse_trusted([text])


def test_trusted_keys_have_a_limit(tmp_path: Path) -> None:
    keys = [create_key(tmp_path / f"k{number}").public for number in range(signing.TRUSTED_KEYS_MAX + 1)]
    assert len(parse_trusted(keys[:-1])) == signing.TRUSTED_KEYS_MAX
    with pytest.raises(RepositoryError, match="more than 32"):
        parse_trusted(keys)


def test_a_version_is_signed_as_it_is_published(tmp_path: Path) -> None:
    root = tmp_path / "repo"
    key = create_key(tmp_path / "key")
    trusted = parse_trusted([key.public])
    for number, staged in enumerate((stage(tmp_path / "a"), stage(tmp_path / "b", b"other")), start=1):
        published = publish(root, "m", staged, config(), signer=key)
        assert published.version == number
        folder = find_model(root, "m")
        assert folder is not None
        statement = Statement(
            model="m",
            version=number,
            manifest_sha256=file_sha256(published.path / MANIFEST),
            config_sha256=folder_config_sha256(folder, parse_config(config(), name="m")),
        )
        assert check_signature(statement, read_release(folder.path).signatures[number], trusted) == key.key_id


def test_what_may_be_tuned_does_not_count_and_all_else_does() -> None:
    def digest(text: str) -> str:
        return config_sha256(parse_config(text, name="m"), lambda name: name.encode())

    plain = config()
    tuned = (
        plain + " dynamic_batching { preferred_batch_size: 4 } instance_group { count: 2 } version_policy { all {} }"
    )
    assert digest(tuned) == digest(plain)
    for other in (
        plain + ' default_model_filename: "other.onnx"',
        plain + ' parameters { key: "a" value { string_value: "b" } }',
        plain.replace("max_batch_size: 8", "max_batch_size: 4"),
        plain.replace("onnxruntime", "openvino"),
    ):
        assert digest(other) != digest(plain)


LABELLED = config().replace('"y"', '"y" label_filename: "labels.txt"')


def test_labels_are_published_with_their_model_and_count_for_its_digest(tmp_path: Path) -> None:
    root = tmp_path / "repo"
    staged = stage(tmp_path / "a")
    with pytest.raises(ConfigError, match=r"labels\.txt: the configuration names it"):
        publish(root, "m", staged, LABELLED)
    with pytest.raises(ConfigError, match=r"notes\.txt: the configuration does not name it"):
        publish(root, "m", staged, LABELLED, shared={"labels.txt": b"cat", "notes.txt": b""})
    publish(root, "m", staged, LABELLED, shared={"labels.txt": b"cat\ndog"})
    folder = find_model(root, "m")
    assert folder is not None
    parsed = parse_config(LABELLED, name="m")
    before = folder_config_sha256(folder, parsed)
    with pytest.raises(RepositoryError, match=r"another labels\.txt"):
        publish(root, "m", stage(tmp_path / "b", b"2"), LABELLED, shared={"labels.txt": b"dog\ncat"})
    (root / "m" / "labels.txt").write_bytes(b"dog\ncat")
    assert folder_config_sha256(folder, parsed) != before


# -- crashes -----------------------------------------------------------------------------------------------------------


def _check_world(root: Path, trusted: dict[str, bytes]) -> None:
    """Every version there is whole and signed, and every alias leads to a version."""
    folder = find_model(root, "m")
    assert folder is not None
    assert folder.versions in {(1,), (1, 2), (2,)}
    release = read_release(root / "m")
    for number in folder.versions:
        statement = Statement(
            model="m",
            version=number,
            manifest_sha256=file_sha256(root / "m" / str(number) / MANIFEST),
            config_sha256=folder_config_sha256(folder, parse_config(config(), name="m")),
        )
        check_signature(statement, release.signatures[number], trusted)
        assert (root / "m" / str(number) / "model.onnx").read_bytes() in {b"model", b"other"}
    assert set(release.aliases.values()) <= set(folder.versions)


def test_a_writer_that_dies_at_any_step_leaves_old_or_new(tmp_path: Path) -> None:
    """Every flush, rename and removal of publish, alias and collect, one run each."""
    key = create_key(tmp_path / "key")
    trusted = parse_trusted([key.public])
    staged = stage(tmp_path / "b", b"other")
    first = stage(tmp_path / "a")
    publish(tmp_path / "before", "m", first, config(), signer=key)
    with dying() as run:
        for step in range(200):
            root = tmp_path / f"repo{step}"
            shutil.copytree(tmp_path / "before", root)
            code = run("publish", [str(root), str(staged), str(tmp_path / "key"), config()], step)
            _check_world(root, trusted)
            # Whatever was left is no obstacle to the next.
            assert publish(root, "m", stage(tmp_path / f"c{step}", b"third"), config(), signer=key).is_new
            assert not list(root.glob(".staging-*"))
            if not code:
                break
            assert code == DIED
    assert 20 < step < 199
