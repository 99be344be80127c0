"""Nobody passes without being an administrator: every route, every wrong credential, every way around."""

import asyncio
import re
from typing import Any, cast

import httpx
import pytest
from fastapi import FastAPI
from starlette.routing import Route

from gateway.clock import FakeClock
from gateway.control.guard import BODY_BYTES_MAX, FAILURES_MAX, OPEN_PATHS, PEERS_MAX, Failures
from tests.unit.control.support import NS_PER_S, Desk, open_desk

WRONG = "tw_admin_wrong"
#: What stands in a path; anything that is not named here is called "any".
PLACES = {"tenant": "acme", "name": "free", "key_id": "key_1", "call_id": "0" * 32}


def admin_routes(desk: Desk) -> list[tuple[str, str]]:
    """Every method and path of the application's own route table but the open ones."""
    found = [
        (method, re.sub(r"\{(\w+)\}", lambda name: PLACES.get(name[1], "any"), route.path))
        for route in all_routes(desk.app)
        for method in route.methods or ()
        if route.path not in OPEN_PATHS and not route.path.startswith("/me")
    ]
    assert len(found) > 20
    return found


def all_routes(app: FastAPI) -> list[Route]:
    """The route table, flat: an included router is one entry of it."""
    flat: list[Route] = []
    for entry in app.routes:
        router = getattr(entry, "original_router", None)
        flat += [entry] if router is None else router.routes  # type: ignore[list-item]
    assert all(isinstance(route, Route) for route in flat)
    return flat


def credentials(desk: Desk) -> dict[str, dict[str, str]]:
    key = desk.new_key(scopes=["infer", "read", "admin"])["key"]
    token = desk.bootstrap_token
    return {
        "no token": {},
        "wrong token": {"authorization": f"Bearer {WRONG}"},
        "key instead of token": {"authorization": f"Bearer {key}"},
        "key as x-api-key": {"x-api-key": key},
        "token as x-api-key": {"x-api-key": token},
        "token as basic": {"authorization": f"Basic {token}"},
        "token with a tail": {"authorization": f"Bearer {token}x"},
        "token cut": {"authorization": f"Bearer {token[:-1]}"},
        "empty bearer": {"authorization": "Bearer "},
        "local actor by header": {"tollway.actor": "local"},
    }


def test_every_admin_route_refuses_everyone_but_the_administrator(desk: Desk) -> None:
    desk.new_tenant()
    before = desk.must("GET", "/admin/status")["audit"]
    kinds = credentials(desk)
    for number, (method, path) in enumerate(admin_routes(desk)):
        for kind, headers in kinds.items():
            answer = desk.ask_tcp(method, path, peer=f"10.1.{number}.{len(kind)}", headers=headers)
            assert answer.status_code == 401, (method, path, kind)
            assert answer.json()["code"] == "unauthenticated"
            assert "www-authenticate" in answer.headers
    after = desk.must("GET", "/admin/status")["audit"]
    assert after["rows"] == before["rows"] + 1  # the key that this test made


def test_every_admin_route_answers_the_administrator(desk: Desk) -> None:
    token = desk.bootstrap_token
    for method, path in admin_routes(desk):
        if path == "/admin/token/rotate":
            continue
        assert desk.ask_tcp(method, path, token=token).status_code not in (401, 403, 404 if "{" in path else 401)


def test_the_application_without_a_guard_answers_nobody(desk: Desk) -> None:
    for method, path in admin_routes(desk):
        assert desk.at(cast(Any, desk.app), method, path).status_code == 401, path


def test_probes_and_the_document_are_open_and_say_nothing(desk: Desk) -> None:
    assert desk.ask_tcp("GET", "/healthz").json() == {"live": True}
    assert desk.ask_tcp("GET", "/readyz").json() == {"ready": True}
    assert desk.ask_tcp("GET", "/openapi.json").status_code == 200


@pytest.mark.parametrize(
    "path", ["/nope", "/healthz/", "/readyz/../admin/status", "//admin/status", "/openapi.json/x", "/"]
)
def test_whatever_is_not_exactly_an_open_path_is_refused(desk: Desk, path: str) -> None:
    assert desk.ask_tcp("GET", path).status_code == 401


