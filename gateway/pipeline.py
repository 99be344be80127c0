"""HOT PATH. Owns the life of one call, its steps in order: read this file and know the product.

    head        facts of the head (memoised) → refuse what the head alone decides
    auth        key → principal; scope and model allowed?                            `LiveCall.start`
    route       model → endpoint (before admission: an unknown model moves no counter)   `LiveCall.decide`
    admit       concurrency, rate, calendar caps: all or nothing                     `LiveCall.on_decision`
    forward     bytes through with back-pressure; hang-up and deadline cancel upstream   `LiveCall.forward`
    settle      outcome → units → charge                                             `LiveCall.on_reply_end`
    record      SERVED appended; the reply waits until it is durable (MONEY.md R1)   `LiveCall.record`
    send        reply with call id, charge, what is left of the limits               `LiveCall.on_durable`
    observe     always, exactly once: slot freed, counters, log line                 `LiveCall.finish`

Everything is synchronous and runs on the event loop's thread; a call makes no task of its own. `LiveCall` is the
listener of its upstream and is driven by its exchange; `stage` says which events still matter.
"""

from typing import Final

from billing import failpoint
from billing.events import Outcome
from gateway.auth.keyring import UNAUTHENTICATED, Principal, Scope, authorize, authorize_operation
from gateway.bounds import STREAM_UNBOUNDED, Bound
from gateway.call import Data, Headers
from gateway.call_state import (
    DECIDING,
    DONE,
    FORWARDING,
    KEYED,
    PEEKING,
    RECORDING,
    UNCOUNTED_BYTES_MAX,
    CallState,
)
from gateway.errors import Code, Refusal
from gateway.forwarding import forwarded_block, forwarded_headers, forwarded_lines
from gateway.heads import (
    ADMIN,
    HEALTH,
    INFER,
    LIVE,
    MODEL_READ,
    MODEL_READY_RPC,
    READY,
    REFLECTION,
    SELF_SERVICE,
    WATCH,
    HeadFacts,
    facts_of,
)
from gateway.metering.port import RecordLog
from gateway.net.exchange import POOL_FULL, Exchange, Upstream
from gateway.net.h1_inbound import H1Exchange
from gateway.net.h1_outbound import H1Request, H1UpstreamPool
from gateway.net.h2_call import H2Call
from gateway.net.h2_exchange import H2Exchange
from gateway.net.h2_outbound import H2UpstreamPool
from gateway.quota.store import Decision
from gateway.replays import REQUEST_BYTES_MAX, TOO_LARGE, UNSUPPORTED, Claim, ReplayStore, Stored
from gateway.replies import (
    GRPC_TYPE,
    answer_health,
    kept_of,
    refusal_trailers,
    refuse,
)
from gateway.routing.router import Endpoint
from gateway.rows import ROWS_UNKNOWN, RowPeek, row_peek_of
from gateway.shared import Shared, too_large
from gateway.stream_meter import OVER, UNTIMED, StreamMeter
from gateway.tickets import Ticket
from gateway.wire.grpc import PREFIX_BYTES
from gateway.wire.grpc_blocks import (
    trailers_of,
)
from gateway.wire.http2_frames import H2Code
from gateway.wire.oip_peek import GrpcPeek
from gateway.wire.protobuf_peek import Peeked, recall_whole

_ANONYMOUS: Final = "-"
_NO_TRAILERS: Final[Headers] = []
#: Calls that hand over units apart from headers.
_CUTTING: Final = (H1Request, H2Call)


_OK: Final = int(Outcome.OK)
_SCOPE_READ: Final = Scope.READ


class Gateway(Shared):
    """The application of a worker: what its connections tell becomes calls."""

    def on_head(self, exchange: Exchange) -> None:
        self._begin(exchange, None)

    def on_request(self, exchange: Exchange, body: bytes) -> None:
        """A whole request at once (the usual case)."""
        self._begin(exchange, body)

    def _begin(self, exchange: Exchange, body: bytes | None) -> None:
        head = exchange.head
        facts: HeadFacts | None = head.memo
        if facts is None:
            facts = head.memo = facts_of(head)
        call = LiveCall(self, exchange, facts, body)
        exchange.call = call
        self.live.add(call)
        if facts.refusal is not None:
            call.refuse(facts.refusal)
        elif facts.kind <= READY:
            call.answer_health()
        elif facts.kind <= WATCH:
            call.serve_own()  # probes carry no credentials, and are answered in every state
        elif self.is_open_for(head.content_length if body is None else len(body)):
            call.start()
        else:
            refusal = self.refusal_of_state(facts, head.content_length if body is None else len(body))
            if refusal is None:
                call.start()  # reads go on while usage cannot be recorded
            else:
                call.refuse(refusal)

    def on_body(self, exchange: Exchange, data: Data) -> None:
        call: LiveCall | None = exchange.call
        if call is not None:
            call.on_request_data(data)

    def on_end(self, exchange: Exchange) -> None:
        call: LiveCall | None = exchange.call
        if call is not None:
            call.on_request_end()

    def on_abort(self, exchange: Exchange) -> None:
        call: LiveCall | None = exchange.call
        if call is not None:
            call.on_hang_up()

    def on_writable(self, exchange: Exchange) -> None:
        call: LiveCall | None = exchange.call
        if call is not None and call.upstream is not None:
            call.upstream.resume()


