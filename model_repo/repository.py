"""Owns reading a model repository in Triton's layout: ROOT/<model>/{config.pbtxt, <version>/<files>}.

Everything is read through descriptors opened without following symbolic links, so neither a link nor `..` in a
configuration leads out of the repository.
"""

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from model_repo.config import NAME
from model_repo.errors import ConfigError, RepositoryError

_CONFIG_BYTES_MAX: Final = 1 << 20
_MODELS_MAX: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolder:
    """One model on disk. `versions` are its numeric sub-folders, ascending."""

    name: str
    path: Path
    versions: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What a repository holds: models by name, and for what cannot be one, its name and the reason."""

    models: tuple[ModelFolder, ...]
    refused: tuple[tuple[str, str], ...]


def scan_repository(root: Path) -> Scan:
    """List the models below `root`; names that begin with a dot and plain files are passed over.

    Raises:
        RepositoryError: `root` is no readable folder, or holds too many models.
    """
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError as error:
        raise RepositoryError(f"model repository {root}: {error.strerror}") from error
    models: list[ModelFolder] = []
    refused: list[tuple[str, str]] = []
    for entry in entries:
        if entry.name.startswith(".") or entry.is_file(follow_symlinks=False):
            continue
        if entry.is_symlink():
            refused.append((entry.name, "is a symbolic link, which is not followed"))
        elif NAME.fullmatch(entry.name) is None:
            refused.append((entry.name, f"is no model name: it must match {NAME.pattern}"))
        else:
            path = Path(entry.path)
            models.append(ModelFolder(name=entry.name, path=path, versions=_versions(path)))
    if len(models) > _MODELS_MAX:
        raise RepositoryError(f"model repository {root}: more than {_MODELS_MAX} models")
    return Scan(models=tuple(models), refused=tuple(refused))


def _versions(path: Path) -> tuple[int, ...]:
    found = []
    with os.scandir(path) as entries:
        for entry in entries:
            number = version_number(entry.name)
            if number is not None and entry.is_dir(follow_symlinks=False):
                found.append(number)
    return tuple(sorted(found))


def version_number(name: str) -> int | None:
    """The version that a sub-folder's name stands for. Leading zeros would give one version two names."""
    is_number = name.isascii() and name.isdigit() and not name.startswith("0") and len(name) <= 18
    return int(name) if is_number else None


def find_model(root: Path, name: str) -> ModelFolder | None:
    """One model of a repository, as `scan_repository` would list it; None if it would not."""
    path = root / name
    if NAME.fullmatch(name) is None or path.is_symlink() or not path.is_dir():
        return None
    return ModelFolder(name=name, path=path, versions=_versions(path))


def member_parts(parts: tuple[str, ...]) -> None:
    """Check the names on the way to a file below a model's folder.

    Raises:
        ConfigError: one of them leads out of it.
    """
    for part in parts:
        if part in {"", ".", ".."} or "/" in part or "\0" in part:
            raise ConfigError(f"{'/'.join(parts)}: leads out of the model's folder")


def read_member(folder: ModelFolder, *parts: str, bytes_max: int) -> bytes:
    """The bytes of a regular file below the model's folder, for example `("1", "model.onnx")`.

    Raises:
        RepositoryError: missing, a link somewhere on the way, no regular file, or larger than `bytes_max`.
    """
    descriptor = _open_member(folder, parts)
    with os.fdopen(descriptor, "rb") as file:
        size = os.fstat(descriptor).st_size
        if size > bytes_max:
            raise RepositoryError(f"{'/'.join(parts)}: {size} bytes, more than {bytes_max}")
        return file.read(bytes_max)


def find_member(folder: ModelFolder, *parts: str) -> Path | None:
    """The path of a regular file below the model's folder, None where it is missing.

    Raises:
        RepositoryError: as `read_member`, but for a missing file.
    """
    path = folder.path.joinpath(*parts)
    if not os.path.lexists(path):
        return None
    os.close(_open_member(folder, parts))
    return path


def read_config(folder: ModelFolder) -> str:
    """The text of config.pbtxt.

    Raises:
        RepositoryError: missing, too large, a link, or not UTF-8.
    """
    data = read_member(folder, "config.pbtxt", bytes_max=_CONFIG_BYTES_MAX)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise RepositoryError("config.pbtxt: is not UTF-8 text") from error


def _open_member(folder: ModelFolder, parts: tuple[str, ...]) -> int:
    name = "/".join(parts)
    member_parts(parts)
    current = os.open(folder.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
            os.close(current)
            current = inner
        descriptor = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=current)
    except OSError as error:
        is_link = error.errno in {errno.ELOOP, errno.ENOTDIR}
        reason = "is or crosses a symbolic link" if is_link else error.strerror
        raise RepositoryError(f"{name}: {reason}") from error
    finally:
        os.close(current)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise RepositoryError(f"{name}: is no regular file")
    return descriptor
