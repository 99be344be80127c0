"""HOT PATH. Owns the application that a listener serves: gathers a request, hands it to its protocol, ends it once.

Every call ends in one reply: the protocol's own, or a refusal by the status table. A caller that leaves withdraws its
work. A defect of ours becomes `internal`; its text goes to the log only.
"""

import logging
from collections.abc import Callable
from typing import Final, Protocol

from gateway.call import Data, Headers
from gateway.engine.aliases import version_header
from gateway.engine.body import IN_PLACE_BYTES, Body, too_large
from gateway.engine.heads import HeadFacts, facts_of
from gateway.engine.inference import InferRequest
from gateway.engine.interface import Accepted
from gateway.engine.model import ModelVersion
from gateway.engine.tensors import Array
from gateway.engine.work import Servable, Work
from gateway.errors import Code, TollwayError
from gateway.net.exchange import Exchange
from gateway.net.h1_inbound import H1Exchange
from gateway.wire.decimal import decimal

_LOG: Final = logging.getLogger("tollway.engine")
MIB: Final = 1 << 20
STREAM_INFER: Final = b"/inference.GRPCInferenceService/ModelStreamInfer"
BODY_BYTES_MAX: Final = 256 * MIB
BUFFERED_BYTES_MAX: Final = 1024 * MIB


class ProtocolServer(Protocol):
    """REST or gRPC."""

    def serve(self, call: "EngineCall", body: Data) -> None:
        """Answer now, or submit a work that will.

        Raises:
            TollwayError: a refusal to send.
        """

    def finish(self, call: "EngineCall", outputs: list[Array]) -> None:
        """Send the outputs of the call's work.

        Raises:
            TollwayError: they have no such form as asked for.
        """

    def refuse(self, call: "EngineCall", error: TollwayError) -> None:
        """Reply with a fault."""


class Writer(Protocol):
    """Who sends a reply in parts."""

    def on_writable(self) -> None:
        """The caller reads again."""


class StreamCall(Writer, Protocol):
    """A call whose request comes in parts as well: a gRPC stream."""

    def on_body(self, data: Data) -> None: ...

    def on_end(self) -> None: ...

    def on_abort(self) -> None: ...


class StreamServer(ProtocolServer, Protocol):
    """gRPC."""

    def open_stream(self, exchange: Exchange, facts: HeadFacts, deadline_ns: int) -> StreamCall:
        """The stream that a head of ModelStreamInfer begins."""


