"""Owns keeping a repository folder in line with a store: what engines on other machines serve from. Blocks.

Readers of the folder see whole versions at any moment. Order, each step whole by itself: signatures of what comes, the
versions, aliases and approvals, then what is no longer in the store goes, its signatures last. A mirror has one source:
nothing is published into it.
"""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from model_repo.disk import copy_tree, locked, new_staging, remove_folder, replace_file, sync, write_new
from model_repo.errors import RepositoryError
from model_repo.manifest import MANIFEST, check_files, file_sha256, read_manifest
from model_repo.release import RELEASE, Release
from model_repo.stores import FileStore, ModelState, ModelStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """What came and went of one model. `fault`: why it was left as it was, or in part."""

    model: str
    added: tuple[int, ...] = ()
    removed: tuple[int, ...] = ()
    is_released: bool = False
    fault: str = ""


def pull(store: ModelStore, root: Path) -> list[Pulled]:
    """Bring `root` in line with `store`, model by model; a model that fails leaves the others be.

    A model that left the store stays: what serves is not taken away by a bucket that looks empty.

    Raises:
        RepositoryError: the store cannot be listed, or `root` cannot be written.
    """
    names = store.names()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RepositoryError(f"{root}: {error.strerror}") from error
    return [_pull_one(store, root, name) for name in names]


def _pull_one(store: ModelStore, root: Path, name: str) -> Pulled:
    try:
        wanted = store.find(name)
        if wanted is None:
            return Pulled(model=name)
        with locked(root):
            here = FileStore(root).find(name)
            return _create(store, root, wanted) if here is None else _update(store, root, wanted, here)
    except OSError as error:
        return Pulled(model=name, fault=f"{root}: {error.strerror}")
    except RepositoryError as error:
        return Pulled(model=name, fault=str(error))


def _create(store: ModelStore, root: Path, wanted: ModelState) -> Pulled:
    """The model's whole folder appears at once."""
    staging = new_staging(root)
    for number in wanted.digests:
        _fetch(store, wanted, number, staging / str(number))
    write_new(staging / "config.pbtxt", wanted.config_text.encode())
    for path, data in wanted.shared.items():
        (staging / path).parent.mkdir(exist_ok=True)
        write_new(staging / path, data)
        sync((staging / path).parent)
    if wanted.release.generation:
        write_new(staging / RELEASE, wanted.release.to_bytes())
    sync(staging)
    staging.rename(root / wanted.name)
    sync(root)
    return Pulled(model=wanted.name, added=tuple(wanted.digests), is_released=wanted.release.generation > 0)


def _update(store: ModelStore, root: Path, wanted: ModelState, here: ModelState) -> Pulled:
    folder = root / wanted.name
    for number, digest in here.digests.items():
        if number in wanted.digests and wanted.digests[number] != digest:
            raise RepositoryError(
                f"version {number} here is another one than in {store.address}; a mirror has one source"
            )
    added = tuple(number for number in wanted.digests if number not in here.versions)
    # No version is there at any moment without its signature: that of what comes is written before, of what goes after.
    signatures = {**here.release.signatures, **wanted.release.signatures}
    now = _release(root, folder, here.release, replace(here.release, signatures=signatures))
    for number in added:
        staging = new_staging(root)
        _fetch(store, wanted, number, staging / "version")
        (staging / "version").rename(folder / str(number))
        sync(folder)
        staging.rmdir()
    now = _release(root, folder, now, replace(wanted.release, signatures=signatures))
    removed = tuple(number for number in here.digests if number not in wanted.digests)
    for number in removed:
        remove_folder(root, folder / str(number))
    _release(root, folder, now, wanted.release)
    return Pulled(model=wanted.name, added=added, removed=removed, is_released=wanted.release != here.release)


def _release(root: Path, folder: Path, old: Release, new: Release) -> Release:
    if new != old:
        replace_file(root, folder / RELEASE, new.to_bytes())
    return new


def _fetch(store: ModelStore, wanted: ModelState, number: int, target: Path) -> None:
    with store.open_version(wanted.name, number) as found:
        copy_tree(found, target)
    manifest = read_manifest(target)
    if manifest is None or file_sha256(target / MANIFEST) != wanted.digests[number]:
        shutil.rmtree(target)
        raise RepositoryError(f"version {number}: changed in {store.address} while it was fetched")
    check_files(target, manifest)
