"""Owns what is written into a repository folder: whole or not at all, for readers that look at any moment.

A version's folder is written beside the models under a name that readers pass over, flushed, and renamed into place.
Crash windows: before the rename only a `.staging-*` folder is left, which the next writer removes; after it the
version is whole. A signature is written before the version that it is of, so no moment shows the version without; a
crash between the two leaves a signature of a version that is not there, which the next publish of that number replaces.
A version that is there is never written to again.
"""

import contextlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from model_repo.config import NAME, ModelConfig, parse_config
from model_repo.config_digest import SHARED_BYTES_MAX, config_sha256, folder_config_sha256, shared_files
from model_repo.disk import copy_tree, locked, new_staging, remove_folder, replace_file, sync, write_new
from model_repo.errors import ConfigError, RepositoryError
from model_repo.manifest import MANIFEST, check_files, file_sha256, read_manifest
from model_repo.release import RELEASE, Release, read_release
from model_repo.repository import ModelFolder, find_model, read_config, read_member
from model_repo.signing import SigningKey, Statement


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """`is_new` False: the newest version already was this one, byte by byte. `path`: a folder, or an address."""

    name: str
    version: int
    path: Path
    is_new: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """A version that may be published: its files, and what its model shares with it, by path below the model."""

    name: str
    files: Path
    config: ModelConfig
    config_text: str
    shared: Mapping[str, bytes]

    @property
    def config_sha256(self) -> str:
        return config_sha256(self.config, self.shared.__getitem__)


def check_staged(name: str, files: Path, config_text: str, shared: Mapping[str, bytes] | None = None) -> Staged:
    """What is to be published, checked byte by byte.

    Raises:
        ConfigError: `name` or the configuration is malformed, or names a file that `shared` lacks.
        RepositoryError: a file differs from the manifest.
    """
    if NAME.fullmatch(name) is None:
        raise ConfigError(f"name: '{name[:140]}' must match {NAME.pattern}")
    config = parse_config(config_text, name=name)
    manifest = read_manifest(files)
    if manifest is None:
        raise RepositoryError(f"{MANIFEST}: is missing")
    check_files(files, manifest)
    given = dict(shared or {})
    for path in shared_files(config):
        if path not in given:
            raise ConfigError(f"{path}: the configuration names it, and it is not there")
    unknown = given.keys() - set(shared_files(config))
    if unknown:
        raise ConfigError(f"{min(unknown)}: the configuration does not name it")
    return Staged(name=name, files=files, config=config, config_text=config_text, shared=given)


def publish(
    root: Path,
    name: str,
    staged: Path,
    config_text: str,
    *,
    shared: Mapping[str, bytes] | None = None,
    signer: SigningKey | None = None,
) -> Published:
    """Copy the files of `staged` (with its manifest) into `root` as the next version of `name`, signed. Blocks.

    `shared`: label and state files that the configuration names, by path below the model's folder.

    Raises:
        ConfigError: `name` or the configuration is malformed.
        RepositoryError: a file differs from the manifest, the model has another interface, or the disk failed.
    """
    checked = check_staged(name, staged, config_text, shared)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locked(root):
            return _publish(root, checked, signer)
    except OSError as error:
        raise RepositoryError(f"{root}: {error.strerror}") from error


def _publish(root: Path, staged: Staged, signer: SigningKey | None) -> Published:
    name = staged.name
    folder = find_model(root, name)
    if folder is None:
        if os.path.lexists(root / name):
            raise RepositoryError(f"{name}: is there and is no folder")
        return _publish_first(root, staged, signer)
    old = parse_config(read_config(folder), name=name)
    check_interface(old, staged.config)
    _check_shared(folder, staged)
    latest = max(folder.versions, default=0)
    if latest and _is_same(folder.path / str(latest), staged.files):
        return Published(name=name, version=latest, path=folder.path / str(latest), is_new=False)
    staging = new_staging(root)
    copy_tree(staged.files, staging / "version")
    target = folder.path / str(latest + 1)
    if signer is not None:
        # Of the configuration that will serve it: the one that is there.
        digest = folder_config_sha256(folder, old)
        release = _signed(read_release(folder.path), staged, latest + 1, digest, signer)
        replace_file(root, folder.path / RELEASE, release.to_bytes())
    # Fails where a folder with files is there already: nothing is ever replaced.
    (staging / "version").rename(target)
    sync(folder.path)
    staging.rmdir()
    return Published(name=name, version=latest + 1, path=target, is_new=True)


