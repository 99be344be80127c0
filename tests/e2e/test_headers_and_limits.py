"""What replies say of limits, ids and money, on both protocols, and that limits hold."""

import re
import time
from collections.abc import Mapping
from typing import Any

import grpc
import httpx
import pytest

from tests.e2e import raw
from tests.e2e.rpc import Answer, call, infer_request, retry_delay_s
from tests.e2e.stage import Stage

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
FREE_POLICY = '"rate";q=5;w=1, "burst";q=10;w=2, "day";q=1000;w=86400'


def infer(stage: Stage, key: str, *, rows: int = 1, headers: Mapping[str, str] | None = None) -> httpx.Response:
    body = {"inputs": [{"name": "x", "shape": [rows, 64], "datatype": "FP32", "data": [0.5] * (64 * rows)}]}
    with stage.client(key) as client:
        return client.post("/v2/models/mlp/infer", json=body, headers=dict(headers or {}))


def rpc(stage: Stage, key: str, *, rows: int = 1, metadata: Mapping[str, str] | None = None) -> Answer:
    own = ("authorization", f"Bearer {key}")
    return call(stage.tollway.grpc_address, infer_request(rows), own, *(metadata or {}).items())


def left(header: str) -> dict[str, tuple[int, int]]:
    """name → (r, t; t is -1 where there is none) of a RateLimit field."""
    items = re.findall(r'"(\w+)";r=(\d+)(?:;t=(\d+))?', header)
    return {name: (int(r), int(t) if t else -1) for name, r, t in items}


def test_every_reply_says_what_is_left(stage: Stage) -> None:
    key = stage.new_key("left", "free")
    replies = [infer(stage, key) for _ in range(2)]
    answer = rpc(stage, key)
    assert [reply.status_code for reply in replies] == [200, 200]
    assert answer.code is grpc.StatusCode.OK
    fields = [dict(reply.headers) for reply in replies] + [answer.initial | answer.trailing]
    days = []
    for one in fields:
        assert one["ratelimit-policy"] == FREE_POLICY
        seen = left(one["ratelimit"])
        assert 0 <= seen["burst"][0] <= 9
        days.append(seen["day"][0])
    assert days == [999, 998, 997]


def test_five_a_second_with_a_burst_of_ten(stage: Stage) -> None:
    """However slow this machine: at most 10 + 5 T calls in T seconds, and refused ones count for nothing."""
    key = stage.new_key("burst", "free")
    request = raw.post("/v2/models/mlp/infer", key, raw.infer_body())
    with raw.Connection(stage.tollway.ports["http_port"]) as connection:
        start_s = time.monotonic()
        # Pipelined, so that no round trip of ours is slower than the bucket refills.
        connection.send(request * 80)
        replies = [connection.read() for _ in range(80)]
        elapsed_s = time.monotonic() - start_s
    admitted = sum(reply.status == 200 for reply in replies)
    refused = [reply for reply in replies if reply.status == 429]
    assert 10 <= admitted <= 10 + 5 * elapsed_s + 1
    assert len(refused) == 80 - admitted > 0
    assert {reply.code for reply in refused} == {"rate_exceeded"}
    for reply in refused:
        seen = left(reply.headers["ratelimit"])
        assert seen["burst"][0] == 0
        assert 1 <= seen["burst"][1] <= int(reply.headers["retry-after"])
        assert reply.headers["ratelimit-policy"] == FREE_POLICY
    # The day knows the admitted ones only.
    assert min(left(reply.headers["ratelimit"])["day"][0] for reply in replies) == 1000 - admitted


def test_a_refusal_over_grpc_says_when_to_come_back(stage: Stage) -> None:
    key = stage.new_key("burst-rpc", "free")
    with grpc.insecure_channel(stage.tollway.grpc_address) as channel:
        stub = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        metadata = [("authorization", f"Bearer {key}")]
        calls = [stub.future(infer_request(), metadata=metadata, timeout=60) for _ in range(80)]
        done = next(one for one in calls if one.exception() is not None)
        assert done.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        trailing = {item.key: item.value for item in done.trailing_metadata()}
    assert trailing["tollway-code"] == "rate_exceeded"
    assert int(trailing["retry-after"]) >= 1
    assert 0 < retry_delay_s(trailing["grpc-status-details-bin"]) <= 1
    assert left(trailing["ratelimit"])["burst"][0] == 0
    assert trailing["ratelimit-policy"] == FREE_POLICY


