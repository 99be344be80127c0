"""HOT PATH. Owns what is known of one call, and what is said of it: reply headers, log line.

Its steps are `gateway.pipeline`'s.
"""

import asyncio
from typing import Final

from gateway.auth.keyring import Principal
from gateway.bounds import Bound
from gateway.call import Headers
from gateway.errors import Code
from gateway.heads import INFER, HeadFacts
from gateway.monitoring.call_line import caller_fields
from gateway.monitoring.call_log import CallLog
from gateway.net.exchange import Exchange, Upstream
from gateway.quota.store import Grant
from gateway.replays import Claim
from gateway.replies import inference_lines, lines_of, server_timing
from gateway.routing.router import Endpoint
from gateway.rows import RowPeek
from gateway.shared import Shared
from gateway.stream_meter import StreamMeter
from gateway.tickets import Charge, Ticket
from gateway.wire.grpc_blocks import Trailers, head_block, limits_block, reply_block
from gateway.wire.oip_peek import GrpcPeek

#: Whole bodies up to this are not counted in the worker's budget: `calls_in_flight_max` bounds them well enough.
UNCOUNTED_BYTES_MAX: Final = 4096

#: Where a call stands (`CallState.stage`); events for an earlier or later stage are ignored. Plain ints: see heads.
KEYED: Final = -1  # the whole request is awaited, to look its Idempotency-Key up
PEEKING: Final = 0  # gRPC: the model's name is not in yet; HTTP: the rows are not counted yet
DECIDING: Final = 1  # the owner of a limit was asked
FORWARDING: Final = 2
RECORDING: Final = 3  # the reply is complete and waits for its record
DONE: Final = 4


