"""Self-service: a key sees and changes its own tenant, and nothing of another's on any route (I27)."""

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from billing.ledger.rules import Line
from billing.webhooks.targets import TargetRefused
from gateway.control.money import Money
from gateway.control.webhook_runner import WebhookRunner
from tests.unit.billing.invoices.office import ACCOUNT, DAY_NS, MONTH_END_NS, SELLER, Office
from tests.unit.control.billing_desk import meter_of
from tests.unit.control.support import Desk
from tests.unit.control.test_guard import all_routes


class Two:
    """Two tenants with a key, an invoice, usage and a webhook each."""

    def __init__(self, desk: Desk, office: Office) -> None:
        self.desk = desk
        self.office = office
        self.keys: dict[str, str] = {}
        self.key_ids: dict[str, str] = {}
        office.do("seller.set", SELLER)
        for tenant, calls in (("acme", 1_000), ("beta", 2_000)):
            desk.new_tenant(tenant, plan="pay-per-call")
            made = desk.new_key(tenant, scopes=["infer", "read", "admin"])
            self.keys[tenant], self.key_ids[tenant] = made["key"], made["details"]["key_id"]
            office.do("account.set", ACCOUNT | {"tenant": tenant})
            office.post_usage(calls, tenant=tenant, key_id=self.key_ids[tenant])
            office.do("invoice.bill", {"tenant": tenant, "until_ns": MONTH_END_NS})

    def ask(self, tenant: str, method: str, path: str, body: Any = None, **more: Any) -> httpx.Response:
        return self.desk.ask_tcp(method, path, body, token=self.keys[tenant], **more)

    def must(self, tenant: str, method: str, path: str, body: Any = None) -> Any:
        answer = self.ask(tenant, method, path, body)
        assert answer.is_success, (method, path, answer.text)
        return answer.json()


@pytest.fixture
def two(desk: Desk) -> Iterator[Two]:
    with meter_of(desk) as office:
        yield Two(desk, office)


def things_of(two: Two, tenant: str) -> dict[str, str]:
    """An id for every kind of path parameter, all of that tenant."""
    endpoint = two.must(tenant, "POST", "/me/webhooks", {"url": "https://hooks.example.com/x"})["details"][
        "endpoint_id"
    ]
    two.office.do("subscription.start", {"tenant": tenant, "name": "Pro", "fee_minor": 1})
    money = Money(two.desk.data_dir, two.desk.control.registry, two.desk.app.state.ask_meter)
    WebhookRunner(money, two.desk.control.registry, look=_nowhere).tick()
    (delivery,) = two.must(tenant, "GET", f"/me/webhooks/{endpoint}/deliveries")["items"]
    (invoice,) = two.must(tenant, "GET", "/me/invoices")["items"]
    calls = "SELECT call_id FROM usage_event JOIN tenant t USING (tenant_id) WHERE t.name = ? LIMIT 1"
    (call_id,) = two.office.reader.execute(calls, (tenant,)).fetchone()
    return {
        "key_id": two.key_ids[tenant],
        "call_id": bytes(call_id).hex(),
        "endpoint_id": endpoint,
        "delivery_id": str(delivery["delivery_id"]),
        "name": invoice["number"],
    }


def _nowhere(url: str) -> Any:
    raise TargetRefused(f"no network in tests: {url}")


BODIES: dict[str, Any] = {
    "/me/keys": {"name": "x"},
    "/me/keys/{key_id}/rotate": {"operation_id": "operation-1"},
    "/me/webhooks": {"url": "https://hooks.example.com/y"},
    "/me/webhooks/{endpoint_id}/rotate": {},
}


#: What a path needs besides its own parts.
QUERIES = {"/me/receipts/consistency": "?first=1"}


def my_routes(desk: Desk) -> list[tuple[str, str]]:
    found = [
        (method, one.path) for one in all_routes(desk.app) if one.path.startswith("/me") for method in one.methods or ()
    ]
    assert len(found) >= 16
    return sorted(found)


def test_no_route_shows_or_changes_anything_of_another_tenant(two: Two) -> None:
    """The matrix is made from the route table: a new route is in it, or has no id to give for its parameter."""
    theirs = things_of(two, "beta")
    before = [two.must("beta", "GET", path) for path in ("/me/keys", "/me/webhooks", "/me/invoices", "/me/balance")]
    for method, path in my_routes(two.desk):
        place = re.sub(r"\{(\w+)\}", lambda name: theirs[name[1]], path) + QUERIES.get(path, "")
        answer = two.ask("acme", method, place, BODIES.get(path))
        if "{" in path:
            assert answer.status_code == 404, (method, path, answer.text)
        else:
            assert answer.is_success, (method, path, answer.text)
        for thing in (*theirs.values(), "beta"):
            if len(thing) > 3 and answer.is_success:
                assert thing not in answer.text, (method, path, thing)
    after = [two.must("beta", "GET", path) for path in ("/me/keys", "/me/webhooks", "/me/invoices", "/me/balance")]
    assert after == before


