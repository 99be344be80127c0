"""Owns the admin token: bootstrapped once, rotated, compared in constant time.

The bootstrap token is written to DATA/run/bootstrap-token (mode 600) for the supervisor to show and delete. It ends
24 hours later unless rotated; a start after that makes another one, because whoever can start control owns its data.
Only HMACs are stored.
"""

import hmac
import secrets
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from gateway.control.bodies import RotateTokenBody
from gateway.control.peppers import Peppers
from gateway.control.schema import admin_token as table
from gateway.control.views import NS_PER_S, NewTokenView, instant

BOOTSTRAP_FILE: Final = "bootstrap-token"
BOOTSTRAP_LIFETIME_S: Final = 24 * 3_600
PREFIX: Final = "tw_admin_"
TOKEN_BYTES_MAX: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminToken:
    """One token that is not revoked."""

    digest: bytes
    pepper_version: int
    is_bootstrap: bool
    expires_ns: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCheck:
    """`is_expired`: the token was right, but its time is over."""

    is_valid: bool
    is_expired: bool = False


class AdminTokens:
    """The tokens in force, held in memory so that no request waits for the database to be refused."""

    def __init__(self, peppers: Peppers) -> None:
        self._peppers = peppers
        self._tokens: tuple[AdminToken, ...] = ()

    def replace(self, tokens: tuple[AdminToken, ...]) -> None:
        self._tokens = tokens

    def check(self, token: bytes, now_ns: int) -> TokenCheck:
        """Compares with every token whatever the outcome of the first, in constant time each."""
        valid = expired = False
        for known in self._tokens:
            pepper = self._peppers.by_version.get(known.pepper_version, b"")
            is_equal = hmac.compare_digest(hmac.digest(pepper, token, "sha256"), known.digest)
            is_live = known.expires_ns is None or now_ns < known.expires_ns
            valid |= is_equal and is_live
            expired |= is_equal and not is_live
        return TokenCheck(is_valid=valid, is_expired=expired)

    @property
    def must_rotate(self) -> bool:
        """Whether the token in force is still the one that was printed at the first start."""
        return bool(self._tokens) and self._tokens[-1].is_bootstrap

    @property
    def expires_ns(self) -> int | None:
        return self._tokens[-1].expires_ns if self._tokens else None


def load_tokens(tx: sa.Connection) -> tuple[AdminToken, ...]:
    """Tokens that were not revoked, the newest last."""
    rows = tx.execute(sa.select(table).where(table.c.revoked_ns.is_(None)).order_by(table.c.token_id)).mappings()
    return tuple(
        AdminToken(
            digest=row["digest"],
            pepper_version=row["pepper_version"],
            is_bootstrap=bool(row["is_bootstrap"]),
            expires_ns=row["expires_ns"],
        )
        for row in rows
    )


def has_secrets(tx: sa.Connection) -> bool:
    """Whether anything was ever hashed with a pepper: the first start makes a token before any key can exist."""
    return tx.execute(sa.select(table.c.token_id).limit(1)).first() is not None


def bootstrap(tx: sa.Connection, peppers: Peppers, now_ns: int) -> str | None:
    """A first token, or a new one where the last was never rotated and has expired; None when one is in force."""
    tokens = load_tokens(tx)
    if tokens and not (tokens[-1].is_bootstrap and _is_over(tokens[-1], now_ns)):
        return None
    _revoke_all(tx, now_ns)
    return _insert(tx, peppers, now_ns, expires_ns=now_ns + BOOTSTRAP_LIFETIME_S * NS_PER_S, is_bootstrap=True)


def rotate_token(tx: sa.Connection, peppers: Peppers, body: RotateTokenBody, now_ns: int) -> NewTokenView:
    """A new token; the others end now or after the overlap."""
    ends_ns = now_ns + body.overlap_s * NS_PER_S
    if body.overlap_s == 0:
        _revoke_all(tx, now_ns)
    else:
        is_later = sa.or_(table.c.expires_ns.is_(None), table.c.expires_ns > ends_ns)
        tx.execute(table.update().where(table.c.revoked_ns.is_(None), is_later).values(expires_ns=ends_ns))
        tx.execute(table.update().where(_is_past(now_ns)).values(revoked_ns=now_ns))
    expires_ns = None if body.expires_s is None else now_ns + body.expires_s * NS_PER_S
    text = _insert(tx, peppers, now_ns, expires_ns=expires_ns, is_bootstrap=False)
    return NewTokenView(token=text, expires_at=instant(expires_ns), old_token_valid_until=instant(ends_ns))


def _insert(tx: sa.Connection, peppers: Peppers, now_ns: int, *, expires_ns: int | None, is_bootstrap: bool) -> str:
    text = PREFIX + secrets.token_urlsafe(32)
    tx.execute(
        table.insert().values(
            digest=hmac.digest(peppers.newest, text.encode(), "sha256"),
            pepper_version=peppers.version,
            is_bootstrap=is_bootstrap,
            created_ns=now_ns,
            expires_ns=expires_ns,
        )
    )
    return text


def _revoke_all(tx: sa.Connection, now_ns: int) -> None:
    tx.execute(table.update().where(table.c.revoked_ns.is_(None)).values(revoked_ns=now_ns))


def _is_past(now_ns: int) -> sa.ColumnElement[bool]:
    return sa.and_(table.c.revoked_ns.is_(None), table.c.expires_ns <= now_ns)


def _is_over(token: AdminToken, now_ns: int) -> bool:
    return token.expires_ns is not None and token.expires_ns <= now_ns
