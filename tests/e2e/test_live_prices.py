"""A price book and QPS packs applied while calls run: no call is lost, quarantined or charged by another book."""

from collections.abc import Iterator
from threading import Event, Thread

import httpx
import pytest

from tests.e2e.harness import PRICES, Tollway
from tests.unit.billing.invoices.office import ACCOUNT, SELLER

OLD = "0.000023"
NEW = "0.1"
BOOK = PRICES.replace("version = 1", "version = 2").replace('"0.00002"', '"0.1"').replace('"0.000003"', '"0"')
CATALOGUE = """
currency = "USD"
[plans.slow]
pricing = "priced"
rate_calls = 1
rate_window_s = 86_400
burst = 2
[plans.slow.subscription]
fee = "10"
[plans.slow.pack]
rate_calls = 1
burst = 100
fee = "3"
"""


@pytest.fixture(scope="module")
def tollway() -> Iterator[Tollway]:
    with Tollway() as running:
        yield running


class Caller:
    """Calls one after the other until told to stop; keeps the replies."""

    def __init__(self, tollway: Tollway, key: str) -> None:
        self.replies: list[httpx.Response] = []
        self.seen_new = Event()
        self._stop = Event()
        self._thread = Thread(target=self._run, args=(tollway, key), name="caller")
        self._thread.start()

    def _run(self, tollway: Tollway, key: str) -> None:
        while not self._stop.is_set():
            reply = tollway.infer(key)
            self.replies.append(reply)
            if reply.headers.get("tollway-charge", "").startswith(NEW):
                self.seen_new.set()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(60)


def test_every_call_is_charged_by_the_book_that_it_names(tollway: Tollway) -> None:
    tollway.create_tenant("acme", "pay-per-call")
    key = tollway.create_key("acme")
    tollway.wait_for_key(key)
    caller = Caller(tollway, key)
    try:
        tollway.wait(lambda: len(caller.replies) > 3, "the first calls")
        tollway.admin("POST", "/admin/prices", {"name": "book.toml", "text": BOOK})
        assert caller.seen_new.wait(60), tollway.says()
    finally:
        caller.stop()
    assert [reply.status_code for reply in caller.replies] == [200] * len(caller.replies)
    charges = [reply.headers["tollway-charge"].split()[0].rstrip(";,") for reply in caller.replies]
    versions = [reply.headers["tollway-charge"].rpartition("price=")[2] for reply in caller.replies]
    assert set(zip(charges, versions, strict=True)) == {(OLD, "1"), (NEW, "2")}
    assert charges == sorted(charges), "the old price came back"
    tollway.wait_until_posted()
    status = tollway.meter_status()
    assert status is not None
    assert (status["quarantined"], status["posted"]) == (0, len(charges))
    usage = tollway.admin("GET", "/admin/usage?by=price_version")["rows"]
    assert {row["group"]["price_version"]: row["calls"] for row in usage} == {
        1: charges.count(OLD),
        2: charges.count(NEW),
    }
    span = {"since_ns": 0, "until_ns": 2**62}
    assert all(line["difference_nanos"] == 0 for line in tollway.admin("POST", "/admin/prices/rerate", span)["lines"])


def test_the_newest_book_stays_in_force_when_control_is_killed(tollway: Tollway) -> None:
    pid = tollway.kill("control")
    tollway.wait_for_next("control", pid)
    assert tollway.admin("GET", "/admin/prices")["version"] == 2


def test_packs_raise_the_limits_of_a_running_tenant(tollway: Tollway) -> None:
    tollway.admin("POST", "/admin/catalogue", {"text": CATALOGUE})
    tollway.create_tenant("globex", "slow")
    key = tollway.create_key("globex")
    tollway.wait_for_key(key)
    for name, body in (("seller", SELLER), ("account", ACCOUNT | {"tenant": "globex"})):
        tollway.admin("POST", f"/admin/billing/commands/{name}.set", {"operation_id": f"set-{name}", "body": body})
    # A fresh owner's bucket may be empty only after a restart of it: this one is full, with two calls.
    assert [tollway.infer(key).status_code for _ in range(3)] == [200, 200, 429]
    done = tollway.tollway("plans", "subscribe", "globex", "slow", "--packs", "2")
    assert done.returncode == 0, done.stderr
    # Owner and worker learn of it each on its own: the policy told is the worker's, whose plan is recorded.
    tollway.wait(
        lambda: '"rate";q=3' in tollway.infer(key).headers["ratelimit-policy"], "the packs to reach the worker"
    )
    tollway.wait(lambda: tollway.infer(key).status_code == 200, "the packs to reach the quota owner")
    account = tollway.admin("GET", "/admin/billing/accounts/globex")
    assert [(one["name"], one["fee_minor"]) for one in account["subscriptions"]] == [("Plan slow with 2 packs", 1_600)]
    tollway.wait_until_posted()
    plans = {row["group"]["plan"] for row in tollway.admin("GET", "/admin/usage?by=plan&tenant=globex")["rows"]}
    assert plans == {"slow", "slow+2"}
