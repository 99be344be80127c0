"""Owns all tenants' allowances and what each worker holds of them: the one place that decides. No I/O, one thread.

`gateway.quota.server` speaks for it over a socket, `LocalQuotaStore` calls it directly.

Crash windows
* The owner dies after a decision and before its answer: the calls were never admitted, and the state is gone with it.
* The owner restarts: slots and calls in flight live on in workers, who tell them in `hello`. Until all have had time to
  (`settle`), limits that depend on it are not decided. Caps are then read from the meter (`begin_recount` …); rates
  begin with an empty bucket (see `gcra`).
* A worker dies: its slots are free at once; what it had leased of caps stays counted until a recount.
"""

from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Final

from billing import failpoint
from gateway.clock import Clock
from gateway.errors import Code
from gateway.quota.allowance import UNLIMITED, Allowance, Instant, Taken, Wanted
from gateway.quota.calendar import Window, find_zone
from gateway.quota.protocol import NEED_MAX, TENANTS_MAX, Answer, Ask, Holding, ProtocolError, Return
from gateway.snapshot import Plan, Tenant

#: How long a caller is told to wait when limits cannot be decided.
UNAVAILABLE_RETRY_MS: Final = 1000
#: What becomes free by itself when a plan has no rate: effectively never.
FOREVER_NS: Final = UNLIMITED


class Parked(Enum):
    """Why an ask cannot be decided yet. Nothing has changed; ask again when that has passed."""

    SETTLING = "workers may still tell what they hold"
    POLICY = "the worker knows another policy than the owner"
    RECOUNT = "the meter has not been asked yet"
    RECALL = "another worker holds spare calls or slots"
    #: Only of a `SharedOwner`.
    STORE = "the store that several hosts share is being asked"
    HOSTS = "other hosts have not told yet what they hold"


class WorkerState:
    """What one connected worker holds. `spares`: tenant → monotonic instant until which spares are out."""

    __slots__ = ("capped", "reported", "slots", "spares")

    def __init__(self) -> None:
        self.slots: dict[str, int] = {}
        self.spares: dict[str, int] = {}
        #: Tenants whose caps it has drawn on.
        self.capped: set[str] = set()
        #: The recount whose report this worker has given.
        self.reported = 0


