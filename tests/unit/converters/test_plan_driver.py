"""C8: the driver of TensorRT and TensorRT-RTX says what a recipe says, in names that the libraries have."""

import ast
import inspect
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from converters.errors import ConvertError, ToolFailed, UsageFault, VerificationFailed
from converters.job import Job
from converters.plans import drive
from converters.plans.drive import Made, compile_plan
from converters.plans.recipe import Range, Recipe, make_ranges, with_options
from converters.plans.run import make_recipes
from tests.unit.converters import tensorrt_double as double

RANGE = Range(name="x", least=(1, 16), best=(8, 16), greatest=(32, 16))
RTX = Recipe(engine="tensorrt_rtx", precision="fp32", compute_capability="8.6", ranges=(RANGE,))
TRT = Recipe(engine="tensorrt", precision="fp16", ranges=(RANGE,))
#: Of TensorRT 8 to 10; the current library has none of them.
_REMOVED = """
FP16 BF16 FP8 INT4 FP4 OBEY_PRECISION_CONSTRAINTS PREFER_PRECISION_CONSTRAINTS int8_calibrator
set_calibration_profile get_calibration_profile IInt8Calibrator IInt8EntropyCalibrator2 IAlgorithmSelector
algorithm_selector platform_has_fast_fp16 platform_has_fast_int8 device_memory_size max_workspace_size
build_engine build_cuda_engine EXPLICIT_BATCH EXPLICIT_PRECISION num_bindings get_binding_index
get_binding_shape get_binding_name set_binding_shape execute_async_v2 add_fully_connected STRICT_TYPES
strict_type_constraints
"""
REMOVED = frozenset(_REMOVED.split())


def compiled(tmp_path: Path, recipe: Recipe, cache: bytes = b"", due_after: int = 99) -> Made:
    graph = tmp_path / "typed.onnx"
    graph.write_bytes(b"a graph of 32 bytes, FLOAT16 all")
    asked = iter(range(1_000))
    steps: list[tuple[str, int, int]] = []
    made = compile_plan(
        double,
        graph,
        recipe,
        timing_cache=cache,
        progress=lambda phase, done, total: steps.append((phase, done, total)),
        is_due=lambda: next(asked) >= due_after,
    )
    assert steps == [("Building", done, 3) for done in (1, 2, 3)]
    return made


@pytest.mark.parametrize(
    ("recipe", "options", "flags", "further"),
    [
        (RTX, (), [], {"gpus": ["SM86"]}),
        (RTX, ("tf32",), ["TF32"], {}),
        (RTX, ("batch_invariant",), ["DISTRIBUTIVE_INDEPENDENCE"], {}),
        (replace(RTX, compute_capability="12.0"), (), [], {"gpus": ["SM120"]}),
        (replace(RTX, compute_capability="7.5", precision="fp16"), (), [], {"gpus": ["SM75"]}),
        (TRT, (), [], {"gpus": [], "compatibility": "NONE", "level": 3}),
        (TRT, ("tf32", "batch_invariant"), ["DISTRIBUTIVE_INDEPENDENCE", "TF32"], {}),
        (TRT, ("same_compute_capability",), [], {"compatibility": "SAME_COMPUTE_CAPABILITY"}),
        (TRT, ("ampere_plus", "level=5"), [], {"compatibility": "AMPERE_PLUS", "level": 5}),
        (TRT, ("version_compatible",), ["VERSION_COMPATIBLE"], {}),
        (TRT, ("from_timing_cache", "level=0"), ["ERROR_ON_TIMING_CACHE_MISS"], {"level": 0}),
    ],
)
def test_a_recipe_is_what_the_library_is_told(
    tmp_path: Path, recipe: Recipe, options: Sequence[str], flags: list[str], further: dict[str, Any]
) -> None:
    said = json.loads(compiled(tmp_path, with_options(recipe, options)).plan)
    assert said["flags"] == flags
    assert said["profiles"] == [{"x": [[1, 16], [8, 16], [32, 16]]}]
    assert {key: said[key] for key in further} == further


def test_a_graph_of_fixed_sizes_needs_no_profile(tmp_path: Path) -> None:
    assert json.loads(compiled(tmp_path, replace(RTX, ranges=())).plan)["profiles"] == []


def test_timings_are_kept_and_those_of_another_gpu_are_begun_anew(tmp_path: Path) -> None:
    assert compiled(tmp_path, TRT).timing_cache == b"+timed"
    assert compiled(tmp_path, TRT, b"known").timing_cache == b"known+timed"
    assert compiled(tmp_path, TRT, b"foreign").timing_cache == b"+timed"
    with pytest.raises(ToolFailed, match="another GPU"):
        compiled(tmp_path, replace(TRT, is_from_timing_cache=True), b"foreign")
    assert compiled(tmp_path, RTX, b"known").timing_cache == b""


def test_a_build_ends_at_its_next_step_once_time_is_out(tmp_path: Path) -> None:
    with pytest.raises(ToolFailed, match="longer than it may") as caught:
        compiled(tmp_path, RTX, due_after=3)
    assert caught.value.rule == "time"


