"""Owns API keys at rest: created, rotated with an overlap, revoked. Functions over one transaction.

A key has a stable `key_id`, a public `kid` that stands in its text, and one or more secrets. Only digests are kept.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import msgspec
import sqlalchemy as sa

from gateway.control.attenuation import Grant, effective, find_chain_excess, find_excess
from gateway.control.bodies import KeyBody, RotateBody
from gateway.control.errors import ControlCode, ControlError, conflict, not_found
from gateway.control.minting import MintKey, MintSecret
from gateway.control.schema import api_key, key_operation, key_secret
from gateway.control.tenants import get_tenant
from gateway.control.views import NS_PER_S, KeyView, NewKeyView, RotatedKeyView, SecretView, instant

KEYS_MAX: Final = 100_000
#: Secrets of one key that may be live at once: enough for a few rotations whose answers got lost.
LIVE_SECRETS_MAX: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """A rotation's answer and the key before it."""

    before: KeyView
    answer: RotatedKeyView


def create_key(tx: sa.Connection, body: KeyBody, mint: MintKey, now_ns: int) -> NewKeyView:
    """Raises ControlError: no such tenant or parent, more rights than the parent's, or too many keys."""
    get_tenant(tx, body.tenant)
    grant = _grant_of(body, now_ns)
    if body.parent is not None:
        _check_parent(tx, body.parent, grant, now_ns)
    if count_keys(tx) >= KEYS_MAX:
        raise ControlError(ControlCode.LIMIT_REACHED, f"there may be {KEYS_MAX} keys")
    minted = mint()
    key_id = _new_key_id(now_ns)
    tx.execute(
        api_key.insert().values(
            key_id=key_id,
            kid=minted.kid,
            tenant=body.tenant,
            name=body.name,
            scopes=_json(sorted(grant.scopes)),
            models=None if grant.models is None else _json(sorted(grant.models)),
            expires_ns=grant.expires_ns,
            parent=body.parent,
            created_ns=now_ns,
        )
    )
    _add_secret(tx, key_id, minted.digest, minted.pepper_version, now_ns)
    return NewKeyView(key=minted.text, details=get_key(tx, key_id, now_ns))


def rotate_key(tx: sa.Connection, key_id: str, body: RotateBody, mint: MintSecret, now_ns: int) -> Rotation:
    """Add a secret and end the others after the overlap, once per operation id.

    Raises ControlError: no such key, a revoked one, or an operation id of this key that was used for something else.
    """
    before = get_key(tx, key_id, now_ns)
    done = tx.execute(
        sa.select(key_operation).where(
            key_operation.c.key_id == key_id, key_operation.c.operation_id == body.operation_id
        )
    )
    operation = done.mappings().one_or_none()
    if operation is not None:
        return _repeated(operation, body, before)
    if before.state != "active":
        raise conflict(f"key {key_id!r} is {before.state}: create a new one")
    if len(before.secrets) >= LIVE_SECRETS_MAX:
        raise ControlError(
            ControlCode.LIMIT_REACHED, f"key {key_id!r} has {LIVE_SECRETS_MAX} live secrets: wait until one has ended"
        )
    ends_ns = now_ns + body.overlap_s * NS_PER_S
    tx.execute(
        key_secret.update()
        .where(
            key_secret.c.key_id == key_id,
            sa.or_(key_secret.c.not_after_ns.is_(None), key_secret.c.not_after_ns > ends_ns),
        )
        .values(not_after_ns=ends_ns)
    )
    minted = mint(before.kid)
    _add_secret(tx, key_id, minted.digest, minted.pepper_version, now_ns)
    tx.execute(
        key_operation.insert().values(
            operation_id=body.operation_id,
            key_id=key_id,
            overlap_s=body.overlap_s,
            not_after_ns=ends_ns,
            created_ns=now_ns,
        )
    )
    answer = RotatedKeyView(
        key=minted.text,
        operation_id=body.operation_id,
        is_repeated=False,
        old_secret_valid_until=instant(ends_ns),
        details=get_key(tx, key_id, now_ns),
    )
    return Rotation(before=before, answer=answer)


def revoke_key(tx: sa.Connection, key_id: str, now_ns: int) -> tuple[KeyView, KeyView]:
    """The key before and after. Revoking twice keeps the first instant; a revoked key never comes back."""
    before = get_key(tx, key_id, now_ns)
    tx.execute(
        api_key.update().where(api_key.c.key_id == key_id, api_key.c.revoked_ns.is_(None)).values(revoked_ns=now_ns)
    )
    return before, get_key(tx, key_id, now_ns)


def get_key(tx: sa.Connection, key_id: str, now_ns: int) -> KeyView:
    row = tx.execute(sa.select(api_key).where(api_key.c.key_id == key_id)).mappings().one_or_none()
    if row is None:
        raise not_found("key", key_id)
    return _views(tx, [row], now_ns)[0]


def list_keys(tx: sa.Connection, *, tenant: str | None, after: str, limit: int, now_ns: int) -> list[KeyView]:
    """Keys in the order of their creation, of one tenant or of all."""
    query = sa.select(api_key).where(api_key.c.key_id > after).order_by(api_key.c.key_id).limit(limit)
    if tenant is not None:
        query = query.where(api_key.c.tenant == tenant)
    rows = tx.execute(query).mappings().all()
    return _views(tx, rows, now_ns)


