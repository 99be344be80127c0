"""Signatures are those of the Standard Webhooks specification; rotation, tolerance and every alteration are checked."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.webhooks.signing import (
    TOLERANCE_S,
    SignatureError,
    decode_secret,
    derive_key,
    encode_secret,
    sign,
    verify,
)

OLD, NEW = b"o" * 32, b"n" * 32
NOW_S = 1_770_000_000
BODY = b'{"type":"invoice.paid"}'


def test_the_published_example_of_the_specification() -> None:
    key = decode_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    headers = sign([key], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, b'{"test": 2432232314}')
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@given(st.binary(max_size=200), st.integers(0, 2**33), st.text(alphabet="abc_1", min_size=1, max_size=20))
def test_what_is_signed_verifies(body: bytes, now_s: int, message_id: str) -> None:
    verify([NEW], sign([NEW], message_id, now_s, body), body, now_s)


def test_during_a_rotation_both_secrets_verify_and_after_it_only_the_new() -> None:
    both = sign([NEW, OLD], "evt_1", NOW_S, BODY)
    verify([OLD], both, BODY, NOW_S)
    verify([NEW], both, BODY, NOW_S)
    with pytest.raises(SignatureError):
        verify([OLD], sign([NEW], "evt_1", NOW_S, BODY), BODY, NOW_S)


@pytest.mark.parametrize("drift_s", [-TOLERANCE_S, TOLERANCE_S])
def test_five_minutes_are_tolerated_and_not_one_second_more(drift_s: int) -> None:
    headers = sign([NEW], "evt_1", NOW_S, BODY)
    verify([NEW], headers, BODY, NOW_S + drift_s)
    with pytest.raises(SignatureError, match="away"):
        verify([NEW], headers, BODY, NOW_S + drift_s + (1 if drift_s > 0 else -1))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("webhook-id", "evt_2"),
        ("webhook-timestamp", str(NOW_S + 1)),
        ("webhook-timestamp", "soon"),
        ("webhook-timestamp", "9" * 16),
        ("webhook-signature", "v1,AAAA"),
        ("webhook-signature", ""),
        ("webhook-signature", "é"),
    ],
)
def test_any_altered_header_is_refused(name: str, value: str) -> None:
    with pytest.raises(SignatureError):
        verify([NEW], sign([NEW], "evt_1", NOW_S, BODY) | {name: value}, BODY, NOW_S)


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_missing_header_is_named(name: str) -> None:
    headers = sign([NEW], "evt_1", NOW_S, BODY)
    del headers[name]
    with pytest.raises(SignatureError, match=name):
        verify([NEW], headers, BODY, NOW_S)


def test_an_altered_body_is_refused() -> None:
    with pytest.raises(SignatureError):
        verify([NEW], sign([NEW], "evt_1", NOW_S, BODY), BODY + b" ", NOW_S)


def test_secrets_have_their_text_and_their_bounds() -> None:
    assert decode_secret(encode_secret(NEW)) == NEW
    for bad in ("whsec_", "whsec_!!!", encode_secret(b"x" * 23), encode_secret(b"x" * 65)):
        with pytest.raises(SignatureError):
            decode_secret(bad)


def test_keys_differ_by_endpoint_generation_and_pepper() -> None:
    keys = {derive_key(pepper, name, n) for pepper in (OLD, NEW) for name in ("a", "b") for n in (1, 2)}
    assert len(keys) == 8
