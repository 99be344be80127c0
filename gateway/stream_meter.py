"""HOT PATH. Owns metering a reply that is a stream (MONEY.md R6): what was delivered is counted, recorded as it goes.

    first reply bytes   INTENT (a Progress without units) is appended; the bytes wait until it is durable
    bytes flow          each complete response handed to the socket is a unit
    every 64 units or 1 s, whichever comes first: a Progress; a crash bills the last durable one
    end                 the final Served is appended; the end of the reply waits until it is durable
    caller gone, fault  Served for what had been handed over, durable before the call is over

A unit is a response with outputs (gRPC) or an event that is no error (SSE). Each request of a gRPC stream is a call of
its own in quota and price: the first one's record carries the units, the others' none.
"""

import asyncio
from typing import Final, Protocol

from billing import failpoint
from billing.events import Outcome, Reason, progress_of
from gateway.auth.keyring import Principal
from gateway.call import Data, Headers
from gateway.errors import Code, Refusal
from gateway.heads import HeadFacts
from gateway.net.exchange import Exchange, Upstream
from gateway.quota.store import Decision, Grant
from gateway.shared import Shared
from gateway.stream_units import EventUnits, MessageUnits
from gateway.tickets import Charge, Policy, Ticket
from gateway.wire.grpc import status_trailers
from gateway.wire.status import STATUS, oip_error_body

#: A Progress at least so often.
CHECKPOINT_UNITS: Final = 64
CHECKPOINT_S: Final = 1.0
#: Requests on one gRPC stream; a caller with more opens another.
REQUESTS_MAX: Final = 10_000
_OK: Final = int(Outcome.OK)
_FAILED: Final = int(Outcome.FAILED)
_NOT_BILLABLE: Final = int(Reason.NOT_BILLABLE)
#: Compute time is told at the end of a reply, so whoever left before it would have it for nothing.
UNTIMED: Final = Refusal(
    code=Code.NOT_IMPLEMENTED,
    message="this model is priced by compute time and so not sold as a stream: use infer",
)

BEFORE: Final = 0
OPENING: Final = 1  # the intent is not durable yet
OPEN: Final = 2
CLOSING: Final = 3  # the final record is not durable yet
OVER: Final = 4


class Streamed(Protocol):
    """The call, as its meter sees it."""

    gateway: Shared
    policy: Policy
    exchange: Exchange
    facts: HeadFacts
    principal: Principal | None
    grant: Grant | None
    ticket: Ticket | None
    upstream: Upstream | None
    charge: Charge
    call_id_raw: bytes
    rows: int
    compute_ns: int
    request_bytes: int
    reply_bytes: int
    status: int
    reply_status: int
    is_gone: bool
    is_stream_billed: bool
    code: Code | None

    def begin_stream(self) -> None:
        """Send the head."""

    def end_stream(self) -> None:
        """The final record is on its way: from here on a deadline changes nothing, and who leaves is only noted."""

    def hold(self, size: int) -> None:
        """Count bytes that wait here in the worker's budget; negative: they have gone on."""

    def refuse(self, refusal: Refusal) -> None: ...

    def finish(self) -> None: ...


