"""Owns the decision whether a model needs a version made anew for this host, and what stands in the way. Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from model_repo.host import HostFacts

#: Engines that a kept source can be converted to → packages the conversion needs beside the engine's own library.
_PACKAGES: Final[Mapping[str, tuple[str, ...]]] = {
    "onnxruntime": ("onnx", "onnxslim"),
    "openvino": ("onnx", "onnxslim"),
}
#: The library that every conversion measures against.
_REFERENCE: Final = "onnxruntime"
_EXTRAS: Final[Mapping[str, str]] = {"openvino": "openvino", "onnxruntime": "engine"}


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionFacts:
    """One version as it lies there, on this host.

    `misfit`: why none of its variants fits. `refusal`: why an engine here refused one that fits. `lacks`: what it needs
    to be served at all: `approval`, `signature` or `choice` (by policy or alias). `fault`: why it is none.
    """

    number: int
    digest: str
    misfit: str = ""
    refusal: str = ""
    lacks: str = ""
    fault: str = ""
    has_source: bool = False

    @property
    def is_sound(self) -> bool:
        return not (self.misfit or self.refusal or self.fault)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What was tried by itself for a version as it is, on this host as it is. `made`: the version of it, or 0."""

    number: int
    conversion_id: str
    outcome: str
    made: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuild:
    """Make `number` anew, because of `why`."""

    number: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocked:
    """`number` needs to be made anew, or what came of it to be let in; `command` is what a person may do."""

    number: int
    why: str
    obstacle: str
    command: str
    conversion_id: str = ""


def find_missing(engine: str, host: HostFacts, is_installed: Callable[[str], bool]) -> tuple[str, ...] | None:
    """Packages that a conversion to `engine` lacks on this host; None: it is not one that is converted to by itself."""
    if engine not in _PACKAGES:
        return None
    libraries = [name for name in dict.fromkeys((_REFERENCE, engine)) if name not in host.runtimes]
    return (*(name for name in _PACKAGES[engine] if not is_installed(name)), *libraries)


def find_obstacle(
    name: str, number: int, engine: str, *, has_source: bool, missing: tuple[str, ...] | None
) -> tuple[str, str]:
    """What keeps a version from being made anew here (empty: nothing), and the command to give.

    `missing`: as `find_missing` says.
    """
    if not has_source:
        return "it does not hold its source", f"tollway convert MODEL --name {name} --keep-source"
    if missing is None:
        return f"nothing is made anew for {engine} without being asked", f"tollway models rebuild {name} {number}"
    if missing:
        extras = sorted({_EXTRAS.get(package, "converters") for package in missing})
        return f"not installed here: {', '.join(missing)}", f"pip install 'tollway[{','.join(extras)}]'"
    return "", f"tollway models rebuild {name} {number}"


def decide(
    name: str,
    engine: str,
    versions: Sequence[VersionFacts],
    attempts: Sequence[Attempt],
    missing: tuple[str, ...] | None,
) -> Rebuild | Blocked | None:
    """What to do about a model; None: something of it serves here, or nothing of it is asked to.

    The newest version that is asked to serve and can not is made anew, one that holds its source before others.
    `attempts`: those for versions as they are on the host as it is; none is made twice, nor is what came of one.
    """
    served = [one for one in versions if not one.lacks]
    if any(one.is_sound for one in served):
        return None
    ill = sorted((one for one in served if not one.fault), key=lambda one: (one.has_source, one.number))
    made = {one.made: one for one in attempts if one.made}
    waiting = [one for one in versions if one.lacks and one.is_sound and (one.number in made or ill)]
    newest = max(waiting, key=lambda one: one.number, default=None)
    if newest is not None and newest.number > max((one.number for one in ill), default=0):
        return _waits(name, newest, made.get(newest.number))
    if not ill:
        return None
    one = ill[-1]
    why = one.misfit or one.refusal
    tried = made.get(one.number) or next((own for own in attempts if own.number == one.number), None)
    if tried is not None:
        obstacle = tried.outcome if tried.made != one.number else f"it was made on this host by {tried.conversion_id}"
        command = f"tollway models rebuild {name} {one.number}"
        return Blocked(
            number=one.number, why=why, obstacle=obstacle, command=command, conversion_id=tried.conversion_id
        )
    obstacle, command = find_obstacle(name, one.number, engine, has_source=one.has_source, missing=missing)
    if obstacle:
        return Blocked(number=one.number, why=why, obstacle=obstacle, command=command)
    return Rebuild(number=one.number, why=why)


def _waits(name: str, one: VersionFacts, made_by: Attempt | None) -> Blocked:
    commands = {
        "approval": f"tollway models approve {name} {one.number}",
        "signature": f"tollway models sign {name} {one.number} --key FILE",
        "choice": f"tollway models alias {name} stable {one.number}",
    }
    return Blocked(
        number=one.number,
        why="no version that is to serve fits this host",
        obstacle=f"version {one.number} fits, and waits for its {one.lacks}",
        command=commands[one.lacks],
        conversion_id=made_by.conversion_id if made_by is not None else "",
    )
