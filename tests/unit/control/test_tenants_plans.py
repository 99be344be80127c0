"""Tenants and plans: validated, published before the answer, and plans never change in place."""

from pathlib import Path
from typing import Any

import pytest

from gateway.control.plans import SEED
from tests.unit.control.support import Desk, open_desk

LIMITLESS = {"rate_calls": None, "concurrency": None, "calls_per_day": None, "calls_per_month": None}


def test_a_tenant_is_published_before_the_answer(desk: Desk) -> None:
    created = desk.new_tenant("acme", name="Acme Ltd", plan="pay-per-call", zone="Europe/Berlin")
    assert created["zone"] == "Europe/Berlin"
    published = desk.tenant("acme")
    assert (published.plan, published.zone, published.is_suspended) == ("pay-per-call", "Europe/Berlin", False)


def test_suspend_resume_and_set_plan_reach_the_snapshot(desk: Desk) -> None:
    desk.new_tenant()
    desk.must("POST", "/admin/tenants/acme/suspend")
    assert desk.tenant("acme").is_suspended
    desk.must("POST", "/admin/tenants/acme/resume")
    assert not desk.tenant("acme").is_suspended
    desk.must("POST", "/admin/tenants/acme/plan", {"plan": "internal"})
    assert desk.tenant("acme").plan == "internal"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"tenant": "Acme"}, "tenant"),
        ({"tenant": "-acme"}, "tenant"),
        ({"tenant": "a" * 64}, "tenant"),
        ({"tenant": "a/b"}, "tenant"),
        ({}, "tenant"),
        ({"tenant": "acme", "zone": "Mars/Olympus"}, "IANA"),
        ({"tenant": "acme", "zone": "../../etc/passwd"}, "IANA"),
        ({"tenant": "acme", "zone": "localtime"}, "IANA"),
        ({"tenant": "acme", "currency": "XXQ"}, "ISO 4217"),
        ({"tenant": "acme", "currency": "EUR"}, "prices in force are in USD"),
        ({"tenant": "acme", "plan": "gold"}, "plan"),
        ({"tenant": "acme", "is_suspended": False}, "is_suspended: unknown field"),
        ({"tenant": "acme", "created_ns": 1}, "created_ns: unknown field"),
        ([], "dictionary"),
    ],
)
def test_a_wrong_tenant_is_refused_with_what_is_wrong(desk: Desk, body: Any, text: str) -> None:
    answer = desk.ask("POST", "/admin/tenants", body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_field")
    assert text in answer.json()["error"]


def test_a_tenant_is_created_once(desk: Desk) -> None:
    desk.new_tenant()
    answer = desk.ask("POST", "/admin/tenants", {"tenant": "acme"})
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/admin/tenants/nobody"),
        ("POST", "/admin/tenants/nobody/suspend"),
        ("GET", "/admin/plans/nothing"),
        ("GET", "/admin/keys/key_0"),
        ("POST", "/admin/keys/key_0/revoke"),
    ],
)
def test_what_does_not_exist_is_not_found(desk: Desk, method: str, path: str) -> None:
    answer = desk.ask(method, path)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_lists_come_in_pages_without_gap_or_repeat(desk: Desk) -> None:
    names = [f"t{number}" for number in range(7)]
    for name in names:
        desk.new_tenant(name)
    seen: list[str] = []
    after = ""
    while True:
        answer = desk.must("GET", f"/admin/tenants?limit=3&after={after}")
        assert len(answer["items"]) <= 3
        seen += [tenant["tenant"] for tenant in answer["items"]]
        if answer["next"] is None:
            break
        after = answer["next"]
    assert seen == names


@pytest.mark.parametrize("limit", [0, 1001, "x"])
def test_a_page_has_a_largest_size(desk: Desk, limit: Any) -> None:
    assert desk.ask("GET", f"/admin/tenants?limit={limit}").status_code == 422


