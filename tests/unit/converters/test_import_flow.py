"""A framework's model to a published version, by real children: the framework here is a stand-in of one module."""

import hashlib
import importlib.metadata
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from converters.errors import ConvertError, ToolFailed, UnsafeModel, UsageFault, VerificationFailed
from converters.flow import Request, convert
from converters.job import Job
from converters.toolchains.specs import get_toolchain
from converters.toolchains.store import STAMP, read_locks
from model_repo.certificate import read_certificate
from model_repo.config import parse_config

#: Five children one after the other, each of which loads its libraries; on a machine that is busy that takes long.
pytestmark = pytest.mark.timeout(900)
#: What the importer of LightGBM needs of the library. A file's second line says how it misbehaves.
STAND_IN = """
import json
import numpy as np

class Booster:
    def __init__(self, model_file):
        with open(model_file) as file:
            self._lines = file.read().splitlines()
        self._fault = self._lines[1].partition("=")[2]
        if self._fault == "read":
            open(self._lines[2]).read()
        if self._fault == "write":
            open(self._lines[2], "w").write("x")
        if self._fault == "net":
            import socket
            socket.create_connection(("127.0.0.1", int(self._lines[2])), timeout=2)
        if self._fault == "die":
            import os
            os.kill(os.getpid(), 9)

    def dump_model(self):
        leaf = lambda value: {"leaf_value": value}
        root = {"split_index": 0, "split_feature": 1, "threshold": 0.1, "decision_type": "<=", "missing_type": "None",
                "default_left": True, "left_child": leaf(-1.0), "right_child": leaf(2.0)}
        return {"objective": "regression", "max_feature_idx": 2, "num_tree_per_iteration": 1,
                "tree_info": [{"tree_structure": root}]}

    def predict(self, x, num_threads):
        if self._fault == "refuse nan" and np.isnan(x).any():
            raise ValueError("no missing values")
        x = np.nan_to_num(x[:, 1].astype(np.float64), nan=0.0)
        # A wrong export as it happens: the value just above the threshold goes the other way.
        threshold = np.nextafter(np.float32(0.1), np.float32(1)) if self._fault == "edge" else 0.1
        return np.where(x <= threshold, -1.0, 2.0)
"""
JOB = Job(name="trees", engines=("onnxruntime",), precisions=("fp32",), batch_rows_max=2, rounds=3)


def copied(source: str, target: str) -> None:
    """As a link where both lie on one file system."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@pytest.fixture(scope="module")
def toolchains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installed environment with the stand-in, and with the packages that our side of the importer needs."""
    root = tmp_path_factory.mktemp("toolchains")
    one = get_toolchain("lightgbm")
    sha256 = hashlib.sha256(read_locks(one)).hexdigest()
    folder = root / f"lightgbm-{sha256[:16]}"
    packages = folder / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    packages.mkdir(parents=True)
    for name in ("numpy", "onnx", "protobuf", "ml_dtypes", "typing_extensions"):
        _copy(name, packages)
    (packages / "lightgbm.py").write_text(STAND_IN)
    facts = packages / "lightgbm-4.7.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: lightgbm\nVersion: 4.7.0\n")
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to(Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}")
    (folder / "pyvenv.cfg").write_text(f"home = {sys.base_prefix}/bin\ninclude-system-site-packages = false\n")
    (folder / STAMP).write_text(json.dumps({"lock_sha256": sha256, "build": ""}))
    return root


def _copy(name: str, packages: Path) -> None:
    for file in importlib.metadata.files(name) or ():
        source, target = Path(str(file.locate())), packages / file
        if ".." in file.parts or not source.is_file() or "tests" in file.parts or source.suffix == ".pyc":
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        copied(str(source), str(target))


def request(folder: Path, toolchains: Path, fault: str = "", detail: str = "", **changes: Any) -> Request:
    folder.mkdir(exist_ok=True)
    source = folder / "model.txt"
    source.write_text(f"tree\nfault={fault}\n{detail}\n")
    made = Request(
        source=source,
        job=JOB,
        data=None,
        repository=folder / "repo",
        cache=folder / "cache",
        out=folder / "out",
        toolchains=toolchains,
    )
    return replace(made, **changes)


def patiently(asked: Request, on_event: Callable[[Any], None] = lambda event: None) -> dict[str, Any]:
    """On a busy machine the variant may look slower than the plain source: that refusal alone is tried again."""
    for _ in range(5):
        try:
            return convert(asked, on_event)
        except VerificationFailed as error:
            if error.rule != "not_faster":
                raise
    return convert(asked, on_event)