class CallState:
    """The only per-call object of ours; `stage` says which events still matter."""

    # Class-level defaults instead of __slots__: a call sets only what it needs; setting all of these costs 2 µs.
    version = ""
    principal: Principal | None = None
    endpoint: Endpoint | None = None
    grant: Grant | None = None
    upstream: Upstream | None = None
    peek: GrpcPeek | None = None
    #: Rows that the message spoke of, -1 if it did not.
    peeked_rows = -1
    row_peek: RowPeek | None = None
    deadline: asyncio.TimerHandle | None = None
    #: Request bytes that wait for a decision or a model name; None until there are some.
    held_request: list[bytes] | None = None
    #: The request's body when it came whole.
    body: bytes | None = None
    buffered_bytes = 0
    request_bytes = 0
    is_request_ended = False
    is_gone = False
    #: Answered well, but nothing was sold: no record, no count.
    is_free = False
    is_streaming = False
    reply_status = 0
    reply_headers: Headers
    reply_trailers: Headers | None = None
    #: gRPC: where `reply_trailers` come from.
    read_trailers: Trailers | None = None
    reply_body: list[bytes] | None = None
    reply_length = -1
    reply_bytes = 0
    rows = 1
    compute_ns = 0
    queue_ns = 0
    backend_start_ns = 0
    backend_end_ns = 0
    record_ns = 0
    ticket: Ticket | None = None
    #: Of a reply that may be a stream.
    meter: StreamMeter | None = None
    is_stream_billed = False
    #: Of a call that a wallet pays, or whose caller named the most it may cost.
    bound: Bound | None = None
    #: The right to run a call with an Idempotency-Key.
    claim: Claim | None = None
    code: Code | None = None
    status = 0
    stage: int = DECIDING

    def __init__(self, gateway: Shared, exchange: Exchange, facts: HeadFacts, body: bytes | None = None) -> None:
        """`body`: the whole request's, when it came with its head."""
        self.gateway = gateway
        #: Pinned: keys, prices and price version of one snapshot, whatever is published while the call runs.
        self.policy = gateway.policy
        self.exchange = exchange
        self.facts = facts
        self.charge: Charge = self.policy.not_billable
        self.arrival_ns = gateway.monotonic_ns()
        self.arrival_wall_ns = wall_ns = gateway.wall_ns()
        ids = gateway.ids
        #: 36 characters; the 16 bytes that the usage record keeps; the 32 digits of a trace that begins here.
        self.call_id = ids.mint(wall_ns)
        self.call_id_raw = ids.raw
        self.call_id_hex = ids.hex
        self.model = facts.model
        if facts.version:
            self.version = facts.version
        if body is not None:
            self.body = body
            self.is_request_ended = True
            self.request_bytes = len(body)
            if len(body) > UNCOUNTED_BYTES_MAX:
                self._buffer(len(body))

    def _left_ns(self) -> int:
        """What is left of the caller's deadline, at least 1; 0 without one."""
        timeout_ns = self.facts.timeout_ns
        return max(1, self.arrival_ns + timeout_ns - self.gateway.monotonic_ns()) if timeout_ns else 0

    # -- what is said of it -------------------------------------------------------------------------------------------

    def _own_headers(self, record_ns: int) -> Headers:
        """Identity, charge, time and limits: what every answer of ours carries (CONTRACT.md §6)."""
        backend_ns = (self.backend_end_ns or self.gateway.monotonic_ns()) - self.backend_start_ns
        headers = self._identity()
        if self.facts.kind == INFER and not (self.is_streaming and self.meter is not None):
            headers.append((b"tollway-charge", self.charge.text))
        gateway_ns = self.backend_start_ns - self.arrival_ns
        headers.append((b"server-timing", server_timing(gateway_ns, self.queue_ns, backend_ns, record_ns)))
        if self.grant is not None:
            headers.extend(self.grant.headers)
        return headers

    def _timing(self) -> bytes:
        return server_timing(
            self.backend_start_ns - self.arrival_ns,
            self.queue_ns,
            self.backend_end_ns - self.backend_start_ns,
            self.record_ns,
        )

    def _reply_lines(self) -> bytes:
        """`reply_headers` and `_own_headers` of an inference as HTTP/1.1 lines, in one formatting step."""
        call_id = self.call_id
        request_id = self.facts.request_id or call_id
        kept = lines_of(self.reply_headers)
        return inference_lines(kept, self.grant, call_id, request_id, self.charge.text, self._timing())

    def _reply_block(self) -> bytes:
        """The same as an HTTP/2 header block, for gRPC."""
        encoder, call_id, grant = self.gateway.encoder, self.call_id, self.grant
        request_id = self.facts.request_id or call_id
        head = head_block(encoder, self.reply_status, self.reply_headers)
        block = reply_block(head, call_id, request_id, self.charge.text, self._timing())
        return block if grant is None or not grant.policy else block + limits_block(grant.policy, grant.left)

    def _trailer_block(self, trailers: Trailers) -> bytes:
        block = trailers.block
        if block is None:
            block = trailers.block = self.gateway.encoder.encode(trailers.kept)
        return block

    def _identity(self) -> Headers:
        return [(b"tollway-call-id", self.call_id), (b"x-request-id", self.facts.request_id or self.call_id)]

    def _caller_fields(self, protocol: str, model: str) -> bytes:
        principal = self.principal
        if principal is None:
            return caller_fields("", "", protocol, model)
        return caller_fields(principal.tenant.tenant, principal.key.key_id, protocol, model)

    def _log(self, call_log: CallLog, caller: bytes, code: bytes, duration_ns: int) -> None:
        gateway = self.gateway
        backend_ns = self.backend_end_ns - self.backend_start_ns
        call_log.write(
            gateway.lines.line(
                gateway.wall_ns(),
                self.call_id,
                caller,
                code,
                self.status,
                self.rows,
                self.charge.nanos,
                duration_ns,
                backend_ns if backend_ns > 0 else 0,
                self.record_ns,
                self.request_bytes,
                self.reply_bytes,
                self.facts.trace_id or self.call_id_hex,
            )
        )

    # -- memory -------------------------------------------------------------------------------------------------------

    def hold(self, size: int) -> None:
        """Reply bytes that wait in the meter (negative: no longer)."""
        self._buffer(size)

    def _buffer(self, size: int) -> None:
        self.buffered_bytes += size
        self.gateway.budget.add(size)

    def _unbuffer(self) -> None:
        self.gateway.budget.sub(self.buffered_bytes)
        self.buffered_bytes = 0
