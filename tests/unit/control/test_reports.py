"""Usage, ledger and reconciliation through the API are exactly what billing's one query path says."""

from pathlib import Path
from typing import Any

import pytest

from billing.events import Outcome, Reason
from billing.ledger.port import Batch
from billing.ledger.sqlite import SqliteLedger
from gateway.call import format_call_id
from tests.unit.billing.making import T0_NS, call, items
from tests.unit.control.support import Desk

DAY_NS = 86_400 * 1_000_000_000


def post(data_dir: Path) -> None:
    """Five good calls of three kinds over two days, and a failed one."""
    ledger = SqliteLedger(data_dir / "ledger.db")
    ledger.post(
        Batch(
            posts=[
                *items([1, 2]),
                *items([3], model="file_type", rows=4),
                *items([4], outcome=Outcome.FAILED),
                *items([5], tenant="beta", reason=Reason.FREE_PLAN, plan="free"),
                *items([6], t_ns=T0_NS + DAY_NS, key_id="key_2"),
            ],
            now_ns=T0_NS,
        )
    )
    ledger.close()


@pytest.fixture
def reports(desk: Desk) -> Desk:
    post(desk.data_dir)
    return desk


def rows(answer: Any) -> list[tuple[Any, ...]]:
    return [(*row["group"].values(), row["calls"], row["charge"]) for row in answer["rows"]]


def test_usage_is_grouped_by_what_is_asked(reports: Desk) -> None:
    by_day = reports.must("GET", "/admin/usage")
    assert rows(by_day) == [("2026-01-01", 5, "0.003220014"), ("2026-01-02", 1, "0.0015")]
    by_model = reports.must("GET", "/admin/usage?by=model&tenant=acme")
    assert rows(by_model) == [("file_type", 1, "0.000220014"), ("ocr", 4, "0.0045")]
    by_both = reports.must("GET", "/admin/usage?by=tenant&by=key")
    assert [row["group"] for row in by_both["rows"]] == [
        {"tenant": "acme", "key": "key_1"},
        {"tenant": "acme", "key": "key_2"},
        {"tenant": "beta", "key": "key_1"},
    ]


def test_usage_comes_in_pages(reports: Desk) -> None:
    first = reports.must("GET", "/admin/usage?by=model&by=day&limit=2")
    second = reports.must("GET", f"/admin/usage?by=model&by=day&limit=2&after={first['next']}")
    assert (len(first["rows"]), len(second["rows"]), second["next"]) == (2, 1, None)


@pytest.mark.parametrize("query", ["by=colour", "zone=Mars", "by=day&by=day", "since_ns=-1", "limit=0", "after=-1"])
def test_a_wrong_question_is_refused(reports: Desk, query: str) -> None:
    answer = reports.ask("GET", f"/admin/usage?{query}")
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_field")


def test_trial_balance_sums_to_zero(reports: Desk) -> None:
    answer = reports.must("GET", "/admin/ledger/trial-balance")
    assert answer["is_balanced"] is True
    assert answer["totals_nanos"] == {"USD": 0}
    assert sum(line["balance_nanos"] for line in answer["lines"]) == 0
    assert sum(line["debit_nanos"] for line in answer["lines"]) == 3 * 1_500_000 + 220_014 + 0


def test_entries_are_found_by_account_and_by_call(reports: Desk) -> None:
    entries = reports.must("GET", "/admin/ledger/entries")["items"]
    assert sum(entry["amount_nanos"] for entry in entries) == 0
    account = entries[0]["account"]
    of_account = reports.must("GET", "/admin/ledger/entries", params={"account": account})["items"]
    assert {entry["account"] for entry in of_account} == {account}
    call_id = format_call_id(call(3).call_id)
    of_call = reports.must("GET", f"/admin/ledger/entries?call_id={call_id}")["items"]
    found = reports.must("GET", f"/admin/ledger/calls/{call_id}")
    assert of_call == found["entries"]
    assert (found["model"], found["rows"], found["charge"]) == ("file_type", 4, "0.000220014")


def test_an_unknown_call_is_not_found_and_a_wrong_id_refused(reports: Desk) -> None:
    assert reports.ask("GET", f"/admin/ledger/calls/{format_call_id(bytes(16))}").status_code == 404
    assert reports.ask("GET", "/admin/ledger/calls/xyz").json()["code"] == "invalid_field"
    assert reports.ask("GET", "/admin/ledger/entries?call_id=xyz").json()["code"] == "invalid_field"


def test_reconcile_holds_for_what_was_posted_and_shows_what_was_not(reports: Desk) -> None:
    report = reports.must("GET", "/admin/reconcile")
    # The calls were posted without their logs: recorded counts come from watermarks, so this must be found out.
    assert report["posted"] == 6
    assert report["is_ok"] is False
    assert report["problems"]


@pytest.mark.parametrize(
    "path", ["/admin/usage", "/admin/ledger/trial-balance", "/admin/ledger/entries", "/admin/reconcile"]
)
def test_without_a_ledger_the_answer_says_so(desk: Desk, path: str) -> None:
    answer = desk.ask("GET", path)
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert "meter" in answer.json()["error"]
    assert answer.headers["retry-after"] == "1"
    assert not (desk.data_dir / "ledger.db").exists()