def test_a_framework_s_model_is_published_with_its_origin_and_found_again(tmp_path: Path, toolchains: Path) -> None:
    asked = request(tmp_path / "a", toolchains)
    steps: list[str] = []
    report = patiently(asked, lambda event: steps.append(str(event.get("step", ""))))
    source = report["source"]
    assert (source["format"], source["framework"]) == ("lightgbm", "LightGBM")
    assert source["toolchain"]["versions"] == {
        "lightgbm": "4.7.0",
        "onnx": importlib.metadata.version("onnx"),
    }
    assert source["import_sandbox_gaps"] == report["sandbox_gaps"]
    assert source["answers"]["refused"] == 0
    assert source["export"]["cases"] == source["answers"]["answered"]
    assert "export by LightGBM" in steps
    assert "framework's answers" in steps
    assert read_certificate(Path(report["published"]["path"])).source == source
    config = parse_config((asked.repository / "trees" / "config.pbtxt").read_text(), name="trees")
    assert [(one.name, one.dims) for one in config.outputs] == [("prediction", (1,))]
    again = convert(replace(asked, out=tmp_path / "again"), lambda event: steps.append("again"))
    assert again["is_cached"]
    assert "again" not in steps
    assert "tollway convert model.txt --name trees" in (asked.out / "reproduce.sh").read_text()


def test_an_export_wrong_at_one_split_is_refused_by_the_framework_s_own_answers(
    tmp_path: Path, toolchains: Path
) -> None:
    """Right but for the values at the threshold: no generated input meets those, the importer's rows do."""
    asked = request(tmp_path / "a", toolchains, "edge")
    with pytest.raises(VerificationFailed) as refused:
        convert(asked, lambda event: None)
    assert refused.value.rule == "export_differs"
    assert "threshold" in str(refused.value)
    assert not asked.repository.exists()
    assert json.loads((asked.out / "report.json").read_bytes())["error"]["rule"] == "export_differs"


def test_a_case_that_the_framework_refuses_is_listed_and_not_judged(tmp_path: Path, toolchains: Path) -> None:
    report = patiently(request(tmp_path / "a", toolchains, "refuse nan"))
    assert report["source"]["answers"]["refused"] == 1
    assert report["shapes_refused_by_source"] == ["nan rows=3: no missing values (framework)"]


@pytest.mark.parametrize("fault", ["read", "write", "net"])
def test_what_a_model_makes_its_framework_do_stays_in_the_sandbox(fault: str, tmp_path: Path, toolchains: Path) -> None:
    """Where the kernel does not offer a limit, the report says so, and only that limit is not asked for here."""
    (tmp_path / "secret").write_text("secret")
    gaps: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        port = str(server.getsockname()[1])
        detail = {"read": str(tmp_path / "secret"), "write": str(tmp_path / "canary"), "net": port}[fault]
        asked = request(tmp_path / "a", toolchains, fault, detail)
        try:
            patiently(asked, lambda event: gaps.append(str(event.get("text", ""))))
            said = ""
        except ToolFailed as failed:
            said = str(failed)
        if not [gap for gap in gaps if "sandbox" in gap]:
            assert {"read": "PermissionError", "write": "PermissionError", "net": "unreachable"}[fault] in said
            assert not (tmp_path / "canary").exists()
            with pytest.raises(BlockingIOError):
                server.accept()


def test_a_framework_that_dies_is_a_tool_s_fault_and_publishes_nothing(tmp_path: Path, toolchains: Path) -> None:
    asked = request(tmp_path / "a", toolchains, "die")
    with pytest.raises(ToolFailed) as failed:
        convert(asked, lambda event: None)
    assert failed.value.rule == "child"
    assert not asked.repository.exists()


def test_what_cannot_begin_says_what_to_do(tmp_path: Path, toolchains: Path) -> None:
    asked = request(tmp_path / "a", toolchains)
    (tmp_path / "a" / "net.py").write_text("")
    (tmp_path / "a" / "m.pt").write_bytes(b"\x80\x02].")
    cases: list[tuple[type[ConvertError], str, Request]] = [
        (ToolFailed, "toolchain_missing", replace(asked, toolchains=tmp_path / "none")),
        (UsageFault, "input", replace(asked, inputs=("x",))),
        (UsageFault, "code", replace(asked, code=tmp_path / "a" / "net.py")),
        (UsageFault, "framework", replace(asked, framework="caffe")),
        (UnsafeModel, "weights_only", replace(asked, source=tmp_path / "a" / "m.pt")),
    ]
    for kind, rule, one in cases:
        with pytest.raises(kind) as refused:
            convert(one, lambda event: None)
        assert refused.value.rule == rule
        assert refused.value.next_step
