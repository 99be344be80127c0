"""Prices: never negative, monotone in every unit, additive over rows, zero where nothing is sold (I18)."""

from hypothesis import given
from hypothesis import strategies as st

from billing.events import Outcome, Reason
from billing.money import format_nanos, parse_nanos
from billing.pricebook import decode_price_book, encode_price_book
from billing.rating import PRICE_NANOS_MAX, Price, PriceBook, compile_book, compute_ms

AMOUNTS = st.integers(0, PRICE_NANOS_MAX)
PRICES = st.builds(Price, per_call_nanos=AMOUNTS, per_row_nanos=AMOUNTS, per_compute_ms_nanos=AMOUNTS)
MODELS = st.sampled_from(["ocr", "file_type", "unheard_of"])
BOOKS = st.builds(
    PriceBook,
    version=st.integers(1, 2**31 - 1),
    currency=st.sampled_from(["USD", "EUR", "JPY"]),
    default=PRICES,
    models=st.dictionaries(st.sampled_from(["ocr", "file_type"]), PRICES),
)
ROWS = st.integers(0, 10**6)
COMPUTE_NS = st.integers(0, 10**13)
#: (rows, compute_ns) of one call.
UNITS = st.tuples(ROWS, COMPUTE_NS)


@given(BOOKS, MODELS, UNITS, UNITS)
def test_more_units_never_cost_less(
    book: PriceBook, model: str, units: tuple[int, int], more_units: tuple[int, int]
) -> None:
    rater = compile_book(book)
    (rows, compute_ns), (more_rows, more_ns) = units, more_units
    less, reason = rater.charge(model, "priced", Outcome.OK, rows, compute_ns)
    more, _ = rater.charge(model, "priced", Outcome.OK, rows + more_rows, compute_ns + more_ns)
    assert reason is Reason.PRICED
    assert 0 <= less <= more


@given(BOOKS, MODELS, ROWS, ROWS)
def test_rows_are_additive(book: PriceBook, model: str, first: int, second: int) -> None:
    rater = compile_book(book)
    base, _ = rater.charge(model, "priced", Outcome.OK, 0, 0)
    one, _ = rater.charge(model, "priced", Outcome.OK, first, 0)
    two, _ = rater.charge(model, "priced", Outcome.OK, second, 0)
    both, _ = rater.charge(model, "priced", Outcome.OK, first + second, 0)
    assert both - base == (one - base) + (two - base)


@given(COMPUTE_NS)
def test_rounding_is_off_by_half_a_millisecond_at_most_and_even_on_ties(compute_ns: int) -> None:
    ms = compute_ms(compute_ns)
    off = abs(compute_ns - ms * 1_000_000)
    assert off < 500_000 or (off == 500_000 and ms % 2 == 0)


@given(BOOKS, MODELS, st.sampled_from(["priced", "free", "internal"]), st.sampled_from(Outcome), UNITS)
def test_only_good_calls_of_a_priced_plan_cost_anything(
    book: PriceBook, model: str, pricing: str, outcome: Outcome, units: tuple[int, int]
) -> None:
    amount, reason = compile_book(book).charge(model, pricing, outcome, *units)
    assert (reason is Reason.PRICED) == (pricing == "priced" and outcome is Outcome.OK)
    assert amount == 0 or reason is Reason.PRICED


@given(BOOKS)
def test_stored_book_prices_the_same(book: PriceBook) -> None:
    again = decode_price_book(encode_price_book(book))
    assert again == book
    for model in ("ocr", "unheard_of"):
        assert compile_book(again).charge(model, "priced", 0, 3, 1_500_000) == compile_book(book).charge(
            model, "priced", 0, 3, 1_500_000
        )


@given(st.integers(-(10**18) + 1, 10**18 - 1))
def test_amount_as_text_comes_back(nanos: int) -> None:
    assert parse_nanos(format_nanos(nanos)) == nanos
