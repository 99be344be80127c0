"""Unmodified tritonclient, all four, through the gateway: endpoints, codings, types, deadlines, equal numbers."""

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.utils import InferenceServerException

from tests.e2e.doors import Door, open_doors, tensor
from tests.e2e.stage import SHOWCASES, Stage, wait_for_model

X = np.arange(128, dtype=np.float32).reshape(2, 64) / 128
DOORS = ("http", "http.aio", "grpc", "grpc.aio")


@pytest.fixture(scope="module")
def doors(stage: Stage) -> Iterator[dict[str, Door]]:
    with open_doors(stage) as opened:
        yield opened


@pytest.fixture(params=DOORS)
def door(request: pytest.FixtureRequest, doors: dict[str, Door]) -> Door:
    return doors[request.param]


@pytest.fixture(scope="module")
def expected() -> Any:
    import onnxruntime as ort

    from model_repo.onnx_builder import build_mlp

    return ort.InferenceSession(build_mlp(), providers=["CPUExecutionProvider"]).run(None, {"x": X})[0]


def test_server_and_model_endpoints(door: Door) -> None:
    assert door.ask("is_server_live")
    assert door.ask("is_server_ready")
    assert door.ask("is_model_ready", "mlp")
    assert door.ask("is_model_ready", "mlp", "1")
    server = door.ask_json("get_server_metadata")
    assert server["name"] == "tollway"
    assert {"statistics", "binary_tensor_data", "classification"} <= set(server["extensions"])
    model = door.ask_json("get_model_metadata", "mlp")
    assert (model["name"], model["versions"], model["platform"]) == ("mlp", ["1"], "onnxruntime_onnx")
    assert [(one["name"], one["datatype"], [int(d) for d in one["shape"]]) for one in model["inputs"]] == [
        ("x", "FP32", [-1, 64])
    ]
    config = door.ask_json("get_model_config", "mlp")
    assert config.get("config", config)["max_batch_size"] == 64
    index = door.ask_json("get_model_repository_index")
    states = {one["name"]: one["state"] for one in (index["models"] if isinstance(index, dict) else index)}
    assert states["mlp"] == "READY"
    assert states["broken"] == "UNAVAILABLE"
    [stats] = door.ask_json("get_inference_statistics", "mlp")["model_stats"]
    assert stats["name"] == "mlp"


@pytest.mark.parametrize("name", ["http", "http.aio"])
def test_model_ready_says_false_over_http(doors: dict[str, Door], name: str) -> None:
    assert not doors[name].ask("is_model_ready", "broken")


@pytest.mark.parametrize("name", ["grpc", "grpc.aio"])
def test_grpc_model_ready_says_false(doors: dict[str, Door], name: str) -> None:
    assert not doors[name].ask("is_model_ready", "broken")


def test_statistics_of_every_model(doors: dict[str, Door]) -> None:
    names = {one["name"] for one in doors["http"].ask_json("get_inference_statistics")["model_stats"]}
    assert {"mlp", "echo"} <= names


def test_statistics_count_what_ran(door: Door) -> None:
    def count() -> int:
        [stats] = door.ask_json("get_inference_statistics", "long")["model_stats"]
        return int(stats.get("inference_count", 0))

    before = count()
    door.infer("long", "INT64", np.array([[1, 2]], dtype=np.int64))
    assert count() == before + 1


def test_the_result_is_the_models_own_and_the_id_comes_back(door: Door, expected: Any) -> None:
    result = door.infer("mlp", "FP32", X, request_id="call-7", model_version="1")
    np.testing.assert_allclose(result.as_numpy("y"), expected, rtol=1e-5)
    reply = result.get_response()
    assert (reply["id"] if isinstance(reply, dict) else reply.id) == "call-7"


