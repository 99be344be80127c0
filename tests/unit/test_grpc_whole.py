"""gRPC calls through a real gateway between real HTTP/2 connections: whole messages end as those byte by byte."""

import gc
import re
import weakref
from typing import Any

import pytest

from gateway import pipeline
from gateway.call import Headers
from gateway.net.h2_connection import H2Outbound
from gateway.net.h2_inbound import H2Inbound, H2InboundLimits, H2Shared
from gateway.net.h2_outbound import H2PoolLimits, H2UpstreamPool
from gateway.settings import Limits
from gateway.wire import http2_frames as frames
from tests.unit.net.h2_fakes import FakeLoop, FakeTransport, as_loop
from tests.unit.test_pipeline import KEY_TEXT, World
from tests.unit.wire.h2_tools import PLAIN_SETTINGS, data, frame, head, parse

INFER = b"/inference.GRPCInferenceService/ModelInfer"
INPUT = b"\x0a\x01x\x12\x04FP32\x1a\x02\x03\x40"
MESSAGE = b"\x0a\x04rows\x2a%c%b\x3a\xc8\x01%b" % (len(INPUT), INPUT, b"z" * 200)
REPLY: Headers = [(b":status", b"200"), (b"content-type", b"application/grpc"), (b"x-m", b"1")]
OK: Headers = [(b"grpc-status", b"0"), (b"tollway-x", b"1")]
_CALL_ID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")
_TRACE = re.compile(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-")


def framed(message: bytes, flag: int = 0) -> bytes:
    return bytes((flag,)) + len(message).to_bytes(4, "big") + message


class Wired:
    """One caller's connection, the gateway, one backend's connection."""

    def __init__(self, *, is_trusted: bool = True, limits: Limits | None = None) -> None:
        self.loop = FakeLoop()
        self.world = World(is_trusted=is_trusted, limits=limits)
        clock = self.world.clock
        pool = H2UpstreamPool("unix:///nowhere", H2PoolLimits(), as_loop(self.loop), clock.monotonic_ns)
        self.back, self.front = FakeTransport(), FakeTransport()
        self.backend = H2Outbound(pool)
        self.backend.connection_made(self.back)
        self.backend.data_received(PLAIN_SETTINGS + frames.SETTINGS_ACK)
        self.world.endpoint.grpc = pool
        self.shared = H2Shared(self.world.gateway, H2InboundLimits(), as_loop(self.loop), clock.monotonic_ns)
        self.caller = H2Inbound(self.shared)
        self.caller.connection_made(self.front)
        self.caller.data_received(frames.PREFACE + PLAIN_SETTINGS + frames.SETTINGS_ACK)
        self.loop.turn()
        self.back.take()
        self.front.take()

    def ask(self, raw: bytes, step: int) -> bytes:
        """Feed the caller's bytes; what reaches the backend."""
        for position in range(0, len(raw), step):
            self.caller.data_received(raw[position : position + step])
        self.loop.turn()
        return self.back.take()

    def answer(self, raw: bytes, step: int) -> bytes:
        """Feed the backend's bytes and make records durable; what reaches the caller."""
        for position in range(0, len(raw), step):
            self.backend.data_received(raw[position : position + step])
        self.world.log.sync()
        self.loop.turn()
        return self.front.take()


def request(stream_id: int, body: bytes, *extra: tuple[bytes, bytes], target: bytes = INFER) -> bytes:
    headers = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", target),
        (b":authority", b"host"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
        (b"authorization", b"Bearer " + KEY_TEXT),
        *extra,
    ]
    return head(stream_id, headers) + data(stream_id, body, is_end=True)


def reply(stream_id: int, body: bytes, trailers: Headers = OK) -> bytes:
    return head(stream_id, REPLY) + data(stream_id, body) + head(stream_id, trailers, is_end=True)


def comparable(raw: bytes) -> list[tuple[int, int, int, bytes]]:
    """Frames without window updates, split DATA joined, ids that are drawn anew made equal."""
    joined: list[tuple[int, int, int, bytes]] = []
    for kind, flags, stream_id, payload in parse(raw):
        if kind == frames.WINDOW_UPDATE:
            continue
        if joined and kind == frames.DATA and joined[-1][0] == kind and joined[-1][2] == stream_id:
            joined[-1] = (kind, flags, stream_id, joined[-1][3] + payload)
        else:
            plain = _TRACE.sub(b"TRACE", _CALL_ID.sub(b"ID", payload)) if kind == frames.HEADERS else payload
            joined.append((kind, flags, stream_id, plain))
    return joined


def record_of(wired: Wired) -> tuple[Any, ...]:
    return tuple((r.model, r.model_version, r.rows, r.charge_nanos, r.reply_bytes) for r in wired.world.log.records)


CASES: dict[str, tuple[bytes, tuple[tuple[bytes, bytes], ...]]] = {
    "plain": (framed(MESSAGE), ()),
    "with an id": (framed(MESSAGE), ((b"x-request-id", b"mine"),)),
    "with a long id": (framed(MESSAGE), ((b"x-request-id", b"m" * 128),)),
    "with a trace": (framed(MESSAGE), ((b"traceparent", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"),)),
    "with a time-out": (framed(MESSAGE), ((b"grpc-timeout", b"10S"),)),
    "with metadata": (framed(MESSAGE), ((b"x-mine", b"1"), (b"user-agent", b"me"))),
    "of another model": (framed(MESSAGE.replace(b"rows", b"none", 1)), ()),
    "naming its model twice": (framed(MESSAGE + b"\x0a\x04flat"), ()),
    "naming no UTF-8": (framed(MESSAGE.replace(b"rows", b"\xff\xff\xff\xff", 1)), ()),
    "cut": (framed(MESSAGE)[:-3], ()),
    "with a second message": (framed(MESSAGE) + framed(MESSAGE), ()),
    "compressed without a coding": (framed(MESSAGE, 1), ()),
    "without raw tensors": (framed(b"\x0a\x04rows\x2a%c%b" % (len(INPUT), INPUT)), ()),
    "with an idempotency key": (framed(MESSAGE), ((b"idempotency-key", b"1"),)),
    "large": (
        framed(b"\x0a\x04rows\x2a%c%b" % (len(INPUT), INPUT) + 2 * (b"\x3a\xa0\x1f" + b"z" * 4000)),
        (),
    ),
}


#: Wrong only at their end: byte by byte their upstream call has begun by then and is reset; whole it never begins.
LATE = ("naming its model twice", "cut", "with a second message")


@pytest.mark.parametrize("is_trusted", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_a_call_that_comes_whole_ends_as_one_that_comes_byte_by_byte(name: str, is_trusted: bool) -> None:
    body, extra = CASES[name]
    whole, steps = Wired(is_trusted=is_trusted), Wired(is_trusted=is_trusted)
    for stream_id in (1, 3, 5):
        raw = request(stream_id, body, *extra)
        asked, asked_in_steps = whole.ask(raw, len(raw)), steps.ask(raw, 1)
        if name in LATE:
            assert asked == b""
            assert parse(asked_in_steps)[-1][0] == frames.RST_STREAM
        else:
            assert comparable(asked) == comparable(asked_in_steps)
        upstream_id = max((entry[2] for entry in parse(asked)), default=0)
        answer = reply(upstream_id, framed(b"reply")) if upstream_id else b""
        got = whole.answer(answer, max(1, len(answer)))
        assert comparable(got) == comparable(steps.answer(answer, 1))
    assert record_of(whole) == record_of(steps)
    assert whole.world.codes() == steps.world.codes()
    if name not in LATE:
        assert whole.world.quota.released == steps.world.quota.released
    for wired in (whole, steps):
        wired.world.assert_at_rest()
        assert not wired.caller.h2.streams
        assert not wired.backend.h2.streams


@pytest.mark.parametrize(
    "trailers",
    [OK, [(b"grpc-status", b"5"), (b"grpc-message", b"no")], [(b"grpc-status", b"0"), (b"grpc-status", b"3")], []],
)
def test_a_reply_that_comes_whole_ends_as_one_that_comes_byte_by_byte(trailers: Headers) -> None:
    whole, steps = Wired(), Wired()
    for stream_id in (1, 3, 5):
        raw = request(stream_id, framed(MESSAGE))
        whole.ask(raw, len(raw))
        steps.ask(raw, len(raw))
        answer = reply(stream_id, framed(b"r" * 5000), trailers)
        assert comparable(whole.answer(answer, len(answer))) == comparable(steps.answer(answer, 1))
    assert record_of(whole) == record_of(steps)
    assert whole.world.codes() == steps.world.codes()
    whole.world.assert_at_rest()


UNITS: Headers = [(b"tollway-rows", b"4"), (b"tollway-compute-ns", b"900"), (b"tollway-queue-ns", b"12")]


@pytest.mark.parametrize("is_trusted", [True, False])
@pytest.mark.parametrize(
    "headers",
    [
        [*REPLY, *UNITS],
        [*REPLY, *reversed(UNITS)],
        [*REPLY[:2], *UNITS, REPLY[2]],
        [*REPLY, *UNITS, *UNITS],
        [*REPLY, (b"tollway-rows", b"x"), *UNITS[1:]],
        [*REPLY, *UNITS[:2]],
    ],
)
def test_units_of_the_engine_are_read_wherever_they_stand(headers: Headers, is_trusted: bool) -> None:
    whole, steps = Wired(is_trusted=is_trusted), Wired(is_trusted=is_trusted)
    for stream_id in (1, 3, 5):
        raw = request(stream_id, framed(MESSAGE))
        whole.ask(raw, len(raw))
        steps.ask(raw, len(raw))
        answer = head(stream_id, headers) + data(stream_id, framed(b"r")) + head(stream_id, OK, is_end=True)
        got = whole.answer(answer, len(answer))
        assert comparable(got) == comparable(steps.answer(answer, 1))
        assert b"tollway-rows" not in got
        assert b"x-m" in got
    rows = 4 if (b"tollway-rows", b"4") in headers else 1
    assert [record.rows for record in whole.world.log.records] == [rows if is_trusted else 3] * 3
    assert record_of(whole) == record_of(steps)


def test_a_whole_body_is_held_to_the_body_limit() -> None:
    wired = Wired(limits=Limits(body_bytes_max=100))
    for target in (INFER, b"/inference.GRPCInferenceService/ServerMetadata"):
        raw = request(1 if target is INFER else 3, framed(b"z" * 100), target=target)
        assert wired.ask(raw, len(raw)) == b""
    assert wired.world.codes() == ["body_too_large", "body_too_large"]
    wired.world.assert_at_rest()


def test_a_caller_that_leaves_in_between_cancels_upstream() -> None:
    wired = Wired()
    raw = request(1, framed(MESSAGE))
    wired.ask(raw, len(raw))
    gone = wired.ask(frame(frames.RST_STREAM, 0, 1, b"\0\0\0\x08"), 100)
    assert parse(gone) == [(frames.RST_STREAM, 0, 1, b"\0\0\0\x08")]
    assert wired.world.codes() == ["cancelled"]
    wired.world.assert_at_rest()


def test_a_call_leaves_nothing_to_the_collector() -> None:
    if (pipeline.__file__ or "").endswith(".so"):
        pytest.skip("objects of a compiled module take no weak references")
    wired = Wired()
    seen: list[weakref.ref[Any]] = []
    begin = wired.shared.on_request

    def watch(exchange: Any, body: bytes) -> None:
        assert begin is not None
        begin(exchange, body)
        seen.append(weakref.ref(exchange.call))

    wired.shared.on_request = watch
    gc.collect()
    gc.disable()
    try:
        for stream_id in (1, 3):
            raw = request(stream_id, framed(MESSAGE))
            wired.ask(raw, len(raw))
            assert seen[-1]() is not None
            answer = reply(stream_id, framed(b"reply"))
            wired.answer(answer, len(answer))
        assert [ref() for ref in seen] == [None, None]
    finally:
        gc.enable()
