"""HOT PATH. Owns the verdict on a credential: which key, which tenant, or why not. No I/O, no cached verdict.

A `Keyring` is compiled from one snapshot and replaced with it; nothing derived from a key outlives it. Every call runs
the full check: lookup by key id, HMAC, constant-time compare. A key id that does not exist costs the same work, so
that timing does not tell which ids do.
"""

from collections.abc import Iterable
from enum import IntEnum
from hashlib import sha256
from hmac import compare_digest
from typing import TYPE_CHECKING, Final

from gateway.auth.keys import KEY_CHARS, PREFIX, pads, parse
from gateway.errors import Code, Refusal
from gateway.snapshot import Key, Plan, Secret, Snapshot, Tenant

if TYPE_CHECKING:
    import hashlib

_FOREVER_NS: Final = 1 << 62


class Scope(IntEnum):
    """What a key may do, as bits of `Principal.scopes`.

    An IntEnum: `&` of plain ints takes 30 ns, of flags a microsecond.
    """

    INFER = 1
    READ = 2
    #: What a tenant does about itself (/me).
    ADMIN = 4
    #: What the operator does to the shared backends.
    OPERATE = 8


_SCOPES: Final = {"infer": Scope.INFER, "read": Scope.READ, "admin": Scope.ADMIN, "operate": Scope.OPERATE}

UNAUTHENTICATED: Final = Refusal(
    code=Code.UNAUTHENTICATED, message="a valid API key is required: send 'Authorization: Bearer <key>'"
)
MALFORMED: Final = Refusal(
    code=Code.UNAUTHENTICATED, message="this is not an API key: check that it was copied whole and without typos"
)
REVOKED: Final = Refusal(code=Code.KEY_REVOKED, message="this API key was revoked")
EXPIRED: Final = Refusal(code=Code.KEY_EXPIRED, message="this API key has expired")
ROTATED: Final = Refusal(code=Code.KEY_EXPIRED, message="this API key was rotated and its old secret has ended")
SUSPENDED: Final = Refusal(code=Code.TENANT_SUSPENDED, message="this tenant is suspended")
#: The snapshot names a tenant or plan that it does not hold: refuse rather than guess limits or prices.
INCOMPLETE: Final = Refusal(
    code=Code.POLICY_STALE, message="the policy of this key is not available yet", retry_after_ms=1000
)
_MODEL_FORBIDDEN: Final = Refusal(code=Code.MODEL_FORBIDDEN, message="this API key may not use this model")
_OPERATE_LIMITED: Final = Refusal(
    code=Code.MODEL_FORBIDDEN, message="this API key is limited to some models and may not change a backend"
)
_SCOPE_FORBIDDEN: Final = {
    scope: Refusal(code=Code.SCOPE_FORBIDDEN, message=f"this API key lacks the scope '{name}'")
    for name, scope in _SCOPES.items()
}


class Principal:
    """Who calls: shared by all calls of one key under one snapshot, never changed. `models` None means every model."""

    __slots__ = ("key", "models", "plan", "scopes", "tenant")

    def __init__(self, key: Key, tenant: Tenant, plan: Plan) -> None:
        self.key = key
        self.tenant = tenant
        self.plan = plan
        self.scopes = _scope_bits(key.scopes)
        self.models = None if key.models is None else frozenset(key.models)


#: SHA-256 states that have read the inner and the outer pad, expected digest, last instant (wall ns) of this secret.
_Lock = tuple["hashlib._Hash", "hashlib._Hash", bytes, int]
_Pads = tuple["hashlib._Hash", "hashlib._Hash"]


class _Entry:
    """A key, compiled. `verdict` is what a right secret gets before `expires_ns`."""

    __slots__ = ("expires_ns", "locks", "verdict")

    def __init__(self, locks: tuple[_Lock, ...], expires_ns: int, verdict: Principal | Refusal) -> None:
        self.locks = locks
        self.expires_ns = expires_ns
        self.verdict = verdict


