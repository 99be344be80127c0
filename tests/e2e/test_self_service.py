"""`/me` on the gateway's own port: a customer's affairs with its API key, and nothing else of control's."""

import os
import signal

import httpx
import pytest

from tests.e2e.stage import Stage


def me(stage: Stage, key: str, method: str, path: str, body: object = None) -> httpx.Response:
    with stage.client(key) as client:
        return client.request(method, path, json=body)


def test_a_customer_sees_and_does_its_own_affairs_on_the_gateway_s_port(stage: Stage) -> None:
    key = stage.new_key("me-own", scopes=["infer", "read", "admin"])
    other = stage.new_key("me-other", scopes=["infer", "read", "admin"])
    assert me(stage, key, "GET", "/me").json()["tenant"] == "me-own"
    assert {one["name"] for one in me(stage, key, "GET", "/me/limits").json()["limits"]} >= {"calls_per_day"}
    made = me(stage, key, "POST", "/me/keys", {"name": "mine", "scopes": ["read"]})
    assert made.status_code == 201
    key_id = made.json()["details"]["key_id"]
    listed = {one["key_id"] for one in me(stage, key, "GET", "/me/keys").json()["items"]}
    assert key_id in listed
    assert key_id not in {one["key_id"] for one in me(stage, other, "GET", "/me/keys").json()["items"]}
    assert me(stage, other, "POST", f"/me/keys/{key_id}/revoke").status_code == 404
    assert me(stage, key, "POST", f"/me/keys/{key_id}/revoke").status_code == 200


def test_bad_input_is_control_s_to_name(stage: Stage) -> None:
    key = stage.new_key("me-bad", scopes=["read", "admin"])
    refused = me(stage, key, "POST", "/me/keys", {"nam": "x"})
    assert refused.status_code == 422
    assert "nam" in refused.json()["error"]
    assert me(stage, key, "GET", "/me/nothing").status_code == 404
    too_large = me(stage, key, "POST", "/me/keys", {"name": "x" * 1_060_000})
    assert too_large.status_code == 413


@pytest.mark.parametrize(
    "path",
    ["/admin/status", "/admin/keys", "/me/../admin/status", "/me/%2e%2e/admin/status", "/openapi.json", "/readyz"],
)
def test_nothing_else_of_control_is_there(stage: Stage, path: str) -> None:
    key = stage.new_key("me-nosy", scopes=["infer", "read", "admin", "operate"])
    # As written: httpx would take dot segments away.
    url = httpx.URL(stage.tollway.http_url).copy_with(raw_path=path.encode())
    with stage.client(key) as client:
        assert client.send(httpx.Request("GET", url, headers=dict(client.headers))).status_code == 404


def test_control_s_door_for_workers_opens_nothing_but_self_service(stage: Stage) -> None:
    """Even a worker that were taken over could not act as the operator."""
    path = stage.tollway.data_dir / "run" / "me.sock"
    assert path.stat().st_mode & 0o777 == 0o600
    with httpx.Client(
        transport=httpx.HTTPTransport(uds=str(path)), base_url="http://me", trust_env=False, timeout=60
    ) as client:
        for target in ("/admin/status", "/admin/keys", "/", "/readyz", "/openapi.json", "/psp/stripe", "/mex"):
            assert client.get(target, headers={"host": "me"}).status_code == 404, target
        assert client.get("/me").status_code == 401
        for _ in range(30):  # wrong keys of one caller lock nobody else out
            assert client.get("/me", headers={"authorization": "Bearer tw_live_wrong"}).status_code == 401
        assert client.get("/me", headers={"authorization": f"Bearer {stage.key}"}).status_code == 200


def test_while_control_is_held_up_models_go_on(stage: Stage) -> None:
    pid = stage.tollway.pid_of("control")
    key = stage.new_key("me-still", scopes=["infer", "read"])
    os.kill(pid, signal.SIGSTOP)
    try:
        with stage.client(key) as client:
            late = client.get("/me", headers={"x-request-timeout-ms": "200"})
        assert late.status_code == 504
        assert stage.tollway.infer(key).status_code == 200
    finally:
        os.kill(pid, signal.SIGCONT)
    stage.tollway.wait(lambda: me(stage, key, "GET", "/me").status_code == 200, "control to answer again")
