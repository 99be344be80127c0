"""Owns the fit of a version to a host: what it was built for and verified on, against the facts of a machine. Pure."""

import re
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from model_repo.errors import RepositoryError
from model_repo.host import Gpu, HostFacts

RUNTIME_RULES: Final = ("newer", "exact")
GPU_RULES: Final = ("", "exact", "same_compute_capability", "ampere_plus")
_AMPERE: Final = (8, 0)
_VERSION: Final = re.compile(r"\d{1,6}(\.\d{1,6}){0,4}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a version was verified for. Empty: any.

    `isa`: instruction sets without which its results may differ. `runtime_rule`: `newer` takes the same major and minor
    version or a later one, `exact` this very version (plans). `gpu_rule`: `exact` the same name and compute capability,
    `same_compute_capability`, `ampere_plus` 8.0 and later. `runs_host_code`: its file carries code for the host.
    """

    arch: str = ""
    isa: tuple[str, ...] = ()
    runtime: str = ""
    runtime_version: str = ""
    runtime_rule: str = "newer"
    os: str = ""
    glibc_min: str = ""
    gpu_rule: str = ""
    gpu: str = ""
    compute_capability: str = ""
    driver_min: str = ""
    runs_host_code: bool = False

    def to_json(self) -> dict[str, Any]:
        """The four first members always, the others where they say something."""
        always = {"arch", "isa", "runtime", "runtime_version"}
        plain = Target()
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            if name in always or value != getattr(plain, name)
        }


def parse_target(value: Any) -> Target:
    """Raises: RepositoryError: a member is unknown, or of another kind."""
    if not isinstance(value, dict):
        raise RepositoryError("target: is no object")
    plain = Target()
    unknown = value.keys() - {field.name for field in fields(Target)}
    if unknown:
        raise RepositoryError(f"target: '{min(unknown)[:40]}' is not known here; the version needs a newer engine")
    members = dict(value)
    for name, own in members.items():
        if isinstance(getattr(plain, name), tuple):
            if not isinstance(own, list) or not all(isinstance(item, str) for item in own):
                raise RepositoryError(f"target.{name}: is no list of words")
            members[name] = tuple(own)
        elif type(own) is not type(getattr(plain, name)):
            raise RepositoryError(f"target.{name}: {str(own)[:40]!r} is of another kind")
    target = Target(**members)
    for name, known in (("runtime_rule", RUNTIME_RULES), ("gpu_rule", GPU_RULES)):
        if getattr(target, name) not in known:
            raise RepositoryError(f"target.{name}: '{getattr(target, name)[:40]}' is none of {', '.join(known)}")
    for name in ("glibc_min", "compute_capability", "driver_min"):
        own = getattr(target, name)
        if own and _VERSION.fullmatch(own) is None:
            raise RepositoryError(f"target.{name}: '{own[:40]}' is no version number")
    return target


def find_misfit(target: Target, host: HostFacts, *, is_signed: bool = False) -> str | None:
    """Why a host must not load the version, with both values; None if it may.

    `is_signed`: its signature was verified against a trusted key.
    """
    misfit = _machine_misfit(target, host)
    if misfit is None:
        # A plan needs both; a host without either is told of both.
        missing = [_runtime_misfit(target, host), _gpu_misfit(target, host.gpus)]
        misfit = "; ".join(one for one in missing if one) or None
    return misfit or _code_misfit(target, is_signed=is_signed)


def _machine_misfit(target: Target, host: HostFacts) -> str | None:
    if target.arch and target.arch != host.arch:
        return f"made for {target.arch}, this host is {host.arch}"
    if target.os and target.os != host.os:
        return f"made for {target.os}, this host runs {host.os}"
    missing = sorted(set(target.isa) - set(host.isa))
    if missing:
        has = ", ".join(host.isa) or "none of those known here"
        return f"verified with {', '.join(target.isa)}; this CPU has {has}, and lacks {', '.join(missing)}"
    if target.glibc_min and _numbers(host.glibc) < _numbers(target.glibc_min):
        return f"needs glibc {target.glibc_min}, this host has {host.glibc or 'none'}"
    return None


def _runtime_misfit(target: Target, host: HostFacts) -> str | None:
    if not target.runtime:
        return None
    wanted = f"{target.runtime} {target.runtime_version}".strip()
    installed = host.runtimes.get(target.runtime)
    if installed is None:
        return f"needs {wanted}, which is not installed"
    if target.runtime_rule == "exact":
        if installed != target.runtime_version:
            return f"made by {wanted} and by no other version usable, installed is {installed}"
    elif _numbers(installed)[:2] < _numbers(target.runtime_version)[:2]:
        return f"needs {wanted}, installed is {installed}"
    return None


def _gpu_misfit(target: Target, gpus: tuple[Gpu, ...]) -> str | None:
    """The first GPU is the one that the engine uses."""
    if not target.gpu_rule:
        return None
    wanted = f"{target.gpu} (compute capability {target.compute_capability or 'unknown'})".strip()
    if not gpus:
        return f"made for the GPU {wanted}, this host has none"
    gpu = gpus[0]
    found = f"{gpu.name} (compute capability {gpu.compute_capability or 'unknown'})"
    own, here = _numbers(target.compute_capability), _numbers(gpu.compute_capability)
    if target.gpu_rule == "ampere_plus":
        if here < _AMPERE:
            return f"made for GPUs of compute capability 8.0 and later, this host has {found}"
    elif own != here or (target.gpu_rule == "exact" and target.gpu != gpu.name):
        return f"made for the GPU {wanted}, this host has {found}"
    if target.driver_min and _numbers(gpu.driver) < _numbers(target.driver_min):
        return f"needs driver {target.driver_min}, this host has {gpu.driver or 'none'}"
    return None


def _code_misfit(target: Target, *, is_signed: bool) -> str | None:
    if target.runs_host_code and not is_signed:
        return "its file carries code that would run on this host, and no trusted key has signed it"
    return None


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, at least two; what is no number counts as 0."""
    found = [int(part) if part.isascii() and part.isdigit() else 0 for part in version.split(".")]
    return (*found, 0, 0)[: max(len(found), 2)]
