"""The life of a call, driven by hand: every stage, every way out, and that each call ends exactly once."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from billing.events import Reason, Served, decode
from billing.rating import Price, PriceBook, compile_book
from gateway.auth.keyring import Keyring
from gateway.auth.keys import digest, mint
from gateway.call import Data, Headers, RequestHead
from gateway.clock import FakeClock
from gateway.errors import Code, Refusal
from gateway.forwarding import forwarded_block, forwarded_headers, forwarded_lines
from gateway.heads import facts_of
from gateway.monitoring.metrics import CallCounters
from gateway.net.budget import BufferBudget
from gateway.net.exchange import POOL_FULL
from gateway.pipeline import Gateway
from gateway.quota.store import Decision, Grant, OnDecision
from gateway.routing.router import Endpoint, Router
from gateway.settings import Limits
from gateway.snapshot import Key, Plan, Secret, Snapshot, Tenant
from gateway.tickets import Policy
from gateway.wire.header_blocks import BlockEncoder
from gateway.wire.http1 import encode_fields

PEPPER = b"p" * 32
KEY = mint()
KEY_TEXT = KEY.text.encode()
BOOK = PriceBook(
    version=3,
    currency="USD",
    default=Price(per_call_nanos=1000, per_row_nanos=10),
    models={"timed": Price(per_compute_ms_nanos=5), "flat": Price(per_call_nanos=7)},
)


def snapshot(*, scopes: tuple[str, ...] = ("infer", "read"), models: tuple[str, ...] | None = None) -> Snapshot:
    key = Key(
        kid=KEY.kid,
        key_id="key-1",
        tenant="acme",
        secrets=(Secret(digest=digest(PEPPER, KEY.secret), pepper_version=1),),
        scopes=scopes,
        models=models,
    )
    return Snapshot(
        version=1,
        created_ns=0,
        keys=(key,),
        tenants=(Tenant(tenant="acme", plan="payg"),),
        plans=(Plan(name="payg", version=1, pricing="priced"),),
        backends=(),
        prices=BOOK,
        peppers={1: PEPPER},
    )


class FakeExchange:
    def __init__(self, head: RequestHead) -> None:
        self.head = head
        self.call: Any = None
        self.is_writable = True
        self.is_h2 = head.is_grpc
        self.continues = 0
        self.replies: list[tuple[int, dict[bytes, bytes], bytes, Headers | None]] = []
        self.streamed = b""
        self.streamed_head: tuple[int, dict[bytes, bytes]] | None = None
        self.ended = False
        self.trailers: dict[bytes, bytes] = {}
        self.aborted = False
        self.paused = 0

    def reply(self, status: int, headers: Headers, body: Data, trailers: Headers | None = None) -> None:
        assert not self.replies, "a second reply"
        self.replies.append((status, dict(headers), bytes(body), trailers))

    def send_head(self, status: int, headers: Headers) -> None:
        self.streamed_head = (status, dict(headers))

    def send_body(self, data: Data) -> None:
        self.streamed += bytes(data)

    def send_end(self, trailers: Headers | None = None) -> None:
        self.ended = True
        self.trailers = dict(trailers or ())

    def send_continue(self) -> None:
        self.continues += 1

    def pause(self) -> None:
        self.paused += 1

    def resume(self) -> None:
        self.paused = 0

    def abort(self, h2_error: int = 0x2) -> None:
        self.aborted = True


class FakeUpstream:
    def __init__(self, method: bytes, target: bytes, headers: Headers, length: int, listener: Any) -> None:
        self.head = (method, target, dict(headers), length)
        self.listener = listener
        self.body = b""
        self.ended = False
        self.cancelled = False
        self.is_writable = True
        self.paused = False

    def send_body(self, data: Data) -> None:
        self.body += bytes(data)

    def send_end(self) -> None:
        self.ended = True

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def cancel(self) -> None:
        self.cancelled = True


class FakePool:
    def __init__(self) -> None:
        self.requests: list[FakeUpstream] = []

    def request(
        self, method: bytes, target: bytes, headers: Headers, content_length: int, listener: Any
    ) -> FakeUpstream:
        upstream = FakeUpstream(method, target, headers, content_length, listener)
        self.requests.append(upstream)
        return upstream

    def close(self) -> None: ...


class FakeLog:
    def __init__(self) -> None:
        self.is_accepting = True
        self.waiting: list[tuple[int, Callable[[int], None]]] = []
        self.records: list[Any] = []
        self.ended: list[tuple[int, str, int]] = []

    def append(self, payload: bytes, on_durable: Callable[[int], None]) -> int:
        self.records.append(decode(payload))
        self.waiting.append((len(self.records), on_durable))
        return len(self.records)

    def mark_ended(self, served_seq: int, cause: str, bytes_sent: int) -> None:
        self.ended.append((served_seq, cause, bytes_sent))

    def sync(self) -> None:
        waiting, self.waiting = self.waiting, []
        for seq, on_durable in waiting:
            on_durable(seq)


class FakeQuota:
    def __init__(self) -> None:
        self.decision: Decision | None = Grant("acme", b'"rate";q=5;w=1', b'"rate";r=4;t=1')
        self.waiting: list[OnDecision] = []
        self.released: list[bool] = []

    def admit(self, tenant: Tenant, plan: Plan, on_decision: OnDecision) -> Decision | None:
        if self.decision is None:
            self.waiting.append(on_decision)
        return self.decision

    def release(self, grant: Grant, *, is_counted: bool) -> None:
        self.released.append(is_counted)

    async def close(self) -> None: ...


class FakeTimer:
    def cancel(self) -> None: ...


class FakeLoop:
    def __init__(self) -> None:
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> FakeTimer:
        self.timers.append((delay_s, callback))
        return FakeTimer()


class World:
    """A gateway with fakes all around."""

    def __init__(self, *, limits: Limits | None = None, is_trusted: bool = True, **snapshot_of: Any) -> None:
        self.clock = FakeClock()
        self.pool, self.grpc_pool = FakePool(), FakePool()
        self.endpoint = Endpoint(
            name="e", models=None, http=self.pool, grpc=self.grpc_pool, is_trusted=is_trusted, is_up=True
        )
        self.endpoint.catalogue = {name: {"1": True} for name in ("flat", "rows", "timed")}
        self.log, self.quota, self.loop = FakeLog(), FakeQuota(), FakeLoop()
        self.counters = CallCounters()
        self.budget = BufferBudget(10_000_000)
        self.gateway = Gateway(
            policy=Policy(
                version=1,
                keyring=Keyring(snapshot(**snapshot_of)),
                rater=compile_book(BOOK),
                price_version=3,
                currency="USD",
            ),
            router=Router([self.endpoint]),
            quota=self.quota,
            log=self.log,
            limits=limits or Limits(),
            clock=self.clock,
            loop=self.loop,  # type: ignore[arg-type]  # a pipeline only sets timers
            counters=self.counters,
            call_log=None,
            budget=self.budget,
        )

    def head(self, target: bytes = b"/v2/models/flat/infer", *extra: tuple[bytes, bytes], **more: Any) -> RequestHead:
        headers = [(b"authorization", b"Bearer " + KEY_TEXT), (b"content-type", b"application/json"), *extra]
        method = more.pop("method", b"POST" if target.endswith(b"infer") or more.get("is_grpc") else b"GET")
        return RequestHead(method, target, headers, b"host", more.pop("length", 3), **more)

    def begin(self, head: RequestHead) -> FakeExchange:
        exchange = FakeExchange(head)
        self.gateway.on_head(exchange)
        return exchange

    def post(self, head: RequestHead, body: bytes = b"abc") -> FakeExchange:
        exchange = self.begin(head)
        self.gateway.on_body(exchange, body)
        self.gateway.on_end(exchange)
        return exchange

    def answer(
        self, upstream: FakeUpstream, body: bytes = b"{}", status: int = 200, *headers: tuple[bytes, bytes]
    ) -> None:
        upstream.listener.on_reply_head(status, [(b"content-type", b"application/json"), *headers], len(body))
        upstream.listener.on_reply_body(body)
        upstream.listener.on_reply_end([])

    def codes(self) -> list[str]:
        exported = self.counters.export({}, {})
        return sorted(key.split("\0")[2] for key, count in exported.calls.items() for _ in range(count))

    def assert_at_rest(self) -> None:
        assert self.gateway.live == set()
        assert self.budget.bytes_used == 0
        assert self.endpoint.outstanding == 0


@pytest.fixture
def world() -> World:
    return World()


def refused_with(exchange: FakeExchange) -> str:
    assert len(exchange.replies) == 1
    body = msgspec.json.decode(exchange.replies[0][2])
    assert isinstance(body["error"], str)
    return str(body["code"])


def test_a_reply_waits_for_its_record_and_carries_everything(world: World) -> None:
    exchange = world.post(world.head())
    upstream = world.pool.requests[0]
    assert (upstream.body, upstream.ended) == (b"abc", True)
    world.answer(upstream, b"{}", 200, (b"tollway-rows", b"4"), (b"tollway-compute-ns", b"900"), (b"x-m", b"1"))
    assert exchange.replies == []
    world.log.sync()
    status, headers, body, _ = exchange.replies[0]
    assert (status, body) == (200, b"{}")
    assert headers[b"tollway-charge"] == b"0.000000007 USD; reason=priced; price=3"
    assert headers[b"ratelimit"] == b'"rate";r=4;t=1'
    assert headers[b"x-m"] == b"1"
    assert headers[b"x-request-id"] == headers[b"tollway-call-id"]
    assert headers[b"server-timing"].startswith(b"gateway;dur=")
    assert b"tollway-rows" not in headers
    record = world.log.records[0]
    assert isinstance(record, Served)
    assert (record.tenant, record.key_id, record.model, record.rows) == ("acme", "key-1", "flat", 4)
    assert (record.compute_ns, record.charge_nanos, record.reason) == (900, 7, Reason.PRICED)
    assert (record.request_bytes, record.reply_bytes) == (3, 2)
    assert world.quota.released == [True]
    assert world.codes() == ["ok"]
    world.assert_at_rest()


def test_credentials_and_our_own_headers_stay_here_and_identity_goes_on(world: World) -> None:
    trace = b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"
    head = world.head(
        b"/v2/models/flat/infer",
        (b"x-request-id", b"mine"),
        (b"traceparent", trace),
        (b"tollway-rows", b"9"),
        (b"x-tollway-x", b"9"),
        (b"tollway-tenant", b"forged"),
        (b"cookie", b"c"),
        (b"x-other", b"kept"),
    )
    exchange = world.post(head)
    sent = world.pool.requests[0].head[2]
    assert b"authorization" not in sent
    own = {name: value for name, value in sent.items() if name.startswith((b"tollway-", b"x-tollway-", b"cookie"))}
    assert own == {b"tollway-tenant": b"acme"}
    assert sent[b"x-request-id"] == b"mine"
    assert sent[b"x-other"] == b"kept"
    assert sent[b"traceparent"].startswith(b"00-" + b"a" * 32 + b"-")
    assert sent[b"traceparent"].endswith(b"-01")
    assert sent[b"traceparent"] != trace
    world.answer(world.pool.requests[0])
    world.log.sync()
    assert exchange.replies[0][1][b"x-request-id"] == b"mine"


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ([], "unauthenticated"),
        ([(b"authorization", b"Bearer nope")], "unauthenticated"),
        ([(b"authorization", b"Bearer " + KEY_TEXT), (b"x-api-key", b"other")], "bad_request"),
        ([(b"x-api-key", KEY_TEXT), (b"idempotency-key", b"1")], "idempotency_unsupported"),
        ([(b"x-api-key", KEY_TEXT), (b"content-encoding", b"br")], "unsupported_encoding"),
        ([(b"x-api-key", KEY_TEXT), (b"x-request-timeout-ms", b"0")], "bad_request"),
        ([(b"x-api-key", KEY_TEXT), (b"x-request-timeout-ms", b"-5")], "bad_request"),
    ],
)
def test_refused_at_the_head_before_anything_moves(world: World, headers: Headers, code: str) -> None:
    exchange = world.post(RequestHead(b"POST", b"/v2/models/flat/infer", headers, b"h", 3))
    assert refused_with(exchange) == code
    assert world.pool.requests == []
    assert world.quota.released == []
    assert world.log.records == []
    world.assert_at_rest()


@pytest.mark.parametrize(
    ("method", "target", "code"),
    [
        (b"GET", b"/v2/models/flat/infer", "method_not_allowed"),
        (b"POST", b"/v2/models/nope/infer", "model_not_found"),
        (b"POST", b"/v2/models/flat/versions/9/infer", "version_not_found"),
        (b"GET", b"/else", "not_found"),
        (b"POST", b"/v2/models/%2e%2e/infer", "bad_request"),
    ],
)
def test_paths_and_models(world: World, method: bytes, target: bytes, code: str) -> None:
    assert refused_with(world.post(world.head(target, method=method))) == code
    assert world.quota.released == []
    world.assert_at_rest()


def test_scope_and_model_list_of_the_key() -> None:
    for world, target, code in (
        (World(scopes=("read",)), b"/v2/models/flat/infer", "scope_forbidden"),
        (World(scopes=("infer",)), b"/v2/models/flat", "scope_forbidden"),
        (World(models=("other",)), b"/v2/models/flat/infer", "model_forbidden"),
    ):
        assert refused_with(world.post(world.head(target))) == code


def test_states_that_refuse_every_call(world: World) -> None:
    changes: list[tuple[Callable[[], object], str]] = [
        (lambda: setattr(world.log, "is_accepting", False), "metering_unavailable"),
        (lambda: setattr(world.gateway, "is_policy_refused", True), "policy_stale"),
        (lambda: world.budget.add(99_000_000), "overloaded"),
        (lambda: setattr(world.gateway, "is_draining", True), "shutting_down"),
    ]
    for change, code in changes:
        change()
        exchange = world.post(world.head())
        assert refused_with(exchange) == code
        assert b"retry-after" in exchange.replies[0][1]


def test_a_backend_that_is_down_or_a_model_that_is_not_ready_is_503_with_a_time(world: World) -> None:
    world.endpoint.is_up = False
    exchange = world.post(world.head())
    assert refused_with(exchange) == "backend_unavailable"
    world.endpoint.is_up = True
    world.endpoint.catalogue = {"flat": {"1": False}}
    other = world.post(world.head())
    assert refused_with(other) == "model_not_ready"
    assert other.replies[0][0] == 503
    assert b"retry-after" in other.replies[0][1]


def test_quota_refusal_is_passed_on_and_nothing_else_happens(world: World) -> None:
    world.quota.decision = Refusal(code=Code.RATE_EXCEEDED, message="slow down", retry_after_ms=1001)
    exchange = world.post(world.head())
    assert refused_with(exchange) == "rate_exceeded"
    assert (exchange.replies[0][0], exchange.replies[0][1][b"retry-after"]) == (429, b"2")
    assert world.pool.requests == []
    world.assert_at_rest()


def test_a_pending_decision_holds_the_body_and_then_forwards_it(world: World) -> None:
    world.quota.decision = None
    exchange = world.post(world.head())
    assert world.pool.requests == []
    world.quota.waiting[0](Grant("acme", b"", b""))
    assert (world.pool.requests[0].body, world.pool.requests[0].ended) == (b"abc", True)
    world.answer(world.pool.requests[0])
    world.log.sync()
    assert exchange.replies[0][0] == 200
    world.assert_at_rest()


def test_a_grant_for_a_caller_who_left_is_given_back_uncounted(world: World) -> None:
    world.quota.decision = None
    exchange = world.post(world.head())
    world.gateway.on_abort(exchange)
    world.quota.waiting[0](Grant("acme", b"", b""))
    assert world.quota.released == [False]
    assert world.pool.requests == []
    assert world.codes() == ["cancelled"]
    world.assert_at_rest()


def test_hang_up_while_forwarding_cancels_upstream_and_is_free(world: World) -> None:
    exchange = world.post(world.head())
    world.gateway.on_abort(exchange)
    assert world.pool.requests[0].cancelled
    assert world.log.records == []
    assert world.quota.released == [False]
    world.assert_at_rest()


def test_hang_up_before_the_record_is_durable_is_marked_and_uncounted(world: World) -> None:
    exchange = world.post(world.head())
    world.answer(world.pool.requests[0])
    world.gateway.on_abort(exchange)
    world.log.sync()
    assert world.log.ended == [(1, "gone_before_durable", 0)]
    assert exchange.replies == []
    assert world.quota.released == [False]
    world.assert_at_rest()


def test_backend_errors_pass_through_unbilled(world: World) -> None:
    exchange = world.post(world.head())
    world.answer(world.pool.requests[0], b'{"error": "shape"}', 400)
    status, headers, body, _ = exchange.replies[0]
    assert (status, body) == (400, b'{"error": "shape"}')
    assert headers[b"tollway-charge"] == b"0 USD; reason=not_billable; price=3"
    assert world.log.records == []
    assert world.quota.released == [False]
    world.assert_at_rest()


@pytest.mark.parametrize(
    ("is_sent", "reason", "status", "code", "is_up"),
    [
        (False, "refused", 503, "backend_unavailable", False),
        (True, "closed", 502, "backend_protocol", True),
        (False, POOL_FULL, 503, "queue_full", True),
    ],
)
def test_upstream_failures(world: World, is_sent: bool, reason: str, status: int, code: str, is_up: bool) -> None:
    exchange = world.post(world.head())
    world.pool.requests[0].listener.on_reply_error(is_sent=is_sent, reason=reason)
    assert refused_with(exchange) == code
    assert exchange.replies[0][0] == status
    assert world.endpoint.is_up is is_up
    assert world.quota.released == [False]
    world.assert_at_rest()


def test_large_replies_stream_all_but_the_last_piece_until_recorded() -> None:
    world = World(limits=Limits(held_reply_bytes_max=4))
    exchange = world.post(world.head())
    upstream = world.pool.requests[0]
    upstream.listener.on_reply_head(200, [(b"tollway-rows", b"2")], 9)
    upstream.listener.on_reply_body(b"abc")
    assert exchange.streamed_head is None
    upstream.listener.on_reply_body(b"def")
    upstream.listener.on_reply_body(b"ghi")
    assert exchange.streamed_head is not None
    assert exchange.streamed_head[1][b"content-length"] == b"9"
    assert exchange.streamed_head[1][b"tollway-charge"] == b"0.000000007 USD; reason=priced; price=3"
    assert exchange.streamed == b"abcdef"
    upstream.listener.on_reply_end([])
    assert exchange.streamed == b"abcdef"
    assert not exchange.ended
    world.log.sync()
    assert exchange.streamed == b"abcdefghi"
    assert exchange.ended
    world.assert_at_rest()


def test_a_broken_streamed_reply_is_cut_and_not_billed() -> None:
    world = World(limits=Limits(held_reply_bytes_max=1))
    exchange = world.post(world.head())
    upstream = world.pool.requests[0]
    upstream.listener.on_reply_head(200, [], -1)
    upstream.listener.on_reply_body(b"abc")
    upstream.listener.on_reply_error(is_sent=True, reason="closed")
    assert exchange.aborted
    assert world.log.records == []
    world.assert_at_rest()


def test_a_slow_reader_pauses_the_backend_and_a_slow_backend_pauses_the_caller() -> None:
    world = World(limits=Limits(held_reply_bytes_max=1))
    exchange = world.begin(world.head(length=100))
    upstream = world.pool.requests[0]
    upstream.is_writable = False
    world.gateway.on_body(exchange, b"x" * 50)
    assert exchange.paused
    upstream.listener.on_upstream_writable()
    assert not exchange.paused
    exchange.is_writable = False
    upstream.listener.on_reply_head(200, [], -1)
    upstream.listener.on_reply_body(b"abc")
    assert upstream.paused
    world.gateway.on_writable(exchange)
    assert not upstream.paused


@pytest.mark.parametrize(("length", "is_refused"), [(10, False), (11, True)])
def test_body_limit_at_its_boundary_declared_and_undeclared(length: int, is_refused: bool) -> None:
    for declared in (length, -1):
        world = World(limits=Limits(body_bytes_max=10))
        exchange = world.begin(world.head(length=declared))
        world.gateway.on_body(exchange, b"x" * length)
        assert bool(exchange.replies) is is_refused
        if is_refused:
            assert refused_with(exchange) == "body_too_large"
            assert all(upstream.cancelled for upstream in world.pool.requests)
            world.assert_at_rest()


def test_a_deadline_cancels_upstream_and_answers_504(world: World) -> None:
    exchange = world.post(world.head(b"/v2/models/flat/infer", (b"x-request-timeout-ms", b"5000")))
    call = exchange.call
    assert int(world.pool.requests[0].head[2][b"tollway-deadline-ns"]) == 5_000_000_000
    assert call.deadline is not None
    call.on_deadline()
    assert refused_with(exchange) == "deadline_exceeded"
    assert exchange.replies[0][0] == 504
    assert world.pool.requests[0].cancelled
    world.assert_at_rest()


def test_a_deadline_after_the_record_was_appended_still_delivers(world: World) -> None:
    exchange = world.post(world.head(b"/v2/models/flat/infer", (b"x-request-timeout-ms", b"5000")))
    call = exchange.call
    world.answer(world.pool.requests[0])
    call.on_deadline()
    world.log.sync()
    assert exchange.replies[0][0] == 200


def test_calls_without_a_deadline_end_with_the_sweep(world: World) -> None:
    exchange = world.post(world.head())
    world.clock.advance(int(299e9))
    world.gateway.sweep()
    assert exchange.replies == []
    world.clock.advance(int(2e9))
    world.gateway.sweep()
    assert refused_with(exchange) == "deadline_exceeded"


def test_health_needs_no_key_and_tells_the_truth(world: World) -> None:
    live = world.begin(RequestHead(b"GET", b"/v2/health/live", [], b"h", 0))
    ready = world.begin(RequestHead(b"GET", b"/v2/health/ready", [], b"h", 0))
    assert (live.replies[0][0], live.replies[0][2]) == (200, b'{"live": true}')
    assert (ready.replies[0][0], ready.replies[0][2]) == (200, b'{"ready": true}')
    world.endpoint.catalogue = {}
    assert world.begin(RequestHead(b"GET", b"/v2/health/ready", [], b"h", 0)).replies[0][0] == 503
    world.endpoint.catalogue = {"flat": {"1": True}}
    world.gateway.is_draining = True
    assert world.begin(RequestHead(b"GET", b"/v2/health/ready", [], b"h", 0)).replies[0][0] == 503
    assert world.begin(RequestHead(b"GET", b"/v2/health/live", [], b"h", 0)).replies[0][0] == 200


def test_reads_need_a_key_but_move_no_counter(world: World) -> None:
    exchange = world.begin(world.head(b"/v2/models/flat", length=0))
    world.gateway.on_end(exchange)
    world.answer(world.pool.requests[0])
    assert exchange.replies[0][0] == 200
    assert b"tollway-charge" not in exchange.replies[0][1]
    assert world.quota.released == []
    assert world.log.records == []
    world.assert_at_rest()


def test_a_backend_that_is_not_trusted_is_told_no_tenant() -> None:
    world = World(is_trusted=False)
    world.post(world.head(b"/v2/models/flat/infer", (b"tollway-tenant", b"forged")))
    assert b"tollway-tenant" not in world.pool.requests[0].head[2]


@pytest.mark.parametrize("left_ns", [0, 5_000_000])
@pytest.mark.parametrize("tenant", [b"", b"acme"])
def test_a_tenant_is_told_alike_in_every_form(left_ns: int, tenant: bytes) -> None:
    """As pairs, as HTTP/1.1 lines and as an HTTP/2 block."""
    head = RequestHead(b"POST", b"/v2/models/m/infer", [(b"tollway-tenant", b"forged"), (b"x-a", b"b")], b"h", 0)
    facts = facts_of(head)
    hex_id = b"0123456789abcdef" * 2
    arguments = (facts, b"id", hex_id, left_ns, tenant)
    pairs = forwarded_headers(*arguments, is_grpc=False)
    assert [value for name, value in pairs if name == b"tollway-tenant"] == ([tenant] if tenant else [])
    assert forwarded_lines(*arguments) == encode_fields(pairs)
    encoder = BlockEncoder()
    block = forwarded_block(encoder, *arguments)
    assert block == encoder.encode(forwarded_headers(*arguments, is_grpc=True))


def grpc_head(world: World, method: bytes = b"ModelInfer") -> RequestHead:
    return world.head(
        b"/inference.GRPCInferenceService/" + method, (b"te", b"trailers"), length=-1, is_grpc=True, method=b"POST"
    )


def grpc_body(model: bytes, rest: bytes = b"") -> bytes:
    message = b"\x0a" + bytes([len(model)]) + model + rest
    return b"\0" + len(message).to_bytes(4, "big") + message


def test_grpc_model_is_peeked_whatever_the_cut(world: World) -> None:
    body = grpc_body(b"flat", b"\x1a\x02id")
    for cut in range(1, len(body)):
        exchange = world.begin(grpc_head(world))
        world.gateway.on_body(exchange, body[:cut])
        world.gateway.on_body(exchange, body[cut:])
        world.gateway.on_end(exchange)
        upstream = world.grpc_pool.requests[-1]
        assert (upstream.body, upstream.ended) == (body, True)
        upstream.listener.on_reply_head(200, [(b"content-type", b"application/grpc")], -1)
        upstream.listener.on_reply_body(b"\0\0\0\0\x01x")
        upstream.listener.on_reply_end([(b"grpc-status", b"0")])
        world.log.sync()
        assert exchange.replies[0][3] == [(b"grpc-status", b"0")]
        assert world.log.records[-1].protocol == 1
    world.assert_at_rest()


def test_grpc_refusals_are_trailers_with_our_code(world: World) -> None:
    exchange = world.begin(grpc_head(world))
    world.gateway.on_body(exchange, grpc_body(b"nope"))
    world.gateway.on_end(exchange)
    trailers = dict(exchange.replies[0][3] or [])
    assert (trailers[b"grpc-status"], trailers[b"tollway-code"]) == (b"5", b"model_not_found")
    unknown = world.begin(grpc_head(world, b"Nothing"))
    assert dict(unknown.replies[0][3] or [])[b"grpc-status"] == b"12"
    world.assert_at_rest()


def test_grpc_model_ready_of_a_model_that_is_not_is_an_answer(world: World) -> None:
    world.endpoint.catalogue = {"flat": {"1": False}}
    exchange = world.begin(grpc_head(world, b"ModelReady"))
    world.gateway.on_body(exchange, grpc_body(b"flat"))
    world.gateway.on_end(exchange)
    assert (exchange.replies[0][2], exchange.replies[0][3]) == (b"\0\0\0\0\0", [(b"grpc-status", b"0")])
    world.assert_at_rest()


def test_a_second_model_name_after_forwarding_ends_the_call(world: World) -> None:
    """What was authorised must be what runs: protobuf would let the last name win at the backend."""
    message = b"\x0a\x04flat\x1a\x01i"
    late = b"\x0a\x04rows"
    prefix = b"\0" + (len(message) + len(late)).to_bytes(4, "big")
    exchange = world.begin(grpc_head(world))
    world.gateway.on_body(exchange, prefix + message)
    assert len(world.grpc_pool.requests) == 1
    world.gateway.on_body(exchange, late)
    assert world.grpc_pool.requests[0].cancelled
    assert dict(exchange.replies[0][3] or [])[b"grpc-status"] == b"3"
    assert world.log.records == []
    world.assert_at_rest()


def test_a_failed_grpc_call_is_passed_on_unbilled(world: World) -> None:
    exchange = world.begin(grpc_head(world))
    world.gateway.on_body(exchange, grpc_body(b"flat"))
    world.gateway.on_end(exchange)
    upstream = world.grpc_pool.requests[0]
    upstream.listener.on_reply_head(200, [(b"content-type", b"application/grpc")], -1)
    upstream.listener.on_reply_end([(b"grpc-status", b"3"), (b"grpc-message", b"bad shape")])
    assert (b"grpc-status", b"3") in (exchange.replies[0][3] or [])
    assert world.log.records == []
    world.assert_at_rest()


def test_rows_of_an_untrusted_backend_are_counted_here_before_anything_is_forwarded() -> None:
    world = World(is_trusted=False)
    body = b'{"inputs": [{"name": "x", "shape": [3, 4], "datatype": "FP32", "data": []}]}'
    exchange = world.post(world.head(b"/v2/models/rows/infer", length=len(body)), body)
    world.answer(world.pool.requests[0], b"{}", 200, (b"tollway-rows", b"1"))
    world.log.sync()
    assert exchange.replies[0][1][b"tollway-charge"] == b"0.00000103 USD; reason=priced; price=3"
    assert world.log.records[0].rows == 3
    world.assert_at_rest()


def test_rows_that_cannot_be_told_and_time_that_is_not_reported_are_refused() -> None:
    for target, headers, body, code in (
        (b"/v2/models/rows/infer", (), b"{}", "invalid_tensor"),
        (b"/v2/models/rows/infer", ((b"content-encoding", b"gzip"),), b"x", "unsupported_encoding"),
        (b"/v2/models/rows/infer", ((b"inference-header-content-length", b"x"),), b"{}", "bad_header_length"),
        (b"/v2/models/timed/infer", (), b"{}", "metering_unavailable"),
    ):
        world = World(is_trusted=False)
        exchange = world.post(world.head(target, *headers, length=len(body)), body)
        assert refused_with(exchange) == code
        assert world.pool.requests == []
        assert world.quota.released == []
        world.assert_at_rest()


def test_grpc_rows_that_cannot_be_told_are_not_sold_as_one() -> None:
    """A first input whose shape stands behind much else, sent in two reads: the peek gives up on its rows."""
    shape = b"\x1a\x03\xe8\x07\x04"
    parameters = b"".join(b"\x22\x05\x0a\x01%c\x12\x00" % (65 + at % 26) for at in range(900))
    tensor = b"\x0a\x01x\x12\x04FP32" + parameters + shape
    size = len(tensor)
    message = grpc_body(b"rows", b"\x2a" + bytes((size & 0x7F | 0x80, size >> 7)) + tensor)
    for cut, is_sold in ((len(message), True), (4500, False)):
        world = World(is_trusted=False)
        exchange = world.begin(grpc_head(world))
        for part in filter(None, (message[:cut], message[cut:])):
            world.gateway.on_body(exchange, part)
        world.gateway.on_end(exchange)
        upstream = world.grpc_pool.requests[0]
        upstream.listener.on_reply_whole(200, [], b"\0\0\0\0\0", [(b"grpc-status", b"0")])
        world.log.sync()
        if is_sold:
            assert world.log.records[0].rows == 1000
        else:
            assert world.log.records == []
            assert dict(exchange.replies[0][3] or [])[b"tollway-code"] == b"invalid_tensor"
        world.assert_at_rest()


def test_what_comes_after_the_answer_does_not_refuse_a_call_that_is_recorded(world: World) -> None:
    limited = World(limits=Limits(body_bytes_max=8))
    exchange = limited.begin(limited.head(length=-1))
    limited.gateway.on_body(exchange, b"abc")
    limited.answer(limited.pool.requests[0])
    limited.gateway.on_body(exchange, b"too much by far")
    assert exchange.replies == []
    limited.log.sync()
    assert exchange.replies[0][0] == 200
    assert limited.quota.released == [True]
    assert len(limited.log.records) == 1


def test_a_caller_that_waits_for_100_gets_it_before_its_rows_are_counted() -> None:
    world = World(is_trusted=False)
    body = b'{"inputs": [{"name": "x", "shape": [3, 4], "datatype": "FP32", "data": []}]}'
    head = world.head(b"/v2/models/rows/infer", length=len(body))
    head.expects_continue = True
    exchange = world.begin(head)
    assert exchange.continues == 1
    world.gateway.on_body(exchange, body)
    world.gateway.on_end(exchange)
    assert exchange.continues == 1, "once"
    world.answer(world.pool.requests[0])
    world.log.sync()
    assert world.log.records[0].rows == 3


def test_prices_are_pinned_for_the_whole_call() -> None:
    """A price book published while a reply streams must not split a call over two versions."""
    world = World(limits=Limits(held_reply_bytes_max=1))
    world.post(world.head())
    upstream = world.pool.requests[0]
    upstream.listener.on_reply_head(200, [], -1)
    upstream.listener.on_reply_body(b"abc")
    dearer = PriceBook(version=4, currency="USD", default=Price(per_call_nanos=9))
    world.gateway.policy = Policy(
        version=2, keyring=Keyring(snapshot()), rater=compile_book(dearer), price_version=4, currency="USD"
    )
    upstream.listener.on_reply_end([])
    assert (world.log.records[0].price_version, world.log.records[0].charge_nanos) == (3, 7)


def test_an_empty_model_name_is_refused_and_listings_need_an_unlimited_key(world: World) -> None:
    exchange = world.begin(grpc_head(world))
    world.gateway.on_body(exchange, b"\0\0\0\0\0")
    world.gateway.on_end(exchange)
    assert dict(exchange.replies[0][3] or [])[b"tollway-code"] == b"bad_request"
    limited = World(models=("flat",))
    index = limited.begin(limited.head(b"/v2/repository/index", method=b"POST", length=0))
    assert refused_with(index) == "model_forbidden"


def test_a_streamed_error_claims_no_charge() -> None:
    world = World(limits=Limits(held_reply_bytes_max=1))
    exchange = world.post(world.head())
    upstream = world.pool.requests[0]
    upstream.listener.on_reply_head(500, [], -1)
    upstream.listener.on_reply_body(b"abc")
    assert exchange.streamed_head is not None
    assert exchange.streamed_head[1][b"tollway-charge"] == b"0 USD; reason=not_billable; price=3"


def test_the_sweep_leaves_callers_with_a_deadline_to_it(world: World) -> None:
    exchange = world.post(world.head(b"/v2/models/flat/infer", (b"x-request-timeout-ms", b"900000")))
    world.clock.advance(int(301e9))
    world.gateway.sweep()
    assert exchange.replies == []