class EngineCall:
    """One exchange's progress. `deadline_ns` is monotonic, 0 for none; `is_over`: replied, or the caller has left."""

    __slots__ = (
        "body",
        "deadline_ns",
        "exchange",
        "facts",
        "is_aliased",
        "is_over",
        "request",
        "servable",
        "server",
        "stream",
        "version",
        "work",
    )

    def __init__(
        self, exchange: Exchange, facts: HeadFacts, server: ProtocolServer, body: Body, deadline_ns: int
    ) -> None:
        self.exchange = exchange
        self.facts = facts
        #: The call named an alias: its reply says which version that was, since that is what is recorded.
        self.is_aliased = False
        self.server = server
        self.body = body
        self.deadline_ns = deadline_ns
        self.is_over = False
        self.version: ModelVersion | None = None
        self.request: InferRequest | None = None
        self.work: Work | None = None
        self.servable: Servable | None = None
        #: Of a call whose reply may come in parts: who is told that the caller reads again.
        self.stream: Writer | None = None

    def infer(
        self, version: ModelVersion, servable: Servable, request: InferRequest, accepted: Accepted | None = None
    ) -> None:
        """Submit what was asked for; `accepted`: its tensors, where they are checked already.

        Raises:
            TollwayError: invalid_tensor; not_implemented, for a decoupled model.
        """
        if version.is_decoupled:
            message = f"model '{version.name}' is decoupled: call it by ModelStreamInfer or generate_stream"
            raise TollwayError(Code.NOT_IMPLEMENTED, message)
        if accepted is None:
            accepted = version.interface.accept(request.tensors)
        self.version = version
        self.request = request
        self.servable = servable
        work = self.work = Work(
            accepted.feeds,
            self._on_result,
            self._on_error,
            rows=accepted.rows,
            signature=accepted.signature,
            deadline_ns=self.deadline_ns,
            timeout_ns=request.timeout_ns,
            nbytes=accepted.nbytes,
            tenant=self.facts.tenant,
            weight=self.facts.weight,
            priority_best=self.facts.priority_best,
        )
        if version.reads_context:
            work.context = request.context(version.interface)
        servable.submit(work)

    def _on_result(self, _work: Work, outputs: list[Array]) -> None:
        if self.is_over:
            return
        try:
            self.server.finish(self, outputs)
        except Exception as error:  # noqa: BLE001 - as in `attempt`, without its extra call
            self.fail(error)

    def _on_error(self, _work: Work, error: TollwayError) -> None:
        self.fail(error)

    def attempt(self, action: Callable[[], None]) -> None:
        """Do a part of the call's work; what it raises ends the call."""
        try:
            action()
        except Exception as error:  # noqa: BLE001 - a defect of ours ends this call, not the connection; it is logged
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """End the call with a fault, unless it is over."""
        if self.is_over:
            return
        if not isinstance(error, TollwayError):
            _LOG.error("call_failed target=%s", self.exchange.head.target[:200], exc_info=error)
            error = TollwayError(Code.INTERNAL, "internal error")
        self.server.refuse(self, error)

    def reply(self, status: int, headers: Headers, body: Data, trailers: Headers | None = None) -> None:
        """The one reply of the call; nothing, if the caller has left."""
        if not self.is_over:
            self.is_over = True
            # A call, its exchange and its work know each other; untied, they go without the garbage collector.
            self.work = None
            self.exchange.call = None
            self.exchange.reply(status, headers, body, trailers)

    def reply_result(self, headers: Headers, lines: bytes, body: bytes) -> None:
        """The reply of an inference over HTTP, with its costs: `lines` are `headers` as HTTP/1.1 has them."""
        exchange = self.exchange
        if self.is_aliased or not isinstance(exchange, H1Exchange):
            self.reply(200, headers + self.cost_headers(), body)
        elif not self.is_over:
            work = self.work
            assert work is not None
            self.is_over = True
            self.work = None
            exchange.call = None
            exchange.reply_lines(
                200,
                b"%btollway-rows: %b\r\ntollway-compute-ns: %b\r\ntollway-queue-ns: %b\r\n"
                % (lines, decimal(work.rows), decimal(work.compute_ns), decimal(work.queue_ns)),
                body,
            )

    def cost_headers(self) -> Headers:
        """What the gateway bills and shows of this call's work."""
        work = self.work
        assert work is not None
        costs = [
            (b"tollway-rows", b"%d" % work.rows),
            (b"tollway-compute-ns", b"%d" % work.compute_ns),
            (b"tollway-queue-ns", b"%d" % work.queue_ns),
        ]
        if self.is_aliased and self.version is not None:
            costs.append(version_header(self.version))
        return costs