def test_the_same_routes_work_for_the_owner(two: Two) -> None:
    mine = things_of(two, "beta")
    for method, path in my_routes(two.desk):
        if method == "DELETE" or path.endswith(("/keys/{key_id}/revoke", "/keys/{key_id}/rotate")):
            continue
        place = re.sub(r"\{(\w+)\}", lambda name: mine[name[1]], path) + QUERIES.get(path, "")
        assert two.ask("beta", method, place, BODIES.get(path)).is_success, (method, path)


def test_nobody_enters_without_a_key_of_ours(two: Two) -> None:
    admin = two.desk.bootstrap_token
    for number, (method, path) in enumerate(my_routes(two.desk)):
        place = re.sub(r"\{\w+\}", "x", path)
        for headers in (
            {},
            {"authorization": f"Bearer {admin}"},
            {"authorization": "Bearer tw_live_nonsense"},
            {"x-api-key": "x"},
        ):
            answer = two.desk.at(
                two.desk.tcp, method, place, peer=f"10.2.{number}.{len(str(headers)) % 250}", headers=headers
            )
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated"), (method, path)
        # The local administrator is no tenant either.
        assert two.desk.ask(method, place, peer=f"local-{number}").status_code == 401


def test_a_key_of_a_tenant_is_no_key_to_administration(two: Two) -> None:
    assert two.ask("acme", "GET", "/admin/tenants").status_code == 401
    assert two.ask("acme", "GET", "/me/../admin/tenants").status_code in {401, 404}
    assert two.ask("acme", "GET", "/meadow").status_code == 401


def test_reading_needs_read_and_changing_needs_admin(two: Two) -> None:
    for scopes, reads, changes in ((["infer"], 403, 403), (["read"], 200, 403), (["admin"], 403, 201)):
        two.keys["acme"] = two.desk.new_key("acme", scopes=scopes)["key"]
        assert two.ask("acme", "GET", "/me").status_code == reads
        body = {"url": "https://hooks.example.com/z"}
        answer = two.ask("acme", "POST", "/me/webhooks", body)
        assert answer.status_code == changes
        if changes == 403:
            assert answer.json()["code"] == "scope_forbidden"


def test_wrong_keys_are_counted_against_the_peer(two: Two) -> None:
    for _ in range(10):
        assert two.desk.ask_tcp("GET", "/me", token="wrong", peer="10.9.9.9").status_code == 401
    answer = two.ask("acme", "GET", "/me", peer="10.9.9.9")
    assert (answer.status_code, answer.json()["code"]) == (429, "rate_exceeded")


def test_a_suspended_tenant_still_sees_its_invoices_and_a_revoked_key_sees_nothing(two: Two) -> None:
    two.desk.must("POST", "/admin/tenants/acme/suspend")
    assert len(two.must("acme", "GET", "/me/invoices")["items"]) == 1
    two.desk.must("POST", f"/admin/keys/{two.key_ids['acme']}/revoke")
    assert two.ask("acme", "GET", "/me/invoices").status_code == 401


def test_keys_are_made_rotated_and_revoked_below_the_callers_own(two: Two) -> None:
    child = two.must("acme", "POST", "/me/keys", {"name": "child", "scopes": ["read"]})
    other = two.desk.new_key("acme")["details"]["key_id"]
    body = {"operation_id": "operation-2"}
    assert child["details"]["parent"] == two.key_ids["acme"]
    assert two.must("acme", "POST", f"/me/keys/{child['details']['key_id']}/rotate", body)["key"]
    assert two.ask("acme", "POST", f"/me/keys/{other}/revoke").status_code == 404
    two.keys["acme"] = child["key"]
    answer = two.ask("acme", "POST", "/me/keys", {"scopes": ["read"]})
    assert answer.status_code == 403


def test_a_key_cannot_give_more_than_it_has(two: Two) -> None:
    two.keys["acme"] = two.desk.new_key("acme", scopes=["read", "admin"], models=["ocr"], expires_s=3_600)["key"]
    assert two.ask("acme", "POST", "/me/keys", {"scopes": ["infer"]}).status_code == 403
    assert two.ask("acme", "POST", "/me/keys", {"scopes": ["read"], "models": ["other"]}).status_code == 403
    assert two.ask("acme", "POST", "/me/keys", {"scopes": ["read"], "expires_s": 7_200}).status_code == 403
    made = two.must("acme", "POST", "/me/keys", {"scopes": ["read"]})["details"]
    assert (made["models"], made["expires_at"] is not None) == (["ocr"], True)


