"""Owns the straight line: how much of a fee is earned at an instant. Pure; not accounting advice.

A contract is an amount (net of tax, maybe negative: something given back) over a time [start, end). Earned by an
instant is amount * elapsed seconds / seconds, cut towards zero: at the start nothing, at the end all of it, so what is
deferred ends at exactly zero (I20). A contract without length is earned at once.
"""

from typing import NamedTuple

from billing.invoices.period import NS_PER_S
from billing.invoices.proration import cumulative


class Contract(NamedTuple):
    """One amount in nanos to be earned over a time."""

    amount_nanos: int
    start_ns: int
    end_ns: int


def earned_nanos(contract: Contract, at_ns: int) -> int:
    """What of the contract is earned by `at_ns`."""
    whole = (contract.end_ns - contract.start_ns) // NS_PER_S
    if at_ns >= contract.end_ns or whole <= 0:
        return contract.amount_nanos if at_ns >= contract.start_ns else 0
    done = max(0, at_ns - contract.start_ns) // NS_PER_S
    earned = cumulative(abs(contract.amount_nanos), done, whole)
    # The same towards zero, so that a contract and its mirror cancel at every instant.
    return -earned if contract.amount_nanos < 0 else earned


def deferred_nanos(contract: Contract, at_ns: int) -> int:
    """What of the contract is not yet earned at `at_ns`."""
    return contract.amount_nanos - earned_nanos(contract, at_ns)
