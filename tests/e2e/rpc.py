"""gRPC calls as bytes and metadata: what a stock client hides is looked at here."""

from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.duration_pb2 import Duration
from tritonclient.grpc import service_pb2

INFER = "/inference.GRPCInferenceService/ModelInfer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How a call ended; metadata as plain dicts."""

    code: grpc.StatusCode
    details: str
    initial: dict[str, Any]
    trailing: dict[str, Any]
    message: bytes


def infer_request(rows: int = 2, model: str = "mlp", size: int = 64) -> bytes:
    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name="x", datatype="FP32", shape=[rows, size])
    request.raw_input_contents.append(b"\0\0\0\x3f" * rows * size)
    data: bytes = request.SerializeToString()
    return data


def call(address: str, message: bytes, *metadata: tuple[str, str], method: str = INFER) -> Answer:
    """One unary call on a channel of its own."""
    with grpc.insecure_channel(address) as channel:
        done = channel.unary_unary(method).future(message, metadata=metadata, timeout=60)
        error = done.exception()
        return Answer(
            code=done.code(),
            details=done.details() or "",
            initial={item.key: item.value for item in done.initial_metadata()},
            trailing={item.key: item.value for item in done.trailing_metadata()},
            message=b"" if error is not None else done.result(),
        )


def retry_delay_s(details: bytes) -> float:
    """The RetryInfo inside `grpc-status-details-bin` (google.rpc.Status, google/rpc/status.proto)."""
    file = descriptor_pb2.FileDescriptorProto(name="own_status.proto", package="own", syntax="proto3")
    file.dependency.append("google/protobuf/any.proto")
    status = file.message_type.add(name="Status")
    field = descriptor_pb2.FieldDescriptorProto
    status.field.add(name="code", number=1, type=field.TYPE_INT32, label=field.LABEL_OPTIONAL)
    status.field.add(name="message", number=2, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    status.field.add(
        name="details", number=3, type=field.TYPE_MESSAGE, label=field.LABEL_REPEATED, type_name="google.protobuf.Any"
    )
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(any_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    parsed: Any = message_factory.GetMessageClass(pool.FindMessageTypeByName("own.Status")).FromString(details)
    assert parsed.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    [info] = [one for one in parsed.details if one.type_url == "type.googleapis.com/google.rpc.RetryInfo"]
    assert info.value[:1] == b"\x0a", "RetryInfo.retry_delay is field 1"
    delay = Duration.FromString(info.value[2:])
    return float(delay.seconds + delay.nanos / 1e9)
