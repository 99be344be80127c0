"""Owns what a plan toolchain's child does: compile each recipe it is given, one after the other. No library is imported
before the limits are on; its modules come from the toolchain's own environment.
"""

import hashlib
import importlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from converters.errors import ToolFailed, VerificationFailed
from converters.plans.drive import compile_plan
from converters.plans.recipe import PLAN_ENGINES, Recipe

#: Engine → the module that its binding's wheel brings. The maker's own name for it is a source package's.
MODULES: Final[Mapping[str, str]] = {"tensorrt": "tensorrt_bindings", "tensorrt_rtx": "tensorrt_rtx_bindings"}
PLAN: Final = "model.plan"
TIMING_CACHE: Final = "timing.cache"
#: The build ends itself, with a reason, before the parent ends the process.
_TIME_SHARE: Final = 0.95
_NEXT: Final = {
    "tensorrt": "install NVIDIA's libraries of this version (libnvinfer.so.11, libnvonnxparser.so.11), which are in no "
    "package index of ours, where the loader finds them; or --to tensorrt_rtx, which needs none of them",
    "tensorrt_rtx": "install the toolchain anew: tollway convert toolchain install tensorrt_rtx",
}


def serve_plans(request: Mapping[str, Any], emit: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
    """Of `recipes` (each with `model`, the typed graph, and `folder`, where its plan goes) → what came of each.

    Raises:
        ToolFailed: the library cannot be loaded, there is no GPU where it needs one, or time ran out.
    """
    engine = str(request["engine"])
    library = _open_library(engine)
    end_s = time.monotonic() + float(request["time_s_max"]) * _TIME_SHARE
    rows = []
    for asked in request["recipes"]:
        recipe = Recipe.from_json(asked["recipe"])

        def progress(phase: str, done: int, total: int, key: str = recipe.key) -> None:
            emit({"ev": "progress", "step": f"{key}: {phase}", "done": done, "total": total})

        rows.append(_compile_one(library, recipe, asked, progress, lambda: time.monotonic() > end_s))
    return {"version": str(library.__version__), "plans": rows}


def _compile_one(
    library: Any,
    recipe: Recipe,
    asked: Mapping[str, Any],
    progress: Callable[[str, int, int], None],
    is_due: Callable[[], bool],
) -> dict[str, Any]:
    folder = Path(asked["folder"])
    cache = folder / TIMING_CACHE
    known = cache.read_bytes() if cache.exists() else b""
    try:
        made = compile_plan(library, Path(asked["model"]), recipe, timing_cache=known, progress=progress, is_due=is_due)
    except VerificationFailed as error:
        return {"key": recipe.key, "reason": str(error), "next_step": error.next_step}
    (folder / PLAN).write_bytes(made.plan)
    if made.timing_cache:
        cache.write_bytes(made.timing_cache)
    sha256 = hashlib.sha256(made.plan).hexdigest()
    return {"key": recipe.key, "reason": "", "next_step": "", "sha256": sha256, "size_bytes": len(made.plan)}


def _open_library(engine: str) -> Any:
    try:
        return importlib.import_module(MODULES[engine])
    except (ImportError, OSError) as error:
        # The wheel is there; a shared library that it needs is not.
        said = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        text = f"{PLAN_ENGINES[engine]} cannot be loaded: {said}"
        raise ToolFailed("library", text, next_step=_NEXT[engine]) from error
