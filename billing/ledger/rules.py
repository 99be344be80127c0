"""Owns what a posting is, apart from any database: accounts, lines, the transaction hash, and when two events differ.

Signs: a debit is positive, a credit negative; the lines of a transaction sum to zero per currency. Pure.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, NamedTuple

import msgspec

from billing.events import Reason, Served
from billing.ledger.accounts import prepaid
from billing.ledger.port import LedgerError

GENESIS: Final = bytes(32)
TX_USAGE: Final = "usage"
#: Compared in this order; the first field that differs names the conflict. The key fields are equal by definition.
COMPARED_FIELDS: Final = (
    "charge_nanos",
    "currency",
    "price_version",
    "outcome",
    "reason",
    "rows",
    "compute_ns",
    "model",
    "model_version",
    "plan",
    "key_id",
    "t_ns",
    "request_bytes",
    "reply_bytes",
    "protocol",
)

#: (model, currency) → (sum of charges, number of calls): what one tenant's part of a batch adds up to.
Totals = Mapping[tuple[str, str], tuple[int, int]]
#: currency → (sum of charges, number of calls): the part of those totals that the tenant's wallet pays.
Prepaid = Mapping[str, tuple[int, int]]


class Line(NamedTuple):
    """One entry: a signed amount on an account, and how many calls stand behind it."""

    account: str
    currency: str
    amount_nanos: int
    calls: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """A journal transaction before it is hashed into the chain. `posted_ns` is UTC."""

    tx_id: int
    kind: str
    tenant: str
    posted_ns: int
    first_event_id: int
    event_count: int
    ok_count: int
    t_min_ns: int
    t_max_ns: int
    leaf_version: int
    merkle_root: bytes
    lines: tuple[Line, ...]


def receivable(tenant: str) -> str:
    """What a postpaid tenant owes for calls not yet invoiced (an asset)."""
    return f"unbilled_receivable:{tenant}"


def revenue(model: str) -> str:
    """What calls of a model earned."""
    return f"revenue:model_call:{model}"


def usage_lines(tenant: str, totals: Totals, wallet: Prepaid | None = None) -> tuple[Line, ...]:
    """Per currency one debit of the tenant's receivable and one credit of each model's revenue, in sorted order.

    What `wallet` says was paid in advance is debited to the tenant's wallet instead. Calls that cost nothing make lines
    of amount 0: they are posted like all others, so that `calls` adds up and every call has an entry to point at.
    """
    owed: dict[str, list[int]] = {}
    credits: list[Line] = []
    for (model, currency), (amount, calls) in sorted(totals.items()):
        sums = owed.setdefault(currency, [0, 0])
        sums[0] += amount
        sums[1] += calls
        credits.append(Line(revenue(model), currency, -amount, calls))
    paid = [Line(prepaid(tenant), currency, *sums) for currency, sums in sorted((wallet or {}).items())]
    for line in paid:
        owed[line.currency][0] -= line.amount_nanos
        owed[line.currency][1] -= line.calls
    debits = [
        Line(receivable(tenant), currency, amount, calls)
        for currency, (amount, calls) in sorted(owed.items())
        if amount or calls
    ]
    lines = (*debits, *paid, *credits)
    check_balanced(lines)
    return lines


def totals_of(records: Iterable[Served]) -> tuple[Totals, Prepaid]:
    """What one tenant's events add up to, and which part of it the wallet pays: the arguments of `usage_lines`."""
    totals: dict[tuple[str, str], tuple[int, int]] = {}
    wallet: dict[str, tuple[int, int]] = {}
    for one in records:
        amount, calls = totals.get((one.model, one.currency), (0, 0))
        totals[one.model, one.currency] = (amount + one.charge_nanos, calls + 1)
        if one.reason == Reason.PREPAID:
            amount, calls = wallet.get(one.currency, (0, 0))
            wallet[one.currency] = (amount + one.charge_nanos, calls + 1)
    return totals, wallet


def check_balanced(lines: Sequence[Line]) -> None:
    """Raises LedgerError unless `lines` sum to zero in every currency."""
    sums: dict[str, int] = {}
    for line in lines:
        sums[line.currency] = sums.get(line.currency, 0) + line.amount_nanos
    unbalanced = {currency: total for currency, total in sums.items() if total}
    if not lines or unbalanced:
        raise LedgerError(f"lines do not sum to zero: {unbalanced or 'there are none'}")


def transaction_hash(previous: bytes, tx: Transaction) -> bytes:
    """The chain's next head: SHA-256 over the previous head and every field of `tx`, lines included."""
    body = [
        1,
        tx.tx_id,
        tx.kind,
        tx.tenant,
        tx.posted_ns,
        tx.first_event_id,
        tx.event_count,
        tx.ok_count,
        tx.t_min_ns,
        tx.t_max_ns,
        tx.leaf_version,
        tx.merkle_root,
        tx.lines,
    ]
    return sha256(previous + msgspec.msgpack.encode(body)).digest()


def differing_field(stored: Served, offered: Served) -> str | None:
    """The first of COMPARED_FIELDS in which two events of one key differ; None when they are the same event."""
    if stored == offered:
        return None
    for field in COMPARED_FIELDS:
        if getattr(stored, field) != getattr(offered, field):
            return field
    raise LedgerError("events differ outside the compared fields")
