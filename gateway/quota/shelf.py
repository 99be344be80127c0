"""HOT PATH. Owns what one worker holds of one tenant's limits: slots, leased calls, and the calls that wait. No I/O.

`MemoryQuotaStore` takes from a shelf synchronously; what the shelf lacks is asked of the owner, one `Ask` at a time.
Two leases are kept, the current and the next, because leased calls of a rate end at different instants.

Counts that must agree with the owner: `slots` is what the owner believes this worker holds, except for slots in answers
and returns that are on their way.
"""

from collections import deque
from typing import Final

from gateway.errors import Code, Refusal
from gateway.quota.allowance import SPARE_CALLS_MIN, SPARE_SLOTS_LIMIT_MIN, UNLIMITED
from gateway.quota.gcra import lease_terms
from gateway.quota.headers import Left, Renderer, policy_of, renderer_of
from gateway.quota.protocol import NEED_MAX, Answer, Ask, Holding, Return
from gateway.quota.refusals import refusal_of
from gateway.quota.store import Grant, OnDecision
from gateway.snapshot import Plan

SPARE_CALLS_MAX: Final = 65_536
SPARE_SLOTS: Final = 64
#: Figures in replies are refreshed at least so often while calls are made.
REFRESH_NS: Final = 1_000_000_000
#: Doubled by the first ask, as by any that finds nothing left.
_FIRST_SPARE: Final = 32


