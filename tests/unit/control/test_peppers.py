"""The pepper is made once, is private, and is never silently replaced."""

import json
from pathlib import Path

import pytest

from gateway.control.peppers import Peppers, load_peppers
from gateway.errors import SettingsError


def test_first_start_makes_a_private_pepper_and_later_starts_keep_it(tmp_path: Path) -> None:
    first = load_peppers(tmp_path, has_secrets=False)
    assert (tmp_path / "pepper").stat().st_mode & 0o777 == 0o600
    assert load_peppers(tmp_path, has_secrets=True).by_version == first.by_version
    assert len(first.newest) == 32


def test_a_lost_pepper_is_told_and_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="restore it"):
        load_peppers(tmp_path, has_secrets=True)
    assert not (tmp_path / "pepper").exists()


def test_a_pepper_that_others_can_read_is_refused(tmp_path: Path) -> None:
    load_peppers(tmp_path, has_secrets=False)
    (tmp_path / "pepper").chmod(0o640)
    with pytest.raises(SettingsError, match="chmod 600"):
        load_peppers(tmp_path, has_secrets=True)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"1": "00"}', '{"0": "%s"}' % ("0" * 64), '{"1": "%s"}' % ("z" * 64)]
)
def test_a_damaged_pepper_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "pepper").write_text(text)
    (tmp_path / "pepper").chmod(0o600)
    with pytest.raises(SettingsError, match="damaged"):
        load_peppers(tmp_path, has_secrets=True)


def test_the_highest_version_hashes_new_secrets(tmp_path: Path) -> None:
    (tmp_path / "pepper").write_text(json.dumps({"2": "22" * 32, "10": "10" * 32}))
    (tmp_path / "pepper").chmod(0o600)
    peppers = load_peppers(tmp_path, has_secrets=True)
    assert (peppers.version, peppers.newest) == (10, bytes.fromhex("10" * 32))


def test_a_pepper_does_not_print_itself() -> None:
    peppers = Peppers(by_version={1: b"\xab" * 32})
    assert "ab" not in repr(peppers).replace("able", "")
    assert "\\xab" not in f"{peppers}"
