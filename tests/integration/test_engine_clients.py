"""Unmodified tritonclient, http and grpc, blocking and asyncio, against the engine's real process."""

import asyncio
import gzip
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.utils import InferenceServerException

from model_repo.onnx_builder import write_model as write_bench_model
from tests.integration.engine_process import EngineProcess, running_process, tcp_relay
from tests.unit.engine.making import python_step, write_identity, write_python
from tests.unit.engine.test_ensemble import step, write_ensemble

X = np.arange(128, dtype=np.float32).reshape(2, 64) / 128


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    root = tmp_path_factory.mktemp("engine")
    repository = root / "repo"
    write_bench_model(repository, "mlp")
    for datatype in ("BYTES", "BOOL", "FP16", "INT64"):
        write_identity(repository, datatype.lower(), datatype, (-1,))
    write_identity(repository, "any", "FP32", (-1,))
    write_python(repository, "double", python_step("y = x * 2"))
    write_python(repository, "slow", python_step("time.sleep(0.3)\ny = x"))
    write_ensemble(
        repository, "twice", step("double", {"x": "IN"}, {"y": "m"}), step("double", {"x": "m"}, {"y": "OUT"})
    )
    with running_process(root, repository) as process:
        yield process
        assert process.stop() == 0
        assert "Traceback" not in process.log


@pytest.fixture(scope="module")
def http_address(engine: EngineProcess) -> Iterator[str]:
    with tcp_relay(engine.path) as address:
        yield address


@pytest.fixture
def http(http_address: str) -> Iterator[Any]:
    with triton_http.InferenceServerClient(http_address) as client:
        yield client


@pytest.fixture
def rpc(engine: EngineProcess) -> Iterator[Any]:
    with triton_grpc.InferenceServerClient(f"unix:{engine.path}") as client:
        yield client


@pytest.fixture(scope="module")
def expected() -> Any:
    import onnxruntime as ort

    from model_repo.onnx_builder import build_mlp

    return ort.InferenceSession(build_mlp(), providers=["CPUExecutionProvider"]).run(None, {"x": X})[0]


def tensor(module: Any, name: str, array: Any, datatype: str, **how: Any) -> Any:
    own = module.InferInput(name, list(array.shape), datatype)
    own.set_data_from_numpy(array, **how)
    return own


def test_server_endpoints(http: Any, rpc: Any) -> None:
    for client in (http, rpc):
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("mlp")
        assert client.is_model_ready("mlp", "1")
    assert http.get_server_metadata()["name"] == rpc.get_server_metadata().name == "tollway"
    assert http.get_model_metadata("mlp") == {
        "name": "mlp",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 64]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 10]}],
    }
    assert rpc.get_model_metadata("mlp", as_json=True)["inputs"] == [
        {"name": "x", "datatype": "FP32", "shape": ["-1", "64"]}
    ]
    assert http.get_model_config("mlp")["max_batch_size"] == rpc.get_model_config("mlp").config.max_batch_size == 64
    names = {row["name"] for row in http.get_model_repository_index()}
    assert names == {row.name for row in rpc.get_model_repository_index().models}
    assert {"mlp", "twice"} <= names
    assert http.get_inference_statistics("mlp")["model_stats"][0]["name"] == "mlp"
    assert rpc.get_inference_statistics("mlp").model_stats[0].version == "1"
    assert len(rpc.get_inference_statistics().model_stats) == len(names)


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_http_json_and_binary(http: Any, expected: Any, binary_in: bool, binary_out: bool | None) -> None:
    inputs = [tensor(triton_http, "x", X, "FP32", binary_data=binary_in)]
    outputs = None if binary_out is None else [triton_http.InferRequestedOutput("y", binary_data=binary_out)]
    result = http.infer("mlp", inputs, outputs=outputs, request_id="7", model_version="1")
    np.testing.assert_allclose(result.as_numpy("y"), expected, rtol=1e-5)
    assert result.get_response()["id"] == "7"


