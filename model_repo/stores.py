"""Owns the seam to where published models lie: a folder (`file://`) or an object store (`s3://`), chosen by address.

Both promise the same: a version is whole from the moment that it is listed and never changes; a change of a release is
seen at once or not at all, and changes at the same time are all kept.
"""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import unquote, urlsplit

from model_repo.config import ModelConfig, parse_config
from model_repo.config_digest import SHARED_BYTES_MAX, config_sha256, shared_files
from model_repo.errors import RepositoryError
from model_repo.manifest import MANIFEST, file_sha256
from model_repo.release import Release, read_release
from model_repo.repository import find_model, read_config, read_member, scan_repository
from model_repo.signing import SigningKey
from model_repo.store import Published, change_release, publish, remove_versions

#: (versions, release) → versions to remove.
Choose = Callable[[tuple[int, ...], Release], Collection[int]]
SCHEMES: Final = ("file", "s3")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelState:
    """A model as it lies in a store. `shared`: label and state files, by path below the model.

    `digests`: of the manifests, by version; versions that have none are not in it.
    """

    name: str
    versions: tuple[int, ...]
    release: Release
    config_text: str
    shared: Mapping[str, bytes]
    digests: Mapping[int, str]

    @property
    def config(self) -> ModelConfig:
        """Raises: ConfigError."""
        return parse_config(self.config_text, name=self.name)

    @property
    def config_sha256(self) -> str:
        """As signatures state it. Raises: ConfigError."""
        return config_sha256(self.config, self.shared.__getitem__)


class ModelStore(Protocol):
    """Where published models lie. All methods block."""

    @property
    def address(self) -> str:
        """As it was given, without secrets."""

    def names(self) -> tuple[str, ...]:
        """Sorted. Raises: RepositoryError: the store cannot be read."""

    def find(self, name: str) -> ModelState | None:
        """One state of a model: versions and release belong together. Raises: RepositoryError."""

    def open_version(self, name: str, number: int) -> AbstractContextManager[Path]:
        """A folder with the files of a version, read-only for the caller, gone afterwards where it was fetched.

        Raises:
            RepositoryError: there is none, or a file is not what the manifest says.
        """

    def publish(
        self,
        name: str,
        staged: Path,
        config_text: str,
        *,
        shared: Mapping[str, bytes] | None = None,
        signer: SigningKey | None = None,
    ) -> Published:
        """As `model_repo.store.publish`."""

    def change_release(self, name: str, change: Callable[[Release], Release]) -> Release:
        """As `model_repo.store.change_release`; `change` may be asked again where another was faster."""

    def remove(self, name: str, choose: Choose) -> set[int]:
        """As `model_repo.store.remove_versions`."""


class FileStore:
    """A repository folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.address = str(root)

    def names(self) -> tuple[str, ...]:
        return tuple(model.name for model in scan_repository(self.root).models) if self.root.exists() else ()

    def find(self, name: str) -> ModelState | None:
        folder = find_model(self.root, name)
        if folder is None:
            return None
        release = read_release(folder.path)
        text = read_config(folder)
        shared: Any = {}
        with contextlib.suppress(RepositoryError):
            # A configuration that cannot be read has no shared files; who needs it is told by `config`.
            for path in shared_files(parse_config(text, name=name)):
                shared[path] = read_member(folder, *path.split("/"), bytes_max=SHARED_BYTES_MAX)
        manifests = {number: folder.path / str(number) / MANIFEST for number in folder.versions}
        digests = {number: file_sha256(path) for number, path in manifests.items() if path.is_file()}
        return ModelState(
            name=name, versions=folder.versions, release=release, config_text=text, shared=shared, digests=digests
        )

    @contextlib.contextmanager
    def open_version(self, name: str, number: int) -> Iterator[Path]:
        folder = find_model(self.root, name)
        if folder is None or number not in folder.versions:
            raise RepositoryError(f"model '{name[:140]}' has no version {number} in {self.address}")
        yield folder.path / str(number)

    def publish(
        self,
        name: str,
        staged: Path,
        config_text: str,
        *,
        shared: Mapping[str, bytes] | None = None,
        signer: SigningKey | None = None,
    ) -> Published:
        return publish(self.root, name, staged, config_text, shared=shared, signer=signer)

    def change_release(self, name: str, change: Callable[[Release], Release]) -> Release:
        return change_release(self.root, name, change)

    def remove(self, name: str, choose: Choose) -> set[int]:
        return remove_versions(self.root, name, choose)


def open_store(address: str) -> ModelStore:
    """The store at a path, `file:///PATH` or `s3://BUCKET/PREFIX`.

    Raises:
        RepositoryError: another scheme, or the library for it is missing.
    """
    parts = urlsplit(address)
    if "://" not in address:
        return FileStore(Path(address))
    if parts.scheme == "file" and parts.netloc in {"", "localhost"} and parts.path:
        return FileStore(Path(unquote(parts.path)))
    if parts.scheme == "s3" and parts.netloc:
        from model_repo.object_store import open_s3

        return open_s3(parts.netloc, parts.path.strip("/"))
    raise RepositoryError(f"'{address[:200]}' is neither a path nor file:///PATH nor s3://BUCKET/PREFIX")
