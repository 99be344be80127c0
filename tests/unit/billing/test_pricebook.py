"""Price books as files: TOML and JSON, exact amounts, errors that name field and value."""

from pathlib import Path

import pytest

from billing.pricebook import (
    decode_price_book,
    default_price_book,
    encode_price_book,
    load_price_book,
    parse_price_book,
)
from billing.rating import Price, PriceError
from tests.unit.billing.making import BOOK

HEAD = 'version = 3\ncurrency = "EUR"\n'


def test_amounts_are_decimal_text_or_nanos() -> None:
    text = HEAD + '[default]\nper_call = "0.0001"\n[models.ocr]\nper_row_nanos = 250\nper_compute_ms = "1.5"\n'
    book = parse_price_book(text.encode())
    assert (book.version, book.currency, book.default) == (3, "EUR", Price(per_call_nanos=100_000))
    assert book.models == {"ocr": Price(per_row_nanos=250, per_compute_ms_nanos=1_500_000_000)}


def test_images_tokens_and_seconds_are_other_words_for_rows_and_milliseconds() -> None:
    text = HEAD + '[default]\nper_image = "0.002"\n[models.llm]\nper_token = "0.00001"\nper_compute_second = "0.5"\n'
    book = parse_price_book(text.encode())
    assert book.default == Price(per_row_nanos=2_000_000)
    assert book.models == {"llm": Price(per_row_nanos=10_000, per_compute_ms_nanos=500_000)}


def test_stored_form_is_canonical_and_comes_back() -> None:
    assert decode_price_book(encode_price_book(BOOK)) == BOOK
    shuffled = type(BOOK)(
        version=1, currency="USD", default=BOOK.default, models=dict(reversed(list(BOOK.models.items())))
    )
    assert encode_price_book(shuffled) == encode_price_book(BOOK)


def test_json_file_is_told_by_its_suffix(tmp_path: Path) -> None:
    path = tmp_path / "book.json"
    path.write_bytes(encode_price_book(BOOK))
    assert load_price_book(path) == BOOK


def test_shipped_book_is_valid() -> None:
    assert default_price_book().version == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('currency = "EUR"\n[default]\n', "version: is missing"),
        (HEAD, "default: is missing"),
        ('version = "1"\ncurrency = "EUR"\n[default]\n', "version: '1' must be a whole number"),
        ('version = 1\ncurrency = "EUX"\n[default]\n', "currency: 'EUX' is not an ISO 4217 code"),
        (HEAD + "colour = 1\n[default]\n", "price book: unknown field 'colour' (value 1)"),
        (HEAD + "[default]\nper_frame = 1\n", "default: unknown field 'per_frame' (value 1)"),
        (HEAD + '[default]\nper_image = "1"\nper_row = "1"\n', "default: per_row and per_image are both given"),
        (HEAD + '[default]\nper_compute_second = "0.0000015"\n', "default.per_compute_second: '0.0000015' does not"),
        (HEAD + "[default]\nper_compute_second_nanos = 1\n", "default.per_compute_second_nanos: 1 does not divide"),
        (HEAD + "[default]\nper_call_nanos = -5\n", "default.per_call_nanos: -5 must be from 0"),
        (HEAD + '[default]\nper_call = "-0.1"\n', "default.per_call_nanos: -100000000 must be from 0"),
        (HEAD + "[default]\nper_call = 0.1\n", "default.per_call: 0.1 must be decimal text in quotes"),
        (HEAD + "[default]\nper_call_nanos = 0.5\n", "default.per_call_nanos: 0.5 must be a whole number"),
        (HEAD + '[default]\nper_call = "0.0000000001"\n', "default.per_call: amount: '0.0000000001' is not a decimal"),
        (HEAD + '[default]\nper_call = "1"\nper_call_nanos = 1\n', "default: per_call and per_call_nanos are both"),
        (HEAD + "default = 4\n", "default: 4 must be a table"),
        (HEAD + "[default]\n[models]\nocr = 7\n", "models.ocr: 7 must be a table"),
        ("version = ", "not readable as TOML"),
        ("version = " + "1" * 5_000, "not readable as TOML: Exceeds the limit"),
    ],
)
def test_bad_file_is_refused_naming_field_and_value(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(text)
    with pytest.raises(PriceError) as refused:
        load_price_book(path)
    assert str(refused.value).startswith(f"prices.toml: {message}")


def test_damaged_stored_book_is_refused() -> None:
    with pytest.raises(PriceError, match="not a stored price book"):
        decode_price_book(b'{"version": 1}')