@pytest.mark.parametrize("request_coding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("response_coding", [None, "gzip", "deflate"])
def test_http_compression(http: Any, request_coding: str | None, response_coding: str | None) -> None:
    array = np.tile(np.arange(64, dtype=np.float32), (4, 100))
    result = http.infer(
        "any",
        [tensor(triton_http, "x", array, "FP32")],
        request_compression_algorithm=request_coding,
        response_compression_algorithm=response_coding,
    )
    assert (result.as_numpy("y") == array).all()


@pytest.mark.parametrize("coding", [None, "gzip", "deflate"])
def test_grpc(rpc: Any, expected: Any, coding: str | None) -> None:
    inputs = [tensor(triton_grpc, "x", X, "FP32")]
    result = rpc.infer("mlp", inputs, request_id="7", compression_algorithm=coding, client_timeout=30)
    np.testing.assert_allclose(result.as_numpy("y"), expected, rtol=1e-5)
    assert result.get_response().id == "7"


def test_cost_travels_as_headers_and_initial_metadata(engine: EngineProcess, http_address: str) -> None:
    import http.client
    import json

    connection = http.client.HTTPConnection(http_address)
    body = json.dumps({"inputs": [{"name": "x", "shape": [2, 64], "datatype": "FP32", "data": X.ravel().tolist()}]})
    connection.request("POST", "/v2/models/mlp/infer", body)
    reply = connection.getresponse()
    assert reply.getheader("tollway-rows") == "2"
    assert int(reply.getheader("tollway-compute-ns") or 0) > 0
    reply.read()
    connection.close()
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    with grpc.insecure_channel(f"unix:{engine.path}") as channel:
        request = service_pb2.ModelInferRequest(model_name="mlp")
        request.inputs.add(name="x", datatype="FP32", shape=[2, 64])
        request.raw_input_contents.append(X.tobytes())
        _, call = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer.with_call(request)
        metadata = {item.key: item.value for item in call.initial_metadata()}
        assert metadata["tollway-rows"] == "2"
        assert int(metadata["tollway-compute-ns"]) > 0


@pytest.mark.parametrize(
    ("model", "datatype", "array"),
    [
        ("bytes", "BYTES", np.array([["a", "hé"], ["", "c" * 300]], dtype=object)),
        ("bool", "BOOL", np.array([[True, False, True]])),
        ("fp16", "FP16", np.array([[1.5, -2.0]], dtype=np.float16)),
        ("int64", "INT64", np.array([[-(2**63), 2**63 - 1]], dtype=np.int64)),
    ],
)
def test_types_on_both_transports(http: Any, rpc: Any, model: str, datatype: str, array: Any) -> None:
    for client, module in ((http, triton_http), (rpc, triton_grpc)):
        got = client.infer(model, [tensor(module, "x", array, datatype)]).as_numpy("y")
        if datatype == "BYTES":
            assert [item.decode() for item in got.ravel()] == list(array.ravel())
        else:
            assert (got == array).all()
    if datatype != "FP16":
        got = http.infer(
            model,
            [tensor(triton_http, "x", array, datatype, binary_data=False)],
            outputs=[triton_http.InferRequestedOutput("y", binary_data=False)],
        ).as_numpy("y")
        assert [str(item) for item in got.ravel()] == [str(item) for item in array.ravel()]


def test_classification(http: Any, rpc: Any, expected: Any) -> None:
    best = int(expected[0].argmax())
    for client, module in ((http, triton_http), (rpc, triton_grpc)):
        outputs = [module.InferRequestedOutput("y", class_count=2)]
        got = client.infer("mlp", [tensor(module, "x", X, "FP32")], outputs=outputs).as_numpy("y")
        assert got.shape == (2, 2)
        assert got[0, 0].decode().split(":")[1] == str(best)


def test_python_steps_and_ensembles(http: Any, rpc: Any) -> None:
    array = np.array([[1, 2], [3, 4]], dtype=np.float32)
    for client, module in ((http, triton_http), (rpc, triton_grpc)):
        assert (client.infer("double", [tensor(module, "x", array, "FP32")]).as_numpy("y") == array * 2).all()
        assert (client.infer("twice", [tensor(module, "IN", array, "FP32")]).as_numpy("OUT") == array * 4).all()


def test_aio_clients(engine: EngineProcess, http_address: str, expected: Any) -> None:
    async def main() -> None:
        async with triton_http_aio.InferenceServerClient(http_address) as client:
            results = await asyncio.gather(
                *(client.infer("mlp", [tensor(triton_http_aio, "x", X, "FP32")]) for _ in range(20))
            )
            for result in results:
                np.testing.assert_allclose(result.as_numpy("y"), expected, rtol=1e-5)
            assert await client.is_server_ready()
        async with triton_grpc_aio.InferenceServerClient(f"unix:{engine.path}") as client:
            answers = await asyncio.gather(
                *(client.infer("mlp", [tensor(triton_grpc_aio, "x", X, "FP32")]) for _ in range(20))
            )
            for answer in answers:
                np.testing.assert_allclose(answer.as_numpy("y"), expected, rtol=1e-5)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("model", "version", "name", "shape", "http_status", "grpc_status", "text"),
    [
        ("nope", "", "x", (1, 64), "404", "NOT_FOUND", "model 'nope' is not found"),
        ("mlp", "9", "x", (1, 64), "404", "NOT_FOUND", "no version '9'"),
        ("mlp", "", "z", (1, 64), "400", "INVALID_ARGUMENT", "no input 'z'"),
        ("mlp", "", "x", (1, 63), "400", "INVALID_ARGUMENT", "has shape [1, 63]"),
        ("mlp", "", "x", (65, 64), "400", "INVALID_ARGUMENT", "takes 1 to 64"),
    ],
)
def test_errors_have_one_text_and_the_tables_status(
    http: Any,
    rpc: Any,
    model: str,
    version: str,
    name: str,
    shape: tuple[int, ...],
    http_status: str,
    grpc_status: str,
    text: str,
) -> None:
    array = np.zeros(shape, dtype=np.float32)
    for client, module, status in (
        (http, triton_http, http_status),
        (rpc, triton_grpc, f"StatusCode.{grpc_status}"),
    ):
        with pytest.raises(InferenceServerException) as caught:
            client.infer(model, [tensor(module, name, array, "FP32")], model_version=version)
        assert caught.value.status() == status
        assert text in caught.value.message()