def test_what_the_library_refuses_is_told_in_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VerificationFailed, match=r"7\.5: FP32 GEMM is not supported"):
        graph = tmp_path / "float.onnx"
        graph.write_bytes(b"a graph of more than twenty")
        asked = replace(RTX, compute_capability="7.5")
        compile_plan(double, graph, asked, timing_cache=b"", progress=lambda *_: None, is_due=lambda: False)
    with pytest.raises(VerificationFailed, match=r"no such operator: Foo \(node 'foo_1'\)"):
        graph.write_bytes(b"short")
        compile_plan(double, graph, RTX, timing_cache=b"", progress=lambda *_: None, is_due=lambda: False)
    monkeypatch.setattr(double.Config, "refused_profiles", True)
    with pytest.raises(VerificationFailed, match="range of sizes of x"):
        compiled(tmp_path, RTX)
    monkeypatch.setattr(double.Config, "refused_gpus", frozenset({"SM86"}))
    with pytest.raises(VerificationFailed, match=r"does not compile for compute capability 8\.6"):
        compiled(tmp_path, RTX)
    monkeypatch.setattr(double.Builder, "has_gpu", False)
    with pytest.raises(ToolFailed, match="CUDA driver version is insufficient") as caught:
        compiled(tmp_path, TRT)
    assert caught.value.rule == "gpu"


def used_names() -> set[str]:
    """Attributes that the driver takes of the library's objects: all it takes of anything, less those of its own."""
    tree = ast.parse(inspect.getsource(drive))
    taken = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    levels = words & {"SAME_COMPUTE_CAPABILITY", "AMPERE_PLUS"}
    own = {name for one in (Recipe, Range, Made) for name in one.__dataclass_fields__}
    own |= {"strip", "join", "append", "pop", "errors", "is_cancelled", "_outer", "ranges", "__init__", "__version__"}
    return (taken | levels) - own | {"log", "phase_start", "phase_finish", "step_complete"}


def test_the_driver_uses_no_name_that_was_removed_and_none_that_the_double_lacks() -> None:
    names = used_names()
    assert len(REMOVED) >= 25
    assert not names & REMOVED
    assert len(names) > 35
    source = inspect.getsource(double)
    assert not {name for name in names if name not in source}


def test_recipes_survive_the_border_and_name_their_plan() -> None:
    recipe = with_options(RTX, ("tf32",))
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    assert (recipe.key, TRT.key) == ("tensorrt_rtx-fp32-sm86", "tensorrt-fp16")
    assert recipe.method == "typed fp32 graph compiled by TensorRT-RTX, TF32 allowed"
    assert with_options(TRT, ("ampere_plus", "level=2")).method.endswith("no TF32, ampere plus, level 2")


def test_ranges_follow_the_axes() -> None:
    sizes = {"batch": (1, 8, 32), "seq": (2, 16, 64)}
    inputs = [("ids", ("batch", "seq")), ("scale", (4,)), ("mask", ("batch", "seq", 3))]
    assert make_ranges(inputs, sizes) == (
        Range(name="ids", least=(1, 2), best=(8, 16), greatest=(32, 64)),
        Range(name="mask", least=(1, 2, 3), best=(8, 16, 3), greatest=(32, 64, 3)),
    )


def test_a_job_makes_a_plan_for_each_gpu_in_the_order_of_precisions() -> None:
    job = Job(name="m", engines=("tensorrt_rtx",), precisions=("fp16", "int8_dynamic", "fp32"), gpus=("8.9", "8.0"))
    keys = [recipe.key for recipe in make_recipes("tensorrt_rtx", job, ())]
    assert keys == [f"tensorrt_rtx-{word}" for word in ("fp16-sm89", "fp32-sm89", "fp16-sm80", "fp32-sm80")]
    assert (job.own_engines, job.plan_engines) == ((), ("tensorrt_rtx",))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "compute capability is missing"),
        ({"gpus": ("9.0",)}, "'9.0'"),
        ({"gpus": ("8.6", "8.6")}, "twice"),
        ({"gpus": ("8.6",), "plan": ("ampere_plus",)}, "nothing that TensorRT-RTX"),
        ({"gpus": ("8.6",), "plan": ("level=2",)}, "nothing that TensorRT-RTX"),
        ({"gpus": ("8.6",), "precisions": ("int8_weights",)}, "none of them"),
        ({"engines": ("tensorrt",), "gpus": ("8.6",)}, "its own host"),
        ({"engines": ("tensorrt",), "plan": ("level=6",)}, "'level=6'"),
        ({"engines": ("tensorrt",), "plan": ("level=1", "level=2")}, "twice"),
        ({"engines": ("tensorrt",), "plan": ("ampere_plus", "same_compute_capability")}, "two different"),
        ({"engines": ("onnxruntime",), "plan": ("tf32",)}, "goes with --to"),
        ({"engines": ("onnxruntime",), "gpus": ("8.6",)}, "goes with --to"),
    ],
)
def test_a_job_for_plans_that_cannot_be_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageFault, match=said):
        Job(**{"name": "m", "engines": ("tensorrt_rtx",), **changes})


def test_every_failure_says_what_to_do() -> None:
    tree = ast.parse(inspect.getsource(drive))
    names = {kind.__name__ for kind in (VerificationFailed, ToolFailed, ConvertError)}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") in names]
    assert len(calls) >= 7
    assert all(any(word.arg == "next_step" for word in call.keywords) for call in calls)
