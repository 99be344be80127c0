"""HOT PATH. Owns the quota seam between the pipeline and whoever decides about limits.

One `QuotaStore` per worker. `admit` decides now where it can (from a local lease) and otherwise asks the owner of the
limit; then the answer comes later on the same loop. All or nothing over concurrency, rate and calendar caps: a refusal
changes no counter.
"""

from collections.abc import Callable
from typing import Final, Protocol

from gateway.errors import Refusal
from gateway.snapshot import Plan, Tenant

#: Reply headers (draft-ietf-httpapi-ratelimit-headers; CONTRACT.md §6).
POLICY_NAME: Final = b"ratelimit-policy"
LIMIT_NAME: Final = b"ratelimit"


class Grant:
    """Permission for one call. Give it back exactly once, with `QuotaStore.release`.

    `policy` and `left` are the values of the reply headers RateLimit-Policy and RateLimit; empty for a plan without
    limits, whose replies have neither.
    """

    __slots__ = ("lease", "left", "policy", "tenant")

    def __init__(self, tenant: str, policy: bytes, left: bytes, lease: object = None) -> None:
        self.tenant = tenant
        self.policy = policy
        self.left = left
        self.lease = lease

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The reply headers that tell the caller what is left."""
        return [(POLICY_NAME, self.policy), (LIMIT_NAME, self.left)] if self.policy else []


Decision = Grant | Refusal
OnDecision = Callable[[Decision], None]


class QuotaStore(Protocol):
    """One per worker, over the socket of its owner process, whatever `quota_store` has that one ask."""

    def admit(self, tenant: Tenant, plan: Plan, on_decision: OnDecision) -> Decision | None:
        """Decide about one call of `tenant`. None: `on_decision` gets the decision, exactly once, never re-entrantly.

        A caller that no longer wants a pending decision still receives it and must release a Grant with
        `is_counted=False`.
        """

    def release(self, grant: Grant, *, is_counted: bool) -> None:
        """Free the concurrency slot; `is_counted=False` also gives the calendar caps back (not a billable call).

        `is_counted=True` only once the call's usage record is durable: recounting the caps relies on it.
        """

    async def close(self) -> None: ...
