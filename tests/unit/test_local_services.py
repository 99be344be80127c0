"""Health and reflection as a worker answers them: through the pipeline, with fakes around it."""

from typing import Any

import pytest

from gateway.call import Headers, RequestHead
from gateway.local_services import MESSAGE_BYTES_MAX, MESSAGES_MAX, WATCHERS_MAX
from gateway.settings import Limits
from gateway.wire.grpc import MessageReader, frame
from tests.unit.test_pipeline import FakeExchange, World
from tests.unit.wire.test_reflection import REQUEST, RESPONSE

CHECK = b"/grpc.health.v1.Health/Check"
WATCH = b"/grpc.health.v1.Health/Watch"
REFLECT = b"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
SERVING, NOT_SERVING, UNKNOWN = b"\x08\x01", b"\x08\x02", b"\x08\x03"
LIST = REQUEST(list_services="").SerializeToString()


@pytest.fixture
def world() -> World:
    return World()


def begin(world: World, target: bytes, *extra: tuple[bytes, bytes], is_keyed: bool = False) -> FakeExchange:
    head = world.head(target, *extra, length=-1, is_grpc=True, method=b"POST")
    if not is_keyed:
        headers: Headers = [pair for pair in head.headers if pair[0] != b"authorization"]
        head = RequestHead(b"POST", target, headers, b"host", -1, is_grpc=True)
    return world.begin(head)


def say(world: World, exchange: FakeExchange, *messages: bytes, is_end: bool = False) -> None:
    for message in messages:
        world.gateway.on_body(exchange, frame(message))
    if is_end:
        world.gateway.on_end(exchange)


def answers(exchange: FakeExchange) -> list[bytes]:
    return [message for _, message in MessageReader(1 << 20).feed(exchange.streamed)]


def status(exchange: FakeExchange) -> bytes:
    """How the call ended: with trailers after messages, or with trailers only."""
    if exchange.replies:
        return dict(exchange.replies[0][3] or ())[b"grpc-status"]
    assert exchange.ended
    return exchange.trailers[b"grpc-status"]


def service(name: str) -> bytes:
    return b"\x0a" + bytes([len(name)]) + name.encode()


def leave(world: World) -> None:
    world.gateway.is_leaving = True
    world.gateway.services.leave()


# -- Check ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "inference.GRPCInferenceService"])
def test_check_tells_the_truth_without_a_key_in_every_state(world: World, name: str) -> None:
    for is_up, expected in ((True, SERVING), (False, NOT_SERVING)):
        world.endpoint.is_up = is_up
        world.gateway.is_policy_refused = not is_up
        exchange = begin(world, CHECK)
        say(world, exchange, service(name) if name else b"", is_end=True)
        assert (answers(exchange), status(exchange)) == ([expected], b"0")
    world.assert_at_rest()


