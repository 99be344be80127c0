"""gRPC of the Open Inference Protocol, without a network: answers, contents of both kinds, refusals by the table."""

import gzip
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from gateway.call import Headers
from gateway.engine.codec_grpc import parse_infer
from gateway.errors import Code, TollwayError
from gateway.wire.grpc import decode_message, frame
from gateway.wire.status import Grpc
from tests.unit.engine.making import EngineUnderTest, FakeExchange, run_engine, write_identity

SERVICE = "/inference.GRPCInferenceService/"


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    write_identity(tmp_path, "m", "FP32", (2,))
    return tmp_path


async def rpc(engine: EngineUnderTest, method: str, message: Any, headers: Headers | None = None) -> FakeExchange:
    data = message if isinstance(message, bytes) else frame(message.SerializeToString())
    target = method if method.startswith("/") else SERVICE + method
    return await engine.call("POST", target, data, headers, is_grpc=True)


def answer(exchange: FakeExchange, message_type: Any) -> Any:
    assert exchange.status == 200
    assert exchange.headers[b"content-type"] == b"application/grpc"
    assert exchange.trailers == {b"grpc-status": b"0"}
    assert exchange.body[0] == 0
    assert int.from_bytes(exchange.body[1:5], "big") == len(exchange.body) - 5
    return message_type.FromString(exchange.body[5:])


def refusal(exchange: FakeExchange) -> tuple[Grpc, str]:
    assert exchange.status == 200
    assert exchange.body == b""
    text = decode_message(exchange.trailers[b"grpc-message"])
    return Grpc(int(exchange.trailers[b"grpc-status"])), text


def infer_request(
    array: Any = None, *, datatype: str = "FP32", shape: list[int] | None = None, **fields: Any
) -> service_pb2.ModelInferRequest:
    array = np.array([[1.5, 2.5]], dtype=np.float32) if array is None else array
    request = service_pb2.ModelInferRequest(model_name="m", **fields)
    request.inputs.add(name="x", datatype=datatype, shape=shape or array.shape)
    request.raw_input_contents.append(array.tobytes())
    return request


def test_server_and_model_methods(repo: Path) -> None:
    async def test(engine: EngineUnderTest) -> None:
        s = service_pb2
        assert answer(await rpc(engine, "ServerLive", s.ServerLiveRequest()), s.ServerLiveResponse).live
        assert answer(await rpc(engine, "ServerReady", s.ServerReadyRequest()), s.ServerReadyResponse).ready
        ready = await rpc(engine, "ModelReady", s.ModelReadyRequest(name="m"))
        assert answer(ready, s.ModelReadyResponse).ready
        server = answer(await rpc(engine, "ServerMetadata", s.ServerMetadataRequest()), s.ServerMetadataResponse)
        assert (server.name, server.version) == ("tollway", "1")
        model = answer(
            await rpc(engine, "ModelMetadata", s.ModelMetadataRequest(name="m", version="1")), s.ModelMetadataResponse
        )
        assert (model.platform, list(model.versions), list(model.inputs[0].shape)) == (
            "onnxruntime_onnx",
            ["1"],
            [-1, 2],
        )
        config = answer(await rpc(engine, "ModelConfig", s.ModelConfigRequest(name="m")), s.ModelConfigResponse)
        assert config.config.max_batch_size == 8
        index = answer(await rpc(engine, "RepositoryIndex", s.RepositoryIndexRequest()), s.RepositoryIndexResponse)
        assert [(row.name, row.state) for row in index.models] == [("m", "READY")]
        await rpc(engine, "ModelInfer", infer_request())
        for request in (s.ModelStatisticsRequest(), s.ModelStatisticsRequest(name="m", version="1")):
            stats = answer(await rpc(engine, "ModelStatistics", request), s.ModelStatisticsResponse)
            assert stats.model_stats[0].inference_stats.success.count == 1
            assert stats.model_stats[0].batch_stats[0].batch_size == 1

    run_engine(repo, test=test)


def test_health_check(repo: Path) -> None:
    async def test(engine: EngineUnderTest) -> None:
        check = "/grpc.health.v1.Health/Check"
        for service in ("", "inference.GRPCInferenceService"):
            message = frame(b"" if not service else b"\x0a" + bytes([len(service)]) + service.encode())
            assert (await rpc(engine, check, message)).body == frame(b"\x08\x01")
        assert refusal(await rpc(engine, check, frame(b"\x0a\x01x")))[0] is Grpc.NOT_FOUND

    run_engine(repo, test=test)


