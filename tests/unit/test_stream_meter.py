"""Streams through the pipeline: intent before the first byte, checkpoints, ends of every kind, what each bills."""

from typing import Any

import msgspec
import pytest
from tritonclient.grpc import service_pb2

from billing.events import Outcome, Progress, Reason, Served
from gateway.auth.keyring import Keyring
from gateway.errors import Code, Refusal
from gateway.settings import Limits
from gateway.stream_meter import CHECKPOINT_UNITS, REQUESTS_MAX
from gateway.stream_units import EventUnits, MessageUnits
from gateway.tickets import Policy
from gateway.wire.grpc import frame
from tests.unit.test_pipeline import FakeExchange, FakeUpstream, World, refused_with, snapshot

STREAM = b"/inference.GRPCInferenceService/ModelStreamInfer"


def request(model: str = "rows") -> bytes:
    message = service_pb2.ModelInferRequest(model_name=model)
    message.inputs.add(name="x", datatype="FP32", shape=[1])
    message.raw_input_contents.append(b"\0\0\0\0")
    return frame(message.SerializeToString())


def response(*, has_outputs: bool = True, is_final: bool | None = None, error: str = "", size: int = 4) -> bytes:
    message = service_pb2.ModelStreamInferResponse(error_message=error)
    message.infer_response.model_name = "rows"
    if is_final is not None:
        message.infer_response.parameters["triton_final_response"].bool_param = is_final
    if has_outputs and not error:
        message.infer_response.outputs.add(name="y", datatype="UINT8", shape=[size])
        message.infer_response.raw_output_contents.append(b"\x0a" * size)
    return frame(message.SerializeToString())


class Streams(World):
    """A gateway with one stream to a model of 1,000 nanos a call and 10 a row."""

    def open(self, *requests: bytes) -> tuple[FakeExchange, FakeUpstream]:
        exchange = self.begin(self.head(STREAM, is_grpc=True, length=-1))
        for data in requests or (request(),):
            self.gateway.on_body(exchange, data)
        upstream = self.grpc_pool.requests[-1]
        upstream.listener.on_reply_head(200, [(b"content-type", b"application/grpc")], -1)
        return exchange, upstream

    def started(self, *requests: bytes) -> tuple[FakeExchange, FakeUpstream]:
        """With one response delivered."""
        exchange, upstream = self.open(*requests)
        upstream.listener.on_reply_body(response())
        self.log.sync()
        return exchange, upstream

    def served(self) -> list[tuple[int, int, int]]:
        """(outcome, rows, charge) of the final records."""
        return [(r.outcome, r.rows, r.charge_nanos) for r in self.log.records if isinstance(r, Served)]

    def progress(self) -> list[tuple[int, int, int]]:
        found = [record.served for record in self.log.records if isinstance(record, Progress)]
        return [(served.outcome, served.rows, served.charge_nanos) for served in found]


OK = [(b"grpc-status", b"0")]


@pytest.fixture
def world() -> Streams:
    return Streams()


def test_nothing_is_sent_before_the_intent_is_durable_and_the_end_waits_for_the_record(world: Streams) -> None:
    exchange, upstream = world.open()
    upstream.listener.on_reply_body(response())
    assert world.progress() == [(Outcome.FAILED, 0, 0)]
    assert upstream.paused
    assert exchange.streamed_head is None
    assert world.budget.bytes_used > 0
    world.log.sync()
    assert exchange.streamed == response()
    assert not upstream.paused
    assert exchange.streamed_head is not None
    status, headers = exchange.streamed_head
    assert status == 200
    assert b"tollway-call-id" in headers
    assert b"ratelimit" in headers
    assert b"tollway-charge" not in headers
    upstream.listener.on_reply_body(response())
    upstream.listener.on_reply_end([*OK, (b"tollway-rows", b"2"), (b"tollway-compute-ns", b"5")])
    assert not exchange.ended
    assert world.served() == [(Outcome.OK, 2, 1020)]
    assert world.quota.released == []
    world.log.sync()
    assert exchange.ended
    assert exchange.trailers[b"grpc-status"] == b"0"
    assert exchange.trailers[b"tollway-charge"] == b"0.00000102 USD; reason=priced; price=3"
    assert b"tollway-rows" not in exchange.trailers
    assert world.quota.released == [True]
    assert world.codes() == ["ok"]
    world.assert_at_rest()


