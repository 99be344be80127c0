"""Two whole installations on one Valkey: one tenant, one limit, exactly, whatever is killed."""

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
