"""The language model as it is served: a real network behind the gateway, streamed, metered and billed by tokens.

Needs openvino-genai (300 MB, not in the locks) and the package of its weights: see docs/showcases.md.
"""

import contextlib
import importlib.util
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from model_repo.build import CACHE, build
from model_repo.recipes import read_recipes
from tests.e2e.harness import Tollway

ROOT = Path(__file__).parents[2]
MODEL = "language_model"
QUESTION = "What is the capital of France?"
ROW_NANOS, CALL_NANOS = 10_000, 1_000_000
PRICES = 'version = 1\ncurrency = "USD"\n[default]\nper_call = "0.001"\nper_row = "0.00001"\n'

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        importlib.util.find_spec("openvino_genai") is None,
        reason="openvino-genai is not installed here (pip install openvino-genai==2026.4.1.0, docs/showcases.md)",
    ),
]


@pytest.fixture(scope="module")
def tollway() -> Iterator[Tollway]:
    tollway = Tollway()
    recipes = [recipe for recipe in read_recipes() if recipe.name == MODEL]
    build(recipes, tollway.repository, ROOT / CACHE, lambda _label, _have, _total: None)
    prices = tollway.folder / "token-prices.toml"
    prices.write_text(PRICES)
    tollway.settings |= {"python_models_allowed": f'["{tollway.repository}"]', "price_book": str(prices)}
    with tollway:
        tollway.create_plan("payg", "priced")
        tollway.create_tenant("looker", "payg")
        key = tollway.create_key("looker")
        tollway.wait_for_key(key)
        tollway.wait(lambda: is_ready(tollway, key), "the network is loaded", 120)
        yield tollway


def is_ready(tollway: Tollway, key: str) -> bool:
    url = f"{tollway.http_url}/v2/models/{MODEL}/ready"
    return httpx.get(url, headers={"authorization": f"Bearer {key}"}, timeout=60).status_code == 200


@pytest.fixture
def key(tollway: Tollway, request: pytest.FixtureRequest) -> str:
    """Of a tenant of the test's own."""
    tenant = _tenant(request)
    tollway.create_tenant(tenant, "payg")
    key = tollway.create_key(tenant)
    tollway.wait_for_key(key)
    return key


def _tenant(request: pytest.FixtureRequest) -> str:
    return str(request.node.name).replace("_", "-")[-40:].strip("-")


def bills(tollway: Tollway, request: pytest.FixtureRequest) -> list[tuple[int, int]]:
    """(tokens, nanos) of every posted call of the test's tenant, once everything is posted."""
    tollway.wait_until_posted()
    with contextlib.closing(sqlite3.connect(tollway.data_dir / "ledger.db")) as db:
        return db.execute(
            "SELECT rows, charge_nanos FROM usage_event JOIN tenant USING (tenant_id) WHERE tenant.name = ?",
            (_tenant(request),),
        ).fetchall()


def post(tollway: Tollway, key: str, verb: str, **body: Any) -> httpx.Response:
    url = f"{tollway.http_url}/v2/models/{MODEL}/{verb}"
    return httpx.post(url, json=body, headers={"authorization": f"Bearer {key}"}, timeout=120)


def events_of(reply: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in reply.text.splitlines() if line.startswith("data: ")]


def test_an_answer_comes_in_events_and_each_token_is_billed(
    tollway: Tollway, key: str, request: pytest.FixtureRequest
) -> None:
    reply = post(tollway, key, "generate_stream", PROMPT=QUESTION, max_tokens=40)
    assert reply.status_code == 200, reply.text
    events = events_of(reply)
    assert "Paris" in "".join(event["TEXT"] for event in events)
    assert events[-1]["FINISH"] in ("stop", "length")
    assert all("FINISH" not in event for event in events[:-1])
    assert bills(tollway, request) == [(len(events), CALL_NANOS + len(events) * ROW_NANOS)]


def test_the_same_seed_gives_the_same_text_and_a_bound_is_kept(tollway: Tollway, key: str) -> None:
    said = [
        events_of(post(tollway, key, "generate_stream", PROMPT=QUESTION, max_tokens=5, temperature=1.0, seed=7))
        for _ in range(2)
    ]
    assert [event["TEXT"] for event in said[0]] == [event["TEXT"] for event in said[1]]
    assert 1 <= len(said[0]) <= 5


def test_a_grpc_stream_has_a_response_for_each_token_and_an_end(
    tollway: Tollway, key: str, request: pytest.FixtureRequest
) -> None:
    message = service_pb2.ModelInferRequest(model_name=MODEL, id="asked")
    message.inputs.add(name="PROMPT", datatype="BYTES", shape=[1]).contents.bytes_contents.append(QUESTION.encode())
    message.parameters["max_tokens"].int64_param = 40
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    with grpc.insecure_channel(tollway.grpc_address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        metadata = (("authorization", f"Bearer {key}"),)
        replies = list(stub.ModelStreamInfer(iter([message]), metadata=metadata, timeout=120))
    assert not any(reply.error_message for reply in replies)
    assert {reply.infer_response.id for reply in replies} == {"asked"}
    *tokens, end = [reply.infer_response for reply in replies]
    assert end.parameters["triton_final_response"].bool_param
    assert not end.outputs
    text = b"".join(token.raw_output_contents[0][4:] for token in tokens).decode()
    assert "Paris" in text
    assert bills(tollway, request) == [(len(tokens), CALL_NANOS + len(tokens) * ROW_NANOS)]


def test_an_unknown_parameter_is_refused_and_costs_nothing(
    tollway: Tollway, key: str, request: pytest.FixtureRequest
) -> None:
    reply = post(tollway, key, "generate_stream", PROMPT=QUESTION, no_such_parameter=1)
    assert reply.status_code == 400
    assert "no_such_parameter" in reply.json()["error"]
    assert sum(nanos for _, nanos in bills(tollway, request)) == 0
