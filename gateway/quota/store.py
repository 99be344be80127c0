"""HOT PATH. Owns the quota seam between the pipeline and whoever decides about limits.

One `QuotaStore` per worker. `admit` decides now where it can (from a local lease) and otherwise asks the owner of the
limit; then the answer comes later on the same loop. All or nothing over concurrency, rate and calendar caps: a refusal
changes no counter.
"""

from collections.abc import Callable
from typing import Protocol

from gateway.errors import Refusal
from gateway.snapshot import Plan, Tenant


class Grant:
    """Permission for one call. Give it back exactly once, with `QuotaStore.release`.

    `headers` are the reply headers that tell the caller what is left (RateLimit-Policy, RateLimit), lower-case names.
    """

    __slots__ = ("headers", "lease", "tenant")

    def __init__(self, tenant: str, headers: tuple[tuple[bytes, bytes], ...], lease: object = None) -> None:
        self.tenant = tenant
        self.headers = headers
        self.lease = lease


Decision = Grant | Refusal
OnDecision = Callable[[Decision], None]


class QuotaStore(Protocol):
    """Chosen by URL: `memory://` (one owner process over a unix socket), later `redis://`."""

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