class Lease:
    """Leased calls and where they were counted. Every grant points to one, so that it can be given back there."""

    __slots__ = (
        "calls",
        "day_start_ns",
        "expires_ns",
        "month_start_ns",
        "renderer",
        "renew_calls",
        "renew_ns",
        "shelf",
    )

    def __init__(self, shelf: "Shelf", calls: int, expires_ns: int, now_ns: int, renderer: Renderer) -> None:
        self.shelf = shelf
        self.calls = calls
        self.expires_ns = expires_ns
        self.day_start_ns = 0
        self.month_start_ns = 0
        self.renderer = renderer
        # Ask for the next one when half is gone, of the calls or of the time: the answer comes before it is needed.
        self.renew_calls = calls // 2
        self.renew_ns = now_ns + min(REFRESH_NS, (expires_ns - now_ns) // 2)


class Shelf:
    """One tenant's holdings in this worker."""

    __slots__ = (
        "asked",
        "asked_ns",
        "finished",
        "idle_ticks",
        "in_flight",
        "is_asking",
        "is_capped",
        "is_dirty",
        "is_draining",
        "lease",
        "leases_calls",
        "leases_slots",
        "next_lease",
        "plan",
        "policy",
        "reserved",
        "returns",
        "returns_slots",
        "seen",
        "shed",
        "slots",
        "slots_total",
        "spare",
        "tenant",
        "waiters",
        "wants_renewal",
    )

    def __init__(self, tenant: str, plan: Plan, now_ns: int) -> None:
        self.tenant = tenant
        self.in_flight = 0
        self.slots = 0
        #: Slots left with the owner plus ours, as of the last answer: what the `concurrency` figure is made of.
        self.slots_total = 0
        #: Idle slots promised to the calls of the open ask.
        self.reserved = 0
        #: Slots that were freed while draining: no longer ours, not yet told.
        self.shed = 0
        self.is_draining = False
        self.is_asking = False
        self.asked = 0
        self.asked_ns = 0
        self.idle_ticks = 0
        self.waiters: deque[OnDecision] = deque()
        self.wants_renewal = False
        self.is_dirty = False
        self.spare = _FIRST_SPARE
        #: Counted calls that ended while no owner was connected.
        self.finished = 0
        #: (day start, month start) → calls to give back.
        self.returns: dict[tuple[int, int], int] = {}
        #: What the last two idle checks saw.
        self.seen: tuple[int, int] = (-1, -1)
        self.set_plan(plan, now_ns)

    def set_plan(self, plan: Plan, now_ns: int) -> None:
        """Begin anew under `plan` with nothing leased; calls in flight stay. Not while an ask is open."""
        assert not self.is_asking
        # Under a lower limit the calls in flight may be too many: a freed slot is the owner's to give, not ours.
        self.is_draining = plan.concurrency is not None and self.in_flight > 0
        self.plan = plan
        self.policy = policy_of(plan)
        self.is_capped = plan.calls_per_day is not None or plan.calls_per_month is not None
        is_call_limited = self.is_capped or plan.rate_calls is not None
        self.leases_calls = is_call_limited and (plan.rate_calls is None or lease_terms(plan).ttl_ns > 0)
        self.leases_slots = plan.concurrency is not None and plan.concurrency >= SPARE_SLOTS_LIMIT_MIN
        #: A small number of slots is shared call by call: a free one goes back at once.
        self.returns_slots = plan.concurrency is not None and (not self.leases_slots or self.is_draining)
        if plan.concurrency is None:
            self.slots = UNLIMITED
        elif self.slots >= UNLIMITED or self.slots < self.in_flight:
            self.slots = self.in_flight
        self.next_lease: Lease | None = None
        left = Left(UNLIMITED, UNLIMITED, 0, UNLIMITED, 0)
        calls = 0 if is_call_limited else UNLIMITED
        self.lease = Lease(self, calls, UNLIMITED, now_ns, renderer_of(plan, left, 0))
        if not is_call_limited:
            self.lease.renew_ns = UNLIMITED
            self.lease.renew_calls = 0

    @property
    def is_unlimited(self) -> bool:
        return self.policy is None

    # -- take ----------------------------------------------------------------------------------------------------------

    def try_take(self, now_ns: int) -> Grant | None:
        """One call out of what is held, or None."""
        if self.in_flight >= self.slots:
            return None
        lease = self.lease
        if lease.calls <= 0 or now_ns >= lease.expires_ns:
            if not self._advance(now_ns):
                return None
            lease = self.lease
        lease.calls -= 1
        self.in_flight += 1
        if now_ns >= lease.renew_ns or (lease.calls < lease.renew_calls and self.next_lease is None):
            self.wants_renewal = not self.is_asking
        return self._grant(lease, lease.calls)

    def _grant(self, lease: Lease, calls_left: int) -> Grant:
        if self.policy is None:
            return Grant(self.tenant, b"", b"", lease)
        value = lease.renderer.render(self.slots_total - self.in_flight, calls_left)
        return Grant(self.tenant, self.policy[1], value, lease)

    def _advance(self, now_ns: int) -> bool:
        """Make the next lease the current one; what the current one has unspent goes back. False: there is none."""
        following = self.next_lease
        if following is None:
            return False
        if self.lease.calls > 0:
            # A lease that mostly lapsed was too large.
            if self.lease.calls > self.spare - self.spare // 4:
                self.spare = max(SPARE_CALLS_MIN, self.spare // 2)
            self.drop(self.lease)
        self.lease, self.next_lease = following, None
        return following.calls > 0 and now_ns < following.expires_ns

    # -- give back -----------------------------------------------------------------------------------------------------

    def end_call(self) -> None:
        """A call is over; its slot is free, or shed while draining."""
        self.in_flight -= 1
        if self.is_draining:
            self.slots -= 1
            self.shed += 1

    def drop(self, lease: Lease) -> None:
        """Return what `lease` has unspent to the caps (calls of a rate lapse)."""
        if lease.calls > 0 and self.is_capped:
            self.put_back(lease, lease.calls)
        lease.calls = 0

    def put_back(self, lease: Lease, calls: int) -> None:
        """Note `calls` counted with `lease` as not made."""
        key = (lease.day_start_ns, lease.month_start_ns)
        self.returns[key] = self.returns.get(key, 0) + calls

    def drop_all(self) -> None:
        """Return all unspent calls (idle slots are returned by `take_returns`)."""
        if self.leases_calls:
            self.drop(self.lease)
            if self.next_lease is not None:
                self.drop(self.next_lease)
                self.next_lease = None

    def take_returns(self, *, slots_kept: int, is_all: bool) -> list[Return]:
        """Messages that give back noted calls and idle slots beyond `slots_kept`."""
        slots = 0
        if self.plan.concurrency is not None:
            slots = max(0, self.slots - self.in_flight - self.reserved - slots_kept)
            self.slots -= slots
        slots += self.shed
        self.shed = 0
        returns, self.returns = self.returns, {}
        messages = [Return(self.tenant, calls, day, month, 0, is_all=False) for (day, month), calls in returns.items()]
        if slots or is_all:
            messages.append(Return(self.tenant, 0, 0, 0, slots, is_all=is_all))
        return messages

    # -- ask and answer ------------------------------------------------------------------------------------------------

    def take_ask(self, now_ns: int) -> Ask | None:
        """The next ask, or None when nothing is wanted or one is open."""
        if self.is_asking or not (self.waiters or self.wants_renewal):
            return None
        self.is_asking, self.wants_renewal, self.asked_ns = True, False, now_ns
        self.asked = need = min(len(self.waiters), NEED_MAX)
        slots_need = 0
        if self.plan.concurrency is not None:
            self.reserved = min(need, max(0, self.slots - self.in_flight))
            slots_need = need - self.reserved
        lease = self.lease
        if lease.calls <= lease.renew_calls and now_ns < lease.renew_ns:
            # Half gone in less than half its time: the next one must be larger.
            self.spare = min(SPARE_CALLS_MAX, max(2 * self.spare, need))
        # A lease that lives as long as its calls is refreshed by time, but needs more calls only when half are gone.
        is_short = lease.calls <= lease.renew_calls or lease.expires_ns < UNLIMITED // 2
        wants_calls = self.leases_calls and self.next_lease is None and is_short
        return Ask(
            tenant=self.tenant,
            plan=self.plan.name,
            plan_version=self.plan.version,
            need=need,
            slots_need=slots_need,
            spare=self.spare if wants_calls else 0,
            spare_slots=SPARE_SLOTS if self.leases_slots and slots_need else 0,
        )

    def take_answer(self, answer: Answer, now_ns: int, wall_ns: int) -> list[tuple[OnDecision, Grant | Refusal]]:
        """Apply the owner's answer to the open ask; returns the decisions to deliver, in order of arrival."""
        self.is_asking, self.reserved = False, 0
        if self.plan.concurrency is not None:
            self.slots += answer.slots
            if answer.slots and self.is_draining:  # the owner has some to give: all calls fit the limit again
                self.is_draining, self.returns_slots = False, not self.leases_slots
            self.slots_total = answer.slots_left + self.slots
        left = Left(answer.rate_left, answer.day_left, answer.day_end_ns, answer.month_left, answer.month_end_ns)
        lease = Lease(self, answer.spare, answer.expires_ns, now_ns, renderer_of(self.plan, left, wall_ns))
        lease.day_start_ns, lease.month_start_ns = answer.day_start_ns, answer.month_start_ns
        decisions: list[tuple[OnDecision, Grant | Refusal]] = []
        for at in range(min(answer.calls, self.asked)):
            self.in_flight += 1
            decisions.append((self.waiters.popleft(), self._grant(lease, answer.spare + answer.calls - 1 - at)))
        if self.asked > answer.calls:
            refusal = self._refusal(answer, lease)
            decisions += [(self.waiters.popleft(), refusal) for _ in range(self.asked - answer.calls)]
        self.asked = 0
        self._keep(lease, now_ns)
        return decisions

    def _refusal(self, answer: Answer, lease: Lease) -> Refusal:
        value = lease.renderer.render(self.slots_total - self.in_flight, 0)
        code = Code.QUOTA_UNAVAILABLE if answer.code is None else Code(answer.code)
        return refusal_of(self.plan, code, answer.retry_after_ms, self.policy, value)

    def _keep(self, lease: Lease, now_ns: int) -> None:
        current = self.lease
        if current.calls >= UNLIMITED // 2:  # only slots are limited: keep the endless lease, refresh its figures
            current.renderer = lease.renderer
        elif lease.calls <= 0:
            # Nothing leased: no more asking until the figures are old, but the figures are fresh.
            current.renew_calls, current.renew_ns = 0, now_ns + REFRESH_NS
            current.renderer = lease.renderer
        elif current.calls <= 0 or now_ns >= current.expires_ns:
            self.drop(current)
            self.lease = lease
        else:
            self.next_lease = lease

    def give_up(self) -> list[OnDecision]:
        """The owner is gone: forget the open ask; returns who waited."""
        self.is_asking, self.reserved, self.asked, self.wants_renewal = False, 0, 0, False
        waiters, self.waiters = list(self.waiters), deque()
        if self.plan.store_down != "lease" and not self.is_unlimited:
            # What is leased is void, so that nothing is admitted and nothing of it needs telling to the next owner.
            self.lease.calls, self.next_lease = 0, None
            if self.plan.concurrency is not None:
                self.slots = self.in_flight
        self.returns.clear()
        self.shed = 0
        return waiters

    def renew(self, now_ns: int) -> Holding:
        """A new owner is there: what it must know. What was void may be asked for again."""
        # Given back while nobody was there: the new owner never counted it.
        self.returns.clear()
        self.shed = 0
        if self.plan.store_down != "lease" and not self.is_unlimited:
            if self.plan.concurrency is not None:
                self.slots = self.in_flight
            self.set_plan(self.plan, now_ns)
        holding = self.holding()
        self.finished = 0
        return holding

    def is_idle(self) -> bool:
        """Whether no call was admitted or ended since the last time this was asked."""
        seen, self.seen = self.seen, (self.lease.calls, self.in_flight)
        return seen == self.seen

    @property
    def is_empty(self) -> bool:
        """Whether nothing would be lost by forgetting this shelf."""
        holds = self.in_flight or self.waiters or self.is_asking or self.returns or self.finished
        has_slots = self.plan.concurrency is not None and self.slots > 0
        return not holds and not has_slots and not (self.leases_calls and self.lease.calls > 0)

    def holding(self) -> Holding:
        """What a new or recounting owner must know."""
        unspent = 0
        if self.is_capped:
            unspent = self.lease.calls + (0 if self.next_lease is None else self.next_lease.calls)
        slots = self.slots if self.plan.concurrency is not None else 0
        return Holding(self.tenant, self.in_flight, unspent, self.finished, slots)
