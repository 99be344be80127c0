"""Every error of CONTRACT.md §5 that can be made to happen: HTTP status and gRPC code, readable by stock clients."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from tests.e2e.doors import Door, open_doors
from tests.e2e.stage import ABSENT, BODY_BYTES_MAX, Stage

X = np.zeros((1, 64), dtype=np.float32)

#: Makes the call; gets the headers of the key to use.
Act = Callable[[Door, Stage], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A fault, and what each side calls it."""

    act: Act
    http: str
    grpc: str
    text: str


def infer(model: str = "mlp", datatype: str = "FP32", array: Any = X, **options: Any) -> Act:
    return lambda door, _stage: door.infer(model, datatype, array, **options)


def with_key(make: Callable[[Stage], str], model: str = "mlp") -> Act:
    def act(door: Door, stage: Stage) -> Any:
        return door.infer(model, "FP32", X, headers={"authorization": f"Bearer {make(stage)}"})

    return act


def two_inputs(door: Door, _stage: Stage) -> Any:
    from tests.e2e.doors import tensor

    inputs = [tensor(door.module, name, X, "FP32") for name in ("x", "other")]
    return door.ask("infer", "mlp", inputs)


def revoked_key(stage: Stage) -> str:
    made = stage.tollway.create_key_whole("acme")
    key = str(made["key"])
    stage.tollway.wait_for_key(key)
    stage.tollway.admin("POST", f"/admin/keys/{made['details']['key_id']}/revoke")
    stage.tollway.wait(lambda: stage.tollway.read_models(key) == 401, "the revocation")
    return key


def expired_key(stage: Stage) -> str:
    key = stage.tollway.create_key("acme", expires_s=1)
    stage.tollway.wait(lambda: "expired" in _why(stage, key), "the end of the key's time")
    return key


def _why(stage: Stage, key: str) -> str:
    with stage.client(key) as client:
        return client.get("/v2").text


def suspended_key(stage: Stage) -> str:
    key = stage.new_key("suspended")
    stage.tollway.admin("POST", "/admin/tenants/suspended/suspend")
    stage.tollway.wait(lambda: stage.tollway.read_models(key) == 403, "the suspension")
    return key


