"""The verdict on a record: every field out of range, unknown prices, and charges that are not the book's."""

from typing import Any

import pytest

from billing.events import Outcome, Reason
from billing.judge import UNITS_MAX, find_fault
from billing.rating import CHARGE_NANOS_MAX
from tests.unit.billing.making import RATER, call

RATERS = {1: RATER}


@pytest.mark.parametrize("outcome", list(Outcome))
@pytest.mark.parametrize("model", ["ocr", "file_type", "unheard_of"])
def test_rightly_charged_call_has_no_fault(model: str, outcome: Outcome) -> None:
    assert find_fault(call(1, model=model, outcome=outcome), RATERS) is None


@pytest.mark.parametrize("reason", [Reason.FREE_PLAN, Reason.INTERNAL_PLAN])
def test_call_of_a_zero_price_plan_has_no_fault(reason: Reason) -> None:
    assert find_fault(call(1, reason=reason), RATERS) is None


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"call_id": b"short"}, ("malformed", "call_id")),
        ({"tenant": ""}, ("malformed", "tenant")),
        ({"tenant": "t" * 257}, ("malformed", "tenant")),
        ({"model": ""}, ("malformed", "model")),
        ({"charge_nanos": -1}, ("malformed", "charge_nanos")),
        ({"charge_nanos": CHARGE_NANOS_MAX + 1}, ("malformed", "charge_nanos")),
        ({"t_ns": -1}, ("malformed", "t_ns")),
        ({"t_ns": 2**63}, ("malformed", "t_ns")),
        ({"rows": -1, "charge_nanos": 0}, ("malformed", "rows")),
        ({"rows": UNITS_MAX, "charge_nanos": 0}, ("malformed", "rows")),
        ({"compute_ns": -1, "charge_nanos": 0}, ("malformed", "compute_ns")),
        ({"request_bytes": 2**64 - 1}, ("malformed", "request_bytes")),
        ({"reply_bytes": -1}, ("malformed", "reply_bytes")),
        ({"outcome": 2, "charge_nanos": 0}, ("malformed", "outcome")),
        ({"outcome": -1, "charge_nanos": 0}, ("malformed", "outcome")),
        ({"reason": 5, "charge_nanos": 0}, ("malformed", "reason")),
        ({"reason": Reason.NOT_BILLABLE, "charge_nanos": 0}, ("malformed", "reason")),
        ({"outcome": Outcome.FAILED, "charge_nanos": 0}, ("malformed", "reason")),
        ({"key_id": "k" * 257}, ("malformed", "key_id")),
        ({"plan": "p" * 257}, ("malformed", "plan")),
        ({"model_version": "9" * 257}, ("malformed", "model_version")),
        ({"currency": "U" * 257}, ("malformed", "currency")),
        ({"protocol": 256}, ("malformed", "protocol")),
        ({"price_version": -1}, ("malformed", "price_version")),
        ({"price_version": 2}, ("price_version_unknown", "price_version")),
        ({"charge_nanos": 1_500_001}, ("charge_mismatch", "charge_nanos")),
        ({"charge_nanos": 0}, ("charge_mismatch", "charge_nanos")),
        ({"reason": Reason.FREE_PLAN, "charge_nanos": 1_500_000}, ("charge_mismatch", "charge_nanos")),
        ({"currency": "EUR"}, ("charge_mismatch", "currency")),
    ],
)
def test_fault_names_reason_and_field(changes: dict[str, Any], fault: tuple[str, str]) -> None:
    assert find_fault(call(1, **changes), RATERS) == fault
