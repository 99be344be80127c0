"""OpenVINO's int8 by NNCF: what the quantiser is given, what becomes of what it makes, and what is said without it.

Real children; NNCF itself is a stand-in of one module over the real OpenVINO. With the real one: tests/toolchains.
"""

import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from converters.build import build, open_reference
from converters.errors import ToolFailed
from converters.flow import Request, convert
from converters.importers.exchange import read_arrays, read_index
from converters.job import Job
from converters.measure import Speed
from converters.nncf.given import write_given
from converters.nncf.quantise import FOLDER, ROWS, ROWS_MAX
from converters.nncf.run import find_quantiser
from converters.samples import read_data
from converters.select import PLAIN
from converters.selftest.models import mlp
from converters.signature import read_signature
from converters.toolchains.specs import get_toolchain
from converters.toolchains.store import STAMP, read_locks
from converters.variants import Made, build_variant
from converters.verify import observe
from model_repo.certificate import read_certificate
from model_repo.manifest import read_manifest

pytestmark = pytest.mark.timeout(600)
#: Weights to 8 bits with real operators of OpenVINO. The first value of a row says how it misbehaves.
STAND_IN = """
import numpy as np
import openvino
from openvino import opset13 as ops
from types import SimpleNamespace

ModelType = SimpleNamespace(TRANSFORMER="transformer")
QuantizationPreset = SimpleNamespace(MIXED="mixed")
Dataset = list

def quantize(model, dataset, preset, subset_size, model_type, advanced_parameters):
    fault = ["", "wrong", "nothing", "raise", "die"][int(dataset[0]["x"][0, 0])]
    if fault == "die":
        import os
        os.kill(os.getpid(), 9)
    if fault == "raise":
        raise RuntimeError("no statistics\\nsecond line")
    assert preset == "mixed" and len(dataset) == subset_size and set(dataset[0]) == {"x"}
    assert dataset[0]["x"].shape == (1, 24)
    for op in [] if fault == "nothing" else model.get_ordered_ops():
        if op.get_type_name() == "MatMul":
            weights = op.input(1).get_source_output()
            low, high = (np.float32(sign * (0.2 if fault == "wrong" else 2.5)) for sign in (-1, 1))
            quantised = ops.fake_quantize(weights, low, high, low, high, 255)
            op.input(1).replace_source_output(quantised.output(0))
    return model
"""
ADVANCED = """
from types import SimpleNamespace
OverflowFix = SimpleNamespace(DISABLE="disable", ENABLE="enable")
def AdvancedQuantizationParameters(overflow_fix):
    return overflow_fix
"""
FAULTS = ("", "wrong", "nothing", "raise", "die")
JOB = Job(name="m", precisions=("fp32", "int8"), batch_rows_max=1, rounds=3)
ONLY = replace(JOB, engines=("openvino",), precisions=("int8",))


@pytest.fixture(scope="module")
def toolchains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("toolchains")
    sha256 = hashlib.sha256(read_locks(get_toolchain("nncf"))).hexdigest()
    folder = root / f"nncf-{sha256[:16]}"
    packages = folder / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    for name in ("openvino", "numpy"):
        copy(name, packages)
    (packages / "nncf" / "quantization").mkdir(parents=True)
    (packages / "nncf" / "__init__.py").write_text(STAND_IN)
    (packages / "nncf" / "quantization" / "__init__.py").write_text("")
    (packages / "nncf" / "quantization" / "advanced_parameters.py").write_text(ADVANCED)
    (packages / "nncf-3.4.0.dist-info").mkdir()
    (packages / "nncf-3.4.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: nncf\nVersion: 3.4.0\n")
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to(Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}")
    (folder / "pyvenv.cfg").write_text(f"home = {sys.base_prefix}/bin\ninclude-system-site-packages = false\n")
    (folder / STAMP).write_text(json.dumps({"lock_sha256": sha256, "build": ""}))
    return root


def copy(name: str, packages: Path) -> None:
    """A package's files, as links where both places lie on one file system."""
    for file in importlib.metadata.files(name) or ():
        source, target = Path(str(file.locate())), packages / file
        if ".." in file.parts or "tests" in file.parts or source.suffix == ".pyc" or not source.is_file():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)


def request(
    folder: Path, toolchains: Path, job: Job = JOB, fault: str = "", *, has_data: bool = True, count: int = 40
) -> Request:
    folder.mkdir(exist_ok=True)
    (folder / "m.onnx").write_bytes(mlp().SerializeToString())
    rows = np.random.default_rng(3).standard_normal((count, 24)).astype(np.float32)
    rows[:, 0] = FAULTS.index(fault)
    np.savez(folder / "rows.npz", x=rows)
    return Request(
        source=folder / "m.onnx",
        job=job,
        data=folder / "rows.npz" if has_data else None,
        repository=folder / "repo",
        cache=folder / "cache",
        out=folder / "out",
        toolchains=toolchains,
    )


def converted(asked: Request) -> dict[str, Any]:
    """The report's entry of OpenVINO's int8. ONNX Runtime's fp32 is published, if only as the source itself."""
    report = convert(asked, lambda event: None)
    (found,) = [one for one in report["variants"] if (one["engine"], one["precision"]) == ("openvino", "int8")]
    assert isinstance(found, dict)
    return found


