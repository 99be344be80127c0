"""Owns the price book in force: read once at the start, kept by version, refused where it could mis-bill.

The highest version ever given is in force. A price changes by `tollway prices apply` or by a new file at a start; the
ledger refuses a version that it knows with other content, and so does control.
"""

from pathlib import Path
from typing import Final

import sqlalchemy as sa

from billing.pricebook import decode_price_book, default_price_book, encode_price_book, load_price_book
from billing.rating import PriceBook, PriceError
from gateway.control.errors import conflict, invalid
from gateway.control.schema import price_book, tenant
from gateway.control.views import PricesView, PriceView
from gateway.errors import SettingsError
from gateway.snapshot import Backend

#: Books that one re-rating looks at; more than a new version every day for years.
BOOKS_MAX: Final = 5_000


def load_prices(file: Path | None) -> PriceBook:
    """The book in `file`, or the one that ships with Tollway. Raises SettingsError."""
    try:
        return default_price_book() if file is None else load_price_book(file)
    except OSError as error:
        raise SettingsError(f"price book {file}: {error.strerror}: check --prices or `price_book`") from error
    except PriceError as error:
        raise SettingsError(f"price book {error}") from error


def adopt_prices(tx: sa.Connection, book: PriceBook, backends: tuple[Backend, ...], now_ns: int) -> None:
    """Remember the version. Raises SettingsError for a version used with other content, or a book that cannot bill."""
    text = encode_price_book(book).decode()
    known = tx.execute(sa.select(price_book.c.body).where(price_book.c.version == book.version)).scalar_one_or_none()
    if known is None:
        tx.execute(price_book.insert().values(version=book.version, body=text, created_ns=now_ns))
    elif known != text:
        raise SettingsError(f"price book: version {book.version} was used with other prices: raise its version")
    _check_currency(tx, book)
    _check_compute(book, backends)


def current_book(tx: sa.Connection, at_start: PriceBook) -> PriceBook:
    """The book in force: the highest version that was ever given, at a start or by `tollway prices apply`."""
    text = tx.execute(sa.select(price_book.c.body).order_by(price_book.c.version.desc()).limit(1)).scalar_one_or_none()
    return at_start if text is None else decode_price_book(text)


def check_new_book(tx: sa.Connection, book: PriceBook, in_force: PriceBook, backends: tuple[Backend, ...]) -> bool:
    """Whether `book` is new: False when it is in force already. Raises ControlError for one that must not be."""
    if book == in_force:
        return False
    known = find_book(tx, book.version)
    if known is not None and known != book:
        raise conflict(f"version: {book.version} was used with other prices: raise it above {in_force.version}")
    if book.version <= in_force.version:
        raise conflict(f"version: {book.version} is not above {in_force.version}, the one in force: raise it")
    try:
        _check_currency(tx, book)
        _check_compute(book, backends)
    except SettingsError as error:
        raise invalid(str(error)) from error
    return True


def adopt_new_book(
    tx: sa.Connection, book: PriceBook, in_force: PriceBook, backends: tuple[Backend, ...], now_ns: int
) -> bool:
    """Store a checked book; it is in force with the next snapshot. False: it is already. Raises ControlError."""
    if not check_new_book(tx, book, in_force, backends):
        return False
    text = encode_price_book(book).decode()
    tx.execute(price_book.insert().values(version=book.version, body=text, created_ns=now_ns))
    return True


def find_book(tx: sa.Connection, version: int) -> PriceBook | None:
    """The book of one version."""
    text = tx.execute(sa.select(price_book.c.body).where(price_book.c.version == version)).scalar_one_or_none()
    return None if text is None else decode_price_book(text)


def list_books(tx: sa.Connection, *, limit: int) -> list[tuple[PriceBook, int]]:
    """(book, when it was given), newest version first."""
    rows = tx.execute(sa.select(price_book).order_by(price_book.c.version.desc()).limit(limit)).mappings()
    return [(decode_price_book(row["body"]), row["created_ns"]) for row in rows]


def prices_view(book: PriceBook) -> PricesView:
    return PricesView(
        version=book.version,
        currency=book.currency,
        default=_price_view(book, None),
        models={name: _price_view(book, name) for name in sorted(book.models)},
    )


def _check_currency(tx: sa.Connection, book: PriceBook) -> None:
    query = sa.select(tenant.c.tenant).where(tenant.c.currency != book.currency).limit(1)
    other = tx.execute(query).scalar_one_or_none()
    if other is not None:
        raise SettingsError(f"price book: is in {book.currency}, but tenant {other!r} pays in another currency")


def _check_compute(book: PriceBook, backends: tuple[Backend, ...]) -> None:
    """Compute time is sold only where the backend's report of it is believed (ARCHITECTURE.md §4)."""
    for model, price in book.models.items():
        serving = next((b for b in backends if "*" in b.models or model in b.models), None)
        if price.per_compute_ms_nanos and serving is not None and not serving.is_trusted:
            raise _untrusted(f"models.{model}", serving)
    if book.default.per_compute_ms_nanos:
        for backend in backends:
            if not backend.is_trusted:
                raise _untrusted("default", backend)


def _untrusted(where: str, backend: Backend) -> SettingsError:
    return SettingsError(
        f"price book: {where} sells compute time, but backend {backend.name!r} is not trusted to report it: "
        "set is_trusted, or price by call and row"
    )


def _price_view(book: PriceBook, model: str | None) -> PriceView:
    price = book.default if model is None else book.models[model]
    return PriceView(
        per_call_nanos=price.per_call_nanos,
        per_row_nanos=price.per_row_nanos,
        per_compute_ms_nanos=price.per_compute_ms_nanos,
        compute_ms_max=price.compute_ms_max,
    )
