"""Owns what people do with published versions, over any store: look, approve, name, sign, verify, compare, collect."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from model_repo.certificate import CERTIFICATE, CERTIFICATE_BYTES_MAX
from model_repo.errors import RepositoryError
from model_repo.host import HostFacts
from model_repo.kept import JOB
from model_repo.manifest import MANIFEST, SOURCE, Manifest, check_files, file_sha256, read_manifest
from model_repo.release import Approval, Release
from model_repo.signing import SigningKey, Statement, check_signature
from model_repo.stores import ModelState, ModelStore
from model_repo.target import find_misfit

#: Versions that a collection keeps beside those that must stay.
KEEP_DEFAULT: Final = 3
#: Of a certificate, what says nothing of the version itself.
_PASSING: Final = frozenset({"certificate.created"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """One version as a person looks at it. `fault`: why it is none that can be served; `misfit`: why not here.

    `has_source`: it can be made anew where the converters are installed.
    """

    model: str
    version: int
    engine: str
    precision: str
    size_bytes: int
    aliases: tuple[str, ...]
    is_approved: bool
    keys: tuple[str, ...]
    variants: tuple[str, ...]
    misfit: str
    fault: str
    has_source: bool = False


def get_model(store: ModelStore, name: str) -> ModelState:
    """Raises: RepositoryError: there is no such model."""
    state = store.find(name)
    if state is None:
        raise RepositoryError(f"model '{name[:140]}' is not in {store.address}")
    return state


def look(store: ModelStore, state: ModelState, host: HostFacts) -> Iterator[Looked]:
    """The versions of a model, ascending. Digests of files are not computed; `verify` does that."""
    for number in state.versions:
        try:
            with store.open_version(state.name, number) as folder:
                manifest = read_manifest(folder)
                digest = file_sha256(folder / MANIFEST) if manifest is not None else ""
            yield _looked(state, number, manifest, digest, host)
        except RepositoryError as error:
            yield _faulty(state, number, str(error))


def _looked(state: ModelState, number: int, manifest: Manifest | None, digest: str, host: HostFacts) -> Looked:
    if manifest is None:
        return _faulty(state, number, f"{MANIFEST}: is missing")
    misfits = [find_misfit(target, host) for target in (manifest.target, *(own.target for own in manifest.variants))]
    return Looked(
        model=state.name,
        version=number,
        engine=manifest.engine,
        precision=manifest.precision,
        size_bytes=sum(entry.size_bytes for entry in manifest.files.values()),
        aliases=tuple(state.release.aliases_of(number)),
        is_approved=state.release.is_approved(number, digest),
        keys=tuple(one.key_id for one in state.release.signatures.get(number, ())),
        variants=tuple(variant.name for variant in manifest.variants),
        misfit="" if None in misfits else misfits[0] or "",
        fault="",
        has_source=f"{SOURCE}/{JOB}" in manifest.files,
    )


def _faulty(state: ModelState, number: int, fault: str) -> Looked:
    return Looked(
        model=state.name,
        version=number,
        engine="",
        precision="",
        size_bytes=0,
        aliases=tuple(state.release.aliases_of(number)),
        is_approved=False,
        keys=(),
        variants=(),
        misfit="",
        fault=fault,
    )


# -- verify ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """`fault` empty: whole, and signed where keys were given. `key`: the trusted key that signed it."""

    version: int
    fault: str
    key: str


def verify(store: ModelStore, state: ModelState, number: int, trusted: Mapping[str, bytes]) -> Verified:
    """Every byte of a version against its manifest, and its signature against trusted keys where there are any."""
    try:
        digest = _whole_sha256(store, state.name, number)
        key = check_signature(_statement(state, number, digest), _signatures(state, number), trusted) if trusted else ""
    except RepositoryError as error:
        return Verified(version=number, fault=str(error), key="")
    return Verified(version=number, fault="", key=key)


def _whole_sha256(store: ModelStore, name: str, number: int) -> str:
    """Digest of the manifest of a version all of whose files are what it says."""
    with store.open_version(name, number) as folder:
        manifest = read_manifest(folder)
        if manifest is None:
            raise RepositoryError(f"{MANIFEST}: is missing; publish the version, do not copy it")
        check_files(folder, manifest)
        return file_sha256(folder / MANIFEST)


def _statement(state: ModelState, number: int, digest: str) -> Statement:
    return Statement(model=state.name, version=number, manifest_sha256=digest, config_sha256=state.config_sha256)


def _signatures(state: ModelState, number: int) -> Any:
    return state.release.signatures.get(number, ())


# -- approve, name, sign -----------------------------------------------------------------------------------------------


def approve(store: ModelStore, name: str, number: int, *, by: str, now: datetime) -> Release:
    """Let a version, as its bytes are now, serve where approval is required.

    Raises:
        RepositoryError: there is no such version, or it is not whole.
    """
    digest = _whole_sha256(store, name, number)
    approval = Approval(by=by, at=now.isoformat(timespec="seconds"), manifest_sha256=digest)
    return store.change_release(name, lambda release: release.with_approval(number, approval))


def withdraw(store: ModelStore, name: str, number: int) -> Release:
    """Take an approval back. Raises: RepositoryError: there is none."""

    def change(release: Release) -> Release:
        if number not in release.approvals:
            raise RepositoryError(f"version {number} of '{name[:140]}' is not approved")
        return release.with_approval(number, None)

    return store.change_release(name, change)


def name_version(store: ModelStore, name: str, alias: str, number: int | None) -> Release:
    """Point an alias at a version, or (None) take it away. Raises: RepositoryError: there is no such version."""
    if number is not None and number not in get_model(store, name).versions:
        raise RepositoryError(f"model '{name[:140]}' has no version {number} in {store.address}")
    return store.change_release(name, lambda release: release.with_alias(alias, number))


def sign(store: ModelStore, name: str, number: int, key: SigningKey) -> Release:
    """Sign a version that was published before. Raises: RepositoryError: there is none, or it is not whole."""
    state = get_model(store, name)
    signature = key.sign(_statement(state, number, _whole_sha256(store, name, number)))
    return store.change_release(name, lambda release: release.with_signature(number, signature))


# -- collect -----------------------------------------------------------------------------------------------------------


def removable(versions: Sequence[int], release: Release, *, keep: int, served: Collection[int]) -> dict[int, str]:
    """What becomes of each version: empty for those to remove, else why it stays. Pure.

    The newest `keep` versions stay (one at least, so that no number is ever given twice), and so does what is served,
    what has an alias, and the newest approved version.
    """
    ordered = sorted(versions)
    newest = set(ordered[-max(keep, 1) :])
    approved = max((number for number in release.approvals if number in ordered), default=0)
    fates = {}
    for number in ordered:
        aliases = release.aliases_of(number)
        if aliases:
            fates[number] = f"is {', '.join(aliases)}"
        elif number in served:
            fates[number] = "is served"
        elif number == approved:
            fates[number] = "is the newest approved"
        else:
            fates[number] = f"is among the newest {max(keep, 1)}" if number in newest else ""
    return fates


def collect(store: ModelStore, name: str, *, keep: int, served: Collection[int]) -> dict[int, str]:
    """Remove what `removable` names; returns its fates. Raises: RepositoryError: there is no such model."""
    fates: dict[int, str] = {}

    def choose(versions: tuple[int, ...], release: Release) -> list[int]:
        fates.clear()
        fates.update(removable(versions, release, keep=keep, served=served))
        return [number for number, why in fates.items() if not why]

    store.remove(name, choose)
    return fates


# -- compare -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A member of manifest or certificate; None on the side that lacks it."""

    path: str
    before: Any
    after: Any


