"""The choice of an endpoint, from what backends say of themselves."""

from typing import cast

import pytest

from gateway.errors import Code, Refusal
from gateway.net.exchange import UpstreamPool
from gateway.routing.router import Endpoint, Router

POOL = cast("UpstreamPool", object())
READY = {"1": True}


def endpoint(
    name: str = "e",
    catalogue: dict[str, dict[str, bool]] | None = None,
    *,
    models: tuple[str, ...] | None = None,
    is_up: bool = True,
    is_http: bool = True,
    is_grpc: bool = True,
) -> Endpoint:
    return Endpoint(
        name=name,
        models=None if models is None else frozenset(models),
        http=POOL if is_http else None,
        grpc=POOL if is_grpc else None,
        is_trusted=False,
        is_up=is_up,
        catalogue=catalogue,
    )


def chosen(router: Router, model: str = "m", version: str = "", *, is_grpc: bool = False) -> str:
    found = router.choose(model, version, is_grpc=is_grpc)
    assert isinstance(found, Endpoint), found
    return found.name


def refused(router: Router, model: str = "m", version: str = "", *, is_grpc: bool = False) -> Code:
    found = router.choose(model, version, is_grpc=is_grpc)
    assert isinstance(found, Refusal)
    assert model in found.message
    assert (found.retry_after_ms is not None) == (found.code in (Code.MODEL_NOT_READY, Code.BACKEND_UNAVAILABLE))
    return found.code


def test_the_first_that_lists_the_model_serves() -> None:
    router = Router([endpoint("a", {"x": READY}), endpoint("b", {"m": READY}), endpoint("c", {"m": READY})])
    assert chosen(router) == "b"
    assert chosen(router, "x") == "a"


def test_a_backend_without_a_list_takes_any_model_it_is_configured_for() -> None:
    router = Router([endpoint("a", None, models=("x",)), endpoint("b", None)])
    assert (chosen(router, "x"), chosen(router, "m", "7")) == ("a", "b")


def test_models_are_exact_names() -> None:
    router = Router([endpoint("a", {"m": READY, "m2": READY}, models=("m2",))])
    assert refused(router, "m") is Code.MODEL_NOT_FOUND
    assert chosen(router, "m2") == "a"


def test_a_backend_is_asked_on_a_protocol_it_speaks() -> None:
    router = Router([endpoint("a", {"m": READY}, is_grpc=False), endpoint("b", {"m": READY}, is_http=False)])
    assert (chosen(router), chosen(router, is_grpc=True)) == ("a", "b")
    only_http = Router([endpoint("a", {"m": READY}, is_grpc=False)])
    assert refused(only_http, is_grpc=True) is Code.MODEL_NOT_FOUND


def test_an_unknown_model_is_404_or_as_triton_says() -> None:
    assert refused(Router([endpoint(catalogue={})])) is Code.MODEL_NOT_FOUND
    assert refused(Router([endpoint(catalogue={})], is_triton_compat=True)) is Code.BAD_REQUEST
    assert refused(Router([])) is Code.MODEL_NOT_FOUND


def test_versions_are_those_of_the_list() -> None:
    router = Router([endpoint(catalogue={"m": {"1": True, "2": False}})])
    assert chosen(router, version="1") == "e"
    assert chosen(router) == "e"
    assert refused(router, version="2") is Code.MODEL_NOT_READY
    assert refused(router, version="3") is Code.VERSION_NOT_FOUND
    assert refused(Router([endpoint(catalogue={"m": {"1": False}})])) is Code.MODEL_NOT_READY
    assert refused(Router([endpoint(catalogue={"m": {}})])) is Code.MODEL_NOT_READY


def test_a_backend_that_is_down_gives_way_to_a_later_one_that_is_up() -> None:
    first = endpoint("a", {"m": READY}, is_up=False)
    router = Router([first, endpoint("b", {"m": READY})])
    assert chosen(router) == "b"
    first.is_up = True
    first.state += 1
    assert chosen(router) == "a"


def test_down_is_503_not_404_also_when_it_was_never_asked() -> None:
    assert refused(Router([endpoint(catalogue={"m": READY}, is_up=False)])) is Code.BACKEND_UNAVAILABLE
    never_asked = endpoint("a", {}, is_up=False)
    assert refused(Router([never_asked])) is Code.BACKEND_UNAVAILABLE
    assert chosen(Router([never_asked, endpoint("b", {"m": READY})])) == "b"


def test_a_remembered_choice_ends_with_what_it_was_made_of() -> None:
    one = endpoint(catalogue={"m": READY})
    router = Router([one])
    assert chosen(router) == "e"
    router.note_connect_failure(one, "gone")
    assert refused(router) is Code.BACKEND_UNAVAILABLE
    assert (one.failures, one.reason) == (1, "gone")
    one.is_up, one.catalogue = True, {"m": {"1": False}}
    one.state += 1
    assert refused(router) is Code.MODEL_NOT_READY


def test_refusals_are_not_remembered() -> None:
    one = endpoint(catalogue={})
    router = Router([one])
    assert refused(router) is Code.MODEL_NOT_FOUND
    one.catalogue = {"m": READY}
    assert chosen(router) == "e"


def test_what_is_remembered_is_bounded() -> None:
    router = Router([endpoint(catalogue=None)])
    for number in range(5000):
        assert chosen(router, f"m{number}") == "e"
    assert len(router._chosen) <= 1024


@pytest.mark.parametrize("is_grpc", [False, True])
def test_calls_about_the_server_go_to_the_first_that_is_up(is_grpc: bool) -> None:
    down = endpoint("a", is_up=False)
    other = endpoint("b", is_http=is_grpc, is_grpc=not is_grpc)
    router = Router([down, other, endpoint("c")])
    found = router.any_endpoint(is_grpc=is_grpc)
    assert isinstance(found, Endpoint)
    assert found.name == "c"
    nobody = Router([down, other]).any_endpoint(is_grpc=is_grpc)
    assert isinstance(nobody, Refusal)
    assert nobody.code is Code.BACKEND_UNAVAILABLE


def test_a_change_of_a_model_goes_to_who_has_it_or_is_there_for_it() -> None:
    catch_all = endpoint("all", {"m": READY})
    named = endpoint("named", {"late": {"1": False}}, models=("late", "new"))
    router = Router([catch_all, named])
    for model, name in (("m", "all"), ("late", "named"), ("new", "named"), ("other", "all")):
        found = router.any_endpoint(is_grpc=False, model=model)
        assert isinstance(found, Endpoint)
        assert found.name == name
    named.is_up = False
    found = router.any_endpoint(is_grpc=False, model="new")
    assert isinstance(found, Endpoint)
    assert found.name == "all"


def test_ready_means_that_something_can_be_served() -> None:
    assert not Router([]).is_ready
    assert not Router([endpoint(catalogue=None, is_up=False)]).is_ready
    assert Router([endpoint(catalogue=None)]).is_ready
    assert not Router([endpoint(catalogue={"m": {"1": False}})]).is_ready
    assert Router([endpoint(catalogue={"m": {"1": False}}), endpoint(catalogue={"x": READY})]).is_ready
