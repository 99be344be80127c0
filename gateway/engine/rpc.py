"""HOT PATH. Owns the gRPC methods of GRPCInferenceService and grpc.health.v1: from a path to an answer.

All are unary here: one message in, one out. A reply is one write: headers, message and status together.
"""

from collections.abc import Callable
from typing import Any, Final

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from gateway.call import Data
from gateway.engine.admin import (
    Admin,
    log_answer,
    parameter_value,
    shared_memory_refused,
    trace_answer,
    trace_changes,
)
from gateway.engine.aliases import is_alias
from gateway.engine.codec_grpc import GrpcReplyWriter, decode_infer, parse_infer
from gateway.engine.heads import HeadFacts
from gateway.engine.messages import fill_message
from gateway.engine.metadata import model_metadata, server_metadata, shown_config
from gateway.engine.model import ModelVersion
from gateway.engine.offload import Coder
from gateway.engine.registry import Registry, model_stats
from gateway.engine.service import BODY_BYTES_MAX, EngineCall
from gateway.engine.streams import GrpcStream
from gateway.engine.tensors import Array
from gateway.errors import Code, TollwayError
from gateway.net.exchange import Exchange
from gateway.wire.grpc import CONTENT_TYPE, PREFIX_BYTES, GrpcFault, frame, read_flag, status_trailers
from gateway.wire.status import grpc_status

_SERVICE: Final = b"/inference.GRPCInferenceService/"
_INFER: Final = _SERVICE + b"ModelInfer"
_SHARED_MEMORY: Final = frozenset(
    _SERVICE + kind + b"SharedMemory" + verb
    for kind in (b"System", b"Cuda")
    for verb in (b"Status", b"Register", b"Unregister")
)
_HEALTH: Final = b"/grpc.health.v1.Health/Check"
#: Services whose health may be asked for by name; "" is the server.
_HEALTH_SERVICES: Final = frozenset({"", "inference.GRPCInferenceService"})
#: grpc.health.v1.HealthCheckResponse with status SERVING and NOT_SERVING: two constants are no reason for a package.
_SERVING: Final = b"\x08\x01"
_NOT_SERVING: Final = b"\x08\x02"
_OK: Final = [(b"grpc-status", b"0")]


