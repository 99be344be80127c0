"""Owns the in-process twin of the quota store: the owner's decisions by direct call, no leases, no sockets.

For tests and for programs of one process. Every call is decided at once and exactly.
"""

from gateway.clock import Clock
from gateway.errors import Code
from gateway.quota.headers import Field, Left, policy_of, renderer_of
from gateway.quota.owner import Owner, Parked, WorkerState
from gateway.quota.protocol import Answer, Ask, Return
from gateway.quota.refusals import refusal_of
from gateway.quota.store import Decision, Grant, OnDecision
from gateway.snapshot import Plan, Tenant


class LocalQuotaStore:
    """One worker's view of `owner`; several stores over one owner are several workers."""

    def __init__(self, clock: Clock, owner: Owner | None = None) -> None:
        self._clock = clock
        self._owner = Owner(clock, has_meter=False) if owner is None else owner
        self._owner.settle()
        self._worker = WorkerState()
        self._owner.hello(self._worker, ())
        self._policies: dict[Plan, Field | None] = {}

    def admit(self, tenant: Tenant, plan: Plan, on_decision: OnDecision) -> Decision | None:
        """See `QuotaStore.admit`; never None here."""
        self._owner.learn(tenant, plan)
        slots = 0 if plan.concurrency is None else 1
        ask = Ask(tenant.tenant, plan.name, plan.version, need=1, slots_need=slots, spare=0, spare_slots=0)
        answer = self._owner.ask(self._worker, ask, is_final=True)
        assert not isinstance(answer, Parked)
        policy = self._policy_of(plan)
        left = Left(answer.rate_left, answer.day_left, answer.day_end_ns, answer.month_left, answer.month_end_ns)
        value = renderer_of(plan, left, self._clock.wall_ns()).render(answer.slots_left, 0)
        if not answer.calls:
            code = Code.QUOTA_UNAVAILABLE if answer.code is None else Code(answer.code)
            return refusal_of(plan, code, answer.retry_after_ms, policy, value)
        if policy is None:
            return Grant(tenant.tenant, b"", b"", (answer, slots))
        return Grant(tenant.tenant, policy[1], value, (answer, slots))

    def release(self, grant: Grant, *, is_counted: bool) -> None:
        """See `QuotaStore.release`; a second release of one grant does nothing."""
        if grant.lease is None:
            return
        assert isinstance(grant.lease, tuple)
        answer, slots = grant.lease
        assert isinstance(answer, Answer)
        grant.lease = None
        calls = 0 if is_counted else 1
        slots = min(slots, self._worker.slots.get(grant.tenant, 0))
        message = Return(grant.tenant, calls, answer.day_start_ns, answer.month_start_ns, slots, is_all=False)
        self._owner.give_back(self._worker, message)

    async def close(self) -> None:
        """Free everything that was not released."""
        self._owner.goodbye(self._worker)

    def _policy_of(self, plan: Plan) -> Field | None:
        if plan not in self._policies:
            self._policies[plan] = policy_of(plan)
        return self._policies[plan]
