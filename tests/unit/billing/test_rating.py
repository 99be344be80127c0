"""Rating: what a call costs, why, and which price books are refused."""

from typing import Any

import msgspec
import pytest

from billing.events import Outcome, Reason
from billing.rating import PRICE_NANOS_MAX, Price, PriceBook, PriceError, compile_book, compute_ms
from tests.unit.billing.making import BOOK, RATER


def test_price_is_call_plus_rows_plus_compute() -> None:
    assert RATER.charge("file_type", "priced", Outcome.OK, 3, 2_000_000) == (20_000 + 150_000 + 14, Reason.PRICED)


def test_model_without_a_price_of_its_own_costs_the_default() -> None:
    assert RATER.charge("unheard_of", "priced", Outcome.OK, 9, 9) == (100_000, Reason.PRICED)
    assert RATER.price_of("unheard_of") == BOOK.default


@pytest.mark.parametrize(
    ("pricing", "outcome", "reason"),
    [
        ("free", Outcome.OK, Reason.FREE_PLAN),
        ("internal", Outcome.OK, Reason.INTERNAL_PLAN),
        ("priced", Outcome.FAILED, Reason.NOT_BILLABLE),
        ("free", Outcome.FAILED, Reason.NOT_BILLABLE),
        ("internal", Outcome.FAILED, Reason.NOT_BILLABLE),
    ],
)
def test_what_is_not_sold_costs_nothing_and_says_why(pricing: str, outcome: Outcome, reason: Reason) -> None:
    assert RATER.charge("ocr", pricing, outcome, 5, 5) == (0, reason)


def test_unknown_pricing_is_named() -> None:
    with pytest.raises(PriceError, match="pricing: 'gratis' is unknown"):
        RATER.charge("ocr", "gratis", Outcome.OK, 1, 1)


@pytest.mark.parametrize(
    ("compute_ns", "ms"),
    [
        (0, 0),
        (499_999, 0),
        (500_000, 0),
        (500_001, 1),
        (1_499_999, 1),
        (1_500_000, 2),
        (2_500_000, 2),
        (2_500_001, 3),
        (3_500_000, 4),
    ],
)
def test_compute_is_rounded_half_to_even(compute_ns: int, ms: int) -> None:
    assert compute_ms(compute_ns) == ms


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 0}, "version: 0 must be"),
        ({"currency": "usd"}, "currency: 'usd' must be three capital letters"),
        ({"currency": "USDX"}, "currency: 'USDX'"),
        ({"default": Price(per_call_nanos=-1)}, "default.per_call_nanos: -1 must be from 0"),
        ({"models": {"ocr": Price(per_row_nanos=PRICE_NANOS_MAX + 1)}}, "models.ocr.per_row_nanos: 1000000000000001"),
        ({"models": {"": Price()}}, "models: '' must be a model name"),
    ],
)
def test_bad_book_is_refused_naming_field_and_value(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PriceError) as refused:
        compile_book(msgspec.structs.replace(BOOK, **changes))
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize("value", [True, 1.5, "1"])
def test_price_that_is_no_whole_number_is_refused(value: Any) -> None:
    book = PriceBook(version=1, currency="USD", default=Price(per_call_nanos=value))
    with pytest.raises(PriceError, match=r"default.per_call_nanos: .* whole number"):
        compile_book(book)
