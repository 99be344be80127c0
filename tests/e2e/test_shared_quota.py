"""Two whole installations on one Valkey: one tenant, one limit, exactly, whatever is killed; a key is one's own."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.e2e.harness import Tollway
from tests.unit.quota.valkey import Valkey, valkey

CAP = 40
#: Each asks for more than its half, and both for more than there is.
CALLS = 30


@pytest.fixture(scope="module")
def server() -> Iterator[Valkey]:
    with valkey() as one:
        yield one


@pytest.fixture(scope="module")
def pair(server: Valkey) -> Iterator[list[Tollway]]:
    settings = {"quota_store": server.url}
    with Tollway(settings=settings) as first, Tollway(settings=settings) as second:
        yield [first, second]


def keys_of(pair: list[Tollway], tenant: str, **limits: int | str) -> list[str]:
    """One key per installation, known to its workers."""
    keys = []
    for tollway in pair:
        tollway.create_plan(tenant, "free", **limits)
        tollway.create_tenant(tenant, tenant)
        keys.append(tollway.create_key(tenant))
        tollway.wait_for_key(keys[-1])
    return keys


def call_until_decided(tollway: Tollway, key: str) -> httpx.Response:
    """One call, as a caller makes it who comes again while limits cannot be checked."""
    replies: list[httpx.Response] = []

    def is_decided() -> bool:
        replies.append(tollway.infer(key))
        return replies[-1].status_code != 503

    tollway.wait(is_decided, "limits to be decided")
    return replies[-1]


def served(replies: list[httpx.Response]) -> int:
    refused = [reply.json()["code"] for reply in replies if reply.status_code != 200]
    assert set(refused) <= {"monthly_cap_exceeded"}, refused
    return len(replies) - len(refused)


def test_a_cap_is_exact_over_both_and_stays_so_when_the_store_or_an_owner_is_killed(
    pair: list[Tollway], server: Valkey
) -> None:
    keys = keys_of(pair, "capped", calls_per_month=CAP)
    doors = [(tollway, key) for tollway, key in zip(pair, keys, strict=True) for _ in range(CALLS)]
    with ThreadPoolExecutor(6) as callers:
        replies = list(callers.map(lambda door: call_until_decided(*door), doors))
    assert served(replies) == CAP
    # The store comes back with nothing: each installation counts its own calls anew.
    server.kill()
    server.start()
    for tollway, key in zip(pair, keys, strict=True):
        assert call_until_decided(tollway, key).json()["code"] == "monthly_cap_exceeded"
    first = pair[0]
    first.wait_for_next("quota", first.kill("quota"))
    assert call_until_decided(first, keys[0]).json()["code"] == "monthly_cap_exceeded"


def test_a_rate_is_one_over_both(pair: list[Tollway]) -> None:
    """One call a day for both together, and a burst of three."""
    keys = keys_of(pair, "rated", rate_calls=1, rate_window_s=86_400, burst=3)
    # In an epoch that began just now the bucket is empty, as nobody knows what was taken before.
    codes = [call_until_decided(tollway, key).status_code for tollway, key in [*zip(pair, keys, strict=True)] * 3]
    assert codes.count(200) <= 3
    assert set(codes) <= {200, 429}


def test_a_keyed_call_is_run_by_the_installation_that_knows_the_key_and_by_no_other(pair: list[Tollway]) -> None:
    """I4 over hosts: replies need not be shared, since what would repeat the call elsewhere is not let in there."""
    own, _ = keys_of(pair, "keyed", calls_per_month=1_000)
    inputs = [{"name": "x", "shape": [1, 64], "datatype": "FP32", "data": [0.5] * 64}]

    def send(tollway: Tollway) -> httpx.Response:
        headers = {"authorization": f"Bearer {own}", "idempotency-key": "once"}
        url = f"{tollway.http_url}/v2/models/mlp/infer"
        return httpx.post(url, json={"inputs": inputs}, headers=headers, trust_env=False, timeout=60)

    first, second = pair
    call_until_decided(first, own)
    answers = [send(first) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert len({answer.content for answer in answers}) == 1
    assert [answer.headers.get("idempotency-replayed") for answer in answers] == [None, "true", "true"]
    assert send(second).status_code == 401
    for tollway, calls in ((first, 2), (second, 0)):
        tollway.wait_until_posted()
        rows = tollway.admin("GET", "/admin/usage?by=tenant&tenant=keyed")["rows"]
        assert sum(row["calls"] for row in rows) == calls
