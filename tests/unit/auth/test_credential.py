import pytest

from gateway.auth.credential import TWO_CREDENTIALS, extract_credential
from gateway.errors import Code


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"authorization", b"Bearer tw_live_x"),
        (b"authorization", b"bearer   tw_live_x "),
        (b"authorization", b"BEARER tw_live_x"),
        (b"x-api-key", b"tw_live_x"),
        (b"apikey", b" tw_live_x"),
        (b"x-apig-appcode", b"tw_live_x"),
    ],
)
def test_each_documented_place_carries_a_key(name: bytes, value: bytes) -> None:
    assert extract_credential([(b"host", b"h"), (name, value)]) == b"tw_live_x"


@pytest.mark.parametrize(
    "headers", [[], [(b"authorization", b"Basic dXNlcjpwdw==")], [(b"authorization", b"Bearer")], [(b"cookie", b"k=v")]]
)
def test_other_headers_carry_none(headers: list[tuple[bytes, bytes]]) -> None:
    assert extract_credential(headers) is None


def test_an_empty_credential_is_a_credential_that_fits_no_key() -> None:
    assert extract_credential([(b"x-api-key", b"")]) == b""


def test_the_same_key_in_two_places_is_one_credential() -> None:
    assert extract_credential([(b"authorization", b"Bearer k"), (b"x-api-key", b"k")]) == b"k"


@pytest.mark.parametrize("second", [(b"x-api-key", b"b"), (b"authorization", b"Bearer b"), (b"apikey", b"")])
def test_two_different_keys_are_refused_as_a_bad_request(second: tuple[bytes, bytes]) -> None:
    refusal = extract_credential([(b"authorization", b"Bearer a"), second])
    assert refusal is TWO_CREDENTIALS
    assert TWO_CREDENTIALS.code is Code.BAD_REQUEST
