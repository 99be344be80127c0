"""HOT PATH. Owns the fund seam between the pipeline and whoever leases wallets, and the purse: a wallet in one worker.

A prepaid call reserves the most that it may cost before it runs (`try_reserve`, else `ask`), and settles what it did
cost, or gives the reservation back. A purse knows two numbers: its `ceiling`, what all prepaid calls of this worker's
usage log may cost in that wallet, and the `room` below it. So what is committed (spent or reserved) is `ceiling - room`
and never passes the ceiling (MONEY.md I10; billing/ledger/leases.py holds as much in the ledger).
"""

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from billing.money import format_nanos
from gateway.errors import Code, Refusal

PURSES_MAX: Final = 100_000
#: Calls of one worker that may wait for money at once, over all wallets.
WAITING_CALLS_MAX: Final = 20_000
#: A wallet that was found to have too little is not asked about again for so long.
DENIED_NS: Final = 250_000_000
#: After so long without an answer a lease is not spent from any more, until it is renewed.
LEASE_TTL_NS: Final = 60_000_000_000
#: The first spare money is asked for so many calls; it doubles while it is used up fast.
SPARE_CALLS_FIRST: Final = 32
SPARE_NANOS_MAX: Final = 100_000_000_000

UNAVAILABLE: Final = Refusal(
    code=Code.QUOTA_UNAVAILABLE, message="the wallet cannot be asked right now", retry_after_ms=1000
)
TOO_MANY_WAIT: Final = Refusal(
    code=Code.OVERLOADED, message="too many calls wait for their wallet to be asked", retry_after_ms=1000
)

#: None: the money is reserved.
OnFunds = Callable[[Refusal | None], None]


class Waiting:
    """A call that waits until `nanos` are reserved for it, since `since_ns` (monotonic)."""

    __slots__ = ("nanos", "on_funds", "since_ns")

    def __init__(self, nanos: int, on_funds: OnFunds, since_ns: int) -> None:
        self.nanos = nanos
        self.on_funds = on_funds
        self.since_ns = since_ns


class Purse:
    """One wallet as one worker sees it; lives as long as the worker, because its numbers count from the log's start."""

    __slots__ = (
        "asked",
        "asked_ns",
        "ceiling",
        "currency",
        "denied_nanos",
        "denied_until_ns",
        "expires_ns",
        "idle_ticks",
        "is_active",
        "is_asking",
        "is_dirty",
        "is_order_due",
        "is_return_due",
        "is_returning",
        "leased_ns",
        "low",
        "room",
        "seen_room",
        "seq",
        "spare",
        "tenant",
        "waiting",
    )

    def __init__(self, tenant: str, currency: str) -> None:
        self.tenant = tenant
        self.currency = currency
        self.ceiling = 0
        self.room = 0
        #: When `room` falls below it, more is asked for before it is needed; 0: not now.
        self.low = 0
        self.spare = 0
        #: When the last lease came that raised the ceiling (monotonic).
        self.leased_ns = -(1 << 62)
        self.expires_ns = 0
        self.denied_nanos = 0
        self.denied_until_ns = 0
        self.waiting: deque[Waiting] = deque()
        #: Counts orders, by two: the owner may send one again as the next number.
        self.seq = 0
        self.is_asking = False
        self.asked = 0
        self.asked_ns = 0
        self.is_dirty = False
        self.is_active = False
        #: What no call has reserved is to be returned; the open order does so.
        self.is_return_due = False
        self.is_returning = False
        #: What became of an order is not known: the ledger may hold more for us than we know of.
        self.is_order_due = False
        self.seen_room = -1
        self.idle_ticks = 0

    @property
    def committed(self) -> int:
        """Nanos spent, and reserved for calls in flight, since the log's start."""
        return self.ceiling - self.room


class FundStore(Protocol):
    """One per worker: `FundsClient` asks the owner process, `LocalFundStore` is its twin in memory."""

    def purse(self, tenant: str, currency: str) -> Purse | None:
        """The purse of a wallet, the same one each time; None when there are too many."""

    def try_reserve(self, purse: Purse, nanos: int, now_ns: int) -> bool:
        """Reserve `nanos` out of what is leased. False: `ask`."""

    def ask(self, purse: Purse, nanos: int, now_ns: int, on_funds: OnFunds) -> Refusal | None:
        """Reserve `nanos` when more was leased. A refusal is final; else `on_funds` is told later, exactly once.

        Who no longer wants the money when it comes must `settle` it at 0.
        """

    def settle(self, purse: Purse, reserved: int, cost: int) -> None:
        """A call with `reserved` nanos costs `cost` of them: its record is appended, or it is over and costs 0."""

    async def close(self) -> None: ...


def too_little(nanos: int, currency: str) -> Refusal:
    """The wallet has not `nanos`, the most that a call may cost."""
    message = f"the wallet does not cover this call, which may cost {format_nanos(nanos)} {currency}: top it up"
    return Refusal(code=Code.INSUFFICIENT_FUNDS, message=message)
