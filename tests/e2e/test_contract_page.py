"""docs/contract.md, call by call: what it says is served is served, what it says is not is refused by that name."""

import re
from pathlib import Path

import grpc
import msgspec
import pytest
from tritonclient.grpc import service_pb2

from gateway.wire.oip_target import Verb, parse_target
from tests.e2e import raw
from tests.e2e.rpc import call, infer_request
from tests.e2e.stage import Stage

PAGE = (Path(__file__).parents[2] / "docs" / "contract.md").read_text(encoding="utf-8")
REST = re.findall(r"^\| (GET|POST) \| `(\S+)` \| (\d{3}) \|", PAGE, re.MULTILINE)
RPCS = re.findall(r"^\| `([\w./]+)` \| ([A-Z_]{2,}) \|", PAGE, re.MULTILINE)
OPEN = {"/v2/health/live", "/v2/health/ready", "ServerLive", "ServerReady", "grpc.health.v1.Health/Check"}
WATCH = "grpc.health.v1.Health/Watch"
MESSAGES = {
    "ModelReady": service_pb2.ModelReadyRequest(name="mlp").SerializeToString(),
    "ModelMetadata": service_pb2.ModelMetadataRequest(name="mlp").SerializeToString(),
    "ModelConfig": service_pb2.ModelConfigRequest(name="mlp").SerializeToString(),
    "ModelStatistics": service_pb2.ModelStatisticsRequest(name="mlp").SerializeToString(),
    "ModelInfer": infer_request(),
    "ModelStreamInfer": infer_request(),
    "grpc.reflection.v1.ServerReflection/ServerReflectionInfo": b"\x3a\x00",
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": b"\x3a\x00",
}


def full(method: str) -> str:
    return f"/{method}" if "/" in method else f"/inference.GRPCInferenceService/{method}"


def test_the_page_lists_everything() -> None:
    """Every verb that the gateway can parse, and every method of the protobuf service."""
    paths = [path.replace("{m}", "mlp").replace("{v}", "1").encode() for _, path, _ in REST]
    verbs = {route.verb for route in map(parse_target, paths) if hasattr(route, "verb")}
    assert verbs == set(Verb)
    service = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    named = {method for method, _ in RPCS}
    missing = {one.name for one in service.methods} - named
    # Registering shared memory is one with its status.
    assert all("SharedMemory" in name for name in missing), missing


@pytest.mark.parametrize(("method", "path", "status"), REST)
def test_rest(stage: Stage, method: str, path: str, status: str) -> None:
    target = path.replace("{m}", "mlp").replace("{v}", "1")
    content = b"{}" if method == "POST" else None
    if path.endswith("/infer"):
        content = raw.infer_body()
    elif "/generate" in path:
        content = msgspec.json.encode({"x": [0.5] * 64})
    with stage.client() as client, stage.client("") as anonymous:
        reply = client.request(method, target, content=content)
        assert reply.status_code == int(status), reply.text
        if status == "501":
            assert reply.json()["code"] == "not_implemented"
        if status == "200":
            wrong = client.request("PUT", target)
            assert wrong.status_code == 405
            assert method in wrong.headers["allow"].split(", ")
            expected = 200 if path in OPEN else 401
            assert anonymous.request(method, target, content=content).status_code == expected


def test_watch_needs_no_key_and_does_not_end(stage: Stage) -> None:
    """The one method that a unary client cannot call."""
    with grpc.insecure_channel(stage.tollway.grpc_address) as channel:
        watch = channel.unary_stream(full(WATCH))(b"", timeout=60)
        assert any(answer == b"\x08\x01" for answer in watch)
        watch.cancel()


@pytest.mark.parametrize(("method", "code"), [row for row in RPCS if row[0] != WATCH])
def test_grpc(stage: Stage, method: str, code: str) -> None:
    message = MESSAGES.get(method, b"")
    answer = call(stage.tollway.grpc_address, message, *stage.auth.items(), method=full(method))
    assert answer.code.name == code
    if code == "OK":
        anonymous = call(stage.tollway.grpc_address, message, method=full(method))
        expected = grpc.StatusCode.OK if method in OPEN else grpc.StatusCode.UNAUTHENTICATED
        assert anonymous.code is expected


def test_ready_of_an_unknown_model_is_not_found(stage: Stage) -> None:
    message = service_pb2.ModelReadyRequest(name="nix").SerializeToString()
    answer = call(stage.tollway.grpc_address, message, *stage.auth.items(), method=full("ModelReady"))
    assert answer.code is grpc.StatusCode.NOT_FOUND


def test_headers_of_replies(stage: Stage) -> None:
    """The table of reply headers, for the three kinds of answer."""
    with stage.client() as client:
        good = client.post("/v2/models/mlp/infer", content=raw.infer_body()).headers
        read = client.get("/v2/models/mlp").headers
        bad = client.get("/v2/models/nix").headers
    for headers in (good, read, bad):
        assert {"tollway-call-id", "x-request-id"} <= set(headers)
    assert {"tollway-charge", "server-timing"} <= set(good)
    assert "server-timing" in read
    assert "tollway-charge" not in read
