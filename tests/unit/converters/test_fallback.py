"""What goes along for hosts that the selected variant does not fit, and that the engine then serves it."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from converters.build import build
from converters.fallback import choose_fallbacks
from converters.job import Job
from converters.measure import Speed
from converters.select import PLAIN
from converters.selftest.models import mlp
from gateway.engine.admission import Rules
from model_repo.certificate import read_certificate
from model_repo.host import read_host
from model_repo.manifest import check_files, read_manifest
from model_repo.store import publish
from tests.unit.engine.making import EngineUnderTest, running_engine

ORT32, ORT16, ORT8 = (("onnxruntime-" + precision, "onnxruntime", precision) for precision in ("fp32", "fp16", "int8"))
OV32, OV8 = (("openvino-" + precision, "openvino", precision) for precision in ("fp32", "int8"))
COSTS = {"onnxruntime-int8": 1, "openvino-int8": 2, "openvino-fp32": 3, "onnxruntime-fp16": 4, "onnxruntime-fp32": 5}


@pytest.mark.parametrize(
    ("selected", "variants", "wanted"),
    [
        ("onnxruntime-fp32", [ORT32, ORT8, OV32], ()),
        ("onnxruntime-fp16", [ORT32, ORT16], ()),
        ("onnxruntime-int8", [ORT8, ORT32, ORT16], ("onnxruntime-fp16",)),
        ("onnxruntime-int8", [ORT8, OV32, ORT32], ("openvino-fp32", "onnxruntime-fp32")),
        ("openvino-fp32", [OV32, OV8, ORT32], ("onnxruntime-fp32",)),
        ("openvino-int8", [OV8, OV32, ORT8, ORT32], ("onnxruntime-int8", "openvino-fp32", "onnxruntime-fp32")),
        ("openvino-int8", [OV8], ()),
        ("onnxruntime-fp32", [ORT8], ()),
    ],
)
def test_each_serves_where_none_before_it_does(
    selected: str, variants: list[tuple[str, str, str]], wanted: tuple[str, ...]
) -> None:
    assert choose_fallbacks(selected, variants, COSTS) == wanted


def timing(times: Mapping[str, int]) -> Any:
    """Given times, as a real machine decides otherwise each time."""

    def measure(engines: Any, *_: Any, **__: Any) -> dict[str, list[Speed]]:
        found = {key: times[key] for key in engines}
        return {
            key: [Speed(rows=1, median_ns=ns, worst_ns=ns, rounds=3, means_ns=(float(ns),) * 3)]
            for key, ns in found.items()
        }

    return measure


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OpenVINO is selected; ONNX Runtime goes along."""
    work = tmp_path_factory.mktemp("work")
    (work / "m.onnx").write_bytes(mlp().SerializeToString())
    job = Job(name="m", engines=("onnxruntime", "openvino"), precisions=("fp32",), batch_rows_max=2, rounds=3)
    times = timing({PLAIN: 1000, "onnxruntime-fp32": 900, "openvino-fp32": 500})
    report = build(job, work / "m.onnx", None, work, sha256="", progress=lambda *_: None, timing=times)
    assert (report["selected"], report["fallbacks"]) == ("openvino-fp32", ["onnxruntime-fp32"])
    text = (work / "config.pbtxt").read_text().replace('name: "model"', 'name: "m"')
    publish(work / "repo", "m", work / "bundle", text)
    return work / "repo"


def test_each_build_has_its_own_certificate_and_the_manifest_names_all(repository: Path) -> None:
    version = repository / "m" / "1"
    manifest = read_manifest(version)
    assert manifest is not None
    check_files(version, manifest)
    (variant,) = manifest.variants
    assert (manifest.target.runtime, variant.target.runtime) == ("openvino", "onnxruntime")
    own, other = read_certificate(version), read_certificate(version / "variants" / variant.name)
    assert (own.variant["engine"], own.speed["speedup"]) == ("openvino", 2.0)
    assert (other.variant["engine"], other.speed["speedup"]) == ("onnxruntime", 1.111)


@pytest.mark.parametrize("has_openvino", [True, False])
def test_the_engine_serves_what_fits_its_host(has_openvino: bool, repository: Path) -> None:
    facts = read_host()
    if not has_openvino:
        facts = replace(facts, runtimes={"onnxruntime": facts.runtimes["onnxruntime"]})
    x = np.random.default_rng(0).standard_normal((2, 16)).astype(np.float32)
    session = ort.InferenceSession(str(repository.parent / "m.onnx"), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    x = np.resize(x, (2, *session.get_inputs()[0].shape[1:])).astype(np.float32)
    (wanted,) = session.run(None, {name: x})
    tensor = {"name": name, "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}

    async def main() -> None:
        async with running_engine(repository, rules=Rules(facts=facts, golden_ns_max=10**12)) as engine:
            await check(engine)

    async def check(engine: EngineUnderTest) -> None:
        assert engine.registry.is_ready, engine.registry.index()
        library = engine.registry.get("m").runtime
        assert library.startswith("openvino") is has_openvino
        assert library.endswith("; variant onnxruntime-fp32") is not has_openvino
        exchange = await engine.infer("m", json.dumps({"inputs": [tensor]}).encode())
        (output,) = exchange.json()["outputs"]
        np.testing.assert_allclose(np.asarray(output["data"]), wanted.ravel(), rtol=1e-3, atol=1e-4)

    asyncio.run(main())