def compare(store: ModelStore, name: str, before: int, after: int) -> list[Difference]:
    """What two versions of a model differ in, by path. Raises: RepositoryError: one is missing or unreadable."""
    facts = []
    for number in (before, after):
        with store.open_version(name, number) as folder:
            facts.append(_facts(folder))
    old, new = facts
    paths = sorted((old.keys() | new.keys()) - _PASSING)
    return [
        Difference(path=path, before=old.get(path), after=new.get(path))
        for path in paths
        if old.get(path) != new.get(path)
    ]


def _facts(folder: Path) -> dict[str, Any]:
    """Leaves of manifest and certificate by dotted path."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise RepositoryError(f"{MANIFEST}: is missing; nothing says what the version is")
    facts = dict(_leaves("manifest", json.loads(manifest.to_bytes())))
    path = folder / CERTIFICATE
    if CERTIFICATE in manifest.files and path.stat().st_size <= CERTIFICATE_BYTES_MAX:
        try:
            facts.update(_leaves("certificate", json.loads(path.read_bytes())))
        except (ValueError, RecursionError) as error:
            raise RepositoryError(f"{CERTIFICATE}: is no JSON ({str(error)[:100]})") from error
    return facts


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, own in value.items():
            yield from _leaves(f"{path}.{key}", own)
    else:
        yield path, value