class Keyring:
    """All keys of one snapshot. `version` is the snapshot's."""

    __slots__ = ("_dummy", "_entries", "_opened", "version")

    def __init__(self, snapshot: Snapshot) -> None:
        self.version = snapshot.version
        pads_by_version = {version: _states(pepper) for version, pepper in snapshot.peppers.items()}
        tenants = {tenant.tenant: tenant for tenant in snapshot.tenants}
        plans = {plan.name: plan for plan in snapshot.plans}
        newest = max(pads_by_version, default=None)
        inner, outer = _states(b"\1") if newest is None else pads_by_version[newest]
        # No secret has this digest (it would be a preimage of zero), so the dummy can only say no.
        dummy_lock = (inner, outer, bytes(32), _FOREVER_NS)
        self._dummy = _Entry((dummy_lock,), _FOREVER_NS, UNAUTHENTICATED)
        self._entries: dict[bytes, _Entry] = {}
        #: Texts that opened a lock under this snapshot → what they get before an instant. Only right keys get in, so
        #: it is bounded by the number of live secrets; it ends with the snapshot (docs/adr/0006).
        self._opened: dict[bytes | None, tuple[Principal, int]] = {}
        for key in snapshot.keys:
            locks = tuple(_locks(key.secrets, pads_by_version)) or (dummy_lock,)
            expires_ns = _FOREVER_NS if key.expires_ns is None else key.expires_ns
            self._entries[key.kid.encode()] = _Entry(locks, expires_ns, _verdict(key, tenants, plans))

    def authenticate(self, credential: bytes | None, wall_ns: int) -> Principal | Refusal:
        """The principal behind `credential` (None: the call carries none) at `wall_ns` (UTC), or why there is none.

        Never raises, whatever the bytes.
        """
        opened = self._opened.get(credential)
        if opened is not None and wall_ns < opened[1]:
            return opened[0]
        return self._authenticate_new(credential, wall_ns)

    def _authenticate_new(self, credential: bytes | None, wall_ns: int) -> Principal | Refusal:
        """The same for a text that has opened nothing so far, or whose time may be over; remembers it if it opens."""
        parsed = None if credential is None else parse(credential)
        if credential is None or parsed is None:
            return _explain(credential)
        entry = self._entries.get(parsed.kid, self._dummy)
        not_after_ns = _open(entry, parsed.secret)
        if not_after_ns is None:
            return UNAUTHENTICATED
        before_ns = min(not_after_ns, entry.expires_ns)
        if wall_ns >= before_ns:
            return _ended(entry, wall_ns)
        if isinstance(entry.verdict, Principal):
            self._opened[credential] = (entry.verdict, before_ns)
        return entry.verdict


def _open(entry: _Entry, secret: bytes) -> int | None:
    """Try every lock of `entry` (two during a rotation's overlap); the last instant of the one that opens."""
    for inner, outer, expected, not_after_ns in entry.locks:
        # Copies of the states skip two of the four compressions and cost half of two one-shot calls.
        inside = inner.copy()
        inside.update(secret)
        outside = outer.copy()
        outside.update(inside.digest())
        if compare_digest(outside.digest(), expected):
            return not_after_ns
    return None


def _ended(entry: _Entry, wall_ns: int) -> Refusal:
    """Why a right secret opens nothing any more. A revoked key stays revoked, whatever else has ended meanwhile."""
    if isinstance(entry.verdict, Refusal) and entry.verdict.code is Code.KEY_REVOKED:
        return entry.verdict
    return EXPIRED if wall_ns >= entry.expires_ns else ROTATED


def _explain(credential: bytes | None) -> Refusal:
    """Tell a mistyped key from something else, without a lookup."""
    if credential is not None and (len(credential) == KEY_CHARS or credential.startswith(PREFIX)):
        return MALFORMED
    return UNAUTHENTICATED


def authorize(principal: Principal, scope: Scope, model: str | None) -> Refusal | None:
    """Why `principal` may not use `scope` (one bit) on `model` (None: no model is concerned); None when it may."""
    if not principal.scopes & scope:
        return _SCOPE_FORBIDDEN[scope]
    if model is not None and principal.models is not None and model not in principal.models:
        return _MODEL_FORBIDDEN
    return None


def authorize_operation(principal: Principal) -> Refusal | None:
    """Why `principal` may not change a backend; None when it may.

    Every model must be its own to use: a load with a configuration, or an unload with dependents, reaches others than
    the one in its target, and bodies are not read here.
    """
    if not principal.scopes & Scope.OPERATE:
        return _SCOPE_FORBIDDEN[Scope.OPERATE]
    return None if principal.models is None else _OPERATE_LIMITED


def _verdict(key: Key, tenants: dict[str, Tenant], plans: dict[str, Plan]) -> Principal | Refusal:
    if key.is_revoked:
        return REVOKED
    tenant = tenants.get(key.tenant)
    if tenant is None:
        return INCOMPLETE
    if tenant.is_suspended:
        return SUSPENDED
    plan = plans.get(tenant.plan)
    if plan is None:
        return INCOMPLETE
    return Principal(key, tenant, plan)


def _states(pepper: bytes) -> _Pads:
    inner, outer = pads(pepper)
    return sha256(inner), sha256(outer)


def _locks(secrets: tuple[Secret, ...], pads_by_version: dict[int, _Pads]) -> Iterable[_Lock]:
    for secret in secrets:
        blocks = pads_by_version.get(secret.pepper_version)
        if blocks is not None:  # a secret whose pepper is gone can open nothing
            not_after_ns = _FOREVER_NS if secret.not_after_ns is None else secret.not_after_ns
            yield (*blocks, secret.digest, not_after_ns)


def _scope_bits(names: Iterable[str]) -> int:
    """Unknown names give nothing: an older worker does not guess what a newer scope means."""
    bits = 0
    for name in names:
        bits |= int(_SCOPES.get(name, 0))
    return bits
