"""Owns price books as files: TOML or JSON in, validated `PriceBook` out; errors name the field and the value.

    version = 1
    currency = "USD"
    [default]
    per_call = "0.0001"            # decimal text of the major unit, or per_call_nanos = 100000
    [models.ocr]
    per_call = "0.0015"
    per_row_nanos = 250
    [models.slow]
    per_compute_second = "0.02"
    compute_ms_max = 30000         # a prepaid call reserves, and is charged, 30 s at most

What a row is depends on the model: `per_image` and `per_token` say `per_row` in its words. `per_compute_second` is
`per_compute_ms` times 1,000 and must divide by it: a call's compute time is charged by the millisecond.

A version is immutable once a ledger has seen it (billing.ledger refuses the same version with other content).
"""

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any, Final

import msgspec

from billing.money import MoneyError, is_currency, parse_nanos
from billing.rating import Price, PriceBook, PriceError, validate_book

FILE_BYTES_MAX: Final = 4 * 1024 * 1024
_BOOK_FIELDS: Final = frozenset(PriceBook.__struct_fields__)
_BOUND: Final = "compute_ms_max"
_UNITS: Final = ("per_call", "per_row", "per_compute_ms")
#: Other words for a unit → (unit, how many of the unit one of them is).
_ALIASES: Final = {
    "per_image": ("per_row", 1),
    "per_token": ("per_row", 1),
    "per_compute_second": ("per_compute_ms", 1_000),
}


def load_price_book(path: Path) -> PriceBook:
    """The validated book in the TOML or JSON file `path` (told apart by suffix).

    Raises PriceError whose message begins with the file's name; OSError when it cannot be read.
    """
    data = path.read_bytes()
    if len(data) > FILE_BYTES_MAX:
        raise PriceError(f"{path.name}: {len(data)} bytes are more than the {FILE_BYTES_MAX} allowed")
    try:
        return parse_price_book(data, is_json=path.suffix.lower() == ".json")
    except PriceError as error:
        raise PriceError(f"{path.name}: {error}") from error


def parse_price_book(data: bytes, *, is_json: bool = False) -> PriceBook:
    """The validated book that `data` writes. Raises PriceError naming the first bad field and its value."""
    try:
        raw = msgspec.json.decode(data) if is_json else tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        # ValueError is the parent of both decoders' errors, and what an integer of too many digits raises by itself.
        raise PriceError(f"not readable as {'JSON' if is_json else 'TOML'}: {error}") from error
    return book_from_raw(raw)


def default_price_book() -> PriceBook:
    """The book that ships with Tollway (billing/prices/default.toml)."""
    return parse_price_book((resources.files("billing") / "prices" / "default.toml").read_bytes())


def encode_price_book(book: PriceBook) -> bytes:
    """Canonical JSON of `book` (models sorted): equal books have equal bytes. The ledger keeps this text.

    A bound that is not declared is left out: books from before there were any keep their bytes.
    """
    raw = msgspec.to_builtins(book)
    for price in (raw["default"], *raw["models"].values()):
        if not price[_BOUND]:
            del price[_BOUND]
    return msgspec.json.encode(raw, order="deterministic")


def decode_price_book(text: bytes | str) -> PriceBook:
    """Reverse of `encode_price_book`. Raises PriceError."""
    try:
        book = msgspec.json.decode(text, type=PriceBook)
    except msgspec.DecodeError as error:
        raise PriceError(f"not a stored price book: {error}") from error
    validate_book(book)
    return book


def book_from_raw(raw: Any) -> PriceBook:
    """The validated book in decoded TOML/JSON `raw`. Raises PriceError."""
    table = _table("price book", raw, _BOOK_FIELDS)
    for field in ("version", "currency", "default"):
        if field not in table:
            raise PriceError(f"{field}: is missing")
    version, currency = table["version"], table["currency"]
    if isinstance(version, bool) or not isinstance(version, int):
        raise PriceError(f"version: {version!r} must be a whole number")
    if not isinstance(currency, str) or not is_currency(currency):
        raise PriceError(f"currency: {currency!r} is not an ISO 4217 code")
    models = _table("models", table.get("models", {}), None)
    book = PriceBook(
        version=version,
        currency=currency,
        default=_price("default", table["default"]),
        models={name: _price(f"models.{name}", value) for name, value in models.items()},
    )
    validate_book(book)
    return book


def _price(where: str, raw: Any) -> Price:
    names = (*_UNITS, *_ALIASES)
    table = _table(where, raw, frozenset(names) | {f"{name}_nanos" for name in names} | {_BOUND})
    amounts = {f"{unit}_nanos": _amount(where, unit, table) for unit in _UNITS}
    return Price(**amounts, compute_ms_max=table.get(_BOUND, 0))


def _amount(where: str, unit: str, table: dict[str, Any]) -> int:
    """One price, under one of the unit's names; 0 when it is not given."""
    names = {unit: 1} | {alias: factor for alias, (of, factor) in _ALIASES.items() if of == unit}
    given = [field for name in names for field in (name, f"{name}_nanos") if field in table]
    if not given:
        return 0
    if len(given) > 1:
        raise PriceError(f"{where}: {' and '.join(given)} are both given; keep one")
    field = given[0]
    factor = names[field.removesuffix("_nanos")]
    nanos, rest = divmod(_nanos(f"{where}.{field}", field, table[field]), factor)
    if rest:
        raise PriceError(f"{where}.{field}: {table[field]!r} does not divide by {factor}: round it")
    return nanos


def _nanos(where: str, field: str, value: Any) -> int:
    """A price written as decimal text of the major unit, or (field ends in _nanos) as whole nanos; never as a float."""
    if field.endswith("_nanos"):
        if isinstance(value, bool) or not isinstance(value, int):
            raise PriceError(f"{where}: {value!r} must be a whole number of nanos")
        return value
    if not isinstance(value, str):
        raise PriceError(f'{where}: {value!r} must be decimal text in quotes, such as "0.0015"')
    try:
        return parse_nanos(value)
    except MoneyError as error:
        raise PriceError(f"{where}: {error}") from error


def _table(where: str, raw: Any, known: frozenset[str] | None) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise PriceError(f"{where}: {raw!r} must be a table")
    for field in raw:
        if known is not None and field not in known:
            raise PriceError(
                f"{where}: unknown field {field!r} (value {raw[field]!r}); known: {', '.join(sorted(known))}"
            )
    return raw
