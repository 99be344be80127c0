"""Aliases in requests: one name for the current version, over HTTP and gRPC, recorded as the version that answered."""

import json
import platform
import queue
import sqlite3
from collections import Counter
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from model_repo import lifecycle
from model_repo.store import publish
from model_repo.stores import FileStore
from tests.e2e.harness import Tollway
from tests.unit.engine.certified import CONFIG, Build, stage

OWN = replace(Build().target, arch=platform.machine(), isa=())
BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 1]}]}


@pytest.fixture
def tollway() -> Any:
    """Model `m`: version 1 doubles, version 2 triples; `stable` is 1, `canary` is 2."""
    own = Tollway(settings={"engine_release_poll_s": "0.05"})
    for number, factor in enumerate((2.0, 3.0), start=1):
        folder = own.folder / f"staged-{number}"
        stage(folder, Build(factor=factor, golden=factor, target=OWN))
        publish(own.repository, "m", folder, CONFIG)
        name_version(own, "stable" if number == 1 else "canary", number)
    with own:
        own.create_tenant("acme", "internal")
        yield own


def name_version(tollway: Tollway, alias: str, number: int | None) -> None:
    lifecycle.name_version(FileStore(tollway.repository), "m", alias, number)


def recorded(tollway: Tollway) -> Counter[str]:
    """Calls of `m` by the version that they are recorded under."""
    tollway.wait_until_posted()
    with sqlite3.connect(f"file:{tollway.data_dir}/ledger.db?mode=ro", uri=True) as ledger:
        rows = ledger.execute(
            "SELECT model_version, count(*) FROM usage_event JOIN facet USING (facet_id) WHERE model = 'm' GROUP BY 1"
        ).fetchall()
    return Counter(dict(rows))


def known_key(tollway: Tollway) -> str:
    key = tollway.create_key("acme")
    tollway.wait_for_key(key)
    return key


def ask(tollway: Tollway, key: str, version: str, verb: str = "infer") -> httpx.Response:
    address = f"{tollway.http_url}/v2/models/m/versions/{version}/{verb}"
    return httpx.post(address, json=BODY, headers={"authorization": f"Bearer {key}"}, trust_env=False, timeout=60)


def answer(reply: httpx.Response) -> tuple[str, float]:
    assert reply.status_code == 200, reply.text
    value = reply.json()
    return value["model_version"], value["outputs"][0]["data"][0]


def test_an_alias_is_one_version_over_http_and_grpc_and_recorded_as_that(tollway: Tollway) -> None:
    key = known_key(tollway)
    assert answer(ask(tollway, key, "stable")) == ("1", 2.0)
    assert answer(ask(tollway, key, "canary")) == ("2", 3.0)
    assert answer(ask(tollway, key, "2")) == ("2", 3.0)
    assert "tollway-version" not in ask(tollway, key, "canary").headers

    tensor = np.ones((1, 2), np.float32)
    given = triton_grpc.InferInput("x", [1, 2], "FP32")
    given.set_data_from_numpy(tensor)
    headers = {"authorization": f"Bearer {key}"}
    with triton_grpc.InferenceServerClient(tollway.grpc_address) as client:
        found = client.infer("m", [given], model_version="canary", headers=headers)
        assert (found.get_response().model_version, found.as_numpy("y")[0][0]) == ("2", 3.0)
        config = client.get_model_config("m", "canary", headers=headers, as_json=True)["config"]
        assert config["parameters"]["tollway_aliases"]["string_value"] == "canary"
        with pytest.raises(InferenceServerException, match="version"):
            client.infer("m", [given], model_version="nobody", headers=headers)
        answers: queue.Queue[Any] = queue.Queue()
        client.start_stream(lambda result, error: answers.put((result, error)), headers=headers)
        client.async_stream_infer("m", [given], model_version="stable")
        result, error = answers.get(timeout=60)
        client.stop_stream()
        assert error is None
        assert result.get_response().model_version == "1"
    with triton_http.InferenceServerClient(tollway.http_url.removeprefix("http://")) as client:
        whole = triton_http.InferInput("x", [1, 2], "FP32")
        whole.set_data_from_numpy(tensor)
        found = client.infer("m", [whole], model_version="stable", headers=headers)
        assert found.get_response()["model_version"] == "1"
        assert client.is_model_ready("m", "canary", headers=headers)
        index = client.get_model_repository_index(headers=headers)
        named = {row["version"]: row.get("aliases") for row in index if row["name"] == "m"}
        assert named == {"1": ["stable"], "2": ["canary"]}

    missing = ask(tollway, key, "nobody")
    assert (missing.status_code, missing.json()["code"]) == (404, "version_not_found")
    malformed = ask(tollway, key, "Stable")
    assert (malformed.status_code, "a number or an alias" in malformed.text) == (400, True)
    # 1: stable by HTTP, by its client, by a stream. 2: canary twice by HTTP and once by gRPC, and its number once.
    assert recorded(tollway) == {"1": 3, "2": 4}


def test_a_moved_alias_is_never_between_two_versions(tollway: Tollway) -> None:
    """Calls go on while it moves: each is answered by one of the two, wholly, and recorded under it."""
    key = known_key(tollway)
    seen: Counter[str] = Counter()
    for target in (2, 1, 2):
        name_version(tollway, "stable", target)
        while True:
            version, value = answer(ask(tollway, key, "stable"))
            assert (version, value) in {("1", 2.0), ("2", 3.0)}
            seen[version] += 1
            if version == str(target):
                break
    assert recorded(tollway) == seen
    name_version(tollway, "canary", None)
    tollway.wait(lambda: ask(tollway, key, "canary").status_code == 404, "the end of the alias")


def test_an_event_stream_says_and_records_what_its_alias_was(tollway: Tollway) -> None:
    key = known_key(tollway)
    address = f"{tollway.http_url}/v2/models/m/versions/canary/generate_stream"
    headers = {"authorization": f"Bearer {key}"}
    reply = httpx.post(address, json={"x": [1.0, 1.0]}, headers=headers, trust_env=False, timeout=60)
    assert reply.status_code == 200, reply.text
    event = json.loads(reply.text.removeprefix("data: ").split("\n")[0])
    assert event["model_version"] == "2"
    assert recorded(tollway) == {"2": 1}
