"""Owns one host's part of limits that several hosts share: it decides nothing, the store (`store.lua`) does. No I/O.

The same face as `Owner` for `gateway.quota.server`, so workers notice no difference: an ask that must travel is
`Parked.STORE`; calls that a worker has leased cost no travel. `StoreKeeper` carries batches to the store and back, one
at a time, so that every reply is known before the next batch is written; therefore `slots` are told absolutely.

Crash windows
* A batch without replies (connection lost, too slow): it may have happened. A new session fences late arrivals off;
  then slots are told absolutely, calls of a rate lapse, and caps are too high until the recount that follows.
* This process dies: the store keeps what it held (`before` in store.lua) until the next one has heard its workers.
* The host dies: its slots are free after `LEASE_S`; what it counted stays.
* The store loses everything: a new epoch; buckets start empty, every host counts its caps anew (`Counts`).
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Final, NamedTuple

from gateway.clock import Clock
from gateway.quota.owner import Parked, WorkerState, check_ask, check_holding, refuse
from gateway.quota.protocol import Answer, Ask, Holding, ProtocolError, Return
from gateway.quota.shared_asks import Asks, Pending, grant, ignore
from gateway.quota.shared_book import Book
from gateway.quota.shared_counts import Counts
from gateway.quota.store_link import Command, CommandFailed, Reply
from gateway.quota.store_words import (
    AskReply,
    Beat,
    CountsMissing,
    Decided,
    OtherWindow,
    SessionLost,
    Settling,
    Short,
    ask_arguments,
    count_arguments,
    read_ask,
    read_done,
)
from gateway.snapshot import Plan, Tenant

BATCH_MAX: Final = 512
#: A tenant whose state the store cannot use (another type at its key) is refused for so long before the next try.
BROKEN_NS: Final = 1_000_000_000
_ATTEMPTS_MAX: Final = 3


class Errand(NamedTuple):
    """A command to be carried, and the ask that it is for; None for what only must be done."""

    command: Command
    pending: Pending | None = None


class SharedOwner:
    """One host's owner. `has_meter=False`: this host's counts of caps start from zero.

    What must be carried is told by `call_when_wanted`.
    """

    def __init__(self, clock: Clock, *, has_meter: bool) -> None:
        self._clock = clock
        self._has_meter = has_meter
        self._is_settled = False
        self._book = Book()
        self._shares = self._book.shares
        self._counts = Counts(self._shares, has_meter=has_meter)
        self._asks = Asks()
        self._broken: dict[str, int] = {}
        #: The store's clock less ours, at least.
        self._offset_ns = 0
        self.epoch = ""
        self.is_registered = False
        #: Whether limits are refused because the store cannot be asked.
        self.is_away = False
        self.workers: set[WorkerState] = set()
        self._wake: Callable[[], None] = ignore
        self._on_recall: Callable[[WorkerState, str], None] = ignore
        self._on_news: Callable[[], None] = ignore
        self._on_count_wanted: Callable[[], None] = ignore

    def call_when_wanted(self, wake: Callable[[], None]) -> None:
        """`wake` is called whenever there is something to carry."""
        self._wake = self._book.wake = wake

    def listen(
        self,
        *,
        on_decided: Callable[[WorkerState, str], None],
        on_news: Callable[[], None],
        on_recall: Callable[[WorkerState, str], None],
        on_count_wanted: Callable[[], None],
    ) -> None:
        """Who is told: a parked ask of this worker and tenant should be tried again; all should; a worker must return
        its spares; a recount is needed.
        """
        self._asks.on_decided, self._on_news, self._on_recall = on_decided, on_news, on_recall
        self._on_count_wanted = on_count_wanted

    # -- policy --------------------------------------------------------------------------------------------------------

    def set_policy(self, tenants: Iterable[Tenant], plans: Iterable[Plan]) -> None:
        """Obey these plans from now on; tenants that are not among them are not decided about."""
        self._book.set_policy(tenants, plans)

    def learn(self, tenant: Tenant, plan: Plan) -> None:
        """Add or change one tenant's plan."""
        self._book.learn(tenant, plan)

    # -- decide --------------------------------------------------------------------------------------------------------

    def ask(self, worker: WorkerState, ask: Ask, *, is_final: bool) -> Answer | Parked:
        """The decision, or why there is none yet. With `is_final` a refusal where it would take longer still, but a
        question that only then may go to the store is `Parked.STORE` once more.

        Raises ProtocolError for numbers that no worker of ours sends.
        """
        check_ask(ask)
        pending = self._asks.find(worker, ask.tenant)
        if pending is None:
            reason = self._waits_for(ask)
            if reason is Parked.POLICY and is_final and self._book.find(ask.tenant) is not None:
                reason = None  # what the owner knows decides
            if is_final and reason is not None:
                return refuse(ask.tenant)
            return reason if reason is not None else self._submit(worker, ask, is_final=is_final)
        outcome = pending.outcome
        if outcome is None:
            if not is_final:
                return Parked.STORE
            self._asks.withdraw(pending)
            return refuse(ask.tenant)
        if isinstance(outcome, Answer):
            self._asks.forget(pending)
            return outcome
        if not is_final and not pending.is_told:
            pending.is_told = True
            return outcome
        self._asks.forget(pending)
        if is_final and outcome is not Parked.RECALL:
            return refuse(ask.tenant)
        reason = None if is_final else self._waits_for(ask)
        return reason if reason is not None else self._submit(worker, ask, is_final=is_final)

    def _waits_for(self, ask: Ask) -> Parked | None:
        share = self._book.find(ask.tenant)
        if share is None or share.plan is None or not self._book.knows_policy_of(ask):
            return Parked.POLICY
        if not self._is_settled and (share.is_capped or share.plan.concurrency is not None):
            return Parked.SETTLING
        if share.is_capped and not share.is_counted and self._has_meter and not self.is_away:
            can_count = self.is_registered and self._counts.is_needed(share) and not self._is_broken(ask.tenant)
            return Parked.RECOUNT if can_count else Parked.HOSTS
        return None

    def _submit(self, worker: WorkerState, ask: Ask, *, is_final: bool) -> Answer | Parked:
        if self.is_away or self._is_broken(ask.tenant):
            return refuse(ask.tenant)
        is_holding_back = not is_final and bool(self.spare_holders(worker, ask.tenant))
        self._book.resume(self._shares[ask.tenant])  # what could not be told while it was broken
        self._asks.submit(worker, ask, is_holding_back=is_holding_back)
        self._wake()
        return Parked.STORE

    def _is_broken(self, tenant: str) -> bool:
        return self._broken.get(tenant, 0) > self._clock.monotonic_ns()

    def is_policy_unclear(self, worker: WorkerState, ask: Ask) -> bool:
        """Whether `ask` waits for a policy that the owner does not know."""
        return self._asks.find(worker, ask.tenant) is None and self._waits_for(ask) is Parked.POLICY

    def spare_holders(self, asker: WorkerState, tenant: str) -> list[WorkerState]:
        """Workers of this host other than `asker` that may hold spare calls or slots of `tenant`."""
        now_ns = self._clock.monotonic_ns()
        return [one for one in self.workers if one is not asker and one.spares.get(tenant, 0) > now_ns]

    # -- to and from the store -----------------------------------------------------------------------------------------

    def take_batch(self) -> list[Errand]:
        """What must be carried now, in order: what is given back, counts, asks. Not while a batch is on its way."""
        errands = [Errand(one) for one in islice(self._book.take_gives(), BATCH_MAX)]
        if self._book.is_dirty:
            return errands
        # Counts are absolute: after what was given back before they were taken, before what is taken now.
        for share, counted in self._counts.take(BATCH_MAX):
            words = count_arguments(counted, has_meter=self._has_meter)
            errands.append(Errand(Command("count", share.tenant, words)))
        wall_ns, now_ns = self._store_wall_ns(), self._clock.monotonic_ns()
        for pending in self._asks.take():
            asked = self._shares[pending.ask.tenant]
            if asked.plan is None:  # its policy went while it waited
                self._asks.tell(pending, refuse(asked.tenant))
                continue
            pending.sent_ns = now_ns
            windows = asked.windows(wall_ns)
            words = ask_arguments(pending.ask, asked, windows, is_holding_back=pending.is_holding_back)
            errands.append(Errand(Command("ask", asked.tenant, words), pending))
            if len(errands) >= BATCH_MAX:
                break
        return errands

    def has_work(self) -> bool:
        return self._book.is_dirty or self._asks.are_waiting or self._counts.is_waiting

    def on_replies(self, errands: Sequence[Errand], replies: Sequence[Reply]) -> None:
        """Apply the replies, in order. Raises SessionLost, after `on_lost`, for the first that no session answered."""
        has_news = False
        for at, (errand, reply) in enumerate(zip(errands, replies, strict=True)):
            try:
                if isinstance(reply, CommandFailed):
                    self._on_failed(errand)
                elif errand.pending is not None:
                    self._on_ask(errand.pending, read_ask(reply))
                else:
                    read_done(reply)
                    has_news = has_news or errand.command.operation == "count"
            except SessionLost:
                self.on_lost(errands[at:])
                raise
        if has_news:
            self._on_news()

    def on_lost(self, errands: Sequence[Errand]) -> None:
        """There is no session any more, and these errands may have been done."""
        self.is_registered = False
        for errand in errands:
            self._book.doubt(errand.command.tenant)
        self._asks.put_back(errand.pending for errand in errands if errand.pending is not None)

    def _on_failed(self, errand: Errand) -> None:
        tenant = errand.command.tenant
        self._broken[tenant] = self._clock.monotonic_ns() + BROKEN_NS
        self._book.doubt(tenant)
        self._book.put_off(tenant)  # told once it is asked about again
        if errand.pending is not None:
            self._asks.tell(errand.pending, refuse(tenant))

    def on_registered(self, epoch: str, now_ns: int, sent_wall_ns: int) -> None:
        """A new session. Everything held must be told; in another epoch everything must be counted."""
        is_new = epoch != self.epoch
        self.epoch, self.is_registered, self.is_away = epoch, True, False
        self.learn_time(now_ns, sent_wall_ns)
        self._book.begin_session(is_new_epoch=is_new)
        self._on_count_wanted()

    def on_away(self) -> None:
        """The store cannot be asked: who waits is refused; plans with store_down "closed" lose what is leased."""
        if self.is_away:
            return
        self.is_away = True
        self._asks.refuse_all()
        now_ns = self._clock.monotonic_ns()
        for worker in list(self.workers):
            for tenant in [name for name, until_ns in worker.spares.items() if until_ns > now_ns]:
                share = self._shares.get(tenant)
                if share is None or share.plan is None or share.plan.store_down != "lease":
                    self._on_recall(worker, tenant)

    def on_beat(self, beat: Beat, sent_wall_ns: int) -> None:
        """The lease goes on. Others may want counts; what waits for others is tried again."""
        self.learn_time(beat.now_ns, sent_wall_ns)
        for wanted in beat.wanted:
            share = self._book.want(wanted)
            if share is not None and not self._has_meter:
                self._counts.start_from_zero(share, wanted.day, wanted.month)
        if beat.wanted:
            self._on_count_wanted()
        self._on_news()

    def learn_time(self, store_ns: int, sent_wall_ns: int) -> None:
        """`store_ns` was read after `sent_wall_ns`, so the difference is at most this."""
        self._offset_ns = store_ns - sent_wall_ns

    def _store_wall_ns(self) -> int:
        return self._clock.wall_ns() + self._offset_ns

    @property
    def is_complete(self) -> bool:
        """Whether every count is in the store once the batch that was taken has been carried."""
        return self._is_settled and not self.needs_recount() and not self._counts.is_waiting

    @property
    def has_told_slots(self) -> bool:
        """Whether every slot that workers hold is in the store once the batch that was taken has been carried."""
        return self._is_settled and not self._book.is_dirty

    @property
    def holds_slots(self) -> bool:
        return self._book.holds_slots

    def _on_ask(self, pending: Pending, reply: AskReply) -> None:
        match reply:
            case Decided():
                self._on_decided(pending, reply)
            case OtherWindow():
                self._on_other_window(pending, reply)
            case CountsMissing():
                share = self._shares[pending.ask.tenant]
                if reply.is_own:
                    share.is_counted = False
                    if not self._has_meter:
                        self._counts.start_from_zero(share, reply.day, reply.month)
                        self._asks.ask_again(pending)
                        return
                self._asks.tell(pending, Parked.RECOUNT if reply.is_own else Parked.HOSTS)
            case Settling():
                self._asks.tell(pending, Parked.HOSTS)
            case Short():
                self._asks.tell(pending, Parked.RECALL)

    def _on_other_window(self, pending: Pending, reply: OtherWindow) -> None:
        self._offset_ns = reply.now_ns - self._clock.wall_ns()
        pending.attempts += 1
        if pending.attempts < _ATTEMPTS_MAX:
            self._asks.ask_again(pending)
        else:
            self._asks.tell(pending, refuse(pending.ask.tenant))

    def _on_decided(self, pending: Pending, decided: Decided) -> None:
        share = self._shares[pending.ask.tenant]
        if not pending.is_withdrawn:
            self._asks.tell(pending, grant(pending, share, decided))
            return
        calls = decided.calls + decided.spare
        if calls and share.is_capped:
            share.put_back(calls, decided.day[0], decided.month[0])
        if decided.slots or share.is_dirty:
            self._book.mark(share)

    # -- what workers hold ---------------------------------------------------------------------------------------------

    def hello(self, worker: WorkerState, holdings: Sequence[Holding]) -> None:
        """A worker tells what it held before it was connected. Its calls are in the store already."""
        self.workers.add(worker)
        worker.reported = self._counts.sequence
        for holding in holdings:
            share = self._shares.get(holding.tenant)
            if share is None:
                continue
            check_holding(holding)
            self.declare(worker, holding.tenant, holding.slots)
            calls = holding.in_flight + holding.unspent + holding.finished
            if calls and share.is_capped:
                worker.capped.add(holding.tenant)
                if share.recounting is not None:
                    share.recounting += calls

    def declare(self, worker: WorkerState, tenant: str, slots: int) -> None:
        """Set what `worker` holds of the tenant's slots. Raises ProtocolError for a negative number."""
        if slots < 0:
            raise ProtocolError("a worker cannot hold fewer than no slots")
        share = self._shares.get(tenant)
        if share is None:
            return
        held = worker.slots.pop(tenant, 0)
        if slots:
            worker.slots[tenant] = slots
        if slots != held:
            share.slots += slots - held
            self._book.mark(share)

    def give_back(self, worker: WorkerState, message: Return) -> None:
        """Take back what a worker will not use. Raises ProtocolError when it returns slots that it does not hold."""
        tenant = message.tenant
        if message.calls < 0 or not 0 <= message.slots <= worker.slots.get(tenant, 0):
            raise ProtocolError(f"a worker returned {message.slots} slots and {message.calls} calls")
        if message.slots:
            self.declare(worker, tenant, worker.slots[tenant] - message.slots)
        if message.is_all:
            worker.spares.pop(tenant, None)
        share = self._shares.get(tenant)
        if share is None or not message.calls:
            return
        share.put_back(message.calls, message.day_start_ns, message.month_start_ns)
        self._book.mark(share)
        # Before its report, what a worker returned is no longer in the report either: nothing to correct.
        if share.recounting is not None and worker.reported == self._counts.sequence:
            share.recounting = max(0, share.recounting - message.calls)

    def goodbye(self, worker: WorkerState) -> None:
        """A worker is gone: its slots are free; what it leased of caps stays counted until a recount."""
        self.workers.discard(worker)
        self._asks.withdraw_all(worker)
        for tenant in list(worker.slots):
            self.declare(worker, tenant, 0)
        for tenant in worker.capped:
            share = self._shares[tenant]
            share.is_overcounted = share.is_overcounted or (self._has_meter and share.is_capped)

    # -- settling and recount ------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Every worker of this host has had the time to say hello: tell the store, and decide from now on."""
        self._is_settled = True
        self._wake()

    @property
    def recount_sequence(self) -> int:
        return self._counts.sequence

    def needs_recount(self) -> bool:
        return self.is_registered and self._counts.are_needed(self._is_broken)

    def begin_recount(self) -> int:
        """See `Owner.begin_recount`."""
        return self._counts.begin(self._store_wall_ns(), self._is_broken)

    def report(self, worker: WorkerState, sequence: int, holdings: Sequence[Holding], *, is_last: bool) -> None:
        """See `Owner.report`."""
        self._counts.report(worker, sequence, holdings, is_last=is_last)

    def windows_to_count(self) -> list[tuple[str, int]]:
        """(tenant, since) by this host's clock, day and month of each; 0 where uncapped."""
        return self._counts.windows(max(0, self._offset_ns))

    def finish_recount(self, counts: Sequence[int]) -> None:
        """Hand the meter's answer to the store with the next batch."""
        self._counts.finish(counts)
        self._wake()

    def abandon_recount(self) -> None:
        """The meter did not answer: keep needing a recount."""
        self._counts.abandon()