def test_a_reply_that_comes_whole_is_metered_alike(world: Streams) -> None:
    exchange, upstream = world.open()
    body = response() + response(has_outputs=False, is_final=True)
    upstream.listener.on_reply_whole(200, [(b"content-type", b"application/grpc")], body, OK)
    world.log.sync()
    world.log.sync()
    assert exchange.streamed == body
    assert exchange.ended
    assert world.served() == [(Outcome.OK, 1, 1010)]
    world.assert_at_rest()


def test_progress_is_noted_every_so_many_units_after_they_were_sent(world: Streams) -> None:
    exchange, upstream = world.started()
    for _ in range(CHECKPOINT_UNITS * 2):
        upstream.listener.on_reply_body(response())
        noted = world.progress()[-1][1]
        assert noted <= exchange.streamed.count(response())
    first, second = CHECKPOINT_UNITS, 2 * CHECKPOINT_UNITS
    assert world.progress()[1:] == [(0, first, 1000 + 10 * first), (0, second, 1000 + 10 * second)]
    assert {r.served.call_id for r in world.log.records} == {world.log.records[0].served.call_id}


def test_a_slow_stream_is_noted_by_time(world: Streams) -> None:
    _, upstream = world.started()
    assert len(world.progress()) == 1
    (delay_s, callback) = world.loop.timers[-1]
    assert delay_s == 1.0
    callback()
    assert world.progress()[-1][1] == 1
    callback()  # Nothing new: nothing to note.
    assert len(world.progress()) == 2
    upstream.listener.on_reply_body(response())
    assert len(world.loop.timers) == 2


def test_a_caller_that_leaves_pays_for_what_was_handed_over(world: Streams) -> None:
    exchange, upstream = world.started()
    upstream.listener.on_reply_body(response())
    upstream.listener.on_reply_body(response()[:-1])
    world.gateway.on_abort(exchange)
    assert upstream.cancelled
    assert world.served() == [(Outcome.OK, 2, 1020)]
    assert world.gateway.live
    world.log.sync()
    assert world.quota.released == [True]
    assert world.codes() == ["cancelled"]
    world.assert_at_rest()


def test_a_stream_that_says_nothing_is_free(world: Streams) -> None:
    exchange, upstream = world.open()
    upstream.listener.on_reply_end(OK)
    assert exchange.replies
    assert world.log.records == []
    assert world.quota.released == [False]
    world.assert_at_rest()


def test_a_caller_that_leaves_before_anything_came_pays_nothing(world: Streams) -> None:
    exchange, upstream = world.open()
    upstream.listener.on_reply_body(response())
    world.gateway.on_abort(exchange)
    world.log.sync()
    # The intent's answer comes too late: nothing is sent to nobody.
    assert exchange.streamed == b""
    assert world.served() == [(Outcome.FAILED, 0, 0)]
    assert world.log.records[-1].reason == Reason.NOT_BILLABLE
    assert world.quota.released == [False]
    world.assert_at_rest()
    exchange, _ = world.open()
    world.gateway.on_abort(exchange)
    assert len(world.log.records) == 2
    world.assert_at_rest()


def test_a_caller_that_leaves_while_the_last_record_is_written_has_had_it_all(world: Streams) -> None:
    exchange, upstream = world.started()
    upstream.listener.on_reply_end(OK)
    world.gateway.on_abort(exchange)
    world.log.sync()
    assert not exchange.ended
    assert world.served() == [(Outcome.OK, 1, 1010)]
    assert world.quota.released == [True]
    world.assert_at_rest()


@pytest.mark.parametrize("how", ["backend", "deadline", "revoked"])
def test_a_stream_that_is_cut_is_told_why_and_billed_for_what_it_had(world: Streams, how: str) -> None:
    exchange, upstream = world.started()
    if how == "backend":
        upstream.listener.on_reply_error(is_sent=True, reason="reset")
    elif how == "deadline":
        next(iter(world.gateway.live)).on_deadline()
    else:
        revoked = Keyring(msgspec.structs.replace(snapshot(), keys=()))
        old = world.gateway.policy
        world.gateway.policy = Policy(
            version=2, keyring=revoked, rater=old.rater, price_version=3, currency=old.currency
        )
        world.loop.timers[-1][1]()
    code = {"backend": "backend_protocol", "deadline": "deadline_exceeded", "revoked": "unauthenticated"}[how]
    assert exchange.ended
    assert exchange.trailers[b"tollway-code"] == code.encode()
    assert exchange.trailers[b"grpc-status"] != b"0"
    assert world.served() == [(Outcome.OK, 1, 1010)]
    world.log.sync()
    assert world.codes() == [code]
    assert world.quota.released == [True]
    world.assert_at_rest()


