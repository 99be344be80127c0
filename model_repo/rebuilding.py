"""Owns making a version anew from the source it carries: what is asked of the converters, and how the answer is
published. `tollway models rebuild` and control's own rebuilds are both made of it. Blocks.
"""

import shutil
from pathlib import Path
from typing import Any

from model_repo import lifecycle
from model_repo.errors import RepositoryError
from model_repo.kept import JOB, Kept, read_kept
from model_repo.manifest import SOURCE, check_files, read_manifest
from model_repo.packing import read_shared
from model_repo.repository import find_model, read_config
from model_repo.signing import SigningKey
from model_repo.store import Published
from model_repo.stores import ModelState, ModelStore

_MADE = "made"


def prepare(
    store: ModelStore,
    name: str,
    number: int,
    work: Path,
    *,
    cache: Path,
    out: Path,
    data: Path | None,
    memory_bytes_max: int,
    time_s_max: int,
) -> dict[str, Any]:
    """The request to `python -m converters convert` that makes a version anew into `work`, its source copied there.

    Raises:
        RepositoryError: there is no such version, it does not hold its source, or is not what its manifest says.
    """
    state = lifecycle.get_model(store, name)
    kept = _take_source(store, state, number, work)
    return {
        "source": str(work / SOURCE / kept.model),
        "data": str(data) if data is not None else "",
        "repository": str(work / _MADE),
        "cache": str(cache),
        "out": str(out),
        "dims": list(kept.dims),
        "budgets": list(kept.budgets),
        "limits": {"memory_bytes_max": memory_bytes_max, "time_s_max": time_s_max},
        "keep_source": True,
        # Of the engine that the configuration names, as it serves all versions.
        "job": {**kept.job, "name": name, "engines": [state.config.platform]},
    }


def publish_made(store: ModelStore, name: str, work: Path, signer: SigningKey | None) -> Published:
    """Publish what a conversion that `prepare` asked for has left in `work`, as the next version.

    Raises:
        RepositoryError: it left none, or the store does not take it.
    """
    folder = find_model(work / _MADE, name)
    if folder is None:
        raise RepositoryError(f"the conversion left no model '{name}'")
    text = read_config(folder)
    version = folder.path / str(max(folder.versions))
    return store.publish(name, version, text, shared=read_shared(folder.path, text, name), signer=signer)


def _take_source(store: ModelStore, state: ModelState, number: int, work: Path) -> Kept:
    """What a version was made from, checked against its manifest and copied into `work/source`."""
    with store.open_version(state.name, number) as folder:
        manifest = read_manifest(folder)
        if manifest is None or f"{SOURCE}/{JOB}" not in manifest.files:
            raise RepositoryError(
                f"version {number} of '{state.name}' does not hold its source; convert with --keep-source"
            )
        check_files(folder, manifest)
        shutil.copytree(folder / SOURCE, work / SOURCE)
    return read_kept(work / SOURCE)
