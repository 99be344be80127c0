"""A model to published plans, by real children: NVIDIA's binding is a stand-in of one module (tensorrt_double)."""

import contextlib
import fcntl
import hashlib
import inspect
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from converters.errors import ToolFailed, UnfitTarget, UsageFault, VerificationFailed
from converters.flow import Request, convert
from converters.job import Job
from converters.plans.recipe import with_options
from converters.plans.run import Compiler, build_plans, make_recipes, open_compilers, timing_cache
from converters.toolchains.specs import get_toolchain
from converters.toolchains.store import STAMP, Installed, read_locks
from gateway.commands.convert import _print as print_answer
from gateway.engine.admission import Rules, admit
from model_repo.certificate import read_certificate, read_golden
from model_repo.config import parse_config
from model_repo.errors import RepositoryError
from model_repo.host import Gpu, HostFacts, read_host
from model_repo.manifest import check_files, read_manifest
from model_repo.repository import find_model, read_config
from tests.unit.converters import tensorrt_double

#: Children one after the other, each of which loads its libraries; on a machine that is busy that takes long.
pytestmark = pytest.mark.timeout(900)
RTX = ("tensorrt_rtx",)


def install(root: Path, engine: str, text: str) -> None:
    """An installed environment whose binding is `text`."""
    one = get_toolchain(engine)
    sha256 = hashlib.sha256(read_locks(one)).hexdigest()
    folder = root / f"{engine}-{sha256[:16]}"
    packages = folder / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    packages.mkdir(parents=True)
    (packages / f"{engine}_bindings.py").write_text(text)
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to(Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}")
    (folder / "pyvenv.cfg").write_text(f"home = {sys.base_prefix}/bin\ninclude-system-site-packages = false\n")
    (folder / STAMP).write_text(json.dumps({"lock_sha256": sha256, "build": ""}))


@pytest.fixture(scope="module")
def toolchains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("toolchains")
    for engine in ("tensorrt_rtx", "tensorrt"):
        install(root, engine, inspect.getsource(tensorrt_double))
    return root


