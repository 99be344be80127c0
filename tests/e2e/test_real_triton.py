"""A real Triton behind Tollway by address, and the same model in Triton and in our engine, request by request."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from tests.e2e.doors import tensor
from tests.e2e.harness import Tollway
from tests.e2e.real_triton import RealTriton, is_installed
from tests.e2e.rpc import call, infer_request
from tests.e2e.stage import give_key

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not is_installed(), reason="no .venvs/triton: `make test` makes it"),
]
PARITY = (Path(__file__).parents[2] / "docs" / "triton-parity.md").read_text(encoding="utf-8")
INFER = "/v2/models/mlp/infer"
ROW = [round(index / 64, 3) for index in range(64)]
X: dict[str, Any] = {"name": "x", "shape": [1, 64], "datatype": "FP32", "data": ROW}
PRICES = """
version = 1
currency = "USD"
[default]
per_call = "0"
[models.remote]
per_call = "0.00002"
per_row = "0.000003"
"""
#: Answered 200 by both, with the same numbers.
GOOD: dict[str, Any] = {
    "plain": {"inputs": [X]},
    "with an id": {"id": "own", "inputs": [X]},
    "with an empty id": {"id": "", "inputs": [X]},
    "nested data": {"inputs": [{**X, "data": [ROW]}]},
    "two rows": {"inputs": [{**X, "shape": [2, 64], "data": ROW * 2}]},
    "all rows": {"inputs": [{**X, "shape": [64, 64], "data": ROW * 64}]},
    "one output": {"inputs": [X], "outputs": [{"name": "y"}]},
    "binary output": {"inputs": [X], "outputs": [{"name": "y", "parameters": {"binary_data": True}}]},
    "all binary": {"inputs": [X], "parameters": {"binary_data_output": True}},
    "classification": {"inputs": [X], "outputs": [{"name": "y", "parameters": {"classification": 3}}]},
    "own parameters": {"inputs": [X], "parameters": {"own": "text", "number": 3}},
}
#: name → (request, status). Triton's status is the same, or in TRITON_SAYS and docs/triton-parity.md.
BAD: dict[str, tuple[Any, int]] = {
    "unknown output": ({"inputs": [X], "outputs": [{"name": "z"}]}, 400),
    "wrong shape": ({"inputs": [{**X, "shape": [1, 3], "data": [1, 2, 3]}]}, 400),
    "missing batch axis": ({"inputs": [{**X, "shape": [64]}]}, 400),
    "too few elements": ({"inputs": [{**X, "data": [1, 2]}]}, 400),
    "wrong datatype": ({"inputs": [{**X, "datatype": "INT32", "data": [1] * 64}]}, 400),
    "no such datatype": ({"inputs": [{**X, "datatype": "FP33"}]}, 400),
    "unknown input": ({"inputs": [{**X, "name": "z"}]}, 400),
    "no input": ({"inputs": []}, 400),
    "inputs left out": ({}, 400),
    "one input too many": ({"inputs": [X, {**X, "name": "b"}]}, 400),
    "an input twice": ({"inputs": [X, X]}, 400),
    "batch too big": ({"inputs": [{**X, "shape": [65, 64], "data": ROW * 65}]}, 400),
    "no row": ({"inputs": [{**X, "shape": [0, 64], "data": []}]}, 400),
    "negative size": ({"inputs": [{**X, "shape": [-1, 64]}]}, 400),
    "text for numbers": ({"inputs": [{**X, "data": ["a"] * 64}]}, 400),
    "no name": ({"inputs": [{key: value for key, value in X.items() if key != "name"}]}, 400),
    "no data": ({"inputs": [{key: value for key, value in X.items() if key != "data"}]}, 400),
    "id is a number": ({"id": 3, "inputs": [X]}, 400),
}
#: Raw bodies: (body, headers, status).
RAW: dict[str, tuple[bytes, dict[str, str], int]] = {
    "cut JSON": (b"{", {}, 400),
    "empty body": (b"", {}, 400),
    "header length is no number": (b"{}", {"inference-header-content-length": "x"}, 400),
    "header length beyond the body": (b"{}", {"inference-header-content-length": "9"}, 400),
    "unknown encoding": (b"{}", {"content-encoding": "br"}, 415),
    "not gzip": (b"xx", {"content-encoding": "gzip"}, 400),
}
TRITON_SAYS = {
    "too few elements": 500,
    "inputs left out": 500,
    "negative size": 500,
    "text for numbers": 500,
    "no name": 500,
    "id is a number": 500,
    "cut JSON": 500,
    "unknown encoding": 501,
}
#: GETs: path → (our status, Triton's).
READS = {
    "/v2/health/live": (200, 200),
    "/v2/health/ready": (200, 200),
    "/v2/models/mlp/ready": (200, 200),
    "/v2/models/mlp/versions/1/ready": (200, 200),
    "/v2/models/nix": (404, 404),
    "/v2/models/mlp/versions/9": (404, 404),
    "/v2/models/nix/ready": (404, 400),
    "/v2/models/mlp/versions/9/ready": (404, 400),
    "/v2/models/mlp/versions/one": (404, 404),
    "/nowhere": (404, 404),
    INFER: (405, 405),
}


@pytest.fixture(scope="module")
def triton() -> Iterator[RealTriton]:
    with RealTriton(["mlp", "remote"]) as server:
        yield server


@pytest.fixture(scope="module")
def tollway(triton: RealTriton) -> Iterator[Tollway]:
    """`mlp` is the engine's, `remote` is Triton's and priced by the row."""
    tollway = Tollway(settings={"backends": f"[{triton.backend('remote')}]"})
    (tollway.folder / "prices.toml").write_text(PRICES)
    with tollway:
        yield tollway


@pytest.fixture(scope="module")
def auth(tollway: Tollway) -> dict[str, str]:
    return {"authorization": f"Bearer {give_key(tollway, plan='pay-per-call')}"}


@pytest.fixture
def ask(tollway: Tollway, triton: RealTriton, auth: dict[str, str]) -> Any:
    """The same request to both: (engine's reply, Triton's reply)."""

    def send(method: str, path: str, headers: dict[str, str] | None = None, **how: Any) -> list[httpx.Response]:
        return [
            httpx.request(method, url + path, headers={**own, **(headers or {})}, trust_env=False, timeout=30, **how)
            for url, own in ((tollway.http_url, auth), (triton.url, {}))
        ]

    return send


# -- the same model here and there ------------------------------------------------------------------------------------


def parsed(reply: httpx.Response) -> tuple[dict[str, Any], bytes]:
    """(JSON part, with floats as the FP32 they stand for; binary part)."""
    length = int(reply.headers.get("inference-header-content-length", len(reply.content)))
    head = json.loads(reply.content[:length])
    for output in head.get("outputs", []):
        if output["datatype"] == "FP32" and "data" in output:
            output["data"] = np.array(output["data"], dtype=np.float32).tobytes()
    return head, reply.content[length:]


@pytest.mark.parametrize("name", GOOD)
def test_the_engine_answers_as_triton_does(ask: Any, name: str) -> None:
    ours, theirs = ask("POST", INFER, json=GOOD[name])
    assert (ours.status_code, theirs.status_code) == (200, 200)
    # Equal to the last bit, shape, datatype, parameters, order and id included.
    assert parsed(ours) == parsed(theirs)
    assert ours.headers["content-type"] == theirs.headers["content-type"]


def test_a_raw_request_is_the_same_too(ask: Any) -> None:
    body = np.array(ROW, dtype=np.float32).tobytes()
    ours, theirs = ask("POST", INFER, {"inference-header-content-length": "0"}, content=body)
    assert (ours.status_code, theirs.status_code) == (200, 200)
    assert parsed(ours) == parsed(theirs)


def check_fault(name: str, status: int, ours: httpx.Response, theirs: httpx.Response) -> None:
    assert (ours.status_code, theirs.status_code) == (status, TRITON_SAYS.get(name, status))
    for reply in (ours, theirs):
        assert isinstance(reply.json()["error"], str)
    if name in TRITON_SAYS:
        assert f"| {name} | {status} | {TRITON_SAYS[name]} |" in PARITY


@pytest.mark.parametrize("name", BAD)
def test_the_engine_refuses_as_triton_does(ask: Any, name: str) -> None:
    body, status = BAD[name]
    check_fault(name, status, *ask("POST", INFER, json=body))


@pytest.mark.parametrize("name", RAW)
def test_raw_faults(ask: Any, name: str) -> None:
    body, headers, status = RAW[name]
    check_fault(name, status, *ask("POST", INFER, headers, content=body))


@pytest.mark.parametrize("path", READS)
def test_reads(ask: Any, path: str) -> None:
    ours, theirs = ask("GET", path)
    assert (ours.status_code, theirs.status_code) == READS[path]
    if ours.status_code != theirs.status_code:
        assert f"| `GET {path}` | {ours.status_code} | {theirs.status_code} |" in PARITY


def test_metadata_and_config(ask: Any) -> None:
    """Platform differs because the runtime does; all that a client reads to build a request is the same."""
    for path in ("/v2/models/mlp", "/v2/models/mlp/versions/1"):
        ours, theirs = (reply.json() for reply in ask("GET", path))
        assert (ours.pop("platform"), theirs.pop("platform")) == ("onnxruntime_onnx", "python")
        assert ours == theirs
    ours, theirs = (reply.json() for reply in ask("GET", "/v2/models/mlp/config"))
    for field in ("name", "max_batch_size"):
        assert ours[field] == theirs[field]
    for field in ("input", "output"):
        assert [(one["name"], one["data_type"], one["dims"]) for one in ours[field]] == [
            (one["name"], one["data_type"], one["dims"]) for one in theirs[field]
        ]


def test_grpc_gives_the_same_bytes_and_codes(tollway: Tollway, triton: RealTriton, auth: dict[str, str]) -> None:
    array = np.array([ROW, ROW[::-1]], dtype=np.float32)
    seen = []
    for address, headers in ((tollway.grpc_address, auth), (triton.grpc_address, None)):
        with triton_grpc.InferenceServerClient(address) as client:
            reply = client.infer("mlp", [tensor(triton_grpc, "x", array, "FP32")], request_id="7", headers=headers)
            codes = []
            for model, wrong in (("nix", array), ("mlp", array[:, :3]), ("mlp", np.tile(array, (33, 1)))):
                with pytest.raises(InferenceServerException) as caught:
                    client.infer(model, [tensor(triton_grpc, "x", wrong, "FP32")], headers=headers)
                codes.append(caught.value.status())
            seen.append((reply.as_numpy("y").tobytes(), reply.get_response().id, codes))
    assert seen[0] == seen[1]


# -- Triton behind Tollway ---------------------------------------------------------------------------------------------


def test_calls_to_triton_are_metered_by_our_own_count(
    tollway: Tollway, triton: RealTriton, auth: dict[str, str]
) -> None:
    """tritonclient → Tollway → Triton, HTTP→HTTP and gRPC→gRPC: tensors pass unchanged, rows are counted by us."""
    array = np.array([ROW] * 5, dtype=np.float32)
    with triton_http.InferenceServerClient(triton.url.removeprefix("http://")) as direct:
        own = direct.infer("remote", [tensor(triton_http, "x", array, "FP32")]).as_numpy("y")
    before = tollway.admin("GET", "/admin/usage?by=model&model=remote")["rows"]
    address = tollway.http_url.removeprefix("http://")
    with (
        triton_http.InferenceServerClient(address) as http,
        triton_grpc.InferenceServerClient(tollway.grpc_address) as rpc,
    ):
        for binary in (True, False):
            inputs = [tensor(triton_http, "x", array, "FP32", binary_data=binary)]
            got = http.infer("remote", inputs, request_id="own", headers=dict(auth))
            assert got.as_numpy("y").tobytes() == own.tobytes()
            assert got.get_response()["id"] == "own"
        for coding in (None, "gzip"):
            inputs = [tensor(triton_grpc, "x", array, "FP32")]
            got = rpc.infer("remote", inputs, headers=auth, compression_algorithm=coding)
            assert got.as_numpy("y").tobytes() == own.tobytes()
    tollway.wait_until_posted()
    [after] = tollway.admin("GET", "/admin/usage?by=model&model=remote")["rows"]
    calls, rows = (before[0]["calls"], before[0]["rows"]) if before else (0, 0)
    assert (after["calls"] - calls, after["rows"] - rows) == (4, 20)
    assert after["charge_nanos"] == after["calls"] * 20_000 + after["rows"] * 3_000
    assert tollway.admin("GET", "/admin/reconcile")["is_ok"]


def test_faults_of_triton_pass_and_are_free(tollway: Tollway, triton: RealTriton, auth: dict[str, str]) -> None:
    body = {"inputs": [{**X, "shape": [1, 3], "data": [1, 2, 3]}]}
    path = "/v2/models/remote/infer"
    ours = httpx.post(tollway.http_url + path, json=body, headers=auth, trust_env=False, timeout=60)
    theirs = httpx.post(triton.url + path, json=body, trust_env=False, timeout=60)
    assert (ours.status_code, ours.content) == (theirs.status_code, theirs.content)
    assert ours.headers["tollway-charge"].startswith("0 USD; reason=not_billable")
    answer = call(tollway.grpc_address, infer_request(1, "remote", 3), *auth.items())
    assert answer.code is grpc.StatusCode.INVALID_ARGUMENT


def test_a_triton_that_dies_and_comes_back() -> None:
    """Down: 503 with Retry-After, UNAVAILABLE, and ready says so; up again: calls go on; nothing else is billed."""
    with RealTriton(["remote"]) as triton:
        tollway = Tollway(settings={"engine": "false", "backends": f"[{triton.backend('remote')}]"})
        with tollway:
            key = give_key(tollway)
            headers = {"authorization": f"Bearer {key}"}

            def infer() -> httpx.Response:
                url = f"{tollway.http_url}/v2/models/remote/infer"
                return httpx.post(url, json={"inputs": [X]}, headers=headers, trust_env=False, timeout=30)

            assert infer().status_code == 200
            triton.kill()
            tollway.wait(lambda: not tollway.is_serving(), "ready to tell the truth")
            reply = infer()
            assert (reply.status_code, reply.json()["code"]) == (503, "backend_unavailable")
            assert int(reply.headers["retry-after"]) >= 1
            answer = call(tollway.grpc_address, infer_request(1, "remote"), *headers.items())
            assert answer.code is grpc.StatusCode.UNAVAILABLE
            assert int(answer.trailing["retry-after"]) >= 1
            assert tollway.is_live(), "alive all the same"
            triton.start()
            tollway.wait(lambda: infer().status_code == 200, "calls to go on")
            tollway.wait_until_posted()
            assert tollway.admin("GET", "/admin/reconcile")["is_ok"]
            [usage] = tollway.admin("GET", "/admin/usage?by=model")["rows"]
            assert usage["calls"] == 2