def test_check_that_comes_whole_is_answered_the_same(world: World) -> None:
    exchange = FakeExchange(RequestHead(b"POST", CHECK, [], b"host", -1, is_grpc=True))
    world.gateway.on_request(exchange, frame(b""))
    assert (answers(exchange), status(exchange)) == ([SERVING], b"0")
    world.assert_at_rest()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (frame(service("nix")), b"5"),
        (b"", b"3"),
        (frame(b"")[:3], b"3"),
        (frame(b"\x0a\x05ab"), b"3"),
        (frame(b"\x08\x01"), b"3"),
        (frame(b"\x0a\x01\xff"), b"3"),
        (frame(b"", is_compressed=True), b"12"),
        (b"\x07" + frame(b"")[1:], b"13"),
        (frame(b"\x0a" + bytes(MESSAGE_BYTES_MAX)), b"8"),
    ],
)
@pytest.mark.parametrize("target", [CHECK, WATCH])
def test_bad_health_requests_are_refused(world: World, target: bytes, body: bytes, expected: bytes) -> None:
    if target == WATCH and expected == b"5":
        expected = b"0"  # what is not known may become so: told below
    for cut in (0, 1, len(body) // 2):
        exchange = begin(world, target)
        world.gateway.on_body(exchange, body[:cut])
        world.gateway.on_body(exchange, body[cut:])
        world.gateway.on_end(exchange)
        if expected == b"0":
            leave(world)
        assert status(exchange) == expected
    world.assert_at_rest()


# -- Watch ------------------------------------------------------------------------------------------------------------


def test_watch_tells_the_status_and_each_change_once(world: World) -> None:
    exchange = begin(world, WATCH)
    say(world, exchange, b"", is_end=True)
    for is_up, expected in (
        (True, [SERVING]),
        (False, [SERVING, NOT_SERVING]),
        (True, [SERVING, NOT_SERVING, SERVING]),
    ):
        world.endpoint.is_up = is_up
        world.gateway.sweep()
        world.gateway.sweep()
        assert answers(exchange) == expected
    assert not exchange.ended
    world.gateway.on_abort(exchange)
    world.endpoint.is_up = False
    world.gateway.sweep()
    assert len(answers(exchange)) == 3
    world.assert_at_rest()


def test_watch_of_a_service_that_is_not_known_stays_open(world: World) -> None:
    exchange = begin(world, WATCH)
    say(world, exchange, service("nix"), is_end=True)
    assert answers(exchange) == [UNKNOWN]
    assert not exchange.ended
    world.gateway.on_abort(exchange)
    world.assert_at_rest()


def test_a_watcher_who_does_not_read_is_told_only_the_newest(world: World) -> None:
    exchange = begin(world, WATCH)
    exchange.is_writable = False
    say(world, exchange, b"", is_end=True)
    for is_up in (False, True, False):
        world.endpoint.is_up = is_up
        world.gateway.sweep()
    assert answers(exchange) == [SERVING]
    exchange.is_writable = True
    world.gateway.on_writable(exchange)
    world.gateway.sweep()
    assert answers(exchange) == [SERVING, NOT_SERVING]


def test_streams_end_when_the_worker_leaves(world: World) -> None:
    watch, reflect, silent = begin(world, WATCH), begin(world, REFLECT, is_keyed=True), begin(world, WATCH)
    say(world, watch, b"", is_end=True)
    say(world, reflect, LIST)
    leave(world)
    assert answers(watch) == [SERVING, NOT_SERVING]
    assert [status(one) for one in (watch, reflect, silent)] == [b"0", b"0", b"0"]
    late = begin(world, WATCH)
    say(world, late, b"")
    assert (answers(late), status(late)) == ([NOT_SERVING], b"0")
    world.assert_at_rest()


def test_watchers_are_bounded(world: World) -> None:
    exchanges = []
    for _ in range(WATCHERS_MAX):
        exchanges.append(begin(world, WATCH))
        say(world, exchanges[-1], b"")
        assert answers(exchanges[-1]) == [SERVING]
    further = begin(world, WATCH)
    say(world, further, b"")
    assert status(further) == b"8"
    world.gateway.on_abort(exchanges[0])
    again = begin(world, WATCH)
    say(world, again, b"")
    assert answers(again) == [SERVING]


def test_a_watch_ends_honestly_at_its_time(world: World) -> None:
    """By the caller's own deadline, and by the limit for calls without one: trailers, no reset."""
    timed = begin(world, WATCH, (b"grpc-timeout", b"5S"))
    say(world, timed, b"")
    [(delay_s, expire)] = world.loop.timers
    assert delay_s == 5
    expire()
    untimed = begin(world, WATCH)
    say(world, untimed, b"")
    world.clock.advance(int(Limits().call_s * 1e9) + 1)
    world.gateway.sweep()
    for exchange in (timed, untimed):
        assert (status(exchange), exchange.aborted) == (b"4", False)
    world.assert_at_rest()


def test_a_second_message_ends_a_watch(world: World) -> None:
    exchange = begin(world, WATCH)
    say(world, exchange, b"", b"")
    assert (answers(exchange), status(exchange)) == ([SERVING], b"3")
    world.assert_at_rest()


# -- reflection -------------------------------------------------------------------------------------------------------


def test_each_question_is_answered_before_the_next_is_asked(world: World) -> None:
    exchange = begin(world, REFLECT, is_keyed=True)
    symbols: list[Any] = ["grpc.health.v1.Health", "inference.GRPCInferenceService"]
    for count, symbol in enumerate(symbols, 1):
        say(world, exchange, REQUEST(file_containing_symbol=symbol).SerializeToString())
        assert len(answers(exchange)) == count
    say(world, exchange, is_end=True)
    assert status(exchange) == b"0"
    files = [RESPONSE.FromString(one).file_descriptor_response.file_descriptor_proto for one in answers(exchange)]
    assert [len(one) for one in files] == [1, 2]
    assert world.log.records == []
    assert world.quota.released == []
    world.assert_at_rest()


def test_reflection_needs_a_key_that_may_read() -> None:
    anonymous = begin(World(), REFLECT)
    assert status(anonymous) == b"16"
    blind = begin(World(scopes=("infer",)), REFLECT, is_keyed=True)
    assert status(blind) == b"7"


def test_reflection_can_be_switched_off(world: World) -> None:
    world.gateway.is_reflecting = False
    exchange = begin(world, REFLECT, is_keyed=True)
    assert status(exchange) == b"12"
    world.assert_at_rest()


def test_a_malformed_question_ends_the_stream(world: World) -> None:
    exchange = begin(world, REFLECT, is_keyed=True)
    say(world, exchange, LIST, b"\x0a\x01x", LIST)
    assert (len(answers(exchange)), status(exchange)) == (1, b"3")
    world.assert_at_rest()


def test_a_caller_who_does_not_read_is_not_answered_on(world: World) -> None:
    """His questions wait, his body is paused; when he reads, all answers come, in their order."""
    exchange = begin(world, REFLECT, is_keyed=True)
    exchange.is_writable = False
    names = [f"{number}.proto" for number in range(5)]
    questions = [REQUEST(file_by_filename=name).SerializeToString() for name in names]
    world.gateway.on_body(exchange, b"".join(frame(one) for one in questions))
    assert (len(answers(exchange)), exchange.paused) == (1, 1)
    leave(world)
    for _ in names[1:-1]:
        world.gateway.on_writable(exchange)
    assert (len(answers(exchange)), exchange.ended) == (4, False)
    world.gateway.on_writable(exchange)
    asked = [RESPONSE.FromString(one).original_request.file_by_filename for one in answers(exchange)]
    assert asked == names
    assert status(exchange) == b"0"
    world.assert_at_rest()


def test_questions_on_a_stream_are_bounded(world: World) -> None:
    exchange = begin(world, REFLECT, is_keyed=True)
    say(world, exchange, *[LIST] * MESSAGES_MAX)
    assert (len(answers(exchange)), exchange.ended) == (MESSAGES_MAX, False)
    say(world, exchange, LIST)
    assert (len(answers(exchange)), status(exchange)) == (MESSAGES_MAX, b"8")
    world.assert_at_rest()
