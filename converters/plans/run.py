"""Owns a conversion to plans: typed graphs by our child, plans by the toolchain's, then what is published of them.

The trusted side: bytes and digests only. Typed graphs are verified before anything is compiled from them.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from converters.child import Event, Limits, Program, run_child
from converters.errors import UnfitTarget, VerificationFailed
from converters.job import Job
from converters.plans.compose import Plan, describe_plan, write_plan_bundle
from converters.plans.recipe import PLAN_ENGINES, Range, Recipe, with_options
from converters.plans.serve import TIMING_CACHE
from converters.toolchains.specs import get_toolchain
from converters.toolchains.store import Installed, get_installed
from model_repo.certificate import GOLDEN
from model_repo.host import Gpu, read_host

_SYSTEM: Final = ("/usr", "/lib", "/lib64", "/etc", "/proc", "/sys", "/opt", "/dev")
_TYPED: Final = "typed.onnx"
#: Nothing of the device is said to a compiler that must not need one.
_NO_DEVICE: Final = {"CUDA_VISIBLE_DEVICES": ""}


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiler:
    """An engine's toolchain. `gpu`: of this host, that TensorRT builds for; None: it needs none."""

    engine: str
    installed: Installed
    gpu: Gpu | None

    def key_parts(self) -> dict[str, str]:
        """What plans depend on, beside source and job: for the cache's key."""
        gpu = "" if self.gpu is None else f" {self.gpu.name} {self.gpu.compute_capability} {self.gpu.driver}"
        return {self.engine: f"{self.installed.lock_sha256}{gpu}"}


def open_compilers(job: Job, toolchains: Path) -> tuple[Compiler, ...]:
    """Raises: UnfitTarget: there is no GPU where the engine needs one; ToolFailed: a toolchain is not installed."""
    found = []
    for engine in job.plan_engines:
        gpu = _own_gpu() if engine == "tensorrt" else None
        installed = get_installed(get_toolchain(engine), toolchains)
        found.append(Compiler(engine=engine, installed=installed, gpu=gpu))
    return tuple(found)


def _own_gpu() -> Gpu:
    gpus = read_host().gpus
    if not gpus:
        text = "TensorRT builds plans on the GPU that will run them, and this host has none"
        raise UnfitTarget("gpu", text, next_step="convert on that host, or --to tensorrt_rtx --gpu 8.6 for a named one")
    return gpus[0]


def build_plans(
    asked: Mapping[str, Any],
    job: Job,
    compilers: Sequence[Compiler],
    work: Path,
    *,
    timing: Path,
    limits: Limits,
    on_event: Callable[[Event], None],
    own: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Add plans to what `work` holds, and return the report. `asked`: source, sha256, data and facts of the source.

    `own`: report of the variants that run here, whose bundle is in `work`; None: none were asked for. `timing`: folder
    that keeps what TensorRT measured of its kernels from build to build.

    Raises:
        ConvertError: nothing is published; the report so far is in `work/report.json`.
    """
    typed = run_child({**asked, "verb": "typed", "job": job.to_json()}, work, limits, on_event)
    graphs = {one["precision"]: one for one in typed["report"]["variants"]}
    rows: list[dict[str, Any]] = []
    plans: list[Plan] = []
    gaps: list[str] = list(typed["sandbox_gaps"])
    for compiler in compilers:
        recipes = make_recipes(compiler.engine, job, [Range(**one) for one in typed["ranges"]])
        answer = _compile(compiler, recipes, typed["golden"], work, timing=timing, limits=limits, on_event=on_event)
        gaps += [gap for gap in answer["sandbox_gaps"] if gap not in gaps]
        made = {one["key"]: one for one in answer["plans"]}
        for recipe in recipes:
            row = describe_plan(recipe, graphs[recipe.precision], made.get(recipe.key), answer["version"])
            rows.append(row)
            if not row["reason"]:
                plans.append(
                    _plan(compiler, recipe, answer["version"], typed=typed, graph=graphs[recipe.precision], work=work)
                )
    report = _report(typed["report"], rows, own, plans)
    report["sandbox_gaps"] = gaps
    (work / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    if not plans:
        text = f"no plan was made; {rows[0]['engine']} {rows[0]['precision']}: {rows[0]['reason']}"
        raise VerificationFailed("no_plan", text, next_step=rows[0]["next_step"])
    write_plan_bundle(plans, typed["configs"][plans[0].recipe.engine], typed["report"], work, has_own=own is not None)
    return report


def make_recipes(engine: str, job: Job, ranges: Sequence[Range]) -> list[Recipe]:
    """In the order of `--precision`, for each GPU: nothing is measured, so that the order is the person's."""
    gpus = job.gpus if engine == "tensorrt_rtx" else ("",)
    return [
        with_options(Recipe(engine=engine, precision=precision, compute_capability=gpu, ranges=tuple(ranges)), job.plan)
        for gpu in gpus
        for precision in job.plan_precisions
    ]


def _plan(
    compiler: Compiler,
    recipe: Recipe,
    version: str,
    *,
    typed: Mapping[str, Any],
    graph: Mapping[str, Any],
    work: Path,
) -> Plan:
    return Plan(
        recipe=recipe,
        folder=work / "plans" / recipe.key,
        golden=typed["golden"][recipe.precision],
        version=version,
        lock_sha256=compiler.installed.lock_sha256,
        typed=graph,
        gpu=compiler.gpu,
    )


def _report(
    typed: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], own: Mapping[str, Any] | None, plans: Sequence[Plan]
) -> dict[str, Any]:
    keys = [plan.recipe.key for plan in plans]
    if own is not None:
        return {**own, "plans": keys, "variants": [*own["variants"], *rows]}
    selected = keys[0] if keys else None
    shown = [{**row, "status": "selected"} if _key(row) == selected else row for row in rows]
    return {**typed, "variants": shown, "plain": [], "selected": selected, "speedup": None, "plans": keys}


