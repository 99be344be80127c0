"""Owns one host's shares, tenant by tenant: which policy each obeys, and which must be told to the store. No I/O."""

from collections.abc import Callable, Iterable, Iterator

from gateway.quota.calendar import find_zone
from gateway.quota.protocol import TENANTS_MAX, Ask
from gateway.quota.share import Share
from gateway.quota.shared_asks import ignore
from gateway.quota.store_link import Command
from gateway.quota.store_words import Wanted, give_arguments
from gateway.snapshot import Plan, Tenant


class Book:
    """All shares of a host. `wake` is called when there is something to tell."""

    def __init__(self) -> None:
        self.shares: dict[str, Share] = {}
        self._dirty: dict[str, Share] = {}
        self.wake: Callable[[], None] = ignore

    # -- policy --------------------------------------------------------------------------------------------------------

    def set_policy(self, tenants: Iterable[Tenant], plans: Iterable[Plan]) -> None:
        """Obey these plans from now on; tenants that are not among them have none."""
        plans_by_name = {plan.name: plan for plan in plans}
        known = {one.tenant: one for one in tenants if one.plan in plans_by_name}
        for name, share in self.shares.items():
            if name not in known:
                share.set_plan(None, None)
        for tenant in known.values():
            self.learn(tenant, plans_by_name[tenant.plan])

    def learn(self, tenant: Tenant, plan: Plan) -> None:
        """Add or change one tenant's plan; one in a zone that does not exist has none."""
        zone = find_zone(tenant.zone)
        share = self.shares.get(tenant.tenant)
        if share is not None:
            if share.plan != plan or share.zone != zone:
                share.set_plan(plan if zone is not None else None, zone)
        elif zone is not None and len(self.shares) < TENANTS_MAX:
            self.shares[tenant.tenant] = Share(tenant.tenant, plan, zone)

    def want(self, wanted: Wanted) -> Share | None:
        """Another host waits for this host's count of a tenant, known here or not. None: no room for it."""
        share = self.shares.get(wanted.tenant)
        if share is None:
            if len(self.shares) >= TENANTS_MAX:
                return None
            share = self.shares[wanted.tenant] = Share(wanted.tenant, None, None)
        share.wanted = (wanted.day, wanted.month)
        return share

    def find(self, tenant: str) -> Share | None:
        """The share of a tenant that has a plan."""
        share = self.shares.get(tenant)
        return None if share is None or share.plan is None else share

    def knows_policy_of(self, ask: Ask) -> bool:
        share = self.find(ask.tenant)
        if share is None or share.plan is None:
            return False
        return (share.plan.name, share.plan.version) == (ask.plan, ask.plan_version)

    # -- what must be told ---------------------------------------------------------------------------------------------

    @property
    def is_dirty(self) -> bool:
        return bool(self._dirty)

    def mark(self, share: Share) -> None:
        """The store must be told what this share holds and gives back."""
        share.is_dirty = True
        self._dirty[share.tenant] = share
        self.wake()

    def doubt(self, tenant: str) -> None:
        """What the store has of this tenant may differ from what we know."""
        share = self.shares[tenant]
        share.is_overcounted = share.is_overcounted or share.is_capped
        self.mark(share)

    def put_off(self, tenant: str) -> None:
        """Tell it only when this tenant is asked about again."""
        self._dirty.pop(tenant, None)

    def resume(self, share: Share) -> None:
        """The opposite of `put_off`."""
        if share.is_dirty:
            self._dirty[share.tenant] = share

    def begin_session(self, *, is_new_epoch: bool) -> None:
        """Everything held must be told; in another epoch everything must be counted."""
        for share in self.shares.values():
            if is_new_epoch:
                share.is_counted = False
                share.returns.clear()
            if share.slots or share.is_dirty:
                self._dirty[share.tenant] = share
        self.wake()

    def take_gives(self) -> Iterator[Command]:
        """What must be told, one command after another."""
        while self._dirty:
            share = self._dirty.pop(next(iter(self._dirty)))
            returns, share.returns, share.is_dirty = share.returns or {(0, 0): 0}, {}, False
            for starts, calls in returns.items():
                yield Command("give", share.tenant, give_arguments(share.slots, calls, *starts))

    @property
    def holds_slots(self) -> bool:
        return any(share.slots for share in self.shares.values())