def test_all_doors_give_identical_numbers(stage: Stage, doors: dict[str, Door]) -> None:
    """Through the gateway by every door, and from the engine itself: the same bytes."""
    generator = np.random.default_rng(7)
    cases = [
        ("mlp", "FP32", generator.standard_normal((5, 64), dtype=np.float32)),
        ("convnet", "FP32", generator.standard_normal((2, *_dims(doors["http"], "convnet")), dtype=np.float32)),
        ("echo", "FP32", np.array([[0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 3.4e38]], dtype=np.float32)),
    ]
    engine = triton_grpc.InferenceServerClient(f"unix:{stage.tollway.data_dir / 'run' / 'engine.sock'}")
    for model, datatype, array in cases:
        metadata = doors["http"].ask_json("get_model_metadata", model)
        own, name = metadata["inputs"][0]["name"], metadata["outputs"][0]["name"]
        direct = engine.infer(model, [tensor(triton_grpc, own, array, datatype)]).as_numpy(name)
        for door in doors.values():
            got = door.infer(model, datatype, array, name=own).as_numpy(name)
            assert got.dtype == direct.dtype
            assert got.tobytes() == direct.tobytes(), (model, door.name)
    engine.close()


def _dims(door: Door, model: str) -> list[int]:
    return [int(size) for size in door.ask_json("get_model_metadata", model)["inputs"][0]["shape"][1:]]


@pytest.mark.parametrize(
    ("model", "datatype", "array"),
    [
        ("text", "BYTES", np.array([["a", "hé"], ["", "c" * 300]], dtype=object)),
        ("flag", "BOOL", np.array([[True, False, True]])),
        ("half", "FP16", np.array([[1.5, -2.0]], dtype=np.float16)),
        ("long", "INT64", np.array([[-(2**63), 2**63 - 1]], dtype=np.int64)),
    ],
)
def test_types_arrive_unchanged(door: Door, model: str, datatype: str, array: Any) -> None:
    got = door.infer(model, datatype, array).as_numpy("y")
    if datatype == "BYTES":
        assert [item.decode() for item in got.ravel()] == list(array.ravel())
    else:
        assert got.tobytes() == array.tobytes()


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
@pytest.mark.parametrize("name", ["http", "http.aio"])
def test_json_and_binary(
    doors: dict[str, Door], name: str, expected: Any, binary_in: bool, binary_out: bool | None
) -> None:
    outputs = None if binary_out is None else [triton_http.InferRequestedOutput("y", binary_data=binary_out)]
    result = doors[name].infer("mlp", "FP32", X, binary_data=binary_in, outputs=outputs)
    np.testing.assert_allclose(result.as_numpy("y"), expected, rtol=1e-5)