class StreamMeter:
    """Of one call. `state` says which events still matter."""

    def __init__(self, call: Streamed) -> None:
        self.call = call
        self.state: int = BEFORE
        #: Request messages that have begun to arrive, and those that the limits have let pass.
        self.requests = 1
        self._admitted = 1
        self._is_asking = False
        is_grpc = call.exchange.head.is_grpc
        self._units: MessageUnits | EventUnits = MessageUnits() if is_grpc else EventUnits()
        self._checkpointed = 0
        #: Requests but the first that have their record.
        self._recorded = 1
        self._held: list[bytes] = []
        self._end_trailers: Headers | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_end_ok = True

    @property
    def is_begun(self) -> bool:
        return self.state != BEFORE

    # -- reply --------------------------------------------------------------------------------------------------------

    def on_body(self, data: Data) -> None:
        """Bytes of the reply."""
        if self.state == BEFORE:
            self._open()
        if self.state == OPENING:
            self._held.append(bytes(data))
            self.call.hold(len(data))
        elif self.state == OPEN:
            self._pass(data)

    def _open(self) -> None:
        call = self.call
        log = call.gateway.log
        if log is None or call.ticket is None:
            self.state = OPEN
            call.begin_stream()
            return
        self.state = OPENING
        if call.upstream is not None:
            call.upstream.pause()
        log.append(progress_of(self._served(call.ticket, is_billed=False)), self._on_intent)

    def _on_intent(self, _seq: int) -> None:
        if self.state != OPENING:
            return
        call = self.call
        self.state = OPEN
        call.begin_stream()
        held, self._held = self._held, []
        call.hold(-sum(map(len, held)))
        for data in held:
            if self.state == OPEN:
                self._pass(data)
        if self.state != OPEN:
            return
        if self._end_trailers is not None:
            self._close(self._end_trailers)
        elif call.upstream is not None and call.exchange.is_writable:
            call.upstream.resume()

    def _pass(self, data: Data) -> None:
        call = self.call
        exchange = call.exchange
        exchange.send_body(data)
        call.reply_bytes += len(data)
        units = self._units
        units.feed(data)
        if failpoint.armed:
            failpoint.hit("after_stream_part")
        if not exchange.is_writable and call.upstream is not None:
            call.upstream.pause()
        if units.count - self._checkpointed >= CHECKPOINT_UNITS:
            self._checkpoint()
        elif self._timer is None and units.count > self._checkpointed:
            self._timer = call.gateway.loop.call_later(CHECKPOINT_S, self._on_timer)
        if self.state == OPEN:  # a revoked key may have ended it
            self._record_answered(units.finals)

    def _on_timer(self) -> None:
        self._timer = None
        if self.state == OPEN and self._units.count > self._checkpointed:
            self._checkpoint()

    def _checkpoint(self) -> None:
        """Note what was handed over; and see whether the key still opens (a revocation ends open streams)."""
        call = self.call
        log, ticket = call.gateway.log, call.ticket
        self._checkpointed = self._units.count
        if log is not None and ticket is not None:
            log.append(progress_of(self._served(ticket, is_billed=True)), _nothing)
        if call.principal is not None:
            gateway = call.gateway
            principal = gateway.policy.keyring.authenticate(call.facts.credential, gateway.clock.wall_ns())
            if isinstance(principal, Refusal):
                call.refuse(principal)

    # -- requests -----------------------------------------------------------------------------------------------------

    def on_requests(self, count: int) -> None:
        """So many request messages have begun: those after the first are admitted as they pass."""
        if self.state >= CLOSING:
            return
        self.requests = max(self.requests, count)
        if self.requests > REQUESTS_MAX:
            message = f"more than {REQUESTS_MAX} requests on one stream: open another"
            self.call.refuse(Refusal(code=Code.BAD_REQUEST, message=message))
            return
        self.admit_more()

    def admit_more(self) -> None:
        """Each further request takes of rate and caps; the stream holds one place of the concurrency limit."""
        call = self.call
        quota = call.gateway.quota
        while self._admitted < self.requests and not self._is_asking and self.state < CLOSING:
            if quota is None or call.principal is None or call.grant is None:
                return
            grant, call.grant = call.grant, None
            quota.release(grant, is_counted=True)
            self._is_asking = True
            decision = quota.admit(call.principal.tenant, call.principal.plan, self._on_decision)
            if decision is None or not self._take_decision(decision):
                return

    def _on_decision(self, decision: Decision) -> None:
        if self._take_decision(decision):
            self.admit_more()

    def _take_decision(self, decision: Decision) -> bool:
        """Whether the request may pass; a grant that comes after the end is given back."""
        self._is_asking = False
        call = self.call
        if self.state >= CLOSING:
            if not isinstance(decision, Refusal) and call.gateway.quota is not None:
                call.gateway.quota.release(decision, is_counted=False)
            return False
        if isinstance(decision, Refusal):
            call.refuse(decision)
            return False
        call.grant = decision
        self._admitted += 1
        return True

    # -- end ----------------------------------------------------------------------------------------------------------

    def on_end(self, trailers: Headers, *, is_ok: bool) -> None:
        """The backend has ended the reply; `trailers` are passed on."""
        self._is_end_ok = is_ok
        if self.state == OPENING:
            self._end_trailers = trailers
        elif self.state == OPEN:
            self._close(trailers)

    def _close(self, trailers: Headers) -> None:
        self._end_trailers = trailers
        if not self._is_end_ok or not self._units.count:
            self._settle(self._answered_now())
        else:
            self._settle(max(1, self.requests - self._units.errors))

    def leave(self) -> bool:
        """The caller is gone, or the reply was cut: record what was handed over. False: there is nothing to record."""
        if self.state not in (OPENING, OPEN):
            return False
        call = self.call
        call.hold(-sum(map(len, self._held)))
        self._held = []
        self._end_trailers = None
        self._settle(self._answered_now())
        return True

    def _answered_now(self) -> int:
        units = self._units
        if not units.count:
            return 0
        return max(1, min(self.requests, units.finals + units.is_within) - units.errors)

    def _settle(self, answered: int) -> None:
        """Append the final records; the call ends when they are durable."""
        call = self.call
        call.end_stream()
        self.state = CLOSING
        if self._timer is not None:
            self._timer.cancel()
        log, ticket = call.gateway.log, call.ticket
        if log is None or ticket is None:
            self._on_final(0)
            return
        units = self._units.count
        call.rows = units
        call.is_stream_billed = bool(units)
        self._record_answered(answered)
        call.charge = self._charge_all(ticket, max(answered, self._recorded)) if units else call.policy.not_billable
        log.append(self._served(ticket, is_billed=bool(units)), self._on_final)

    def _on_final(self, _seq: int) -> None:
        """The records are on disk: the reply may end."""
        call = self.call
        trailers = self._end_trailers
        if trailers is not None and not call.is_gone:
            if failpoint.armed:
                failpoint.hit("before_stream_end")
            call.status = call.reply_status
            if not self._is_end_ok:
                call.code = Code.BACKEND_FAULT
            own = [(b"tollway-charge", call.charge.text)] if call.ticket is not None else []
            call.exchange.send_end([*trailers, *own])
        elif call.is_gone and call.code is None:
            call.code, call.status = Code.CANCELLED, 499
        self.state = OVER
        call.finish()

    def end_with(self, refusal: Refusal) -> None:
        """A reply that has begun ends with a fault told in its own way."""
        exchange = self.call.exchange
        if exchange.head.is_grpc:
            extra = [(b"tollway-code", refusal.code.value.encode())]
            status = STATUS[refusal.code][1]
            exchange.send_end(status_trailers(status, refusal.message, extra, retry_after_ms=refusal.retry_after_ms))
        else:
            exchange.send_body(b"data: %b\n\n" % oip_error_body(refusal.code, refusal.message))
            exchange.send_end()

    # -- records ------------------------------------------------------------------------------------------------------

    def _served(self, ticket: Ticket, *, is_billed: bool) -> bytes:
        """The first request's record, with the units so far."""
        call = self.call
        units = self._units.count
        charge = ticket.charge(units, call.compute_ns) if is_billed else call.policy.not_billable
        return ticket.template.encode(
            call.call_id_raw,
            call.gateway.clock.wall_ns(),
            _OK if is_billed else _FAILED,
            charge.reason,
            units,
            call.compute_ns,
            call.request_bytes,
            call.reply_bytes,
            charge.nanos,
        )

    def _record_answered(self, answered: int) -> None:
        """Records of further requests that were answered well; they have no units of their own."""
        call = self.call
        log, ticket = call.gateway.log, call.ticket
        if log is None or ticket is None:
            return
        upto = min(answered - self._units.errors if self.state == OPEN else answered, self.requests)
        while self._recorded < upto:
            self._recorded += 1
            wall_ns = call.gateway.clock.wall_ns()
            call.gateway.ids.mint(wall_ns)
            charge = ticket.charge(0, 0)
            raw = call.gateway.ids.raw
            log.append(ticket.template.encode(raw, wall_ns, _OK, charge.reason, 0, 0, 0, 0, charge.nanos), _nothing)

    def _charge_all(self, ticket: Ticket, calls: int) -> Charge:
        first = ticket.charge(self._units.count, self.call.compute_ns)
        if calls <= 1:
            return first
        policy = self.call.policy
        nanos = first.nanos + (calls - 1) * ticket.charge(0, 0).nanos
        return Charge(nanos, first.reason, policy.price_version, policy.currency)


def _nothing(_seq: int) -> None:
    """Nobody waits for a checkpoint."""
