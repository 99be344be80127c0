"""Whole numbers as text: the same as the interpreter's own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.decimal import SlowNumber, decimal

EDGES = [0, 1, 9999, 10_000, 10_001, 99_999_999, 100_000_000, 100_000_001, 10**12, 10**16 - 1, 10**16, 2**63, 2**70]


@pytest.mark.parametrize("number", [*EDGES, -1, -10_000])
def test_edges(number: int) -> None:
    assert decimal(number) == b"%d" % number


@given(st.integers(min_value=-(2**70), max_value=2**70))
def test_any_number(number: int) -> None:
    assert decimal(number) == b"%d" % number


@given(st.lists(st.one_of(st.integers(0, 10**20), st.sampled_from(EDGES))))
def test_a_slow_number_remembers_nothing_wrong(numbers: list[int]) -> None:
    slow = SlowNumber()
    for number in numbers:
        assert slow.text(number) == b"%d" % number
