"""HOT PATH. Owns the `memory://` quota store of one worker: takes from local shelves, asks the owner process otherwise.

All asks and returns of one loop turn travel in one frame. While the owner is away, plans with store_down "closed" are
refused and plans with "lease" go on with what is leased; on reconnecting, everything held is told first (`Hello`).
"""

import asyncio
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from gateway.clock import Clock
from gateway.errors import Refusal
from gateway.quota.owner_link import OwnerLink
from gateway.quota.protocol import (
    HOLDINGS_PER_MESSAGE,
    PENDING_CALLS_MAX,
    TENANTS_MAX,
    VERSION,
    Answer,
    Declare,
    FromOwner,
    FromWorker,
    Hello,
    Holding,
    ProtocolError,
    Recall,
    Report,
    ReportPlease,
    decode_from_owner,
    encode_frame,
)
from gateway.quota.refusals import TOO_MANY_WAIT, UNAVAILABLE
from gateway.quota.shelf import SPARE_SLOTS, Lease, Shelf
from gateway.quota.store import Decision, Grant, OnDecision
from gateway.snapshot import Plan, Tenant

RECONNECT_S: Final = 0.05
#: How long `start` waits for the owner before it lets the worker serve what needs no limits.
START_S: Final = 5.0
TICK_S: Final = 0.5
#: An owner that leaves an ask open for so long is taken for dead (it decides or refuses within a second).
ANSWER_NS_MAX: Final = 3_000_000_000
#: Ticks without a call after which an empty shelf is forgotten.
_FORGET_TICKS: Final = 120

_log = logging.getLogger(__name__)