def test_the_host_header_decides_nothing(desk: Desk) -> None:
    answer = desk.ask_tcp("GET", "/admin/status", headers={"host": "control/healthz?"})
    assert answer.status_code == 401


def test_two_authorization_headers_are_no_credential(desk: Desk) -> None:
    bearer = ("authorization", f"Bearer {desk.bootstrap_token}")

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(cast(Any, desk.tcp))
        async with httpx.AsyncClient(transport=transport, base_url="http://control") as client:
            return await client.get("/admin/status", headers=[bearer, ("authorization", f"Bearer {WRONG}")])

    assert asyncio.run(send()).status_code == 401


def test_too_many_wrong_tokens_are_slowed_down_per_peer(desk: Desk) -> None:
    for _ in range(FAILURES_MAX):
        assert desk.ask_tcp("GET", "/admin/status", token=WRONG).status_code == 401
    limited = desk.ask_tcp("GET", "/admin/status", token=desk.bootstrap_token)
    assert (limited.status_code, limited.json()["code"]) == (429, "rate_exceeded")
    assert limited.headers["retry-after"] == "6"
    assert desk.ask_tcp("GET", "/admin/status", token=desk.bootstrap_token, peer="10.0.0.2").status_code == 200
    desk.clock.advance(6 * NS_PER_S)
    assert desk.ask_tcp("GET", "/admin/status", token=desk.bootstrap_token).status_code == 200
    assert desk.must("GET", "/admin/status")["admin_token"]["failed_attempts"] == FAILURES_MAX


def test_open_paths_stay_open_to_a_limited_peer(desk: Desk) -> None:
    for _ in range(FAILURES_MAX + 1):
        desk.ask_tcp("GET", "/admin/status", token=WRONG)
    assert desk.ask_tcp("GET", "/healthz").status_code == 200


def test_failures_of_many_peers_take_bounded_memory() -> None:
    clock = FakeClock()
    failures = Failures(clock)
    for number in range(PEERS_MAX + 5):
        failures.note(str(number))
    assert len(failures._full_at_ns) == PEERS_MAX
    assert failures.total == PEERS_MAX + 5


@pytest.mark.parametrize(("size", "status"), [(BODY_BYTES_MAX, 422), (BODY_BYTES_MAX + 1, 413)])
def test_a_body_over_the_limit_is_refused(desk: Desk, size: int, status: int) -> None:
    answer = desk.ask("POST", "/admin/tenants", content=b" " * size, headers={"content-type": "application/json"})
    assert answer.status_code == status
    assert isinstance(answer.json()["error"], str)


def test_a_caller_who_hangs_up_in_the_middle_of_a_body_changes_nothing(desk: Desk) -> None:
    messages = [{"type": "http.request", "body": b'{"tenant":', "more_body": True}, {"type": "http.disconnect"}]
    sent: list[Any] = []

    async def talk() -> None:
        async def receive() -> Any:
            return messages.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "path": "/admin/tenants", "method": "POST", "headers": []}
        await desk.local(scope, receive, send)

    asyncio.run(talk())
    assert not sent
    assert not messages


def test_websockets_are_not_spoken(desk: Desk) -> None:
    async def talk() -> None:
        async def never(*_: Any) -> Any:
            raise AssertionError("nothing is read or sent")

        await desk.tcp({"type": "websocket", "path": "/healthz"}, never, never)

    asyncio.run(talk())


def test_errors_of_the_framework_have_our_form(desk: Desk) -> None:
    for method, path, code in (("GET", "/nope", "not_found"), ("DELETE", "/admin/tenants", "method_not_allowed")):
        answer = desk.ask(method, path)
        assert answer.json()["code"] == code
        assert isinstance(answer.json()["error"], str)


def test_an_unknown_failure_says_nothing_of_itself(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    desk.control.registry.prices = cast(Any, None)
    answer = desk.ask("GET", "/admin/prices")
    assert answer.status_code == 500
    assert answer.json() == {"error": "something failed inside; control's log says what", "code": "internal"}
    assert "AttributeError" in caplog.text


def test_an_expired_token_says_so(tmp_path: Any) -> None:
    with open_desk(tmp_path / "data") as desk:
        token = desk.bootstrap_token
        desk.clock.advance(24 * 3600 * NS_PER_S)
        assert desk.ask_tcp("GET", "/admin/status", token=token).json()["code"] == "token_expired"
