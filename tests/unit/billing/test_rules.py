"""The posting rules apart from any database: lines, the chain's hash, and which field two events differ in."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from billing.ledger.port import LedgerError
from billing.ledger.rules import (
    COMPARED_FIELDS,
    GENESIS,
    TX_USAGE,
    Line,
    Transaction,
    check_balanced,
    differing_field,
    transaction_hash,
    usage_lines,
)
from tests.unit.billing.making import call

TX = Transaction(
    tx_id=1,
    kind=TX_USAGE,
    tenant="acme",
    posted_ns=5,
    first_event_id=1,
    event_count=2,
    ok_count=1,
    t_min_ns=3,
    t_max_ns=4,
    leaf_version=1,
    merkle_root=bytes(32),
    lines=(Line("a", "USD", 5, 2), Line("b", "USD", -5, 2)),
)


def test_head_depends_on_the_predecessor() -> None:
    assert transaction_hash(GENESIS, TX) != transaction_hash(b"\1" * 32, TX)


@pytest.mark.parametrize(
    "changes",
    [
        {"tx_id": 2},
        {"kind": "refund"},
        {"tenant": "beta"},
        {"posted_ns": 6},
        {"first_event_id": 2},
        {"event_count": 3},
        {"ok_count": 2},
        {"t_min_ns": 2},
        {"t_max_ns": 5},
        {"leaf_version": 2},
        {"merkle_root": b"\1" * 32},
        {"lines": TX.lines[:1]},
        {"lines": (TX.lines[1], TX.lines[0])},
        {"lines": (TX.lines[0]._replace(calls=3), TX.lines[1])},
    ],
)
def test_head_depends_on_every_field(changes: dict[str, Any]) -> None:
    assert transaction_hash(GENESIS, replace(TX, **changes)) != transaction_hash(GENESIS, TX)


def test_lines_are_one_debit_per_currency_and_one_credit_per_model() -> None:
    totals = {("ocr", "USD"): (30, 3), ("nlp", "USD"): (0, 1), ("ocr", "EUR"): (7, 1)}
    assert usage_lines("acme", totals) == (
        Line("unbilled_receivable:acme", "EUR", 7, 1),
        Line("unbilled_receivable:acme", "USD", 30, 4),
        Line("revenue:model_call:nlp", "USD", 0, 1),
        Line("revenue:model_call:ocr", "EUR", -7, 1),
        Line("revenue:model_call:ocr", "USD", -30, 3),
    )


@pytest.mark.parametrize("lines", [(), TX.lines[:1], (TX.lines[0], TX.lines[1]._replace(currency="EUR"))])
def test_lines_that_do_not_sum_to_zero_are_refused(lines: tuple[Line, ...]) -> None:
    with pytest.raises(LedgerError, match="do not sum to zero"):
        check_balanced(lines)


def test_every_field_but_the_key_is_compared() -> None:
    assert set(COMPARED_FIELDS) | {"tenant", "call_id"} == set(call(1).__struct_fields__)
    assert differing_field(call(1), call(1)) is None


@pytest.mark.parametrize("field", COMPARED_FIELDS)
def test_difference_is_named(field: str) -> None:
    other = getattr(call(1), field)
    changed = f"{other}x" if isinstance(other, str) else other + 1
    assert differing_field(call(1), msgspec.structs.replace(call(1), **{field: changed})) == field


def test_events_of_different_keys_are_not_compared() -> None:
    with pytest.raises(LedgerError, match="outside the compared fields"):
        differing_field(call(1), msgspec.structs.replace(call(1), tenant="beta"))
