"""Owns the moment a secret exists: mint a key's text, digest its secret under the newest pepper, forget it."""

from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.auth.keys import digest, mint
from gateway.control.peppers import Peppers


@dataclass(frozen=True, slots=True, kw_only=True)
class MintedKey:
    """`text` goes to the caller once; only `digest` is stored. The text stays out of any repr."""

    text: str = field(repr=False)
    kid: str
    digest: bytes = field(repr=False)
    pepper_version: int


MintKey = Callable[[], MintedKey]
MintSecret = Callable[[str], MintedKey]


class Minter:
    """Makes keys and secrets under the newest pepper."""

    def __init__(self, peppers: Peppers) -> None:
        self._peppers = peppers

    def new_key(self) -> MintedKey:
        """A key with a fresh public part."""
        return self._mint(None)

    def new_secret(self, kid: str) -> MintedKey:
        """Another secret for the key whose public part is `kid`."""
        return self._mint(kid)

    def _mint(self, kid: str | None) -> MintedKey:
        minted = mint(kid=kid)
        return MintedKey(
            text=minted.text,
            kid=minted.kid,
            digest=digest(self._peppers.newest, minted.secret),
            pepper_version=self._peppers.version,
        )
