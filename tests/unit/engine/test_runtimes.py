"""Which library runs a model, what it says of itself, and what is said when it cannot."""

import importlib
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.engine.runtimes import FileRuntime, load_runtime
from gateway.engine.runtimes.providers import PROVIDERS, check_providers, wanted_providers
from model_repo.config import ModelConfig, parse_config
from model_repo.errors import RepositoryError
from model_repo.onnx_builder import build_mlp
from tests.unit.engine.making import EngineUnderTest, config_text, identity_onnx, run_engine, write_model

MLP = 'input { name: "x" data_type: TYPE_FP32 dims: 64 } output { name: "y" data_type: TYPE_FP32 dims: 10 }'


def mlp_config(backend: str, file: str, **parameters: str) -> ModelConfig:
    extra = "".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{text}" }} }}' for key, text in parameters.items()
    )
    return parse_config(
        f'name: "m" backend: "{backend}" max_batch_size: 8 default_model_filename: "{file}" {MLP} {extra}', name="m"
    )


def load_mlp(folder: Path, backend: str, **parameters: str) -> FileRuntime:
    path = folder / "model.onnx"
    path.write_bytes(build_mlp())
    return load_runtime(path, mlp_config(backend, path.name, **parameters), threads=1)


def rows(count: int, seed: int = 1) -> dict[str, Any]:
    return {"x": np.random.default_rng(seed).standard_normal((count, 64), dtype=np.float32)}


# -- ONNX Runtime's providers ------------------------------------------------------------------------------------------


def test_the_session_says_which_providers_run_it(tmp_path: Path) -> None:
    assert load_mlp(tmp_path, "onnxruntime").description.endswith("; CPUExecutionProvider")


@pytest.mark.parametrize("name", ["cuda", "tensorrt", "tensorrt_rtx", "openvino"])
def test_a_provider_that_did_not_load_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(RepositoryError, match=f"'{name}' did not load, the session runs on CPUExecutionProvider") as e:
        load_mlp(tmp_path, "onnxruntime", **{PROVIDERS: f"{name}, cpu"})
    assert f"Write '{name}?'" in str(e.value)


def test_an_optional_provider_may_be_missing(tmp_path: Path) -> None:
    runtime = load_mlp(tmp_path, "onnxruntime", **{PROVIDERS: "tensorrt?,cuda?"})
    assert runtime.run(rows(2))[0].shape == (2, 10)
    assert runtime.description.endswith("; CPUExecutionProvider")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpu", "'gpu' is no provider; known are cpu, cuda"),
        ("", "'' is no provider"),
        ("cpu,cpu?", r"'cpu\?' is given twice"),
    ],
)
def test_a_provider_that_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(RepositoryError, match=message):
        wanted_providers(mlp_config("onnxruntime", "model.onnx", **{PROVIDERS: text}))


def test_what_is_listed_as_available_does_not_count() -> None:
    wanted = wanted_providers(mlp_config("onnxruntime", "model.onnx", **{PROVIDERS: "cuda,cpu"}))
    check_providers(wanted, ["CUDAExecutionProvider", "CPUExecutionProvider"])
    with pytest.raises(RepositoryError, match="onnxruntime-gpu"):
        check_providers(wanted, ["CPUExecutionProvider"])


# -- OpenVINO ----------------------------------------------------------------------------------------------------------


def test_openvino_answers_as_onnx_runtime_does_at_float32(tmp_path: Path) -> None:
    feeds = rows(5)
    ours, theirs = (load_mlp(tmp_path, backend).run(feeds)[0] for backend in ("openvino", "onnxruntime"))
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_openvino_computes_in_float32_where_nothing_is_said(tmp_path: Path) -> None:
    assert load_mlp(tmp_path, "openvino").description.split("; ")[1:] == ["CPU", "f32"]