BAD = {"http": "400", "grpc": "INVALID_ARGUMENT"}
NO_KEY = {"http": "401", "grpc": "UNAUTHENTICATED"}
FORBIDDEN = {"http": "403", "grpc": "PERMISSION_DENIED"}
CASES = {
    "unknown_model": Case(act=infer("nix"), http="404", grpc="NOT_FOUND", text="unknown model: 'nix'"),
    "unknown_version": Case(act=infer(model_version="9"), http="404", grpc="NOT_FOUND", text="version 9"),
    "not_ready": Case(
        act=infer("broken", array=np.zeros((1, 2), np.float32)), http="503", grpc="UNAVAILABLE", text="not at ready"
    ),
    "backend_down": Case(act=infer(ABSENT), http="503", grpc="UNAVAILABLE", text="not available"),
    "shape": Case(act=infer(array=np.zeros((1, 3), np.float32)), **BAD, text="shape"),
    "rank": Case(act=infer(array=np.zeros((64,), np.float32)), **BAD, text="'x'"),
    "datatype": Case(act=infer(datatype="INT32", array=np.zeros((1, 64), np.int32)), **BAD, text="INT32"),
    "batch_too_big": Case(act=infer(array=np.zeros((65, 64), np.float32)), **BAD, text="64"),
    "input_name": Case(act=infer(name="z"), **BAD, text="'z'"),
    "extra_input": Case(act=two_inputs, **BAD, text="other"),
    "no_input": Case(act=lambda door, _: door.ask("infer", "mlp", []), **BAD, text="input"),
    "backend_fault": Case(
        act=infer("faulty", array=np.zeros((1, 2), np.float32)), http="500", grpc="INTERNAL", text="ValueError"
    ),
    "no_key": Case(act=infer(headers={}), **NO_KEY, text="key"),
    "malformed_key": Case(act=infer(headers={"authorization": "Bearer nonsense"}), **NO_KEY, text="key"),
    "unknown_key": Case(act=with_key(lambda stage: stage.key[:-12] + "AAAAAAAAAAAA"), **NO_KEY, text="key"),
    "revoked_key": Case(act=with_key(revoked_key), **NO_KEY, text="revoked"),
    "expired_key": Case(act=with_key(expired_key), **NO_KEY, text="expired"),
    "suspended": Case(act=with_key(suspended_key), **FORBIDDEN, text="suspended"),
    "scope": Case(
        act=with_key(lambda stage: stage.new_key("acme2", scopes=["read"])),
        **FORBIDDEN,
        text="scope",
    ),
    "model_list": Case(
        act=with_key(lambda stage: stage.new_key("acme2", models=["echo"])),
        **FORBIDDEN,
        text="model",
    ),
    "body_too_large": Case(
        act=infer("echo", array=np.zeros((1, BODY_BYTES_MAX // 4 + 1), np.float32)),
        http="413",
        grpc="RESOURCE_EXHAUSTED",
        text=str(BODY_BYTES_MAX),
    ),
    "idempotency_key": Case(act=infer(extra_headers={"idempotency-key": "two words"}), **BAD, text="Idempotency-Key"),
}


@pytest.fixture(scope="module")
def doors(stage: Stage) -> Iterator[dict[str, Door]]:
    with open_doors(stage) as opened:
        yield opened


# aiohttp warns of bodies above 1 MiB.
@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
@pytest.mark.parametrize("name", CASES)
def test_each_fault_has_one_name_at_every_door(stage: Stage, doors: dict[str, Door], name: str) -> None:
    case = CASES[name]
    for door in doors.values():
        with pytest.raises(InferenceServerException) as caught:
            case.act(door, stage)
        status = f"StatusCode.{case.grpc}" if door.is_grpc else case.http
        assert caught.value.status() == status, (door.name, str(caught.value))
        assert case.text in caught.value.message(), door.name
        assert "secret" not in caught.value.message()
        assert "Traceback" not in caught.value.message()


def test_a_full_queue_is_503_and_unavailable(stage: Stage, doors: dict[str, Door]) -> None:
    """`slow` runs one at a time and lets one wait; with four callers that come again and again, others are refused."""
    body = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [0.2]}]}
    stop = threading.Event()
    seen: set[int] = set()

    def press() -> None:
        with stage.client() as client:
            while not stop.wait(0.01):
                seen.add(client.post("/v2/models/slow/infer", json=body).status_code)

    threads = [threading.Thread(target=press) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for door in doors.values():
            error = _first_refusal(door)
            assert error.status() == ("StatusCode.UNAVAILABLE" if door.is_grpc else "503"), str(error)
            assert "queue" in error.message()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert seen == {200, 503}


def _first_refusal(door: Door) -> InferenceServerException:
    for _ in range(200):
        try:
            door.infer("slow", "FP32", np.zeros((1, 1), np.float32))
        except InferenceServerException as error:
            return error
    raise AssertionError("200 calls found room in a queue of one")


def post(stage: Stage, path: str, body: bytes = b"", **headers: str) -> httpx.Response:
    with stage.client() as client:
        return client.post(path, content=body, headers={n.replace("_", "-"): v for n, v in headers.items()})


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b"{", {}, 400, "bad_request"),
        (b"", {}, 400, "bad_request"),
        (b"[]", {}, 400, "bad_request"),
        (b'{"inputs": 3}', {}, 400, "invalid_tensor"),
        (b"\xff\xfe", {}, 400, "bad_request"),
        (b"{}", {"inference_header_content_length": "x"}, 400, "bad_header_length"),
        (b"{}", {"inference_header_content_length": "-1"}, 400, "bad_header_length"),
        (b"{}", {"inference_header_content_length": "3"}, 400, "bad_header_length"),
        (b"{}", {"content_encoding": "br"}, 415, "unsupported_encoding"),
        (b"{}", {"content_encoding": "gzip"}, 400, "bad_request"),
    ],
)
def test_malformed_bodies(stage: Stage, body: bytes, headers: dict[str, str], status: int, code: str) -> None:
    reply = post(stage, "/v2/models/mlp/infer", body, **headers)
    assert (reply.status_code, reply.json()["code"]) == (status, code)
    assert isinstance(reply.json()["error"], str)
    assert reply.headers["content-type"] == "application/json"
    assert ("accept-encoding" in reply.headers) == (status == 415)


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/v2/models/mlp/infer", 405, "POST"),
        ("DELETE", "/v2/models/mlp", 405, "GET"),
        ("POST", "/v2/health/live", 405, "GET"),
        ("GET", "/v2/repository/index", 405, "POST"),
        ("GET", "/nowhere", 404, None),
        ("GET", "/v2/models/mlp/nothing", 404, None),
        ("GET", "/v1/models", 404, None),
        ("GET", "/v2/models/mlp/versions/one", 404, None),
        ("GET", "/v2/models/%2e%2e/ready", 400, None),
        ("GET", "/v2/models/%zz/ready", 400, None),
    ],
)
def test_verbs_and_paths(stage: Stage, method: str, path: str, status: int, allow: str | None) -> None:
    with stage.client() as client:
        reply = client.request(method, path)
    assert reply.status_code == status
    assert isinstance(reply.json()["error"], str)
    assert reply.headers.get("allow") == allow