def test_errors_in_the_stream_are_no_units_and_a_stream_of_errors_is_free(world: Streams) -> None:
    exchange, upstream = world.open()
    upstream.listener.on_reply_body(response(error="bad", is_final=True))
    world.log.sync()
    upstream.listener.on_reply_end(OK)
    world.log.sync()
    assert exchange.ended
    assert world.served() == [(Outcome.FAILED, 0, 0)]
    assert world.quota.released == [True]


def test_a_refusal_of_the_backend_is_passed_on_unbilled(world: Streams) -> None:
    exchange, upstream = world.open()
    upstream.listener.on_reply_end([(b"grpc-status", b"5"), (b"grpc-message", b"no")])
    assert exchange.replies[0][3] is not None
    assert world.log.records == []
    world.assert_at_rest()


def test_each_request_of_a_stream_is_a_call_in_quota_and_price(world: Streams) -> None:
    exchange, upstream = world.started(request())
    for _ in range(4):
        world.gateway.on_body(exchange, request())
    # One place of the concurrency limit, given back and taken again; rate and caps are taken of each time.
    assert world.quota.released == [True] * 4
    for _ in range(3):
        upstream.listener.on_reply_body(response(is_final=True))
    assert world.served() == [(Outcome.OK, 0, 1000)] * 2
    upstream.listener.on_reply_body(response(error="bad", is_final=True))
    upstream.listener.on_reply_end(OK)
    world.log.sync()
    # Five requests, one of them answered with an error: four are sold, with four units.
    assert sorted(world.served()) == [(Outcome.OK, 0, 1000)] * 3 + [(Outcome.OK, 4, 1040)]
    assert len({record.call_id for record in world.log.records if isinstance(record, Served)}) == 4
    assert exchange.trailers[b"tollway-charge"].startswith(b"0.00000404 USD")
    world.assert_at_rest()


def test_a_caller_that_leaves_pays_for_no_request_that_had_no_answer(world: Streams) -> None:
    exchange, upstream = world.started(*[request()] * 5)
    upstream.listener.on_reply_body(response(is_final=True))
    world.gateway.on_abort(exchange)
    assert world.served() == [(Outcome.OK, 2, 1020)]


def test_a_further_request_over_a_limit_ends_the_stream(world: Streams) -> None:
    exchange, _ = world.started()
    world.quota.decision = Refusal(code=Code.RATE_EXCEEDED, message="slow down", retry_after_ms=1500)
    world.gateway.on_body(exchange, request())
    assert exchange.trailers[b"grpc-status"] == b"8"
    assert exchange.trailers[b"retry-after"] == b"2"
    world.log.sync()
    assert world.served() == [(Outcome.OK, 1, 1010)]
    world.assert_at_rest()


def test_a_limit_that_is_asked_elsewhere_answers_later_or_too_late(world: Streams) -> None:
    exchange, upstream = world.started()
    grant, world.quota.decision = world.quota.decision, None
    world.gateway.on_body(exchange, request())
    world.gateway.on_body(exchange, request())
    assert len(world.quota.waiting) == 1
    assert grant is not None
    world.quota.waiting.pop()(grant)
    assert len(world.quota.waiting) == 1
    upstream.listener.on_reply_end(OK)
    world.log.sync()
    world.quota.waiting.pop()(grant)
    assert world.quota.released == [True, True, False]
    world.assert_at_rest()


def test_a_stream_may_not_carry_requests_without_end(world: Streams) -> None:
    exchange, _ = world.started()
    for _ in range(REQUESTS_MAX - 1):
        world.gateway.on_body(exchange, request())
    assert not exchange.ended
    world.gateway.on_body(exchange, request())
    assert exchange.trailers[b"grpc-status"] == b"3"


def test_every_message_of_a_stream_names_the_same_model(world: Streams) -> None:
    exchange, _ = world.started()
    world.gateway.on_body(exchange, request("flat"))
    assert b"names another model" in exchange.trailers[b"grpc-message"]
    assert exchange.ended


def test_a_slow_reader_pauses_the_backend(world: Streams) -> None:
    exchange, upstream = world.started()
    exchange.is_writable = False
    upstream.listener.on_reply_body(response())
    assert upstream.paused
    world.gateway.on_writable(exchange)
    assert not upstream.paused


