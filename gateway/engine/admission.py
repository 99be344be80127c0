"""Owns what must hold before a version is loaded: whole, signed, approved, and fit for this host. Blocks; never loads.

A version without a manifest is loaded as it lies, unless signatures or approvals are asked for. One with a manifest has
to be what that says, byte by byte. `Seal` ends the window between the check and the load: the files that a runtime has
read are those that were checked, or the load is refused.
"""

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from model_repo.certificate import CERTIFICATE
from model_repo.config import PLATFORMS, ModelConfig, default_file
from model_repo.config_digest import folder_config_sha256
from model_repo.errors import RepositoryError
from model_repo.host import HostFacts, read_host
from model_repo.manifest import MANIFEST, SOURCE, VARIANTS, Manifest, check_files, file_sha256, read_manifest, walk
from model_repo.release import Release, read_release
from model_repo.repository import ModelFolder
from model_repo.signing import Statement, check_signature
from model_repo.target import Target, find_misfit

_LOG: Final = logging.getLogger("tollway.engine")
#: What identifies a file's content as it was: inode, size, modification, change of the inode.
_Mark = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What this engine asks of versions. `trusted`: public keys by id; none: signatures are not asked for.

    `golden_ns_max`: time for the golden answers of one load; 0: they are not checked. `facts` None: this host's.
    """

    trusted: Mapping[str, bytes] = field(default_factory=dict)
    is_approval_required: bool = False
    golden_ns_max: int = 0
    facts: HostFacts | None = None

    @property
    def is_strict(self) -> bool:
        """Whether a version may be one that must not be loaded, so that nothing of it may be run to look at it."""
        return bool(self.trusted) or self.is_approval_required


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """The files of a version as they were when they were checked; none of a version without a manifest."""

    folder: Path = Path()
    marks: Mapping[str, _Mark] = field(default_factory=dict)

    def check(self) -> None:
        """Raises: RepositoryError: a file was changed, replaced or removed since."""
        for name, mark in self.marks.items():
            try:
                is_same = _mark(self.folder / name) == mark
            except OSError:
                is_same = False
            if not is_same:
                raise RepositoryError(f"{name}: was changed while it was loaded")


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """One way to run a version. `parts`: folders below the version's; `config`: with its library and file.

    `name` is empty for the version's own files. `has_golden`: a certificate lies beside the file.
    """

    name: str = ""
    parts: tuple[str, ...] = ()
    config: ModelConfig | None = None
    has_golden: bool = False
    seal: Seal = field(default_factory=Seal)


#: The version's own files, checked by nobody.
OWN: Final = Build()


def admit(folder: ModelFolder, number: int, config: ModelConfig, rules: Rules) -> tuple[Build, ...]:
    """The builds of a version that this host may load, best first; at least one.

    Raises:
        RepositoryError: not signed, not approved, not whole, or nothing in it fits this host (with both values).
    """
    version = folder.path / str(number)
    manifest = read_manifest(version)
    if manifest is None:
        _check_bare(rules)
        return (Build(config=config),)
    marks = {name: _mark(path) for name, path in (*walk(version), (MANIFEST, version / MANIFEST))}
    seal = Seal(folder=version, marks=marks)
    digest = file_sha256(version / MANIFEST)
    release = read_release(folder.path)
    if rules.is_approval_required and not release.is_approved(number, digest):
        raise RepositoryError(_unapproved(folder.name, number))
    if rules.trusted:
        statement = Statement(
            model=folder.name,
            version=number,
            manifest_sha256=digest,
            config_sha256=folder_config_sha256(folder, config),
        )
        _check_signed(statement, release, rules.trusted)
    check_files(version, manifest)
    seal.check()
    fitting = _fitting(folder.name, number, _builds(config, manifest, seal), rules)
    if isinstance(fitting, str):
        raise RepositoryError(fitting + _offer(folder.name, number, manifest))
    return fitting


def _check_bare(rules: Rules) -> None:
    if rules.trusted:
        raise RepositoryError(f"{MANIFEST}: is missing, so it cannot be signed, and trusted_model_keys are set")
    if rules.is_approval_required:
        raise RepositoryError(f"{MANIFEST}: is missing, so it cannot be approved, and approval_required is set")


def _unapproved(name: str, number: int) -> str:
    return f"version {number} is not approved; `tollway models approve {name} {number}` does it"


def _check_signed(statement: Statement, release: Release, trusted: Mapping[str, bytes]) -> None:
    key_id = check_signature(statement, release.signatures.get(statement.version, ()), trusted)
    _LOG.info("signature_verified model=%s version=%d key=%s", statement.model, statement.version, key_id)


def _fitting(name: str, number: int, builds: Iterable[tuple[Build, Target]], rules: Rules) -> tuple[Build, ...] | str:
    """Those that fit; where none does, why."""
    facts = rules.facts or read_host()
    fitting = []
    misfits = []
    for build, target in builds:
        misfit = find_misfit(target, facts, is_signed=bool(rules.trusted))
        if misfit is None:
            fitting.append(build)
            continue
        misfits.append(f"variant {build.name}: {misfit}" if build.name else misfit)
        _LOG.warning("build_misfit model=%s version=%d build=%s reason=%s", name, number, build.name or "own", misfit)
    return tuple(fitting) or "; ".join(misfits)


def _offer(name: str, number: int, manifest: Manifest) -> str:
    has_source = any(path.startswith(f"{SOURCE}/") for path in manifest.files)
    if not has_source:
        return ""
    return f"; it holds its source: `tollway models rebuild {name} {number}` makes one for this host"


def _builds(config: ModelConfig, manifest: Manifest, seal: Seal) -> Iterable[tuple[Build, Target]]:
    """The version's own files, then its variants in the order of the manifest. Only files have variants."""
    yield _build("", (), config, manifest, seal), manifest.target
    for variant in manifest.variants:
        platform = PLATFORMS.get(variant.engine)
        if config.platform in ("python", "ensemble") or platform in (None, "python", "ensemble"):
            continue
        own = replace(config, platform=platform, model_filename=default_file(platform))
        yield _build(variant.name, (VARIANTS, variant.name), own, manifest, seal), variant.target


