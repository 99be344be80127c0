"""A real grpc client without .proto files: learns the services by reflection, then calls a model by what it learnt."""

import queue
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.e2e.stage import Stage
from tests.unit.wire.reflection_source import SERVICES, reflection_file

VERSIONS = ("v1", "v1alpha")


class Learner:
    """One reflection stream, asked one question after another, as grpcurl does."""

    def __init__(self, channel: grpc.Channel, version: str, metadata: Any) -> None:
        pool = descriptor_pool.DescriptorPool()
        pool.Add(reflection_file(version))
        package = f"grpc.reflection.{version}"
        request, response = (
            message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.ServerReflection{name}"))
            for name in ("Request", "Response")
        )
        self.request: Any = request
        self._questions: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.stream = channel.stream_stream(
            f"/{package}.ServerReflection/ServerReflectionInfo",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )(iter(self._questions.get, None), metadata=metadata, timeout=60)
        self._answers: Iterator[Any] = iter(self.stream)

    def ask(self, **question: Any) -> Any:
        self._questions.put(self.request(**question))
        return next(self._answers)

    def close(self) -> grpc.StatusCode:
        self._questions.put(None)
        with pytest.raises(StopIteration):
            next(self._answers)
        code: grpc.StatusCode = self.stream.code()
        return code


@pytest.fixture(scope="module")
def channel(stage: Stage) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(stage.tollway.grpc_address) as opened:
        yield opened


@pytest.mark.parametrize("version", VERSIONS)
def test_a_client_without_protos_learns_the_service_and_calls_a_model(
    stage: Stage, channel: grpc.Channel, version: str
) -> None:
    auth = tuple(stage.auth.items())
    learner = Learner(channel, version, auth)
    services = learner.ask(list_services="").list_services_response.service
    assert tuple(one.name for one in services) == SERVICES
    pool = descriptor_pool.DescriptorPool()
    answer = learner.ask(file_containing_symbol="inference.GRPCInferenceService").file_descriptor_response
    for proto in reversed(answer.file_descriptor_proto):  # imports first
        pool.Add(descriptor_pb2.FileDescriptorProto.FromString(proto))
    assert learner.ask(file_by_filename="nix").error_response.error_code == 5
    assert learner.close() is grpc.StatusCode.OK
    method = pool.FindServiceByName("inference.GRPCInferenceService").FindMethodByName("ModelInfer")
    request_type, reply_type = (message_factory.GetMessageClass(one) for one in (method.input_type, method.output_type))
    request = json_format.ParseDict(
        {
            "model_name": "echo",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "contents": {"fp32_contents": [1.5, 2.5]}}],
        },
        request_type(),
    )
    call = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        request_serializer=request_type.SerializeToString,
        response_deserializer=reply_type.FromString,
    )
    replies: list[Any] = []

    def is_answered() -> bool:
        try:
            replies.append(call(request, metadata=auth, timeout=60))
        except grpc.RpcError as error:
            # Beside load a probe of the engine may be late, and the worker holds it to be down for a second.
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return False
        return True

    stage.tollway.wait(is_answered, "an answer of echo")
    reply = json_format.MessageToDict(replies[0])
    assert (reply["modelName"], reply["outputs"][0]["shape"]) == ("echo", ["1", "2"])


def test_reflection_needs_a_key(channel: grpc.Channel) -> None:
    learner = Learner(channel, "v1", ())
    with pytest.raises(grpc.RpcError):
        learner.ask(list_services="")
    assert learner.stream.code() is grpc.StatusCode.UNAUTHENTICATED


def test_stock_health_client_checks_and_watches_without_a_key(stage: Stage, channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    serving = health_pb2.HealthCheckResponse.SERVING
    for service in ("", "inference.GRPCInferenceService"):
        request = health_pb2.HealthCheckRequest(service=service)
        # Beside load the engine may be held to be down for a second: what comes is awaited.
        stage.tollway.wait(lambda request=request: stub.Check(request, timeout=60).status == serving, "health")  # type: ignore[misc]
        watch = stub.Watch(request, timeout=60)
        assert any(answer.status == serving for answer in watch)
        watch.cancel()
    unknown = health_pb2.HealthCheckRequest(service="nix")
    with pytest.raises(grpc.RpcError) as refused:
        stub.Check(unknown, timeout=60)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    watch = stub.Watch(unknown, timeout=60)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()
