"""Owns `tollway models rebuild`: a version made anew for this host from the source it carries, published as the next.

The source is checked against the version's manifest and goes the way of every conversion: sandbox, verification,
measurement, certificate. What comes out is a new version; it serves when it is approved, named or the newest.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from gateway.commands.client import AsJson
from gateway.commands.convert_run import run_converters
from gateway.commands.models_repository import REPOSITORY, Key, Model, Repository, Version, opened
from gateway.commands.output import print_json
from model_repo import rebuilding
from model_repo.errors import RepositoryError
from model_repo.host import read_host
from model_repo.rebuild_facts import is_installed
from model_repo.rebuild_plan import find_missing, find_obstacle
from model_repo.signing import read_key


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
        request = rebuilding.prepare(
            store,
            model,
            version,
            work,
            cache=cache,
            out=out or Path(f"{model}-rebuild"),
            data=data,
            memory_bytes_max=memory_bytes,
            time_s_max=time_s,
        )
        _check_toolchain(model, version, request["job"]["engines"][0])
        answer = run_converters("convert", request)
        if answer["ev"] == "error":
            _tell_failure(answer, as_json=as_json)
            raise typer.Exit(answer["exit_code"])
        published = rebuilding.publish_made(store, model, work, read_key(key) if key is not None else None)
    if as_json:
        selected = answer["value"]["selected"]
        facts = {"version": published.version, "is_new": published.is_new, "selected": selected}
        print_json({"model": model, "from_version": version, **facts})
        return
    said = "is published" if published.is_new else "already was what this host makes of it"
    print(f"{model} version {published.version} {said}: {answer['value']['selected']}")


def _check_toolchain(model: str, version: int, engine: str) -> None:
    """Raises: RepositoryError: what a conversion needs is not installed, with the command that mends it."""
    missing = find_missing(engine, read_host(), is_installed)
    obstacle, command = find_obstacle(model, version, engine, has_source=True, missing=missing)
    if missing:
        raise RepositoryError(f"version {version} of '{model}' cannot be made anew here: {obstacle}; `{command}`")


def _tell_failure(answer: Mapping[str, object], *, as_json: bool) -> None:
    if as_json:
        print_json({"error": {key: answer[key] for key in ("rule", "message", "next_step", "exit_code")}})
        return
    typer.echo(f"{answer['rule']}: {answer['message']}", err=True)
    typer.echo(f"next: {answer['next_step']}", err=True)