def test_timeouts_on_both_transports(http: Any, rpc: Any) -> None:
    array = np.array([[1, 2]], dtype=np.float32)
    with pytest.raises(InferenceServerException) as caught:
        http.infer("slow", [tensor(triton_http, "x", array, "FP32")], timeout=1000)
    assert caught.value.status() == "504"
    with pytest.raises(InferenceServerException) as caught:
        rpc.infer("slow", [tensor(triton_grpc, "x", array, "FP32")], timeout=1000)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    with pytest.raises(InferenceServerException) as caught:
        rpc.infer("slow", [tensor(triton_grpc, "x", array, "FP32")], client_timeout=0.05)
    assert "DEADLINE_EXCEEDED" in caught.value.status()


def test_health_check_service(engine: EngineProcess) -> None:
    with grpc.insecure_channel(f"unix:{engine.path}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        assert stub.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(health_pb2.HealthCheckRequest(service="nope"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_large_tensors_on_both_transports(http: Any, rpc: Any) -> None:
    array = np.random.default_rng(1).random((2, 2_000_000), dtype=np.float32)  # 16 MB
    for client, module in ((http, triton_http), (rpc, triton_grpc)):
        assert (client.infer("any", [tensor(module, "x", array, "FP32")]).as_numpy("y") == array).all()


def test_a_gzip_body_by_hand_over_the_socket(engine: EngineProcess) -> None:
    status, body = engine.get("/v2/models/mlp/infer", method="POST", body=gzip.compress(b"{}"))
    assert status == 400  # no content-encoding: not JSON
    assert b"malformed JSON" in body
    assert engine.path.stat().st_mode & 0o777 == 0o600
