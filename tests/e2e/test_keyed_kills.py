"""I4 with real processes: a worker killed around a keyed call's record and reply makes no second bill."""

from collections.abc import Iterator

import httpx
import pytest

from tests.e2e.harness import Tollway

ROWS = 2
#: Before the reply was kept the call runs anew; after it, it is replayed. Never is it billed twice.
POINTS = ("after_append", "after_sync", "before_send", "after_send_before_mark")


@pytest.fixture(scope="module")
def tollway() -> Iterator[Tollway]:
    with Tollway() as running:
        running.create_tenant("acme", "pay-per-call")
        yield running


def infer(tollway: Tollway, key: str, name: str) -> httpx.Response | None:
    """One keyed call; None when the connection broke."""
    inputs = [{"name": "x", "shape": [ROWS, 64], "datatype": "FP32", "data": [0.5] * (64 * ROWS)}]
    headers = {"authorization": f"Bearer {key}", "idempotency-key": name}
    url = f"{tollway.http_url}/v2/models/mlp/infer"
    try:
        return httpx.post(url, json={"inputs": inputs}, headers=headers, trust_env=False, timeout=30)
    except httpx.TransportError:
        return None


def retry(tollway: Tollway, key: str, name: str) -> httpx.Response:
    """Send it again until it is answered."""
    answers: list[httpx.Response] = []

    def is_answered() -> bool:
        found = infer(tollway, key, name)
        if found is None or found.status_code in {409, 503}:
            return False
        answers.append(found)
        return True

    tollway.wait(is_answered, f"an answer to {name}")
    return answers[-1]


@pytest.mark.long
def test_a_killed_worker_makes_no_second_bill(tollway: Tollway) -> None:
    key = tollway.create_key("acme")
    tollway.wait_for_key(key)
    for point in POINTS:
        tollway.order_failpoint("worker-0", f"{point}:1")
        tollway.wait_for_next("worker-0", tollway.kill("worker-0"))
        tollway.wait_for_key(key)
        infer(tollway, key, f"kill-{point}")
        first, second = (retry(tollway, key, f"kill-{point}") for _ in range(2))
        assert first.status_code == second.status_code == 200, first.text
        assert first.content == second.content
        assert second.headers["idempotency-replayed"] == "true"
        assert first.headers["tollway-call-id"] == second.headers["tollway-call-id"]
    tollway.wait_until_posted()
    calls = sum(row["calls"] for row in tollway.admin("GET", "/admin/usage?by=tenant")["rows"])
    assert calls <= len(POINTS), "a key was billed twice"
    assert calls >= len(POINTS) - 1, "only the call whose mark was lost may go unbilled"
    assert tollway.admin("GET", "/admin/reconcile")["is_ok"]