def _build(name: str, parts: tuple[str, ...], config: ModelConfig, manifest: Manifest, seal: Seal) -> Build:
    has_golden = "/".join((*parts, CERTIFICATE)) in manifest.files
    return Build(name=name, parts=parts, config=config, has_golden=has_golden, seal=seal)


def _mark(path: Path) -> _Mark:
    status = os.lstat(path)
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


# -- which versions ----------------------------------------------------------------------------------------------------


def choose_versions(folder: ModelFolder, config: ModelConfig, rules: Rules) -> dict[int, frozenset[str]]:
    """The versions to serve and their aliases: those of the version policy and those that have an alias.

    Where approval is required only approved ones count, so `latest` is the newest approved.

    Raises:
        RepositoryError: there is none, or one that the policy names is missing.
    """
    if not folder.versions:
        raise RepositoryError("has no version folder, such as '1'")
    release = read_release(folder.path)
    allowed = folder.versions
    if rules.is_approval_required:
        allowed = tuple(number for number in folder.versions if _is_approved(folder, number, release))
    if not allowed:
        raise Unapproved(_unapproved(folder.name, max(folder.versions)))
    if config.versions.specific:
        chosen = set(config.versions.choose(folder.versions)) & set(allowed)
    else:
        chosen = set(config.versions.choose(allowed))
    chosen |= set(release.aliases.values()) & set(allowed)
    if not chosen:
        raise Unapproved(_unapproved(folder.name, max(config.versions.specific)))
    return {number: frozenset(release.aliases_of(number)) for number in sorted(chosen)}


class Unapproved(RepositoryError):
    """No version of a model is approved yet: it waits, and is no fault of the engine."""


def _is_approved(folder: ModelFolder, number: int, release: Release) -> bool:
    path = folder.path / str(number) / MANIFEST
    return number in release.approvals and path.is_file() and release.is_approved(number, file_sha256(path))