def _publish_first(root: Path, staged: Staged, signer: SigningKey | None) -> Published:
    """The model's whole folder appears at once."""
    staging = new_staging(root)
    copy_tree(staged.files, staging / "1")
    write_new(staging / "config.pbtxt", staged.config_text.encode())
    for path, data in staged.shared.items():
        (staging / path).parent.mkdir(exist_ok=True)
        write_new(staging / path, data)
        sync((staging / path).parent)
    if signer is not None:
        release = _signed(Release(), staged, 1, staged.config_sha256, signer)
        write_new(staging / RELEASE, release.to_bytes())
    sync(staging)
    staging.rename(root / staged.name)
    sync(root)
    return Published(name=staged.name, version=1, path=root / staged.name / "1", is_new=True)


def _signed(release: Release, staged: Staged, number: int, config_digest: str, signer: SigningKey) -> Release:
    statement = Statement(
        model=staged.name,
        version=number,
        manifest_sha256=file_sha256(staged.files / MANIFEST),
        config_sha256=config_digest,
    )
    changed = release.with_signature(number, signer.sign(statement), is_new_version=True)
    return replace(changed, generation=release.generation + 1)


def change_release(root: Path, name: str, change: Callable[[Release], Release]) -> Release:
    """Put `change(release)` in the place of a model's release, one change after the other. Blocks.

    Raises:
        RepositoryError: there is no such model, or the disk failed; whatever `change` raises.
    """
    try:
        with _locked(root, name) as folder:
            old = read_release(folder.path)
            new = replace(change(old), generation=old.generation + 1)
            replace_file(root, folder.path / RELEASE, new.to_bytes())
            return new
    except OSError as error:
        raise RepositoryError(f"{root}: {error.strerror}") from error


def remove_versions(root: Path, name: str, choose: Callable[[tuple[int, ...], Release], Collection[int]]) -> set[int]:
    """Remove the versions that `choose` names, each at once, and what the release says of them. Blocks.

    `choose` is asked under the lock, so nothing becomes aliased or approved in between.

    Raises:
        RepositoryError: there is no such model, the newest version is among them, or the disk failed.
    """
    try:
        with _locked(root, name) as folder:
            release = read_release(folder.path)
            chosen = set(choose(folder.versions, release)) & set(folder.versions)
            if not chosen:
                return chosen
            if max(folder.versions) in chosen:
                # The next one would get its number, and a number stands for one version for ever.
                raise RepositoryError(f"{name}: the newest version is never removed")
            for number in sorted(chosen):
                remove_folder(root, folder.path / str(number))
            if release.generation:
                new = replace(release.without(chosen), generation=release.generation + 1)
                replace_file(root, folder.path / RELEASE, new.to_bytes())
            return chosen
    except OSError as error:
        raise RepositoryError(f"{root}: {error.strerror}") from error


@contextlib.contextmanager
def _locked(root: Path, name: str) -> Iterator[ModelFolder]:
    """A model that nobody else changes. Raises: RepositoryError: there is none."""
    if find_model(root, name) is None:
        raise RepositoryError(f"model '{name[:140]}' is not in {root}")
    with locked(root):
        folder = find_model(root, name)
        if folder is None:
            raise RepositoryError(f"model '{name[:140]}' is no longer in {root}")
        yield folder


def _is_same(version: Path, staged: Path) -> bool:
    path = version / MANIFEST
    return path.is_file() and not path.is_symlink() and path.read_bytes() == (staged / MANIFEST).read_bytes()


def _check_shared(folder: ModelFolder, staged: Staged) -> None:
    for path, data in staged.shared.items():
        if read_member(folder, *path.split("/"), bytes_max=SHARED_BYTES_MAX) != data:
            raise RepositoryError(f"{staged.name}: is published with another {path}; publish under another name")


def check_interface(old: ModelConfig, new: ModelConfig) -> None:
    """One configuration serves all versions of a model, so each must have the same tensors and library.

    Raises:
        RepositoryError: names what differs.
    """
    for what in ("platform", "inputs", "outputs", "batch_rows_max"):
        before, after = getattr(old, what), getattr(new, what)
        if before != after:
            raise RepositoryError(
                f"{new.name}: is published with {what} {_shown(before)}, this version has {_shown(after)}; "
                "publish under another name"
            )


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(f"{spec.name} {spec.datatype}{list(spec.dims)}" for spec in value)
    return str(value)