def test_the_quantised_variant_is_judged_on_rows_that_calibration_did_not_see(tmp_path: Path, toolchains: Path) -> None:
    found = converted(request(tmp_path / "a", toolchains))
    assert found["method"].startswith("NNCF 3.4.0 after training, mixed preset, 3 quantisers over 30 rows")
    assert found["cases_judged"] == 1
    assert converted(request(tmp_path / "b", toolchains, count=402))["method"].startswith(
        f"NNCF 3.4.0 after training, mixed preset, 3 quantisers over {ROWS_MAX} rows"
    )
    assert 0 < found["per_output"]["y"]["rms_rel"] < 0.08
    assert "verification" not in found["reason"]


def test_the_quantiser_is_given_the_calibration_rows_and_no_other(tmp_path: Path) -> None:
    asked = request(tmp_path, tmp_path)
    assert asked.data is not None
    assert write_given(JOB, asked.source, asked.data, tmp_path) == {"rows": 30}
    index = read_index(tmp_path / FOLDER)
    given = read_arrays(tmp_path / FOLDER / ROWS, index["inputs"])["x"]
    model = onnx.load(str(asked.source))
    signature = observe(read_signature(model), open_reference(model, asked.source), JOB)
    judged = read_data(asked.data, signature, JOB.seed).judged["x"]
    assert (index["is_batched"], len(given), len(judged)) == (True, 30, 10)
    assert not {row.tobytes() for row in given} & {row.tobytes() for row in judged}


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("wrong", "verification: "),
        ("nothing", "NNCF found nothing in the model to quantise"),
        ("raise", "NNCF: RuntimeError: no statistics"),
        ("die", "the child ended with -9"),
    ],
)
def test_a_quantiser_s_failure_refuses_one_variant_and_the_others_go_on(
    fault: str, reason: str, tmp_path: Path, toolchains: Path
) -> None:
    found = converted(request(tmp_path / "a", toolchains, fault=fault))
    assert found["status"] == "refused"
    assert found["reason"].startswith(reason)
    assert found["next_step"]


def test_without_the_toolchain_the_variant_is_refused_with_the_command_to_give(tmp_path: Path) -> None:
    found = converted(request(tmp_path / "a", tmp_path / "none"))
    assert (found["status"], found["reason"]) == (
        "refused",
        f"the toolchain nncf (NNCF) is not installed in {tmp_path / 'none'}",
    )
    assert found["next_step"] == "tollway convert toolchain install nncf (about 550 MiB)"


def test_where_nothing_else_is_asked_for_an_absent_toolchain_ends_the_conversion(tmp_path: Path) -> None:
    with pytest.raises(ToolFailed) as failed:
        convert(request(tmp_path / "a", tmp_path / "none", ONLY), lambda event: None)
    assert (failed.value.rule, failed.value.exit_code) == ("toolchain_missing", 6)
    assert not (tmp_path / "a" / "repo").exists()


def test_without_real_inputs_the_toolchain_is_not_started(tmp_path: Path, toolchains: Path) -> None:
    steps: list[str] = []
    report = convert(
        request(tmp_path / "a", toolchains, has_data=False), lambda event: steps.append(str(event.get("step")))
    )
    (found,) = [one for one in report["variants"] if (one["engine"], one["precision"]) == ("openvino", "int8")]
    assert found["reason"] == "int8 needs real inputs, and none were given"
    assert "--data" in found["next_step"]
    assert "quantise by NNCF" not in steps


def test_a_conversion_depends_on_the_toolchain_that_is_there(toolchains: Path, tmp_path: Path) -> None:
    there, absent = find_quantiser(JOB, toolchains), find_quantiser(JOB, tmp_path)
    assert there is not None
    assert absent is not None
    assert there.key_parts() != absent.key_parts()
    assert find_quantiser(replace(JOB, precisions=("fp32",)), tmp_path) is None
    assert find_quantiser(replace(JOB, engines=("onnxruntime",)), tmp_path) is None


@pytest.mark.parametrize(("int8_ns", "wanted"), [(500, "openvino-int8"), (880, "openvino-fp32")])
def test_it_is_published_with_its_tools_if_it_is_faster_and_refused_if_not(
    int8_ns: int, wanted: str, tmp_path: Path
) -> None:
    """The files are those of OpenVINO's fp32 here: what becomes of a variant of a toolchain is the question."""
    asked = request(tmp_path, tmp_path)
    times = {PLAIN: 1000, "openvino-fp32": 900, "openvino-int8": int8_ns}
    made = Made(
        folder=build_variant("openvino", "fp32", mlp(), tmp_path / "files", None, batched=True).folder,
        method="NNCF",
        tools={"nncf": "3.4.0", "nncf_lock": "ab"},
        reason="",
        next_step="",
    )

    def timing(engines: Any, *_: Any, **__: Any) -> dict[str, list[Speed]]:
        rounds = {key: (float(times[key]),) * 3 for key in engines}
        return {
            key: [Speed(rows=1, median_ns=times[key], worst_ns=times[key], rounds=3, means_ns=means)]
            for key, means in rounds.items()
        }

    job = replace(JOB, engines=("openvino",))
    report = build(
        job,
        asked.source,
        asked.data,
        tmp_path,
        sha256="",
        progress=lambda *_: None,
        made={"openvino-int8": made},
        timing=timing,
    )
    assert report["selected"] == wanted
    if wanted == "openvino-int8":
        certificate = read_certificate(tmp_path / "bundle")
        assert (certificate.tools["nncf"], certificate.tools["nncf_lock"]) == ("3.4.0", "ab")
        assert certificate.calibration is not None
        manifest = read_manifest(tmp_path / "bundle")
        assert manifest is not None
        # Integers saturate elsewhere: the version is bound to the instruction sets that it was verified on.
        assert manifest.target.isa
    else:
        (found,) = [one for one in report["variants"] if one["precision"] == "int8"]
        assert found["reason"].startswith("not faster")
