"""Probing: what an endpoint's answers, silences and rubbish make of it."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from gateway.call import Data, Headers
from gateway.net.exchange import UpstreamListener
from gateway.routing import health
from gateway.routing.health import ask, parse_index, probe, watch
from gateway.routing.router import Endpoint

INDEX = b'[{"name":"m","version":"1","state":"READY"},{"name":"m","version":"2","state":"LOADING"},{"name":"x"}]'
Answer = Callable[[UpstreamListener], None]


class ScriptedUpstream:
    is_writable = True

    def __init__(self, pool: "ScriptedPool", listener: UpstreamListener) -> None:
        self._pool = pool
        self._listener = listener

    def send_body(self, data: Data) -> None:
        self._pool.bodies.append(bytes(data))

    def send_end(self) -> None:
        if self._pool.answers:
            self._pool.answers.pop(0)(self._listener)

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def cancel(self) -> None:
        self._pool.cancelled += 1


class ScriptedPool:
    """Answers one request after another; silent when the script is over."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.targets: list[bytes] = []
        self.bodies: list[bytes] = []
        self.cancelled = 0

    def request(
        self, method: bytes, target: bytes, headers: Headers, content_length: int, listener: UpstreamListener
    ) -> Any:
        self.targets.append(target)
        return ScriptedUpstream(self, listener)

    def close(self) -> None: ...


def answers(status: int, body: bytes = b"", trailers: Headers | None = None) -> Answer:
    """A reply in pieces."""

    def say(listener: UpstreamListener) -> None:
        listener.on_reply_head(status, [], len(body))
        for byte in range(len(body)):
            listener.on_reply_body(body[byte : byte + 1])
        listener.on_reply_end(trailers or [])

    return say


def at_once(status: int, body: bytes = b"") -> Answer:
    return lambda listener: listener.on_reply(status, [], body)


def breaks(reason: str) -> Answer:
    return lambda listener: listener.on_reply_error(is_sent=True, reason=reason)


def http_endpoint(*script: Answer) -> tuple[Endpoint, ScriptedPool]:
    pool = ScriptedPool(*script)
    return Endpoint(name="e", models=None, http=pool, grpc=None, is_trusted=False), pool


def grpc_endpoint(*script: Answer) -> Endpoint:
    return Endpoint(name="e", models=None, http=None, grpc=ScriptedPool(*script), is_trusted=False)


def test_an_index_is_models_versions_and_readiness() -> None:
    assert parse_index(INDEX) == {"m": {"1": True, "2": False}, "x": {}}
    assert parse_index(b"[]") == {}
    aliased = b'[{"name":"m","version":"2","state":"READY","aliases":["stable","next"]},{"name":"m","version":"3"}]'
    assert parse_index(aliased) == {"m": {"2": True, "stable": True, "next": True, "3": False}}


@pytest.mark.parametrize("body", [b"", b"{}", b"[1]", b'[{"version":"1"}]', b'[{"name":1}]', b"\xff"])
def test_an_index_that_is_none_is_a_decode_error(body: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        parse_index(body)


@pytest.mark.parametrize("say", [answers, at_once])
def test_a_healthy_server_is_up_with_its_models(say: Callable[..., Answer]) -> None:
    endpoint, pool = http_endpoint(say(200), say(200, INDEX))
    endpoint.failures = 3
    asyncio.run(probe(endpoint))
    assert endpoint.is_up
    assert endpoint.catalogue == {"m": {"1": True, "2": False}, "x": {}}
    assert (endpoint.failures, endpoint.reason, endpoint.state) == (0, "", 1)
    assert pool.targets == [b"/v2/health/live", b"/v2/repository/index"]
    assert pool.cancelled == 0


def test_a_server_without_an_index_takes_any_model() -> None:
    endpoint, _ = http_endpoint(answers(200), answers(404))
    endpoint.catalogue = {}
    asyncio.run(probe(endpoint))
    assert endpoint.is_up
    assert endpoint.catalogue is None


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ((answers(503),), "health answered 503"),
        ((breaks("connection refused"),), "connection refused"),
        ((answers(200), breaks("reset")), "reset"),
        ((answers(200), answers(200, b"not json")), "malformed"),
        ((answers(200), at_once(200, b'[{"x":' + b"[" * 5000)), "malformed"),
    ],
)
def test_a_server_that_fails_is_down_and_says_why(script: tuple[Answer, ...], reason: str) -> None:
    endpoint, _ = http_endpoint(*script)
    endpoint.is_up = True
    asyncio.run(probe(endpoint))
    assert not endpoint.is_up
    assert reason in endpoint.reason
    assert endpoint.state == 1


