"""Owns `python -m converters showcases`: a repository in which every network that can be is certified.

Each recipe is built as always, aside; its networks are then converted into the repository, its steps and ensembles
copied, in the recipe's order, so that the ensemble comes last. What is there and unchanged stays.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from converters.errors import ToolFailed, UsageFault
from converters.flow import Request, convert
from converters.job import Job
from converters.showcases.data import MAKERS
from converters.showcases.specs import NETWORKS, Network
from converters.toolchains.specs import get_toolchain
from converters.toolchains.store import default_root, find_installed, missing
from model_repo.build import BuildError, build, missing_module
from model_repo.recipes import Recipe, read_recipes

Emit = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """`into`: the repository. `wheels`, `work`: caches; `work` also keeps sources, data and reports.

    `toolchains`: where the environments lie, the user's cache if None.
    """

    into: Path
    wheels: Path
    work: Path
    toolchains: Path | None = None


def showcases(only: Sequence[str], places: Places, emit: Emit) -> list[dict[str, Any]]:
    """All recipes, or those named. Returns what became of each model. Blocks for minutes.

    Raises:
        ConvertError: a recipe is unknown or cannot be built, or a network cannot be converted at all.
    """
    recipes = _choose(only)
    plain = places.work / "plain"
    try:
        build(recipes, plain, places.wheels, lambda text, have, size: emit({"ev": "log", "text": text}))
    except BuildError as error:
        raise ToolFailed("build", str(error), next_step="see the message") from error
    places.into.mkdir(parents=True, exist_ok=True)
    results = []
    for recipe in recipes:
        for model in recipe.models:
            found = _place(model.name, plain, places, emit)
            results.append({"recipe": recipe.name, "model": model.name, **found})
    return results


def _choose(only: Sequence[str]) -> list[Recipe]:
    known = {recipe.name: recipe for recipe in read_recipes()}
    for name in only:
        if name not in known:
            text = f"there is no showcase '{name[:60]}'"
            raise UsageFault("showcase", text, next_step=f"one of {', '.join(sorted(known))}")
    return [recipe for name, recipe in known.items() if name in only or (not only and not missing_module(recipe))]


def _place(name: str, plain: Path, places: Places, emit: Emit) -> dict[str, Any]:
    network = NETWORKS.get(name)
    why = "no network" if network is None else _lacks(network, places)
    if network is None or why:
        _copy(plain / name, places.into / name)
        return {"is_certified": False, "why": why}
    _drop_copy(places.into / name)
    data = _make_data(network, name, plain, places)
    report = convert(_request(network, name, plain, places, data), emit)
    return {
        "is_certified": True,
        "why": "",
        "source": str(plain / name / "1" / network.file),
        "data": str(data) if data is not None else "",
        "selected": report["selected"],
        "speedup": report["speedup"],
        "path": report["published"]["path"],
        "is_cached": report["is_cached"],
    }


def _lacks(network: Network, places: Places) -> str:
    """What is said of a source whose toolchain is not installed; empty: nothing is lacking."""
    if not network.toolchain:
        return ""
    root = places.toolchains or default_root()
    toolchain = get_toolchain(network.toolchain)
    if find_installed(toolchain, root) is not None:
        return ""
    lack = missing(toolchain, root)
    return f"{lack}: {lack.next_step}"


def _make_data(network: Network, name: str, plain: Path, places: Places) -> Path | None:
    if not network.data:
        return None
    path = places.work / "data" / f"{name}.npz"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".new.npz")
        MAKERS[network.data](temporary, plain)
        temporary.replace(path)
    return path


def _request(network: Network, name: str, plain: Path, places: Places, data: Path | None) -> Request:
    job = Job(
        name=name,
        engines=network.engines,
        precisions=network.precisions,
        dims=dict(network.dims),
        values=dict(network.values),
        rounds=network.rounds,
        budgets=dict(network.budgets),
        optimize=network.optimize,
        batch_rows_max=0,
    )
    return Request(
        source=plain / name / "1" / network.file,
        job=job,
        data=data,
        repository=places.into,
        cache=places.work / "cache",
        out=places.work / "reports" / name,
        toolchains=places.toolchains,
    )


def _drop_copy(target: Path) -> None:
    """Take away what was served as it was made, its manifest beside its configuration: a converted one comes."""
    if (target / "manifest.json").is_file():
        aside = target.parent / f".old-{uuid4().hex}"
        target.rename(aside)
        shutil.rmtree(aside)


def _copy(source: Path, target: Path) -> None:
    """The whole folder by one rename, unless it is there as it is; a crash leaves a folder that readers pass over."""
    manifest = "manifest.json"
    if target.is_dir() and (target / manifest).is_file():
        if (target / manifest).read_bytes() == (source / manifest).read_bytes():
            return
        target.rename(target.parent / f".old-{uuid4().hex}")
    aside = target.parent / f".staging-{uuid4().hex}"
    shutil.copytree(source, aside)
    aside.rename(target)
    for old in target.parent.glob(".old-*"):
        shutil.rmtree(old)


def serve(value: Mapping[str, Any], emit: Emit) -> dict[str, Any]:
    """A JSON request: `only`, `into`, `wheels`, `work`. Raises: ConvertError."""
    try:
        places = Places(
            into=Path(value["into"]),
            wheels=Path(value["wheels"]),
            work=Path(value["work"]),
            toolchains=Path(value["toolchains"]) if value.get("toolchains") else None,
        )
        only = [str(name) for name in value["only"]]
    except (KeyError, TypeError) as error:
        raise UsageFault("request", f"not a request: {error}", next_step="see docs/showcases.md") from error
    try:
        return {"into": str(places.into), "models": showcases(only, places, emit)}
    except OSError as error:
        raise ToolFailed("disk", f"{error.filename}: {error.strerror}", next_step="make room, or fix rights") from error