def test_a_daily_cap_is_exact_on_both_protocols(stage: Stage) -> None:
    stage.tollway.create_plan("three-a-day", "free", calls_per_day=3)
    key = stage.new_key("capped", "three-a-day")
    assert [infer(stage, key).status_code, rpc(stage, key).code, infer(stage, key).status_code] == [
        200, grpc.StatusCode.OK, 200,
    ]  # fmt: skip
    refused = infer(stage, key)
    assert (refused.status_code, refused.json()["code"]) == (429, "daily_cap_exceeded")
    assert 1 <= int(refused.headers["retry-after"]) <= 86_400
    assert int(refused.headers["retry-after"]) >= left(refused.headers["ratelimit"])["day"][1]
    answer = rpc(stage, key)
    assert answer.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert answer.trailing["tollway-code"] == "daily_cap_exceeded"
    assert stage.tollway.read_models(key) == 200, "reads go on"


def test_one_call_at_a_time(stage: Stage) -> None:
    stage.tollway.create_plan("alone", "free", concurrency=1)
    key = stage.new_key("alone", "alone")
    request = raw.post("/v2/models/mlp/infer", key, raw.infer_body())
    with raw.Connection(stage.tollway.ports["http_port"]) as connection:
        connection.send(request[:-1])
        stage.tollway.wait(lambda: stage.gauge("tollway_calls_in_flight") >= 1, "the half call to be in flight")
        refused, answer = infer(stage, key), rpc(stage, key)
        connection.send(request[-1:])
        assert connection.read().status == 200
    assert (refused.status_code, refused.json()["code"]) == (429, "concurrency_exceeded")
    assert int(refused.headers["retry-after"]) >= 1
    assert left(refused.headers["ratelimit"])["concurrency"][0] == 0
    assert (answer.code, answer.trailing["tollway-code"]) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED, "concurrency_exceeded",
    )  # fmt: skip
    assert infer(stage, key).status_code == 200, "the slot is free again"


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"scopes": ["read"]}, 403, "scope_forbidden"),
        ({"models": ["echo"]}, 403, "model_forbidden"),
    ],
)
def test_forbidden_bodies(stage: Stage, fields: dict[str, Any], status: int, code: str) -> None:
    reply = infer(stage, stage.new_key("forbidden", **fields))
    assert (reply.status_code, reply.json()["code"]) == (status, code)
    assert reply.json()["call_id"] == reply.headers["tollway-call-id"]
    assert "retry-after" not in reply.headers


@pytest.mark.parametrize("name", ["authorization", "x-api-key", "apikey", "x-apig-appcode"])
def test_each_credential_header_opens(stage: Stage, name: str) -> None:
    value = f"Bearer {stage.key}" if name == "authorization" else stage.key
    with stage.client("") as client:
        assert client.get("/v2", headers={name: value}).status_code == 200
    answer = call(stage.tollway.grpc_address, infer_request(), (name, value))
    assert answer.code is grpc.StatusCode.OK


def test_request_ids(stage: Stage) -> None:
    for name in ("x-request-id", "triton-request-id"):
        assert infer(stage, stage.key, headers={name: "mine-1"}).headers["x-request-id"] == "mine-1"
        answer = rpc(stage, stage.key, metadata={name: "mine-2"})
        assert (answer.initial | answer.trailing)["x-request-id"] == "mine-2"
    for value in ("has space", "x" * 129):
        reply = infer(stage, stage.key, headers={"x-request-id": value})
        assert reply.headers["x-request-id"] == reply.headers["tollway-call-id"]
    assert infer(stage, stage.key, headers={"x-request-id": "mine-1"}).headers["tollway-call-id"] != "mine-1"


def test_each_call_has_an_id_of_its_own_and_a_timing(stage: Stage) -> None:
    replies = [infer(stage, stage.key, headers={"x-request-id": "same"}) for _ in range(3)]
    ids = {reply.headers["tollway-call-id"] for reply in replies}
    assert len(ids) == 3
    for reply in replies:
        assert UUID.fullmatch(reply.headers["tollway-call-id"])
        timing = r"gateway;dur=\d+\.\d{3}, queue;dur=\d+\.\d{3}, backend;dur=\d+\.\d{3}, record;dur=\d+\.\d{3}"
        assert re.fullmatch(timing, reply.headers["server-timing"])


