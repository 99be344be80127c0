"""Billing with real processes: a usage log → meter → invoice by the command line → payment → the tenant's view."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.integration.test_control_process import ControlProcess, told, tollway
from tests.unit.billing.making import BOOK, MeterProcess, call, marked, write_dead_epoch

SELLER = """
[party]
name = "Example GmbH"
tax = { country = "DE", tax_id = "DE123456789" }
[taxes]
version = 1
rates = [{ jurisdiction = "DE", name = "USt", rate_ppm = 190_000 }]
"""
ACCOUNT = """
tenant = "acme"
currency = "USD"
anchor_ns = 1_767_225_600_000_000_000
[buyer]
name = "Acme"
tax = { country = "DE" }
"""


@pytest.fixture(scope="module")
def running() -> Iterator[ControlProcess]:
    with tempfile.TemporaryDirectory(prefix="tw") as folder:
        data_dir = Path(folder) / "d"
        data_dir.mkdir(mode=0o700)
        (data_dir / "seller.toml").write_text(SELLER)
        (data_dir / "account.toml").write_text(ACCOUNT)
        (data_dir / "book.json").write_text(json.dumps(_book()))
        write_dead_epoch(data_dir / "usage", marked([call(number) for number in range(1, 1_001)]))
        with (
            ControlProcess(data_dir) as control,
            MeterProcess(data_dir, "--prices", str(data_dir / "book.json")) as meter,
        ):
            assert control.wait_ready()
            assert meter.wait_ready()
            yield control


def _book() -> dict[str, object]:
    prices = {
        name: {"per_call_nanos": one.per_call_nanos, "per_row_nanos": one.per_row_nanos}
        for name, one in BOOK.models.items()
    }
    for name, one in BOOK.models.items():
        prices[name]["per_compute_ms_nanos"] = one.per_compute_ms_nanos
    default = {"per_call_nanos": BOOK.default.per_call_nanos}
    return {"version": BOOK.version, "currency": BOOK.currency, "default": default, "models": prices}


def test_from_usage_to_a_paid_invoice_that_the_tenant_sees(running: ControlProcess, tmp_path: Path) -> None:
    told(running, "tenants", "create", "acme", "--plan", "pay-per-call")
    told(running, "billing", "seller", str(running.data_dir / "seller.toml"))
    told(running, "billing", "account", str(running.data_dir / "account.toml"))
    draft = told(running, "invoices", "draft", "acme", "--until", "2026-02-01")
    assert (draft["number"], draft["total_minor"]) == ("", 179)
    invoice = told(running, "invoices", "finalize", draft["document_id"])
    assert invoice["number"] == "INV-000001"
    pay = (
        "invoices",
        "pay",
        "INV-000001",
        "--amount-minor",
        "179",
        "--reference",
        "t1",
        "--operation-id",
        "operation-1",
    )
    assert told(running, *pay) == told(running, *pay)
    assert told(running, "invoices", "show", "INV-000001")["state"]["status"] == "paid"
    target = tmp_path / "invoice.pdf"
    told(running, "invoices", "pdf", "INV-000001", "--into", str(target))
    assert target.read_bytes().startswith(b"%PDF-")
    assert told(running, "finance", "check")["is_ok"]
    assert told(running, "ledger", "trial-balance")["is_balanced"]
    assert told(running, "reconcile")["is_ok"]
    key = told(running, "keys", "create", "--tenant", "acme", "--scope", "read")["key"]
    headers = {"authorization": f"Bearer {key}"}
    with httpx.Client(base_url=running.url, headers=headers, trust_env=False, timeout=60) as client:
        assert client.get("/me/balance").json()["owed_nanos"] == 0
        assert [one["number"] for one in client.get("/me/invoices").json()["items"]] == ["INV-000001"]
        limits = {one["name"]: one for one in client.get("/me/limits").json()["limits"]}
        assert limits["calls_per_day"]["left"] is None
        assert client.get("/me/usage").json()["rows"][0]["calls"] == 1_000


def test_a_subscription_is_billed_and_can_be_changed_by_the_command_line(running: ControlProcess) -> None:
    started = told(running, "billing", "subscribe", "acme", "--name", "Pro", "--fee-minor", "3000")
    told(running, "billing", "change", started["subscription_id"], "--fee-minor", "6000")
    found = told(running, "billing", "show", "acme")
    assert [one["fee_minor"] for one in found["subscriptions"]] == [6_000]
    assert [item["kind"] for item in found["pending_items"]] == ["subscription", "proration", "proration"]
    ended = told(running, "billing", "cancel", started["subscription_id"], "--now")
    assert ended["status"] == "cancelled"


def test_refusals_are_one_line_with_exit_code_1(running: ControlProcess) -> None:
    for words in (
        ("invoices", "show", "INV-999999"),
        ("invoices", "void", "INV-000001"),
        ("invoices", "draft", "nobody", "--until", "2026-02-01"),
        ("invoices", "draft", "acme", "--until", "soon"),
        ("billing", "account", "/nonexistent.toml"),
    ):
        result = tollway(running, *words)
        assert result.exit_code == 1, words
        assert len(result.stderr.strip().splitlines()) == 1, result.stderr
