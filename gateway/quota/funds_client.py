"""HOT PATH. Owns a worker's purses: reserves from what is leased, and orders leases of the owner process before.

All orders of one loop turn travel in one frame. Nothing is connected before the first prepaid call. While the owner is
away calls go on with what is leased; who needs more waits up to a second for its replacement. What a worker holds is
in the ledger, under its usage log: neither side has anything to tell when they meet again but the next order.
"""

import asyncio
import logging
from pathlib import Path
from typing import Final

from gateway.clock import Clock
from gateway.errors import Refusal
from gateway.quota.funds import (
    DENIED_NS,
    LEASE_TTL_NS,
    PURSES_MAX,
    SPARE_CALLS_FIRST,
    SPARE_NANOS_MAX,
    TOO_MANY_WAIT,
    UNAVAILABLE,
    WAITING_CALLS_MAX,
    OnFunds,
    Purse,
    Waiting,
    too_little,
)
from gateway.quota.funds_protocol import (
    FUNDS_VERSION,
    Begin,
    Leased,
    Order,
    Recall,
    decode_from_owner,
    encode_frames,
)
from gateway.quota.owner_link import OwnerLink
from gateway.quota.protocol import ProtocolError

RECONNECT_S: Final = 0.05
TICK_S: Final = 0.25
#: How long a call waits for an owner that is away.
WAIT_NS_MAX: Final = 1_000_000_000
#: An owner that leaves an order open for so long is taken for dead: its own limit for the meter is half of it.
ANSWER_NS_MAX: Final = 10_000_000_000
#: A lease that is used up sooner was too small: the next one is twice as large.
FAST_NS: Final = 1_000_000_000
#: Ticks without a change after which spare money goes back.
IDLE_TICKS: Final = 4

_log = logging.getLogger(__name__)