class MemoryQuotaStore:
    """The `QuotaStore` of one worker. Not thread-safe: everything happens on `loop`."""

    def __init__(self, path: Path, *, worker: str, clock: Clock, loop: asyncio.AbstractEventLoop) -> None:
        self._path = path
        self._worker = worker
        self._clock = clock
        self._monotonic_ns = clock.monotonic_ns
        self._loop = loop
        self._shelves: dict[str, Shelf] = {}
        self._dirty: list[Shelf] = []
        self._replans: dict[str, Plan] = {}
        self._messages: list[FromWorker] = []
        self._is_flush_planned = False
        self._pending = 0
        self._connection: OwnerLink | None = None
        self._connected = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._ticker: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Begin to keep a connection; returns when there is one, or after `START_S` without."""
        self._task = self._loop.create_task(self._keep_connected(), name="quota connection")
        self._ticker = self._loop.call_later(TICK_S, self._tick)
        try:
            async with asyncio.timeout(START_S):
                await self._connected.wait()
        except TimeoutError:
            _log.error("quota_owner_absent: limited tenants are refused until it is there")

    async def close(self) -> None:
        """Give everything back and disconnect. Calls still waiting are refused."""
        if self._ticker is not None:
            self._ticker.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        connection = self._connection
        if connection is not None:
            for shelf in self._shelves.values():
                self._give_all_back(shelf)
            self._flush()
            connection.transport.close()
            await connection.lost.wait()

    @property
    def is_connected(self) -> bool:
        return self._connection is not None

    # -- QuotaStore ----------------------------------------------------------------------------------------------------

    def admit(self, tenant: Tenant, plan: Plan, on_decision: OnDecision) -> Decision | None:
        """See `QuotaStore.admit`."""
        shelf = self._shelves.get(tenant.tenant)
        if shelf is None:
            if len(self._shelves) >= TENANTS_MAX:
                return TOO_MANY_WAIT
            shelf = self._shelves[tenant.tenant] = Shelf(tenant.tenant, plan, self._monotonic_ns())
        elif shelf.plan is not plan and not self._adopt(shelf, plan):
            return self._queue(shelf, on_decision)
        if shelf.policy is None:  # no limits: no clock, no lease, no words
            shelf.in_flight += 1
            return Grant(shelf.tenant, b"", b"", shelf.lease)
        if not shelf.waiters:
            grant = shelf.try_take(self._monotonic_ns())
            if grant is not None:
                if shelf.wants_renewal:
                    self._mark(shelf)
                return grant
        return self._queue(shelf, on_decision)

    def release(self, grant: Grant, *, is_counted: bool) -> None:
        """See `QuotaStore.release`. `is_counted=True` only after the call's record is durable: a recount relies on it.

        A second release of one grant does nothing.
        """
        lease = grant.lease
        if lease is None:
            return
        assert isinstance(lease, Lease)
        grant.lease = None
        shelf = lease.shelf
        if shelf.is_draining:
            shelf.end_call()
        else:  # the same without a call
            shelf.in_flight -= 1
        if not shelf.is_capped:
            pass
        elif not is_counted:
            shelf.put_back(lease, 1)
            self._mark(shelf)
        elif self._connection is None:
            shelf.finished += 1
        if shelf.returns_slots:
            self._mark(shelf)

    # -- asking --------------------------------------------------------------------------------------------------------

    def _queue(self, shelf: Shelf, on_decision: OnDecision) -> Refusal | None:
        if self._connection is None:
            return UNAVAILABLE
        if self._pending >= PENDING_CALLS_MAX:
            return TOO_MANY_WAIT
        self._pending += 1
        shelf.waiters.append(on_decision)
        self._mark(shelf)
        return None

    def _adopt(self, shelf: Shelf, plan: Plan) -> bool:
        """Obey `plan` from now on. False: an ask under the old plan is open, so the call must wait for its answer."""
        if shelf.plan == plan:
            shelf.plan = plan
            return True
        if shelf.is_asking:
            self._replans[shelf.tenant] = plan
            return False
        self._give_all_back(shelf)
        shelf.set_plan(plan, self._monotonic_ns())
        slots = 0 if plan.concurrency is None else shelf.slots
        self._messages.append(Declare(shelf.tenant, slots))
        return True

    def _mark(self, shelf: Shelf) -> None:
        """Something of `shelf` must be sent at the end of this loop turn."""
        if not shelf.is_dirty:
            shelf.is_dirty = True
            self._dirty.append(shelf)
            self._plan_flush()

    def _plan_flush(self) -> None:
        if not self._is_flush_planned:
            self._is_flush_planned = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flush_planned = False
        dirty, self._dirty = self._dirty, []
        for shelf in dirty:
            shelf.is_dirty = False
        if self._connection is None:
            self._messages.clear()
            return
        now_ns = self._monotonic_ns()
        for shelf in dirty:
            ask = shelf.take_ask(now_ns)
            kept = 2 * SPARE_SLOTS if shelf.leases_slots else 0
            # Returns first: what one call gave back another may get in the same turn.
            self._messages += shelf.take_returns(slots_kept=kept, is_all=False)
            if ask is not None:
                self._messages.append(ask)
        self._send()

    def _send(self) -> None:
        messages, self._messages = self._messages, []
        if messages and self._connection is not None:
            self._connection.transport.write(encode_frame(messages))

    def _give_all_back(self, shelf: Shelf) -> None:
        shelf.drop_all()
        self._messages += shelf.take_returns(slots_kept=0, is_all=True)
        self._plan_flush()

    # -- from the owner ------------------------------------------------------------------------------------------------

    def on_connected(self, connection: OwnerLink) -> None:
        self._connection = connection
        now_ns = self._monotonic_ns()
        holdings = [shelf.renew(now_ns) for shelf in self._shelves.values() if not shelf.is_unlimited]
        parts = list(_parts(holdings))
        for at, part in enumerate(parts):
            self._messages = [Hello(VERSION, self._worker, part, is_last=at == len(parts) - 1)]
            self._send()
        self._connected.set()

    def on_disconnected(self) -> None:
        """The owner is gone: refuse who waits; what is leased is void or lives on, by each plan."""
        self._connection = None
        self._messages.clear()
        for shelf in self._shelves.values():
            for on_decision in shelf.give_up():
                self._decide(on_decision, UNAVAILABLE)
            plan = self._replans.pop(shelf.tenant, None)
            if plan is not None:
                shelf.set_plan(plan, self._monotonic_ns())

    def on_message(self, message: FromOwner) -> None:
        """Raises ProtocolError for an answer that nobody asked for."""
        match message:
            case Answer():
                self._on_answer(message)
            case Recall():
                shelf = self._shelves.get(message.tenant)
                if shelf is not None:
                    self._give_all_back(shelf)
            case ReportPlease():
                self._report(message.sequence)

    def _on_answer(self, answer: Answer) -> None:
        shelf = self._shelves.get(answer.tenant)
        if shelf is None or not shelf.is_asking or answer.calls > shelf.asked:
            raise ProtocolError("an answer to a question that was not asked")
        for on_decision, decision in shelf.take_answer(answer, self._monotonic_ns(), self._clock.wall_ns()):
            self._decide(on_decision, decision)
        plan = self._replans.pop(shelf.tenant, None)
        if plan is not None:
            self._adopt(shelf, plan)
        self._serve_waiters(shelf)

    def _serve_waiters(self, shelf: Shelf) -> None:
        """Calls that came while the ask was open: from what it brought, else by the next ask."""
        while shelf.waiters:
            grant = shelf.try_take(self._monotonic_ns())
            if grant is None:
                break
            self._decide(shelf.waiters.popleft(), grant)
        if shelf.waiters or shelf.wants_renewal or shelf.returns_slots:
            self._mark(shelf)

    def _decide(self, on_decision: OnDecision, decision: Decision) -> None:
        # By the loop, one by one: never re-entrant, and one caller's failure does not reach the next.
        self._pending -= 1
        self._loop.call_soon(on_decision, decision)

    def _report(self, sequence: int) -> None:
        self._flush()  # so that what is on its way back is not reported as held
        holdings = [shelf.holding() for shelf in self._shelves.values() if shelf.is_capped]
        parts = list(_parts(holdings))
        for at, part in enumerate(parts):
            self._messages.append(Report(sequence, part, is_last=at == len(parts) - 1))
            self._send()

    # -- tasks ---------------------------------------------------------------------------------------------------------

    def _new_link(self) -> OwnerLink:
        return OwnerLink(self, decode_from_owner, "quota")

    async def _keep_connected(self) -> None:
        while True:
            try:
                _, connection = await self._loop.create_unix_connection(self._new_link, str(self._path))
            except OSError:
                await asyncio.sleep(RECONNECT_S)
                continue
            await connection.lost.wait()

    def _tick(self) -> None:
        """Give back what idles, forget empty shelves, notice an owner that does not answer."""
        self._ticker = self._loop.call_later(TICK_S, self._tick)
        now_ns = self._monotonic_ns()
        for shelf in list(self._shelves.values()):
            if shelf.is_asking and now_ns - shelf.asked_ns > ANSWER_NS_MAX and self._connection is not None:
                _log.error("quota_owner_silent: an ask is open for %d ms", (now_ns - shelf.asked_ns) // 1_000_000)
                self._connection.transport.abort()
            if not shelf.is_idle():
                shelf.idle_ticks = 0
                continue
            shelf.idle_ticks += 1
            if shelf.idle_ticks == 1 and not shelf.is_asking and not shelf.is_unlimited:
                self._give_all_back(shelf)
            if shelf.idle_ticks > _FORGET_TICKS and shelf.is_empty:
                del self._shelves[shelf.tenant]


def _parts(holdings: list[Holding]) -> Iterable[list[Holding]]:
    """At least one part, none larger than a message may be."""
    for start in range(0, max(1, len(holdings)), HOLDINGS_PER_MESSAGE):
        yield holdings[start : start + HOLDINGS_PER_MESSAGE]
