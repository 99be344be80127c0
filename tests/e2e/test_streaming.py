"""Streams through a whole Tollway: stock clients, and what a stream, a crash and a caller who leaves are billed."""

import contextlib
import json
import queue
import sqlite3
import zlib
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2, service_pb2_grpc

from gateway.stream_meter import CHECKPOINT_UNITS
from tests.e2e.crash.archive import Archive
from tests.e2e.harness import Tollway
from tests.unit.engine.making import write_python

#: x: int32 n → n responses y = 0 … n - 1.
MODEL = """
import threading
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            n = int(request.inputs()[0].as_numpy().ravel()[0])
            threading.Thread(target=self.answer, args=(n, request.get_response_sender())).start()

    def answer(self, n, sender):
        for i in range(n):
            if sender.is_cancelled():
                break
            sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("y", np.array([[i]], np.int32))]))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
PRICES = 'version = 1\ncurrency = "USD"\n[default]\nper_call = "0.001"\nper_row = "0.00001"\n'
CALL, ROW = 1_000_000, 10_000


@pytest.fixture(scope="module")
def tollway() -> Iterator[Tollway]:
    tollway = Tollway()
    write_python(
        tollway.repository,
        "tokens",
        MODEL,
        inputs=[("x", "INT32", (1,))],
        outputs=[("y", "INT32", (1,))],
        extra="model_transaction_policy { decoupled: true }",
    )
    prices = tollway.folder / "stream-prices.toml"
    prices.write_text(PRICES)
    tollway.settings |= {"python_models_allowed": f'["{tollway.repository}"]', "price_book": str(prices)}
    with tollway:
        tollway.create_plan("payg", "priced")
        yield tollway


@pytest.fixture
def key(tollway: Tollway, request: pytest.FixtureRequest) -> str:
    """Of a tenant of the test's own."""
    tenant = _tenant(request)
    tollway.create_tenant(tenant, "payg")
    key = tollway.create_key(tenant)
    tollway.wait_for_key(key)
    return key


def _tenant(request: pytest.FixtureRequest) -> str:
    return f"t-{zlib.crc32(str(request.node.name).encode())}"


def bills(tollway: Tollway, request: pytest.FixtureRequest) -> list[tuple[int, int]]:
    """(units, nanos) of every posted call of the test's tenant, once everything is posted and reconciles."""
    tollway.wait_until_posted()
    reconciled = tollway.tollway("reconcile")
    assert reconciled.returncode == 0, reconciled.stdout + reconciled.stderr
    with contextlib.closing(sqlite3.connect(tollway.data_dir / "ledger.db")) as db:
        return sorted(
            db.execute(
                "SELECT rows, charge_nanos FROM usage_event JOIN tenant USING (tenant_id) WHERE tenant.name = ?",
                (_tenant(request),),
            ).fetchall()
        )


def message(n: int, id_: str = "") -> Any:
    request = service_pb2.ModelInferRequest(model_name="tokens", id=id_)
    request.inputs.add(name="x", datatype="INT32", shape=[1, 1])
    request.raw_input_contents.append(np.array([n], np.int32).tobytes())
    return request


def test_a_stock_client_streams_and_each_request_is_billed(
    tollway: Tollway, key: str, request: pytest.FixtureRequest
) -> None:
    results: queue.SimpleQueue[Any] = queue.SimpleQueue()
    tensor = triton.InferInput("x", [1, 1], "INT32")
    with triton.InferenceServerClient(tollway.grpc_address) as client:
        client.start_stream(
            lambda result, error: results.put((result, error)), headers={"authorization": f"Bearer {key}"}
        )
        for n in (3, 0, 5):
            tensor.set_data_from_numpy(np.array([[n]], np.int32))
            client.async_stream_infer("tokens", [tensor], request_id=str(n), enable_empty_final_response=True)
        got: dict[str, list[int]] = {"3": [], "0": [], "5": []}
        finals = 0
        while finals < 3:
            result, error = results.get(timeout=30)
            assert error is None
            response = result.get_response()
            finals += response.parameters["triton_final_response"].bool_param
            if response.outputs:
                got[response.id].append(int(result.as_numpy("y")[0, 0]))
        client.stop_stream()
    assert got == {"3": [0, 1, 2], "0": [], "5": [0, 1, 2, 3, 4]}
    assert bills(tollway, request) == [(0, CALL), (0, CALL), (8, CALL + 8 * ROW)]