def _key(row: Mapping[str, Any]) -> str:
    own = Recipe(engine=row["engine"], precision=row["precision"], compute_capability=row["compute_capability"])
    return own.key


# -- the toolchain's child ---------------------------------------------------------------------------------------------


def _compile(
    compiler: Compiler,
    recipes: Sequence[Recipe],
    golden: Mapping[str, Any],
    work: Path,
    *,
    timing: Path,
    limits: Limits,
    on_event: Callable[[Event], None],
) -> dict[str, Any]:
    """The child's answer: version of the library, and what came of each recipe whose graph is good."""
    asked = []
    with contextlib.ExitStack() as held:
        kept: dict[Path, Path] = {}
        for recipe in recipes:
            if recipe.precision not in golden:
                continue
            folder = work / "plans" / recipe.key
            folder.mkdir(parents=True)
            graph = work / f"typed-{recipe.precision}"
            shutil.copyfile(graph / "beside" / GOLDEN, folder / GOLDEN)
            made_in = work / "compile" / recipe.key
            made_in.mkdir(parents=True)
            if compiler.gpu is not None:
                cache = held.enter_context(timing_cache(timing, compiler, recipe))
                kept[made_in / TIMING_CACHE] = cache
                if cache.exists():
                    shutil.copyfile(cache, made_in / TIMING_CACHE)
            asked.append({"recipe": recipe.to_json(), "model": str(graph / _TYPED), "folder": str(made_in)})
        request = {"verb": "plan", "engine": compiler.engine, "recipes": asked, "time_s_max": limits.time_s_max}
        on_event({"ev": "progress", "step": f"compile by {PLAN_ENGINES[compiler.engine]}", "done": 0, "total": 1})
        answer: dict[str, Any] = run_child(request, work, limits, on_event, _program(compiler))
        for made, cache in kept.items():
            if made.exists():
                # One writer: the lock is held. Replaced by one rename, for whoever looks without it.
                shutil.copyfile(made, cache.with_suffix(".new"))
                cache.with_suffix(".new").replace(cache)
    for one in answer["plans"]:
        if not one["reason"]:
            (work / "compile" / one["key"] / "model.plan").rename(work / "plans" / one["key"] / "model.plan")
    return answer


@contextlib.contextmanager
def timing_cache(root: Path, compiler: Compiler, recipe: Recipe) -> Iterator[Path]:
    """The file that keeps measured kernels of one library, GPU and set of flags; held against others meanwhile."""
    gpu = compiler.gpu
    parts = [compiler.installed.lock_sha256, "" if gpu is None else f"{gpu.name} {gpu.compute_capability}"]
    flags = (recipe.has_tf32, recipe.is_batch_invariant, recipe.compatibility, recipe.is_version_compatible)
    parts += [recipe.precision, str(flags), str(recipe.level)]
    root.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
    descriptor = os.open(root / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield root / f"{name}.cache"
    finally:
        os.close(descriptor)


def _program(compiler: Compiler) -> Program:
    child = Path(__file__).parents[1] / "importers" / "child.py"
    folder = compiler.installed.folder
    paths = [*(Path(path) for path in _SYSTEM), folder, Path(sys.base_prefix), Path(__file__).parents[1]]
    devices = sorted(Path("/dev").glob("nvidia*")) if compiler.gpu is not None else []
    return Program(
        command=(str(compiler.installed.python), "-I", "-B", str(child)),
        environment={} if compiler.gpu is not None else _NO_DEVICE,
        read_paths=tuple(paths),
        devices=tuple(devices),
    )