def count_keys(tx: sa.Connection) -> int:
    return tx.execute(sa.select(sa.func.count()).select_from(api_key)).scalar_one()


def live_secrets(tx: sa.Connection, key_ids: list[str] | None, now_ns: int) -> dict[str, list[sa.RowMapping]]:
    """Secrets not yet ended by key, oldest first; of every key when `key_ids` is None."""
    query = sa.select(key_secret).where(sa.or_(key_secret.c.not_after_ns.is_(None), key_secret.c.not_after_ns > now_ns))
    if key_ids is not None:
        query = query.where(key_secret.c.key_id.in_(key_ids))
    found: dict[str, list[sa.RowMapping]] = {}
    for row in tx.execute(query.order_by(key_secret.c.secret_id)).mappings():
        found.setdefault(row["key_id"], []).append(row)
    return found


def load_grants(tx: sa.Connection) -> tuple[dict[str, Grant], dict[str, str]]:
    """What each key was given, and who made it (only keys made by a key)."""
    grants: dict[str, Grant] = {}
    parents: dict[str, str] = {}
    for row in tx.execute(sa.select(api_key)).mappings():
        grants[row["key_id"]] = _stored_grant(row)
        if row["parent"] is not None:
            parents[row["key_id"]] = row["parent"]
    return grants, parents


def _stored_grant(row: sa.RowMapping) -> Grant:
    return Grant(
        tenant=row["tenant"],
        scopes=frozenset(_names(row["scopes"]) or ()),
        models=None if row["models"] is None else frozenset(_names(row["models"]) or ()),
        expires_ns=row["expires_ns"],
        is_revoked=row["revoked_ns"] is not None,
    )


def _grant_of(body: KeyBody, now_ns: int) -> Grant:
    return Grant(
        tenant=body.tenant,
        scopes=frozenset(body.scopes),
        models=None if body.models is None else frozenset(body.models),
        expires_ns=None if body.expires_s is None else now_ns + body.expires_s * NS_PER_S,
    )


def _check_parent(tx: sa.Connection, parent: str, grant: Grant, now_ns: int) -> None:
    grants, parents = load_grants(tx)
    if parent not in grants:
        raise not_found("key", parent)
    bound = effective(parent, grants, parents)
    excess = find_chain_excess(parent, parents) or find_excess(grant, bound)
    if excess is None and bound.expires_ns is not None and bound.expires_ns <= now_ns:
        excess = "parent: the key has expired"
    if excess is not None:
        raise ControlError(ControlCode.EXCEEDS_PARENT, excess)


def _repeated(operation: sa.RowMapping, body: RotateBody, key: KeyView) -> Rotation:
    if operation["overlap_s"] != body.overlap_s:
        raise conflict(f"operation_id {body.operation_id!r} was used with another overlap_s")
    answer = RotatedKeyView(
        key=None,
        operation_id=body.operation_id,
        is_repeated=True,
        old_secret_valid_until=instant(operation["not_after_ns"]),
        details=key,
    )
    return Rotation(before=key, answer=answer)


def _add_secret(tx: sa.Connection, key_id: str, digest: bytes, pepper_version: int, now_ns: int) -> None:
    tx.execute(
        key_secret.insert().values(key_id=key_id, digest=digest, pepper_version=pepper_version, created_ns=now_ns)
    )


def _views(tx: sa.Connection, rows: Sequence[sa.RowMapping], now_ns: int) -> list[KeyView]:
    """Views of `rows`; the state of a key made by a key is what its whole chain leaves it."""
    secrets = live_secrets(tx, [row["key_id"] for row in rows], now_ns)
    grants, parents = load_grants(tx) if any(row["parent"] is not None for row in rows) else ({}, {})
    return [
        _view(
            row,
            secrets.get(row["key_id"], []),
            _stored_grant(row) if row["parent"] is None else effective(row["key_id"], grants, parents),
            now_ns,
        )
        for row in rows
    ]


def _view(row: sa.RowMapping, secrets: list[sa.RowMapping], grant: Grant, now_ns: int) -> KeyView:
    return KeyView(
        key_id=row["key_id"],
        kid=row["kid"],
        name=row["name"],
        tenant=row["tenant"],
        scopes=_names(row["scopes"]) or [],
        models=_names(row["models"]),
        state=_state(grant, now_ns),
        parent=row["parent"],
        created_at=instant(row["created_ns"]),
        expires_at=instant(row["expires_ns"]),
        revoked_at=instant(row["revoked_ns"]),
        secrets=[
            SecretView(created_at=instant(secret["created_ns"]), not_after=instant(secret["not_after_ns"]))
            for secret in secrets
        ],
    )


def _state(grant: Grant, now_ns: int) -> Literal["active", "expired", "revoked"]:
    if grant.is_revoked:
        return "revoked"
    if grant.expires_ns is not None and grant.expires_ns <= now_ns:
        return "expired"
    return "active"


def _new_key_id(now_ns: int) -> str:
    """Ids sort by creation: milliseconds first, then chance."""
    return f"key_{now_ns // 1_000_000:012x}{os.urandom(4).hex()}"


def _json(names: list[str]) -> str:
    return msgspec.json.encode(names).decode()


def _names(text: str | None) -> list[str] | None:
    return None if text is None else msgspec.json.decode(text, type=list[str])
