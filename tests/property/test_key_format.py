"""Any bytes at all may arrive where a key is expected."""

from hypothesis import given
from hypothesis import strategies as st

from billing.rating import Price, PriceBook
from gateway.auth import keys
from gateway.auth.keyring import Keyring
from gateway.errors import Code, Refusal
from gateway.snapshot import Snapshot

RING = Keyring(
    Snapshot(
        version=1,
        created_ns=0,
        keys=(),
        tenants=(),
        plans=(),
        backends=(),
        prices=PriceBook(version=1, currency="USD", default=Price()),
        peppers={1: b"pepper"},
    )
)
near_keys = st.builds(
    lambda kid, secret, check: b"tw_live_" + kid + b"_" + secret + b"_" + check,
    st.binary(min_size=8, max_size=8),
    st.binary(min_size=43, max_size=43),
    st.binary(min_size=6, max_size=6),
)
checked = st.builds(
    lambda kid, secret: (body := b"tw_live_" + kid + b"_" + secret) + b"_" + keys.check_of(body),
    st.binary(min_size=8, max_size=8),
    st.binary(min_size=43, max_size=43),
)


@given(st.one_of(st.binary(max_size=200), near_keys, checked))
def test_parse_and_authenticate_never_raise_and_an_empty_ring_lets_nobody_in(text: bytes) -> None:
    parsed = keys.parse(text)
    if parsed is not None:
        assert text == b"_".join((b"tw_live", parsed.kid, parsed.secret, text[-6:]))
        assert parsed.kid.isalnum()
        assert parsed.secret.isalnum()
    verdict = RING.authenticate(text, 1)
    assert isinstance(verdict, Refusal)
    assert verdict.code is Code.UNAUTHENTICATED


@given(st.binary(min_size=8, max_size=8), st.binary(min_size=32, max_size=32))
def test_whatever_is_drawn_mint_and_parse_agree(kid: bytes, secret: bytes) -> None:
    minted = keys.mint(lambda count: kid if count == 8 else secret)
    assert keys.parse(minted.text.encode()) == (minted.kid.encode(), minted.secret)


@given(st.integers(0, keys.KEY_CHARS - 1), st.integers(1, 255), st.binary(min_size=32, max_size=32))
def test_one_changed_byte_anywhere_never_parses(at: int, flip: int, secret: bytes) -> None:
    text = bytearray(keys.mint(lambda count: secret[:count]).text.encode())
    text[at] ^= flip
    assert keys.parse(bytes(text)) is None
