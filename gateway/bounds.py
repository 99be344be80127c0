"""HOT PATH. Owns the bound of a call's price: a wallet pays it (prepaid), or its caller named the most it may cost.

Such a call is held to the most that it may cost before it runs: refused when that is more than its caller allows, and
reserved in the wallet where one pays. What it is charged is never more, because what is counted afterwards is cut to
what was counted before. Calls without a bound have none of this (`CallState.bound` is None).
"""

from typing import Final, Protocol

from billing.money import format_nanos
from gateway.errors import Code, Refusal
from gateway.heads import HeadFacts
from gateway.quota.funds import UNAVAILABLE, Purse
from gateway.shared import Shared
from gateway.tickets import Policy, Ticket

#: What a stream costs is known at its end.
STREAM_UNBOUNDED: Final = Refusal(
    code=Code.NOT_IMPLEMENTED,
    message="a stream's price has no bound, so it is sold neither prepaid nor with tollway-max-cost: use infer",
)
TIME_UNBOUNDED: Final = Refusal(
    code=Code.NOT_IMPLEMENTED,
    message="this model is priced by compute time without a declared maximum, so its price has no bound:"
    " it is sold neither prepaid nor with tollway-max-cost",
)
_NO_METER: Final = Refusal(code=Code.METERING_UNAVAILABLE, message="prepaid calls need metering, which is off here")


class Bounded(Protocol):
    """The call, as its bound sees it."""

    gateway: Shared
    policy: Policy
    facts: HeadFacts
    rows: int
    compute_ns: int
    arrival_ns: int

    def on_funds(self, refusal: Refusal | None) -> None: ...

    def refuse(self, refusal: Refusal) -> None: ...


class Bound:
    """Of one call. `reserved`: nanos of the wallet that wait for the call's end."""

    # Class-level defaults instead of __slots__, as in `CallState`: a bound sets only what it needs.
    purse: Purse | None = None
    most = 0
    reserved = 0
    rows_max = 0
    is_open = False
    #: The wallet was asked and has not answered: `on_funds` will come.
    is_waiting = False

    def __init__(self, call: Bounded, ticket: Ticket) -> None:
        self.call = call
        self.ticket = ticket

    def begin(self) -> bool:
        """Whether the call may go on, its rows being known. False: it was refused, or `on_funds` will tell."""
        if self.is_open:
            return True
        call, ticket = self.call, self.ticket
        if ticket.compute_ns_max < 0:
            call.refuse(TIME_UNBOUNDED)
            return False
        rows = self.rows_max = call.rows
        most = ticket.most_nanos(rows)
        limit = call.facts.max_cost_nanos
        if 0 <= limit < most:
            call.refuse(_too_much(most, limit, call.policy.currency))
            return False
        if most and ticket.is_prepaid:
            return self._reserve(call, ticket, most)
        self.is_open = True
        return True

    def _reserve(self, call: Bounded, ticket: Ticket, most: int) -> bool:
        funds, purse = call.gateway.funds, ticket.purse
        if funds is None:
            call.refuse(_NO_METER)
            return False
        if purse is None:
            purse = ticket.purse = funds.purse(ticket.tenant.decode(), call.policy.currency)
            if purse is None:
                call.refuse(UNAVAILABLE)
                return False
        self.purse = purse
        if funds.try_reserve(purse, most, call.arrival_ns):
            self.is_open = True
            self.reserved = most
            return True
        self.most = most
        refusal = funds.ask(purse, most, call.arrival_ns, call.on_funds)
        if refusal is None:
            self.is_waiting = True
        else:
            call.refuse(refusal)
        return False

    def take(self) -> None:
        """What was asked for is reserved."""
        self.is_open = True
        self.reserved = self.most

    def cap(self) -> None:
        """Cut what was counted afterwards to what the price was bounded by."""
        call, ticket = self.call, self.ticket
        if ticket.needs_rows and call.rows > self.rows_max:
            call.rows = self.rows_max
        if 0 < ticket.compute_ns_max < call.compute_ns:
            call.compute_ns = ticket.compute_ns_max

    def settle(self, cost: int) -> None:
        """The call's record is appended: its cost is spent, the rest of the reservation is free again."""
        purse, reserved = self.purse, self.reserved
        if reserved and purse is not None:
            self.reserved = 0
            funds = self.call.gateway.funds
            assert funds is not None
            funds.settle(purse, reserved, cost)


def _too_much(most: int, limit: int, currency: str) -> Refusal:
    allowed = f"{format_nanos(limit)} {currency}"
    message = f"this call may cost {format_nanos(most)} {currency}, more than tollway-max-cost allows ({allowed})"
    return Refusal(code=Code.MAX_COST_EXCEEDED, message=message)
