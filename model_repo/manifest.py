"""Owns manifest.json: what a published version consists of and what it needs of a host. Bytes in, checked value out."""

import hashlib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from model_repo.errors import RepositoryError

SCHEMA: Final = 1
MANIFEST: Final = "manifest.json"
MANIFEST_BYTES_MAX: Final = 1 << 20
FILES_MAX: Final = 1_000
_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What the version was verified for. `isa`: instruction sets without which its results may differ."""

    arch: str
    isa: tuple[str, ...]
    runtime: str
    runtime_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """`files`: all files of the version's folder but the manifest itself, by plain name."""

    engine: str
    precision: str
    method: str
    files: Mapping[str, FileEntry]
    target: Target

    def to_bytes(self) -> bytes:
        value = {"schema": SCHEMA, **asdict(self)}
        return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def parse_manifest(data: bytes) -> Manifest:
    """Raises: RepositoryError: no manifest of a schema known here, or a field is missing or malformed."""
    try:
        value = json.loads(data)
        if not isinstance(value, dict) or value.get("schema") != SCHEMA:
            raise RepositoryError(f"{MANIFEST}: schema is not {SCHEMA}")
        files = {name: FileEntry(**entry) for name, entry in value["files"].items()}
        target = Target(**{**value["target"], "isa": tuple(value["target"]["isa"])})
        manifest = Manifest(
            engine=value["engine"], precision=value["precision"], method=value["method"], files=files, target=target
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RepositoryError(f"{MANIFEST}: malformed ({type(error).__name__}: {str(error)[:100]})") from error
    _check_names(files)
    return manifest


def _check_names(files: Mapping[str, FileEntry]) -> None:
    if len(files) > FILES_MAX:
        raise RepositoryError(f"{MANIFEST}: more than {FILES_MAX} files")
    for name, entry in files.items():
        is_plain = name not in {"", ".", "..", MANIFEST} and not set(name) & {"/", "\\", "\0"}
        if not is_plain or not isinstance(entry.sha256, str) or not isinstance(entry.size_bytes, int):
            raise RepositoryError(f"{MANIFEST}: file '{name[:80]}' is no plain file name with digest and size")


def read_manifest(version: Path) -> Manifest | None:
    """The manifest of a version's folder; None where it has none. Raises: RepositoryError."""
    path = version / MANIFEST
    if not os.path.lexists(path):
        return None
    if path.is_symlink() or path.stat().st_size > MANIFEST_BYTES_MAX:
        raise RepositoryError(f"{MANIFEST}: a link, or more than {MANIFEST_BYTES_MAX} bytes")
    return parse_manifest(path.read_bytes())


def describe_files(folder: Path) -> dict[str, FileEntry]:
    """Digest and size of every file in a folder but the manifest. Raises: RepositoryError: one is no regular file."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.name != MANIFEST:
            status = path.lstat()
            if not stat.S_ISREG(status.st_mode):
                raise RepositoryError(f"{path.name}: is no regular file")
            found[path.name] = FileEntry(sha256=file_sha256(path), size_bytes=status.st_size)
    return found


def check_files(folder: Path, manifest: Manifest) -> None:
    """The folder holds the manifest's files, all of them, byte by byte, and no other.

    Raises:
        RepositoryError: names the first file that differs.
    """
    found = describe_files(folder)
    for name in sorted(found.keys() | manifest.files.keys()):
        wanted, real = manifest.files.get(name), found.get(name)
        if wanted is None:
            raise RepositoryError(f"{name}: is not in the manifest")
        if real is None:
            raise RepositoryError(f"{name}: is missing")
        if wanted != real:
            raise RepositoryError(f"{name}: sha256 {real.sha256[:16]}…, the manifest has {wanted.sha256[:16]}…")


def find_misfit(manifest: Manifest, *, arch: str, isa: Sequence[str], runtimes: Mapping[str, str]) -> str | None:
    """Why a host of these facts must not load the version, with both values; None if it may.

    `runtimes`: installed versions by package. A runtime of the same major and minor version or a newer one fits.
    """
    target = manifest.target
    if target.arch != arch:
        return f"made for {target.arch}, this host is {arch}"
    missing = sorted(set(target.isa) - set(isa))
    if missing:
        return f"verified with {', '.join(target.isa)}; this CPU lacks {', '.join(missing)}"
    installed = runtimes.get(target.runtime)
    if installed is None:
        return f"needs {target.runtime} {target.runtime_version}, which is not installed"
    if _numbers(installed) < _numbers(target.runtime_version):
        return f"needs {target.runtime} {target.runtime_version}, installed is {installed}"
    return None


def _numbers(version: str) -> tuple[int, ...]:
    """Major and minor; what is no number counts as 0."""
    return tuple(int(part) if part.isdigit() else 0 for part in version.split(".")[:2])


def file_sha256(path: Path) -> str:
    """Of a file's bytes, in hex. Reads it in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()