class FundsClient:
    """The `FundStore` of one worker. Not thread-safe: everything happens on `loop`."""

    def __init__(self, path: Path, *, instance: str, epoch: int, clock: Clock, loop: asyncio.AbstractEventLoop) -> None:
        """`instance` and `epoch` name the usage log that records the calls."""
        self._path = path
        self._begin = Begin(FUNDS_VERSION, instance, epoch)
        self._monotonic_ns = clock.monotonic_ns
        self._loop = loop
        self._purses: dict[tuple[str, str], Purse] = {}
        #: Purses that a tick must look at.
        self._active: set[Purse] = set()
        self._dirty: list[Purse] = []
        self._is_flush_planned = False
        self._waiting = 0
        self._connection: OwnerLink | None = None
        self._task: asyncio.Task[None] | None = None
        self._ticker: asyncio.TimerHandle | None = None

    # -- FundStore -----------------------------------------------------------------------------------------------------

    def purse(self, tenant: str, currency: str) -> Purse | None:
        """See `FundStore.purse`."""
        purse = self._purses.get((tenant, currency))
        if purse is None:
            if len(self._purses) >= PURSES_MAX:
                return None
            purse = self._purses[tenant, currency] = Purse(tenant, currency)
        return purse

    def try_reserve(self, purse: Purse, nanos: int, now_ns: int) -> bool:
        """See `FundStore.try_reserve`."""
        room = purse.room - nanos
        if room < 0 or now_ns >= purse.expires_ns or purse.waiting:
            return False
        purse.room = room
        if room < purse.low:
            purse.low = 0
            self._mark(purse)
        return True

    def ask(self, purse: Purse, nanos: int, now_ns: int, on_funds: OnFunds) -> Refusal | None:
        """See `FundStore.ask`."""
        if now_ns < purse.denied_until_ns and nanos >= purse.denied_nanos:
            return too_little(nanos, purse.currency)
        if self._waiting >= WAITING_CALLS_MAX:
            return TOO_MANY_WAIT
        self._waiting += 1
        purse.waiting.append(Waiting(nanos, on_funds, now_ns))
        if not purse.spare:
            purse.spare = min(SPARE_NANOS_MAX, SPARE_CALLS_FIRST * nanos)
        self._mark(purse)
        return None

    def settle(self, purse: Purse, reserved: int, cost: int) -> None:
        """See `FundStore.settle`."""
        purse.room += reserved - cost
        if not purse.is_active:
            self._activate(purse)

    async def close(self) -> None:
        """Disconnect; who waits is refused. What is leased is freed when the meter has read this worker's log."""
        if self._ticker is not None:
            self._ticker.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        for purse in self._purses.values():
            while purse.waiting:
                self._refuse(purse, UNAVAILABLE)
        connection = self._connection
        if connection is not None:
            connection.transport.close()
            await connection.lost.wait()

    # -- orders --------------------------------------------------------------------------------------------------------

    def _activate(self, purse: Purse) -> None:
        purse.is_active = True
        self._active.add(purse)
        if self._task is None:
            self._task = self._loop.create_task(self._keep_connected(), name="funds connection")
            self._ticker = self._loop.call_later(TICK_S, self._tick)

    def _mark(self, purse: Purse) -> None:
        """Something of `purse` is to be ordered at the end of this loop turn."""
        if not purse.is_active:
            self._activate(purse)
        if not purse.is_dirty and not purse.is_asking:
            purse.is_dirty = True
            self._dirty.append(purse)
            self._plan_flush()

    def _plan_flush(self) -> None:
        if not self._is_flush_planned and self._connection is not None:
            self._is_flush_planned = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flush_planned = False
        if self._connection is None:
            return  # ordered again when there is one
        dirty, self._dirty = self._dirty, []
        orders: list[Order] = []
        for purse in dirty:
            purse.is_dirty = False
            if not purse.is_asking:
                orders.append(self._order(purse))
        if orders:
            self._connection.transport.write(encode_frames(orders))

    def _order(self, purse: Purse) -> Order:
        waiting = purse.waiting
        purse.is_asking, purse.asked, purse.asked_ns = True, len(waiting), self._monotonic_ns()
        purse.seq += 2
        amounts = [one.nanos for one in waiting]
        is_return = purse.is_returning = purse.is_return_due and not amounts
        purse.is_return_due = purse.is_order_due = False
        if is_return:  # from here on nothing of it may be spent, whatever becomes of the order
            purse.ceiling -= purse.room
            purse.room = purse.low = 0
        if not is_return and purse.asked_ns - purse.leased_ns < FAST_NS:
            purse.spare = min(SPARE_NANOS_MAX, 2 * purse.spare)
        return Order(
            purse.tenant,
            purse.currency,
            purse.seq,
            purse.committed,
            min(amounts, default=0),
            sum(amounts),
            0 if is_return else purse.spare,
            is_return,
        )

    def _give_back(self, purse: Purse) -> None:
        """Return what no call has reserved, with the next order."""
        purse.is_return_due = True
        purse.spare //= 2
        self._mark(purse)

    # -- from the owner ------------------------------------------------------------------------------------------------

    def on_connected(self, connection: OwnerLink) -> None:
        self._connection = connection
        connection.transport.write(encode_frames([self._begin]))
        for purse in self._active:
            if purse.waiting or purse.is_return_due or purse.is_order_due:
                self._mark(purse)
        if self._dirty:
            self._plan_flush()

    def on_disconnected(self) -> None:
        """What was ordered may have been carried out or not: it is ordered again."""
        self._connection = None
        for purse in self._active:
            if purse.is_asking:
                self._order_again(purse)

    def on_message(self, message: Leased | Recall) -> None:
        """Raises ProtocolError for an answer that nobody asked for."""
        purse = self._purses.get((message.tenant, message.currency))
        if isinstance(message, Recall):
            if purse is not None:  # with an order open: behind its answer
                self._give_back(purse)
            return
        if purse is None or not purse.is_asking:
            raise ProtocolError("an answer to an order that was not given")
        if message.is_unavailable:
            self._order_again(purse)
            for _ in range(purse.asked):
                self._refuse(purse, UNAVAILABLE)
            return
        purse.is_asking = False
        self._take(purse, message)

    def _order_again(self, purse: Purse) -> None:
        """The open order may have been carried out or not: the next one, of the same kind, tells."""
        purse.is_asking = False
        if purse.is_returning:
            purse.is_return_due = True
        else:
            purse.is_order_due = True

    def _take(self, purse: Purse, answer: Leased) -> None:
        """Spend up to the new ceiling; refuse who was asked for and is not covered."""
        raised = answer.ceiling - purse.ceiling
        if raised < 0:
            _log.error("funds_ceiling_lowered: tenant %s by %d nanos, which nobody had returned", purse.tenant, -raised)
            for _ in range(purse.asked):
                self._refuse(purse, UNAVAILABLE)
            return
        purse.ceiling += raised
        purse.room += raised
        purse.expires_ns = purse.asked_ns + LEASE_TTL_NS
        now_ns = self._monotonic_ns()
        asked, purse.asked = purse.asked, 0
        for _ in range(asked):
            self._serve(purse, purse.waiting.popleft(), now_ns)
        if raised:
            purse.leased_ns, purse.low = now_ns, purse.room // 2
        if purse.waiting or purse.is_return_due:
            self._mark(purse)

    def _serve(self, purse: Purse, one: Waiting, now_ns: int) -> None:
        self._waiting -= 1
        if one.nanos <= purse.room:
            purse.room -= one.nanos
            self._loop.call_soon(one.on_funds, None)
            return
        if now_ns >= purse.denied_until_ns or one.nanos < purse.denied_nanos:
            purse.denied_nanos = one.nanos
        purse.denied_until_ns = now_ns + DENIED_NS
        self._loop.call_soon(one.on_funds, too_little(one.nanos, purse.currency))

    def _refuse(self, purse: Purse, refusal: Refusal) -> None:
        self._waiting -= 1
        self._loop.call_soon(purse.waiting.popleft().on_funds, refusal)

    # -- tasks ---------------------------------------------------------------------------------------------------------

    def _new_link(self) -> OwnerLink:
        return OwnerLink(self, decode_from_owner, "funds")

    async def _keep_connected(self) -> None:
        while True:
            try:
                _, connection = await self._loop.create_unix_connection(self._new_link, str(self._path))
            except OSError:
                await asyncio.sleep(RECONNECT_S)
                continue
            await connection.lost.wait()

    def _tick(self) -> None:
        """Give back what idles, renew what is used, and notice an owner that is away or does not answer."""
        self._ticker = self._loop.call_later(TICK_S, self._tick)
        now_ns = self._monotonic_ns()
        for purse in list(self._active):
            if self._connection is None:
                while purse.waiting and now_ns - purse.waiting[0].since_ns > WAIT_NS_MAX:
                    self._refuse(purse, UNAVAILABLE)
            elif purse.is_asking:
                if now_ns - purse.asked_ns > ANSWER_NS_MAX:
                    _log.error("funds_owner_silent: an order is open for %d ms", (now_ns - purse.asked_ns) // 1_000_000)
                    self._connection.transport.abort()
                continue
            self._look_at(purse, now_ns)

    def _look_at(self, purse: Purse, now_ns: int) -> None:
        purse.idle_ticks = purse.idle_ticks + 1 if purse.room == purse.seen_room else 0
        purse.seen_room = purse.room
        if purse.waiting or purse.is_return_due or purse.is_order_due:
            self._mark(purse)
        elif purse.idle_ticks >= IDLE_TICKS:
            if purse.room:
                self._give_back(purse)
            else:
                purse.is_active = False
                self._active.discard(purse)
        elif purse.room and now_ns > purse.expires_ns - LEASE_TTL_NS // 2:
            self._mark(purse)
