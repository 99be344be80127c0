"""HOT PATH. Owns where a call carries its key (CONTRACT.md §6). It reads headers only and judges nothing."""

from typing import Final

from gateway.call import Headers
from gateway.errors import Code, Refusal

_PLAIN_NAMES: Final = frozenset({b"x-api-key", b"apikey", b"x-apig-appcode"})
_BEARER: Final = b"bearer "

#: A caller who sends two keys does not know which one pays; neither do we.
TWO_CREDENTIALS: Final = Refusal(
    code=Code.BAD_REQUEST, message="the call carries two different credentials: send exactly one"
)


def extract_credential(headers: Headers) -> bytes | Refusal | None:
    """The key's text from `authorization: Bearer`, `x-api-key`, `apikey` or `x-apig-appcode` (names lower-case).

    None when there is none (any other authorization scheme counts as none); the same text twice is one credential, two
    different texts are a refusal.
    """
    found: bytes | None = None
    for name, value in headers:
        if name == b"authorization":
            if value[: len(_BEARER)].lower() != _BEARER:
                continue
            text = value[len(_BEARER) :].strip()
        elif name in _PLAIN_NAMES:
            text = value.strip()
        else:
            continue
        if found is not None and found != text:
            return TWO_CREDENTIALS
        found = text
    return found
