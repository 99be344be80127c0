"""The chart: what is in it, what is not, and that everything the code books is."""

import re
from pathlib import Path

import pytest

from billing.ledger.accounts import CHART, NAME_MAX, find_kind, kind_of, prepaid
from billing.ledger.port import LedgerError

BILLING = Path(__file__).parents[3] / "billing"


@pytest.mark.parametrize(
    ("account", "kind"),
    [
        ("cash:psp:stripe", "cash:psp"),
        ("unbilled_receivable:acme", "unbilled_receivable"),
        ("unbilled_receivable:acme:eu", "unbilled_receivable"),
        ("contract_liability:prepaid:a:b", "contract_liability:prepaid"),
        ("revenue:rounding", "revenue:rounding"),
        ("fx_clearing", "fx_clearing"),
    ],
)
def test_account_is_found_by_its_full_name(account: str, kind: str) -> None:
    assert kind_of(account).name == kind


@pytest.mark.parametrize(
    "account",
    ["", "cash", "cash:psp", "cash:psp:", "revenue", "revenue:model_call:", "revenue:rounding:x", "fx_clearing:x",
     "Cash:psp:x", "cash:psp:" + "x" * NAME_MAX],
)  # fmt: skip
def test_what_the_chart_does_not_have_is_no_account(account: str) -> None:
    assert find_kind(account) is None
    with pytest.raises(LedgerError, match="chart of accounts"):
        kind_of(account)


def test_every_account_named_in_the_code_is_in_the_chart() -> None:
    roots = "|".join(sorted({kind.name.split(":")[0] for kind in CHART}))
    named = {
        found
        for path in BILLING.rglob("*.py")
        for found in re.findall(rf'"((?:{roots}):[a-z_]+[^"\s]*)"', path.read_text(encoding="utf-8"))
    }
    assert len(named) > 10
    unknown = [
        name
        for name in named
        if find_kind(re.sub(r"\{[^}]*\}|(?<=:)$", "x", name)) is None and find_kind(f"{name}:x") is None
    ]
    assert unknown == []


def test_only_prepaid_is_guarded() -> None:
    assert [kind.name for kind in CHART if kind.is_guarded] == ["contract_liability:prepaid"]
    assert kind_of(prepaid("acme")).is_guarded