def test_events_and_single_answers_over_http(tollway: Tollway, key: str, request: pytest.FixtureRequest) -> None:
    headers = {"authorization": f"Bearer {key}"}
    url = f"{tollway.http_url}/v2/models/tokens"
    with httpx.Client(headers=headers, trust_env=False, timeout=30) as client:
        with client.stream("POST", f"{url}/generate_stream", json={"x": 100}) as reply:
            assert reply.status_code == 200
            assert reply.headers["content-type"].startswith("text/event-stream")
            assert "tollway-call-id" in reply.headers
            events = [json.loads(line[6:]) for line in reply.iter_lines() if line]
        assert [event["y"] for event in events] == list(range(100))
        reply = client.post(f"{url}/generate", json={"x": 1})
        assert (reply.json()["y"], reply.headers["tollway-charge"].split(";")[0]) == (0, "0.00101 USD")
        assert client.post(f"{url}/generate", json={"x": 2}).status_code == 501
        assert client.post(f"{tollway.http_url}/v2/models/none/generate_stream", json={"x": 1}).status_code == 404
        assert httpx.post(f"{url}/generate_stream", json={"x": 1}, trust_env=False, timeout=60).status_code == 401
    assert bills(tollway, request) == [(1, CALL + ROW), (100, CALL + 100 * ROW)]


def _stream(tollway: Tollway, key: str, n: int) -> tuple[grpc.Channel, Any]:
    channel = grpc.insecure_channel(tollway.grpc_address)
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    call = stub.ModelStreamInfer(iter([message(n)]), metadata=(("authorization", f"Bearer {key}"),), timeout=60)
    return channel, call


def test_a_caller_who_leaves_pays_for_what_was_handed_over(
    tollway: Tollway, key: str, request: pytest.FixtureRequest
) -> None:
    channel, call = _stream(tollway, key, 10_000_000)
    with channel:
        for count, _ in enumerate(call, 1):
            if count == 500:
                break
        call.cancel()
    [(units, nanos)] = bills(tollway, request)
    assert 500 <= units < 10_000_000
    assert nanos == CALL + units * ROW


_LONG = [pytest.param(nth, marks=pytest.mark.long) for nth in (1, CHECKPOINT_UNITS, CHECKPOINT_UNITS + 1)]


@pytest.mark.parametrize("nth", [300, *_LONG])
def test_a_crash_bills_the_last_durable_checkpoint(
    tollway: Tollway, key: str, request: pytest.FixtureRequest, nth: int
) -> None:
    """The worker dies in the middle of a stream: what its log noted last is billed, never more than was sent.

    Events, not gRPC: all that a dead process had written to such a socket still comes, and the client counts all that
    comes. A gRPC client answers, so its connection is reset, and it drops messages that it had not handed out yet.
    """
    tollway.order_failpoint("worker-0", f"after_stream_part:{nth}")
    pid = tollway.wait_for_next("worker-0", tollway.kill("worker-0"))
    tollway.wait_for_key(key)
    tollway.wait(tollway.is_serving, "models")
    archive = Archive(tollway.data_dir / "usage", tollway.folder / f"archive-{nth}")
    try:
        call_id, received = _events_until_cut(tollway, key, 100_000)
        tollway.wait_for_next("worker-0", pid)
        tollway.wait(lambda: bool(bills(tollway, request)), "the stream of the dead worker to be posted")
    finally:
        archive.stop()
    [(units, nanos)] = bills(tollway, request)
    notes = [note.served for epoch in archive.read().values() for note in epoch.progress]
    assert units == [served.rows for served in notes if served.call_id.hex() == call_id.replace("-", "")][-1]
    assert units <= received
    assert nanos == (CALL + units * ROW if units else 0)


def _events_until_cut(tollway: Tollway, key: str, n: int) -> tuple[str, int]:
    """The call's id, and how many events come before the connection breaks."""
    url = f"{tollway.http_url}/v2/models/tokens/generate_stream"
    headers = {"authorization": f"Bearer {key}"}
    received = 0
    with (
        httpx.Client(headers=headers, trust_env=False, timeout=60) as client,
        client.stream("POST", url, json={"x": n}) as reply,
        pytest.raises(httpx.TransportError),
    ):
        for line in reply.iter_lines():
            received += line.startswith("data: ")
    return reply.headers["tollway-call-id"], received


def test_a_crash_before_the_end_is_told_bills_what_was_noted_once(
    tollway: Tollway, key: str, request: pytest.FixtureRequest
) -> None:
    tollway.order_failpoint("worker-0", "before_stream_end:1")
    pid = tollway.wait_for_next("worker-0", tollway.kill("worker-0"))
    tollway.wait_for_key(key)
    tollway.wait(tollway.is_serving, "models")
    _, received = _events_until_cut(tollway, key, 200)
    tollway.wait_for_next("worker-0", pid)
    tollway.wait(lambda: bool(bills(tollway, request)), "the stream of the dead worker to be posted")
    [(units, nanos)] = bills(tollway, request)
    assert received == 200
    # Its record is durable, but has no mark that the end was sent: the last checkpoint counts.
    assert 200 - CHECKPOINT_UNITS < units <= 200
    assert nanos == CALL + units * ROW
