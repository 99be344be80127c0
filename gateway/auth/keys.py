"""HOT PATH. Owns the text form of an API key: `tw_live_{kid}_{secret}_{check}`, all lengths fixed (MONEY.md §5).

    tw_live_        marks the text for secret scanners
    kid      8      base62, public: finds the key
    secret  43      base62 of 32 random bytes, zero-padded; its ASCII bytes are what is digested
    check    6      base62 of CRC-32 over everything before the last underscore: a typo is told without any lookup

Nothing here knows which keys exist.
"""

import os
import zlib
from collections.abc import Callable
from hashlib import sha256
from typing import Final, NamedTuple

PREFIX: Final = b"tw_live_"
KID_CHARS: Final = 8
SECRET_CHARS: Final = 43
CHECK_CHARS: Final = 6
SECRET_BYTES: Final = 32
PEPPER_BYTES_MAX: Final = 64

_KID_AT: Final = len(PREFIX)
_KID_END: Final = _KID_AT + KID_CHARS
_SECRET_AT: Final = _KID_END + 1
_SECRET_END: Final = _SECRET_AT + SECRET_CHARS
_CHECK_AT: Final = _SECRET_END + 1
KEY_CHARS: Final = _CHECK_AT + CHECK_CHARS

ALPHABET: Final = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_BASE: Final = len(ALPHABET)
_PAIR_BASE: Final = _BASE * _BASE
#: Two digits at a time: a check is three lookups, not six divisions.
_PAIRS: Final = tuple(bytes((high, low)) for high in ALPHABET for low in ALPHABET)
_UNDERSCORE: Final = ord("_")

_INNER: Final = bytes(byte ^ 0x36 for byte in range(256))
_OUTER: Final = bytes(byte ^ 0x5C for byte in range(256))

RandomBytes = Callable[[int], bytes]


class Parsed(NamedTuple):
    """The two parts of a well-formed key. Well-formed says nothing about whether the key exists."""

    kid: bytes
    secret: bytes


class Minted(NamedTuple):
    """A new key. `text` is shown once and stored nowhere; `secret` goes into `digest` and is then forgotten."""

    text: str
    kid: str
    secret: bytes


def mint(random_bytes: RandomBytes = os.urandom, kid: str | None = None) -> Minted:
    """A new key; with `kid`, a new secret of the key that has it (rotation).

    Raises ValueError for a `kid` that no key can have.
    """
    if kid is None:
        kid_part = _base62(int.from_bytes(random_bytes(KID_CHARS), "big") % _BASE**KID_CHARS, KID_CHARS)
    else:
        kid_part = kid.encode("ascii", "replace")
        if len(kid_part) != KID_CHARS or kid_part.strip(ALPHABET):
            raise ValueError(f"kid must be {KID_CHARS} letters or digits")
    secret = _base62(int.from_bytes(random_bytes(SECRET_BYTES), "big"), SECRET_CHARS)
    body = PREFIX + kid_part + b"_" + secret
    return Minted((body + b"_" + check_of(body)).decode("ascii"), kid_part.decode("ascii"), secret)


def parse(text: bytes) -> Parsed | None:
    """The parts of `text`, or None unless it has the form above, checksum included. Never raises."""
    if len(text) != KEY_CHARS or not text.startswith(PREFIX):
        return None
    if text[_KID_END] != _UNDERSCORE or text[_SECRET_END] != _UNDERSCORE:
        return None
    if check_of(text[:_SECRET_END]) != text[_CHECK_AT:]:
        return None
    if not text[_KID_AT:_KID_END].isalnum() or not text[_SECRET_AT:_SECRET_END].isalnum():
        return None
    return Parsed(text[_KID_AT:_KID_END], text[_SECRET_AT:_SECRET_END])


def check_of(body: bytes) -> bytes:
    """The six check characters of `body` (everything before the last underscore)."""
    rest, low = divmod(zlib.crc32(body), _PAIR_BASE)
    high, middle = divmod(rest, _PAIR_BASE)
    return _PAIRS[high] + _PAIRS[middle] + _PAIRS[low]


def pads(pepper: bytes) -> tuple[bytes, bytes]:
    """The inner and outer key blocks of HMAC-SHA256 under `pepper` (RFC 2104), computed once per pepper.

    Raises ValueError for an empty pepper or one longer than a block.
    """
    if not 0 < len(pepper) <= PEPPER_BYTES_MAX:
        raise ValueError(f"a pepper has 1 to {PEPPER_BYTES_MAX} bytes")
    block = pepper.ljust(64, b"\0")
    return block.translate(_INNER), block.translate(_OUTER)


def digest(pepper: bytes, secret: bytes) -> bytes:
    """HMAC-SHA256(pepper, secret): what is stored of a secret.

    Written out over `pads`, because two one-shot SHA-256 calls cost half of `hmac.digest` (0.9 µs against 2.0 µs).
    """
    inner, outer = pads(pepper)
    return sha256(outer + sha256(inner + secret).digest()).digest()


def _base62(number: int, digits: int) -> bytes:
    text = bytearray()
    for _ in range(digits):
        number, digit = divmod(number, _BASE)
        text.append(ALPHABET[digit])
    return bytes(reversed(text))
