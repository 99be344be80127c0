"""Owns the verbs of `tollway models` that work on a repository: publish, show, diff, verify, approve, alias, sign, gc.

They need no running installation; a running engine follows what they change (docs/model-repository.md).
"""

import getpass
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from gateway.commands.client import DEFAULT_DATA_DIR, AsJson, DataDir, fail, open_api
from gateway.commands.output import print_json, print_table
from model_repo import lifecycle
from model_repo.config import parse_config
from model_repo.errors import ConfigError, RepositoryError
from model_repo.host import read_host
from model_repo.mirror import pull
from model_repo.packing import CONFIG, pack, read_shared
from model_repo.rebuild_facts import is_installed
from model_repo.rebuild_plan import find_missing, find_obstacle
from model_repo.release import Release
from model_repo.repository import version_number
from model_repo.signing import create_key, parse_trusted, read_key
from model_repo.stores import ModelStore, open_store

REPOSITORY: Final = "model_repository"
_CONFIG_BYTES_MAX: Final = 1 << 20
_COLUMNS: Final = ("model", "version", "engine", "precision", "bytes", "aliases", "approved", "signed by", "state")

Repository = Annotated[
    str,
    typer.Option(
        "--repository", envvar="TOLLWAY_MODEL_REPOSITORY", help="A folder, file:///PATH or s3://BUCKET/PREFIX."
    ),
]
Model = Annotated[str, typer.Argument(help="Name of a model.", show_default=False)]
Version = Annotated[int, typer.Argument(help="Number of a version.", min=1, show_default=False)]
Key = Annotated[Path | None, typer.Option("--key", help="Private key that signs, see keygen.")]
Trusted = Annotated[list[str] | None, typer.Option("--trusted", help="Public key that must have signed; repeatable.")]


@contextmanager
def opened(repository: str) -> Iterator[ModelStore]:
    """The store; whatever is wrong with it or in it ends the command with one line and exit code 1."""
    try:
        yield open_store(repository)
    except RepositoryError as error:
        fail(str(error))


