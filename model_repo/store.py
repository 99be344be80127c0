"""Owns publishing a version into a repository folder: whole or not at all, for readers that look at any moment.

A version's folder is written beside the models under a name that readers pass over, flushed, and renamed into place.
Crash windows: before the rename only a `.staging-*` folder is left, which the next publish removes; after it the
version is whole. A version that is there is never written to again.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import uuid4

from model_repo.config import NAME, ModelConfig, parse_config
from model_repo.errors import ConfigError, RepositoryError
from model_repo.manifest import MANIFEST, check_files, read_manifest
from model_repo.repository import ModelFolder, find_model, read_config

_STAGING: Final = ".staging-"
_LOCK: Final = ".publish.lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """`is_new` False: the newest version already was this one, byte by byte."""

    name: str
    version: int
    path: Path
    is_new: bool


def publish(root: Path, name: str, staged: Path, config_text: str) -> Published:
    """Copy the files of `staged` (with its manifest) into `root` as the next version of `name`. Blocks.

    Raises:
        ConfigError: `name` or the configuration is malformed.
        RepositoryError: a file differs from the manifest, the model has another interface, or the disk failed.
    """
    if NAME.fullmatch(name) is None:
        raise ConfigError(f"name: '{name[:140]}' must match {NAME.pattern}")
    config = parse_config(config_text, name=name)
    manifest = read_manifest(staged)
    if manifest is None:
        raise RepositoryError(f"{MANIFEST}: is missing")
    check_files(staged, manifest)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root):
            return _publish(root, name, staged, config, config_text)
    except OSError as error:
        raise RepositoryError(f"{root}: {error.strerror}") from error


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """One publisher at a time; the kernel lets go of the lock with the process."""
    descriptor = os.open(root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        for left in root.glob(f"{_STAGING}*"):
            shutil.rmtree(left)
        yield
    finally:
        os.close(descriptor)


def _publish(root: Path, name: str, staged: Path, config: ModelConfig, config_text: str) -> Published:
    folder = find_model(root, name)
    if folder is None and os.path.lexists(root / name):
        raise RepositoryError(f"{name}: is there and is no folder")
    staging = root / f"{_STAGING}{uuid4().hex}"
    staging.mkdir(mode=0o755)
    if folder is None:
        _copy(staged, staging / "1")
        _write(staging / "config.pbtxt", config_text.encode())
        _sync(staging)
        staging.rename(root / name)
        _sync(root)
        return Published(name=name, version=1, path=root / name / "1", is_new=True)
    _check_interface(folder, config)
    latest = max(folder.versions, default=0)
    if latest and _is_same(folder.path / str(latest), staged):
        staging.rmdir()
        return Published(name=name, version=latest, path=folder.path / str(latest), is_new=False)
    _copy(staged, staging / "version")
    target = folder.path / str(latest + 1)
    # Fails where a folder with files is there already: nothing is ever replaced.
    (staging / "version").rename(target)
    _sync(folder.path)
    staging.rmdir()
    return Published(name=name, version=latest + 1, path=target, is_new=True)


def _is_same(version: Path, staged: Path) -> bool:
    path = version / MANIFEST
    return path.is_file() and not path.is_symlink() and path.read_bytes() == (staged / MANIFEST).read_bytes()


def _check_interface(folder: ModelFolder, config: ModelConfig) -> None:
    """One configuration serves all versions of a model, so each must have the same tensors and library."""
    old = parse_config(read_config(folder), name=folder.name)
    for what in ("platform", "inputs", "outputs", "batch_rows_max"):
        before, after = getattr(old, what), getattr(config, what)
        if before != after:
            raise RepositoryError(
                f"{folder.name}: is published with {what} {_shown(before)}, this version has {_shown(after)}; "
                "publish under another name"
            )


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(f"{spec.name} {spec.datatype}{list(spec.dims)}" for spec in value)
    return str(value)


def _copy(source: Path, target: Path) -> None:
    target.mkdir(mode=0o755)
    for path in sorted(source.iterdir()):
        with path.open("rb") as reader, (target / path.name).open("xb") as writer:
            shutil.copyfileobj(reader, writer, 1 << 20)
            writer.flush()
            os.fsync(writer.fileno())
    _sync(target)


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
