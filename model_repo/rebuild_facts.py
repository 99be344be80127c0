"""Owns the facts that a rebuild is decided by: a model's versions as they lie in a store, and what is installed."""

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import asdict

from model_repo.errors import RepositoryError
from model_repo.host import HostFacts
from model_repo.kept import JOB
from model_repo.manifest import SOURCE, Manifest, read_manifest
from model_repo.rebuild_plan import VersionFacts
from model_repo.signing import Statement, check_signature
from model_repo.stores import ModelState, ModelStore
from model_repo.target import find_misfit


def is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def host_sha256(host: HostFacts) -> str:
    """Equal for equal facts."""
    return hashlib.sha256(json.dumps(asdict(host), sort_keys=True).encode()).hexdigest()


def holds_source(manifest: Manifest) -> bool:
    return f"{SOURCE}/{JOB}" in manifest.files


def read_versions(
    store: ModelStore,
    state: ModelState,
    host: HostFacts,
    *,
    is_approval_required: bool,
    trusted: Mapping[str, bytes],
    refusals: Mapping[int, str],
) -> list[VersionFacts]:
    """The facts of a model's versions, ascending; files are not digested. `refusals`: of engines here, by version.

    Raises:
        RepositoryError: the model's configuration cannot be read, or the store.
    """
    approved = [number for number in state.versions if _is_approved(state, number)]
    allowed = tuple(approved) if is_approval_required else state.versions
    policy = state.config.versions
    # As the engine chooses: `latest` is the newest of those that may serve.
    chosen = set(policy.choose(state.versions)) & set(allowed) if policy.specific else set(policy.choose(allowed))
    chosen |= set(state.release.aliases.values()) & set(allowed)
    facts = []
    for number in state.versions:
        lacks = "" if number in chosen else "choice"
        if number not in allowed:
            lacks = "approval"
        elif trusted and not _is_signed(state, number, trusted):
            lacks = "signature"
        facts.append(_facts(store, state, number, host, lacks=lacks, refusal=refusals.get(number, "")))
    return facts


def _facts(
    store: ModelStore, state: ModelState, number: int, host: HostFacts, *, lacks: str, refusal: str
) -> VersionFacts:
    digest = state.digests.get(number, "")
    try:
        with store.open_version(state.name, number) as folder:
            manifest = read_manifest(folder)
    except RepositoryError as error:
        return VersionFacts(number=number, digest=digest, lacks=lacks, fault=str(error))
    if manifest is None:
        return VersionFacts(number=number, digest=digest, lacks=lacks, refusal=refusal)
    return VersionFacts(
        number=number,
        digest=digest,
        misfit=find_misfits(manifest, host),
        refusal=refusal,
        lacks=lacks,
        has_source=holds_source(manifest),
    )


def find_misfits(manifest: Manifest, host: HostFacts) -> str:
    """Why none of a version's variants fits a host; empty: one does. That code must be signed is no matter of hosts."""
    targets = (manifest.target, *(variant.target for variant in manifest.variants))
    misfits = [find_misfit(target, host, is_signed=True) for target in targets]
    return "" if None in misfits else misfits[0] or ""


def _is_approved(state: ModelState, number: int) -> bool:
    digest = state.digests.get(number)
    return digest is not None and state.release.is_approved(number, digest)


def _is_signed(state: ModelState, number: int, trusted: Mapping[str, bytes]) -> bool:
    digest = state.digests.get(number)
    if digest is None:
        return False
    statement = Statement(model=state.name, version=number, manifest_sha256=digest, config_sha256=state.config_sha256)
    try:
        check_signature(statement, state.release.signatures.get(number, ()), trusted)
    except RepositoryError:
        return False
    return True
