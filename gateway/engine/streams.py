"""HOT PATH. Owns ModelStreamInfer: many requests in, any number of responses each, on one gRPC stream.

Responses of different requests mix; each carries its request's id and `triton_final_response`. Back-pressure both ways:
a caller with too many open requests is not read on, one who does not read makes the models wait (`Work.taken`). A
fault of one request is a message in the stream; with metadata `triton_grpc_error: true` it ends the stream with its
status. Callers that leave withdraw all that is open.
"""

import logging
from collections.abc import Callable
from typing import Any, Final

from google.protobuf.message import DecodeError

from gateway.call import Data, Headers
from gateway.engine.aliases import is_alias, version_header
from gateway.engine.body import inflate
from gateway.engine.codec_grpc import GrpcReplyWriter, decode_infer, parse_infer
from gateway.engine.heads import HeadFacts
from gateway.engine.inference import InferRequest, Wanted
from gateway.engine.model import ModelVersion
from gateway.engine.registry import Registry
from gateway.engine.tensors import Array
from gateway.engine.work import Servable, Work
from gateway.errors import Code, TollwayError
from gateway.net.exchange import Exchange
from gateway.wire.grpc import CONTENT_TYPE, GrpcFault, MessageReader, frame, status_trailers, varint
from gateway.wire.status import Grpc, grpc_status

_LOG: Final = logging.getLogger("tollway.engine")
#: Requests of one stream under way; more are not read until one has ended.
OPEN_MAX: Final = 256
#: Parameter `triton_final_response` of a ModelInferResponse (field 4): an entry of key and InferParameter{bool_param}.
_KEY: Final = b"\x0a\x15triton_final_response\x12\x02\x08"
_NOT_FINAL: Final = b"\x22\x1b" + _KEY + b"\x00"
_FINAL: Final = b"\x22\x1b" + _KEY + b"\x01"


class _Asked:
    """One request of the stream."""

    __slots__ = ("held", "request", "servable", "version", "wanted", "wants_empty_final", "work", "writer")

    def __init__(
        self, request: InferRequest, version: ModelVersion, servable: Servable, writer: GrpcReplyWriter
    ) -> None:
        self.request = request
        self.version = version
        self.writer = writer
        outputs = range(len(version.interface.outputs))
        self.wanted = [Wanted(n, True, 0) for n in outputs] if request.outputs is None else request.outputs
        self.servable = servable
        self.work: Work | None = None
        self.wants_empty_final = False
        #: Responses that wait for the caller to read.
        self.held = 0