def test_only_a_key_to_which_the_operator_gave_operate_can_give_it(two: Two) -> None:
    answer = two.ask("acme", "POST", "/me/keys", {"scopes": ["operate"]})
    assert (answer.status_code, answer.json()["code"]) == (403, "exceeds_parent")
    two.keys["acme"] = two.desk.new_key("acme", scopes=["admin", "operate"])["key"]
    made = two.must("acme", "POST", "/me/keys", {"scopes": ["operate"]})["details"]
    assert made["scopes"] == ["operate"]


def test_a_key_made_without_a_wish_never_outlives_its_parent_whatever_the_time_between_two_looks_at_the_clock(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    two.keys["acme"] = two.desk.new_key("acme", scopes=["read", "admin"], expires_s=3_600)["key"]
    clock = two.desk.clock
    look = clock.wall_ns

    def slow_look() -> int:
        clock.advance(300_000_000)
        return look()

    monkeypatch.setattr(clock, "wall_ns", slow_look)
    for _ in range(10):
        assert two.must("acme", "POST", "/me/keys", {"scopes": ["read"]})["details"]["expires_at"] is not None


def test_limits_say_what_is_left_of_the_day_and_the_month(two: Two) -> None:
    plan = {"name": "small", "pricing": "priced", "rate_calls": 5, "burst": 9, "calls_per_day": 1_200}
    two.desk.must("POST", "/admin/plans", plan)
    two.desk.must("POST", "/admin/tenants/acme/plan", {"plan": "small"})
    two.desk.clock.step_wall(ACCOUNT["anchor_ns"] + 5 * 3_600 * 10**9 - two.desk.clock.wall_ns())
    found = {one["name"]: one for one in two.must("acme", "GET", "/me/limits")["limits"]}
    assert (found["calls_per_second"]["limit"], found["burst"]["limit"]) == (5, 9)
    day = found["calls_per_day"]
    assert (day["limit"], day["used"], day["left"], day["resets_at"]) == (1_200, 1_000, 200, "2026-01-02T00:00:00.000Z")
    assert (found["calls_per_month"]["limit"], found["calls_per_month"]["used"]) == (None, 1_000)


def test_usage_balance_and_invoice_say_the_same(two: Two) -> None:
    two.office.post_usage(10, t_ns=MONTH_END_NS + DAY_NS, tenant="acme")
    usage = two.must("acme", "GET", "/me/usage?by=model")["rows"]
    balance = two.must("acme", "GET", "/me/balance")
    (row,) = two.must("acme", "GET", "/me/invoices")["items"]
    document = two.must("acme", "GET", f"/me/invoices/{row['number']}")["document"]
    billed = sum(line["exact_nanos"] for line in document["lines"])
    assert sum(one["charge_nanos"] for one in usage) == billed + balance["unbilled_nanos"]
    assert balance["owed_nanos"] == row["state"]["due_minor"] * 10**7
    admin = two.desk.must("GET", "/admin/usage?by=model&tenant=acme")["rows"]
    assert admin == usage
    assert two.must("acme", "GET", "/me/usage?by=key")["rows"]
    assert two.ask("acme", "GET", "/me/usage?by=nonsense").status_code == 422
    assert two.ask("acme", "GET", "/me/usage?by=day&by=day").status_code == 422


def test_prepaid_of_a_tenant_whose_name_only_begins_the_same_is_another_s(two: Two) -> None:
    with two.office.ledger.journal() as journal:
        for account, amount in (("acme", -5), ("acme:g1", -7), ("acme-2", -100), ("acme2:g1", -100)):
            lines = [
                Line("cash:psp:bank", "USD", -amount, 0),
                Line(f"contract_liability:prepaid:{account}", "USD", amount, 0),
            ]
            journal.post("top_up", "acme", 1, lines)
    assert two.must("acme", "GET", "/me/balance")["prepaid_nanos"] == 12


def test_two_different_keys_at_once_are_refused(two: Two) -> None:
    headers = {"authorization": f"Bearer {two.keys['acme']}", "x-api-key": two.keys["beta"]}
    assert two.desk.at(two.desk.tcp, "GET", "/me", headers=headers).status_code == 400


def test_what_a_key_does_is_in_the_audit_trail_under_its_name(two: Two) -> None:
    two.must("acme", "POST", "/me/keys", {"name": "x"})
    rows = two.desk.must("GET", "/admin/audit?limit=1000")["items"]
    assert rows[-1]["actor"] == f"key:{two.key_ids['acme']}"