class RpcServer:
    """Answers gRPC calls."""

    def __init__(self, registry: Registry, coder: Coder, *, version: str, body_bytes_max: int = BODY_BYTES_MAX) -> None:
        self._registry = registry
        self._coder = coder
        self._server_metadata = server_metadata(version)
        self._body_bytes_max = body_bytes_max
        methods: dict[str, tuple[Any, Callable[[Any], Any]]] = {
            "ServerLive": (service_pb2.ServerLiveRequest, lambda _: service_pb2.ServerLiveResponse(live=True)),
            "ServerReady": (service_pb2.ServerReadyRequest, self._server_ready),
            "ModelReady": (service_pb2.ModelReadyRequest, self._model_ready),
            "ServerMetadata": (service_pb2.ServerMetadataRequest, self._metadata),
            "ModelMetadata": (service_pb2.ModelMetadataRequest, self._model_metadata),
            "ModelConfig": (service_pb2.ModelConfigRequest, self._model_config),
            "ModelStatistics": (service_pb2.ModelStatisticsRequest, self._model_statistics),
            "RepositoryIndex": (service_pb2.RepositoryIndexRequest, self._index),
        }
        admin = Admin(registry)
        methods["TraceSetting"] = (
            service_pb2.TraceSettingRequest,
            lambda request: trace_answer(admin.trace(request.model_name, trace_changes(request))),
        )
        methods["LogSettings"] = (
            service_pb2.LogSettingsRequest,
            lambda request: log_answer(admin.log({name: parameter_value(v) for name, v in request.settings.items()})),
        )
        self._methods = {_SERVICE + name.encode(): method for name, method in methods.items()}
        self._observer = registry.observer
        self._changes: dict[bytes, tuple[Any, Any, Any]] = {
            _SERVICE + b"RepositoryModelLoad": (
                service_pb2.RepositoryModelLoadRequest,
                admin.load,
                service_pb2.RepositoryModelLoadResponse(),
            ),
            _SERVICE + b"RepositoryModelUnload": (
                service_pb2.RepositoryModelUnloadRequest,
                admin.unload,
                service_pb2.RepositoryModelUnloadResponse(),
            ),
        }

    def serve(self, call: EngineCall, body: Data) -> None:
        """See `ProtocolServer`."""
        path = call.facts.method
        if path in _SHARED_MEMORY:
            raise shared_memory_refused()
        if path not in (_INFER, _HEALTH) and path not in self._methods and path not in self._changes:
            raise TollwayError(Code.NOT_FOUND, f"method {path[:200].decode('latin-1')} is not served by this engine")
        is_compressed, message = _unframe(body)
        if not is_compressed:
            self._serve_message(call, message)
            return
        coding = call.facts.coding
        if not coding:
            raise TollwayError(Code.BAD_REQUEST, "compressed message without grpc-encoding")
        self._coder.inflate(
            message,
            coding,
            self._body_bytes_max,
            lambda plain: call.attempt(lambda: self._serve_message(call, plain)),
            call.fail,
        )

    def open_stream(self, exchange: Exchange, facts: HeadFacts, deadline_ns: int) -> GrpcStream:
        """See `StreamServer`."""
        return GrpcStream(
            self._registry,
            self._writer_of,
            exchange,
            facts,
            deadline_ns=deadline_ns,
            message_bytes_max=self._body_bytes_max,
        )

    def refuse(self, call: EngineCall, error: TollwayError) -> None:
        """See `ProtocolServer`: a trailers-only reply."""
        trailers = status_trailers(
            grpc_status(error.code), error.message, call.facts.extra, retry_after_ms=error.retry_after_ms
        )
        call.reply(200, [CONTENT_TYPE], b"", trailers)

    def _serve_message(self, call: EngineCall, message: Data) -> None:
        path = call.facts.method
        if path == _INFER:
            self._infer(call, message)
            return
        if path == _HEALTH:
            call.reply(200, [CONTENT_TYPE], frame(self._health(message)), _OK)
            return
        if path in self._changes:
            self._change(call, message)
            return
        request_type, answer = self._methods[path]
        request = _parse(request_type, message)
        call.reply(200, [CONTENT_TYPE], frame(answer(request).SerializeToString()), _OK)

    def _change(self, call: EngineCall, message: Data) -> None:
        request_type, change, answer = self._changes[call.facts.method]
        request = _parse(request_type, message)
        parameters = {name: parameter_value(request.parameters[name]) for name in request.parameters}
        body = frame(answer.SerializeToString())
        change(request.model_name, parameters, lambda: call.reply(200, [CONTENT_TYPE], body, _OK), call.fail)

    def _infer(self, call: EngineCall, message: Data) -> None:
        message_request, raw = parse_infer(message)
        version = self._registry.get(message_request.model_name, message_request.model_version)
        if message_request.model_version:
            call.is_aliased = is_alias(message_request.model_version)
        servable = version.servable()
        call.infer(version, servable, decode_infer(version.interface, message_request, raw))

    def finish(self, call: EngineCall, outputs: list[Array]) -> None:
        """See `ProtocolServer`."""
        version, request = call.version, call.request
        assert version is not None
        assert request is not None
        body = frame(self._writer_of(version).write(request, outputs))
        if self._observer.is_on:
            assert call.work is not None
            self._observer.note(version, request, call.work)
        call.reply(200, [CONTENT_TYPE, *call.cost_headers()], body, _OK)

    def _writer_of(self, version: ModelVersion) -> GrpcReplyWriter:
        writer: GrpcReplyWriter | None = version.rpc_writer
        if writer is None:
            writer = version.rpc_writer = GrpcReplyWriter(version)
        return writer

    def _health(self, message: Data) -> bytes:
        # HealthCheckRequest is a message with one string, field 1, as ModelReadyRequest begins with one.
        service = _parse(service_pb2.ModelReadyRequest, message).name
        if service not in _HEALTH_SERVICES:
            # grpc.health.v1: Check answers NOT_FOUND for a service it does not know.
            raise TollwayError(Code.MODEL_NOT_FOUND, f"service '{service[:200]}' is unknown")
        return _SERVING if self._registry.is_ready else _NOT_SERVING

    def _server_ready(self, _request: Any) -> Any:
        return service_pb2.ServerReadyResponse(ready=self._registry.is_ready)

    def _model_ready(self, request: Any) -> Any:
        version = self._registry.get(request.name, request.version)
        return service_pb2.ModelReadyResponse(ready=version.is_ready)

    def _metadata(self, _request: Any) -> Any:
        return service_pb2.ServerMetadataResponse(**self._server_metadata)

    def _get_ready(self, request: Any) -> ModelVersion:
        version = self._registry.get(request.name, request.version)
        if not version.is_ready:
            raise version.not_ready()
        return version

    def _model_metadata(self, request: Any) -> Any:
        answer = model_metadata(self._get_ready(request), self._registry)
        return fill_message(service_pb2.ModelMetadataResponse(), answer)

    def _model_config(self, request: Any) -> Any:
        return service_pb2.ModelConfigResponse(config=shown_config(self._get_ready(request)))

    def _model_statistics(self, request: Any) -> Any:
        if not request.name:
            versions = list(self._registry.versions())
        elif request.version:
            versions = [self._registry.get(request.name, request.version)]
        else:
            versions = self._registry.versions_of(request.name)
        return fill_message(service_pb2.ModelStatisticsResponse(), model_stats(versions))

    def _index(self, request: Any) -> Any:
        index = self._registry.index(is_ready_only=request.ready)
        return fill_message(service_pb2.RepositoryIndexResponse(), {"models": index})


def _unframe(body: Data) -> tuple[bool, Data]:
    """The one message of a unary call.

    Raises:
        TollwayError: bad_request, where the body is not exactly one message.
    """
    if len(body) < PREFIX_BYTES:
        raise TollwayError(Code.BAD_REQUEST, "the call has no message")
    view = memoryview(body)
    try:
        is_compressed = read_flag(view[0])
    except GrpcFault as error:
        raise TollwayError(Code.BAD_REQUEST, error.message) from error
    if int.from_bytes(view[1:PREFIX_BYTES], "big") != len(body) - PREFIX_BYTES:
        raise TollwayError(Code.BAD_REQUEST, "the call is not exactly one message")
    return is_compressed, view[PREFIX_BYTES:]


def _parse(message_type: Any, message: Data) -> Any:
    try:
        return message_type.FromString(message)
    except DecodeError as error:
        raise TollwayError(Code.BAD_REQUEST, f"malformed {message_type.DESCRIPTOR.name}") from error
