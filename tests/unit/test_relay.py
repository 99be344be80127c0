"""Self-service relayed by workers: whose calls go to control, how many at once, and that nothing else goes there."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from gateway.auth.keyring import Keyring, Principal
from gateway.net.address import parse_address
from gateway.relay import RELAYED_MAX, RELAYED_TENANT_MAX, Relay
from gateway.routing.router import Endpoint
from gateway.settings import Settings
from gateway.snapshot import Snapshot
from gateway.wire.oip_target import Route, Verb, parse_target
from gateway.worker import self_service_address
from tests.unit.test_pipeline import KEY_TEXT, FakeExchange, FakePool, World, snapshot


class RelayWorld(World):
    """A gateway whose way to control is a fake."""

    def __init__(self) -> None:
        super().__init__()
        self.control = FakePool()
        self.door = Endpoint(name="control", models=None, http=self.control, grpc=None, is_trusted=False, is_up=True)
        self.gateway.relay = Relay(self.door)

    def ask(self, target: bytes = b"/me/balance", method: bytes = b"GET", key: bytes = KEY_TEXT) -> FakeExchange:
        head = self.head(target, method=method, length=0)
        head.headers[0] = (b"authorization", b"Bearer " + key)
        exchange = self.begin(head)
        self.gateway.on_end(exchange)
        return exchange

    def know(self, change: Callable[[Snapshot], Snapshot]) -> None:
        self.gateway.policy.keyring = Keyring(change(snapshot()))


@pytest.fixture
def world() -> RelayWorld:
    return RelayWorld()


def suspended(whole: Snapshot) -> Snapshot:
    return msgspec.structs.replace(
        whole, tenants=tuple(msgspec.structs.replace(one, is_suspended=True) for one in whole.tenants)
    )


def revoked(whole: Snapshot) -> Snapshot:
    return msgspec.structs.replace(
        whole, keys=tuple(msgspec.structs.replace(one, is_revoked=True) for one in whole.keys)
    )


def test_a_call_goes_to_control_with_its_key_and_comes_back_unsold(world: RelayWorld) -> None:
    exchange = world.ask(b"/me/usage?by=day&limit=5")
    (upstream,) = world.control.requests
    method, target, headers, _ = upstream.head
    assert (method, target) == (b"GET", b"/me/usage?by=day&limit=5")
    assert headers[b"authorization"] == b"Bearer " + KEY_TEXT
    assert upstream.ended
    world.answer(upstream, b'{"rows": []}')
    ((status, fields, body, _),) = exchange.replies
    assert (status, body) == (200, b'{"rows": []}')
    assert b"tollway-charge" not in fields
    assert fields[b"tollway-call-id"]
    assert world.pool.requests == []
    assert (world.log.records, world.quota.released) == ([], [])
    assert world.codes() == ["ok"]
    assert world.door.outstanding == 0
    world.assert_at_rest()


@pytest.mark.parametrize("status", [201, 204, 303, 404, 422, 503])
def test_what_control_answers_is_passed_on(world: RelayWorld, status: int) -> None:
    exchange = world.ask(b"/me/keys", b"POST")
    world.answer(world.control.requests[0], b"{}", status)
    assert exchange.replies[0][0] == status
    assert world.codes() == ["ok" if status < 400 else "bad_request" if status < 500 else "backend_fault"]
    world.assert_at_rest()


def test_any_way_of_sending_a_key_reaches_control_as_one(world: RelayWorld) -> None:
    head = world.head(b"/me", length=0)
    head.headers[0] = (b"x-api-key", KEY_TEXT)
    world.begin(head)
    headers = world.control.requests[0].head[2]
    assert headers[b"authorization"] == b"Bearer " + KEY_TEXT
    assert b"x-api-key" not in headers


@pytest.mark.parametrize("key", [b"", b"tw_live_wrong", KEY_TEXT[:-1] + b"!"])
def test_wrong_keys_never_reach_control(world: RelayWorld, key: bytes) -> None:
    exchange = world.ask(key=key)
    assert exchange.replies[0][0] == 401
    assert world.control.requests == []
    world.assert_at_rest()


def test_no_key_is_refused_even_where_calls_need_none(world: RelayWorld) -> None:
    world.gateway.is_key_required = False
    head = world.head(b"/me", length=0)
    del head.headers[0]
    exchange = world.begin(head)
    assert exchange.replies[0][0] == 401
    assert world.control.requests == []


def test_a_revoked_key_is_refused_and_a_suspended_tenant_comes_through(world: RelayWorld) -> None:
    world.know(revoked)
    assert world.ask().replies[0][0] == 401
    assert world.control.requests == []
    world.know(suspended)
    exchange = world.ask()
    world.answer(world.control.requests[0])
    assert exchange.replies[0][0] == 200
    refused = world.begin(world.head())
    assert refused.replies[0][0] == 403


def test_one_tenant_has_few_calls_there_at_once_and_gets_its_place_back(world: RelayWorld) -> None:
    under_way = [world.ask() for _ in range(RELAYED_TENANT_MAX)]
    over = world.ask()
    assert over.replies[0][0] == 429
    assert b"retry-after" in over.replies[0][1]
    world.answer(world.control.requests[0])
    world.gateway.on_abort(under_way[1])
    for _ in range(2):
        assert world.ask().replies == []
    assert world.ask().replies[0][0] == 429
    assert world.control.requests[1].cancelled


def test_the_worker_has_few_calls_there_whoever_sends_them(world: RelayWorld) -> None:
    relay = world.gateway.relay
    assert relay is not None

    class Other:
        principal: Principal | None = None

    calls = [Other() for _ in range(RELAYED_MAX)]
    for call in calls:
        relay.enter(call)
    live = set[object](calls)
    full = relay.refusal_of("acme", live)
    assert full is not None
    assert full.code == "overloaded"
    live.discard(calls[0])
    assert relay.refusal_of("acme", live) is None
    of_suspended = relay.refusal_of("", live)
    assert of_suspended is not None
    assert of_suspended.code == "concurrency_exceeded"


def test_control_that_is_away_is_unavailable_and_models_are_not(world: RelayWorld) -> None:
    exchange = world.ask()
    world.control.requests[0].listener.on_reply_error(is_sent=False, reason="refused")
    status, _, body, _ = exchange.replies[0]
    assert status == 503
    assert b"self-service is not available now" in body
    assert world.post(world.head()).replies == []
    assert len(world.pool.requests) == 1


def test_a_worker_without_a_way_to_control_knows_no_such_path() -> None:
    world = World()
    exchange = world.begin(world.head(b"/me", length=0))
    assert exchange.replies[0][0] == 404
    world.assert_at_rest()


def test_self_service_has_its_methods_and_no_others(world: RelayWorld) -> None:
    exchange = world.ask(method=b"PUT")
    assert exchange.replies[0][0] == 405
    assert exchange.replies[0][1][b"allow"] == b"GET, POST, DELETE"
    assert world.control.requests == []


@pytest.mark.parametrize(
    "target",
    [
        b"/me",
        b"/me?x=/../admin",
        b"/me/invoices/INV-000001/pdf",
        b"/me/webhooks/we_1~x/deliveries",
        b"/me/invoices/...",
    ],
)
def test_paths_of_self_service(target: bytes) -> None:
    assert parse_target(target) == Route(Verb.SELF_SERVICE)


@pytest.mark.parametrize(
    "target",
    [
        b"/me/",
        b"/mex",
        b"/ME",
        b"//me",
        b"/%6de",
        b"/me/../admin/keys",
        b"/me/./keys",
        b"/me/..",
        b"/me/%2e%2e/admin",
        b"/me//keys",
        b"/me/a%2fb",
        b"/me/a\\b",
        b"/me/a;b",
        b"/me/" + b"a" * 129,
        b"/me" + b"/a" * 9,
        b"/admin/keys",
        b"/admin",
        b"/psp/stripe",
        b"/openapi.json",
        b"http://x/me",
        b"/me/\xc3\xa4",
    ],
)
def test_paths_that_two_readers_could_read_differently_and_others_of_control_are_unknown(
    world: RelayWorld, target: bytes
) -> None:
    assert world.ask(target).replies[0][0] == 404
    assert world.control.requests == []


def test_a_relative_data_directory_has_a_door_that_workers_can_name() -> None:
    """`make run` keeps its data in `.tollway`: an address of a socket must be a whole path."""
    settings = Settings(data_dir=Path(".tollway"))
    address = parse_address(self_service_address(settings))
    assert address.path == str(Path(".tollway/run/me.sock").absolute())
