"""Owns compiling one typed graph by TensorRT 11 or TensorRT-RTX, whose Python interfaces share their names.

The library is passed in, so that a double can stand for it. Both are strongly typed: the types are the graph's, and no
flag here speaks of precision. Foreign failures become `ToolFailed`, in the words that the library logged.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from converters.errors import ToolFailed, VerificationFailed
from converters.plans.recipe import COMPUTE_CAPABILITIES, PLAN_ENGINES, Recipe

_SAID_MAX: Final = 400
#: compatibility of a recipe → trt.HardwareCompatibilityLevel by name.
_COMPATIBILITY: Final = {"same_compute_capability": "SAME_COMPUTE_CAPABILITY", "ampere_plus": "AMPERE_PLUS"}
#: (phase of the compiler, steps done, of how many)
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """`plan`: its bytes. `timing_cache`: empty where the library times nothing. `version`: of the library."""

    plan: bytes
    timing_cache: bytes
    version: str


def compile_plan(
    library: Any,
    model: Path,
    recipe: Recipe,
    *,
    timing_cache: bytes,
    progress: Progress,
    is_due: Callable[[], bool],
) -> Made:
    """Compile the ONNX file `model`. Blocks for seconds to minutes; ends soon after `is_due` says True.

    `timing_cache`: of an earlier build for the same library and GPU, or empty.

    Raises:
        VerificationFailed: the library does not take the graph, or not on this kind of GPU; named operator and all.
        ToolFailed: there is no GPU where one is needed, or time ran out.
    """
    log = _new_log(library)
    try:
        builder = library.Builder(log)
    except (RuntimeError, TypeError) as error:
        # TypeError is how the binding says that the library made no object: its log has the reason.
        raise ToolFailed("gpu", _said(recipe, log, str(error)), next_step=_NEEDS_GPU) from error
    network = builder.create_network(1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = library.OnnxParser(network, log)
    if not parser.parse_from_file(str(model)):
        raise VerificationFailed("plan_parse", _parse_fault(recipe, parser), next_step="leave the target out")
    config = builder.create_builder_config()
    _set_flags(library, config, recipe)
    _add_profile(builder, config, recipe)
    cache = _set_timing_cache(config, recipe, timing_cache)
    monitor = _new_monitor(library, progress, is_due)
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if plan is None and monitor.is_cancelled:
        text = f"{PLAN_ENGINES[recipe.engine]} took longer than it may"
        raise ToolFailed("time", text, next_step="raise --time-s, or convert a smaller model")
    if plan is None:
        raise VerificationFailed("plan_build", _said(recipe, log, "no plan"), next_step="leave the target out")
    kept = bytes(config.get_timing_cache().serialize()) if cache is not None else b""
    return Made(plan=bytes(plan), timing_cache=kept, version=str(library.__version__))


_NEEDS_GPU: Final = "run it on a host with the GPU that will serve, its driver, and the library; or --to tensorrt_rtx"


def _set_flags(library: Any, config: Any, recipe: Recipe) -> None:
    flags = library.BuilderFlag
    if recipe.engine == "tensorrt_rtx":
        config.num_compute_capabilities = 1
        wanted = getattr(library.ComputeCapability, COMPUTE_CAPABILITIES[recipe.compute_capability])
        if not config.set_compute_capability(wanted, 0):
            text = f"TensorRT-RTX does not compile for compute capability {recipe.compute_capability}"
            raise VerificationFailed("plan_gpu", text, next_step="leave it out of --gpu")
    # On by default, and the usual cause of a float32 plan that answers otherwise.
    (config.set_flag if recipe.has_tf32 else config.clear_flag)(flags.TF32)
    if recipe.is_batch_invariant:
        config.set_flag(flags.DISTRIBUTIVE_INDEPENDENCE)
    if recipe.is_version_compatible:
        config.set_flag(flags.VERSION_COMPATIBLE)
    if recipe.is_from_timing_cache:
        config.set_flag(flags.ERROR_ON_TIMING_CACHE_MISS)
    if recipe.compatibility:
        level = getattr(library.HardwareCompatibilityLevel, _COMPATIBILITY[recipe.compatibility])
        config.hardware_compatibility_level = level
    if recipe.level >= 0:
        config.builder_optimization_level = recipe.level


def _add_profile(builder: Any, config: Any, recipe: Recipe) -> None:
    """One profile: from one row of the least sizes to the most rows of the greatest."""
    if not recipe.ranges:
        return
    profile = builder.create_optimization_profile()
    for one in recipe.ranges:
        profile.set_shape(one.name, one.least, one.best, one.greatest)
    if config.add_optimization_profile(profile) < 0:
        names = ", ".join(one.name for one in recipe.ranges)
        text = f"{PLAN_ENGINES[recipe.engine]} refuses the range of sizes of {names}"
        raise VerificationFailed("plan_profile", text, next_step="bound the variable axes with --dim")


def _set_timing_cache(config: Any, recipe: Recipe, known: bytes) -> Any:
    """TensorRT times kernels and remembers it; a cache of another library or GPU is refused by it and begun anew.

    TensorRT-RTX compiles without a device and times nothing: None.
    """
    if recipe.engine != "tensorrt":
        return None
    cache = config.create_timing_cache(known)
    if config.set_timing_cache(cache, ignore_mismatch=False):
        return cache
    if recipe.is_from_timing_cache:
        text = "the timing cache is of another TensorRT or another GPU"
        raise ToolFailed("timing_cache", text, next_step="build without --plan from_timing_cache first")
    cache = config.create_timing_cache(b"")
    config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def _parse_fault(recipe: Recipe, parser: Any) -> str:
    faults = [parser.get_error(place) for place in range(parser.num_errors)]
    said = [f"{fault.desc()} (node '{fault.node_name()}')" for fault in faults[:1]]
    return f"{PLAN_ENGINES[recipe.engine]} cannot read the graph: {_short(said, 'it does not say why')}"


def _said(recipe: Recipe, log: Any, otherwise: str) -> str:
    gpu = f" for compute capability {recipe.compute_capability}" if recipe.compute_capability else ""
    return f"{PLAN_ENGINES[recipe.engine]}{gpu}: {_short(log.errors, otherwise)}"


def _short(said: Sequence[str], otherwise: str) -> str:
    return (said[0] if said else otherwise).strip()[:_SAID_MAX]


def _new_log(library: Any) -> Any:
    """Keeps what the library says of errors: its functions return nothing but None."""
    severity = library.ILogger.Severity
    shown = (severity.INTERNAL_ERROR, severity.ERROR)

    class Log(library.ILogger):  # type: ignore[misc]  # the binding is loaded late and has no types
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in shown:
                self.errors.append(msg)

    return Log()


def _new_monitor(library: Any, progress: Progress, is_due: Callable[[], bool]) -> Any:
    """Tells the outermost phases, and ends the build at its next step once it is due."""

    class Monitor(library.IProgressMonitor):  # type: ignore[misc]  # as `Log`
        def __init__(self) -> None:
            library.IProgressMonitor.__init__(self)
            self.is_cancelled = False
            self._outer: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self._outer[phase_name] = num_steps

        def phase_finish(self, phase_name: str) -> None:
            self._outer.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self._outer:
                progress(phase_name, step + 1, self._outer[phase_name])
            self.is_cancelled = self.is_cancelled or is_due()
            return not self.is_cancelled

    return Monitor()