def test_401_says_how_to_authenticate(stage: Stage) -> None:
    with stage.client("") as client:
        reply = client.post("/v2/models/mlp/infer", json={})
    assert reply.status_code == 401
    assert reply.headers["www-authenticate"].startswith("Bearer")
    assert reply.json()["call_id"] == reply.headers["tollway-call-id"]


@pytest.mark.parametrize("method", ["Nothing", "CudaSharedMemoryExport"])
def test_unserved_methods_are_unimplemented(stage: Stage, method: str) -> None:
    with grpc.insecure_channel(stage.tollway.grpc_address) as channel:
        call = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", metadata=tuple(stage.auth.items()), timeout=30)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_the_same_fault_is_the_same_each_time(stage: Stage, doors: dict[str, Door]) -> None:
    """Heads and trailers of equal replies are remembered: what is remembered of one must not be taken for the other."""
    for door in (doors["grpc"], doors["http"]):
        seen = set()
        for _ in range(6):
            with pytest.raises(InferenceServerException) as caught:
                door.infer("mlp", "FP32", np.zeros((1, 3), np.float32))
            seen.add((caught.value.status(), caught.value.message()))
            assert door.infer("mlp", "FP32", X).as_numpy("y").shape == (1, 10)
        assert len(seen) == 1, seen


@pytest.mark.parametrize("message", [b"\xff" * 20, b"\x0a\x7f", b"\x0a\x03mlp" * 2, b"\x0a\x03mlp\x2a\x05junk"])
def test_malformed_messages_are_invalid_arguments(stage: Stage, message: bytes) -> None:
    with grpc.insecure_channel(stage.tollway.grpc_address) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as caught:
            call(message, metadata=tuple(stage.auth.items()), timeout=30)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_nothing_that_failed_was_billed(stage: Stage) -> None:
    """Runs last in this file: the ledger knows no call that was refused or failed."""
    stage.tollway.wait_until_posted()
    usage = stage.tollway.admin("GET", "/admin/usage?by=model")["rows"]
    billed = {row["group"]["model"] for row in usage if row["calls"]}
    assert billed.isdisjoint({"nix", "broken", "faulty", ABSENT})
    assert stage.tollway.admin("GET", "/admin/reconcile")["is_ok"]