class Owner:
    """Decides for every tenant. `has_meter=False`: caps start from zero, there is nothing to read them from."""

    def __init__(self, clock: Clock, *, has_meter: bool) -> None:
        self._clock = clock
        self._has_meter = has_meter
        self._start = self._now()
        self._is_settled = False
        self._is_first_policy = True
        self._policy: dict[str, tuple[Plan, str]] = {}
        self._known_at_start: frozenset[str] = frozenset()
        self._allowances: dict[str, Allowance] = {}
        #: Tenants whose count is too high since a worker died.
        self._overcounted: set[str] = set()
        self._recounted: dict[str, tuple[Window, Window]] = {}
        self.recount_sequence = 0
        self.workers: set[WorkerState] = set()

    # -- policy --------------------------------------------------------------------------------------------------------

    def set_policy(self, tenants: Iterable[Tenant], plans: Iterable[Plan]) -> None:
        """Obey these plans from now on; tenants that are not among them are not decided about."""
        plans_by_name = {plan.name: plan for plan in plans}
        policy = {one.tenant: (plans_by_name[one.plan], one.zone) for one in tenants if one.plan in plans_by_name}
        if self._is_first_policy:
            self._known_at_start, self._is_first_policy = frozenset(policy), False
        self._policy = policy
        for tenant, (plan, zone_name) in policy.items():
            allowance = self._allowances.get(tenant)
            if allowance is not None:
                self._replan(allowance, plan, zone_name)
            elif self._has_meter and (plan.calls_per_day is not None or plan.calls_per_month is not None):
                self._allowance(tenant)  # so that the recount finds it before its first call

    def learn(self, tenant: Tenant, plan: Plan) -> None:
        """Add or change one tenant's plan (the in-process twin has no snapshot)."""
        if self._policy.get(tenant.tenant) == (plan, tenant.zone):
            return
        self._policy[tenant.tenant] = (plan, tenant.zone)
        allowance = self._allowances.get(tenant.tenant)
        if allowance is not None:
            self._replan(allowance, plan, tenant.zone)

    def _replan(self, allowance: Allowance, plan: Plan, zone_name: str) -> None:
        zone = find_zone(zone_name) or allowance.zone
        if allowance.plan != plan or allowance.zone.key != zone.key:
            allowance.replan(plan, zone, self._now())
            allowance.is_rebuilt = allowance.is_rebuilt or not self._has_meter

    def _allowance(self, tenant: str) -> Allowance | None:
        """The tenant's allowance, made when first needed; None for a tenant that cannot have one."""
        allowance = self._allowances.get(tenant)
        if allowance is not None:
            return allowance
        known = self._policy.get(tenant)
        zone = find_zone(known[1]) if known is not None else None
        if known is None or zone is None or len(self._allowances) >= TENANTS_MAX:
            return None
        now = self._now()
        # A tenant from before this owner may owe calls to a lost bucket: its bucket was empty at our start. One that
        # appeared later cannot owe anything.
        is_new = tenant not in self._known_at_start
        since = now if is_new else Instant(self._start.monotonic_ns, now.wall_ns)
        allowance = Allowance(known[0], zone, since, is_bucket_full=is_new, is_rebuilt=not self._has_meter)
        self._allowances[tenant] = allowance
        return allowance

    # -- decide --------------------------------------------------------------------------------------------------------

    def ask(self, worker: WorkerState, ask: Ask, *, is_final: bool) -> Answer | Parked:
        """Decide, or say why not yet; with `is_final` always decide (by refusing where nothing is known).

        Raises ProtocolError for numbers that no worker of ours sends.
        """
        check_ask(ask)
        allowance = self._allowance(ask.tenant)
        parked = self._parked(allowance, ask)
        if parked is not None and not is_final:
            return parked
        if allowance is None or parked in (Parked.SETTLING, Parked.RECOUNT):
            return refuse(ask.tenant)
        now = self._now()
        wanted = Wanted(ask.need, ask.slots_need, ask.spare, ask.spare_slots)
        if not is_final and self._has_reason_to_recall(worker, ask.tenant, allowance, now, wanted):
            return Parked.RECALL
        taken = allowance.take(now, wanted)
        return self._grant(worker, ask.tenant, allowance, now, taken)

    def _parked(self, allowance: Allowance | None, ask: Ask) -> Parked | None:
        if allowance is None:
            return Parked.POLICY
        plan = allowance.plan
        if (plan.name, plan.version) != (ask.plan, ask.plan_version):
            return Parked.POLICY
        if not self._is_settled and (allowance.is_capped or plan.concurrency is not None):
            return Parked.SETTLING
        if allowance.is_capped and self._has_meter:
            allowance.roll(self._now())
            if not allowance.is_rebuilt:
                return Parked.RECOUNT
        return None

    def is_policy_unclear(self, worker: WorkerState, ask: Ask) -> bool:
        """Whether `ask` waits for a policy that the owner does not know."""
        return self._parked(self._allowance(ask.tenant), ask) is Parked.POLICY

    def _has_reason_to_recall(
        self, worker: WorkerState, tenant: str, allowance: Allowance, now: Instant, wanted: Wanted
    ) -> bool:
        short = allowance.short_of(now, wanted)
        return short not in (None, Code.RATE_EXCEEDED) and bool(self.spare_holders(worker, tenant))

    def _grant(self, worker: WorkerState, tenant: str, allowance: Allowance, now: Instant, taken: Taken) -> Answer:
        (day_start_ns, day_end_ns), (month_start_ns, month_end_ns) = allowance.windows()
        expires_ns = 0
        if taken.spare:
            ends_ns = [end_ns - now.wall_ns for end_ns in (day_end_ns, month_end_ns) if end_ns]
            expires_ns = now.monotonic_ns + min([allowance.ttl_ns, *ends_ns])
            worker.spares[tenant] = max(expires_ns, worker.spares.get(tenant, 0))
        if taken.slots:
            worker.slots[tenant] = worker.slots.get(tenant, 0) + taken.slots
            if allowance.leases_slots:
                worker.spares[tenant] = FOREVER_NS
        if taken.calls + taken.spare and allowance.is_capped:
            worker.capped.add(tenant)
        if failpoint.armed and taken.calls + taken.spare:
            failpoint.hit("lease_granted")
        return Answer(
            tenant=tenant,
            calls=taken.calls,
            spare=taken.spare,
            slots=taken.slots,
            expires_ns=expires_ns,
            day_start_ns=day_start_ns,
            day_end_ns=day_end_ns,
            month_start_ns=month_start_ns,
            month_end_ns=month_end_ns,
            rate_left=allowance.rate_left(now),
            day_left=allowance.day_left(),
            month_left=allowance.month_left(),
            slots_left=allowance.slots_left(),
            code=taken.code,
            retry_after_ms=taken.retry_after_ms,
        )

    # -- what workers hold ---------------------------------------------------------------------------------------------

    def hello(self, worker: WorkerState, holdings: Sequence[Holding]) -> None:
        """A worker tells what it held before it was connected; it counts from now on."""
        self.workers.add(worker)
        worker.reported = self.recount_sequence
        for holding in holdings:
            allowance = self._allowance(holding.tenant)
            if allowance is None:
                continue
            check_holding(holding)
            self.declare(worker, holding.tenant, holding.slots)
            calls = holding.in_flight + holding.unspent + holding.finished
            if calls and allowance.is_capped:
                worker.capped.add(holding.tenant)
                allowance.count(calls)
                if allowance.recounting is not None:
                    allowance.recounting += calls

    def declare(self, worker: WorkerState, tenant: str, slots: int) -> None:
        """Set what `worker` holds of the tenant's slots. Raises ProtocolError for a negative number."""
        allowance = self._allowance(tenant)
        if slots < 0:
            raise ProtocolError("a worker cannot hold fewer than no slots")
        if allowance is None:
            return
        held = worker.slots.pop(tenant, 0)
        allowance.free_slots(held - slots)
        if slots:
            worker.slots[tenant] = slots

    def give_back(self, worker: WorkerState, message: Return) -> None:
        """Take back what a worker will not use. Raises ProtocolError when it returns slots that it does not hold."""
        tenant = message.tenant
        if message.calls < 0 or not 0 <= message.slots <= worker.slots.get(tenant, 0):
            raise ProtocolError(f"a worker returned {message.slots} slots and {message.calls} calls")
        if message.slots:
            self.declare(worker, tenant, worker.slots[tenant] - message.slots)
        if message.is_all:
            worker.spares.pop(tenant, None)
        allowance = self._allowances.get(tenant)
        if allowance is None or not message.calls:
            return
        allowance.give_back(message.calls, message.day_start_ns, message.month_start_ns)
        # Before its report, what a worker returned is no longer in the report either: nothing to correct.
        if allowance.recounting is not None and worker.reported == self.recount_sequence:
            allowance.recounting = max(0, allowance.recounting - message.calls)

    def goodbye(self, worker: WorkerState) -> None:
        """A worker is gone: its slots are free; what it leased of caps stays counted until a recount."""
        self.workers.discard(worker)
        for tenant in list(worker.slots):
            self.declare(worker, tenant, 0)
        if self._has_meter:
            self._overcounted |= {tenant for tenant in worker.capped if self._allowances[tenant].is_capped}

    def spare_holders(self, asker: WorkerState, tenant: str) -> list[WorkerState]:
        """Workers other than `asker` that may hold spare calls or slots of `tenant`."""
        now_ns = self._clock.monotonic_ns()
        return [one for one in self.workers if one is not asker and one.spares.get(tenant, 0) > now_ns]

    # -- settling and recount ------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Every worker has had the time to say hello: decide from now on."""
        self._is_settled = True

    def needs_recount(self) -> bool:
        return bool(self._tenants_to_recount())

    def _tenants_to_recount(self) -> list[str]:
        if not self._has_meter:
            return []
        return [
            tenant
            for tenant, allowance in self._allowances.items()
            if allowance.is_capped and (not allowance.is_rebuilt or tenant in self._overcounted)
        ]

    def begin_recount(self) -> int:
        """Start a recount of every tenant that needs one; returns its sequence, for the workers' reports.

        From here until the end, what is admitted is added to the meter's answer, in case that was too early for it.
        """
        now = self._now()
        self.recount_sequence += 1
        self._recounted = {tenant: self._allowances[tenant].begin_recount(now) for tenant in self._tenants_to_recount()}
        self._overcounted -= self._recounted.keys()
        return self.recount_sequence

    def report(self, worker: WorkerState, sequence: int, holdings: Sequence[Holding], *, is_last: bool) -> None:
        """What a worker holds now: none of it is in the meter's answer, which is asked for later."""
        if sequence != self.recount_sequence:
            return
        for holding in holdings:
            check_holding(holding)
            allowance = self._allowances.get(holding.tenant)
            if allowance is not None and allowance.recounting is not None:
                allowance.recounting += holding.in_flight + holding.unspent
        if is_last:
            worker.reported = sequence

    def windows_to_count(self) -> list[tuple[str, int]]:
        """(tenant, since) for every window of the running recount: day and month of each tenant, 0 where uncapped."""
        return [(tenant, start) for tenant, windows in self._recounted.items() for start, _ in windows]

    def finish_recount(self, counts: Sequence[int]) -> None:
        """Set the caps from the meter's answer, aligned with `windows_to_count`."""
        assert len(counts) == 2 * len(self._recounted)
        now = self._now()
        for at, (tenant, windows) in enumerate(self._recounted.items()):
            pair = (counts[2 * at], counts[2 * at + 1])
            self._allowances[tenant].finish_recount(now, windows, pair)
        self._recounted = {}

    def abandon_recount(self) -> None:
        """The meter did not answer: keep the counts as they are, and keep needing a recount."""
        for tenant in self._recounted:
            self._allowances[tenant].recounting = None
        self._overcounted |= self._recounted.keys()
        self._recounted = {}

    def _now(self) -> Instant:
        return Instant(self._clock.monotonic_ns(), self._clock.wall_ns())


def check_ask(ask: Ask) -> None:
    """Raises ProtocolError for numbers that no worker of ours sends."""
    if not (0 <= ask.slots_need <= ask.need <= NEED_MAX and ask.spare >= 0 and ask.spare_slots >= 0):
        raise ProtocolError(f"an ask of {ask.need} calls is not possible")


def check_holding(holding: Holding) -> None:
    """Raises ProtocolError for what no worker of ours holds."""
    if min(holding.in_flight, holding.unspent, holding.finished, holding.slots) < 0:
        raise ProtocolError("a worker cannot hold less than nothing")


def refuse(tenant: str) -> Answer:
    """Limits cannot be decided: the whole need is refused."""
    return Answer(tenant, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, Code.QUOTA_UNAVAILABLE, UNAVAILABLE_RETRY_MS)
