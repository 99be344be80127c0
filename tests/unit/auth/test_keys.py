import hmac

import pytest

from gateway.auth import keys


def test_a_minted_key_has_the_documented_form_and_parses_to_its_parts() -> None:
    minted = keys.mint()
    text = minted.text.encode()
    assert len(text) == keys.KEY_CHARS == 67
    assert text.startswith(b"tw_live_")
    assert text.split(b"_")[2:4] == [minted.kid.encode(), minted.secret]
    assert keys.parse(text) == (minted.kid.encode(), minted.secret)


def test_mint_draws_its_parts_from_the_given_source() -> None:
    assert keys.mint(bytes) == keys.mint(bytes)
    assert keys.mint(lambda count: b"\xff" * count).secret != keys.mint(bytes).secret


def test_the_largest_secret_still_fits_its_fixed_length() -> None:
    assert len(keys.mint(lambda count: b"\xff" * count).secret) == keys.SECRET_CHARS


def test_rotation_keeps_the_kid_and_changes_the_secret() -> None:
    old = keys.mint()
    new = keys.mint(kid=old.kid)
    assert new.kid == old.kid
    assert new.secret != old.secret


@pytest.mark.parametrize("kid", ["", "short", "waytoolong", "has_line", "ünïcödé8", "with spc"])
def test_a_kid_that_no_key_can_have_is_refused(kid: str) -> None:
    with pytest.raises(ValueError, match="kid"):
        keys.mint(kid=kid)


def test_digest_is_hmac_sha256() -> None:
    for pepper in (b"p", bytes(range(32)), bytes(64)):
        assert keys.digest(pepper, b"secret" * 9) == hmac.digest(pepper, b"secret" * 9, "sha256")


@pytest.mark.parametrize("pepper", [b"", bytes(65)])
def test_a_pepper_outside_one_block_is_refused(pepper: bytes) -> None:
    with pytest.raises(ValueError, match="pepper"):
        keys.digest(pepper, b"secret")


def test_every_wrong_character_and_every_swap_of_neighbours_is_told_by_the_checksum() -> None:
    text = keys.mint().text.encode()
    for at in range(len(text)):
        wrong = bytearray(text)
        wrong[at] = ord("A") if text[at] != ord("A") else ord("B")
        assert keys.parse(bytes(wrong)) is None, at
        swapped = text[:at] + text[at : at + 2][::-1] + text[at + 2 :]
        assert swapped == text or keys.parse(swapped) is None, at


def test_a_right_checksum_over_foreign_characters_does_not_parse() -> None:
    for kid, secret in ((b"abcd_fgh", b"a" * 43), (b"abcdefgh", b"\xe9" * 43)):
        body = b"tw_live_" + kid + b"_" + secret
        assert keys.parse(body + b"_" + keys.check_of(body)) is None
    body = b"tw_test_abcdefgh_" + b"a" * 43
    assert keys.parse(body + b"_" + keys.check_of(body)) is None