def test_events_are_counted_and_an_error_after_the_first_is_an_event(world: Streams) -> None:
    target = b"/v2/models/rows/generate_stream"
    exchange = world.post(world.head(target, method=b"POST"))
    upstream = world.pool.requests[-1]
    upstream.listener.on_reply_head(200, [(b"content-type", b"text/event-stream")], -1)
    upstream.listener.on_reply_body(b'data: {"y":1}\n')
    upstream.listener.on_reply_body(b'\ndata: {"y":2}\n\ndata: {"error":"x"}\n\n')
    world.log.sync()
    upstream.listener.on_reply_error(is_sent=True, reason="reset")
    assert exchange.streamed.count(b"\n\n") == 4
    assert b'"code":"backend_protocol"' in exchange.streamed.split(b"\n\n")[3]
    assert world.served() == [(Outcome.OK, 2, 1020)]
    world.log.sync()
    world.assert_at_rest()


def test_a_stream_that_fails_before_its_first_event_has_a_status(world: Streams) -> None:
    exchange = world.post(world.head(b"/v2/models/rows/generate_stream", method=b"POST"))
    world.answer(world.pool.requests[-1], b'{"error":"no"}', 404)
    assert exchange.replies[0][0] == 404
    assert world.log.records == []
    assert refused_with(world.post(world.head(b"/v2/models/none/generate_stream", method=b"POST"))) == "model_not_found"


def test_keyless_streams_pass_unmetered() -> None:
    world = Streams()
    world.gateway.is_key_required = False
    head = world.head(STREAM, is_grpc=True, length=-1)
    head.headers[:] = []
    exchange = world.begin(head)
    world.gateway.on_body(exchange, request())
    upstream = world.grpc_pool.requests[-1]
    upstream.listener.on_reply_head(200, [], -1)
    upstream.listener.on_reply_body(response())
    upstream.listener.on_reply_end(OK)
    assert exchange.streamed == response()
    assert exchange.ended
    assert world.log.records == []
    world.assert_at_rest()


@pytest.mark.parametrize("is_trusted", [True, False])
def test_a_model_priced_by_time_is_not_sold_as_a_stream(*, is_trusted: bool) -> None:
    world = Streams(is_trusted=is_trusted)
    exchange = world.begin(world.head(STREAM, is_grpc=True, length=-1))
    world.gateway.on_body(exchange, request("timed"))
    trailers = dict(exchange.replies[0][3] or exchange.replies[0][1])
    assert trailers[b"grpc-status"] == b"12"
    assert world.grpc_pool.requests == []
    assert world.log.records == []
    world.assert_at_rest()
    assert (
        refused_with(world.post(world.head(b"/v2/models/timed/generate_stream", method=b"POST"))) == "not_implemented"
    )


@pytest.mark.parametrize("is_asked_elsewhere", [True, False])
def test_requests_that_come_with_the_first_are_admitted(world: Streams, *, is_asked_elsewhere: bool) -> None:
    grant = world.quota.decision
    assert grant is not None
    if is_asked_elsewhere:
        world.quota.decision = None
    exchange = world.begin(world.head(STREAM, is_grpc=True, length=-1))
    world.gateway.on_body(exchange, request() * 2000)
    asked = 0
    while world.quota.waiting:
        asked += 1
        world.quota.waiting.pop()(grant)
    assert world.quota.released == [True] * 1999
    assert asked == (2000 if is_asked_elsewhere else 0)
    assert world.grpc_pool.requests[-1].body == request() * 2000


def test_a_second_request_that_comes_with_the_first_is_refused_before_it_is_forwarded(world: Streams) -> None:
    grant, world.quota.decision = world.quota.decision, None
    assert grant is not None
    exchange = world.begin(world.head(STREAM, is_grpc=True, length=-1))
    world.gateway.on_body(exchange, request() * 3)
    world.quota.decision = Refusal(code=Code.RATE_EXCEEDED, message="slow down", retry_after_ms=1500)
    world.quota.waiting.pop()(grant)
    assert exchange.replies
    assert world.grpc_pool.requests == []
    assert world.quota.released == [True]
    world.assert_at_rest()


def test_requests_without_an_answer_are_free_when_the_backend_ends_with_a_fault(world: Streams) -> None:
    exchange, upstream = world.started(*[request()] * 5)
    upstream.listener.on_reply_body(response(is_final=True))
    upstream.listener.on_reply_end([(b"grpc-status", b"13")])
    world.log.sync()
    assert exchange.trailers[b"grpc-status"] == b"13"
    assert world.served() == [(Outcome.OK, 2, 1020)]
    assert world.codes() == ["backend_fault"]
    world.assert_at_rest()


def test_a_grant_that_comes_after_a_call_that_had_no_reply_is_given_back(world: Streams) -> None:
    exchange, _ = world.open()
    grant, world.quota.decision = world.quota.decision, None
    assert grant is not None
    world.gateway.on_body(exchange, request())
    world.gateway.on_abort(exchange)
    assert world.quota.released == [True]
    world.quota.waiting.pop()(grant)
    assert world.quota.released == [True, False]
    world.assert_at_rest()


