"""Owns the asks of one host's workers that are on their way to a shared store, and what each brings. No I/O."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator

from gateway.quota.owner import FOREVER_NS, Parked, WorkerState, refuse
from gateway.quota.protocol import Answer, Ask
from gateway.quota.share import Share
from gateway.quota.store_words import Decided


class Pending:
    """An ask on its way. `is_told`: its outcome is a reason to wait that the server has been told."""

    __slots__ = ("ask", "attempts", "is_holding_back", "is_told", "is_withdrawn", "outcome", "sent_ns", "worker")

    def __init__(self, worker: WorkerState, ask: Ask, *, is_holding_back: bool) -> None:
        self.worker = worker
        self.ask = ask
        self.is_holding_back = is_holding_back
        self.outcome: Answer | Parked | None = None
        self.is_told = False
        #: Nobody waits for it any more; what it brings goes back.
        self.is_withdrawn = False
        self.sent_ns = 0
        self.attempts = 0


class Asks:
    """At most one per worker and tenant that is not withdrawn. `on_decided` hears of every outcome."""

    def __init__(self) -> None:
        self._pending: dict[tuple[WorkerState, str], Pending] = {}
        self._queue: deque[Pending] = deque()
        self.on_decided: Callable[[WorkerState, str], None] = ignore

    def find(self, worker: WorkerState, tenant: str) -> Pending | None:
        return self._pending.get((worker, tenant))

    def submit(self, worker: WorkerState, ask: Ask, *, is_holding_back: bool) -> None:
        pending = Pending(worker, ask, is_holding_back=is_holding_back)
        self._pending[worker, ask.tenant] = pending
        self._queue.append(pending)

    def ask_again(self, pending: Pending) -> None:
        self._queue.append(pending)

    def forget(self, pending: Pending) -> None:
        """Its outcome has been used."""
        del self._pending[pending.worker, pending.ask.tenant]

    def withdraw(self, pending: Pending) -> None:
        """Nobody waits for it any more."""
        pending.is_withdrawn = True
        self.forget(pending)

    def withdraw_all(self, worker: WorkerState) -> None:
        for pending in [one for one in self._pending.values() if one.worker is worker]:
            self.withdraw(pending)

    @property
    def are_waiting(self) -> bool:
        return bool(self._queue)

    def take(self) -> Iterator[Pending]:
        """The next to be carried, one by one; it may bring something from then on."""
        while self._queue:
            pending = self._queue.popleft()
            if not pending.is_withdrawn:
                yield pending

    def put_back(self, pendings: Iterable[Pending]) -> None:
        """They were carried, and no reply came: first in the next batch, in this order."""
        self._queue.extendleft(reversed(list(pendings)))

    def tell(self, pending: Pending, outcome: Answer | Parked) -> None:
        if not pending.is_withdrawn:
            pending.outcome = outcome
            self.on_decided(pending.worker, pending.ask.tenant)

    def refuse_all(self) -> None:
        """The store cannot be asked."""
        self._queue.clear()
        for pending in list(self._pending.values()):
            if not isinstance(pending.outcome, Answer):
                self.tell(pending, refuse(pending.ask.tenant))


def grant(pending: Pending, share: Share, decided: Decided) -> Answer:
    """Note what the worker got, and its answer."""
    worker, tenant = pending.worker, share.tenant
    calls = decided.calls + decided.spare
    share.slots += decided.slots
    if share.recounting is not None:
        share.recounting += calls
    if decided.slots:
        worker.slots[tenant] = worker.slots.get(tenant, 0) + decided.slots
        if share.leases_slots:
            worker.spares[tenant] = FOREVER_NS
    if calls and share.is_capped:
        worker.capped.add(tenant)
    expires_ns = 0
    if decided.spare:
        # From when it was sent: the store took the calls later, so they end in time however slow we are.
        ends_ns = [end_ns - decided.now_ns for _, end_ns in (decided.day, decided.month) if end_ns]
        ttl_ns = FOREVER_NS if share.terms.ttl_ns < 0 else share.terms.ttl_ns
        expires_ns = pending.sent_ns + min([ttl_ns, *ends_ns])
        worker.spares[tenant] = max(expires_ns, worker.spares.get(tenant, 0))
    return Answer(
        tenant=tenant,
        calls=decided.calls,
        spare=decided.spare,
        slots=decided.slots,
        expires_ns=expires_ns,
        day_start_ns=decided.day[0],
        day_end_ns=decided.day[1],
        month_start_ns=decided.month[0],
        month_end_ns=decided.month[1],
        rate_left=decided.rate_left,
        day_left=decided.day_left,
        month_left=decided.month_left,
        slots_left=decided.slots_left,
        code=decided.code,
        retry_after_ms=decided.retry_after_ms,
    )


def ignore(*_: object) -> None:
    """Nobody listens yet."""