@pytest.mark.parametrize("request_coding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("response_coding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("name", ["http", "http.aio"])
def test_http_compression(
    doors: dict[str, Door], name: str, request_coding: str | None, response_coding: str | None
) -> None:
    array = np.tile(np.arange(64, dtype=np.float32), (4, 100))
    result = doors[name].infer(
        "echo",
        "FP32",
        array,
        request_compression_algorithm=request_coding,
        response_compression_algorithm=response_coding,
    )
    assert (result.as_numpy("y") == array).all()


@pytest.mark.parametrize("coding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("name", ["grpc", "grpc.aio"])
def test_grpc_compression(doors: dict[str, Door], name: str, coding: str | None) -> None:
    array = np.tile(np.arange(64, dtype=np.float32), (4, 100))
    result = doors[name].infer("echo", "FP32", array, compression_algorithm=coding)
    assert (result.as_numpy("y") == array).all()


def test_classification_and_parameters(door: Door, expected: Any) -> None:
    outputs = [door.module.InferRequestedOutput("y", class_count=2)]
    got = door.infer("mlp", "FP32", X, outputs=outputs, parameters={"own": "text"}, priority=1).as_numpy("y")
    assert got.shape == (2, 2)
    assert got[0, 0].decode().split(":")[1] == str(int(expected[0].argmax()))


def test_a_client_timeout_ends_the_wait_and_the_call(stage: Stage, doors: dict[str, Door]) -> None:
    """The client's own clock: tritonclient gives up, the gateway frees the slot, the engine withdraws the work."""
    for name in ("grpc", "grpc.aio"):
        with pytest.raises(InferenceServerException) as caught:
            doors[name].infer("slow", "FP32", np.array([[0.6]], dtype=np.float32), client_timeout=0.1)
        assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    stage.tollway.wait(lambda: stage.gauge("tollway_calls_in_flight") == 0, "the slots")
    with triton_http.InferenceServerClient(stage.http_address, network_timeout=0.1) as client:
        with pytest.raises(Exception, match="timed out") as hung:
            client.infer("slow", [tensor(triton_http, "x", np.array([[0.6]], np.float32), "FP32")], headers=stage.auth)
        assert hung.type.__name__ in ("timeout", "TimeoutError")
    stage.tollway.wait(lambda: stage.gauge("tollway_calls_in_flight") == 0, "the slot")


def test_a_deadline_is_the_servers_too(doors: dict[str, Door]) -> None:
    """REST has no deadline of its own: the header names one; over gRPC it is grpc-timeout."""
    for name in ("http", "http.aio"):
        with pytest.raises(InferenceServerException) as caught:
            doors[name].infer(
                "slow", "FP32", np.array([[0.4]], np.float32), extra_headers={"x-request-timeout-ms": "60"}
            )
        assert caught.value.status() == "504"
        assert "time" in caught.value.message() or "deadline" in caught.value.message()


def test_grpc_health_v1(stage: Stage) -> None:
    import grpc

    for port in (stage.tollway.ports["grpc_port"], stage.tollway.ports["http_port"]):
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
            assert reply.status == health_pb2.HealthCheckResponse.SERVING


def test_both_ports_speak_both_protocols(stage: Stage, expected: Any) -> None:
    ports = stage.tollway.ports
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{ports['http_port']}") as client:
        got = client.infer("mlp", [tensor(triton_grpc, "x", X, "FP32")], headers=stage.auth)
        np.testing.assert_allclose(got.as_numpy("y"), expected, rtol=1e-5)
    with triton_http.InferenceServerClient(f"127.0.0.1:{ports['grpc_port']}") as client:
        got = client.infer("mlp", [tensor(triton_http, "x", X, "FP32")], headers=stage.auth)
        np.testing.assert_allclose(got.as_numpy("y"), expected, rtol=1e-5)


def test_sixty_calls_at_once_on_one_client(stage: Stage, expected: Any) -> None:
    async def run() -> None:
        async with triton_http_aio.InferenceServerClient(stage.http_address) as http:
            calls = [
                http.infer("mlp", [tensor(triton_http_aio, "x", X, "FP32")], headers=stage.auth) for _ in range(60)
            ]
            for result in await asyncio.gather(*calls):
                np.testing.assert_allclose(result.as_numpy("y"), expected, rtol=1e-5)
        async with triton_grpc_aio.InferenceServerClient(stage.tollway.grpc_address) as rpc:
            calls = [rpc.infer("mlp", [tensor(triton_grpc_aio, "x", X, "FP32")], headers=stage.auth) for _ in range(60)]
            for result in await asyncio.gather(*calls):
                np.testing.assert_allclose(result.as_numpy("y"), expected, rtol=1e-5)

    asyncio.run(run())


@pytest.mark.skipif(not (SHOWCASES / "file_type").is_dir(), reason="the showcases are not built (make models)")
def test_the_showcases_answer(stage: Stage, door: Door) -> None:
    with stage.client() as client:
        for model in ("file_type", "ocr"):
            wait_for_model(stage.tollway, client, model)
    source = b"import os\n\n\ndef main() -> None:\n    print(os.getcwd())\n\n\nif __name__ == '__main__':\n    main()\n"
    got = door.infer("file_type", "BYTES", np.array([source * 4], dtype=object), name="CONTENT")
    assert got.as_numpy("LABEL")[0] == b"python"
    import cv2

    page = np.full((80, 640, 3), 255, dtype=np.uint8)
    cv2.putText(page, "TOLLWAY 2026", (20, 55), cv2.FONT_HERSHEY_SIMPLEX, 1.5, (0, 0, 0), 3)
    image = cv2.imencode(".png", page)[1].tobytes()
    got = door.infer("ocr", "BYTES", np.array([image], dtype=object), name="IMAGE")
    assert b"TOLLWAY 2026" in b" ".join(got.as_numpy("TEXT"))