def publish(
    source: Annotated[
        Path, typer.Argument(help="A model's folder (its newest version is taken), or a version's.", show_default=False)
    ],
    *,
    name: Annotated[str, typer.Option(help="Name in the repository.", show_default=False)],
    repository: Repository = REPOSITORY,
    config: Annotated[Path | None, typer.Option(help="config.pbtxt of a version's folder.")] = None,
    key: Key = None,
    alias: Annotated[str | None, typer.Option(help="Point this alias at it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Publish a version as it is, whole and immutable; a manifest is made where there is none."""
    with opened(repository) as store, tempfile.TemporaryDirectory(prefix="tollway-publish-") as temporary:
        files, path = _find_parts(source, config)
        text = _named(_read_text(path), name)
        signer = read_key(key) if key is not None else None
        staged = pack(files, parse_config(text, name=name), Path(temporary) / "version")
        published = store.publish(name, staged, text, shared=read_shared(path.parent, text, name), signer=signer)
        if alias is not None:
            lifecycle.name_version(store, name, alias, published.version)
    if as_json:
        print_json({"model": name, "version": published.version, "is_new": published.is_new, "alias": alias})
        return
    said = "published" if published.is_new else "was already published"
    print(f"{name} version {published.version} {said} in {store.address}")


def _find_parts(source: Path, config: Path | None) -> tuple[Path, Path]:
    """The version's folder and the configuration."""
    if not source.is_dir():
        raise RepositoryError(f"{source}: is no folder")
    numbers = [number for path in source.iterdir() if path.is_dir() and (number := version_number(path.name))]
    if config is not None:
        return source, config
    if not numbers:
        raise RepositoryError(f"{source}: has no version folder such as '1'; for a version's folder give --config")
    return source / str(max(numbers)), source / CONFIG


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_CONFIG_BYTES_MAX + 1)
    except OSError as error:
        raise RepositoryError(f"{path}: {error.strerror}") from error
    if len(data) > _CONFIG_BYTES_MAX:
        raise RepositoryError(f"{path}: more than {_CONFIG_BYTES_MAX} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise RepositoryError(f"{path}: is not UTF-8 text") from error


def _named(text: str, name: str) -> str:
    """The configuration under another name; its text stays where the name is this one already."""
    message = model_config_pb2.ModelConfig()
    try:
        text_format.Parse(text, message)
    except (text_format.ParseError, ValueError) as error:
        raise ConfigError(f"not a model configuration: {error}") from error
    if message.name in ("", name):
        return text
    message.name = name
    return str(text_format.MessageToString(message))


def show(repository: str, name: str | None, *, as_json: bool) -> None:
    """What `tollway models list --repository` prints: the versions that lie there."""
    rows: list[lifecycle.Looked] = []
    with opened(repository) as store:
        for own in [name] if name is not None else store.names():
            rows += lifecycle.look(store, lifecycle.get_model(store, own), read_host())
    if as_json:
        versions = [{**asdict(row), "advice": _advice(row)} for row in rows]
        print_json({"repository": store.address, "versions": versions})
        return
    print_table(_COLUMNS, (_row(row) for row in rows), right=frozenset({"version", "bytes"}))


def _row(row: lifecycle.Looked) -> list[object]:
    state = row.fault or (f"not here: {row.misfit}; {_advice(row)}" if row.misfit else "fits")
    engine = " + ".join((row.engine, *row.variants)) if row.variants else row.engine
    names = list(row.aliases), row.is_approved, list(row.keys)
    return [row.model, row.version, engine or None, row.precision or None, row.size_bytes or None, *names, state]


def _advice(row: lifecycle.Looked) -> str:
    """What makes a version that does not fit one that does; empty for all others."""
    if not row.misfit:
        return ""
    missing = find_missing(row.engine, read_host(), is_installed)
    obstacle, command = find_obstacle(row.model, row.version, row.engine, has_source=row.has_source, missing=missing)
    return f"{obstacle}: `{command}`" if obstacle else f"`{command}`"


def diff(
    model: Model, before: Version, after: Version, *, repository: Repository = REPOSITORY, as_json: AsJson = False
) -> None:
    """What two versions differ in: files, what they need of a host, source, tools, accuracy, speed."""
    with opened(repository) as store:
        found = lifecycle.compare(store, model, before, after)
    if as_json:
        print_json({"model": model, "before": before, "after": after, "differences": [asdict(one) for one in found]})
        return
    print_table(("", f"version {before}", f"version {after}"), ([one.path, one.before, one.after] for one in found))


def approve(
    model: Model,
    version: Version,
    *,
    repository: Repository = REPOSITORY,
    by: Annotated[str | None, typer.Option(help="Who approves; default: you.")] = None,
    withdraw: Annotated[bool, typer.Option("--withdraw", help="Take the approval back.")] = False,
    as_json: AsJson = False,
) -> None:
    """Let a version, as its bytes are now, serve where approval is required."""
    with opened(repository) as store:
        if withdraw:
            release = lifecycle.withdraw(store, model, version)
        else:
            release = lifecycle.approve(store, model, version, by=by or getpass.getuser(), now=datetime.now(UTC))
    _told(model, release, f"version {version} is {'no longer ' if withdraw else ''}approved", as_json=as_json)


def alias(
    model: Model,
    name: Annotated[str, typer.Argument(help="Such as stable or canary.", show_default=False)],
    version: Annotated[int | None, typer.Argument(help="Number of a version.", min=1, show_default=False)] = None,
    *,
    repository: Repository = REPOSITORY,
    remove: Annotated[bool, typer.Option("--remove", help="Take the alias away.")] = False,
    as_json: AsJson = False,
) -> None:
    """Point an alias at a version; `stable` is what calls without a version get."""
    if (version is None) != remove:
        fail("give a version, or --remove")
    with opened(repository) as store:
        release = lifecycle.name_version(store, model, name, version)
    said = f"{name} is removed" if version is None else f"{name} is version {version}"
    _told(model, release, said, as_json=as_json)


def _told(model: str, release: Release, said: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"model": model, **_release_json(release)})
        return
    print(f"{model}: {said}")


def _release_json(release: Release) -> dict[str, Any]:
    return {
        "generation": release.generation,
        "aliases": dict(release.aliases),
        "approvals": {str(number): asdict(one) for number, one in release.approvals.items()},
        "signatures": {str(number): [one.key_id for one in own] for number, own in release.signatures.items()},
    }


def verify(
    model: Annotated[str | None, typer.Argument(help="Name of a model; default: all.", show_default=False)] = None,
    version: Annotated[int | None, typer.Argument(help="Default: all.", min=1, show_default=False)] = None,
    *,
    repository: Repository = REPOSITORY,
    trusted: Trusted = None,
    as_json: AsJson = False,
) -> None:
    """Check every byte against the manifests, and signatures where keys are given; exit 1 if anything is wrong."""
    rows: list[dict[str, Any]] = []
    with opened(repository) as store:
        keys = parse_trusted(trusted or ())
        for name in [model] if model is not None else store.names():
            state = lifecycle.get_model(store, name)
            if version is not None and version not in state.versions:
                raise RepositoryError(f"model '{name}' has no version {version} in {store.address}")
            numbers = state.versions if version is None else (version,)
            rows += [{"model": name, **asdict(lifecycle.verify(store, state, one, keys))} for one in numbers]
    if as_json:
        print_json({"repository": store.address, "versions": rows})
    else:
        print_table(
            ("model", "version", "signed by", "result"),
            ([row["model"], row["version"], row["key"] or None, row["fault"] or "whole"] for row in rows),
        )
    if any(row["fault"] for row in rows):
        raise typer.Exit(1)


def gc(
    models: Annotated[list[str] | None, typer.Argument(help="Names; default: all.", show_default=False)] = None,
    *,
    repository: Repository = REPOSITORY,
    keep: Annotated[int, typer.Option(min=1, help="Newest versions that stay.")] = lifecycle.KEEP_DEFAULT,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Do not ask what backends serve.")] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Remove old versions; never one that is served, has an alias, is the newest approved, or the newest."""
    rows: list[dict[str, Any]] = []
    served = {} if offline else _served(data_dir)
    with opened(repository) as store:
        for name in models or store.names():
            state = lifecycle.get_model(store, name)
            own = served.get(name, set()) | set(state.config.versions.choose(state.versions))
            if dry_run:
                fates = lifecycle.removable(state.versions, state.release, keep=keep, served=own)
            else:
                fates = lifecycle.collect(store, name, keep=keep, served=own)
            rows += [{"model": name, "version": one, "removed": not why, "why": why} for one, why in fates.items()]
    if as_json:
        print_json({"repository": store.address, "is_dry_run": dry_run, "versions": rows})
        return
    gone = "would go" if dry_run else "removed"
    print_table(("model", "version", ""), ([row["model"], row["version"], row["why"] or gone] for row in rows))


def _served(data_dir: Path) -> dict[str, set[int]]:
    """Versions that backends hold, by model; none where nothing runs here. A silent backend ends the command."""
    if not (data_dir / "run" / "control.sock").exists():
        typer.echo(f"nothing runs on {data_dir}: what other machines serve is not known here", err=True)
        return {}
    with open_api(data_dir, None) as control:
        answer = control.get("/admin/models")
    for backend in answer["backends"]:
        if backend["problem"] is not None:
            fail(
                f"backend {backend['name']} {backend['problem']}: what it serves is unknown; --offline goes on without"
            )
    served: dict[str, set[int]] = {}
    for row in answer["models"]:
        number = version_number(row["version"] or "")
        if number:
            served.setdefault(row["name"], set()).add(number)
    return served


def keygen(
    file: Annotated[Path, typer.Argument(help="Where the private key goes; never replaced.", show_default=False)],
    *,
    as_json: AsJson = False,
) -> None:
    """Make a key that signs versions, and print its public part for trusted_model_keys."""
    try:
        key = create_key(file)
    except RepositoryError as error:
        fail(str(error))
    if as_json:
        print_json({"file": os.fspath(file), "key_id": key.key_id, "public": key.public})
        return
    print(f'trusted_model_keys = ["{key.public}"]')
    typer.echo(f"private key {key.key_id} is in {file} (mode 600); nobody else has it", err=True)


def sign(
    model: Model,
    version: Version,
    *,
    key: Annotated[Path, typer.Option("--key", help="Private key, see keygen.", show_default=False)],
    repository: Repository = REPOSITORY,
    as_json: AsJson = False,
) -> None:
    """Sign a version that is published, after checking that it is whole."""
    with opened(repository) as store:
        signer = read_key(key)
        release = lifecycle.sign(store, model, version, signer)
    _told(model, release, f"version {version} is signed by {signer.key_id}", as_json=as_json)


def pull_(
    *,
    source: Annotated[str, typer.Option("--from", help="file:///PATH or s3://BUCKET/PREFIX.", show_default=False)],
    into: Annotated[Path, typer.Option(help="The folder to bring in line with it.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Bring a repository folder in line with a store, for an engine to serve from; exit 1 if a model failed."""
    with opened(source) as store:
        pulled = pull(store, into)
    if as_json:
        print_json({"from": store.address, "into": os.fspath(into), "models": [asdict(one) for one in pulled]})
    else:
        print_table(
            ("model", "came", "went", "result"),
            ([one.model, list(one.added), list(one.removed), one.fault or "in line"] for one in pulled),
        )
    if any(one.fault for one in pulled):
        raise typer.Exit(1)
