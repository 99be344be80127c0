"""Which ledger a data directory has: said by a private file, and never changed by a setting."""

import stat
from pathlib import Path

import pytest

from billing.ledger.opening import URL_FILE, ledger_url, open_ledger, open_ledger_reader, set_ledger_url
from billing.ledger.port import LedgerError, LedgerUnavailable

URL = "postgresql://tollway:hidden@db/money"


def test_without_a_file_it_is_the_directory_s_own(tmp_path: Path) -> None:
    set_ledger_url(tmp_path, "sqlite://")
    open_ledger(tmp_path).close()
    open_ledger_reader(tmp_path).close()
    assert (tmp_path / "ledger.db").exists()
    assert not (tmp_path / URL_FILE).exists()


def test_address_is_kept_in_a_private_file_and_may_move(tmp_path: Path) -> None:
    set_ledger_url(tmp_path, URL)
    assert ledger_url(tmp_path) == URL
    assert stat.S_IMODE((tmp_path / URL_FILE).stat().st_mode) == 0o600
    set_ledger_url(tmp_path, URL + "2")
    assert ledger_url(tmp_path) == URL + "2"


def test_ledger_is_not_left_behind(tmp_path: Path) -> None:
    open_ledger(tmp_path).close()
    with pytest.raises(LedgerError, match="does not move it"):
        set_ledger_url(tmp_path, URL)
    other = tmp_path / "other"
    other.mkdir()
    set_ledger_url(other, URL)
    with pytest.raises(LedgerError, match="does not move it"):
        set_ledger_url(other, "sqlite://")


def test_unknown_scheme_is_refused_without_its_text(tmp_path: Path) -> None:
    with pytest.raises(LedgerError) as refused:
        set_ledger_url(tmp_path, "mysql://u:hidden@h/d")
    assert "hidden" not in str(refused.value)


def test_database_that_is_away_is_unavailable(tmp_path: Path) -> None:
    set_ledger_url(tmp_path, f"postgresql://u@/d?host={tmp_path}")
    with pytest.raises(LedgerUnavailable):
        open_ledger(tmp_path)
    with pytest.raises(LedgerUnavailable):
        open_ledger_reader(tmp_path)
