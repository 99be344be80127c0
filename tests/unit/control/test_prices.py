"""A price book that could mis-bill is refused at the start, with what to do."""

from pathlib import Path

import pytest

from billing.rating import Price, PriceBook
from gateway.control.prices import load_prices
from gateway.errors import SettingsError
from gateway.snapshot import Backend
from tests.unit.control.support import Desk, open_desk

TRUSTED = Backend(name="near", http="http://a:1", grpc=None, models=("ocr",), is_trusted=True)
FOREIGN = Backend(name="far", http="http://b:1", grpc=None)


def book(version: int = 1, currency: str = "USD", default: int = 1, **models: int) -> PriceBook:
    return PriceBook(
        version=version,
        currency=currency,
        default=Price(per_call_nanos=default),
        models={model: Price(per_compute_ms_nanos=nanos) for model, nanos in models.items()},
    )


def test_prices_in_force_are_shown(desk: Desk) -> None:
    shown = desk.must("GET", "/admin/prices")
    assert (shown["version"], shown["currency"]) == (1, "USD")
    assert shown["models"]["ocr"]["per_call_nanos"] == 1_500_000


def test_a_version_used_with_other_prices_is_refused(tmp_path: Path) -> None:
    with open_desk(tmp_path, prices=book(default=1)):
        pass
    with pytest.raises(SettingsError, match="raise its version"), open_desk(tmp_path, prices=book(default=2)):
        pass
    with open_desk(tmp_path, prices=book(version=2, default=2)) as desk:
        assert desk.snapshot.prices.version == 2


def test_a_book_in_another_currency_than_a_tenant_is_refused(tmp_path: Path) -> None:
    with open_desk(tmp_path, prices=book()) as desk:
        desk.new_tenant()
    with pytest.raises(SettingsError, match="acme"), open_desk(tmp_path, prices=book(version=2, currency="EUR")):
        pass


def test_compute_time_is_sold_only_where_the_report_is_believed(tmp_path: Path) -> None:
    prices = book(whisper=5)
    with pytest.raises(SettingsError, match="far"), open_desk(tmp_path, prices=prices, backends=(TRUSTED, FOREIGN)):
        pass
    with open_desk(tmp_path, prices=book(ocr=5), backends=(TRUSTED, FOREIGN)) as desk:
        assert desk.snapshot.prices.models["ocr"].per_compute_ms_nanos == 5


def test_a_default_compute_price_needs_every_backend_trusted(tmp_path: Path) -> None:
    prices = PriceBook(version=1, currency="USD", default=Price(per_compute_ms_nanos=1))
    with pytest.raises(SettingsError, match="far"), open_desk(tmp_path, prices=prices, backends=(TRUSTED, FOREIGN)):
        pass


def test_a_missing_or_wrong_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="check --prices"):
        load_prices(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("version = 0\n")
    with pytest.raises(SettingsError, match=r"bad\.toml"):
        load_prices(tmp_path / "bad.toml")
