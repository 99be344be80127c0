"""Money as text: exact both ways, and minor units by currency."""

import pytest

from billing.money import MoneyError, format_nanos, from_minor, is_currency, minor_digits, parse_nanos, to_minor


@pytest.mark.parametrize(
    ("nanos", "text"),
    [
        (0, "0"),
        (1, "0.000000001"),
        (1_500_000, "0.0015"),
        (-2_500_000_000, "-2.5"),
        (12_000_000_000, "12"),
        (10**18 - 1, "999999999.999999999"),
    ],
)
def test_nanos_and_text_are_the_same_amount(nanos: int, text: str) -> None:
    assert format_nanos(nanos) == text
    assert parse_nanos(text) == nanos


@pytest.mark.parametrize("text", ["", "+1", "1e3", "1,5", " 1", "1 ", ".5", "1.", "0.0000000001", "1_0", "١", "NaN"])
def test_other_texts_are_no_amount(text: str) -> None:
    with pytest.raises(MoneyError, match="amount: "):
        parse_nanos(text)


@pytest.mark.parametrize(
    ("nanos", "currency", "minor"),
    [
        (5_000_000, "USD", 0),
        (15_000_000, "USD", 2),
        (25_000_000, "USD", 2),
        (25_000_001, "USD", 3),
        (-15_000_000, "USD", -2),
        (500_000_000, "JPY", 0),
        (1_500_000_000, "JPY", 2),
        (1_500_000, "KWD", 2),
    ],
)
def test_minor_units_round_half_to_even(nanos: int, currency: str, minor: int) -> None:
    assert to_minor(nanos, currency) == minor


def test_minor_digits_follow_the_currency() -> None:
    assert [minor_digits(code) for code in ("USD", "JPY", "KWD")] == [2, 0, 3]
    assert from_minor(150, "USD") == 1_500_000_000
    with pytest.raises(MoneyError, match="'XXX' is not an ISO 4217 code"):
        minor_digits("XXX")
    assert is_currency("EUR")
    assert not is_currency("eur")
