"""Calls that change a backend: who may make them, and where they go."""

import pytest

from gateway.call import RequestHead
from tests.unit.test_pipeline import FakeExchange, World, refused_with

LOAD = b"/v2/repository/models/flat/load"
RPC = b"/inference.GRPCInferenceService/"
TARGETS = [
    (b"POST", LOAD),
    (b"POST", b"/v2/repository/models/flat/unload"),
    (b"GET", b"/v2/trace/setting"),
    (b"POST", b"/v2/models/flat/trace/setting"),
    (b"GET", b"/v2/logging"),
    (b"POST", b"/v2/logging"),
]
RPCS = [b"RepositoryModelLoad", b"RepositoryModelUnload", b"TraceSetting", b"LogSettings"]


def send(world: World, method: bytes, target: bytes, *, is_grpc: bool = False) -> FakeExchange:
    body = b"\0\0\0\0\0" if is_grpc else b"{}"
    return world.post(world.head(target, method=method, is_grpc=is_grpc, length=len(body)), body)


@pytest.mark.parametrize(("method", "target"), TARGETS)
def test_rest_asks_for_the_scope_operate(method: bytes, target: bytes) -> None:
    world = World(scopes=("infer", "read", "admin"))
    assert refused_with(send(world, method, target)) == "scope_forbidden"
    assert world.pool.requests == []
    world = World(scopes=("operate",))
    exchange = send(world, method, target)
    [upstream] = world.pool.requests
    assert upstream.head[:2] == (method, target)
    world.answer(upstream)
    assert exchange.replies[0][0] == 200
    world.assert_at_rest()


@pytest.mark.parametrize("name", RPCS)
def test_grpc_asks_for_the_scope_operate(name: bytes) -> None:
    world = World(scopes=("infer", "read", "admin"))
    exchange = send(world, b"POST", RPC + name, is_grpc=True)
    assert dict(exchange.replies[0][3] or [])[b"grpc-status"] == b"7"
    world = World(scopes=("operate",))
    send(world, b"POST", RPC + name, is_grpc=True)
    assert [upstream.head[1] for upstream in world.grpc_pool.requests] == [RPC + name]


def test_a_model_that_nobody_serves_yet_may_be_loaded() -> None:
    world = World(scopes=("operate",))
    send(world, b"POST", b"/v2/repository/models/new/load")
    assert len(world.pool.requests) == 1


def test_a_key_of_some_models_changes_no_backend() -> None:
    """Bodies are not read: a configuration or `unload_dependents` would reach models that are not its own."""
    world = World(scopes=("operate",), models=("flat",))
    for method, target in TARGETS:
        assert refused_with(send(world, method, target)) == "model_forbidden"
    for name in RPCS:
        exchange = send(world, b"POST", RPC + name, is_grpc=True)
        assert dict(exchange.replies[0][3] or [])[b"tollway-code"] == b"model_forbidden"
    assert world.pool.requests == world.grpc_pool.requests == []


def test_nobody_changes_a_backend_without_a_key_even_where_none_is_needed() -> None:
    world = World()
    world.gateway.is_key_required = False
    head = RequestHead(b"POST", LOAD, [(b"content-type", b"application/json")], b"host", 2)
    assert refused_with(world.post(head, b"{}")) == "unauthenticated"
    assert world.pool.requests == []


def test_a_load_goes_to_the_backend_that_may_have_the_model() -> None:
    world = World(scopes=("operate",))
    world.endpoint.models = frozenset({"other"})
    assert refused_with(send(world, b"POST", LOAD)) == "backend_unavailable"
    world.endpoint.models = frozenset({"flat"})
    send(world, b"POST", LOAD)
    assert len(world.pool.requests) == 1
