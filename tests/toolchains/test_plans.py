"""The real TensorRT-RTX compiles for GPUs that are not here; the driver's names are those of the real bindings."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from converters.errors import VerificationFailed
from converters.plans.recipe import COMPUTE_CAPABILITIES
from converters.toolchains.specs import get_toolchain
from converters.toolchains.store import get_installed
from model_repo.certificate import read_certificate
from model_repo.manifest import read_manifest
from tests.toolchains.conftest import toolchains_root
from tests.unit.converters import tensorrt_double
from tests.unit.converters.test_plan_driver import REMOVED, used_names
from tests.unit.converters.test_plans import RTX, go, gpu_host, refusal, request, rows_of

pytestmark = [pytest.mark.toolchains, pytest.mark.timeout(1800)]


def installed(engine: str) -> Path:
    return get_installed(get_toolchain(engine), toolchains_root()).folder


def test_plans_for_every_gpu_are_compiled_here_and_the_same_each_time(tmp_path: Path) -> None:
    gpus = tuple(COMPUTE_CAPABILITIES)
    found = []
    for place in ("a", "b"):
        asked = request(tmp_path / place, toolchains_root(), gpus=gpus, precisions=("fp16", "fp32"))
        report = go(asked)
        version = asked.repository / "net" / "1"
        manifest = read_manifest(version)
        assert manifest is not None
        plans = {name: file.sha256 for name, file in manifest.files.items() if name.endswith("model.plan")}
        found.append(plans)
        # Float32 products are nothing that this compiler makes for Turing; it says so, and the others are made.
        refused = [(one["precision"], one["compute_capability"]) for one in rows_of(report) if one["reason"]]
        assert refused == [("fp32", "7.5")]
        assert len(plans) == 2 * len(gpus) - 1
        assert all((version / name).read_bytes().startswith(b"vtrt") for name in plans)
        assert len(set(plans.values())) == len(plans)
    assert found[0] == found[1]
    certificate = read_certificate(version)
    assert certificate.variant["runtime_version"] == "1.7.1.116"
    assert certificate.speed["measured"] is False
    assert "needs tensorrt_rtx 1.7.1.116" in refusal(asked)
    assert "compute capability 7.5), this host has none" in refusal(asked)
    assert refusal(asked, gpu_host("8.9")) == ""


def test_int8_and_a_named_flag_are_compiled(tmp_path: Path) -> None:
    asked = request(tmp_path, toolchains_root(), precisions=("int8",), budgets={"int8": 4.0}, plan=("batch_invariant",))
    data = tmp_path / "rows.npz"
    np.savez(data, x=np.random.default_rng(5).standard_normal((120, 8)).astype(np.float32))
    report = go(replace(asked, data=data))
    assert [(one["precision"], one["status"], one["reason"]) for one in rows_of(report)] == [("int8", "selected", "")]
    assert "batch invariant" in rows_of(report)[0]["method"]


def test_what_the_compiler_does_not_take_is_named(tmp_path: Path) -> None:
    asked = request(tmp_path, toolchains_root(), gpus=("7.5",), precisions=("fp32",))
    with pytest.raises(VerificationFailed, match="FP32 GEMM is not supported"):
        go(asked)


def names_of(engine: str) -> bytes:
    """The strings of a binding, which end with NUL; nothing of it is loaded."""
    [binding] = (installed(engine) / "lib").glob(f"python3.*/site-packages/{engine}_bindings/{engine}.so")
    return binding.read_bytes()


@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt_rtx"])
def test_every_name_that_the_driver_uses_is_the_binding_s(engine: str) -> None:
    strings = names_of(engine)
    only_rtx = {"ComputeCapability", "num_compute_capabilities", "set_compute_capability"}
    names = used_names() - (only_rtx if engine == "tensorrt" else set())
    absent = {name for name in names if f"{name}\0".encode() not in strings}
    assert not absent, absent
    assert len([name for name in names if len(name) < 6]) <= 15
    # A name of few letters may be a part of another, longer one.
    there = {name for name in REMOVED if len(name) >= 6 and f"\0{name}\0".encode() in strings}
    assert not there, there


def test_the_double_has_what_the_real_library_has() -> None:
    """Enum members and classes, by the library itself."""
    python = get_installed(get_toolchain(RTX[0]), toolchains_root()).python
    kinds = ("BuilderFlag", "ComputeCapability", "HardwareCompatibilityLevel", "NetworkDefinitionCreationFlag")
    text = (
        "import json, tensorrt_rtx_bindings as trt\n"
        f"kinds = {kinds!r}\n"
        "print(json.dumps({kind: sorted(getattr(trt, kind).__members__) for kind in kinds}))\n"
    )
    done = subprocess.run([str(python), "-I", "-B", "-c", text], capture_output=True, text=True, check=True, timeout=60)
    real = json.loads(done.stdout)
    for kind in kinds:
        own = {name for name in vars(getattr(tensorrt_double, kind)) if name.isupper() or name[:2] == "SM"}
        assert own <= set(real[kind]), kind


def test_without_nvidia_s_libraries_tensorrt_says_which_one_is_missing() -> None:
    python = installed("tensorrt") / "bin" / "python"
    text = "import sys; sys.path.insert(0, sys.argv[1])\nfrom converters.plans.serve import _open_library\n"
    text += "from converters.errors import ToolFailed\n"
    text += "try:\n    print(_open_library('tensorrt').__version__)\nexcept ToolFailed as error:\n    print(error)\n"
    root = str(Path(__file__).parents[2])
    done = subprocess.run([str(python), "-c", text, root], capture_output=True, text=True, check=True, timeout=60)
    assert "TensorRT cannot be loaded: lib" in done.stdout or done.stdout.startswith("11.4")
