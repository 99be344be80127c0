"""Owns `tollway models rebuild`: a version made anew for this host from the source it carries, published as the next.

The source is checked against the version's manifest and goes the way of every conversion: sandbox, verification,
measurement, certificate. What comes out is a new version; it serves when it is approved, named or the newest.
"""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from gateway.commands.client import AsJson
from gateway.commands.convert_run import run_converters
from gateway.commands.models_repository import REPOSITORY, Key, Model, Repository, Version, opened
from gateway.commands.output import print_json
from model_repo import lifecycle
from model_repo.errors import RepositoryError
from model_repo.kept import JOB, Kept, read_kept
from model_repo.manifest import SOURCE, check_files, read_manifest
from model_repo.packing import read_shared
from model_repo.repository import find_model, read_config
from model_repo.signing import read_key
from model_repo.store import Published
from model_repo.stores import ModelState, ModelStore


def rebuild(
    model: Model,
    version: Version,
    *,
    repository: Repository = REPOSITORY,
    data: Annotated[Path | None, typer.Option(help="npz file of real inputs; integers need it again.")] = None,
    key: Key = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the reports; MODEL-rebuild if not given.")] = None,
    cache: Annotated[Path, typer.Option(help="Folder of finished conversions.")] = Path(".tollway-convert-cache"),
    memory_bytes: Annotated[int, typer.Option(help="Address space of the child.", min=1 << 28)] = 8 << 30,
    time_s: Annotated[int, typer.Option(help="Seconds that the child may take.", min=1)] = 1_800,
    as_json: AsJson = False,
) -> None:
    """Make a version anew for this host from its source, and publish it as the next version."""
    with opened(repository) as store, tempfile.TemporaryDirectory(prefix="tollway-rebuild-") as temporary:
        work = Path(temporary)
        state = lifecycle.get_model(store, model)
        kept = _take_source(store, state, version, work)
        request = {
            "source": str(work / SOURCE / kept.model),
            "data": str(data) if data is not None else "",
            "repository": str(work / "made"),
            "cache": str(cache),
            "out": str(out or Path(f"{model}-rebuild")),
            "dims": kept.dims,
            "budgets": kept.budgets,
            "limits": {"memory_bytes_max": memory_bytes, "time_s_max": time_s},
            "keep_source": True,
            # Of the engine that the configuration names, as it serves all versions.
            "job": {**kept.job, "name": model, "engines": [state.config.platform]},
        }
        answer = run_converters("convert", request)
        if answer["ev"] == "error":
            _tell_failure(answer, as_json=as_json)
            raise typer.Exit(answer["exit_code"])
        published = _publish(store, model, work / "made", key)
    if as_json:
        selected = answer["value"]["selected"]
        facts = {"version": published.version, "is_new": published.is_new, "selected": selected}
        print_json({"model": model, "from_version": version, **facts})
        return
    said = "is published" if published.is_new else "already was what this host makes of it"
    print(f"{model} version {published.version} {said}: {answer['value']['selected']}")


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


def _publish(store: ModelStore, name: str, made: Path, key: Path | None) -> Published:
    folder = find_model(made, name)
    if folder is None:
        raise RepositoryError(f"the conversion left no model '{name}'")
    text = read_config(folder)
    signer = read_key(key) if key is not None else None
    version = folder.path / str(max(folder.versions))
    return store.publish(name, version, text, shared=read_shared(folder.path, text, name), signer=signer)


def _tell_failure(answer: Mapping[str, object], *, as_json: bool) -> None:
    if as_json:
        print_json({"error": {key: answer[key] for key in ("rule", "message", "next_step", "exit_code")}})
        return
    typer.echo(f"{answer['rule']}: {answer['message']}", err=True)
    typer.echo(f"next: {answer['next_step']}", err=True)