def test_raw_contents(repo: Path) -> None:
    async def test(engine: EngineUnderTest) -> None:
        exchange = await rpc(engine, "ModelInfer", infer_request(id="7"))
        response = answer(exchange, service_pb2.ModelInferResponse)
        assert (response.model_name, response.model_version, response.id) == ("m", "1", "7")
        assert [(o.name, o.datatype, list(o.shape)) for o in response.outputs] == [("y", "FP32", [1, 2])]
        assert list(response.raw_output_contents) == [np.array([1.5, 2.5], dtype=np.float32).tobytes()]
        assert exchange.headers[b"tollway-rows"] == b"1"
        assert int(exchange.headers[b"tollway-compute-ns"]) > 0

    run_engine(repo, test=test)


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("BOOL", "bool_contents", [True, False]),
        ("INT8", "int_contents", [-128, 127]),
        ("INT32", "int_contents", [-(2**31), 2**31 - 1]),
        ("INT64", "int64_contents", [-(2**63), 2**63 - 1]),
        ("UINT8", "uint_contents", [0, 255]),
        ("UINT64", "uint64_contents", [0, 2**64 - 1]),
        ("FP32", "fp32_contents", [1.5, -2.5]),
        ("FP64", "fp64_contents", [1.5, -2.5]),
        ("BYTES", "bytes_contents", [b"ab", b""]),
    ],
)
def test_typed_contents(tmp_path: Path, datatype: str, field: str, values: list[Any]) -> None:
    write_identity(tmp_path, "m", datatype, (2,))

    async def test(engine: EngineUnderTest) -> None:
        request = service_pb2.ModelInferRequest(model_name="m")
        tensor = request.inputs.add(name="x", datatype=datatype, shape=[1, 2])
        getattr(tensor.contents, field).extend(values)
        response = answer(await rpc(engine, "ModelInfer", request), service_pb2.ModelInferResponse)
        (raw,) = response.raw_output_contents
        if datatype == "BYTES":
            assert raw == b"\x02\0\0\0ab\0\0\0\0"
        else:
            numpy = {"BOOL": "?"}.get(datatype, datatype.lower().replace("fp", "float"))
            assert np.frombuffer(raw, dtype=numpy).tolist() == values

    run_engine(tmp_path, test=test)


def _typed(datatype: str, field: str, values: list[Any], shape: list[int]) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name="m")
    getattr(request.inputs.add(name="x", datatype=datatype, shape=shape).contents, field).extend(values)
    return request


def _changed(**fields: Any) -> service_pb2.ModelInferRequest:
    request = infer_request()
    for name, value in fields.items():
        setattr(request, name, value)
    return request


def _with(change: Any) -> service_pb2.ModelInferRequest:
    request = infer_request()
    change(request)
    return request


@pytest.mark.parametrize(
    ("request_", "status", "text"),
    [
        (_changed(model_name="nope"), Grpc.NOT_FOUND, "model 'nope' is not found"),
        (_changed(model_version="9"), Grpc.NOT_FOUND, "no version '9'"),
        (_changed(model_version="x"), Grpc.NOT_FOUND, "no version 'x'"),
        (infer_request(shape=[1, 3]), Grpc.INVALID_ARGUMENT, "needs 12 bytes, got 8"),
        (infer_request(shape=[2, 1]), Grpc.INVALID_ARGUMENT, "has shape [2, 1]"),
        (infer_request(shape=[-1, 2]), Grpc.INVALID_ARGUMENT, "negative size"),
        (infer_request(datatype="INT32"), Grpc.INVALID_ARGUMENT, "has datatype INT32"),
        (infer_request(datatype="FP8"), Grpc.INVALID_ARGUMENT, "unknown datatype 'FP8'"),
        (_with(lambda r: r.raw_input_contents.append(b"")), Grpc.INVALID_ARGUMENT, "1 inputs with 2 raw"),
        (
            _with(lambda r: r.inputs[0].contents.fp32_contents.append(1)),
            Grpc.INVALID_ARGUMENT,
            "contents must not be set",
        ),
        (_with(lambda r: r.outputs.add(name="q")), Grpc.INVALID_ARGUMENT, "no output 'q'"),
        (_with(lambda r: setattr(r.inputs[0], "name", "q")), Grpc.INVALID_ARGUMENT, "no input 'q'"),
        (_with(lambda r: r.ClearField("inputs")), Grpc.INVALID_ARGUMENT, "0 inputs with 1 raw"),
        (_typed("FP32", "fp32_contents", [1], [1, 2]), Grpc.INVALID_ARGUMENT, "has 1 elements in fp32_contents"),
        (_typed("FP32", "fp64_contents", [1, 2], [1, 2]), Grpc.INVALID_ARGUMENT, "must be in fp32_contents"),
        (_typed("INT8", "int_contents", [1, 300], [1, 2]), Grpc.INVALID_ARGUMENT, "out of the range of INT8"),
        (_typed("FP16", "fp32_contents", [1, 2], [1, 2]), Grpc.INVALID_ARGUMENT, "no typed contents"),
        (_typed("FP8", "fp32_contents", [1, 2], [1, 2]), Grpc.INVALID_ARGUMENT, "unknown datatype"),
        (b"", Grpc.INVALID_ARGUMENT, "has no message"),
        (b"\x00\x00\x00\x00\x09abc", Grpc.INVALID_ARGUMENT, "not exactly one message"),
        (b"\x07\x00\x00\x00\x00", Grpc.INVALID_ARGUMENT, "malformed message prefix"),
        (frame(b"\xff\xff\xff"), Grpc.INVALID_ARGUMENT, "malformed ModelInferRequest"),
        (frame(b"", is_compressed=True), Grpc.INVALID_ARGUMENT, "without grpc-encoding"),
    ],
)
def test_a_bad_request_is_refused_with_its_reason(repo: Path, request_: Any, status: Grpc, text: str) -> None:
    async def test(engine: EngineUnderTest) -> None:
        got, message = refusal(await rpc(engine, "ModelInfer", request_))
        assert got is status
        assert text in message

    run_engine(repo, test=test)


