"""What a backend sees of a caller, over HTTP and gRPC: the trace and the id, never a credential or an order of ours."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import grpc
import httpx
import pytest

from tests.e2e.harness import Tollway
from tests.e2e.recorders import GrpcRecorder, HttpRecorder
from tests.e2e.rpc import Answer, call, infer_request
from tests.e2e.stage import give_key

TRACE = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
PATH = "/v2/models/recorded/infer"
INPUT = {"name": "x", "shape": [3, 1], "datatype": "FP32", "data": [0.5, 1.5, 2.5]}
PRICES = """
version = 1
currency = "USD"
[default]
per_call = "0.0001"
[models.recorded]
per_call = "0.00002"
per_row = "0.000003"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """A Tollway whose only backends write down what reaches them; nothing they say of units is believed."""

    tollway: Tollway
    key: str
    http: HttpRecorder
    rpc: GrpcRecorder

    def post(self, **headers: str) -> httpx.Response:
        self.http.calls.clear()
        named = {"authorization": f"Bearer {self.key}"} | {n.replace("_", "-"): v for n, v in headers.items()}
        return httpx.post(
            self.tollway.http_url + PATH, json={"inputs": [INPUT]}, headers=named, trust_env=False, timeout=30
        )

    def call(self, **metadata: str) -> Answer:
        self.rpc.calls.clear()
        named = [(n.replace("_", "-"), v) for n, v in ({"authorization": f"Bearer {self.key}"} | metadata).items()]
        return call(self.tollway.grpc_address, infer_request(3, "recorded", 1), *named)

    def seen_over_both(self, **headers: str) -> list[dict[str, str]]:
        """What each backend saw of one call with these headers."""
        assert self.post(**headers).status_code == 200
        assert self.call(**headers).code is grpc.StatusCode.OK
        return [self.http.calls[-1][1], self.rpc.calls[-1][1]]


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    with ExitStack() as stack:
        http, rpc = stack.enter_context(HttpRecorder()), stack.enter_context(GrpcRecorder())
        backend = f'[{{name="recorder", http="{http.url}", grpc="{rpc.url}", models=["recorded"]}}]'
        tollway = Tollway(settings={"engine": "false", "backends": backend})
        (tollway.folder / "prices.toml").write_text(PRICES)
        stack.enter_context(tollway)
        yield Ground(tollway=tollway, key=give_key(tollway, plan="pay-per-call"), http=http, rpc=rpc)


def test_the_trace_goes_on(ground: Ground) -> None:
    for seen in ground.seen_over_both(traceparent=TRACE, tracestate="vendor=1"):
        version, trace, parent, flags = seen["traceparent"].split("-")
        assert (version, trace, flags) == ("00", "a" * 32, "01")
        assert parent != "b" * 16, "the gateway is the parent of the backend's span"
        assert seen["tracestate"] == "vendor=1"


@pytest.mark.parametrize("bad", ["nonsense", "00-" + "0" * 32 + "-" + "b" * 16 + "-01", "ff-" + "a" * 32])
def test_a_malformed_trace_starts_a_new_one(ground: Ground, bad: str) -> None:
    for seen in ground.seen_over_both(traceparent=bad):
        trace = seen["traceparent"].split("-")[1]
        assert len(trace) == 32
        assert trace not in ("0" * 32, "a" * 32)


def test_credentials_stay_with_us(ground: Ground) -> None:
    for seen in ground.seen_over_both(cookie=f"k={ground.key}"):
        assert ground.key not in str(seen)
        assert not {"authorization", "cookie"} & set(seen)


@pytest.mark.parametrize("name", ["x_api_key", "apikey", "x_apig_appcode"])
def test_credentials_of_other_gateways_stay_too(ground: Ground, name: str) -> None:
    header = name.replace("_", "-")
    reply = httpx.post(
        ground.tollway.http_url + PATH,
        json={"inputs": [INPUT]},
        headers={header: ground.key},
        trust_env=False,
        timeout=30,
    )
    assert reply.status_code == 200
    assert header not in ground.http.calls[-1][1]
    answer = call(ground.tollway.grpc_address, infer_request(3, "recorded", 1), (header, ground.key))
    assert answer.code is grpc.StatusCode.OK
    assert header not in ground.rpc.calls[-1][1]


def test_orders_of_ours_are_dropped_from_callers(ground: Ground) -> None:
    for seen in ground.seen_over_both(tollway_rows="9", tollway_deadline_ns="1", x_tollway_tenant="other"):
        assert not [name for name in seen if "tollway" in name]


def test_the_id_and_own_headers_pass(ground: Ground) -> None:
    for seen in ground.seen_over_both(x_request_id="mine", x_own="kept"):
        assert (seen["x-request-id"], seen["x-own"]) == ("mine", "kept")


def test_the_time_that_is_left_is_passed_on(ground: Ground) -> None:
    ground.post(x_request_timeout_ms="5000")
    assert 0 < int(ground.http.calls[-1][1]["tollway-deadline-ns"]) <= 5_000_000_000


def test_units_of_a_backend_that_is_not_trusted_are_not_believed(ground: Ground) -> None:
    """Rows are counted from the call, on both protocols; the backend's claim does not even reach the caller."""
    ground.http.extra = {"tollway-rows": "999", "tollway-compute-ns": "1"}
    try:
        reply, answer = ground.post(), ground.call()
    finally:
        ground.http.extra = {}
    assert "tollway-rows" not in reply.headers
    metadata = answer.initial | answer.trailing
    ground.tollway.wait_until_posted()
    for call_id, charge in (
        (reply.headers["tollway-call-id"], reply.headers["tollway-charge"]),
        (metadata["tollway-call-id"], metadata["tollway-charge"]),
    ):
        assert charge == "0.000029 USD; reason=priced; price=1"
        found = ground.tollway.admin("GET", f"/admin/ledger/calls/{call_id}")
        assert (found["rows"], found["charge_nanos"]) == (3, 29_000)
