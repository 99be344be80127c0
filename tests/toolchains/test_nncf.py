"""OpenVINO int8 by NNCF itself: taken within the budget, refused beyond it, by rows that calibration did not see."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters.flow import Request, convert
from converters.job import Job
from loadtests.converters_models import MODELS, rows_of
from model_repo.certificate import read_certificate
from tests.toolchains.conftest import toolchains_root

pytestmark = [pytest.mark.toolchains, pytest.mark.timeout(900)]


def converted(name: str, folder: Path) -> tuple[dict[str, Any], dict[str, Any], Request]:
    """The report, its entry of OpenVINO int8, and what was asked."""
    make, shape = MODELS[name]
    (folder / "m.onnx").write_bytes(make())
    np.savez(folder / "rows.npz", x=rows_of(shape, 60, 1))
    asked = Request(
        source=folder / "m.onnx",
        job=Job(name="m", precisions=("fp32", "int8"), batch_rows_max=1, rounds=3),
        data=folder / "rows.npz",
        repository=folder / "repo",
        cache=folder / "cache",
        out=folder / "out",
        toolchains=toolchains_root(),
    )
    report = convert(asked, lambda event: None)
    (found,) = [one for one in report["variants"] if (one["engine"], one["precision"]) == ("openvino", "int8")]
    return report, found, asked


@pytest.mark.parametrize("name", ["cnn", "mlp"])
def test_nncf_quantises_within_the_budget_of_int8(name: str, tmp_path: Path) -> None:
    report, found, asked = converted(name, tmp_path)
    assert found["method"].startswith("NNCF ")
    # What it is refused for, if it is, is that it does not pay on this machine.
    assert found["status"] in {"selected", "accepted"} or "faster" in found["reason"] or "slower" in found["reason"]
    assert all(0 < figures["rms_rel"] <= 0.08 for figures in found["per_output"].values())
    assert found["size_bytes"] < 0.5 * asked.source.stat().st_size
    if found["status"] == "selected":
        assert read_certificate(Path(report["published"]["path"])).tools["nncf"]
    assert convert(asked, lambda event: None)["is_cached"]


def test_attention_is_known_and_what_it_costs_in_accuracy_is_refused(tmp_path: Path) -> None:
    """With these weights int8 is off by a third: NNCF says nothing of that, the gate does."""
    report, found, _ = converted("encoder", tmp_path)
    assert "attention" in found["method"]
    assert found["per_output"]["y"]["rms_rel"] > 0.08
    assert found["reason"].startswith("verification: ")
    assert report["selected"] != "openvino-int8"
