"""curl, h2load and wrk as they are: every answer OK, every answer in the ledger."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.raw import infer_body
from tests.e2e.rpc import infer_request
from tests.e2e.siege import billed_calls
from tests.e2e.stage import Stage

INFER = "/v2/models/mlp/infer"
CALLS = 2000


def need(tool: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(tool) is None, reason=f"{tool} is not installed")


def run(*words: str, stdin: bytes = b"") -> str:
    done = subprocess.run(words, input=stdin, capture_output=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode(errors="replace")


def curl(stage: Stage, port: str, path: str, *options: str, stdin: bytes = b"") -> tuple[str, str]:
    """(body, "version status")."""
    url = f"http://127.0.0.1:{stage.tollway.ports[port]}{path}"
    words = ["curl", "--silent", "--noproxy", "*", "--max-time", "30", "--write-out", "\n%{http_version} %{http_code}"]
    body, _, last = run(
        *words, "--header", f"authorization: Bearer {stage.key}", *options, url, stdin=stdin
    ).rpartition("\n")
    return body, last


@need("curl")
@pytest.mark.parametrize("port", ["http_port", "grpc_port"])
@pytest.mark.parametrize(("option", "version"), [("--http2-prior-knowledge", "2"), ("--http1.1", "1.1")])
def test_rest_by_curl(fort: Stage, port: str, option: str, version: str) -> None:
    body, last = curl(fort, port, INFER, option, "--data-binary", "@-", stdin=infer_body())
    assert last == f"{version} 200"
    assert json.loads(body)["outputs"][0]["shape"] == [1, 10]
    body, last = curl(fort, port, "/v2/models/mlp", option)
    assert (last, json.loads(body)["name"]) == (f"{version} 200", "mlp")
    body, last = curl(fort, port, "/v2/models/nix", option)
    assert (last, json.loads(body)["code"]) == (f"{version} 404", "model_not_found")


@need("curl")
def test_an_upgrade_that_is_not_offered_is_ignored(fort: Stage) -> None:
    """`Upgrade: h2c` was dropped by RFC 9113: the call is answered in HTTP/1.1."""
    body, last = curl(fort, "http_port", INFER, "--http2", "--data-binary", "@-", stdin=infer_body())
    assert last == "1.1 200"
    assert json.loads(body)["model_name"] == "mlp"


@need("curl")
def test_a_large_body_by_curl_over_http2(fort: Stage, tmp_path: Path) -> None:
    """Past every window: 1 MB up as JSON, and its echo down."""
    size = 200_000
    data = [round(number * 0.001, 3) for number in range(size)]
    tensor = {"name": "x", "shape": [1, size], "datatype": "FP32", "data": data}
    file = tmp_path / "body.json"
    file.write_text(json.dumps({"inputs": [tensor]}))
    body, last = curl(
        fort, "http_port", "/v2/models/echo/infer", "--http2-prior-knowledge", "--data-binary", f"@{file}"
    )
    assert last == "2 200"
    assert json.loads(body)["outputs"][0]["data"][-1] == pytest.approx(data[-1])


def h2load(fort: Stage, tmp_path: Path, port: str, path: str, data: bytes, *options: str) -> str:
    file = tmp_path / "data"
    file.write_bytes(data)
    return run(
        "h2load", "-n", str(CALLS), "-c", "8", "-m", "16", "-d", str(file),
        "-H", f"authorization: Bearer {fort.key}", *options,
        f"http://127.0.0.1:{fort.tollway.ports[port]}{path}",
    )  # fmt: skip


def check_all_ok(text: str) -> None:
    assert f"{CALLS} succeeded, 0 failed, 0 errored, 0 timeout" in text, text
    assert f"status codes: {CALLS} 2xx, 0 3xx, 0 4xx, 0 5xx" in text, text


@need("h2load")
@pytest.mark.parametrize("port", ["http_port", "grpc_port"])
@pytest.mark.parametrize("options", [[], ["--h1"]])
def test_h2load_rest(fort: Stage, tmp_path: Path, port: str, options: list[str]) -> None:
    before = billed_calls(fort)
    check_all_ok(h2load(fort, tmp_path, port, INFER, infer_body(), *options))
    assert billed_calls(fort) - before == CALLS


@need("h2load")
def test_h2load_grpc(fort: Stage, tmp_path: Path) -> None:
    """gRPC says 200 even when it fails: that all 2,000 calls are in the ledger says that they did not."""
    message = infer_request(1)
    data = b"\0" + len(message).to_bytes(4, "big") + message
    before = billed_calls(fort)
    path = "/inference.GRPCInferenceService/ModelInfer"
    check_all_ok(
        h2load(fort, tmp_path, "grpc_port", path, data, "-H", "content-type: application/grpc", "-H", "te: trailers")
    )
    assert billed_calls(fort) - before == CALLS


@need("wrk")
def test_wrk(fort: Stage, tmp_path: Path) -> None:
    script = tmp_path / "post.lua"
    headers = f'wrk.headers["authorization"] = "Bearer {fort.key}"\n'
    script.write_text(f"wrk.method = 'POST'\nwrk.body = [[{infer_body().decode()}]]\n{headers}")
    url = f"http://127.0.0.1:{fort.tollway.ports['http_port']}{INFER}"
    before = billed_calls(fort)
    text = run("wrk", "-t1", "-c16", "-d2s", "-s", str(script), url)
    assert "Non-2xx" not in text, text
    assert "Socket errors" not in text, text
    found = re.search(r"(\d+) requests in", text)
    assert found is not None
    # wrk leaves its last calls unread: the ledger may have up to one more for each connection.
    answered = int(found[1])
    fort.tollway.wait_until_posted()
    assert answered <= billed_calls(fort) - before <= answered + 16
    assert fort.tollway.admin("GET", "/admin/reconcile")["is_ok"]