class LiveCall(CallState):
    """One call, from its head to its log line. Created per request."""

    # -- auth, route, admit -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Authenticate; then decide, or wait for the model's name."""
        gateway, facts = self.gateway, self.facts
        if facts.timeout_ns:
            self._arm()
        principal = self.policy.keyring.authenticate(facts.credential, self.arrival_wall_ns)
        if isinstance(principal, Refusal):
            # A suspended tenant still comes to its own affairs: it has to see what to pay.
            is_let_in = facts.kind == SELF_SERVICE and principal.code is Code.TENANT_SUSPENDED
            if (gateway.is_key_required or facts.credential is not None) and not is_let_in:
                self.refuse(principal)
                return
        else:
            self.principal = principal
        if facts.kind == SELF_SERVICE:
            self.serve_self()
            return
        if facts.is_stream:
            self.meter = StreamMeter(self)
        if facts.idempotency_key is not None and self.claim is None:
            self._await_whole()
        elif self.exchange.head.is_grpc and facts.kind >= MODEL_READ:
            self.stage = PEEKING
            if self.body is None:
                bytes_max = gateway.limits.grpc_message_bytes_max
                self.peek = GrpcPeek(bytes_max, facts.grpc_encoding, is_stream=facts.is_stream)
            else:
                self._peek_whole(self.body)
        else:
            self.decide()

    def _arm(self) -> None:
        """Hold the caller to his own deadline."""
        if self.deadline is None:
            self.deadline = self.gateway.loop.call_later(self.facts.timeout_ns / 1e9, self.on_deadline)

    # -- Idempotency-Key (gateway.replays) ----------------------------------------------------------------------------

    def _await_whole(self) -> None:
        """A keyed call: its whole request decides whether it runs, is replayed or is refused."""
        principal, replays = self.principal, self.gateway.replays
        if principal is None or replays is None or self.gateway.log is None or self.meter is not None:
            self.refuse(UNSUPPORTED)
            return
        refusal = authorize(principal, Scope.INFER, self.model or None)
        if refusal is not None:
            self.refuse(refusal)
            return
        self.stage = KEYED
        if self.is_request_ended:
            self._take_key(principal, replays)
        elif self.exchange.head.expects_continue:
            self.exchange.send_continue()

    def _take_key(self, principal: Principal, replays: ReplayStore) -> None:
        """Claim the key and go on as a call whose request came whole, or give back what its first call got."""
        body = self.body
        if body is None:
            self.body = body = b"".join(self.held_request or ())
            self.held_request = None
        key = self.facts.idempotency_key
        assert key is not None
        tenant, key_id, head = principal.tenant.tenant, principal.key.key_id, self.exchange.head
        found = replays.begin(tenant, key_id, key, head, body, now_s=self.arrival_wall_ns // 1_000_000_000)
        if isinstance(found, Claim):
            self.claim = found
            self.start()
        elif isinstance(found, Stored):
            self.status = found.status
            headers = [*found.headers, (b"idempotency-replayed", b"true")]
            self.exchange.reply(found.status, headers, found.body or b"", found.trailers)
            self.finish()
        else:
            self.refuse(found)

    def _keep(self, claim: Claim, seq: int) -> bool:
        """Write the reply down for whoever sends the key again. False: it cannot be, so the call fails, unbilled."""
        headers = self.reply_headers + self._own_headers(self.record_ns)
        try:
            claim.keep(self.reply_status, headers, b"".join(self.reply_body or ()), self.reply_trailers)
        except OSError:
            assert self.gateway.log is not None
            self.gateway.log.mark_ended(seq, "callback_failed", 0)
            self.charge = self.policy.not_billable
            self.refuse(Refusal(code=Code.INTERNAL, message="the reply of a keyed call could not be kept"))
            return False
        return True

    def _peek_whole(self, body: bytes) -> None:
        """Find the model in a body that came whole. Clients repeat themselves: mostly by what is remembered."""
        message_bytes_max = self.gateway.limits.grpc_message_bytes_max
        length = len(body) - PREFIX_BYTES
        if 0 < length <= message_bytes_max and body.startswith(length.to_bytes(PREFIX_BYTES, "big")):
            known = recall_whole(body, PREFIX_BYTES)
            if known is not None:
                self.model, self.version, self.peeked_rows = known
                self.decide()
                return
        peek = GrpcPeek(message_bytes_max, self.facts.grpc_encoding, is_stream=self.meter is not None)
        if peek.feed(body) is Peeked.FAULT or peek.end() is Peeked.FAULT:
            self.refuse(Refusal(code=peek.code, message=peek.fault))
        else:
            self.peeked_rows = peek.rows
            if self.meter is not None:
                self.meter.on_requests(peek.messages)
            self._take_name(peek)

    def decide(self) -> None:
        """Scope, model and endpoint by plain look-ups; then the limits, which may be another process's to decide."""
        gateway, facts, principal = self.gateway, self.facts, self.principal
        self.stage = DECIDING
        is_infer = facts.kind == INFER
        if not self.model and facts.kind >= MODEL_READ and not facts.is_listing:
            self.refuse(Refusal(code=Code.BAD_REQUEST, message="model_name is empty"))
            return
        if facts.is_listing and not self.model and principal is not None and principal.models is not None:
            message = "this API key is limited to some models and may not list all"
            self.refuse(Refusal(code=Code.MODEL_FORBIDDEN, message=message))
            return
        is_grpc = self.exchange.head.is_grpc
        ticket: Ticket | None = None
        if principal is not None:
            refusal: Refusal | None
            if is_infer:
                self.ticket = ticket = self.policy.ticket(principal, self.model, self.version, is_grpc=is_grpc)
                refusal = ticket.refusal
                if refusal is None and self.meter is not None and ticket.unmeasured is not None:
                    refusal = UNTIMED
                if ticket.is_prepaid or facts.max_cost_nanos >= 0:
                    self.bound = Bound(self, ticket)
                    if refusal is None and self.meter is not None:
                        refusal = STREAM_UNBOUNDED
            elif facts.kind == ADMIN:
                refusal = authorize_operation(principal)
            else:
                refusal = authorize(principal, _SCOPE_READ, self.model or None)
            if refusal is not None:
                self.refuse(refusal)
                return
        elif facts.kind == ADMIN:
            self.refuse(UNAUTHENTICATED)
            return
        if facts.kind == REFLECTION:
            self.serve_own()
            return
        router = gateway.router
        if facts.kind <= ADMIN or not self.model:
            endpoint = router.any_endpoint(is_grpc=is_grpc, model=self.model)
        else:
            endpoint = router.choose(self.model, self.version, is_grpc=is_grpc)
        if isinstance(endpoint, Refusal):
            if is_grpc and endpoint.code is Code.MODEL_NOT_READY and self.exchange.head.target == MODEL_READY_RPC:
                self._answer_not_ready()
            else:
                self.refuse(endpoint)
            return
        self.endpoint = endpoint
        needs_count = not endpoint.is_trusted or self.bound is not None
        if needs_count and ticket is not None and not self._can_measure(ticket, endpoint):
            return
        self.admit()

    def _can_measure(self, ticket: Ticket, endpoint: Endpoint) -> bool:
        """Count ourselves what is sold, where the backend's counts are not believed or are needed before it runs.

        False: refused, or not in yet.
        """
        if ticket.unmeasured is not None and not endpoint.is_trusted:
            self.refuse(ticket.unmeasured)
            return False
        if not ticket.needs_rows or self.meter is not None:
            return True
        if self.exchange.head.is_grpc:
            return self.bound is None or self._knows_rows()
        peek = row_peek_of(self.facts.json_length, is_encoded=self.facts.is_encoded)
        if isinstance(peek, Refusal):
            self.refuse(peek)
            return False
        self.stage = PEEKING
        self.row_peek = peek
        if self.body is None and self.exchange.head.expects_continue:
            self.exchange.send_continue()
        if self.body is not None:
            verdict = peek.feed(self.body)
            self._take_rows(peek.finish() if verdict is False else verdict, peek)
        return False

    def _knows_rows(self) -> bool:
        """Whether the message has told its rows by now; while it may, the call stays undecided."""
        rows = self.peeked_rows if self.peek is None else self.peek.rows
        if rows >= 0:
            self.rows = max(1, rows)
            return True
        if self.is_request_ended:
            self.refuse(ROWS_UNKNOWN)
        else:
            self.stage = PEEKING
        return False

    def serve_own(self) -> None:
        """What a worker answers by itself goes through the same steps, to an endpoint of its own."""
        if self.facts.kind == REFLECTION and not self.gateway.is_reflecting:
            self.refuse(Refusal(code=Code.NOT_IMPLEMENTED, message="server reflection is switched off here"))
            return
        self.model = _ANONYMOUS
        self.endpoint = self.gateway.own_endpoint
        if self.facts.timeout_ns:
            self._arm()
        self.forward(self.endpoint)

    def serve_self(self) -> None:
        """A tenant's own affairs are control's to answer: a key of ours opens the way there, a few calls at a time."""
        gateway, principal = self.gateway, self.principal
        if self.facts.credential is None:
            self.refuse(UNAUTHENTICATED)
            return
        if gateway.relay is None:
            self.refuse(Refusal(code=Code.NOT_FOUND, message="Not Found"))
            return
        refusal = gateway.relay.refusal_of("" if principal is None else principal.tenant.tenant, gateway.live)
        if refusal is not None:
            self.refuse(refusal)
            return
        gateway.relay.enter(self)
        self.model = _ANONYMOUS
        self.endpoint = gateway.relay.endpoint
        self.forward(self.endpoint)

    def admit(self) -> None:
        """Ask for the limits' permission; the answer may come at once or later."""
        gateway, principal, endpoint = self.gateway, self.principal, self.endpoint
        assert endpoint is not None
        self.stage = DECIDING
        if self.bound is not None and not self.bound.begin():
            return
        if self.facts.kind != INFER or principal is None or gateway.quota is None:
            self.forward(endpoint)
            return
        decision = gateway.quota.admit(principal.tenant, principal.plan, self.on_decision)
        if decision is not None:
            self.on_decision(decision)

    def on_funds(self, refusal: Refusal | None) -> None:
        """The wallet was asked. Too late: what is reserved is given back."""
        bound = self.bound
        assert bound is not None
        bound.is_waiting = False
        if refusal is None:
            bound.take()
            if self.stage == DECIDING:
                self.admit()
                return
            bound.settle(0)
        elif self.stage == DECIDING:
            self.refuse(refusal)
        self.bound = None

    def on_decision(self, decision: Decision) -> None:
        """Granted: go on. Refused: say which limit. Too late: give the grant back uncounted."""
        if isinstance(decision, Refusal):
            if self.stage == DECIDING:
                self.refuse(decision)
        elif self.stage != DECIDING:
            assert self.gateway.quota is not None
            self.gateway.quota.release(decision, is_counted=False)
        else:
            self.grant = decision
            if self.meter is not None:
                self.meter.admit_more()
                if self.stage != DECIDING:
                    return
            assert self.endpoint is not None
            self.forward(self.endpoint)

    # -- forward ------------------------------------------------------------------------------------------------------

    def forward(self, endpoint: Endpoint) -> None:
        """Open the request upstream and send what is held of the body."""
        head = self.exchange.head
        pool = endpoint.grpc if head.is_grpc else endpoint.http
        assert pool is not None
        self.stage = FORWARDING
        self.backend_start_ns = self.gateway.monotonic_ns()
        endpoint.outstanding += 1
        upstream: Upstream
        facts, call_id, hex_id, left_ns = self.facts, self.call_id, self.call_id_hex, self._left_ns()
        tenant = self.ticket.tenant if self.ticket is not None and endpoint.is_trusted else b""
        body, self.body = self.body, None
        if body is not None and isinstance(pool, H1UpstreamPool):
            lines = forwarded_lines(facts, call_id, hex_id, left_ns, tenant)
            self.upstream = pool.request_whole(head.method, head.target, lines, body, self)
            if self.buffered_bytes:
                self._unbuffer()
            return
        if body and isinstance(pool, H2UpstreamPool) and (head.is_grpc or head.content_length < 0):
            block = forwarded_block(self.gateway.encoder, facts, call_id, hex_id, left_ns, tenant)
            self.upstream = pool.request_whole(head.method, head.target, block, body, self)
            if self.buffered_bytes:
                self._unbuffer()
            return
        if isinstance(pool, H1UpstreamPool):
            lines = forwarded_lines(facts, call_id, hex_id, left_ns, tenant)
            upstream = pool.request_raw(head.method, head.target, lines, head.content_length, self)
        else:
            headers = forwarded_headers(facts, call_id, hex_id, left_ns, tenant, is_grpc=head.is_grpc)
            upstream = pool.request(head.method, head.target, headers, head.content_length, self)
        self.upstream = upstream
        if head.expects_continue and self.claim is None and self.row_peek is None:
            self.exchange.send_continue()
        if self.held_request is not None:
            held, self.held_request = self.held_request, None
            for data in held:
                upstream.send_body(data)
            self._unbuffer()
            self.exchange.resume()
        if body is not None:
            upstream.send_body(body)
        if self.is_request_ended:
            upstream.send_end()

    def on_request_data(self, data: Data) -> None:
        """Body bytes of the caller: on to the backend, or held while something is undecided."""
        size = len(data)
        self.request_bytes += size
        if self.stage >= RECORDING:
            return  # answered before its request had ended: what is recorded is not refused any more
        if self.request_bytes > self.gateway.limits.body_bytes_max:
            self.refuse(too_large(self.gateway.limits.body_bytes_max))
            return
        if self.stage == KEYED and self.request_bytes > REQUEST_BYTES_MAX:
            self.refuse(TOO_LARGE)
            return
        peek = self.peek
        if peek is not None and peek.feed(data) is Peeked.FAULT:
            # What is authorised must be what runs: a second or late name ends the call (DATAPATH.md).
            self.refuse(Refusal(code=peek.code, message=peek.fault))
            return
        if peek is not None and self.meter is not None:
            self.meter.on_requests(peek.messages)
            if self.stage >= RECORDING:
                return
        upstream = self.upstream
        if upstream is not None and self.stage == FORWARDING:
            upstream.send_body(data)
            if not upstream.is_writable:
                self.exchange.pause()
        elif self.stage <= DECIDING:
            if self.held_request is None:
                self.held_request = []
            self.held_request.append(data if isinstance(data, bytes) else bytes(data))
            self._buffer(size)
            if self.buffered_bytes > self.gateway.limits.stream_buffer_bytes_max and self.stage == DECIDING:
                self.exchange.pause()
        if self.stage == PEEKING:
            if self.row_peek is not None:
                self._take_rows(self.row_peek.feed(data), self.row_peek)
            elif peek is not None and peek.state is Peeked.READY:
                self._take_name(peek)

    def _take_rows(self, verdict: bool | Refusal, row_peek: RowPeek) -> None:
        """The JSON part is in, wrong, or not complete yet."""
        if isinstance(verdict, Refusal):
            self.refuse(verdict)
        elif verdict:
            self.rows = row_peek.rows
            self.admit()

    def _take_name(self, peek: GrpcPeek) -> None:
        """The message named its model: decide. Names are UTF-8 by protobuf's rule."""
        try:
            self.model, self.version = peek.model.decode("utf-8"), peek.version.decode("utf-8")
        except UnicodeDecodeError:
            self.refuse(Refusal(code=Code.BAD_REQUEST, message="model_name is not UTF-8"))
            return
        self.decide()

    def on_request_end(self) -> None:
        self.is_request_ended = True
        if self.stage == KEYED:
            assert self.principal is not None
            assert self.gateway.replays is not None
            self._take_key(self.principal, self.gateway.replays)
            return
        peek = self.peek
        if peek is not None and self.stage < RECORDING and peek.end() is Peeked.FAULT:
            self.refuse(Refusal(code=peek.code, message=peek.fault))
        elif self.stage == PEEKING and self.row_peek is not None:
            self._take_rows(self.row_peek.finish(), self.row_peek)
        elif self.stage == PEEKING and peek is not None:
            self._take_name(peek)
        elif self.upstream is not None and self.stage == FORWARDING:
            self.upstream.send_end()

    # -- UpstreamListener ---------------------------------------------------------------------------------------------

    def on_reply_head(self, status: int, headers: Headers, content_length: int) -> None:
        self.reply_status = status
        self.reply_length = content_length
        endpoint = self.endpoint
        assert endpoint is not None
        if not endpoint.is_trusted and self.exchange.head.is_grpc:
            rows = self.peeked_rows if self.peek is None else self.peek.rows
            if rows < 0 and self.meter is None and self.ticket is not None and self.ticket.needs_rows:
                self.refuse(ROWS_UNKNOWN)
                return
            self.rows = max(1, rows)
        kept, units = kept_of(headers)
        self.reply_headers = kept
        if endpoint.is_trusted:
            upstream = self.upstream
            # Cut by the wire from heads that then are shared, else among the others.
            cut = upstream.units if isinstance(upstream, _CUTTING) else None
            for name, value in cut or units:
                self._read_units(name, value)
        if self.bound is not None:
            self.bound.cap()

    def _read_units(self, name: bytes, value: bytes) -> None:
        """What a trusted backend says it did; anything but digits is a fault of ours, not the caller's."""
        if not value.isdigit():
            return
        if name == b"tollway-rows":
            self.rows = int(value)
        elif name == b"tollway-compute-ns":
            self.compute_ns = int(value)
        elif name == b"tollway-queue-ns":
            self.queue_ns = int(value)
        elif name == b"tollway-version" and self.principal is not None and self.ticket is not None:
            # The call named an alias: recorded is the version that answered.
            self.version = value.decode()
            is_grpc = self.exchange.head.is_grpc
            self.ticket = self.policy.ticket(self.principal, self.model, self.version, is_grpc=is_grpc)

    def on_reply_body(self, data: Data) -> None:
        """Hold the reply whole up to the limit; past it stream all but the last piece (MONEY.md R1)."""
        if self.meter is not None and self.reply_status == 200:
            self.meter.on_body(data)
            return
        size = len(data)
        self.reply_bytes += size
        if HEALTH <= self.facts.kind <= REFLECTION:
            self._pass_on(data)
            return
        if self.reply_body is None:
            self.reply_body = []
        self.reply_body.append(data if isinstance(data, bytes) else bytes(data))
        self._buffer(size)
        if self.reply_bytes > self.gateway.limits.held_reply_bytes_max:
            self._stream()

    def _pass_on(self, data: Data) -> None:
        """A message of our own: its caller may wait for it before he says more, and nothing of it is sold."""
        if not self.is_streaming:
            self.begin_stream()
        self.exchange.send_body(data)
        if not self.exchange.is_writable and self.upstream is not None:
            self.upstream.pause()

    def _stream(self) -> None:
        """Send everything but the newest piece, whose arrival proves that the reply was not yet complete."""
        exchange = self.exchange
        assert self.reply_body is not None
        if not self.is_streaming:
            self.is_streaming = True
            if self.reply_status == 200 and self.ticket is not None:
                self.charge = self.ticket.charge(self.rows, self.compute_ns)
            headers = self.reply_headers + self._own_headers(0)
            if self.reply_length >= 0:
                headers.append((b"content-length", b"%d" % self.reply_length))
            exchange.send_head(self.reply_status, headers)
        for data in self.reply_body[:-1]:
            if self.claim is not None:
                self.claim.add(data)
            exchange.send_body(data)
        last = self.reply_body[-1]
        self.reply_body = [last]
        self._unbuffer()
        self._buffer(len(last))
        if failpoint.armed:
            failpoint.hit("after_first_chunk")
        if not exchange.is_writable and self.upstream is not None:
            self.upstream.pause()

    def begin_stream(self) -> None:
        """Send the head of a reply that is metered as it goes; what it costs is told at its end."""
        self.is_streaming = True
        self.exchange.send_head(self.reply_status, self.reply_headers + self._own_headers(0))

    def end_stream(self) -> None:
        """A stream's final record is on its way (`record`, of a stream)."""
        self.stage = RECORDING

    def on_reply(self, status: int, headers: Headers, body: bytes) -> None:
        """A whole small reply in one step."""
        self.on_reply_head(status, headers, len(body))
        if self.stage == DONE:
            return
        if len(body) > UNCOUNTED_BYTES_MAX or (self.meter is not None and body):
            self.on_reply_body(body)
        else:
            self.reply_body = [body]
            self.reply_bytes = len(body)
        self.on_reply_end(_NO_TRAILERS)

    def on_reply_whole(self, status: int, headers: Headers, body: bytes, trailers: Headers) -> None:
        """A whole small reply with trailers in one step."""
        self.on_reply_head(status, headers, -1)
        if self.stage == DONE:
            return
        if len(body) > UNCOUNTED_BYTES_MAX or (self.meter is not None and body):
            self.on_reply_body(body)
        else:
            self.reply_body = [body]
            self.reply_bytes = len(body)
        self.on_reply_end(trailers)

    def on_reply_end(self, trailers: Headers) -> None:
        """Settle: what was it, what does it cost; then record it, or pass an error on."""
        self.backend_end_ns = self.gateway.monotonic_ns()
        self.upstream = None
        if self.exchange.head.is_grpc:
            read = self.read_trailers = trailers_of(trailers)
            # A failed backend call may be trailers-only: then the head already carried the status.
            grpc_status = read.status or _find(self.reply_headers, b"grpc-status")
            self.reply_trailers = read.kept
            is_ok = self.reply_status == 200 and grpc_status == b"0"
        else:
            is_ok = self.reply_status == 200
        if self.meter is not None and self.meter.is_begun:
            self._end_stream(self.meter, trailers, is_ok=is_ok)
            return
        if self.meter is not None and is_ok:
            # A stream that said nothing: nothing was handed over, so nothing is sold, recorded or counted.
            self.is_free = True
            self.send()
            return
        if not is_ok:
            self.charge = self.policy.not_billable
            if self.facts.kind != SELF_SERVICE or self.reply_status >= 400:
                self.code = Code.BACKEND_FAULT if self.reply_status >= 500 else Code.BAD_REQUEST
        log = self.gateway.log
        if is_ok and log is not None and self.ticket is not None:
            self.record(log, self.ticket)
        else:
            self.send()

    def _end_stream(self, meter: StreamMeter, trailers: Headers, *, is_ok: bool) -> None:
        assert self.endpoint is not None
        if self.endpoint.is_trusted:
            for name, value in trailers:
                if name == b"tollway-compute-ns" and value.isdigit():
                    self.compute_ns = int(value)
        meter.on_end([pair for pair in trailers if not pair[0].startswith(b"tollway-")], is_ok=is_ok)

    def on_reply_error(self, *, is_sent: bool, reason: str) -> None:
        """The backend failed us. Nothing is billed; nothing is retried once bytes were sent (inference is not free)."""
        self.upstream = None
        endpoint = self.endpoint
        assert endpoint is not None
        if reason == POOL_FULL:
            self.refuse(Refusal(code=Code.QUEUE_FULL, message=reason, retry_after_ms=1000))
        elif not is_sent:
            self.gateway.router.note_connect_failure(endpoint, reason)
            what = f"the backend of model '{self.model}'" if self.facts.kind != SELF_SERVICE else "self-service"
            message = f"{what} is not available now"
            self.refuse(Refusal(code=Code.BACKEND_UNAVAILABLE, message=message, retry_after_ms=1000))
        else:
            message = "the backend ended the call without a complete answer"
            self.refuse(Refusal(code=Code.BACKEND_PROTOCOL, message=message, retry_after_ms=1000))

    def on_upstream_writable(self) -> None:
        if self.stage == FORWARDING:
            self.exchange.resume()

    # -- settle, record, send -----------------------------------------------------------------------------------------

    def record(self, log: RecordLog, ticket: Ticket) -> None:
        """Append SERVED at the list price. `on_durable` follows once it, and all that wait with it, is on disk."""
        self.stage = RECORDING
        if not self.is_streaming:
            self.charge = ticket.charge(self.rows, self.compute_ns)
        payload = ticket.template.encode(
            self.call_id_raw,
            self.gateway.wall_ns(),
            _OK,
            self.charge.reason,
            self.rows,
            self.compute_ns,
            self.request_bytes,
            self.reply_bytes,
            self.charge.nanos,
        )
        log.append(payload, self.on_durable)
        if self.bound is not None:
            self.bound.settle(self.charge.nanos)

    def on_durable(self, seq: int) -> None:
        """The record is on disk: the reply may complete. A caller who left meanwhile is noted, not forgotten (R8)."""
        gateway = self.gateway
        self.record_ns = gateway.monotonic_ns() - self.backend_end_ns
        gateway.counters.record_wait.observe_ns(self.record_ns)
        if self.is_gone:
            assert gateway.log is not None
            gateway.log.mark_ended(seq, "gone_before_durable", 0)
            # Free by R8: what is logged and counted must not look like a paid success.
            self.code, self.status = Code.CANCELLED, 499
            self.charge = self.policy.not_billable
            self.finish()
            return
        if failpoint.armed:
            failpoint.hit("before_send")
        if self.claim is None or self._keep(self.claim, seq):
            self.send()

    def send(self) -> None:
        """Hand the reply, or the rest of it, to the socket."""
        exchange = self.exchange
        self.status = self.reply_status
        body = self.reply_body or ()
        if self.is_streaming:
            for data in body:
                exchange.send_body(data)
            exchange.send_end(self.reply_trailers)
        else:
            whole = body[0] if len(body) == 1 else b"".join(body)
            if isinstance(exchange, H1Exchange) and self.facts.kind == INFER:
                exchange.reply_lines(self.reply_status, self._reply_lines(), whole)
            elif whole and self.read_trailers is not None and self.facts.kind == INFER and type(exchange) is H2Exchange:
                exchange.reply_blocks(self._reply_block(), whole, self._trailer_block(self.read_trailers))
            else:
                headers = self.reply_headers + self._own_headers(self.record_ns)
                exchange.reply(self.reply_status, headers, whole, self.reply_trailers)
        self.finish()

    # -- other ends ---------------------------------------------------------------------------------------------------

    def answer_health(self) -> None:
        """Live and ready are open and free of content: probes carry no credentials."""
        kind = self.facts.kind
        self.status = answer_health(self.exchange, kind, is_good=kind == LIVE or self.gateway.is_ready)
        self.finish()

    def _answer_not_ready(self) -> None:
        """gRPC ModelReady about a model that is not: `ready: false` (an empty message) is an answer, not an error."""
        self.status = 200
        self.exchange.reply(200, [GRPC_TYPE, *self._identity()], b"\0\0\0\0\0", [(b"grpc-status", b"0")])
        self.finish()

    def refuse(self, refusal: Refusal) -> None:
        """Answer with an error and end. Where a reply has begun the only honest end is to cut it."""
        if self.stage == DONE:
            return
        self.code = refusal.code
        self._cancel_upstream()
        if not self.is_streaming:
            identity = self._identity()
            self.status = refuse(self.exchange, refusal, identity, self.call_id.decode())
        elif self.meter is not None:
            self.meter.end_with(refusal)
        elif self.facts.kind <= REFLECTION:
            self.exchange.send_end(refusal_trailers(refusal, self._identity()))
        else:
            self.exchange.abort(H2Code.INTERNAL_ERROR)
        self._leave()

    def _leave(self) -> None:
        """The end of a call that went no further; a stream first records what was delivered."""
        if self.meter is not None:
            self.stage = RECORDING
            if self.meter.leave():
                return
        self.finish()

    def on_deadline(self) -> None:
        """Time is up: upstream is cancelled and the slot freed. A call whose record is on its way is answered."""
        if self.stage < RECORDING:
            self.refuse(Refusal(code=Code.DEADLINE_EXCEEDED, message="the call's deadline has passed"))

    def on_hang_up(self) -> None:
        """The caller is gone: free before the record is appended, noted after."""
        self.is_gone = True
        if self.stage < RECORDING:
            self.code = Code.CANCELLED
            self.status = 499
            self._cancel_upstream()
            self._leave()

    def _cancel_upstream(self) -> None:
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.cancel()

    def finish(self) -> None:
        """Last step of every call, exactly once: slot freed, counted, one line logged."""
        if self.stage == DONE:
            return
        gateway = self.gateway
        is_counted = (self.code is None and not self.is_gone and not self.is_free) or self.is_stream_billed
        self.stage = DONE
        if self.meter is not None:
            self.meter.state = OVER
        self.exchange.call = None  # no cycle: the call is freed by its count, not by the collector
        gateway.live.discard(self)
        if self.deadline is not None:
            self.deadline.cancel()
        if self.claim is not None:
            self.claim.end()
        if self.buffered_bytes:
            self._unbuffer()
        if self.endpoint is not None and self.backend_start_ns:
            self.endpoint.outstanding -= 1
        if self.grant is not None and gateway.quota is not None:
            gateway.quota.release(self.grant, is_counted=is_counted)
        bound = self.bound
        if bound is not None:
            if bound.reserved:
                bound.settle(0)
            if not bound.is_waiting:
                self.bound = None  # no cycle here either
        duration_ns = gateway.monotonic_ns() - self.arrival_ns
        protocol = "grpc" if self.exchange.head.is_grpc else "http"
        code = "ok" if self.code is None else self.code.value
        model = self.model if self.endpoint is not None else _ANONYMOUS
        ticket = self.ticket
        if ticket is not None and self.endpoint is not None and self.code is None:
            ticket.cell(gateway.counters).observe_ns(duration_ns)
        else:
            gateway.counters.observe(protocol, model, code, duration_ns)
        if gateway.call_log is not None and self.facts.kind > HEALTH:
            if ticket is not None and self.endpoint is not None:
                caller = ticket.log_fields
            else:
                caller = self._caller_fields(protocol, model)
            self._log(gateway.call_log, caller, code.encode(), duration_ns)


def _find(headers: Headers, name: bytes) -> bytes | None:
    for pair in headers:
        if pair[0] == name:
            return pair[1]
    return None
