"""Owns manifest.json: what a published version consists of and what it needs of a host. Bytes in, checked value out.

Schema 2 adds variants, other files for hosts that the version's own do not fit, and the source: they lie in folders of
the version's folder, `variants/<name>/` and `source/`. A manifest that has neither is written as schema 1.
"""

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from model_repo.config import NAME
from model_repo.errors import RepositoryError
from model_repo.target import Target, parse_target

SCHEMA: Final = 2
_SCHEMA_PLAIN: Final = 1
MANIFEST: Final = "manifest.json"
MANIFEST_BYTES_MAX: Final = 1 << 20
FILES_MAX: Final = 1_000
VARIANTS_MAX: Final = 16
#: Folders of a version's folder: variants by name, and what the version was made from.
VARIANTS: Final = "variants"
SOURCE: Final = "source"
_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """Another build of the same version, in `variants/<name>/`, with a certificate of its own."""

    name: str
    engine: str
    precision: str
    method: str
    target: Target

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "target": self.target.to_json()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """`files`: all files of the version's folder but the manifest itself, by path. `variants`: best first."""

    engine: str
    precision: str
    method: str
    files: Mapping[str, FileEntry]
    target: Target
    variants: tuple[Variant, ...] = ()

    def to_bytes(self) -> bytes:
        value: dict[str, Any] = {
            "schema": SCHEMA if self.variants or any("/" in name for name in self.files) else _SCHEMA_PLAIN,
            "engine": self.engine,
            "precision": self.precision,
            "method": self.method,
            "files": {name: asdict(entry) for name, entry in self.files.items()},
            "target": self.target.to_json(),
        }
        if self.variants:
            value["variants"] = [variant.to_json() for variant in self.variants]
        return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def parse_manifest(data: bytes) -> Manifest:
    """Raises: RepositoryError: no manifest of a schema known here, or a field is missing or malformed."""
    try:
        value = json.loads(data)
        if not isinstance(value, dict) or value.get("schema") not in (_SCHEMA_PLAIN, SCHEMA):
            raise RepositoryError(f"{MANIFEST}: schema is neither {_SCHEMA_PLAIN} nor {SCHEMA}")
        files = {name: FileEntry(**entry) for name, entry in value["files"].items()}
        variants = tuple(_parse_variant(one) for one in value.get("variants", ()))
        manifest = Manifest(**_words(value), files=files, target=parse_target(value["target"]), variants=variants)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RepositoryError(f"{MANIFEST}: malformed ({type(error).__name__}: {str(error)[:100]})") from error
    _check_names(files, variants)
    return manifest


def _words(value: Mapping[str, Any]) -> dict[str, str]:
    found = {name: value[name] for name in ("engine", "precision", "method")}
    for name, word in found.items():
        if not isinstance(word, str):
            raise RepositoryError(f"{MANIFEST}: {name} is no text")
    return found


def _parse_variant(value: Mapping[str, Any]) -> Variant:
    name = value["name"]
    if not isinstance(name, str) or NAME.fullmatch(name) is None:
        raise RepositoryError(f"{MANIFEST}: variant '{str(name)[:80]}' must match {NAME.pattern}")
    return Variant(name=name, **_words(value), target=parse_target(value["target"]))


def _check_names(files: Mapping[str, FileEntry], variants: tuple[Variant, ...]) -> None:
    if len(files) > FILES_MAX:
        raise RepositoryError(f"{MANIFEST}: more than {FILES_MAX} files")
    names = [variant.name for variant in variants]
    if len(names) > VARIANTS_MAX or len(set(names)) != len(names):
        raise RepositoryError(f"{MANIFEST}: more than {VARIANTS_MAX} variants, or two of one name")
    for path, entry in files.items():
        is_sound = isinstance(entry.sha256, str) and isinstance(entry.size_bytes, int)
        if not is_sound or not _is_member(path, names):
            raise RepositoryError(
                f"{MANIFEST}: file '{path[:80]}' is no plain file name, nor one of a variant's or the source's folder, "
                "with digest and size"
            )


def _is_member(path: str, variants: list[str]) -> bool:
    match path.split("/"):
        case [name]:
            return _is_plain(name) and name not in {MANIFEST, VARIANTS, SOURCE}
        case [folder, name] if folder == SOURCE:
            return _is_plain(name)
        case [folder, variant, name] if folder == VARIANTS and variant in variants:
            return _is_plain(name)
        case _:
            return False


def _is_plain(name: str) -> bool:
    return name not in {"", ".", ".."} and not set(name) & {"\\", "\0"}


def read_manifest(version: Path) -> Manifest | None:
    """The manifest of a version's folder; None where it has none. Raises: RepositoryError."""
    path = version / MANIFEST
    if not os.path.lexists(path):
        return None
    if path.is_symlink() or path.stat().st_size > MANIFEST_BYTES_MAX:
        raise RepositoryError(f"{MANIFEST}: a link, or more than {MANIFEST_BYTES_MAX} bytes")
    return parse_manifest(path.read_bytes())


def describe_files(folder: Path) -> dict[str, FileEntry]:
    """Digest and size of every file in a version's folder but the manifest, by path. Blocks.

    Raises:
        RepositoryError: one is no regular file, or lies in a folder that no manifest can name.
    """
    return {name: FileEntry(sha256=file_sha256(path), size_bytes=path.lstat().st_size) for name, path in walk(folder)}


def walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """The files of a version's folder but the manifest, as the manifest names them, sorted.

    Raises:
        RepositoryError: as `describe_files`.
    """
    for path in sorted(folder.iterdir()):
        if path.name in {VARIANTS, SOURCE} and _is_folder(path):
            inner = sorted(path.iterdir()) if path.name == VARIANTS else [path]
            for own in inner:
                if not _is_folder(own):
                    raise RepositoryError(f"{own.relative_to(folder)}: is no folder")
                yield from ((str(file.relative_to(folder)), _regular(file, folder)) for file in sorted(own.iterdir()))
        elif path.name != MANIFEST:
            yield path.name, _regular(path, folder)


def _is_folder(path: Path) -> bool:
    return stat.S_ISDIR(path.lstat().st_mode)


def _regular(path: Path, folder: Path) -> Path:
    if not stat.S_ISREG(path.lstat().st_mode):
        raise RepositoryError(f"{path.relative_to(folder)}: is no regular file")
    return path


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


def file_sha256(path: Path) -> str:
    """Of a file's bytes, in hex. Reads it in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()