@pytest.mark.parametrize(
    "method",
    ["Nothing", "/other/Method"],
)
def test_other_methods_are_unimplemented(repo: Path, method: str) -> None:
    async def test(engine: EngineUnderTest) -> None:
        status, message = refusal(await rpc(engine, method, frame(b"")))
        assert status is Grpc.UNIMPLEMENTED
        assert "is not served by this engine" in message

    run_engine(repo, test=test)


def test_compressed_messages_are_inflated(repo: Path) -> None:
    async def test(engine: EngineUnderTest) -> None:
        plain = infer_request().SerializeToString()
        for coding, packed in ((b"gzip", gzip.compress(plain)), (b"deflate", zlib.compress(plain))):
            message = frame(packed, is_compressed=True)
            exchange = await rpc(engine, "ModelInfer", message, [(b"grpc-encoding", coding)])
            assert answer(exchange, service_pb2.ModelInferResponse).model_name == "m"
        exchange = await rpc(engine, "ModelInfer", frame(b"", is_compressed=True), [(b"grpc-encoding", b"snappy")])
        assert refusal(exchange)[0] is Grpc.UNIMPLEMENTED
        assert exchange.trailers[b"grpc-accept-encoding"] == b"gzip, deflate"

    run_engine(repo, test=test)


def test_deadlines_come_from_grpc_timeout(repo: Path) -> None:
    write_identity(repo, "slow", "FP32", (-1,))

    async def test(engine: EngineUnderTest) -> None:
        request = infer_request()
        request.model_name = "slow"
        exchange = await rpc(engine, "ModelInfer", request, [(b"grpc-timeout", b"1n")])
        assert refusal(exchange)[0] is Grpc.DEADLINE_EXCEEDED
        exchange = await rpc(engine, "ModelInfer", request, [(b"grpc-timeout", b"1M"), (b"tollway-deadline-ns", b"1")])
        assert refusal(exchange)[0] is Grpc.DEADLINE_EXCEEDED
        exchange = await rpc(engine, "ModelInfer", request, [(b"grpc-timeout", b"1x")])
        assert refusal(exchange)[0] is Grpc.INVALID_ARGUMENT

    run_engine(repo, test=test)


def test_classification_and_named_outputs(repo: Path) -> None:
    async def test(engine: EngineUnderTest) -> None:
        request = infer_request()
        request.outputs.add(name="y").parameters["classification"].int64_param = 1
        response = answer(await rpc(engine, "ModelInfer", request), service_pb2.ModelInferResponse)
        assert response.outputs[0].datatype == "BYTES"
        assert response.raw_output_contents[0] == b"\x0a\0\0\x002.500000:1"

    run_engine(repo, test=test)


def test_large_raw_tensors_are_cut_out_without_changing_the_request(tmp_path: Path) -> None:
    write_identity(tmp_path, "m", "FP32", (-1,))
    array = np.random.default_rng(1).random((2, 100_000)).astype(np.float32)

    async def test(engine: EngineUnderTest) -> None:
        request = infer_request(array, id="big")
        response = answer(await rpc(engine, "ModelInfer", request), service_pb2.ModelInferResponse)
        assert response.raw_output_contents[0] == array.tobytes()
        assert response.id == "big"

    run_engine(tmp_path, test=test)


def test_cutting_refuses_what_protobuf_would() -> None:
    good = infer_request(np.zeros((1, 70_000), dtype=np.float32)).SerializeToString()
    request, raw = parse_infer(good)
    assert request.model_name == "m"
    assert [len(item) for item in raw] == [280_000]
    for bad in (good[:-1], good + b"\x3a", good + b"\x0b", good + b"\x3a" + b"\xff" * 11, good + b"\x09123"):
        with pytest.raises(TollwayError) as caught:
            parse_infer(bad)
        assert caught.value.code is Code.BAD_REQUEST


def test_a_model_that_is_not_ready_says_when_to_come_back(tmp_path: Path) -> None:
    write_identity(tmp_path, "m", "FP32", (2,))
    (tmp_path / "m" / "1" / "model.onnx").write_bytes(b"nonsense")

    async def test(engine: EngineUnderTest) -> None:
        exchange = await rpc(engine, "ModelInfer", infer_request())
        assert refusal(exchange)[0] is Grpc.UNAVAILABLE
        assert exchange.trailers[b"retry-after"] == b"1"
        ready = await rpc(engine, "ModelReady", service_pb2.ModelReadyRequest(name="m"))
        assert not answer(ready, service_pb2.ModelReadyResponse).ready
        health = await rpc(engine, "/grpc.health.v1.Health/Check", frame(b""))
        assert health.body == frame(b"\x08\x02")

    run_engine(tmp_path, test=test)