def test_openvino_says_the_precision_it_really_has(tmp_path: Path) -> None:
    """Asked for bfloat16, a CPU without it computes in float32, and that is what is told."""
    told = load_mlp(tmp_path, "openvino", tollway_precision="bf16").description.split("; ")[-1]
    flags = Path("/proc/cpuinfo").read_text()
    has_bfloat16 = "avx512_bf16" in flags or "amx_bf16" in flags
    assert told == ("bf16" if has_bfloat16 else "f32")


def test_openvino_refuses_a_precision_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="tollway_precision: 'int4' is none of f32, bf16, f16"):
        load_mlp(tmp_path, "openvino", tollway_precision="int4")


def test_openvino_runs_side_by_side_without_mixing_results(tmp_path: Path) -> None:
    runtime = load_mlp(tmp_path, "openvino")
    inputs = [rows(3, seed) for seed in range(16)]
    alone = [runtime.run(feeds)[0] for feeds in inputs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda feeds: runtime.run(feeds)[0], inputs))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_openvino_results_outlive_the_next_run(tmp_path: Path) -> None:
    runtime = load_mlp(tmp_path, "openvino")
    first = runtime.run(rows(2))[0]
    kept = first.copy()
    runtime.run(rows(2, seed=9))
    np.testing.assert_array_equal(first, kept)


def test_openvino_reads_its_own_format(tmp_path: Path) -> None:
    openvino = importlib.import_module("openvino")
    (tmp_path / "model.onnx").write_bytes(build_mlp())
    openvino.save_model(openvino.Core().read_model(tmp_path / "model.onnx"), tmp_path / "model.xml", False)
    runtime = load_runtime(tmp_path / "model.xml", mlp_config("openvino", "model.xml"), threads=1)
    np.testing.assert_allclose(
        runtime.run(rows(4))[0], load_mlp(tmp_path, "onnxruntime").run(rows(4))[0], rtol=1e-4, atol=1e-5
    )


def test_openvino_reports_nothing_to_anybody(tmp_path: Path) -> None:
    load_mlp(tmp_path, "openvino")
    assert not any(name.startswith("openvino_telemetry.") for name in sys.modules)


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(RepositoryError, match=r"install tollway\[openvino\]"):
        load_mlp(tmp_path, "openvino")


@pytest.mark.parametrize("data", [b"", b"nonsense"])
def test_openvino_refuses_a_damaged_file(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(data)
    with pytest.raises(RepositoryError, match=r"model\.onnx: OpenVINO cannot load it: "):
        load_runtime(tmp_path / "model.onnx", mlp_config("openvino", "model.onnx"), threads=1)


def test_openvino_checks_the_configuration_against_the_file(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(identity_onnx("FP32", ("b", 3)))
    with pytest.raises(RepositoryError, match=r"configured dims \[64\] do not fit \[3\]"):
        load_runtime(tmp_path / "model.onnx", mlp_config("openvino", "model.onnx"), threads=1)


# -- through the engine ------------------------------------------------------------------------------------------------


def serve(root: Path, backend: str, test: Callable[[EngineUnderTest], Any]) -> None:
    config = config_text("m", [("x", "FP32", (64,))], [("y", "FP32", (10,))], platform="", rows_max=8)
    config = config.replace('platform: ""', f'backend: "{backend}" default_model_filename: "model.onnx"')
    write_model(root, "m", config, {"1/model.onnx": build_mlp()})
    run_engine(root, test=test)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_the_config_endpoint_tells_what_runs_the_model(tmp_path: Path, backend: str) -> None:
    async def test(engine: EngineUnderTest) -> None:
        config = (await engine.get("/v2/models/m/config")).json()
        assert config["parameters"]["tollway_runtime"]["string_value"].startswith(f"{backend} ")
        reply = await engine.infer(
            "m", {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 64], "data": [0.5] * 64}]}
        )
        assert reply.json()["outputs"][0]["shape"] == [1, 10]

    serve(tmp_path, backend, test)