def test_seeded_plans_are_what_the_product_promises(desk: Desk) -> None:
    plans = {plan.name: plan for plan in desk.snapshot.plans}
    free = plans["free"]
    assert (free.rate_calls, free.rate_window_s, free.burst, free.calls_per_day) == (5, 1, 10, 1_000)
    assert {name: plan.pricing for name, plan in plans.items()} == {
        "free": "free",
        "pay-per-call": "priced",
        "internal": "internal",
    }
    assert all(getattr(plans["internal"], name) is None for name in LIMITLESS)


def test_a_changed_plan_is_a_new_version_and_the_old_one_stays(desk: Desk) -> None:
    first = desk.must("POST", "/admin/plans", {"name": "gold", "pricing": "priced", "rate_calls": 10})
    second = desk.must("POST", "/admin/plans", {"name": "gold", "pricing": "priced", "rate_calls": 20, "burst": 5})
    assert (first["version"], second["version"]) == (1, 2)
    versions = desk.must("GET", "/admin/plans/gold")["items"]
    assert [(plan["version"], plan["rate_calls"]) for plan in versions] == [(1, 10), (2, 20)]
    published = next(plan for plan in desk.snapshot.plans if plan.name == "gold")
    assert (published.version, published.rate_calls, published.burst) == (2, 20, 5)
    assert len(desk.must("GET", "/admin/plans")["items"]) == len(SEED) + 1


def test_an_equal_plan_makes_no_new_version(desk: Desk) -> None:
    body = {"name": "gold", "pricing": "priced", "concurrency": 4}
    desk.must("POST", "/admin/plans", body)
    version = desk.snapshot.version
    assert desk.must("POST", "/admin/plans", body)["version"] == 1
    assert desk.snapshot.version == version


def test_a_restart_does_not_undo_a_changed_seed(tmp_path: Path) -> None:
    with open_desk(tmp_path) as desk:
        desk.must("POST", "/admin/plans", {"name": "free", "pricing": "free", "rate_calls": 1})
    with open_desk(tmp_path) as desk:
        assert next(plan for plan in desk.snapshot.plans if plan.name == "free").rate_calls == 1


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"pricing": "cheap"}, "pricing"),
        ({"rate_calls": 0}, "rate_calls"),
        ({"rate_calls": 1.5}, "rate_calls"),
        ({"burst": 3}, "need rate_calls"),
        ({"rate_window_s": 60}, "need rate_calls"),
        ({"rate_calls": 1, "rate_window_s": 86_401}, "rate_window_s"),
        ({"concurrency": 0}, "concurrency"),
        ({"calls_per_day": -1}, "calls_per_day"),
        ({"calls_per_month": 10**13}, "calls_per_month"),
        ({"store_down": "open"}, "store_down"),
        ({"queue_weight": 0}, "queue_weight"),
        ({"queue_weight": 101}, "queue_weight"),
        ({"priority_best": -1}, "priority_best"),
        ({"priority_best": 65}, "priority_best"),
        ({"version": 7}, "version: unknown field"),
        ({"name": "Gold"}, "name"),
    ],
)
def test_a_wrong_plan_is_refused_with_what_is_wrong(desk: Desk, change: dict[str, Any], text: str) -> None:
    answer = desk.ask("POST", "/admin/plans", {"name": "gold", "pricing": "priced"} | change)
    assert answer.status_code == 422
    assert text in answer.json()["error"]


def test_a_plans_place_in_queues_reaches_the_snapshot(desk: Desk) -> None:
    for weight, best in ((1, 0), (100, 64)):
        body = {"name": "gold", "pricing": "priced", "queue_weight": weight, "priority_best": best}
        answer = desk.must("POST", "/admin/plans", body)
        assert (answer["queue_weight"], answer["priority_best"]) == (weight, best)
        plan = next(plan for plan in desk.snapshot.plans if plan.name == "gold")
        assert (plan.queue_weight, plan.priority_best) == (weight, best)