class GrpcStream:
    """One stream; made when its head has arrived, and its exchange's `call` until its end."""

    def __init__(
        self,
        registry: Registry,
        writer_of: Callable[[ModelVersion], GrpcReplyWriter],
        exchange: Exchange,
        facts: HeadFacts,
        *,
        deadline_ns: int,
        message_bytes_max: int,
    ) -> None:
        self._registry = registry
        self._writer_of = writer_of
        self._exchange = exchange
        self._coding = facts.coding
        self._facts = facts
        self._deadline_ns = deadline_ns
        self._message_bytes_max = message_bytes_max
        self._reader = MessageReader(message_bytes_max)
        self._open: dict[Work, _Asked] = {}
        self._is_grpc_error = (b"triton_grpc_error", b"true") in exchange.head.headers
        self._is_begun = False
        #: What the stream's alias stands for, where it names one.
        self._aliased: ModelVersion | None = None
        self._is_over = False
        self._is_request_ended = False
        self._is_paused = False
        self._parts = 0
        self._compute_ns = 0
        self._queue_ns = 0

    # -- from the connection ------------------------------------------------------------------------------------------

    def on_body(self, data: Data) -> None:
        """Request bytes."""
        try:
            messages = self._reader.feed(data)
        except GrpcFault as fault:
            self._end(status_trailers(fault.status, fault.message))
            return
        for is_compressed, message in messages:
            if self._is_over:
                return
            self._attempt(message, is_compressed=is_compressed)

    def on_end(self) -> None:
        """The caller sends no more requests."""
        self._is_request_ended = True
        if not self._reader.is_between_messages:
            self._end(status_trailers(Grpc.INTERNAL, "the stream ends inside a message"))
            return
        self._end_if_done()

    def on_abort(self) -> None:
        """The caller is gone."""
        self._is_over = True
        self._withdraw()

    def on_writable(self) -> None:
        """The caller reads again: what was held has gone on."""
        for work, asked in list(self._open.items()):
            held, asked.held = asked.held, 0
            if held:
                work.taken(held)

    # -- requests -----------------------------------------------------------------------------------------------------

    def _attempt(self, message: bytes, *, is_compressed: bool) -> None:
        request_id = ""
        try:
            if is_compressed:
                if not self._coding:
                    raise TollwayError(Code.BAD_REQUEST, "compressed message without grpc-encoding")
                message = inflate(message, self._coding, self._message_bytes_max)
            parsed, raw = parse_infer(message)
            request_id = parsed.id
            self._begin(parsed, raw)
        except TollwayError as error:
            self._fault(error, _text(3, request_id))
        except (DecodeError, ValueError, TypeError) as error:
            _LOG.error("stream_request_failed", exc_info=error)
            self._fault(TollwayError(Code.INTERNAL, "internal error"), _text(3, request_id))

    def _begin(self, parsed: Any, raw: list[Data]) -> None:
        """Raises: TollwayError."""
        version = self._registry.get(parsed.model_name, parsed.model_version)
        if parsed.model_version and is_alias(parsed.model_version):
            # One record tells what a stream was: its alias stands for one version to its end.
            version = self._aliased = self._aliased or version
        servable = version.servable()
        request = decode_infer(version.interface, parsed, raw)
        context = request.context(version.interface)
        accepted = version.interface.accept(request.tensors)
        asked = _Asked(request, version, servable, self._writer_of(version))
        asked.wants_empty_final = context.wants_empty_final
        work = asked.work = Work(
            accepted.feeds,
            self._on_result,
            self._on_error,
            rows=accepted.rows,
            signature=accepted.signature,
            deadline_ns=self._deadline_ns,
            timeout_ns=request.timeout_ns,
            nbytes=accepted.nbytes,
            context=context,
            on_part=self._on_part if version.is_decoupled else None,
            tenant=self._facts.tenant,
            weight=self._facts.weight,
            priority_best=self._facts.priority_best,
        )
        self._open[work] = asked
        if len(self._open) >= OPEN_MAX and not self._is_paused:
            self._is_paused = True
            self._exchange.pause()
        servable.submit(work)

    # -- responses ----------------------------------------------------------------------------------------------------

    def _on_part(self, work: Work, part: list[Array | None] | TollwayError) -> None:
        asked = self._open[work]
        if isinstance(part, TollwayError):
            self._fault(part, self._named(asked) + _NOT_FINAL)
        else:
            self._send_outputs(asked, part, _NOT_FINAL)
        if self._exchange.is_writable:
            work.taken(1)
        else:
            asked.held += 1

    def _on_result(self, work: Work, outputs: list[Array]) -> None:
        asked = self._close(work)
        if not asked.version.is_decoupled:
            self._send_outputs(asked, list(outputs), _FINAL)
        elif asked.wants_empty_final:
            self._send(_message(2, self._named(asked) + _FINAL))
        self._end_if_done()

    def _on_error(self, work: Work, error: TollwayError) -> None:
        asked = self._close(work)
        self._fault(error, self._named(asked) + _FINAL)
        self._end_if_done()

    def _close(self, work: Work) -> _Asked:
        asked = self._open.pop(work)
        self._compute_ns += work.compute_ns
        self._queue_ns += work.queue_ns
        if self._is_paused and len(self._open) < OPEN_MAX // 2:
            self._is_paused = False
            # Not within the callbacks of the model that has just answered.
            self._exchange.resume()
        return asked

    def _send_outputs(self, asked: _Asked, outputs: list[Array | None], parameters: bytes) -> None:
        wanted = asked.wanted
        for item in wanted:
            if outputs[item.position] is None:
                wanted = [item for item in wanted if outputs[item.position] is not None]
                break
        try:
            body = asked.writer.write_wanted(asked.request.id, wanted, outputs)
        except TollwayError as error:
            self._fault(error, self._named(asked) + parameters)
            return
        self._parts += 1
        # Parameters first: a proxy that counts looks at how a message begins.
        self._send(_message(2, parameters + body))

    @staticmethod
    def _named(asked: _Asked) -> bytes:
        return _text(1, asked.version.name) + _text(3, asked.request.id)

    def _fault(self, error: TollwayError, response: bytes) -> None:
        """A message in the stream, or the end of the stream."""
        if self._is_grpc_error:
            trailers = status_trailers(grpc_status(error.code), error.message, retry_after_ms=error.retry_after_ms)
            self._end(trailers)
        else:
            self._send(_text(1, error.message) + _message(2, response))

    def _send(self, message: bytes) -> None:
        if self._is_over:
            return
        if not self._is_begun:
            self._is_begun = True
            aliased = [] if self._aliased is None else [version_header(self._aliased)]
            self._exchange.send_head(200, [CONTENT_TYPE, *aliased])
        self._exchange.send_body(frame(message))

    # -- end ----------------------------------------------------------------------------------------------------------

    def _end_if_done(self) -> None:
        if self._is_request_ended and not self._open:
            self._end([(b"grpc-status", b"0")])

    def _end(self, trailers: Headers) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._withdraw()
        exchange = self._exchange
        exchange.call = None
        costs = [
            (b"tollway-rows", b"%d" % self._parts),
            (b"tollway-compute-ns", b"%d" % self._compute_ns),
            (b"tollway-queue-ns", b"%d" % self._queue_ns),
        ]
        if self._is_begun:
            exchange.send_end(trailers + costs)
        else:
            exchange.reply(200, [CONTENT_TYPE], b"", trailers + costs)

    def _withdraw(self) -> None:
        opened, self._open = self._open, {}
        for work, asked in opened.items():
            asked.servable.cancel(work)


def _message(number: int, body: bytes) -> bytes:
    return bytes((number << 3 | 2,)) + varint(len(body)) + body


def _text(number: int, value: str) -> bytes:
    return _message(number, value.encode()) if value else b""