def test_the_charge_on_the_reply_is_the_entry_in_the_ledger(stage: Stage) -> None:
    """Harness prices: 0.00002 per call and 0.000003 per row of mlp."""
    key = stage.new_key("payer", "pay-per-call")
    reply, answer = infer(stage, key, rows=2), rpc(stage, key, rows=3)
    metadata = answer.initial | answer.trailing
    assert reply.headers["tollway-charge"] == "0.000026 USD; reason=priced; price=1"
    assert metadata["tollway-charge"] == "0.000029 USD; reason=priced; price=1"
    stage.tollway.wait_until_posted()
    for call_id, rows, nanos in (
        (reply.headers["tollway-call-id"], 2, 26_000),
        (metadata["tollway-call-id"], 3, 29_000),
    ):
        found = stage.tollway.admin("GET", f"/admin/ledger/calls/{call_id}")
        assert (found["tenant"], found["model"], found["rows"], found["charge_nanos"]) == ("payer", "mlp", rows, nanos)
        amounts = {entry["account"]: entry["amount_nanos"] for entry in found["entries"]}
        assert sum(amounts.values()) == 0
        assert amounts["unbilled_receivable:payer"] >= nanos


@pytest.mark.parametrize(
    ("tenant", "plan", "reason"), [("gratis", "free", "free_plan"), ("house", "internal", "internal_plan")]
)
def test_free_calls_are_posted_at_zero(stage: Stage, tenant: str, plan: str, reason: str) -> None:
    reply = infer(stage, stage.new_key(tenant, plan))
    assert reply.headers["tollway-charge"] == f"0 USD; reason={reason}; price=1"
    stage.tollway.wait_until_posted()
    found = stage.tollway.admin("GET", f"/admin/ledger/calls/{reply.headers['tollway-call-id']}")
    assert (found["charge_nanos"], found["reason"], found["tenant"]) == (0, reason, tenant)


def test_a_keyed_call_is_executed_once_and_answered_again(stage: Stage) -> None:
    """Both protocols, whichever worker the second connection meets; another request under the key is refused."""
    before = stage.tollway.admin("GET", "/admin/usage?by=tenant")
    first, second = (infer(stage, stage.key, headers={"idempotency-key": "e2e-1"}) for _ in range(2))
    assert (first.status_code, second.status_code) == (200, 200)
    assert second.content == first.content
    assert second.headers["tollway-call-id"] == first.headers["tollway-call-id"]
    assert second.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    other = infer(stage, stage.key, rows=2, headers={"idempotency-key": "e2e-1"})
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")
    answers = [rpc(stage, stage.key, metadata={"idempotency-key": "e2e-2"}) for _ in range(2)]
    assert [answer.code for answer in answers] == [grpc.StatusCode.OK] * 2
    assert answers[1].initial["idempotency-replayed"] == "true"
    assert answers[0].initial["tollway-call-id"] == answers[1].initial["tollway-call-id"]
    mismatch = rpc(stage, stage.key, rows=2, metadata={"idempotency-key": "e2e-2"})
    assert (mismatch.code, mismatch.trailing["tollway-code"]) == (
        grpc.StatusCode.INVALID_ARGUMENT, "idempotency_mismatch",
    )  # fmt: skip
    stage.tollway.wait_until_posted()
    after = stage.tollway.admin("GET", "/admin/usage?by=tenant")
    assert _calls(after) - _calls(before) == 2


def _calls(usage: Any) -> int:
    return sum(row["calls"] for row in usage["rows"])


def test_probes_need_no_key_and_tell_nothing(stage: Stage) -> None:
    with stage.client("") as client:
        assert client.get("/v2/health/live").json() == {"live": True}
        assert client.get("/v2/health/ready").json() == {"ready": True}
        for path in ("/v2", "/v2/models/mlp", "/v2/models/mlp/ready", "/v2/models/nix/ready"):
            assert client.get(path).status_code == 401, "and an unknown model looks like any other"


def test_the_books_are_square(stage: Stage) -> None:
    """Runs last in this file."""
    stage.tollway.wait_until_posted()
    report = stage.tollway.admin("GET", "/admin/reconcile")
    assert report["is_ok"], report
    assert report["answered"] == report["recorded"] == report["posted"]