def save_net(path: Path, scale: float = 1.0) -> Path:
    """`x: float32[batch, 8]` → `y: float32[batch, 3]`; a great `scale` leaves float16's range."""
    rng = np.random.default_rng(3)
    weights = [rng.standard_normal(shape).astype(np.float32) * np.float32(scale) for shape in ((8, 16), (16, 3))]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "a"], ["h"], name="first"),
            helper.make_node("Relu", ["h"], ["r"], name="relu"),
            helper.make_node("MatMul", ["r", "b"], ["y"], name="second"),
        ],
        "net",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(array, name) for array, name in zip(weights, "ab", strict=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.save_model(model, str(path))
    return path


def request(folder: Path, toolchains: Path, **job: Any) -> Request:
    folder.mkdir(exist_ok=True)
    own = {"engines": RTX, "gpus": ("8.6",), "batch_rows_max": 4, "rounds": 3, **job}
    return Request(
        source=save_net(folder / "net.onnx"),
        job=Job(name="net", **own),
        data=None,
        repository=folder / "repo",
        cache=folder / "cache",
        out=folder / "out",
        toolchains=toolchains,
    )


def go(asked: Request) -> dict[str, Any]:
    return convert(asked, lambda event: None)


def rows_of(report: dict[str, Any], engines: Sequence[str] = RTX) -> list[dict[str, Any]]:
    return [one for one in report["variants"] if one["engine"] in engines]


def refusal(asked: Request, facts: HostFacts | None = None) -> str:
    """Why an engine does not load the version; empty: it would."""
    folder = find_model(asked.repository, "net")
    assert folder is not None
    config = parse_config(read_config(folder), name="net")
    try:
        admit(folder, 1, config, Rules(facts=facts))
    except RepositoryError as error:
        return str(error)
    return ""


def gpu_host(compute_capability: str, version: str = "1.7.1.116") -> HostFacts:
    gpus = (Gpu(name="RTX", compute_capability=compute_capability, driver="580.1"),)
    return replace(read_host(), runtimes={**read_host().runtimes, "tensorrt_rtx": version}, gpus=gpus)


def test_plans_are_published_as_never_run_and_refused_where_they_do_not_fit(
    tmp_path: Path, toolchains: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = request(tmp_path, toolchains, gpus=("8.6", "7.5"))
    report = go(asked)
    rows = rows_of(report)
    assert [(one["precision"], one["compute_capability"], one["status"]) for one in rows] == [
        ("fp32", "8.6", "selected"),
        ("fp16", "8.6", "accepted"),
        ("fp32", "7.5", "refused"),
        ("fp16", "7.5", "accepted"),
    ]
    assert "FP32 GEMM is not supported" in rows[2]["reason"]
    for one in rows:
        assert (one["measured"], one["parity"], one["speeds"]) == (False, "not run: needs a GPU", [])
        assert one["per_output"]["y"]["budget_used"] <= 1
    assert (report["selected"], report["speedup"]) == ("tensorrt_rtx-fp32-sm86", None)
    on_disk = json.loads((asked.out / "report.json").read_bytes())
    assert all(one["measured"] is False for one in on_disk["variants"])
    assert "not measured: it needs a GPU" in (asked.out / "report.html").read_text()
    assert "--gpu 8.6,7.5" in (asked.out / "reproduce.sh").read_text()
    print_answer({"ev": "result", "value": report}, asked.out, as_json=False)
    assert "not measured: it needs a GPU" in capsys.readouterr().out

    version = asked.repository / "net" / "1"
    manifest = read_manifest(version)
    assert manifest is not None
    check_files(version, manifest)
    certificate = read_certificate(version)
    assert certificate.variant["compute_capability"] == "8.6"
    assert certificate.variant["runtime_version"] == certificate.tools["tensorrt_rtx"] == "1.7.1.116"
    assert certificate.parity["plan"] == "not run: needs a GPU"
    assert certificate.parity["typed_graph"]["per_output"]["y"]["budget_used"] <= 1
    assert certificate.speed["measured"] is False
    golden = read_golden(version)
    assert len(golden) == certificate.golden["cases"] > 0
    assert max(len(inputs["x"]) for inputs, _ in golden) <= 4
    plan = json.loads((version / "model.plan").read_bytes())
    assert (plan["gpus"], plan["flags"], plan["profiles"]) == (["SM86"], [], [{"x": [[1, 8], [4, 8], [4, 8]]}])
    config = parse_config((version.parent / "config.pbtxt").read_text(), name="net")
    assert (config.platform, config.batch_rows_max) == ("tensorrt_rtx", 4)

    said = refusal(asked)
    assert "needs tensorrt_rtx 1.7.1.116, which is not installed" in said
    assert "made for the GPU (compute capability 8.6), this host has none" in said
    assert refusal(asked, gpu_host("8.6")) == ""
    assert "compute capability 8.6), this host has RTX (compute capability 8.9)" in refusal(asked, gpu_host("8.9"))
    assert "1.7.1.116 and by no other version usable, installed is 1.6.0" in refusal(asked, gpu_host("8.6", "1.6.0"))
    again = go(asked)
    assert (again["is_cached"], again["published"]["is_new"]) == (True, False)


def test_a_host_without_the_gpu_takes_the_variant_that_runs_everywhere(tmp_path: Path, toolchains: Path) -> None:
    asked = request(tmp_path, toolchains, engines=("tensorrt_rtx", "onnxruntime"), precisions=("fp32",))
    report = go(asked)
    assert (report["selected"], report["plans"]) == ("onnxruntime-fp32", ["tensorrt_rtx-fp32-sm86"])
    assert report["speedup"] > 0
    assert [one["measured"] for one in rows_of(report)] == [False]
    folder = find_model(asked.repository, "net")
    assert folder is not None
    config = parse_config(read_config(folder), name="net")
    assert config.platform == "tensorrt_rtx"
    here = admit(folder, 1, config, Rules())
    assert [(build.name, build.config and build.config.platform) for build in here] == [
        ("onnxruntime-fp32", "onnxruntime")
    ]
    there = admit(folder, 1, config, Rules(facts=gpu_host("8.6")))
    assert [build.name for build in there] == ["", "onnxruntime-fp32"]
    assert there[0].has_golden


def test_a_precision_whose_graph_is_wrong_is_not_compiled(tmp_path: Path, toolchains: Path) -> None:
    asked = request(tmp_path, toolchains)
    save_net(asked.source, scale=1e5)
    report = go(asked)
    assert [(one["precision"], one["status"]) for one in rows_of(report)] == [("fp32", "selected"), ("fp16", "refused")]
    refused = rows_of(report)[1]
    assert refused["reason"].startswith("verification:")
    assert (refused["measured"], refused["size_bytes"]) == (False, 0)
    assert (asked.out / "failures" / "typed-fp16").is_dir()


def test_nothing_is_published_where_no_plan_can_be_made(tmp_path: Path, toolchains: Path) -> None:
    asked = request(tmp_path, toolchains, gpus=("7.5",), precisions=("fp32",))
    with pytest.raises(VerificationFailed, match="FP32 GEMM is not supported"):
        go(asked)
    report = json.loads((asked.out / "report.json").read_bytes())
    assert (report["error"]["rule"], report["published"]) == ("no_plan", None)
    assert not (asked.repository / "net").exists()


def test_int8_needs_data_and_is_symmetric(tmp_path: Path, toolchains: Path) -> None:
    asked = request(tmp_path, toolchains, precisions=("int8", "fp32"), budgets={"int8": 4.0})
    assert "needs real inputs" in rows_of(go(asked))[0]["reason"]
    data = tmp_path / "rows.npz"
    np.savez(data, x=np.random.default_rng(5).standard_normal((120, 8)).astype(np.float32))
    report = go(replace(asked, data=data, repository=tmp_path / "other"))
    assert [(one["precision"], one["status"]) for one in rows_of(report)] == [
        ("int8", "selected"),
        ("fp32", "accepted"),
    ]
    assert "symmetric" in rows_of(report)[0]["method"]
    certificate = read_certificate(tmp_path / "other" / "net" / "1")
    assert certificate.calibration is not None
    assert certificate.calibration["rows_calibration"] == 90


def test_what_is_missing_is_said_before_anything_is_built(tmp_path: Path, toolchains: Path) -> None:
    with pytest.raises(ToolFailed, match="TensorRT-RTX") as caught:
        go(request(tmp_path / "a", tmp_path / "nowhere"))
    assert caught.value.rule == "toolchain_missing"
    assert "tollway convert toolchain install tensorrt_rtx" in caught.value.next_step
    with pytest.raises(UnfitTarget, match="this host has none"):
        go(request(tmp_path / "b", toolchains, engines=("tensorrt",), gpus=()))
    with pytest.raises(UsageFault, match="compute capability is missing"):
        request(tmp_path / "c", toolchains, gpus=())
    broken = tmp_path / "broken"
    install(broken, "tensorrt_rtx", "raise ImportError('libtensorrt_rtx.so.1: cannot open shared object file')\n")
    asked = request(tmp_path / "d", broken, precisions=("fp32",))
    with pytest.raises(ToolFailed, match=r"libtensorrt_rtx\.so\.1") as caught:
        go(asked)
    assert caught.value.rule == "library"


def test_tensorrt_builds_for_this_gpu_and_keeps_its_timings(tmp_path: Path, toolchains: Path) -> None:
    asked = request(tmp_path, toolchains, engines=("tensorrt",), gpus=(), plan=("level=2",), precisions=("fp32",))
    one = get_toolchain("tensorrt")
    sha256 = hashlib.sha256(read_locks(one)).hexdigest()
    installed = Installed(toolchain=one, folder=toolchains / f"tensorrt-{sha256[:16]}", lock_sha256=sha256, build="")
    gpu = Gpu(name="L4", compute_capability="8.9", driver="580.1")
    compiler = Compiler(engine="tensorrt", installed=installed, gpu=gpu)
    timing = tmp_path / "timing"

    def build(name: str) -> Path:
        work = tmp_path / name
        work.mkdir()
        source = {"source": str(asked.source), "sha256": "0", "data": "", "facts": {}}
        build_plans(
            source,
            asked.job,
            (compiler,),
            work,
            timing=timing,
            limits=asked.limits,
            on_event=lambda event: None,
            own=None,
        )
        return work / "bundle"

    bundle = build("first")
    manifest = read_manifest(bundle)
    assert manifest is not None
    target = manifest.target
    assert (target.gpu, target.compute_capability, target.gpu_rule) == ("L4", "8.9", "exact")
    assert (target.runtime, target.runtime_version, target.runtime_rule) == ("tensorrt", "1.7.1.116", "exact")
    assert json.loads((bundle / "model.plan").read_bytes())["level"] == 2
    [cache] = timing.glob("*.cache")
    assert cache.read_bytes() == b"+timed"
    build("second")
    assert cache.read_bytes() == b"+timed+timed"
    parts = compiler.key_parts()["tensorrt"]
    assert "L4 8.9 580.1" in parts


@pytest.mark.parametrize(
    ("options", "rule", "runtime_rule", "runs_host_code"),
    [
        (("same_compute_capability",), "same_compute_capability", "exact", False),
        (("ampere_plus",), "ampere_plus", "exact", False),
        (("version_compatible",), "exact", "newer", True),
    ],
)
def test_what_a_plan_was_built_to_bear_is_what_hosts_are_held_to(
    toolchains: Path, options: tuple[str, ...], rule: str, runtime_rule: str, runs_host_code: bool
) -> None:
    from converters.plans.compose import Plan, target_of

    job = Job(name="m", engines=("tensorrt",), precisions=("fp16",), plan=options)
    [recipe] = make_recipes("tensorrt", job, ())
    assert recipe == with_options(recipe, options)
    gpu = Gpu(name="L4", compute_capability="8.9")
    plan = Plan(recipe=recipe, folder=toolchains, golden={}, version="11.4.0.106", lock_sha256="", typed={}, gpu=gpu)
    target = target_of(plan)
    assert (target.gpu_rule, target.runtime_rule, target.runs_host_code) == (rule, runtime_rule, runs_host_code)


def test_two_builds_with_one_timing_cache_follow_one_another(tmp_path: Path, toolchains: Path) -> None:
    job = Job(name="m", engines=RTX, precisions=("fp32",), gpus=("8.6",))
    [compiler] = open_compilers(job, toolchains)
    first, second = make_recipes("tensorrt_rtx", replace(job, precisions=("fp32", "fp16")), ())
    with contextlib.ExitStack() as held:
        one = held.enter_context(timing_cache(tmp_path, compiler, first))
        # Of other flags or another precision: another file, and so no wait.
        assert held.enter_context(timing_cache(tmp_path, compiler, second)) != one
        with one.with_suffix(".lock").open() as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with timing_cache(tmp_path, compiler, first) as again:
        assert again == one