def test_an_index_that_is_not_utf8_is_down_not_a_crash() -> None:
    endpoint, _ = http_endpoint(answers(200), answers(200, b'[{"name":"\xff\xfe"}]'))
    asyncio.run(probe(endpoint))
    assert not endpoint.is_up


def test_an_endless_index_is_not_kept() -> None:
    class Flood(ScriptedPool):
        pass

    def flood(listener: UpstreamListener) -> None:
        listener.on_reply_head(200, [], -1)
        for _ in range(6):
            listener.on_reply_body(b" " * (1 << 20))
        listener.on_reply_end([])

    endpoint = Endpoint(name="e", models=None, http=Flood(answers(200), flood), grpc=None, is_trusted=False)
    asyncio.run(probe(endpoint))
    assert not endpoint.is_up


LIVE = b"\0\0\0\0\x02\x08\x01"


@pytest.mark.parametrize(
    ("answer", "is_up"),
    [
        (answers(200, LIVE, [(b"grpc-status", b"0")]), True),
        (answers(200, b"\0\0\0\0\0", [(b"grpc-status", b"0")]), False),
        (answers(200, LIVE, [(b"grpc-status", b"14")]), False),
        (answers(200, b"", [(b"grpc-status", b"12")]), False),
        (breaks("refused"), False),
    ],
)
def test_a_grpc_server_is_asked_whether_it_lives(answer: Answer, is_up: bool) -> None:
    endpoint = grpc_endpoint(answer)
    asyncio.run(probe(endpoint))
    assert endpoint.is_up is is_up
    assert bool(endpoint.reason) is not is_up


def test_silence_times_out_and_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_ANSWER_S", 0.01)
    endpoint, pool = http_endpoint()
    asyncio.run(probe(endpoint))
    assert (endpoint.is_up, endpoint.reason) == (False, "no answer within 0.01 s")
    assert pool.cancelled == 1


def test_a_late_answer_takes_nobody_down_but_who_is_down_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_ANSWER_S", 0.01)
    endpoint, _ = http_endpoint()
    assert asyncio.run(probe(endpoint, may_be_late=True))
    assert not endpoint.is_up
    endpoint.is_up, state = True, endpoint.state
    assert asyncio.run(probe(endpoint, may_be_late=True))
    assert endpoint.is_up
    assert endpoint.state == state + 1
    assert asyncio.run(probe(endpoint))
    assert not endpoint.is_up


@pytest.mark.parametrize("answered", [0, 1])
def test_an_endpoint_is_down_after_three_late_answers_in_a_row(monkeypatch: pytest.MonkeyPatch, answered: int) -> None:
    monkeypatch.setattr(health, "_ANSWER_S", 0.01)
    monkeypatch.setattr(health, "_DOWN_INTERVAL_S", 0.0)
    silence: Answer = lambda _listener: None  # noqa: E731
    well = [at_once(200), at_once(200, INDEX)]
    script = [*well, *[silence, silence, *well] * answered]

    async def run() -> int:
        endpoint, pool = http_endpoint(*script)
        assert not await probe(endpoint)
        assert endpoint.is_up
        task = asyncio.create_task(watch(endpoint))
        while endpoint.is_up:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return pool.cancelled

    assert asyncio.run(run()) == 2 * answered + health.LATE_MAX


def test_a_broken_connection_takes_an_endpoint_down_at_once() -> None:
    endpoint, _ = http_endpoint(breaks("reset"))
    endpoint.is_up = True
    assert not asyncio.run(probe(endpoint, may_be_late=True))
    assert (endpoint.is_up, endpoint.reason) == (False, "reset")


def test_a_cancelled_question_cancels_the_request() -> None:
    async def run() -> ScriptedPool:
        pool = ScriptedPool()
        task = asyncio.create_task(ask(pool, b"GET", b"/", b"", []))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return pool

    assert asyncio.run(run()).cancelled == 1


def test_an_answer_after_the_question_ended_is_dropped() -> None:
    async def run() -> None:
        kept: list[UpstreamListener] = []
        pool = ScriptedPool(kept.append)
        task = asyncio.create_task(ask(pool, b"POST", b"/", b"body", []))
        await asyncio.sleep(0)
        assert pool.bodies == [b"body"]
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        kept[0].on_reply(200, [], b"late")
        kept[0].on_reply_error(is_sent=True, reason="late")

    asyncio.run(run())


def test_a_watched_endpoint_follows_its_server() -> None:
    async def run() -> None:
        is_up_again = asyncio.Event()

        def last(listener: UpstreamListener) -> None:
            at_once(200, INDEX)(listener)
            is_up_again.set()

        endpoint, _ = http_endpoint(breaks("starting"), breaks("starting"), at_once(200), last)
        task = asyncio.create_task(watch(endpoint))
        await is_up_again.wait()
        await asyncio.sleep(0)
        assert endpoint.is_up
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
