"""Owns the rule that a key never has more rights than the key that made it (MONEY.md §5, API5). Pure.

The rule is applied twice: `find_excess` when a key is issued, `meet` each time policy is published. So a parent that
is later revoked or expires takes its children with it, and a row altered in the database gains nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

#: A chain of keys made by keys is bounded, so that a cycle in a damaged database is found and not followed for ever.
CHAIN_MAX = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a key may do. `models` None: every model. `expires_ns` None: no end."""

    tenant: str
    scopes: frozenset[str]
    models: frozenset[str] | None = None
    expires_ns: int | None = None
    is_revoked: bool = False


def find_excess(child: Grant, parent: Grant) -> str | None:
    """The first way in which `child` exceeds `parent`, told for people; None when child ⊆ parent."""
    if parent.is_revoked:
        return "parent: the key is revoked"
    if child.tenant != parent.tenant:
        return f"tenant: {child.tenant!r} is not the parent's"
    extra_scopes = child.scopes - parent.scopes
    if extra_scopes:
        return f"scopes: {', '.join(sorted(extra_scopes))} exceeds the parent's {', '.join(sorted(parent.scopes))}"
    if parent.models is not None:
        if child.models is None:
            return "models: every model exceeds the parent's list; name the models"
        extra_models = child.models - parent.models
        if extra_models:
            return f"models: {', '.join(sorted(extra_models))} exceeds the parent's list"
    if parent.expires_ns is not None and (child.expires_ns is None or child.expires_ns > parent.expires_ns):
        return "expires_s: the key would outlive its parent"
    return None


def meet(child: Grant, parent: Grant) -> Grant:
    """The rights that both have. Of another tenant's key nothing is left."""
    ends = [end for end in (child.expires_ns, parent.expires_ns) if end is not None]
    return replace(
        child,
        scopes=child.scopes & parent.scopes,
        models=_common(child.models, parent.models),
        expires_ns=min(ends, default=None),
        is_revoked=child.is_revoked or parent.is_revoked or child.tenant != parent.tenant,
    )


def effective(key_id: str, grants: Mapping[str, Grant], parents: Mapping[str, str]) -> Grant:
    """The rights of `key_id` as bounded by every key above it; a missing ancestor or a cycle revokes it.

    `parents` holds only keys that were made by a key.
    """
    grant = grants[key_id]
    above = parents.get(key_id)
    for _ in range(CHAIN_MAX):
        if above is None:
            return grant
        if above not in grants:
            break
        grant = meet(grant, grants[above])
        above = parents.get(above)
    if above is None:
        return grant
    return replace(grant, is_revoked=True)


def _common(left: frozenset[str] | None, right: frozenset[str] | None) -> frozenset[str] | None:
    if left is None:
        return right
    if right is None:
        return left
    return left & right


def find_chain_excess(parent: str, parents: Mapping[str, str]) -> str | None:
    """Why `parent` may make no key, because too many keys lie above it; None when it may."""
    above: str | None = parent
    for _ in range(CHAIN_MAX):
        above = parents.get(above) if above is not None else None
        if above is None:
            return None
    return f"parent: a key may be at most {CHAIN_MAX} keys below the first one"
