"""Plans, prices, quotes, re-rating and the simulator as people type them, against a real control and a real meter."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.test_control_process import ControlProcess, told, tollway
from tests.unit.billing.invoices.office import ACCOUNT, SELLER
from tests.unit.billing.making import T0_NS, MeterProcess, call, marked, write_dead_epoch

NS_PER_S = 1_000_000_000
DAY_NS = 86_400 * NS_PER_S
OCR = 1_500_000
CATALOGUE = """
currency = "USD"
[plans.pro]
pricing = "priced"
rate_calls = 20
burst = 40
[plans.pro.subscription]
fee = "29"
[plans.pro.pack]
rate_calls = 10
fee = "5"
[plans.pro.charges.calls]
unit = "call"
included = 10
per_unit = "0.001"
[coupons.HALF]
percent = 50
"""
BOOK = 'version = 2\ncurrency = "USD"\n[default]\nper_call = "0.0001"\n[models.ocr]\nper_image = "0.003"\n'


@pytest.fixture(scope="module")
def control() -> Iterator[ControlProcess]:
    """One control and meter, with a tenant, its account, and 60 recorded calls over three days."""
    with tempfile.TemporaryDirectory(prefix="tw") as folder:
        data_dir = Path(folder) / "d"
        with ControlProcess(data_dir) as process:
            assert process.wait_ready()
            calls = [
                call(day * 100 + n, plan="pay-per-call", t_ns=T0_NS + day * DAY_NS + n * 60 * NS_PER_S)
                for day in range(3)
                for n in range(1, 21)
            ]
            write_dead_epoch(data_dir / "usage", marked(calls))
            with MeterProcess(data_dir) as meter:
                assert meter.wait_ready()
                assert meter.ask("flush")["posted"] == 60
                told(process, "tenants", "create", "acme", "--plan", "pay-per-call")
                for name, fields in (("seller", SELLER), ("account", ACCOUNT)):
                    verb = {"operation_id": f"set-up-{name}", "body": fields}
                    with process.local() as client:
                        assert client.post(f"/admin/billing/commands/{name}.set", json=verb).is_success
                yield process
                assert meter.stop() == 0
            assert process.stop() == 0


def written(control: ControlProcess, name: str, text: str) -> str:
    path = control.data_dir.parent / name
    path.write_text(text)
    return str(path)


def test_a_catalogue_is_applied_and_a_tenant_subscribes(control: ControlProcess) -> None:
    file = written(control, "catalogue.toml", CATALOGUE)
    assert [plan["is_new_version"] for plan in told(control, "plans", "apply", file)["plans"]] == [True]
    assert "unchanged" in tollway(control, "plans", "apply", file).output
    assert told(control, "plans", "terms", "pro")[0]["terms"]["charges"][0]["included"] == 10
    assert told(control, "plans", "subscribe", "acme", "pro", "--packs", "2")["plan"] == "pro"
    told(control, "plans", "redeem", "acme", "HALF")
    told(
        control, "plans", "grant", "acme", "--source", "sorry", "--amount", "2.5", "--expires", "30d", "--model", "ocr"
    )
    credit = told(control, "plans", "credit", "acme")
    assert [(one["grant_id"], one["left_nanos"], one["models"]) for one in credit["grants"]] == [
        ("acme:sorry", 2_500_000_000, ["ocr"])
    ]
    assert [one["code"] for one in credit["coupons"]] == ["HALF"]
    shown = tollway(control, "plans", "credit", "acme").output
    assert "2.5" in shown
    assert "50 %" in shown
    assert "HALF" in tollway(control, "plans", "coupons").output


def test_a_mistake_in_a_file_is_one_line_that_names_it(control: ControlProcess) -> None:
    file = written(control, "wrong.toml", CATALOGUE.replace('per_unit = "0.001"', 'per_unit = "-1"'))
    result = tollway(control, "plans", "apply", file)
    assert result.exit_code == 1
    assert result.stderr.startswith("tollway: wrong.toml: plans.pro.charges.calls.per_unit: -1 is negative: prices")
    assert result.stderr.count("\n") == 1
    for path, said in ((written(control, "none.toml", "") + "x", "No such file"), (str(control.data_dir), "directory")):
        missing = tollway(control, "plans", "apply", path)
        assert (missing.exit_code, said in missing.stderr) == (1, True)


def test_amounts_and_limits_on_the_command_line_are_checked(control: ControlProcess) -> None:
    wrong = tollway(control, "plans", "grant", "acme", "--source", "x", "--amount", "five")
    assert (wrong.exit_code, "--amount: amount: 'five' is not a decimal" in wrong.stderr) == (1, True)
    span = ("--since", "2026-01-01", "--until", "2026-02-01")
    wrong = tollway(control, "plans", "simulate", "acme", *span, "--set", "burst")
    assert (wrong.exit_code, "write NAME=NUMBER" in wrong.stderr) == (1, True)
    wrong = tollway(control, "plans", "settle", "acme", "--month", "2099-01-01")
    assert (wrong.exit_code, "in the future" in wrong.stderr) == (1, True)


def test_a_new_price_book_changes_quotes_and_no_recorded_call(control: ControlProcess) -> None:
    span = ("--from", "2026-01-01", "--to", "2026-02-01")
    assert told(control, "price", "quote", "ocr", "--rows", "7")["call_nanos"] == OCR
    applied = told(control, "prices", "apply", written(control, "book.toml", BOOK))
    assert (applied["version"], applied["is_in_force"]) == (2, True)
    assert told(control, "price", "quote", "ocr", "--rows", "7")["call_nanos"] == 21_000_000
    assert told(control, "price", "quote", "ocr", "--rows", "7", "--version", "1")["call_nanos"] == OCR
    assert "0.003" in tollway(control, "prices", "show").output
    assert [one["version"] for one in told(control, "prices", "list")] == [2, 1]
    own = told(control, "rerate", *span)
    assert [(line["calls"], line["difference_nanos"]) for line in own["lines"]] == [(60, 0)]
    assert tollway(control, "rerate", *span).exit_code == 0
    other = told(control, "rerate", *span, "--against", "2")
    assert [line["difference_nanos"] for line in other["lines"]] == [60 * OCR]
    assert told(control, "rerate", *span) == own
    (usage,) = told(control, "usage", "--by", "price_version")
    assert (usage["group"]["price_version"], usage["charge_nanos"]) == (1, 60 * OCR)


def test_the_simulator_says_who_is_throttled_and_draws_it(control: ControlProcess) -> None:
    picture = control.data_dir.parent / "simulated.png"
    words = ("plans", "simulate", "acme", "--since", "2026-01-01", "--until", "2026-02-01", "--set", "calls_per_day=15")
    found = told(control, *words, "--step", "1d", "--plot", str(picture))
    assert (found["calls"], found["admitted"]) == (60, 45)
    assert found["refused"]["daily_cap_exceeded"]["first_at"] == "2026-01-01T00:16:00.000Z"
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    shown = tollway(control, *words).output
    assert "daily_cap_exceeded" in shown
    file = written(control, "offer.json", json.dumps({"plans": {"offer": {"pricing": "priced", "calls_per_month": 1}}}))
    assert told(control, *words[:7], "--file", file)["refused"]["monthly_cap_exceeded"]["calls"] == 59
    told(control, "tenants", "create", "globex", "--plan", "pro")
    everyone = words[:2] + words[3:]
    both = told(control, *everyone, "--plot", str(picture))
    assert [(one["tenant"], one["calls"], one["admitted"]) for one in both] == [("acme", 60, 45), ("globex", 0, 0)]
    summary = tollway(control, *everyone).output
    assert "2 tenants" in summary
    assert "daily_cap_exceeded" in summary
    assert [one["tenant"] for one in told(control, *everyone, "--plan", "pro")] == ["acme", "globex"]
    nobody = tollway(control, *everyone, "--plan", "internal")
    assert (nobody.exit_code, "no tenant is on plan 'internal'" in nobody.stderr) == (1, True)
    nowhere = tollway(control, *words, "--plot", str(picture.parent / "no" / "x.png"))
    assert (nowhere.exit_code, "No such file" in nowhere.stderr) == (1, True)