def test_a_deadline_while_the_last_record_is_written_changes_nothing(world: Streams) -> None:
    exchange, upstream = world.started()
    upstream.listener.on_reply_end(OK)
    next(iter(world.gateway.live)).on_deadline()
    assert not exchange.ended
    assert world.quota.released == []
    world.log.sync()
    assert exchange.trailers[b"grpc-status"] == b"0"
    assert world.codes() == ["ok"]
    assert world.quota.released == [True]
    world.assert_at_rest()


def test_nothing_is_recorded_after_the_record_of_the_end(world: Streams) -> None:
    exchange, upstream = world.started(*[request()] * 5)
    old = world.gateway.policy
    revoked = Keyring(msgspec.structs.replace(snapshot(), keys=()))
    world.gateway.policy = Policy(version=2, keyring=revoked, rater=old.rater, price_version=3, currency=old.currency)
    failed = response(error="bad", is_final=True)
    upstream.listener.on_reply_body(failed + response(is_final=True) * CHECKPOINT_UNITS)
    assert exchange.ended
    served = [record for record in world.log.records if isinstance(record, Served)]
    assert served[-1].call_id == world.log.records[0].served.call_id
    assert len({record.call_id for record in served}) == len(served) == 4


def test_units_are_counted_in_any_cut() -> None:
    messages = [response(), response(error="e"), response(has_outputs=False, is_final=True), response(size=9000)]
    data = b"".join([*messages, response(is_final=False), frame(b"")])
    for step in (1, 2, 3, 7, 4096, len(data)):
        units = MessageUnits()
        for begin in range(0, len(data), step):
            units.feed(memoryview(data)[begin : begin + step])
        assert (units.count, units.errors, units.finals, units.is_within) == (3, 1, 1, True), step
    text = b'data: {"y":1}\n\ndata: {"error":"x"}\n\n' + b"data: " + b"z" * 5000 + b"\n\n\n\n" + b"data: half"
    for step in (1, 2, 3, 7, 64, len(text)):
        events = EventUnits()
        for begin in range(0, len(text), step):
            events.feed(text[begin : begin + step])
        assert (events.count, events.errors) == (2, 1), step


@pytest.mark.parametrize(
    "message", [b"", b"\x12", b"\x12\x05\x22", b"\x12\xff\xff", b"\x12\x03\x08\x01\x08", b"\x99\x01"]
)
def test_what_is_no_response_is_no_unit(message: bytes) -> None:
    units: Any = MessageUnits()
    units.feed(frame(message))
    assert (units.count, units.finals) == (0, 0)


def test_a_streamed_reply_still_counts_against_the_body_limit_of_requests() -> None:
    world = Streams(limits=Limits(body_bytes_max=len(request()) + 3))
    exchange, _ = world.started()
    world.gateway.on_body(exchange, request())
    assert exchange.trailers[b"tollway-code"] == b"body_too_large"


def test_a_long_id_before_the_outputs_makes_no_response_free() -> None:
    for size in (3000, 4070, 4085, 4090, 4096, 9000):
        for step in (1 << 20, 1000):
            message = service_pb2.ModelStreamInferResponse()
            message.infer_response.id = "i" * size
            message.infer_response.outputs.add(name="y", datatype="UINT8", shape=[1])
            data = frame(message.SerializeToString())
            units = MessageUnits()
            for begin in range(0, len(data), step):
                units.feed(data[begin : begin + step])
            assert units.count == 1, (size, step)


def test_a_short_end_without_outputs_is_no_unit_and_a_compressed_message_is_one() -> None:
    units = MessageUnits()
    units.feed(response(has_outputs=False, is_final=True))
    assert (units.count, units.finals) == (0, 1)
    units.feed(b"\1" + response(has_outputs=False)[1:])
    units.feed(response())
    assert (units.count, units.errors, units.is_within) == (2, 0, True)


def test_a_comment_is_no_unit_and_events_may_end_in_crlf() -> None:
    long = b"data: " + b"z" * 57 + b"\ndata: " + b"y" * 200
    text = b": ping\n\n" + b"data: 1\r\n\r\n" + b": ping\r\n\r\n" + b": note\ndata: 2\n\n" + long + b"\n\n"
    for step in (1, 2, 3, 7, 64, 150, len(text)):
        events = EventUnits()
        for begin in range(0, len(text), step):
            events.feed(text[begin : begin + step])
        assert (events.count, events.errors) == (3, 0), step