class Engine:
    """The `Application` (gateway.net.exchange)."""

    def __init__(
        self,
        http: ProtocolServer,
        grpc: StreamServer,
        now_ns: Callable[[], int],
        *,
        body_bytes_max: int = BODY_BYTES_MAX,
        buffered_bytes_max: int = BUFFERED_BYTES_MAX,
    ) -> None:
        self._http = http
        self._grpc = grpc
        self._now_ns = now_ns
        self._body_bytes_max = body_bytes_max
        self._buffered_bytes_max = buffered_bytes_max
        #: Of requests that are not complete yet; complete ones are bounded by their model's queue.
        self.buffered_bytes = 0

    def on_head(self, exchange: Exchange) -> None:
        head = exchange.head
        facts = facts_of(head)
        bytes_max = self._body_bytes_max
        body = Body(min(head.content_length, bytes_max), bytes_max, max(facts.header_bytes, 0))
        server = self._grpc if head.is_grpc else self._http
        deadline_ns = self._now_ns() + facts.remaining_ns if facts.remaining_ns else 0
        if head.is_grpc and facts.fault is None and head.target == STREAM_INFER:
            exchange.call = self._grpc.open_stream(exchange, facts, deadline_ns)
            return
        call = exchange.call = EngineCall(exchange, facts, server, body, deadline_ns)
        fault = facts.fault
        if fault is None and head.content_length > bytes_max:
            fault = too_large(bytes_max)
        if fault is None and self.buffered_bytes > self._buffered_bytes_max:
            fault = TollwayError(Code.OVERLOADED, "too many request bytes are held", retry_after_ms=1000)
        if fault is not None:
            call.fail(fault)
        elif head.expects_continue:
            exchange.send_continue()

    def on_request(self, exchange: Exchange, body: bytes) -> None:
        """A whole request at once (the usual case); what is not plain goes step by step."""
        head = exchange.head
        facts: HeadFacts | None = head.memo
        if facts is None:
            facts = facts_of(head)
        if (
            facts.fault is not None
            or len(body) > IN_PLACE_BYTES
            or self.buffered_bytes > self._buffered_bytes_max
            or (head.is_grpc and head.target == STREAM_INFER)
        ):
            self._step_by_step(exchange, body)
            return
        server = self._grpc if head.is_grpc else self._http
        deadline_ns = self._now_ns() + facts.remaining_ns if facts.remaining_ns else 0
        call = exchange.call = EngineCall(exchange, facts, server, _EMPTY, deadline_ns)
        try:
            server.serve(call, body)
        except Exception as error:  # noqa: BLE001 - as in `attempt`, without its extra call
            call.fail(error)

    def _step_by_step(self, exchange: Exchange, body: bytes) -> None:
        self.on_head(exchange)
        self.on_body(exchange, body)
        self.on_end(exchange)

    def on_body(self, exchange: Exchange, data: Data) -> None:
        call: EngineCall | StreamCall | None = exchange.call
        if call is None:
            return
        if not isinstance(call, EngineCall):
            call.on_body(data)
            return
        try:
            call.body.add(data)
        except TollwayError as error:
            self._release(call)
            call.fail(error)
        else:
            self.buffered_bytes += len(data)

    def body_space(self, exchange: Exchange) -> memoryview | None:
        call: EngineCall | None = exchange.call
        return None if call is None or call.is_over else call.body.space()

    def on_body_filled(self, exchange: Exchange, count: int) -> None:
        call: EngineCall | None = exchange.call
        if call is not None:
            call.body.size += count
            self.buffered_bytes += count

    def on_end(self, exchange: Exchange) -> None:
        call: EngineCall | StreamCall | None = exchange.call
        if call is None:
            return
        if not isinstance(call, EngineCall):
            call.on_end()
            return
        body = call.body.take()
        self._release(call)
        try:
            call.server.serve(call, body)
        except Exception as error:  # noqa: BLE001 - as in `attempt`, without its extra call
            call.fail(error)

    def on_abort(self, exchange: Exchange) -> None:
        call: EngineCall | StreamCall | None = exchange.call
        if call is None:
            return
        exchange.call = None
        if not isinstance(call, EngineCall):
            call.on_abort()
            return
        call.is_over = True
        self._release(call)
        if call.work is not None and call.servable is not None:
            call.servable.cancel(call.work)

    def on_writable(self, exchange: Exchange) -> None:
        """Only replies in parts wait for the peer."""
        call: EngineCall | StreamCall | None = exchange.call
        writer = call.stream if isinstance(call, EngineCall) else call
        if writer is not None:
            writer.on_writable()

    def _release(self, call: EngineCall) -> None:
        """Stop counting, and holding, the body."""
        self.buffered_bytes -= call.body.size
        call.body = _EMPTY


_EMPTY: Final = Body(0, 0)
